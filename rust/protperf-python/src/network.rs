//! A trained network and its states, for `protperf.network`, which checks arguments and makes the arrays that are filled.

use crate::arrays::{buffer, contiguous, optional, optional_contiguous, writable};
use crate::call::{Once, guarded, run_or};
use crate::errors::{fault_to_python, raise, to_python};
use protperf::model::cpu::CpuDevice;
use protperf::model::device::{Device, Layer, Wanted};
use protperf::model::fault::Result;
#[cfg(feature = "wgpu")]
use protperf::model::gpu::GpuDevice;
use protperf::model::network::{Mode, Network, State};
use protperf::model::pool::{Pool, PoolKind};
use protperf::{Element, Execution, Isa};
use pyo3::buffer::Element as BufferElement;
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

/// A network of any type on any device.
enum AnyNetwork {
    Single(Network<f32, CpuDevice>),
    Double(Network<f64, CpuDevice>),
    #[cfg(feature = "wgpu")]
    Gpu(Network<f32, GpuDevice>),
}

/// The state of one.
enum AnyState {
    Single(Mutex<State<f32, CpuDevice>>),
    Double(Mutex<State<f64, CpuDevice>>),
    #[cfg(feature = "wgpu")]
    Gpu(Mutex<State<f32, GpuDevice>>),
}

/// Runs an expression for the type and the device that a network or a state has.
macro_rules! for_any {
    ($kind:ident, $any:expr, $inner:ident => $body:expr) => {
        match $any {
            $kind::Single($inner) => $body,
            $kind::Double($inner) => $body,
            #[cfg(feature = "wgpu")]
            $kind::Gpu($inner) => $body,
        }
    };
}

/// The state that an expression makes, for the type and the device that a network or a state has.
macro_rules! state_of {
    ($kind:ident, $any:expr, $inner:ident => $body:expr) => {
        PyNetworkState(match $any {
            $kind::Single($inner) => AnyState::Single(Mutex::new($body)),
            $kind::Double($inner) => AnyState::Double(Mutex::new($body)),
            #[cfg(feature = "wgpu")]
            $kind::Gpu($inner) => AnyState::Gpu(Mutex::new($body)),
        })
    };
}

/// A network that is ready to read sequences. Threads share its weights.
#[pyclass(module = "protperf._native", name = "Network", frozen)]
struct PyNetwork(AnyNetwork);

/// What left-to-right reading carries on; one thread at a time uses it.
#[pyclass(module = "protperf._native", name = "NetworkState", frozen)]
struct PyNetworkState(AnyState);

#[pymethods]
impl PyNetwork {
    #[new]
    #[pyo3(signature = (step, dtype = "float32", device = "cpu", *, isa = None, num_threads = 1))]
    fn new(
        py: Python<'_>,
        step: PathBuf,
        dtype: &str,
        device: &str,
        isa: Option<&str>,
        num_threads: usize,
    ) -> PyResult<Self> {
        guarded(py, || {
            let cpu = || match isa.map_or_else(Isa::from_env, Isa::from_name) {
                Ok(isa) => Ok(CpuDevice { isa }),
                Err(error) => Err(to_python(py, &error)),
            };
            Ok(PyNetwork(match (device, dtype) {
                ("cpu", "float32") => AnyNetwork::Single(load(py, step, cpu()?, num_threads)?),
                ("cpu", "float64") => AnyNetwork::Double(load(py, step, cpu()?, num_threads)?),
                #[cfg(feature = "wgpu")]
                ("wgpu", "float32") => AnyNetwork::Gpu(load(py, step, GpuDevice, num_threads)?),
                #[cfg(not(feature = "wgpu"))]
                ("wgpu", "float32") => {
                    let missing = protperf::backend_by_name::<f32>("wgpu", None).err();
                    return Err(missing.map_or_else(|| raise(py, "DeviceError", String::new()), |e| to_python(py, &e)));
                }
                ("cpu" | "wgpu", _) => {
                    let choice = if device == "cpu" { "float32 or float64" } else { "float32" };
                    return Err(raise(py, "ConfigError", format!("dtype is '{dtype}'; use {choice}")));
                }
                _ => return Err(raise(py, "ConfigError", format!("device is '{device}'; use cpu or wgpu"))),
            }))
        })
    }

