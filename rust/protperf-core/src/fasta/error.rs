//! Why an input was refused: position and cause as fields.

use std::fmt;

use super::format::{TABLE, TOKENS};

/// Characters of an id that an error keeps: enough to find the record, never a whole 2 MB header.
const SHOWN_ID: usize = 80;

/// The first fault of an input, or the fault that got one record rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastaError {
    /// Line, from 1; LF, CRLF and CR alone each end one.
    pub line: u64,
    /// Byte in the line, from 1; a byte order mark is not counted.
    pub column: u64,
    /// Id of the record, cut to 80 characters; `None` outside of records.
    pub record: Option<String>,
    /// What is wrong.
    pub kind: FastaErrorKind,
}

/// What is wrong at that position.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FastaErrorKind {
    /// A byte that is not a residue under any policy.
    InvalidByte {
        /// The byte.
        byte: u8,
    },
    /// A `>` that is not the first byte of its line.
    HeaderInsideLine,
    /// A `*` with residues after it, where the policy refuses it.
    InternalStop,
    /// `-` or `.`, where the policy refuses it.
    Gap {
        /// The byte.
        byte: u8,
    },
    /// B, Z or J, where the policy refuses it.
    AmbiguousResidue {
        /// The byte as it stands in the file.
        byte: u8,
    },
    /// More than 50 residues, all of them ACGTUN.
    Nucleotides {
        /// Number of residues.
        len: u64,
    },
    /// A header without residues.
    EmptySequence,
    /// Text before the first header line.
    TextBeforeHeader,
    /// Another format, by its name.
    OtherFormat {
        /// The format.
        name: &'static str,
    },
    /// Not a table but another format, by its name.
    NotTable {
        /// The format.
        name: &'static str,
    },
    /// A table without the column asked for.
    NoColumn {
        /// The column.
        name: String,
        /// Those it has.
        found: String,
    },
    /// Two columns of the name asked for.
    RepeatedColumn {
        /// The column.
        name: String,
    },
    /// A row whose number of fields differs from that of the first row.
    FieldCount {
        /// Fields of the row.
        found: usize,
        /// Columns of the table.
        expected: usize,
    },
    /// A quoted field that is not closed, or has text after its closing quote.
    Quote,
    /// A sequence that tables write for a missing value, such as `NA`.
    MissingValue,
    /// Blank or comment lines only: neither a header nor other text.
    NoRecord,
    /// A header that is not UTF-8, where the policy refuses it.
    HeaderEncoding {
        /// The first byte at fault.
        byte: u8,
    },
    /// A control byte in a header, tab and Ctrl-A excepted.
    HeaderControl {
        /// The byte.
        byte: u8,
    },
    /// An allocation failed.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}

impl FastaErrorKind {
    /// Whether the fault belongs to one record, so that `skip` can leave that record out and go on.
    pub fn is_of_record(&self) -> bool {
        matches!(
            self,
            Self::InvalidByte { .. }
                | Self::HeaderInsideLine
                | Self::InternalStop
                | Self::Gap { .. }
                | Self::AmbiguousResidue { .. }
                | Self::Nucleotides { .. }
                | Self::EmptySequence
                | Self::MissingValue
                | Self::HeaderEncoding { .. }
                | Self::HeaderControl { .. }
        )
    }
}

/// An argument of the readers that a message advises. Whoever shows a message to somebody who types `--residues map`
/// can spell it that way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: &'static str,
    /// The value to give it.
    pub value: Option<&'static str>,
}

/// `residues=map`, or the name alone.
impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.value.map_or(Ok(()), |value| write!(f, "={value}"))
    }
}

const MAP: Argument = Argument { name: "residues", value: Some("map") };
const SEQUENCE_COLUMN: Argument = Argument { name: "seq_col", value: None };

impl FastaErrorKind {
    /// What the message ends with where it advises an argument: the argument, and the text behind it.
    fn advice(&self) -> Option<(Argument, &'static str)> {
        match self {
            Self::InternalStop => Some((MAP, " reads it as X")),
            Self::Gap { .. } => Some((MAP, " removes gaps")),
            Self::AmbiguousResidue { .. } => Some((MAP, " keeps it")),
            Self::Nucleotides { .. } | Self::EmptySequence => Some((MAP, "")),
            Self::HeaderEncoding { .. } => Some((MAP, " reads the header as Latin-1")),
            Self::OtherFormat { name: TABLE } | Self::NotTable { name: "FASTA" } => Some((SEQUENCE_COLUMN, "")),
            _ => None,
        }
    }

