//! How the scanner reads tables: CSV and TSV whose first row names the columns, one record per row.
//!
//! `csv-core` splits rows into fields and removes the quotes. It is more lenient than this scanner, which a stray quote
//! would lead to swallow rows: here a quoted field must end with its quote, and every row must have as many fields as
//! the first.

use csv_core::{ReadFieldResult, Reader, ReaderBuilder};
use memchr::{memchr2, memchr2_iter};

use super::cursor::Place;
use super::error::{FastaError, FastaErrorKind, shown_id};
use super::format::{self, BYTE_ORDER_MARK};
use super::lines::Lines;
use super::record::Section;

/// Longest first row in bytes: no table has a longer one, and a file that is not a table may have no line end at all.
const FIRST_ROW: usize = 1 << 20;

/// How tables write a missing value, in upper or lower case; the letters of each are also residues.
const MISSING: [&[u8]; 4] = [b"na", b"nan", b"none", b"null"];

/// Longest name of letters alone that a message shows: a cell in the place of a name may be a sequence.
const SHOWN_LETTERS: usize = 12;

/// The columns of a table that make a record, by the names in its first row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The column of sequences.
    pub sequence: String,
    /// The column of ids, read like the header of a FASTA record. `None` takes the column `id`, or the ordinal of the
    /// record where there is no such column.
    pub id: Option<String>,
}

/// A row in progress, and what the first row says.
#[derive(Debug)]
pub(super) struct TableRows {
    columns: Columns,
    /// Whether the byte order mark was looked for.
    has_started: bool,
    /// The first line with text, until it is complete; then its start, which an error needs to name the format.
    head: Vec<u8>,
    parser: Option<Box<Reader>>,
    /// Names of the columns while the first row is read.
    names: Vec<Vec<u8>>,
    /// Bytes of these names together.
    names_len: usize,
    chosen: Option<Chosen>,
    sequence: Cell,
    id: Cell,
    field: Field,
    num_fields: usize,
    /// Line of the row's first byte.
    row_line: u64,
    next: Position,
}

/// Which fields of a row make the record.
#[derive(Clone, Copy, Debug)]
struct Chosen {
    sequence: usize,
    id: Option<usize>,
    num_columns: usize,
}

/// The text of a field and the place of its first letter.
#[derive(Debug, Default)]
struct Cell {
    text: Vec<u8>,
    place: Place,
}

/// The field in progress, as the input holds it.
#[derive(Debug, Default)]
struct Field {
    place: Place,
    /// Bytes of input, and of the text that the parser made of them.
    len: u64,
    written: u64,
    /// Quotes in the text.
    quotes: u64,
    first: u8,
    last_two: [u8; 2],
}

/// Line and column of the next byte.
#[derive(Debug)]
struct Position {
    line: u64,
    column: u64,
    after_carriage_return: bool,
}

impl TableRows {
    pub(super) fn new(columns: Columns) -> Self {
        Self {
            columns,
            has_started: false,
            head: Vec::new(),
            parser: None,
            names: Vec::new(),
            names_len: 0,
            chosen: None,
            sequence: Cell::default(),
            id: Cell::default(),
            field: Field::default(),
            num_fields: 0,
            row_line: 1,
            next: Position { line: 1, column: 1, after_carriage_return: false },
        }
    }

    pub(super) fn push(&mut self, lines: &mut Lines, bytes: &[u8]) -> Result<(), FastaError> {
        if self.parser.is_some() {
            return self.scan_rows(lines, bytes);
        }
        reserve(lines, &mut self.head, bytes.len())?;
        let searched = self.head.len();
        self.head.extend_from_slice(bytes);
        if !self.has_started && self.head.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(&self.head) {
            return Ok(());
        }
        let dropped = self.drop_blank(lines);
        let new = searched.saturating_sub(dropped);
        let end = memchr2(b'\n', b'\r', self.head.get(new..).unwrap_or_default());
        match end.map_or(self.head.len(), |end| new + end) {
            FIRST_ROW.. => {
                self.names = vec![self.head.get(..FIRST_ROW).unwrap_or_default().to_vec()];
                self.row_line = self.next.line;
                Err(self.no_column(&self.columns.sequence))
            }
            _ if end.is_some() => self.begin_rows(lines),
            _ => Ok(()),
        }
    }

    /// Drop the byte order mark and the blank lines before the first row; returns the number of bytes dropped.
    fn drop_blank(&mut self, lines: &mut Lines) -> usize {
        let has_mark = !std::mem::replace(&mut self.has_started, true) && self.head.starts_with(BYTE_ORDER_MARK);
        lines.records.summary.has_byte_order_mark |= has_mark;
        let mark = if has_mark { BYTE_ORDER_MARK.len() } else { 0 };
        let text = self.head.get(mark..).unwrap_or_default();
        let blank = text.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
        self.next.pass(text.get(..blank).unwrap_or_default());
        self.head.drain(..mark + blank);
        mark + blank
    }

