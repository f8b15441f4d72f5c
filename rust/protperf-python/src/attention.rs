//! Attention on buffers: unpack, run without the GIL, answer signals, translate errors.

use crate::arrays::{
    Number, buffer, contiguous, holds, optional, optional_contiguous, optional_writable, view, writable, writable_as,
};
use crate::call::{Once, guarded, run};
use crate::errors::{raise, to_python};
use crate::inputs::{Inputs, MapBuffers, MapGradientBuffers, ParameterTuple, Visibility};
use protperf::attention::exact::SoftmaxArgs;
use protperf::backend::{FinalState, Gradients, Outputs, Saved};
use protperf::{Backend, Cpu, CpuStored, Execution, FavorArgs, Isa, MapArgs, OutRows, backend_by_name, bf16, f16};
use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(favor_forward, module)?)?;
    module.add_function(wrap_pyfunction!(favor_backward, module)?)?;
    module.add_function(wrap_pyfunction!(softmax_attention, module)?)?;
    module.add_function(wrap_pyfunction!(merge_states, module)?)
}

/// How the caller wants a call to run.
struct Choice<'a> {
    backend: &'a str,
    isa: Option<&'a str>,
    num_threads: usize,
}

impl Choice<'_> {
    /// What computes on tensors of T.
    fn backend<T: Number>(&self, py: Python<'_>) -> PyResult<Box<dyn Backend<T>>> {
        backend_by_name(self.backend, self.isa).map_err(|error| to_python(py, &error))
    }

    fn num_threads(&self) -> usize {
        self.num_threads.max(1)
    }
}

/// Calls a function for the type that tensors are stored in: that of q's buffer, or what 16-bit buffers of integers
/// are said to hold.
macro_rules! for_stored {
    ($q:expr, $stored:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $stored {
            None if holds::<f64>($q) => $function::<f64>($($argument),*),
            None => $function::<f32>($($argument),*),
            Some("bfloat16") => $function::<bf16>($($argument),*),
            Some("float16") => $function::<f16>($($argument),*),
            Some(other) => {
                let message = format!("stored is {other:?}; it must be bfloat16 or float16");
                Err(raise($q.py(), "DtypeError", message))
            }
        }
    };
}

/// Multiply-adds of a forward pass, roughly.
pub fn work<T: Copy>(args: &FavorArgs<'_, T>) -> f64 {
    let [b, h, l, d] = args.q.shape().map(|n| n as f64);
    let [_, _, s, e] = args.v.shape().map(|n| n as f64);
    let m = match args.map {
        MapArgs::Named { omega, .. } => omega.map_or(d, |omega| omega.num_features as f64),
        MapArgs::LogLinear(record) => record.num_projections as f64,
    };
    b * h * (l + s) * m * (d + e)
}

/// Fill out `[B,H,L,E]`, den `[B,H,L,2]` and, where it is given, state_out; see `protperf_core::Backend::forward`.
#[pyfunction]
#[pyo3(signature = (
    q, k, v, omega, out, den, *, feature_map="positive", kernel_epsilon=None, parameters=None, causal=false,
    cu_seqlens=None, key_padding_mask=None, state_in=None, state_out=None, stored=None, backend="auto", isa=None,
    num_threads=1
))]
#[allow(clippy::too_many_arguments)]
fn favor_forward(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    omega: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
    den: &Bound<'_, PyAny>,
    feature_map: &str,
    kernel_epsilon: Option<f64>,
    parameters: Option<ParameterTuple<'_>>,
    causal: bool,
    cu_seqlens: Option<&Bound<'_, PyAny>>,
    key_padding_mask: Option<&Bound<'_, PyAny>>,
    state_in: Option<&Bound<'_, PyAny>>,
    state_out: Option<&Bound<'_, PyAny>>,
    stored: Option<&str>,
    backend: &str,
    isa: Option<&str>,
    num_threads: usize,
) -> PyResult<()> {
    guarded(py, || {
        let map = MapBuffers::new(py, feature_map, omega, kernel_epsilon, parameters.as_ref())?;
        let visibility = Visibility::new(py, causal, cu_seqlens, key_padding_mask)?;
        let choice = Choice { backend, isa, num_threads };
        let objects = ForwardObjects { out, den, state_in, state_out };
        for_stored!(q, stored, forward_as(py, [q, k, v], &map, &visibility, objects, &choice))
    })
}

/// What a forward pass reads and fills besides its arguments.
struct ForwardObjects<'a, 'py> {
    out: &'a Bound<'py, PyAny>,
    den: &'a Bound<'py, PyAny>,
    state_in: Option<&'a Bound<'py, PyAny>>,
    state_out: Option<&'a Bound<'py, PyAny>>,
}

