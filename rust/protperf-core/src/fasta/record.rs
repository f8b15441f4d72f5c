//! How the scanner makes records: it checks headers, turns residues into tokens and refuses faults.
//!
//! [`Records`] is given parts of headers and of sequence lines in the order of the input; what a line is was decided
//! one layer above. Invariant: the batch holds the tokens of the record in progress after those of the complete
//! records, and nothing else of that record, so that leaving it out means cutting these tokens off.

use super::batch::{Batch, Rejection, Summary, flag, split_header};
use super::cursor::{Cursor, Place};
use super::error::{FastaError, FastaErrorKind, shown_id};
use super::format;
use super::residues::{self, ResiduePolicy, Table};
use crate::alphabet::UNKNOWN;
use crate::memory::try_reserved;

/// Records with more residues than this, all of them ACGTUN, look like nucleotides.
pub const NUCLEOTIDE_LENGTH: u64 = 50;

/// What the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Fasta,
    /// One sequence without header, where `>` and `;` have no meaning at the start of a line.
    Sequence,
    /// Rows of fields; each row has such a sequence.
    Table,
}

/// Which part of the input the current line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
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
    first_stop: Place,
}

impl Current {
    /// The header after it was judged, which made it UTF-8.
    fn header_text(&self) -> &str {
        std::str::from_utf8(&self.header).unwrap_or_default()
    }
}

/// The records of an input: the one being read and the complete ones.
#[derive(Debug)]
pub(super) struct Records {
    policy: ResiduePolicy,
    table: &'static Table,
    pub(super) form: Form,
    pub(super) section: Section,
    pub(super) cursor: Cursor,
    current: Current,
    /// Complete records, followed by the tokens of the current one.
    batch: Batch,
    pub(super) next_ordinal: u64,
    pub(super) summary: Summary,
}

impl Records {
    pub(super) fn new(policy: ResiduePolicy, form: Form) -> Self {
        Self {
            policy,
            table: Table::of(policy),
            form,
            // A sequence without header is a record from its first byte on.
            section: if form == Form::Sequence { Section::Record } else { Section::Start },
            cursor: Cursor::at((1, 1)),
            current: Current { line: 1, ..Current::default() },
            batch: Batch::default(),
            next_ordinal: 0,
            summary: Summary::default(),
        }
    }

    /// The complete records since the last call.
    pub(super) fn take(&mut self) -> Batch {
        let complete = self.batch.num_tokens();
        let unfinished = Batch { tokens: self.batch.tokens.split_off(complete), ..Batch::default() };
        std::mem::replace(&mut self.batch, unfinished)
    }