    pub(super) fn finish(&mut self, lines: &mut Lines) -> Result<(), FastaError> {
        if self.parser.is_none() {
            self.begin_rows(lines)?;
        }
        // Ends the last row where a line end is missing.
        self.scan_field(lines, &[])?;
        if self.chosen.is_none() && lines.records.summary.bytes > 0 {
            self.row_line = 1;
            return Err(self.no_column(&self.columns.sequence));
        }
        lines.records.section = Section::Finished;
        Ok(())
    }

    /// The first line is complete: choose the separator.
    fn begin_rows(&mut self, lines: &mut Lines) -> Result<(), FastaError> {
        let head = std::mem::take(&mut self.head);
        let line = head.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        let delimiter = [b'\t', b','].into_iter().find(|byte| line.contains(byte)).unwrap_or(b';');
        let mut parser = Box::new(ReaderBuilder::new().delimiter(delimiter).build());
        // The parser would drop a byte order mark by itself, unless it has read something before.
        parser.read_field(b"\n", &mut [0]);
        self.parser = Some(parser);
        self.head = line.get(..format::SNIFFED).unwrap_or(line).to_vec();
        self.scan_rows(lines, &head)
    }

    fn scan_rows(&mut self, lines: &mut Lines, bytes: &[u8]) -> Result<(), FastaError> {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            let is_between_rows = self.num_fields == 0 && self.field.len == 0;
            let used = if is_between_rows && matches!(first, b'\n' | b'\r') {
                self.next.pass(&[first]);
                1
            } else {
                self.scan_field(lines, rest)?
            };
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Continue a field; returns the number of bytes it used. No bytes mean the end of the input.
    fn scan_field(&mut self, lines: &mut Lines, bytes: &[u8]) -> Result<usize, FastaError> {
        let Some(parser) = &mut self.parser else { return Ok(0) };
        let mut text = [0; 512];
        let (result, used, written) = parser.read_field(bytes, &mut text);
        let (raw, text) = (bytes.get(..used).unwrap_or_default(), text.get(..written).unwrap_or_default());
        if self.field.len == 0 {
            self.field.place = self.next.place();
            if self.num_fields == 0 {
                self.row_line = self.next.line;
            }
        }
        self.field.add(raw, text);
        self.next.pass(raw);
        self.bound_names(text.len())?;
        if let Some(cell) = self.cell() {
            reserve(lines, cell, text.len())?;
            cell.extend_from_slice(text);
        }
        if let ReadFieldResult::Field { record_end } = result {
            self.end_field(!bytes.is_empty())?;
            if record_end {
                self.end_row(lines)?;
            }
        }
        Ok(used)
    }

    fn end_row(&mut self, lines: &mut Lines) -> Result<(), FastaError> {
        let found = std::mem::take(&mut self.num_fields);
        let Some(chosen) = self.chosen else {
            self.chosen = Some(self.choose()?);
            self.names.clear();
            return Ok(());
        };
        if found != chosen.num_columns {
            let kind = FastaErrorKind::FieldCount { found, expected: chosen.num_columns };
            return Err(lines.records.fault_at((self.row_line, 1), kind));
        }
        let id = chosen.id.map(|_| std::mem::take(&mut self.id.text));
        lines.records.begin_row(self.row_line, id, self.id.place)?;
        self.scan_sequence(lines)?;
        self.sequence.text.clear();
        lines.records.close_record()
    }

    /// Scan the sequence of a row like a sequence in memory.
    fn scan_sequence(&self, lines: &mut Lines) -> Result<(), FastaError> {
        let Cell { text, place } = &self.sequence;
        lines.begin_cell(*place);
        if lines.records.section == Section::Record && is_missing(text) {
            lines.records.refuse(*place, FastaErrorKind::MissingValue)?;
        }
        lines.scan(text)
    }

    /// The buffer for the text of the field in progress; `None` for a column that is not read.
    fn cell(&mut self) -> Option<&mut Vec<u8>> {
        let Some(chosen) = self.chosen else {
            if self.names.len() == self.num_fields {
                self.names.push(Vec::new());
            }
            return self.names.last_mut();
        };
        let cell = if self.num_fields == chosen.sequence {
            &mut self.sequence
        } else if Some(self.num_fields) == chosen.id {
            &mut self.id
        } else {
            return None;
        };
        let (line, column) = self.field.place;
        cell.place = (line, column + u64::from(self.field.is_quoted()));
        Some(&mut cell.text)
    }

    /// Refuse a first row that does not end because a quote is not closed.
    fn bound_names(&mut self, more: usize) -> Result<(), FastaError> {
        if self.chosen.is_some() {
            return Ok(());
        }
        self.names_len += more;
        if self.names_len <= FIRST_ROW { Ok(()) } else { Err(self.quote_fault(self.field.place)) }
    }

    fn quote_fault(&self, (line, column): Place) -> FastaError {
        FastaError { line, column, record: None, kind: FastaErrorKind::Quote }
    }

    fn end_field(&mut self, is_terminated: bool) -> Result<(), FastaError> {
        let field = std::mem::take(&mut self.field);
        self.num_fields += 1;
        if field.is_well_quoted(is_terminated) { Ok(()) } else { Err(self.quote_fault(field.place)) }
    }

    fn choose(&self) -> Result<Chosen, FastaError> {
        let sequence = self.index_of(&self.columns.sequence)?;
        let sequence_is_id = self.columns.sequence == "id";
        let id = match &self.columns.id {
            Some(name) => Some(self.index_of(name)?),
            None if sequence_is_id || !self.names.iter().any(|name| name == b"id") => None,
            None => Some(self.index_of("id")?),
        };
        Ok(Chosen { sequence, id, num_columns: self.names.len() })
    }

    fn index_of(&self, wanted: &str) -> Result<usize, FastaError> {
        let mut indices = (0..).zip(&self.names).filter(|(_, name)| *name == wanted.as_bytes()).map(|(index, _)| index);
        let index = indices.next().ok_or_else(|| self.no_column(wanted))?;
        match indices.next() {
            None => Ok(index),
            Some(_) => Err(self.fault(FastaErrorKind::RepeatedColumn { name: wanted.into() })),
        }
    }

    fn no_column(&self, wanted: &str) -> FastaError {
        let other = match self.head.first() {
            Some(b'>') => Some("FASTA"),
            _ => format::name_of_encoding(self.head.get(..4).unwrap_or_default())
                .or_else(|| format::name_of_text(self.head.get(..format::SNIFFED).unwrap_or(&self.head)))
                .filter(|name| *name != format::TABLE),
        };
        self.fault(match other {
            Some(name) => FastaErrorKind::NotTable { name },
            None => FastaErrorKind::NoColumn { name: wanted.into(), found: self.found() },
        })
    }

    fn fault(&self, kind: FastaErrorKind) -> FastaError {
        FastaError { line: self.row_line, column: 1, record: None, kind }
    }

    /// The first names of columns, for a message; a name that is long or may be a sequence is shown by its length.
    fn found(&self) -> String {
        const SHOWN: usize = 12;
        const LONGEST: usize = 40;
        if self.names.iter().all(Vec::is_empty) {
            return String::new();
        }
        let is_sequence = |name: &[u8]| name.len() > SHOWN_LETTERS && name.iter().all(u8::is_ascii_alphabetic);
        let shown = |name: &Vec<u8>| match name.len() {
            ..=LONGEST if !is_sequence(name) => format!("'{}'", shown_id(name)),
            len => format!("({len} characters)"),
        };
        let mut names: Vec<String> = self.names.iter().take(SHOWN).map(shown).collect();
        if self.names.len() > SHOWN {
            names.push(format!("{} more", self.names.len() - SHOWN));
        }
        names.join(", ")
    }
}

/// Whether a cell is one of [`MISSING`], with blanks around it or the sign that some programs write.
fn is_missing(text: &[u8]) -> bool {
    let word = text.trim_ascii();
    let word = word.strip_prefix(b"-").unwrap_or(word);
    MISSING.iter().any(|missing| word.eq_ignore_ascii_case(missing))
}

fn reserve(lines: &Lines, text: &mut Vec<u8>, bytes: usize) -> Result<(), FastaError> {
    text.try_reserve(bytes).map_err(|_| lines.records.out_of_memory(bytes))
}

impl Field {
    fn add(&mut self, raw: &[u8], text: &[u8]) {
        if let (0, Some(&first)) = (self.len, raw.first()) {
            self.first = first;
        }
        self.last_two = match raw {
            [.., before, last] => [*before, *last],
            [last] => [self.last_two[1], *last],
            [] => self.last_two,
        };
        self.len += raw.len() as u64;
        self.written += text.len() as u64;
        if self.is_quoted() {
            self.quotes += memchr::memchr_iter(b'"', text).count() as u64;
        }
    }