    /// Fill out [num_rows, vocabulary] with log-probabilities, or [num_rows] with those of the targets.
    #[pyo3(signature = (tokens, borders, causal, rows, targets, out, *, num_threads = 1))]
    #[allow(clippy::too_many_arguments)]
    fn log_probs(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        borders: &Bound<'_, PyAny>,
        causal: bool,
        rows: Option<&Bound<'_, PyAny>>,
        targets: Option<&Bound<'_, PyAny>>,
        out: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<()> {
        let call = Call { tokens, borders, asked: Asked::LogProbs { rows, targets }, out, num_threads };
        guarded(py, || for_any!(AnyNetwork, &self.0, network => read(py, network, &call, mode(causal))))
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
        let call = Call { tokens, borders, asked: Asked::Hidden(layer_of(layer)), out, num_threads };
        guarded(py, || for_any!(AnyNetwork, &self.0, network => read(py, network, &call, mode(causal))))
    }

    /// Fill out [num_pools, model_dim], float64, with pooled hidden states. A row of pools [num_pools, 5] holds the number
    /// of a sequence, the first of its tokens and the end of them, 0 mean, 1 max or 2 attention, and the query of the last.
    #[pyo3(signature = (tokens, borders, causal, layer, pools, out, *, num_threads = 1))]
    #[allow(clippy::too_many_arguments)]
    fn pooled(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        borders: &Bound<'_, PyAny>,
        causal: bool,
        layer: isize,
        pools: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<()> {
        let call = Call { tokens, borders, asked: Asked::Pooled(layer_of(layer), pools), out, num_threads };
        guarded(py, || for_any!(AnyNetwork, &self.0, network => read(py, network, &call, mode(causal))))
    }

    /// The state of sequences of which nothing has been read.
    fn empty_state(&self, py: Python<'_>, num_sequences: usize) -> PyResult<PyNetworkState> {
        guarded(py, || Ok(state_of!(AnyNetwork, &self.0, network => empty_state(py, network, num_sequences)?)))
    }
}

#[pymethods]
impl PyNetworkState {
    /// Tokens that each sequence has read, as int64.
    fn positions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        guarded(py, || {
            let positions =
                for_any!(AnyState, &self.0, state => py.detach(|| locked(state, |state| state.positions().to_vec())));
            let bytes: Vec<u8> = positions.iter().flat_map(|position| position.to_ne_bytes()).collect();
            Ok(PyBytes::new(py, &bytes))
        })
    }

    /// Copies of the states of some sequences, in this order.
    fn select(&self, py: Python<'_>, indices: &Bound<'_, PyAny>) -> PyResult<PyNetworkState> {
        guarded(py, || {
            let indices = buffer("indices", indices)?;
            let indices = contiguous(py, "indices", &indices)?;
            Ok(state_of!(AnyState, &self.0, state => select(py, state, indices)?))
        })
    }

    /// Read the next tokens of each sequence; fill out as `Network.log_probs` does.
    #[pyo3(signature = (tokens, borders, rows, targets, out, *, num_threads = 1))]
    #[allow(clippy::too_many_arguments)]
    fn advance(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        borders: &Bound<'_, PyAny>,
        rows: Option<&Bound<'_, PyAny>>,
        targets: Option<&Bound<'_, PyAny>>,
        out: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<()> {
        let call = Call { tokens, borders, asked: Asked::LogProbs { rows, targets }, out, num_threads };
        guarded(py, || for_any!(AnyState, &self.0, state => advance(py, state, &call)))
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
        let call = Call { tokens, borders, asked: Asked::Hidden(layer_of(layer)), out, num_threads };
        guarded(py, || for_any!(AnyState, &self.0, state => advance(py, state, &call)))
    }

    /// Read the next tokens of each sequence; fill out with pooled hidden states of them, as `Network.pooled` does.
    #[pyo3(signature = (tokens, borders, layer, pools, out, *, num_threads = 1))]
    #[allow(clippy::too_many_arguments)]
    fn advance_pooled(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        borders: &Bound<'_, PyAny>,
        layer: isize,
        pools: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<()> {
        let call = Call { tokens, borders, asked: Asked::Pooled(layer_of(layer), pools), out, num_threads };
        guarded(py, || for_any!(AnyState, &self.0, state => advance(py, state, &call)))
    }
}

/// A batch, what is asked of it and where that goes, as Python gives them, and the threads to read it with.
struct Call<'a, 'py> {
    tokens: &'a Bound<'py, PyAny>,
    borders: &'a Bound<'py, PyAny>,
    asked: Asked<'a, 'py>,
    out: &'a Bound<'py, PyAny>,
    num_threads: usize,
}

/// What is asked of tokens.
#[derive(Clone, Copy)]
enum Asked<'a, 'py> {
    LogProbs { rows: Option<&'a Bound<'py, PyAny>>, targets: Option<&'a Bound<'py, PyAny>> },
    Hidden(Layer),
    Pooled(Layer, &'a Bound<'py, PyAny>),
}

impl Call<'_, '_> {
    /// Calls a body with the tokens, their borders, and what is wanted of them, which it may take once.
    fn run<T: Element + BufferElement>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&[u8], &[i64]) -> f64,
        body: impl Fn(&[u8], &[i64], Wanted<'_, T>, &Execution<'_>) -> Result<()> + Send + Sync,
    ) -> PyResult<()> {
        let (tokens, borders) = (buffer("tokens", self.tokens)?, buffer("borders", self.borders)?);
        let (tokens, borders) = (contiguous(py, "tokens", &tokens)?, contiguous(py, "borders", &borders)?);
        let work = work(tokens, borders);
        let run = |wanted: Once<Wanted<'_, T>>| {
            let body =
                |cancel: &_, num_threads| body(tokens, borders, wanted.take()?, &Execution { num_threads, cancel });
            run_or(py, work, self.num_threads.max(1), body, fault_to_python)
        };
        match self.asked {
            Asked::LogProbs { rows, targets } => {
                let (rows, targets) = (optional("rows", rows)?, optional("targets", targets)?);
                let rows = optional_contiguous(py, "rows", rows.as_ref())?;
                let targets = optional_contiguous(py, "targets", targets.as_ref())?;
                let out = buffer("out", self.out)?;
                run(Once::new(Wanted::LogProbs { rows, targets, out: writable(py, "out", &out)? }))
            }
            Asked::Hidden(layer) => {
                let out = buffer("out", self.out)?;
                run(Once::new(Wanted::Hidden { layer, out: writable(py, "out", &out)? }))
            }
            Asked::Pooled(layer, pools) => {
                let (numbers, out) = (buffer("pools", pools)?, buffer("out", self.out)?);
                let pools = pools_of(py, contiguous(py, "pools", &numbers)?)?;
                run(Once::new(Wanted::Pooled { layer, pools: &pools, out: writable(py, "out", &out)? }))
            }
        }
    }
}

