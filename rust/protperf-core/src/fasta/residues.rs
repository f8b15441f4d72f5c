//! The residue table: what each of the 256 byte values means in a sequence line, one table per policy.

use crate::alphabet::{FIRST_AMBIGUOUS, token_of};

/// What to do with letters and signs outside of the plain residues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResiduePolicy {
    /// Mend what can be mended without guessing, flag it, and stop with an error at the rest.
    #[default]
    Map,
    /// Take the twenty, U, O and X; anything else is an error.
    Strict,
    /// Mend only case, spaces, tabs and a final `*`; leave out a record with anything else, and count it.
    Skip,
}

impl ResiduePolicy {
    /// All policies, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Map, Self::Strict, Self::Skip];

    /// Name as written in options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Strict => "strict",
            Self::Skip => "skip",
        }
    }

    /// The policy of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// Lower-case letter.
pub(super) const LOWER: u16 = 0x0100;
/// B, Z, J or X.
pub(super) const AMBIGUOUS: u16 = 0x0200;
/// A residue other than ACGTUN.
pub(super) const NOT_NUCLEOTIDE: u16 = 0x0400;
/// Not a plain residue: the low byte is one of the codes below instead of a token.
pub(super) const SPECIAL: u16 = 0x8000;

/// Low bytes of special entries.
/// A space or a tab: no part of the sequence.
pub(super) const BLANK: u8 = 0;
pub(super) const STOP: u8 = 1;
pub(super) const GAP: u8 = 2;
pub(super) const AMBIGUOUS_REFUSED: u8 = 3;
pub(super) const INVALID: u8 = 4;

/// For each byte its token and traits, or a special code.
#[derive(Debug)]
pub(super) struct Table([u16; 256]);

impl Table {
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "256 entries and an eight-bit index")]
    pub(super) fn get(&self, byte: u8) -> u16 {
        self.0[byte as usize]
    }

    pub(super) fn is_special(&self, byte: u8) -> bool {
        self.get(byte) & SPECIAL != 0
    }

    pub(super) const fn of(policy: ResiduePolicy) -> &'static Self {
        match policy {
            ResiduePolicy::Map => &MAP,
            // Both refuse the same bytes; one then stops, the other leaves the record out.
            ResiduePolicy::Strict | ResiduePolicy::Skip => &NARROW,
        }
    }
}

static MAP: Table = table(true);
static NARROW: Table = table(false);

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn table(takes_ambiguous: bool) -> Table {
    let mut entries = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        entries[byte] = entry(byte as u8, takes_ambiguous);
        byte += 1;
    }
    Table(entries)
}

const fn entry(byte: u8, takes_ambiguous: bool) -> u16 {
    let letter = byte.to_ascii_uppercase();
    let Some(token) = token_of(letter) else {
        return SPECIAL
            | match byte {
                b' ' | b'\t' => BLANK,
                b'*' => STOP,
                b'-' | b'.' => GAP,
                _ => INVALID,
            } as u16;
    };
    if token >= FIRST_AMBIGUOUS && letter != b'X' && !takes_ambiguous {
        return SPECIAL | AMBIGUOUS_REFUSED as u16;
    }
    let lower = if byte == letter { 0 } else { LOWER };
    let ambiguous = if token >= FIRST_AMBIGUOUS { AMBIGUOUS } else { 0 };
    let protein = if matches!(letter, b'A' | b'C' | b'G' | b'T' | b'U' | b'N') { 0 } else { NOT_NUCLEOTIDE };
    token as u16 | lower | ambiguous | protein
}
