//! A push scanner for FASTA and for tables of sequences: bytes in, tokens in packed arrays out.
//!
//! No file is opened here: the caller passes slices of any size to [`Scanner::push`] and calls [`Scanner::finish`] at
//! the end. The verdict (records, flags, or the position and kind of the first fault) is a function of the bytes
//! alone. It does not depend on how they were cut into slices, so whatever a decision needs beyond one byte is kept in
//! the scanner. An input is read exactly or refused; every change leaves a flag or a count in the summary.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batch;
mod error;
mod format;
mod record;
mod residues;
mod table;

pub use batch::{Batch, Rejection, Summary, flag, split_header};
pub use error::{FastaError, FastaErrorKind};
pub use residues::ResiduePolicy;
pub use table::Columns;

use residues::Table;
use table::Rows;

/// Records with more residues than this, all of them ACGTUN, look like nucleotides.
pub const NUCLEOTIDE_LENGTH: u64 = 50;

/// What the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Fasta,
    /// One sequence without header, where `>` and `;` have no meaning at the start of a line.
    Sequence,
    /// Rows of fields; each row has such a sequence.
    Table,
}

/// What the bytes of the current line are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// No byte of it was seen yet.
    Fresh,
    Header,
    Residues,
    /// A comment, or a line of a record that is left out.
    Ignored,
    /// Text before the first header, collected to recognise its format.
    Foreign,
}

/// Which part of the input the current line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    /// The first four bytes decide on the encoding.
    Start,
    BeforeRecords,
    Record,
    /// A record that is left out, up to the next header: refused under `skip`, or annotation.
    LeftOut,
    Finished,
}

/// The record being read.
#[derive(Debug, Default)]
struct Current {
    header: Vec<u8>,
    line: u64,
    /// Traits of its residues, joined by or: the high bits of the table's entries.
    traits: u16,
    flags: u16,
    /// Stops that are trailing unless a residue follows, and the place of the first of them.
    pending_stops: u64,
    first_stop: (u64, u64),
}

impl Current {
    /// The header after it was judged, which made it UTF-8.
    fn header_text(&self) -> &str {
        std::str::from_utf8(&self.header).unwrap_or_default()
    }
}

/// The scanner. See the module's text for its contract.
///
/// ```
/// use protperf_core::fasta::{ResiduePolicy, Scanner};
///
/// let mut scanner = Scanner::new(ResiduePolicy::Map);
/// scanner.push(b">a first\nMK")?;
/// scanner.push(b"V\n>b\nacd*\n")?;
/// scanner.finish()?;
/// let batch = scanner.take();
/// assert_eq!(batch.name_of(0), Some(("a", "first")));
/// assert_eq!(batch.tokens_of(0), Some(&[13, 11, 20][..]));
/// assert_eq!(batch.len(), 2);
/// # Ok::<(), protperf_core::fasta::FastaError>(())
/// ```
#[derive(Debug)]
pub struct Scanner {
    policy: ResiduePolicy,
    table: &'static Table,
    form: Form,
    /// The state of a table; `None` for other forms.
    rows: Option<Box<Rows>>,
    section: Section,
    line: Line,
    line_number: u64,
    /// Offset in the input of the current line's first byte, and of the next byte to come.
    line_start: u64,
    position: u64,
    after_carriage_return: bool,
    /// First bytes of the input, or of text before the first header.
    head: Vec<u8>,
    foreign_at: (u64, u64),
    current: Current,
    /// Complete records, followed by the tokens of the current one.
    batch: Batch,
    next_ordinal: u64,
    summary: Summary,
    failure: Option<FastaError>,
}

impl Scanner {
    /// A scanner at the start of an input.
    pub fn new(policy: ResiduePolicy) -> Self {
        Self {
            policy,
            table: Table::of(policy),
            form: Form::Fasta,
            rows: None,
            section: Section::Start,
            line: Line::Fresh,
            line_number: 1,
            line_start: 0,
            position: 0,
            after_carriage_return: false,
            head: Vec::new(),
            foreign_at: (1, 1),
            current: Current::default(),
            batch: Batch::default(),
            next_ordinal: 0,
            summary: Summary::default(),
            failure: None,
        }
    }

    /// A scanner for one sequence without header, such as a string in memory, under the same residue policy; a `>` or
    /// `;` anywhere is a fault. The result is exactly one record, or one rejection under `skip`.
    pub fn of_sequence(policy: ResiduePolicy) -> Self {
        let mut scanner = Self::new(policy);
        scanner.form = Form::Sequence;
        scanner.section = Section::Record;
        scanner.current.line = 1;
        scanner
    }

