//! What the scanner returns: records as packed arrays, and the counts of a whole input.

use super::error::FastaError;

/// Peculiarities of one record, one bit each.
pub mod flag {
    /// One or more final `*` were stripped.
    pub const TRAILING_STOP: u16 = 1;
    /// A `*` with residues behind it became X.
    pub const INTERNAL_STOP: u16 = 2;
    /// `-` or `.` were removed: a row of an alignment (A2M, A3M, aligned FASTA).
    pub const GAPS: u16 = 4;
    /// Lower-case letters were upper-cased: soft masking, or inserts of A2M.
    pub const LOWER_CASE: u16 = 8;
    /// Some residues are ambiguous (B, Z, J, X, or a stop that became X).
    pub const AMBIGUOUS: u16 = 16;
    /// The record has no residues.
    pub const EMPTY: u16 = 32;
    /// The header has no word that could be an id.
    pub const NO_ID: u16 = 64;
    /// Over 50 residues, all of them ACGTUN.
    pub const NUCLEOTIDES: u16 = 128;
    /// The header is not UTF-8 and was decoded as Latin-1.
    pub const LATIN1_HEADER: u16 = 256;

    /// Each flag's name as it stands in tables, in bit order.
    pub const NAMES: [(&str, u16); 9] = [
        ("trailing_stop", TRAILING_STOP),
        ("internal_stop", INTERNAL_STOP),
        ("gaps", GAPS),
        ("lower_case", LOWER_CASE),
        ("ambiguous", AMBIGUOUS),
        ("empty", EMPTY),
        ("no_id", NO_ID),
        ("nucleotides", NUCLEOTIDES),
        ("latin1_header", LATIN1_HEADER),
    ];
}

/// Complete records in the order of the input. Every vector but `tokens` and `rejected` has one entry per record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Residue tokens of all records, one after another ([`crate::alphabet`]).
    pub tokens: Vec<u8>,
    /// Where each record ends in `tokens`.
    pub token_ends: Vec<u64>,
    /// Header lines without `>` and line end, one after another, otherwise as in the input; in UTF-8.
    pub headers: String,
    /// Where each record ends in `headers`.
    pub header_ends: Vec<usize>,
    /// Place among all records, rejected ones included: from 0, or from the number given to
    /// [`Scanner::counted_from`](super::Scanner::counted_from).
    pub ordinals: Vec<u64>,
    /// Line of the header, from 1.
    pub lines: Vec<u64>,
    /// Bits of [`flag`].
    pub flags: Vec<u16>,
    /// Records that the policy `skip` left out.
    pub rejected: Vec<Rejection>,
}

/// A record that the policy `skip` left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Place among all records, as in [`Batch::ordinals`].
    pub ordinal: u64,
    /// The fault, with its position and the record's id.
    pub error: FastaError,
}

impl Batch {
    /// Number of complete records.
    pub fn len(&self) -> usize {
        self.flags.len()
    }

    /// Whether there is neither a record nor a rejection.
    pub fn is_empty(&self) -> bool {
        self.flags.is_empty() && self.rejected.is_empty()
    }

    /// Bytes that records and rejections hold, for callers that limit memory.
    pub fn size(&self) -> usize {
        self.num_tokens() + self.headers.len() + 48 * self.len() + 128 * self.rejected.len()
    }

    /// Tokens of record `index`; `None` past the end.
    pub fn tokens_of(&self, index: usize) -> Option<&[u8]> {
        let end = usize::try_from(*self.token_ends.get(index)?).ok()?;
        let start = match index.checked_sub(1) {
            None => 0,
            Some(before) => usize::try_from(*self.token_ends.get(before)?).ok()?,
        };
        self.tokens.get(start..end)
    }

    /// Header of record `index`, split into id and description; `None` past the end.
    pub fn name_of(&self, index: usize) -> Option<(&str, &str)> {
        let end = *self.header_ends.get(index)?;
        let start = match index.checked_sub(1) {
            None => 0,
            Some(before) => *self.header_ends.get(before)?,
        };
        self.headers.get(start..end).map(split_header)
    }

    pub(super) fn num_tokens(&self) -> usize {
        self.token_ends.last().map_or(0, |&end| end as usize)
    }
}

/// Id (the first word) and description (the rest, without the blanks around it) of a header line.
///
/// Words end at a space, a tab or a Ctrl-A. A Ctrl-A, which joins the headers of identical records in NCBI's files,
/// stays in the description.
pub fn split_header(header: &str) -> (&str, &str) {
    let blank = [' ', '\t'];
    let header = header.trim_matches(blank);
    let end = header.find([' ', '\t', '\x01']).unwrap_or(header.len());
    let (id, description) = header.split_at(end);
    (id, description.trim_start_matches(blank))
}

/// Counts of a whole input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records returned.
    pub records: u64,
    /// Records that the policy `skip` left out.
    pub rejected: u64,
    /// Residues returned.
    pub residues: u64,
    /// Bytes read, after decompression.
    pub bytes: u64,
    /// Whether a UTF-8 byte order mark was stripped.
    pub has_byte_order_mark: bool,
    /// Lines that started with `;` and were dropped.
    pub comment_lines: u64,
    /// Whether a line that starts with `#` was dropped before the first header, as A3M files have one.
    pub has_alignment_line: bool,
    /// Records of HH-suite that hold secondary structure or accessibility instead of residues, and were left out.
    pub annotation_records: u64,
    /// For each of [`flag::NAMES`], the number of records that carry it.
    pub flagged: [u64; flag::NAMES.len()],
}

impl Summary {
    pub(super) fn count(&mut self, flags: u16, residues: u64) {
        self.records += 1;
        self.residues += residues;
        for ((_, bit), count) in flag::NAMES.iter().zip(&mut self.flagged) {
            *count += u64::from(flags & bit != 0);
        }
    }
}
