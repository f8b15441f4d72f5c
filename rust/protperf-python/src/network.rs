//! A trained network and its states, for `protperf.network`, which checks arguments and makes the arrays that are filled.

use crate::arrays::{buffer, contiguous, optional, optional_contiguous, writable};
use crate::call::{Once, guarded, run_or};
use crate::errors::{fault_to_python, raise, to_python};
use protperf::model::cpu::CpuDevice;
use protperf::model::fault::{Fault, Result};
use protperf::model::network::{Layer, Mode, Network, State};
use protperf::{CpuElement, Execution, Isa};
use pyo3::buffer::Element;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyNetwork>()?;
    module.add_class::<PyNetworkState>()
}

/// Multiply-adds that take as long as checking and packing a network of unknown size: always another thread's work.
const LOADING: f64 = f64::INFINITY;

/// The same in either type.
enum Typed<S, D> {
    Single(S),
    Double(D),
}

/// Runs an expression for the type that a network computes in.
macro_rules! for_type {
    ($typed:expr, $inner:ident => $body:expr) => {
        match $typed {
            Typed::Single($inner) => $body,
            Typed::Double($inner) => $body,
        }
    };
}

type CpuNetwork<T> = Network<T, CpuDevice>;
type CpuState<T> = State<T, CpuDevice>;

/// A network that is ready to read sequences. Threads share its weights.
#[pyclass(module = "protperf._native", name = "Network", frozen)]
struct PyNetwork(Typed<CpuNetwork<f32>, CpuNetwork<f64>>);

/// What left-to-right reading carries on; one thread at a time uses it.
#[pyclass(module = "protperf._native", name = "NetworkState", frozen)]
struct PyNetworkState(Typed<Mutex<CpuState<f32>>, Mutex<CpuState<f64>>>);

#[pymethods]
impl PyNetwork {
    #[new]
    #[pyo3(signature = (step, dtype = "float32", *, isa = None, num_threads = 1))]
    fn new(py: Python<'_>, step: PathBuf, dtype: &str, isa: Option<&str>, num_threads: usize) -> PyResult<Self> {
        guarded(py, || {
            let isa = isa.map_or_else(Isa::from_env, Isa::from_name).map_err(|error| to_python(py, &error))?;
            match dtype {
                "float32" => Ok(PyNetwork(Typed::Single(load(py, step, isa, num_threads)?))),
                "float64" => Ok(PyNetwork(Typed::Double(load(py, step, isa, num_threads)?))),
                _ => Err(raise(py, "ConfigError", format!("dtype is '{dtype}'; use float32 or float64"))),
            }
        })
    }