    /// Start the ordinals at `ordinal`, the number of records in the inputs before this one.
    pub fn counted_from(mut self, ordinal: u64) -> Self {
        self.next_ordinal = ordinal;
        self
    }

    /// Scan the next bytes of the input.
    ///
    /// # Errors
    /// The first fault of the input, which every later call returns again. The batch keeps the complete records before
    /// it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FastaError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        self.summary.bytes += bytes.len() as u64;
        let outcome = match (self.section, self.rows.take()) {
            (Section::Finished, _) => Ok(()),
            (_, Some(mut rows)) => {
                let outcome = self.scan_table(&mut rows, bytes);
                self.rows = Some(rows);
                outcome
            }
            (Section::Start, None) => self.start(bytes),
            (_, None) => self.scan(bytes),
        };
        self.keep_failure(outcome)
    }

    /// End the input; what is pushed later is ignored.
    ///
    /// # Errors
    /// As [`Self::push`]; also the faults that only the end of the input shows, such as no header at all.
    pub fn finish(&mut self) -> Result<(), FastaError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        let outcome = match self.rows.take() {
            Some(mut rows) => self.end_of_table(&mut rows),
            None => self.end_of_input(),
        };
        self.keep_failure(outcome)
    }

    /// The complete records since the last call. A record in progress stays.
    pub fn take(&mut self) -> Batch {
        let complete = self.batch.num_tokens();
        let unfinished = Batch { tokens: self.batch.tokens.split_off(complete), ..Batch::default() };
        std::mem::replace(&mut self.batch, unfinished)
    }

    /// The complete records so far, without taking them; the tokens of a record in progress follow theirs.
    pub fn peek(&self) -> &Batch {
        &self.batch
    }

    /// Counts so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    fn keep_failure(&mut self, outcome: Result<(), FastaError>) -> Result<(), FastaError> {
        if let Err(error) = &outcome {
            self.failure = Some(error.clone());
        }
        outcome
    }

    fn start(&mut self, bytes: &[u8]) -> Result<(), FastaError> {
        let (head, rest) = bytes.split_at(bytes.len().min(4 - self.head.len()));
        self.head.extend_from_slice(head);
        if self.head.len() < 4 {
            return Ok(());
        }
        self.leave_start()?;
        self.scan(rest)
    }

    fn leave_start(&mut self) -> Result<(), FastaError> {
        let head = std::mem::take(&mut self.head);
        self.section = Section::BeforeRecords;
        if let Some(name) = format::name_of_encoding(&head) {
            return Err(self.fault_at((1, 1), FastaErrorKind::OtherFormat { name }));
        }
        match head.strip_prefix(b"\xef\xbb\xbf") {
            None => self.scan(&head),
            Some(rest) => {
                self.summary.has_byte_order_mark = true;
                self.position = 3;
                self.line_start = 3;
                self.scan(rest)
            }
        }
    }

    /// Cut the bytes into lines, and pass each part of a line on according to what the line is.
    fn scan(&mut self, bytes: &[u8]) -> Result<(), FastaError> {
        self.reserve(bytes.len())?;
        let mut rest = bytes;
        while let Some((&first, tail)) = rest.split_first() {
            if std::mem::take(&mut self.after_carriage_return) && first == b'\n' {
                self.position += 1;
                self.line_start += 1;
                rest = tail;
                continue;
            }
            if self.line == Line::Fresh && self.begin_line(first)? {
                self.position += 1;
                rest = tail;
            }
            let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            self.line_part(part)?;
            self.position += part.len() as u64;
            rest = after;
            if let Some((&terminator, tail)) = after.split_first() {
                self.end_line()?;
                self.position += 1;
                self.line_start = self.position;
                self.line_number += 1;
                self.after_carriage_return = terminator == b'\r';
                rest = tail;
            }
        }
        Ok(())
    }

    /// Make room for all that these bytes can add: at most one residue per byte, and an X for each pending stop.
    fn reserve(&mut self, bytes: usize) -> Result<(), FastaError> {
        let needed = bytes.saturating_add(usize::try_from(self.current.pending_stops).unwrap_or(usize::MAX));
        let tokens = self.batch.tokens.try_reserve(needed);
        tokens.map_err(|_| self.fault_here(FastaErrorKind::OutOfMemory { bytes: needed }))
    }

    /// Decide what a line is by its first byte; returns whether that consumes the byte.
    fn begin_line(&mut self, first: u8) -> Result<bool, FastaError> {
        match first {
            b'\n' | b'\r' => Ok(false),
            b'>' if self.form == Form::Fasta => {
                self.close_record()?;
                self.line = Line::Header;
                self.current = Current { line: self.line_number, ..Current::default() };
                Ok(true)
            }
            b';' if self.form == Form::Fasta => {
                self.line = Line::Ignored;
                self.summary.comment_lines += 1;
                Ok(true)
            }
            _ => {
                self.line = match self.section {
                    Section::LeftOut => Line::Ignored,
                    _ => Line::Residues,
                };
                Ok(false)
            }
        }
    }

    fn line_part(&mut self, part: &[u8]) -> Result<(), FastaError> {
        match self.line {
            Line::Fresh | Line::Ignored => Ok(()),
            Line::Header => self.extend_header(part),
            Line::Foreign => self.extend_foreign(part),
            Line::Residues => match self.section {
                Section::BeforeRecords => self.before_records(part),
                // The record was refused in an earlier part of this line.
                Section::LeftOut => Ok(()),
                _ => self.residues(part),
            },
        }
    }

    fn end_line(&mut self) -> Result<(), FastaError> {
        match std::mem::replace(&mut self.line, Line::Fresh) {
            Line::Header => self.finish_header(),
            Line::Foreign => self.judge_foreign(),
            Line::Fresh | Line::Residues | Line::Ignored => Ok(()),
        }
    }

    fn end_of_input(&mut self) -> Result<(), FastaError> {
        if self.section == Section::Start {
            self.leave_start()?;
        }
        self.end_line()?;
        self.close_record()?;
        if self.section == Section::BeforeRecords && self.summary.bytes > 0 {
            return Err(self.fault_at((1, 1), FastaErrorKind::NoRecord));
        }
        self.section = Section::Finished;
        Ok(())
    }

    /// Before the first header only blank lines, comments and one line that starts with `#` are allowed.
    fn before_records(&mut self, part: &[u8]) -> Result<(), FastaError> {
        let Some(text) = part.iter().position(|byte| !matches!(byte, b' ' | b'\t')) else {
            return Ok(());
        };
        self.line = Line::Foreign;
        self.foreign_at = self.place(text);
        self.head.clear();
        let (_, text) = part.split_at(text);
        self.extend_foreign(text)
    }

    fn extend_foreign(&mut self, text: &[u8]) -> Result<(), FastaError> {
        let missing = format::SNIFFED - self.head.len();
        self.head.extend(text.iter().take(missing));
        if self.head.len() < format::SNIFFED { Ok(()) } else { self.judge_foreign() }
    }

    /// Refuse a line of text before the first header by the name of its format. One line that starts with `#` and
    /// belongs to no known format is dropped: alignments in A3M have one (`#A3M#`, or the lengths that ColabFold writes).
    fn judge_foreign(&mut self) -> Result<(), FastaError> {
        let kind = match format::name_of_text(&self.head) {
            Some(name) => FastaErrorKind::OtherFormat { name },
            None if self.head.first() == Some(&b'#') && self.foreign_at.1 == 1 && !self.summary.has_alignment_line => {
                self.summary.has_alignment_line = true;
                // Where the line goes on, the rest of it is dropped as well; where it has ended, the next one is fresh.
                if self.line == Line::Foreign {
                    self.line = Line::Ignored;
                }
                return Ok(());
            }
            None => FastaErrorKind::TextBeforeHeader,
        };
        Err(FastaError { line: self.foreign_at.0, column: self.foreign_at.1, record: None, kind })
    }

    /// Line and column of the byte that is `offset` bytes after the current position.
    fn place(&self, offset: usize) -> (u64, u64) {
        (self.line_number, self.position + offset as u64 - self.line_start + 1)
    }

    fn fault_here(&self, kind: FastaErrorKind) -> FastaError {
        self.fault_at(self.place(0), kind)
    }

    fn fault_at(&self, (line, column): (u64, u64), kind: FastaErrorKind) -> FastaError {
        let in_record = kind.is_of_record() && self.form != Form::Sequence;
        let record = in_record.then(|| {
            let header = self.current.header.trim_ascii_start();
            let end = header.iter().position(|byte| matches!(byte, b' ' | b'\t' | 1)).unwrap_or(header.len());
            error::shown_id(header.get(..end).unwrap_or_default())
        });
        FastaError { line, column, record, kind }
    }
}
