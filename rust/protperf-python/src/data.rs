//! Sequence files for Python: the reader of `protperf-io` as an iterator of batches, and single sequences in memory.
//!
//! Numbers cross as bytes objects that `protperf.io` views as NumPy arrays, so this file needs no NumPy. The GIL is
//! released while bytes are read and scanned, in slices of at most [`SLICE`]; signals are handled between them.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protperf_core::Error;
use protperf_core::alphabet::VOCABULARY;
use protperf_core::fasta::{Columns, FastaError, FastaErrorKind, Rejection, ResiduePolicy, Scanner, flag};
use protperf_core::try_filled;
use protperf_io::{FileBatch, Input, Interrupt, ReadError, ReadOptions, Reader, Source, Step, checksums};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::arrays::{buffer, contiguous};
use crate::call::{SLICE, guarded};
use crate::errors::{panicked, raise, raise_with, to_python};

/// Add the classes and functions of this file to the module.
///
/// # Errors
/// Python's, where a name cannot be added.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<FastaReader>()?;
    module.add_class::<FastaBatch>()?;
    module.add_class::<FileBytes>()?;
    module.add_function(wrap_pyfunction!(scan_sequence, module)?)?;
    module.add_function(wrap_pyfunction!(sequence_checksums, module)?)?;
    module.add_function(wrap_pyfunction!(fasta_flags, module)?)?;
    module.add_function(wrap_pyfunction!(vocabulary, module)?)
}

/// Iterates over the records of FASTA inputs in batches of bounded size.
#[pyclass(module = "protperf._native")]
struct FastaReader {
    // Used through `&mut self` only; the lock makes the class `Sync`.
    reader: Mutex<Reader>,
    raised: Raised,
}

/// The exception that a signal handler raised while a read waited.
type Raised = Arc<Mutex<Option<PyErr>>>;

fn interrupt_into(raised: &Raised) -> Interrupt {
    let kept = raised.clone();
    Arc::new(move || {
        let outcome = Python::attach(|py| py.check_signals());
        let stops = outcome.is_err();
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = outcome.err();
        stops
    })
}

fn interrupted(raised: &Raised) -> PyErr {
    let error = raised.lock().unwrap_or_else(PoisonError::into_inner).take();
    error.unwrap_or_else(|| PyKeyboardInterrupt::new_err(()))
}

#[pymethods]
impl FastaReader {
    #[new]
    #[pyo3(signature = (paths, *, columns = None, residues = "map", first_n = 0, batch_bytes = 4 << 20, memory_map = false))]
    fn new(
        paths: Vec<PathBuf>,
        columns: Option<(String, Option<String>)>,
        residues: &str,
        first_n: u64,
        batch_bytes: usize,
        memory_map: bool,
        py: Python<'_>,
    ) -> PyResult<Self> {
        let raised = Raised::default();
        let interrupt = interrupt_into(&raised);
        let columns = columns.map(|(sequence, id)| Columns { sequence, id });
        let options = ReadOptions {
            policy: policy(py, residues)?,
            columns,
            first_ordinal: first_n,
            batch_bytes,
            memory_map,
            interrupt,
        };
        guarded(py, || {
            let inputs = paths.into_iter().map(|path| Input::from(OsString::from(path)));
            let reader = Reader::new(inputs, options).map_err(|error| read_error(py, error))?;
            Ok(Self { reader: Mutex::new(reader), raised })
        })
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<FastaBatch>> {
        let Self { reader, raised } = self;
        let reader = reader.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            let step = py.detach(|| catch_unwind(AssertUnwindSafe(|| step_for(reader, SLICE))));
            match step {
                Ok(Ok(Step::More)) => py.check_signals()?,
                Ok(Ok(Step::Batch(batch))) => return guarded(py, || FastaBatch::new(py, *batch).map(Some)),
                Ok(Ok(Step::Done)) => return Ok(None),
                Ok(Err(ReadError::Interrupted)) => return Err(interrupted(raised)),
                Ok(Err(error)) => return Err(read_error(py, error)),
                Err(payload) => {
                    reader.stop();
                    return Err(panicked(py, payload.as_ref()));
                }
            }
        }
    }

    /// Counts over all inputs that were read to their end.
    fn summary<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let summary = self.reader.get_mut().unwrap_or_else(PoisonError::into_inner).summary();
        let dict = PyDict::new(py);
        dict.set_item("records", summary.records)?;
        dict.set_item("rejected", summary.rejected)?;
        dict.set_item("residues", summary.residues)?;
        dict.set_item("bytes", summary.bytes)?;
        let flagged = PyDict::new(py);
        for ((name, _), count) in flag::NAMES.iter().zip(summary.flagged) {
            flagged.set_item(name, count)?;
        }
        dict.set_item("flagged", flagged)?;
        dict.set_item("notes", PyTuple::new(py, &summary.notes)?)?;
        dict.set_item("warnings", PyTuple::new(py, &summary.warnings)?)?;
        Ok(dict)
    }
}