    /// The message up to the argument that it advises, or all of it.
    fn fault(&self, f: &mut dyn fmt::Write) -> fmt::Result {
        match self {
            Self::InvalidByte { byte } => invalid_byte(*byte, f),
            Self::HeaderInsideLine => f.write_str("'>' inside a sequence line; a header has a line of its own"),
            Self::InternalStop => f.write_str("stop '*' inside the sequence; "),
            Self::Gap { byte } => write!(f, "alignment gap '{}' in the sequence; ", char::from(*byte)),
            Self::AmbiguousResidue { byte } => {
                write!(f, "ambiguous residue '{}' in the sequence; ", char::from(*byte))
            }
            Self::Nucleotides { len } => {
                write!(f, "all {len} residues are among ACGTUN, which looks like nucleotides; translate them, or use ")
            }
            Self::EmptySequence => f.write_str("record without residues; remove it, or use "),
            Self::TextBeforeHeader => {
                f.write_str("not FASTA: text before the first header; a header starts with '>' in column 1")
            }
            Self::OtherFormat { name: TABLE } => {
                write!(f, "not FASTA: this looks like {TABLE}; name its column of sequences with ")
            }
            Self::OtherFormat { name } => {
                write!(f, "not FASTA: this looks like {name}; {}", remedy(name, "convert it to FASTA first"))
            }
            Self::NotTable { name: "FASTA" } => f.write_str("not a table: this looks like FASTA; leave out "),
            Self::NotTable { name } => {
                write!(f, "not a table: this looks like {name}; {}", remedy(name, "convert it to CSV or TSV first"))
            }
            Self::NoRecord => f.write_str("not FASTA: blank or comment lines only, no header ('>') anywhere"),
            Self::HeaderEncoding { byte } => write!(f, "byte 0x{byte:02x} in the header is not UTF-8; "),
            Self::HeaderControl { byte } => write!(f, "control byte 0x{byte:02x} in the header; remove it"),
            Self::OutOfMemory { bytes } => write!(f, "no memory for {bytes} more bytes of this record"),
            Self::NoColumn { .. }
            | Self::RepeatedColumn { .. }
            | Self::FieldCount { .. }
            | Self::Quote
            | Self::MissingValue => self.fault_of_table(f),
        }
    }

    fn fault_of_table(&self, f: &mut dyn fmt::Write) -> fmt::Result {
        match self {
            Self::NoColumn { name, found } if found.is_empty() => {
                write!(f, "no column '{name}': only blank lines; the first row of a table names its columns")
            }
            Self::NoColumn { name, found } => {
                write!(f, "no column '{name}'; the first row must name the columns, and it names {found}")
            }
            Self::RepeatedColumn { name } => write!(f, "two columns are named '{name}'; rename one"),
            Self::FieldCount { found, expected } => write!(
                f,
                "{found} fields in a table of {expected} columns; a field that holds a separator or a line end \
                 is quoted with \""
            ),
            Self::Quote => f.write_str(
                "quoted field is not closed, or has text after its closing quote; write a quote inside a field twice",
            ),
            _ => f.write_str(
                "the sequence is a table's word for a missing value; remove the row, or leave the field empty",
            ),
        }
    }

    /// The message in three parts: what comes before the argument that it advises, that argument, what comes after.
    pub fn parts(&self) -> (String, Option<Argument>, &'static str) {
        let mut before = String::new();
        // Nothing fails that writes to a string.
        let _ = self.fault(&mut before);
        match self.advice() {
            Some((argument, after)) => (before, Some(argument), after),
            None => (before, None, ""),
        }
    }
}

impl fmt::Display for FastaErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault(f)?;
        self.advice().map_or(Ok(()), |(argument, after)| write!(f, "{argument}{after}"))
    }
}

/// What to do with a file of that format.
fn remedy(name: &str, usual: &'static str) -> &'static str {
    match name {
        "UTF-16 text" => "save it as UTF-8, as with iconv -f UTF-16 -t UTF-8",
        "UTF-32 text" => "save it as UTF-8, as with iconv -f UTF-32 -t UTF-8",
        "a tar archive" => "unpack it first",
        TOKENS => "only training reads it, as its only input",
        "HTML" => "fetch the file again, this is a page about it or an error",
        _ => usual,
    }
}

fn invalid_byte(byte: u8, f: &mut dyn fmt::Write) -> fmt::Result {
    match byte {
        b'0'..=b'9' => {
            write!(f, "digit '{}' in the sequence; remove position numbers", char::from(byte))
        }
        0x21..=0x7e => write!(f, "character '{}' in the sequence is not a residue", char::from(byte)),
        0x80.. => write!(f, "byte 0x{byte:02x} in the sequence is not ASCII"),
        _ => write!(f, "control byte 0x{byte:02x} in the sequence"),
    }
}

impl FastaError {
    /// The record that is at fault, as a message ends with it: ` (record 'id')`, or nothing.
    pub fn of_record(&self) -> String {
        match self.record.as_deref() {
            None | Some("") => String::new(),
            Some(id) => format!(" (record '{id}')"),
        }
    }
}

/// `line:column: what (record 'id')`, so that a path and a colon before it make the usual form.
impl fmt::Display for FastaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}{}", self.line, self.column, self.kind, self.of_record())
    }
}

impl std::error::Error for FastaError {}

/// An id for messages: at most 80 characters, without any that control a terminal.
pub(super) fn shown_id(id: &[u8]) -> String {
    let controls =
        |c: char| matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let printable = |c: char| if c.is_control() || controls(c) { char::REPLACEMENT_CHARACTER } else { c };
    match std::str::from_utf8(id) {
        Ok(text) => text.chars().take(SHOWN_ID).map(printable).collect(),
        // Read as Latin-1, as the header of a record is.
        Err(_) => id.iter().take(SHOWN_ID).map(|&byte| printable(char::from(byte))).collect(),
    }
}
