//! A push scanner for FASTA and for tables of sequences: bytes in, tokens in packed arrays out.
//!
//! No file is opened here: the caller passes slices of any size to [`Scanner::push`] and calls [`Scanner::finish`] at
//! the end. The verdict (records, flags, or the position and kind of the first fault) is a function of the bytes
//! alone. It does not depend on how they were cut into slices, so the scanner keeps all that a decision needs beyond
//! one byte. An input is read exactly or refused; every change leaves a flag or a count in the summary.
//!
//! The scanner is built in layers, each of which calls only those before it: `record` turns headers and residues into
//! records, `lines` cuts FASTA into the lines that hold them, and `table` finds the same in rows of fields.

#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batch;
mod cursor;
mod error;
mod format;
mod lines;
mod record;
mod residues;
mod table;

pub use batch::{Batch, Rejection, Summary, flag, split_header};
pub use error::{Argument, FastaError, FastaErrorKind};
pub use record::NUCLEOTIDE_LENGTH;
pub use residues::ResiduePolicy;
pub use table::Columns;

use lines::Lines;
use record::{Form, Section};
use table::TableRows;

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
    lines: Lines,
    /// The state of a table; `None` for other forms.
    rows: Option<Box<TableRows>>,
    failure: Option<FastaError>,
}

impl Scanner {
    /// A scanner at the start of an input.
    pub fn new(policy: ResiduePolicy) -> Self {
        Self::of_form(policy, Form::Fasta)
    }

    /// A scanner for one sequence without header, such as a string in memory, under the same residue policy; a `>` or
    /// `;` anywhere is a fault. The result is exactly one record, or one rejection under `skip`.
    pub fn of_sequence(policy: ResiduePolicy) -> Self {
        Self::of_form(policy, Form::Sequence)
    }

    /// A scanner for a table, CSV or TSV, whose first row names the columns: one record per row. The separator is a tab
    /// where the first line has one, else a comma where it has one, else a semicolon.
    pub fn of_table(policy: ResiduePolicy, columns: Columns) -> Self {
        Self { rows: Some(Box::new(TableRows::new(columns))), ..Self::of_form(policy, Form::Table) }
    }

    fn of_form(policy: ResiduePolicy, form: Form) -> Self {
        Self { lines: Lines::new(policy, form), rows: None, failure: None }
    }

    /// Start the ordinals at `ordinal`, the number of records in the inputs before this one.
    pub fn counted_from(mut self, ordinal: u64) -> Self {
        self.lines.records.next_ordinal = ordinal;
        self
    }

    /// Scan the next bytes of the input.
    ///
    /// # Errors
    /// The first fault of the input, which every later call returns again. The batch keeps the complete records before
    /// it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FastaError> {
        self.check_failure()?;
        self.lines.records.summary.bytes += bytes.len() as u64;
        if self.is_finished() {
            return Ok(());
        }
        let outcome = match &mut self.rows {
            Some(rows) => rows.push(&mut self.lines, bytes),
            None => self.lines.push(bytes),
        };
        self.keep_failure(outcome)
    }

    /// End the input; what is pushed later is ignored.
    ///
    /// # Errors
    /// As [`Self::push`]; also the faults that only the end of the input shows, such as no header at all.
    pub fn finish(&mut self) -> Result<(), FastaError> {
        self.check_failure()?;
        if self.is_finished() {
            return Ok(());
        }
        let outcome = match &mut self.rows {
            Some(rows) => rows.finish(&mut self.lines),
            None => self.lines.finish(),
        };
        self.keep_failure(outcome)
    }

    /// The complete records since the last call. A record in progress stays.
    pub fn take(&mut self) -> Batch {
        self.lines.records.take()
    }

    /// The complete records so far, without taking them; the tokens of a record in progress follow theirs.
    pub fn peek(&self) -> &Batch {
        self.lines.records.batch()
    }

    /// Counts so far.
    pub fn summary(&self) -> &Summary {
        &self.lines.records.summary
    }

    fn is_finished(&self) -> bool {
        self.lines.records.section == Section::Finished
    }

    fn check_failure(&self) -> Result<(), FastaError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn keep_failure(&mut self, outcome: Result<(), FastaError>) -> Result<(), FastaError> {
        if let Err(error) = &outcome {
            self.failure = Some(error.clone());
        }
        outcome
    }
}