fn step_for(reader: &mut Reader, limit: Duration) -> Result<Step, ReadError> {
    let start = Instant::now();
    loop {
        match reader.step()? {
            Step::More if start.elapsed() < limit => {}
            step => return Ok(step),
        }
    }
}

/// Iterates over the bytes of one input after decompression, for readers of other text than sequences.
#[pyclass(module = "protperf._native")]
struct FileBytes {
    // As in `FastaReader`. `None` after the end or an error.
    source: Mutex<Option<Source>>,
    raised: Raised,
}

#[pymethods]
impl FileBytes {
    #[new]
    fn new(path: PathBuf, py: Python<'_>) -> PyResult<Self> {
        let raised = Raised::default();
        let interrupt = interrupt_into(&raised);
        let opened = py.detach(|| Source::open(&Input::from(OsString::from(path)), false, interrupt));
        let source = opened.map_err(|error| match error {
            ReadError::Interrupted => interrupted(&raised),
            other => read_error(py, other),
        })?;
        Ok(Self { source: Mutex::new(Some(source)), raised })
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyBytes>>> {
        let Self { source, raised } = self;
        let slot = source.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(mut source) = slot.take() else { return Ok(None) };
        py.check_signals()?;
        guarded(py, || match py.detach(|| source.next_piece().map(<[u8]>::to_vec)) {
            Ok(piece) if piece.is_empty() => Ok(None),
            Ok(piece) => {
                *slot = Some(source);
                Ok(Some(PyBytes::new(py, &piece).unbind()))
            }
            Err(ReadError::Interrupted) => Err(interrupted(raised)),
            Err(error) => Err(read_error(py, error)),
        })
    }
}

/// Records of one input as packed arrays; `protperf.io.Batch` says what they hold.
#[pyclass(module = "protperf._native", frozen, get_all)]
struct FastaBatch {
    path: Py<PyString>,
    ids: Py<PyList>,
    descriptions: Py<PyList>,
    tokens: Py<PyBytes>,
    offsets: Py<PyBytes>,
    ordinals: Py<PyBytes>,
    lines: Py<PyBytes>,
    flags: Py<PyBytes>,
    rejected: Py<PyList>,
}

impl FastaBatch {
    fn new(py: Python<'_>, FileBatch { path, batch }: FileBatch) -> PyResult<Self> {
        let ids = PyList::empty(py);
        let descriptions = PyList::empty(py);
        for (id, description) in (0..batch.len()).filter_map(|index| batch.name_of(index)) {
            ids.append(id)?;
            descriptions.append(description)?;
        }
        let rejected = PyList::empty(py);
        for Rejection { ordinal, error } in &batch.rejected {
            let reason = advising(py, "", &error.kind, "")?;
            rejected.append((ordinal, error.record.as_deref().unwrap_or(""), error.line, error.column, reason))?;
        }
        let flags = batch.flags.iter().map(|flags| flags.to_ne_bytes());
        Ok(Self {
            path: PyString::new(py, &path).unbind(),
            ids: ids.unbind(),
            descriptions: descriptions.unbind(),
            tokens: token_bytes(py, &batch.tokens)?,
            offsets: int64_bytes(py, 1 + batch.len(), std::iter::once(&0).chain(&batch.token_ends))?,
            ordinals: int64_bytes(py, batch.len(), &batch.ordinals)?,
            lines: int64_bytes(py, batch.len(), &batch.lines)?,
            flags: bytes(py, batch.len(), flags)?,
            rejected: rejected.unbind(),
        })
    }
}

fn token_bytes(py: Python<'_>, tokens: &[u8]) -> PyResult<Py<PyBytes>> {
    bytes(py, tokens.len(), tokens.iter().map(|&token| [token]))
}

/// Counts of bytes, records and lines are below 2^63, so their bits are those of the signed numbers.
fn int64_bytes<'a>(py: Python<'_>, len: usize, values: impl IntoIterator<Item = &'a u64>) -> PyResult<Py<PyBytes>> {
    bytes(py, len, values.into_iter().map(|value| value.to_ne_bytes()))
}

/// A bytes object of `len` values; an allocation that fails is an exception.
fn bytes<const N: usize>(py: Python<'_>, len: usize, values: impl Iterator<Item = [u8; N]>) -> PyResult<Py<PyBytes>> {
    let made = PyBytes::new_with(py, len * N, |to| {
        to.chunks_exact_mut(N).zip(values).for_each(|(to, value)| to.copy_from_slice(&value));
        Ok(())
    });
    made.map(Bound::unbind).map_err(|_| to_python(py, &Error::OutOfMemory { bytes: len * N }))
}

