//! Linear attention on buffers: unpack, run without the GIL, answer signals, translate errors.

use crate::arrays::{Number, buffer, contiguous, holds, view, writable};
use crate::call::{guarded, run};
use crate::errors::{raise, to_python};
use protperf::attention::exact::{self, SoftmaxArgs};
use protperf::{
    Backend, Context, Cpu, Error, Execution, FavorArgs, FeatureMap, Gradients, Isa, MapArgs, Omega, Result, Saved,
    favor_backward as backward, favor_forward as forward, rehearse_panic, try_reserved,
};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::atomic::Ordering;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(favor_forward, module)?)?;
    module.add_function(wrap_pyfunction!(favor_backward, module)?)?;
    module.add_function(wrap_pyfunction!(softmax_attention, module)?)?;
    module.add_function(wrap_pyfunction!(merge_states, module)?)?;
    module.add_function(wrap_pyfunction!(_rehearse_panic, module)?)
}

/// Options that both directions take.
struct Options {
    feature_map: FeatureMap,
    causal: bool,
    kernel_epsilon: f64,
    cu_seqlens: Option<PyBuffer<i64>>,
    key_padding_mask: Option<PyBuffer<u8>>,
    isa: Isa,
    num_threads: usize,
}

impl Options {
    fn new(py: Python<'_>, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let get = |name: &str| Ok::<_, PyErr>(options.get_item(name)?.filter(|value| !value.is_none()));
        let fail = |error| to_python(py, &error);
        let name = get("feature_map")?.map_or(Ok("positive".to_owned()), |value| value.extract::<String>())?;
        let feature_map = FeatureMap::from_name(&name).map_err(fail)?;
        let isa = match get("isa")? {
            Some(value) => Isa::from_name(&value.extract::<String>()?),
            None => Isa::from_env(),
        };
        let epsilon = get("kernel_epsilon")?.map(|value| value.extract::<f64>()).transpose()?;
        Ok(Options {
            feature_map,
            causal: get("causal")?.map_or(Ok(false), |value| value.extract())?,
            kernel_epsilon: epsilon.unwrap_or(feature_map.default_epsilon()),
            cu_seqlens: get("cu_seqlens")?.map(|value| buffer("cu_seqlens", &value)).transpose()?,
            key_padding_mask: get("key_padding_mask")?.map(|value| buffer("key_padding_mask", &value)).transpose()?,
            isa: isa.map_err(fail)?,
            num_threads: get("num_threads")?.map_or(Ok(1), |value| value.extract::<usize>())?.max(1),
        })
    }
}

/// Buffers of the tensors that both directions read.
struct Inputs<T: Number> {
    q: PyBuffer<T>,
    k: PyBuffer<T>,
    v: PyBuffer<T>,
    omega: Option<(PyBuffer<f64>, Vec<usize>)>,
    mask: Option<Vec<bool>>,
}

impl<T: Number> Inputs<T> {
    fn new(tensors: [&Bound<'_, PyAny>; 4], options: &Options) -> PyResult<Self> {
        let [q, k, v, omega] = tensors;
        let py = q.py();
        let omega = if omega.is_none() {
            None
        } else {
            let omega = buffer::<f64>("omega", omega)?;
            let shape = omega.shape().to_vec();
            if !(2..=3).contains(&shape.len()) {
                let message = format!("omega must be [M,D] or [H,M,D], not {} axes", shape.len());
                return Err(raise(py, "ShapeError", message));
            }
            Some((omega, shape))
        };
        let mask = match &options.key_padding_mask {
            Some(mask) => {
                let bytes = contiguous(py, "key_padding_mask", mask)?;
                let mut flags = try_reserved(bytes.len()).map_err(|error| to_python(py, &error))?;
                flags.extend(bytes.iter().map(|&byte| byte != 0));
                Some(flags)
            }
            None => None,
        };
        Ok(Inputs { q: buffer("q", q)?, k: buffer("k", k)?, v: buffer("v", v)?, omega, mask })
    }

    fn args<'a>(&'a self, py: Python<'_>, options: &'a Options) -> PyResult<FavorArgs<'a, T>> {
        let omega = match &self.omega {
            Some((data, shape)) => Some(Omega {
                data: contiguous(py, "omega", data)?,
                num_heads: (shape.len() == 3).then_some(shape[0]),
                num_features: shape[shape.len() - 2],
                head_dim: shape[shape.len() - 1],
            }),
            None => None,
        };
        let cu_seqlens = match &options.cu_seqlens {
            Some(borders) => Some(contiguous(py, "cu_seqlens", borders)?),
            None => None,
        };
        Ok(FavorArgs {
            q: view(py, "q", &self.q)?,
            k: view(py, "k", &self.k)?,
            v: view(py, "v", &self.v)?,
            map: MapArgs::Named { map: options.feature_map, omega, kernel_epsilon: options.kernel_epsilon },
            causal: options.causal,
            cu_seqlens,
            key_padding_mask: self.mask.as_deref(),
        })
    }
}