    fn is_quoted(&self) -> bool {
        self.len > 0 && self.first == b'"'
    }

    /// Whether a quoted field ends with its quote: the input then has two quotes more than the text, and one more for
    /// each quote in it. Text after the closing quote must contain a quote to end with one, which then is missing from
    /// that count.
    fn is_well_quoted(&self, is_terminated: bool) -> bool {
        let [before, last] = self.last_two;
        let (len, end) = if is_terminated { (self.len - 1, before) } else { (self.len, last) };
        len == 0 || self.first != b'"' || (end == b'"' && len == self.written + self.quotes + 2)
    }
}

impl Position {
    fn place(&self) -> Place {
        (self.line, self.column)
    }

    /// Move past these bytes.
    fn pass(&mut self, bytes: &[u8]) {
        let mut start = 0;
        for end in memchr2_iter(b'\n', b'\r', bytes) {
            let is_pair = bytes.get(end) == Some(&b'\n')
                && end.checked_sub(1).map_or(self.after_carriage_return, |at| bytes.get(at) == Some(&b'\r'));
            self.line += u64::from(!is_pair);
            self.column = 1;
            start = end + 1;
        }
        self.column += (bytes.len() - start) as u64;
        if let Some(&last) = bytes.last() {
            self.after_carriage_return = last == b'\r';
        }
    }
}