/// Tokens and flags of one sequence without header, under the same policies as files; errors name it `name`.
#[pyfunction]
#[pyo3(signature = (sequence, *, residues = "map", name = "<sequence>"))]
fn scan_sequence(py: Python<'_>, sequence: &[u8], residues: &str, name: &str) -> PyResult<(Py<PyBytes>, u16)> {
    guarded(py, || {
        let mut scanner = Scanner::of_sequence(policy(py, residues)?);
        let refused = |error| read_error(py, ReadError::Fasta { path: name.into(), error });
        for piece in sequence.chunks(PIECE) {
            py.check_signals()?;
            scanner.push(piece).map_err(refused)?;
        }
        scanner.finish().map_err(refused)?;
        let batch = scanner.take();
        match (batch.flags.first(), batch.rejected.into_iter().next()) {
            (_, Some(rejection)) => Err(refused(rejection.error)),
            (flags, None) => Ok((token_bytes(py, &batch.tokens)?, flags.copied().unwrap_or_default())),
        }
    })
}

/// CRC-32 of each sequence of a packed array, as uint32 in a bytes object.
#[pyfunction]
fn sequence_checksums(
    py: Python<'_>,
    tokens: &Bound<'_, PyAny>,
    offsets: &Bound<'_, PyAny>,
    seed: u32,
) -> PyResult<Py<PyBytes>> {
    let (tokens, offsets) = (buffer::<u8>("tokens", tokens)?, buffer::<i64>("offsets", offsets)?);
    let (tokens, offsets) = (contiguous(py, "tokens", &tokens)?, contiguous(py, "offsets", &offsets)?);
    let len = offsets.len().saturating_sub(1);
    let mut found = try_filled(len, 0).map_err(|error| to_python(py, &error))?;
    py.detach(|| checksums(tokens, offsets, seed, &mut found)).map_err(|index| {
        raise(py, "ShapeError", format!("offsets[{index}] and the next are not in order in tokens"))
    })?;
    bytes(py, len, found.iter().map(|sum| sum.to_ne_bytes()))
}

/// Bytes of a sequence in memory that are scanned between two checks for signals: about a millisecond.
const PIECE: usize = 1 << 20;

/// Name and bit of each flag, in bit order.
#[pyfunction]
fn fasta_flags(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let flags = PyDict::new(py);
    for (name, bit) in flag::NAMES {
        flags.set_item(name, bit)?;
    }
    Ok(flags)
}

/// How each token is written, by id.
#[pyfunction]
fn vocabulary(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
    PyTuple::new(py, VOCABULARY)
}

fn policy(py: Python<'_>, name: &str) -> PyResult<ResiduePolicy> {
    ResiduePolicy::from_name(name).ok_or_else(|| {
        let known = ResiduePolicy::ALL.map(ResiduePolicy::name).join(", ");
        raise(py, "ConfigError", format!("residues is '{name}'; choose from {known}"))
    })
}

/// The exception for a fault: a `FileError` of the system's kind, or a `FastaError` with its position.
fn read_error(py: Python<'_>, error: ReadError) -> PyErr {
    let message = error.to_string();
    match &error {
        ReadError::Io { path, source } => match source.raw_os_error() {
            Some(number) => {
                // Python adds the number and the path itself.
                let reason = source.to_string();
                let reason = reason.split(" (os error").next().unwrap_or_default();
                raise_with(py, file_error_class(source.kind()), (number, reason, path))
            }
            None => raise(py, "FileError", message),
        },
        ReadError::Changed { .. } => raise(py, "FileError", message),
        ReadError::RepeatedStdin => raise(py, "ConfigError", message),
        ReadError::Fasta { error: FastaError { kind: FastaErrorKind::OutOfMemory { .. }, .. }, .. } => {
            raise(py, "OutOfMemory", message)
        }
        ReadError::Fasta { path, error } => {
            let place = format!("{path}:{}:{}: ", error.line, error.column);
            match advising(py, &place, &error.kind, &error.of_record()) {
                Ok(message) => raise_with(py, "FastaError", (message, path, error.line, error.column)),
                Err(error) => error,
            }
        }
        other => raise_with(py, "FastaError", (message, other.path().unwrap_or_default())),
    }
}

/// The message of a fault between other text: a `protperf.message.Message`, so that the argument that it advises can be
/// spelled as whoever reads it types it.
fn advising<'py>(py: Python<'py>, before: &str, kind: &FastaErrorKind, after: &str) -> PyResult<Bound<'py, PyAny>> {
    let (fault, argument, rest) = kind.parts();
    let module = py.import("protperf.message")?;
    let parts = PyDict::new(py);
    parts.set_item("before", format!("{before}{fault}"))?;
    match argument {
        Some(argument) => {
            parts.set_item("argument", module.getattr("Argument")?.call1((argument.name, argument.value))?)?;
        }
        None => parts.set_item("argument", "")?,
    }
    parts.set_item("after", format!("{rest}{after}"))?;
    module.getattr("Message")?.call(("{before}{argument}{after}",), Some(&parts))
}

fn file_error_class(kind: std::io::ErrorKind) -> &'static str {
    match kind {
        std::io::ErrorKind::NotFound => "MissingFileError",
        std::io::ErrorKind::PermissionDenied => "FilePermissionError",
        std::io::ErrorKind::IsADirectory => "FileIsDirectoryError",
        _ => "FileError",
    }
}
