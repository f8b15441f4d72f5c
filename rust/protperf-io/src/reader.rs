//! Several inputs as one sequence of batches.

use std::collections::VecDeque;
use std::sync::Arc;

use protperf_core::fasta::{self, Batch, Columns, ResiduePolicy, Scanner, flag};

use crate::ReadError;
use crate::source::{Input, Interrupt, Source};

/// How to read.
#[derive(Clone)]
pub struct ReadOptions {
    /// What to do with letters other than the plain residues.
    pub policy: ResiduePolicy,
    /// The columns to read where the inputs are tables; `None` where they are FASTA.
    pub columns: Option<Columns>,
    /// Ordinal of the first record.
    pub first_ordinal: u64,
    /// A batch is returned once its records hold this many bytes; a record is never divided.
    pub batch_bytes: usize,
    /// Map plain files into memory instead of reading them. If another process shortens a mapped file, this process
    /// dies of SIGBUS, so the default is off.
    pub memory_map: bool,
    /// Called when a signal interrupts a read that waits; returns whether to stop.
    pub interrupt: Interrupt,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            policy: ResiduePolicy::default(),
            columns: None,
            first_ordinal: 0,
            batch_bytes: 4 << 20,
            memory_map: false,
            interrupt: Arc::new(|| false),
        }
    }
}

/// Records of one input. Ordinals count through all inputs.
#[derive(Debug)]
pub struct FileBatch {
    /// The path as given, `<stdin>` for standard input.
    pub path: Arc<str>,
    /// The records.
    pub batch: Batch,
}

/// The result of [`Reader::step`].
#[derive(Debug)]
pub enum Step {
    /// Nothing yet: call again.
    More,
    /// A batch.
    Batch(Box<FileBatch>),
    /// No more input.
    Done,
}

/// Counts and remarks over all inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Records returned.
    pub records: u64,
    /// Records that the policy `skip` left out.
    pub rejected: u64,
    /// Residues returned.
    pub residues: u64,
    /// Bytes after decompression.
    pub bytes: u64,
    /// For each of [`flag::NAMES`] the number of records that carry it.
    pub flagged: [u64; flag::NAMES.len()],
    /// What was dropped as being no part of a sequence, each with its path: a byte order mark, comment lines, the first
    /// line and the annotation of an A3M file.
    pub notes: Vec<String>,
    /// What may be a mistake, each with its path: nucleotides, empty files.
    pub warnings: Vec<String>,
}

impl Summary {
    fn add(&mut self, path: &str, file: &fasta::Summary) {
        self.records += file.records;
        self.rejected += file.rejected;
        self.residues += file.residues;
        self.bytes += file.bytes;
        for (total, count) in self.flagged.iter_mut().zip(file.flagged) {
            *total += count;
        }
        if file.has_byte_order_mark {
            self.notes.push(format!("{path}: byte order mark dropped"));
        }
        if file.comment_lines > 0 {
            self.notes.push(format!("{path}: {} lines that start with ';' dropped as comments", file.comment_lines));
        }
        if file.has_alignment_line {
            self.notes.push(format!("{path}: line that starts with '#' dropped before the first header"));
        }
        if file.annotation_records > 0 {
            self.notes.push(format!(
                "{path}: {} records left out that annotate an alignment (ss_dssp, ss_pred and the like)",
                file.annotation_records
            ));
        }
        if file.bytes == 0 {
            self.warnings.push(format!("{path}: the file is empty"));
        }
        let nucleotides = flag::NUCLEOTIDES.trailing_zeros() as usize;
        let nucleotides = file.flagged.get(nucleotides).copied().unwrap_or_default();
        if nucleotides > 0 {
            self.warnings.push(format!(
                "{path}: {nucleotides} of {} records look like nucleotides (over 50 letters, all of ACGTUN); translate them first",
                file.records
            ));
        }
    }
}

/// Reads inputs one after another; see [`Self::next_batch`].
pub struct Reader {
    inputs: VecDeque<Input>,
    options: ReadOptions,
    current: Option<(Source, Scanner)>,
    /// Ordinal of the current input's first record.
    base: u64,
    summary: Summary,
    /// An error that is due once the records before it are returned.
    failure: Option<ReadError>,
}