fn forward_as<T: Number>(
    py: Python<'_>,
    tensors: [&Bound<'_, PyAny>; 3],
    map: &MapBuffers,
    visibility: &Visibility,
    objects: ForwardObjects<'_, '_>,
    choice: &Choice<'_>,
) -> PyResult<()> {
    let inputs = Inputs::<T>::new(tensors)?;
    let args = inputs.favor_args(py, map, visibility)?;
    let (out, den) = (buffer("out", objects.out)?, buffer("den", objects.den)?);
    let (state_in, state_out) = (optional("state_in", objects.state_in)?, optional("state_out", objects.state_out)?);
    let outputs = Once::new(Outputs {
        state_in: optional_contiguous(py, "state_in", state_in.as_ref())?,
        out: writable_as::<T>(py, "out", &out)?,
        den: writable(py, "den", &den)?,
        state_out: optional_writable(py, "state_out", state_out.as_ref())?,
    });
    let backend = choice.backend::<T>(py)?;
    run(py, work(&args), choice.num_threads(), |cancel, num_threads| {
        backend.forward(&args, outputs.take()?, &Execution { num_threads, cancel })
    })
}

/// Fill dq, dk, dv and, where they are given, domega or dparameters (float64) and dstate_in, from what the forward
/// pass left; see `protperf_core::Backend::backward`.
#[pyfunction]
#[pyo3(signature = (
    q, k, v, omega, out, den, grad, dq, dk, dv, domega, *, feature_map="positive", kernel_epsilon=None,
    parameters=None, dparameters=None, causal=false, cu_seqlens=None, key_padding_mask=None, state_in=None,
    state_out=None, grad_state=None, dstate_in=None, stored=None, backend="auto", isa=None,
    num_threads=1
))]
#[allow(clippy::too_many_arguments)]
fn favor_backward(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    omega: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
    den: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
    dq: &Bound<'_, PyAny>,
    dk: &Bound<'_, PyAny>,
    dv: &Bound<'_, PyAny>,
    domega: Option<&Bound<'_, PyAny>>,
    feature_map: &str,
    kernel_epsilon: Option<f64>,
    parameters: Option<ParameterTuple<'_>>,
    dparameters: Option<ParameterTuple<'_>>,
    causal: bool,
    cu_seqlens: Option<&Bound<'_, PyAny>>,
    key_padding_mask: Option<&Bound<'_, PyAny>>,
    state_in: Option<&Bound<'_, PyAny>>,
    state_out: Option<&Bound<'_, PyAny>>,
    grad_state: Option<&Bound<'_, PyAny>>,
    dstate_in: Option<&Bound<'_, PyAny>>,
    stored: Option<&str>,
    backend: &str,
    isa: Option<&str>,
    num_threads: usize,
) -> PyResult<()> {
    guarded(py, || {
        let map = MapBuffers::new(py, feature_map, omega, kernel_epsilon, parameters.as_ref())?;
        let gradients = MapGradientBuffers::new(py, domega, dparameters.as_ref())?;
        let visibility = Visibility::new(py, causal, cu_seqlens, key_padding_mask)?;
        let choice = Choice { backend, isa, num_threads };
        let objects = BackwardObjects { saved: [out, den, grad], gradients: [dq, dk, dv], map: gradients };
        let states = StateObjects { state_in, state_out, grad_state, dstate_in };
        for_stored!(q, stored, backward_as(py, [q, k, v], &map, &visibility, objects, states, &choice))
    })
}

/// What a backward pass reads and fills besides its arguments.
struct BackwardObjects<'a, 'py> {
    saved: [&'a Bound<'py, PyAny>; 3],
    gradients: [&'a Bound<'py, PyAny>; 3],
    map: Option<MapGradientBuffers>,
}

/// The states of a backward pass.
struct StateObjects<'a, 'py> {
    state_in: Option<&'a Bound<'py, PyAny>>,
    state_out: Option<&'a Bound<'py, PyAny>>,
    grad_state: Option<&'a Bound<'py, PyAny>>,
    dstate_in: Option<&'a Bound<'py, PyAny>>,
}