    /// The complete records so far; the tokens of a record in progress follow theirs.
    pub(super) fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Make room for all that these bytes can add: at most one residue per byte, and an X for each pending stop.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), FastaError> {
        let needed = bytes.saturating_add(usize::try_from(self.current.pending_stops).unwrap_or(usize::MAX));
        let tokens = self.batch.tokens.try_reserve(needed);
        tokens.map_err(|_| self.out_of_memory(needed))
    }

    /// A header begins on the current line.
    pub(super) fn begin_record(&mut self) -> Result<(), FastaError> {
        self.close_record()?;
        self.current = Current { line: self.cursor.line(), ..Current::default() };
        Ok(())
    }

    /// The record of a table's row begins. Its header is the id, whose first byte is at `place`; where the table has no
    /// ids, the ordinal.
    pub(super) fn begin_row(&mut self, line: u64, id: Option<Vec<u8>>, place: Place) -> Result<(), FastaError> {
        let header = id.unwrap_or_else(|| self.next_ordinal.to_string().into_bytes());
        self.section = Section::Record;
        self.current = Current { header, line, ..Current::default() };
        self.judge_header(place)
    }

    pub(super) fn extend_header(&mut self, part: &[u8]) -> Result<(), FastaError> {
        if self.current.header.try_reserve(part.len()).is_err() {
            return Err(self.out_of_memory(part.len()));
        }
        self.current.header.extend_from_slice(part);
        Ok(())
    }

    pub(super) fn finish_header(&mut self) -> Result<(), FastaError> {
        self.section = Section::Record;
        let header = &self.current.header;
        if format::is_pir_header(header) {
            let kind = FastaErrorKind::OtherFormat { name: "NBRF/PIR" };
            return Err(self.fault_at((self.current.line, 1), kind));
        }
        // Column 1 holds the '>'.
        self.judge_header((self.current.line, 2))?;
        if self.section == Section::Record && self.is_annotation(split_header(self.current.header_text()).0) {
            self.section = Section::LeftOut;
            self.summary.annotation_records += 1;
        }
        Ok(())
    }

    fn is_annotation(&self, id: &str) -> bool {
        let summary = &self.summary;
        let is_first = summary.records == 0 && summary.rejected == 0;
        let is_alignment = summary.has_alignment_line || summary.annotation_records > 0;
        format::is_annotation(id) || (is_first && is_alignment && format::may_be_annotation(id))
    }

    /// Refuse a header that is not text, or decode it where the policy allows that; `place` is the place of its first
    /// byte. A header that was not refused is UTF-8 from here on.
    fn judge_header(&mut self, place: Place) -> Result<(), FastaError> {
        let header = &self.current.header;
        let control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t' | 1);
        match std::str::from_utf8(header).map_err(|error| error.valid_up_to()) {
            Err(at) if self.policy == ResiduePolicy::Strict => {
                let byte = header.get(at).copied().unwrap_or_default();
                self.refuse_header(place, at, FastaErrorKind::HeaderEncoding { byte })
            }
            encoding => {
                if let Some(at) = header.iter().position(control) {
                    let byte = header.get(at).copied().unwrap_or_default();
                    return self.refuse_header(place, at, FastaErrorKind::HeaderControl { byte });
                }
                if encoding.is_err() { self.decode_latin1() } else { Ok(()) }
            }
        }
    }

    fn refuse_header(&mut self, (line, column): Place, at: usize, kind: FastaErrorKind) -> Result<(), FastaError> {
        self.refuse((line, column + at as u64), kind)
    }

    /// Latin-1 is the first 256 code points of Unicode, so every header has a reading, and the flag marks the guess.
    fn decode_latin1(&mut self) -> Result<(), FastaError> {
        let latin1 = &self.current.header;
        let bytes = latin1.len() + latin1.iter().filter(|byte| !byte.is_ascii()).count();
        let Ok(mut text) = try_reserved(bytes) else {
            return Err(self.out_of_memory(bytes));
        };
        for &byte in latin1 {
            text.extend_from_slice(char::from(byte).encode_utf8(&mut [0; 2]).as_bytes());
        }
        self.current.header = text;
        self.current.flags |= flag::LATIN1_HEADER;
        Ok(())
    }

    /// Take a part of a sequence line: in one pass where it holds plain residues only, else byte by byte.
    pub(super) fn residues(&mut self, part: &[u8]) -> Result<(), FastaError> {
        if self.current.pending_stops == 0 && self.plain_residues(part) {
            return Ok(());
        }
        let mut done = 0;
        while let Some((&byte, _)) = part.get(done..).and_then(<[u8]>::split_first) {
            if self.table.is_special(byte) {
                self.special(byte, done)?;
                if self.section == Section::LeftOut {
                    return Ok(());
                }
                done += 1;
                continue;
            }
            self.stops_are_internal()?;
            if self.section == Section::LeftOut {
                return Ok(());
            }
            let rest = part.get(done..).unwrap_or_default();
            let run = rest.iter().position(|&byte| self.table.is_special(byte)).unwrap_or(rest.len());
            self.plain_residues(rest.get(..run).unwrap_or_default());
            done += run;
        }
        Ok(())
    }

    /// Append the tokens of `part` and return true; where a byte is not a plain residue, append nothing and return
    /// false.
    fn plain_residues(&mut self, part: &[u8]) -> bool {
        let before = self.batch.tokens.len();
        let mut traits = 0;
        self.batch.tokens.extend(part.iter().map(|&byte| {
            let entry = self.table.get(byte);
            traits |= entry;
            entry as u8
        }));
        if traits & residues::SPECIAL != 0 {
            self.batch.tokens.truncate(before);
            return false;
        }
        self.current.traits |= traits;
        true
    }

    fn special(&mut self, byte: u8, offset: usize) -> Result<(), FastaError> {
        let kind = match self.table.get(byte) as u8 {
            residues::BLANK => return Ok(()),
            residues::STOP => {
                if self.current.pending_stops == 0 {
                    self.current.first_stop = self.cursor.place(offset);
                }
                self.current.pending_stops += 1;
                return Ok(());
            }
            residues::GAP if self.policy == ResiduePolicy::Map => {
                self.current.flags |= flag::GAPS;
                return Ok(());
            }
            residues::GAP => FastaErrorKind::Gap { byte },
            // It is still a residue, so a stop before it is the earlier fault.
            residues::AMBIGUOUS_REFUSED if self.current.pending_stops > 0 => return self.stops_are_internal(),
            residues::AMBIGUOUS_REFUSED => FastaErrorKind::AmbiguousResidue { byte },
            _ if byte == b'>' => FastaErrorKind::HeaderInsideLine,
            _ => FastaErrorKind::InvalidByte { byte },
        };
        self.refuse(self.cursor.place(offset), kind)
    }

    /// A residue follows, so the pending stops were internal.
    fn stops_are_internal(&mut self) -> Result<(), FastaError> {
        if self.current.pending_stops == 0 {
            return Ok(());
        }
        if self.policy != ResiduePolicy::Map {
            return self.refuse(self.current.first_stop, FastaErrorKind::InternalStop);
        }
        let stops = std::mem::take(&mut self.current.pending_stops) as usize;
        let len = self.batch.tokens.len() + stops;
        self.batch.tokens.resize(len, UNKNOWN);
        self.current.flags |= flag::INTERNAL_STOP;
        self.current.traits |= residues::AMBIGUOUS | residues::NOT_NUCLEOTIDE;
        Ok(())
    }

    /// Return the fault as an error, or leave the record out under `skip`.
    pub(super) fn refuse(&mut self, place: Place, kind: FastaErrorKind) -> Result<(), FastaError> {
        let fault = self.fault_at(place, kind);
        if self.policy != ResiduePolicy::Skip || !fault.kind.is_of_record() {
            return Err(fault);
        }
        self.batch.tokens.truncate(self.batch.num_tokens());
        if self.batch.rejected.try_reserve(1).is_err() {
            return Err(self.out_of_memory(size_of::<Rejection>()));
        }
        self.batch.rejected.push(Rejection { ordinal: self.next_ordinal, error: fault });
        self.next_ordinal += 1;
        self.summary.rejected += 1;
        self.section = Section::LeftOut;
        Ok(())
    }

    /// The next record begins, or the input has ended.
    pub(super) fn close_record(&mut self) -> Result<(), FastaError> {
        if self.section != Section::Record {
            return Ok(());
        }
        let len = (self.batch.tokens.len() - self.batch.num_tokens()) as u64;
        let flags = self.final_flags(len);
        let kind = match flags {
            _ if self.policy == ResiduePolicy::Map => None,
            _ if flags & flag::EMPTY != 0 => Some(FastaErrorKind::EmptySequence),
            _ if flags & flag::NUCLEOTIDES != 0 => Some(FastaErrorKind::Nucleotides { len }),
            _ => None,
        };
        match kind {
            None => self.append_record(flags, len),
            Some(kind) => self.refuse((self.current.line, 1), kind),
        }
    }

    fn final_flags(&self, len: u64) -> u16 {
        let current = &self.current;
        let bit = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let is_nucleotides = len > NUCLEOTIDE_LENGTH && current.traits & residues::NOT_NUCLEOTIDE == 0;
        current.flags
            | bit(current.pending_stops > 0, flag::TRAILING_STOP)
            | bit(current.traits & residues::LOWER != 0, flag::LOWER_CASE)
            | bit(current.traits & residues::AMBIGUOUS != 0, flag::AMBIGUOUS)
            | bit(len == 0, flag::EMPTY)
            | bit(split_header(current.header_text()).0.is_empty() && self.form != Form::Sequence, flag::NO_ID)
            | bit(is_nucleotides, flag::NUCLEOTIDES)
    }

    fn append_record(&mut self, flags: u16, len: u64) -> Result<(), FastaError> {
        let batch = &mut self.batch;
        let header = self.current.header_text();
        let reserved = batch.headers.try_reserve(header.len()).is_ok()
            && batch.header_ends.try_reserve(1).is_ok()
            && batch.token_ends.try_reserve(1).is_ok()
            && batch.ordinals.try_reserve(1).is_ok()
            && batch.lines.try_reserve(1).is_ok()
            && batch.flags.try_reserve(1).is_ok();
        if !reserved {
            let bytes = self.current.header.len() + size_of::<[u64; 5]>();
            return Err(self.out_of_memory(bytes));
        }
        batch.headers.push_str(header);
        batch.header_ends.push(batch.headers.len());
        batch.token_ends.push(batch.tokens.len() as u64);
        batch.ordinals.push(self.next_ordinal);
        batch.lines.push(self.current.line);
        batch.flags.push(flags);
        self.next_ordinal += 1;
        self.summary.count(flags, len);
        Ok(())
    }

    pub(super) fn fault_at(&self, (line, column): Place, kind: FastaErrorKind) -> FastaError {
        let in_record = kind.is_of_record() && self.form != Form::Sequence;
        let record = in_record.then(|| {
            let header = self.current.header.trim_ascii_start();
            let end = header.iter().position(|byte| matches!(byte, b' ' | b'\t' | 1)).unwrap_or(header.len());
            shown_id(header.get(..end).unwrap_or_default())
        });
        FastaError { line, column, record, kind }
    }

    pub(super) fn out_of_memory(&self, bytes: usize) -> FastaError {
        self.fault_at(self.cursor.place(0), FastaErrorKind::OutOfMemory { bytes })
    }
}