    /// Fill out [num_rows, vocabulary] with log-probabilities.
    #[pyo3(signature = (tokens, borders, causal, rows, out, *, num_threads = 1))]
    #[allow(clippy::too_many_arguments)]
    fn log_probs(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        borders: &Bound<'_, PyAny>,
        causal: bool,
        rows: Option<&Bound<'_, PyAny>>,
        out: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<()> {
        let batch = Batch { tokens, borders, num_threads };
        guarded(py, || for_type!(&self.0, network => log_probs(py, network, &batch, mode(causal), rows, out)))
    }

    /// Fill out [N, model_dim] with hidden states: those after `layer` blocks, or with -1 the last, normalized.
    #[pyo3(signature = (tokens, borders, causal, layer, out, *, num_threads = 1))]
    #[allow(clippy::too_many_arguments)]
    fn hidden(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        borders: &Bound<'_, PyAny>,
        causal: bool,
        layer: isize,
        out: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<()> {
        let batch = Batch { tokens, borders, num_threads };
        guarded(py, || for_type!(&self.0, network => hidden(py, network, &batch, mode(causal), layer_of(layer), out)))
    }

    /// The state of sequences of which nothing has been read.
    fn empty_state(&self, py: Python<'_>, num_sequences: usize) -> PyResult<PyNetworkState> {
        let raised = |fault: Fault| fault_to_python(py, &fault);
        guarded(py, || {
            Ok(PyNetworkState(match &self.0 {
                Typed::Single(network) => {
                    Typed::Single(Mutex::new(network.empty_state(num_sequences).map_err(raised)?))
                }
                Typed::Double(network) => {
                    Typed::Double(Mutex::new(network.empty_state(num_sequences).map_err(raised)?))
                }
            }))
        })
    }
}

#[pymethods]
impl PyNetworkState {
    /// Tokens that each sequence has read, as int64.
    fn positions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        guarded(py, || {
            let positions =
                for_type!(&self.0, state => py.detach(|| locked(state, |state| state.positions().to_vec())));
            let bytes: Vec<u8> = positions.iter().flat_map(|position| position.to_ne_bytes()).collect();
            Ok(PyBytes::new(py, &bytes))
        })
    }

    /// Copies of the states of some sequences, in this order.
    fn select(&self, py: Python<'_>, indices: &Bound<'_, PyAny>) -> PyResult<PyNetworkState> {
        guarded(py, || {
            let indices = buffer("indices", indices)?;
            let indices = contiguous(py, "indices", &indices)?;
            let selected = match &self.0 {
                Typed::Single(state) => Typed::Single(select(py, state, indices)?),
                Typed::Double(state) => Typed::Double(select(py, state, indices)?),
            };
            Ok(PyNetworkState(selected))
        })
    }

    /// Read the next tokens of each sequence; fill out [num_rows, vocabulary] with log-probabilities.
    #[pyo3(signature = (tokens, borders, rows, out, *, num_threads = 1))]
    fn advance(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        borders: &Bound<'_, PyAny>,
        rows: Option<&Bound<'_, PyAny>>,
        out: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<()> {
        let batch = Batch { tokens, borders, num_threads };
        guarded(py, || {
            let rows = optional("rows", rows)?;
            let rows = optional_contiguous(py, "rows", rows.as_ref())?;
            for_type!(&self.0, state => advance(py, state, &batch, Asked::LogProbs(rows), out))
        })
    }

    /// Read the next tokens of each sequence; fill out [N, model_dim] with hidden states, as `Network.hidden` does.
    #[pyo3(signature = (tokens, borders, layer, out, *, num_threads = 1))]
    fn advance_hidden(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        borders: &Bound<'_, PyAny>,
        layer: isize,
        out: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<()> {
        let batch = Batch { tokens, borders, num_threads };
        guarded(py, || for_type!(&self.0, state => advance(py, state, &batch, Asked::Hidden(layer_of(layer)), out)))
    }
}

/// A batch as Python gives it, and the threads to read it with.
struct Batch<'a, 'py> {
    tokens: &'a Bound<'py, PyAny>,
    borders: &'a Bound<'py, PyAny>,
    num_threads: usize,
}

/// What is asked of the tokens that a state reads.
#[derive(Clone, Copy)]
enum Asked<'a> {
    LogProbs(Option<&'a [i64]>),
    Hidden(Layer),
}

/// -1 is the last layer, normalized.
fn layer_of(layer: isize) -> Layer {
    usize::try_from(layer).map_or(Layer::Last, Layer::After)
}

fn mode(causal: bool) -> Mode {
    if causal { Mode::Causal } else { Mode::Masked }
}

fn load<T: CpuElement>(py: Python<'_>, step: PathBuf, isa: Isa, num_threads: usize) -> PyResult<CpuNetwork<T>> {
    let loaded = |cancel: &_, num_threads| Network::load(&step, CpuDevice { isa }, &Execution { num_threads, cancel });
    run_or(py, LOADING, num_threads.max(1), loaded, fault_to_python)
}

fn log_probs<T: CpuElement + Element>(
    py: Python<'_>,
    network: &CpuNetwork<T>,
    batch: &Batch<'_, '_>,
    mode: Mode,
    rows: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (tokens, borders) = (buffer("tokens", batch.tokens)?, buffer("borders", batch.borders)?);
    let (tokens, borders) = (contiguous(py, "tokens", &tokens)?, contiguous(py, "borders", &borders)?);
    let (rows, out) = (optional("rows", rows)?, buffer("out", out)?);
    let rows = optional_contiguous(py, "rows", rows.as_ref())?;
    let out = Once::new(writable(py, "out", &out)?);
    let body = |cancel: &_, num_threads| {
        network.log_probs(tokens, borders, mode, rows, out.take()?, &Execution { num_threads, cancel })
    };
    run_or(py, work(network, tokens, borders), batch.num_threads.max(1), body, fault_to_python)
}

fn hidden<T: CpuElement + Element>(
    py: Python<'_>,
    network: &CpuNetwork<T>,
    batch: &Batch<'_, '_>,
    mode: Mode,
    layer: Layer,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (tokens, borders) = (buffer("tokens", batch.tokens)?, buffer("borders", batch.borders)?);
    let (tokens, borders) = (contiguous(py, "tokens", &tokens)?, contiguous(py, "borders", &borders)?);
    let out = buffer("out", out)?;
    let out = Once::new(writable(py, "out", &out)?);
    let body = |cancel: &_, num_threads| {
        network.hidden(tokens, borders, mode, layer, out.take()?, &Execution { num_threads, cancel })
    };
    run_or(py, work(network, tokens, borders), batch.num_threads.max(1), body, fault_to_python)
}

fn advance<T: CpuElement + Element>(
    py: Python<'_>,
    state: &Mutex<CpuState<T>>,
    batch: &Batch<'_, '_>,
    asked: Asked<'_>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (tokens, borders) = (buffer("tokens", batch.tokens)?, buffer("borders", batch.borders)?);
    let (tokens, borders) = (contiguous(py, "tokens", &tokens)?, contiguous(py, "borders", &borders)?);
    let out = buffer("out", out)?;
    let out = Once::new(writable(py, "out", &out)?);
    let work = py.detach(|| {
        locked(state, |state| {
            let before = state.positions().iter().max().map_or(0.0, |&position| position as f64);
            tokens.len() as f64 * state.network().config().work_per_token(before + tokens.len() as f64)
        })
    });
    let body = |cancel: &_, num_threads| {
        let run = Execution { num_threads, cancel };
        let out = out.take()?;
        locked(state, |state| match asked {
            Asked::LogProbs(rows) => state.advance(tokens, borders, rows, out, &run),
            Asked::Hidden(layer) => state.advance_hidden(tokens, borders, layer, out, &run),
        })
    };
    run_or(py, work, batch.num_threads.max(1), body, fault_to_python)
}

fn select<T: CpuElement>(py: Python<'_>, state: &Mutex<CpuState<T>>, indices: &[i64]) -> PyResult<Mutex<CpuState<T>>> {
    let selected: Result<_> = py.detach(|| locked(state, |state| state.select(indices)));
    selected.map(Mutex::new).map_err(|fault| fault_to_python(py, &fault))
}

/// Uses a state alone. Call it without the GIL: another thread's call may take long. A call that panicked left the state
/// marked as of no use.
fn locked<T, R>(state: &Mutex<T>, body: impl FnOnce(&mut T) -> R) -> R {
    body(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Multiply-adds of reading a batch, roughly.
fn work<T: CpuElement>(network: &CpuNetwork<T>, tokens: &[u8], borders: &[i64]) -> f64 {
    let longest = borders.windows(2).map(|ends| ends[1].saturating_sub(ends[0])).max().unwrap_or(0);
    tokens.len() as f64 * network.config().work_per_token(longest as f64)
}