/// The pools that rows of five numbers describe.
fn pools_of(py: Python<'_>, numbers: &[i64]) -> PyResult<Vec<Pool>> {
    let refused = |row: &[i64]| raise(py, "ConfigError", format!("pools hold {row:?}, which describes no pool"));
    let pools = numbers.chunks(5).map(|row| {
        let [sequence, start, end, kind, query] =
            row.iter().map(|&x| usize::try_from(x)).collect::<Result<Vec<_>, _>>().ok()?.try_into().ok()?;
        let kind = match kind {
            0 => PoolKind::Mean,
            1 => PoolKind::Max,
            2 => PoolKind::Attention { query },
            _ => return None,
        };
        Some(Pool { sequence, tokens: start..end, kind })
    });
    pools.zip(numbers.chunks(5)).map(|(pool, row)| pool.ok_or_else(|| refused(row))).collect()
}

/// -1 is the last layer, normalized.
fn layer_of(layer: isize) -> Layer {
    usize::try_from(layer).map_or(Layer::Last, Layer::After)
}

fn mode(causal: bool) -> Mode {
    if causal { Mode::Causal } else { Mode::Masked }
}

fn load<T: Element, D: Device<T> + Copy>(
    py: Python<'_>,
    step: PathBuf,
    device: D,
    num_threads: usize,
) -> PyResult<Network<T, D>> {
    let loaded = |cancel: &_, num_threads| Network::load(&step, device, &Execution { num_threads, cancel });
    run_or(py, LOADING, num_threads.max(1), loaded, fault_to_python)
}

fn empty_state<T: Element, D: Device<T>>(
    py: Python<'_>,
    network: &Network<T, D>,
    num_sequences: usize,
) -> PyResult<State<T, D>> {
    network.empty_state(num_sequences).map_err(|fault| fault_to_python(py, &fault))
}

fn read<T: Element + BufferElement, D: Device<T>>(
    py: Python<'_>,
    network: &Network<T, D>,
    call: &Call<'_, '_>,
    mode: Mode,
) -> PyResult<()> {
    let work = |tokens: &[u8], borders: &[i64]| {
        let longest = borders.windows(2).map(|ends| ends[1].saturating_sub(ends[0])).max().unwrap_or(0);
        tokens.len() as f64 * network.config().work_per_token(longest as f64)
    };
    call.run(py, work, |tokens, borders, wanted, run| network.read(tokens, borders, mode, wanted, run))
}

fn advance<T: Element + BufferElement, D: Device<T>>(
    py: Python<'_>,
    state: &Mutex<State<T, D>>,
    call: &Call<'_, '_>,
) -> PyResult<()> {
    let work = |tokens: &[u8], _: &[i64]| {
        py.detach(|| {
            locked(state, |state| {
                let before = state.positions().iter().max().map_or(0.0, |&position| position as f64);
                tokens.len() as f64 * state.network().config().work_per_token(before + tokens.len() as f64)
            })
        })
    };
    let body = |tokens: &[u8], borders: &[i64], wanted: Wanted<'_, T>, run: &Execution<'_>| {
        locked(state, |state| state.advance(tokens, borders, wanted, run))
    };
    call.run(py, work, body)
}

fn select<T: Element, D: Device<T>>(
    py: Python<'_>,
    state: &Mutex<State<T, D>>,
    indices: &[i64],
) -> PyResult<State<T, D>> {
    let selected: Result<_> = py.detach(|| locked(state, |state| state.select(indices)));
    selected.map_err(|fault| fault_to_python(py, &fault))
}

/// Uses a state alone. Call it without the GIL: another thread's call may take long. A call that panicked left the state
/// marked as of no use.
fn locked<T, R>(state: &Mutex<T>, body: impl FnOnce(&mut T) -> R) -> R {
    body(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
}
