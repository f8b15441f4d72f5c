//! How the scanner reads FASTA: it cuts the input into lines and decides from the first byte what each of them is.
//!
//! A slice of the input may end anywhere, also between CR and LF or inside the first four bytes, so the line in
//! progress is kept here from one slice to the next. Residues and headers go to [`Records`] part by part.

use super::cursor::{Cursor, Place};
use super::error::{FastaError, FastaErrorKind};
use super::format;
use super::record::{Form, Records, Section};
use super::residues::ResiduePolicy;

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

/// The line being read, and the records that the lines make.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) records: Records,
    line: Line,
    after_carriage_return: bool,
    /// First bytes of the input, or of text before the first header.
    head: Vec<u8>,
    foreign_at: Place,
}

impl Lines {
    pub(super) fn new(policy: ResiduePolicy, form: Form) -> Self {
        Self {
            records: Records::new(policy, form),
            line: Line::Fresh,
            after_carriage_return: false,
            head: Vec::new(),
            foreign_at: (1, 1),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), FastaError> {
        if self.records.section == Section::Start { self.start(bytes) } else { self.scan(bytes) }
    }

    pub(super) fn finish(&mut self) -> Result<(), FastaError> {
        if self.records.section == Section::Start {
            self.leave_start()?;
        }
        self.end_line()?;
        self.records.close_record()?;
        if self.records.section == Section::BeforeRecords && self.records.summary.bytes > 0 {
            return Err(self.records.fault_at((1, 1), FastaErrorKind::NoRecord));
        }
        self.records.section = Section::Finished;
        Ok(())
    }

    /// What is scanned next is the cell of a table whose first byte is at `place`.
    pub(super) fn begin_cell(&mut self, place: Place) {
        self.records.cursor = Cursor::at(place);
        self.after_carriage_return = false;
        self.line = Line::Fresh;
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
        self.records.section = Section::BeforeRecords;
        if let Some(name) = format::name_of_encoding(&head) {
            return Err(self.records.fault_at((1, 1), FastaErrorKind::OtherFormat { name }));
        }
        let text = head.strip_prefix(format::BYTE_ORDER_MARK);
        self.records.summary.has_byte_order_mark = text.is_some();
        self.scan(text.unwrap_or(&head))
    }

    /// Cut the bytes into lines, and pass each part of a line on according to what the line is.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Result<(), FastaError> {
        self.records.reserve(bytes.len())?;
        let mut rest = bytes;
        while let Some((&first, tail)) = rest.split_first() {
            if std::mem::take(&mut self.after_carriage_return) && first == b'\n' {
                rest = tail;
                continue;
            }
            if self.line == Line::Fresh && self.begin_line(first)? {
                self.records.cursor.advance(1);
                rest = tail;
            }
            let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            self.line_part(part)?;
            self.records.cursor.advance(part.len());
            rest = after;
            if let Some((&terminator, tail)) = after.split_first() {
                self.end_line()?;
                self.records.cursor.next_line();
                self.after_carriage_return = terminator == b'\r';
                rest = tail;
            }
        }
        Ok(())
    }

    /// Decide what a line is by its first byte; returns whether that consumes the byte.
    fn begin_line(&mut self, first: u8) -> Result<bool, FastaError> {
        match first {
            b'\n' | b'\r' => Ok(false),
            b'>' if self.records.form == Form::Fasta => {
                self.records.begin_record()?;
                self.line = Line::Header;
                Ok(true)
            }
            b';' if self.records.form == Form::Fasta => {
                self.line = Line::Ignored;
                self.records.summary.comment_lines += 1;
                Ok(true)
            }
            _ => {
                self.line = match self.records.section {
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
            Line::Header => self.records.extend_header(part),
            Line::Foreign => self.extend_foreign(part),
            Line::Residues => match self.records.section {
                Section::BeforeRecords => self.before_records(part),
                // The record was refused in an earlier part of this line.
                Section::LeftOut => Ok(()),
                _ => self.records.residues(part),
            },
        }
    }

    fn end_line(&mut self) -> Result<(), FastaError> {
        match std::mem::replace(&mut self.line, Line::Fresh) {
            Line::Header => self.records.finish_header(),
            Line::Foreign => self.judge_foreign(),
            Line::Fresh | Line::Residues | Line::Ignored => Ok(()),
        }
    }

    /// Before the first header only blank lines, comments and one line that starts with `#` are allowed.
    fn before_records(&mut self, part: &[u8]) -> Result<(), FastaError> {
        let Some(text) = part.iter().position(|byte| !matches!(byte, b' ' | b'\t')) else {
            return Ok(());
        };
        self.line = Line::Foreign;
        self.foreign_at = self.records.cursor.place(text);
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
            None if self.head.first() == Some(&b'#')
                && self.foreign_at.1 == 1
                && !self.records.summary.has_alignment_line =>
            {
                self.records.summary.has_alignment_line = true;
                // Where the line goes on, the rest of it is dropped as well; where it has ended, the next one is fresh.
                if self.line == Line::Foreign {
                    self.line = Line::Ignored;
                }
                return Ok(());
            }
            None => FastaErrorKind::TextBeforeHeader,
        };
        Err(self.records.fault_at(self.foreign_at, kind))
    }
}