fn backward_as<T: Number>(
    py: Python<'_>,
    tensors: [&Bound<'_, PyAny>; 3],
    map: &MapBuffers,
    visibility: &Visibility,
    objects: BackwardObjects<'_, '_>,
    states: StateObjects<'_, '_>,
    choice: &Choice<'_>,
) -> PyResult<()> {
    let inputs = Inputs::<T>::new(tensors)?;
    let args = inputs.favor_args(py, map, visibility)?;
    let [out, den, grad] = objects.saved;
    let (out, den, grad) = (buffer("out", out)?, buffer("den", den)?, buffer("grad", grad)?);
    let (state_in, state_out) = (optional("state_in", states.state_in)?, optional("state_out", states.state_out)?);
    let (grad_state, dstate_in) =
        (optional("grad_state", states.grad_state)?, optional("dstate_in", states.dstate_in)?);
    let final_state = match (&state_out, &grad_state) {
        (Some(state), Some(grad)) => {
            Some(FinalState { state: contiguous(py, "state_out", state)?, grad: contiguous(py, "grad_state", grad)? })
        }
        (None, Some(_)) => {
            let message = "grad_state needs state_out, the state that the forward pass ended with".to_owned();
            return Err(raise(py, "ConfigError", message));
        }
        (_, None) => None,
    };
    let saved = Saved {
        out: view(py, "out", &out)?,
        den: contiguous(py, "den", &den)?,
        grad: view(py, "grad", &grad)?,
        state_in: optional_contiguous(py, "state_in", state_in.as_ref())?,
        final_state,
    };
    let [dq, dk, dv] = objects.gradients;
    let (dq, dk, dv) = (buffer("dq", dq)?, buffer("dk", dk)?, buffer("dv", dv)?);
    let gradients = Once::new(Gradients {
        dq: writable_as::<T>(py, "dq", &dq)?,
        dk: writable_as::<T>(py, "dk", &dk)?,
        dv: writable_as::<T>(py, "dv", &dv)?,
        map: objects.map.as_ref().map(|map| map.writable(py)).transpose()?,
        state_in: optional_writable(py, "dstate_in", dstate_in.as_ref())?,
    });
    let backend = choice.backend::<T>(py)?;
    run(py, 3.0 * work(&args), choice.num_threads(), |cancel, num_threads| {
        backend.backward(&args, &saved, gradients.take()?, &Execution { num_threads, cancel })
    })
}

/// Fill out `[B,H,L,E]`, exact and quadratic; see `protperf_cpu::Cpu::exact_forward`.
#[pyfunction]
#[pyo3(signature = (
    q, k, v, out, *, causal=false, cu_seqlens=None, key_padding_mask=None, stored=None, isa=None, num_threads=1
))]
#[allow(clippy::too_many_arguments)]
fn softmax_attention(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    causal: bool,
    cu_seqlens: Option<&Bound<'_, PyAny>>,
    key_padding_mask: Option<&Bound<'_, PyAny>>,
    stored: Option<&str>,
    isa: Option<&str>,
    num_threads: usize,
) -> PyResult<()> {
    guarded(py, || {
        let visibility = Visibility::new(py, causal, cu_seqlens, key_padding_mask)?;
        let choice = Choice { backend: "cpu", isa, num_threads };
        for_stored!(q, stored, exact_as(py, [q, k, v], out, &visibility, &choice))
    })
}

fn exact_as<T: Number + CpuStored>(
    py: Python<'_>,
    tensors: [&Bound<'_, PyAny>; 3],
    out: &Bound<'_, PyAny>,
    visibility: &Visibility,
    choice: &Choice,
) -> PyResult<()> {
    let inputs = Inputs::<T>::new(tensors)?;
    let [q, k, v] = inputs.views(py)?;
    let args = SoftmaxArgs {
        q,
        k,
        v,
        causal: visibility.causal,
        cu_seqlens: visibility.borders(py)?,
        key_padding_mask: visibility.padding(),
    };
    let out = buffer("out", out)?;
    let out = Once::new(writable_as::<T>(py, "out", &out)?);
    let ([b, h, l, d], [_, _, s, e]) = (q.shape(), v.shape());
    let work = [b, h, l, s, d + e].iter().map(|&n| n as f64).product();
    let isa = choice.isa.map_or_else(Isa::from_env, Isa::from_name).map_err(|error| to_python(py, &error))?;
    let (cpu, shape) = (Cpu::new(isa), [b, h, l, e]);
    run(py, work, choice.num_threads(), |cancel, num_threads| {
        let rows = OutRows::head_major("out", out.take()?, shape)?;
        cpu.exact_forward(&args, rows, None, &Execution { num_threads, cancel })
    })
}

/// Fill out with the state of both sets of keys; all `[.., 2 + value_dim]`.
#[pyfunction]
#[pyo3(signature = (a, b, out, value_dim))]
fn merge_states(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    value_dim: usize,
) -> PyResult<()> {
    let merge = if holds::<f64>(a) { merge_as::<f64> } else { merge_as::<f32> };
    guarded(py, || merge(py, a, b, out, value_dim))
}

fn merge_as<T: Number>(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    value_dim: usize,
) -> PyResult<()> {
    let (a, b, out) = (buffer("a", a)?, buffer("b", b)?, buffer("out", out)?);
    let (a, b) = (contiguous(py, "a", &a)?, contiguous(py, "b", &b)?);
    let out = Once::new(writable(py, "out", &out)?);
    let backend = Choice { backend: "auto", isa: None, num_threads: 1 }.backend::<T>(py)?;
    // Memory bounds it, so an element counts for more than a multiply-add.
    run(py, 16.0 * a.len() as f64, 1, |cancel, num_threads| {
        backend.merge_states(a, b, value_dim, out.take()?, &Execution { num_threads, cancel })
    })
}