/// Multiply-adds of a forward pass, roughly.
fn work<T: Copy>(args: &FavorArgs<'_, T>) -> f64 {
    let [b, h, l, d] = args.q.shape().map(|n| n as f64);
    let [_, _, s, e] = args.v.shape().map(|n| n as f64);
    let m = match args.map {
        MapArgs::Named { omega, .. } => omega.map_or(d, |omega| omega.num_features as f64),
        MapArgs::LogLinear(record) => record.num_projections as f64,
    };
    b * h * (l + s) * m * (d + e)
}

/// Writes out `[B,H,L,E]` and den `[B,H,L,2]`; see `protperf_cpu::favor_forward`.
#[pyfunction]
#[pyo3(signature = (q, k, v, omega, out, den, **options))]
fn favor_forward(
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    omega: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    den: &Bound<'_, PyAny>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    let run = if holds::<f64>(q) { forward_as::<f64> } else { forward_as::<f32> };
    let empty = PyDict::new(q.py());
    guarded(q.py(), || run([q, k, v, omega], out, den, options.unwrap_or(&empty)))
}

fn forward_as<T: Number>(
    tensors: [&Bound<'_, PyAny>; 4],
    out: &Bound<'_, PyAny>,
    den: &Bound<'_, PyAny>,
    options: &Bound<'_, PyDict>,
) -> PyResult<()> {
    let py = out.py();
    let state = |name: &str| -> PyResult<Option<PyBuffer<T>>> {
        options.get_item(name)?.filter(|value| !value.is_none()).map(|value| buffer(name, &value)).transpose()
    };
    let (state_in, state_out) = (state("state_in")?, state("state_out")?);
    let options = Options::new(py, options)?;
    let inputs = Inputs::<T>::new(tensors, &options)?;
    let args = inputs.args(py, &options)?;
    let (out, den) = (buffer::<T>("out", out)?, buffer::<T>("den", den)?);
    let outputs = Once::new((
        writable(py, "out", &out)?,
        writable(py, "den", &den)?,
        match &state_out {
            Some(state) => Some(writable(py, "state_out", state)?),
            None => None,
        },
    ));
    let state_in = match &state_in {
        Some(state) => Some(contiguous(py, "state_in", state)?),
        None => None,
    };
    run(py, work(&args), options.num_threads, |cancel, num_threads| {
        let (out, den, state_out) = outputs.take()?;
        forward(&args, state_in, out, den, state_out, &Context { isa: options.isa, num_threads, cancel })
    })
}

/// Writes dq, dk, dv and, where it is given, domega (float64); see `protperf_cpu::favor_backward`.
#[pyfunction]
#[pyo3(signature = (q, k, v, omega, out, den, grad, dq, dk, dv, domega, **options))]
#[allow(clippy::too_many_arguments)]
fn favor_backward(
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    omega: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    den: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
    dq: &Bound<'_, PyAny>,
    dk: &Bound<'_, PyAny>,
    dv: &Bound<'_, PyAny>,
    domega: &Bound<'_, PyAny>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    let run = if holds::<f64>(q) { backward_as::<f64> } else { backward_as::<f32> };
    let empty = PyDict::new(q.py());
    guarded(q.py(), || run([q, k, v, omega], [out, den, grad], [dq, dk, dv, domega], options.unwrap_or(&empty)))
}

fn backward_as<T: Number>(
    tensors: [&Bound<'_, PyAny>; 4],
    saved: [&Bound<'_, PyAny>; 3],
    gradients: [&Bound<'_, PyAny>; 4],
    options: &Bound<'_, PyDict>,
) -> PyResult<()> {
    let py = tensors[0].py();
    let options = Options::new(py, options)?;
    let inputs = Inputs::<T>::new(tensors, &options)?;
    let args = inputs.args(py, &options)?;
    let [out, den, grad] = saved;
    let (out, den, grad) = (buffer::<T>("out", out)?, buffer::<T>("den", den)?, buffer::<T>("grad", grad)?);
    let (out, den, grad) = (view(py, "out", &out)?, contiguous(py, "den", &den)?, view(py, "grad", &grad)?);
    let [dq, dk, dv, domega] = gradients;
    let (dq, dk, dv) = (buffer::<T>("dq", dq)?, buffer::<T>("dk", dk)?, buffer::<T>("dv", dv)?);
    let domega = if domega.is_none() { None } else { Some(buffer::<f64>("domega", domega)?) };
    let outputs = Once::new(Gradients {
        dq: writable(py, "dq", &dq)?,
        dk: writable(py, "dk", &dk)?,
        dv: writable(py, "dv", &dv)?,
        domega: match &domega {
            Some(domega) => Some(writable(py, "domega", domega)?),
            None => None,
        },
    });
    run(py, 3.0 * work(&args), options.num_threads, |cancel, num_threads| {
        let saved = Saved { out: &out, den, grad: &grad };
        backward(&args, &saved, outputs.take()?, &Context { isa: options.isa, num_threads, cancel })
    })
}

/// Writes out `[B,H,L,E]`, exact and quadratic; see `protperf_core::attention::exact`.
#[pyfunction]
#[pyo3(signature = (q, k, v, out, **options))]
fn softmax_attention(
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<()> {
    fn exact_as<T: Number>(tensors: [&Bound<'_, PyAny>; 4], out: &Bound<'_, PyAny>, options: &Options) -> PyResult<()> {
        let py = out.py();
        let inputs = Inputs::<T>::new(tensors, options)?;
        let args = inputs.args(py, options)?;
        let out = buffer::<T>("out", out)?;
        let out = Once::new(writable(py, "out", &out)?);
        let ([b, h, l, d], [_, _, s, e]) = (args.q.shape(), args.v.shape());
        let work = [b, h, l, s, d + e].iter().map(|&n| n as f64).product();
        run(py, work, 1, |cancel, _| {
            let args = SoftmaxArgs {
                q: args.q,
                k: args.k,
                v: args.v,
                causal: args.causal,
                cu_seqlens: args.cu_seqlens,
                key_padding_mask: args.key_padding_mask,
            };
            exact::softmax_attention(&args, out.take()?, &|| cancel.load(Ordering::Relaxed))
        })
    }
    let py = q.py();
    let options = Options::new(py, options.unwrap_or(&PyDict::new(py)))?;
    let none = py.None().into_bound(py);
    let run = if holds::<f64>(q) { exact_as::<f64> } else { exact_as::<f32> };
    guarded(py, || run([q, k, v, &none], out, &options))
}

/// out = the state of both sets of keys; all `[.., 2 + value_dim]`.
#[pyfunction]
fn merge_states(a: &Bound<'_, PyAny>, b: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>, value_dim: usize) -> PyResult<()> {
    fn merge_as<T: Number>(
        a: &Bound<'_, PyAny>,
        b: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        e: usize,
    ) -> PyResult<()> {
        let py = a.py();
        let (a, b, out) = (buffer::<T>("a", a)?, buffer::<T>("b", b)?, buffer::<T>("out", out)?);
        let (a, b) = (contiguous(py, "a", &a)?, contiguous(py, "b", &b)?);
        let out = Once::new(writable(py, "out", &out)?);
        // Memory bounds it, so an element counts for more than a multiply-add.
        run(py, 16.0 * a.len() as f64, 1, |cancel, num_threads| {
            let run = Execution { num_threads, cancel };
            Backend::<T>::merge_states(&Cpu { isa: Isa::from_env()? }, a, b, e, out.take()?, &run)
        })
    }
    let run = if holds::<f64>(a) { merge_as::<f64> } else { merge_as::<f32> };
    guarded(a.py(), || run(a, b, out, value_dim))
}

/// Makes the `checks`-th look at the cancel flag from now panic, in whichever thread does it; 0 takes it back. For tests.
#[pyfunction]
fn _rehearse_panic(checks: usize) {
    rehearse_panic(checks);
}

/// Exclusive outputs that a shared closure hands to its only run.
pub struct Once<T>(std::sync::Mutex<Option<T>>);

impl<T> Once<T> {
    pub fn new(value: T) -> Self {
        Once(std::sync::Mutex::new(Some(value)))
    }
    pub fn take(&self) -> Result<T> {
        self.0.lock().ok().and_then(|mut slot| slot.take()).ok_or(Error::Interrupted)
    }
}