impl Reader {
    /// Prepare to read the inputs in the given order.
    ///
    /// # Errors
    /// Before anything is read: a path that is missing or a directory, or standard input named twice.
    pub fn new(inputs: impl IntoIterator<Item = Input>, options: ReadOptions) -> Result<Self, ReadError> {
        let inputs: VecDeque<Input> = inputs.into_iter().collect();
        inputs.iter().try_for_each(Input::check)?;
        if inputs.iter().filter(|&input| *input == Input::Stdin).count() > 1 {
            return Err(ReadError::RepeatedStdin);
        }
        Ok(Self {
            inputs,
            base: options.first_ordinal,
            options,
            current: None,
            summary: Summary::default(),
            failure: None,
        })
    }

    /// The next records; `None` after the last.
    ///
    /// # Errors
    /// The first fault, after all records before it were returned. Reading ends there.
    pub fn next_batch(&mut self) -> Result<Option<FileBatch>, ReadError> {
        loop {
            match self.step()? {
                Step::More => {}
                Step::Batch(batch) => return Ok(Some(*batch)),
                Step::Done => return Ok(None),
            }
        }
    }

    /// Read one more piece of input (128 KiB after decompression), so that the caller can check for signals in between.
    ///
    /// # Errors
    /// As [`Self::next_batch`].
    pub fn step(&mut self) -> Result<Step, ReadError> {
        if let Some(error) = self.failure.take() {
            self.stop();
            return Err(error);
        }
        let Some((mut source, mut scanner)) = self.current.take() else {
            let Some(input) = self.inputs.pop_front() else { return Ok(Step::Done) };
            let interrupt = self.options.interrupt.clone();
            let source = Source::open(&input, self.options.memory_map, interrupt).inspect_err(|_| self.stop())?;
            self.current = Some((source, self.scanner()));
            return Ok(Step::More);
        };
        match scan_piece(&mut source, &mut scanner) {
            Ok(true) if scanner.peek().size() < self.options.batch_bytes => {
                self.current = Some((source, scanner));
                Ok(Step::More)
            }
            Ok(true) => {
                let batch = give(&source, &mut scanner);
                self.current = Some((source, scanner));
                Ok(batch)
            }
            Ok(false) => {
                let batch = give(&source, &mut scanner);
                self.summary.add(source.label(), scanner.summary());
                self.base += scanner.summary().records + scanner.summary().rejected;
                Ok(batch)
            }
            Err(ReadError::Interrupted) => {
                self.stop();
                Err(ReadError::Interrupted)
            }
            Err(error) => {
                self.failure = Some(error);
                Ok(give(&source, &mut scanner))
            }
        }
    }

    /// Stop reading: the next step finds no more input.
    pub fn stop(&mut self) {
        self.inputs.clear();
        self.current = None;
        self.failure = None;
    }

    /// Counts of the inputs that were read to their end.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    fn scanner(&self) -> Scanner {
        let scanner = match &self.options.columns {
            None => Scanner::new(self.options.policy),
            Some(columns) => Scanner::of_table(self.options.policy, columns.clone()),
        };
        scanner.counted_from(self.base)
    }
}

fn give(source: &Source, scanner: &mut Scanner) -> Step {
    let batch = scanner.take();
    match batch.is_empty() {
        true => Step::More,
        false => Step::Batch(Box::new(FileBatch { path: source.label().clone(), batch })),
    }
}

/// Scan one piece; returns whether there may be more.
fn scan_piece(source: &mut Source, scanner: &mut Scanner) -> Result<bool, ReadError> {
    let path = source.label().clone();
    let refused = |error| ReadError::Fasta { path: path.to_string(), error };
    let piece = source.next_piece()?;
    if piece.is_empty() {
        scanner.finish().map_err(refused)?;
        return Ok(false);
    }
    scanner.push(piece).map_err(refused)?;
    Ok(true)
}
