//! The block and the head of a training on buffers.

use crate::arrays::{Number, buffer, contiguous, holds, optional, optional_contiguous, writable};
use crate::call::{Once, guarded, run};
use crate::errors::{raise, to_python};
use protperf::model::block::{Block, BlockBackward, BlockGradients, Trace, TraceMut};
use protperf::model::head::{HeadGradients, HeadWeights, Targets, token_loss};
use protperf::model::weights::{Attention, BlockShape, BlockWeights};
use protperf::model::{Arithmetic, Dropout, Precision, Rotary};
use protperf::{CpuElement, Execution, FeatureMap, Isa, Result};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(block_trace_sizes, module)?)?;
    module.add_function(wrap_pyfunction!(block_forward, module)?)?;
    module.add_function(wrap_pyfunction!(block_backward, module)?)?;
    module.add_function(wrap_pyfunction!(head_loss, module)?)
}

type Object<'py> = Bound<'py, PyAny>;
/// attention_norm, qkv, log_temperature, omega, out, ffn_norm, gate_up, down.
type WeightTuple<'py> =
    (Object<'py>, Object<'py>, Object<'py>, Option<Object<'py>>, Object<'py>, Object<'py>, Object<'py>, Object<'py>);
/// Gradients of the weights, in their order without omega.
type GradientTuple<'py> = (Object<'py>, Object<'py>, Object<'py>, Object<'py>, Object<'py>, Object<'py>, Object<'py>);
/// cosines, sines, cu_seqlens.
type PlaceTuple<'py> = (Object<'py>, Object<'py>, Object<'py>);
/// qkv, inverses, attended, denominators, middle, gate_up.
type TraceTuple<'py> = (Object<'py>, Object<'py>, Object<'py>, Object<'py>, Object<'py>, Object<'py>);

/// A type that a block computes in.
trait Float: Number + CpuElement + Element {}
impl<T: Number + CpuElement + Element> Float for T {}

/// How a block is to be computed.
struct Choice {
    arithmetic: Arithmetic,
    num_threads: usize,
    num_heads: usize,
    map: Option<FeatureMap>,
    causal: bool,
    dropout: Dropout,
}

impl Choice {
    fn new(
        py: Python<'_>,
        (isa, num_threads, precision): (Option<&str>, usize, &str),
        (num_heads, feature_map, causal): (usize, Option<&str>, bool),
        (dropout, key): (f64, u64),
    ) -> PyResult<Self> {
        let checked = || {
            let arithmetic = arithmetic(isa, precision)?;
            let map = feature_map.map(FeatureMap::from_name).transpose()?;
            let dropout = Dropout::new(dropout, key)?;
            let (num_threads, num_heads) = (num_threads.max(1), num_heads.max(1));
            Ok(Choice { arithmetic, num_threads, num_heads, map, causal, dropout })
        };
        checked().map_err(|error| to_python(py, &error))
    }
}

fn arithmetic(isa: Option<&str>, precision: &str) -> Result<Arithmetic> {
    let isa = isa.map_or_else(Isa::from_env, Isa::from_name)?;
    Ok(Arithmetic { isa, precision: Precision::from_name(precision)? })
}

/// The weights of a block as buffers.
struct WeightBuffers<T: Float> {
    attention_norm: PyBuffer<T>,
    qkv: PyBuffer<T>,
    log_temperature: PyBuffer<T>,
    omega: Option<PyBuffer<T>>,
    out: PyBuffer<T>,
    ffn_norm: PyBuffer<T>,
    gate_up: PyBuffer<T>,
    down: PyBuffer<T>,
}

impl<T: Float> WeightBuffers<T> {
    fn new(objects: &WeightTuple<'_>) -> PyResult<Self> {
        let (attention_norm, qkv, log_temperature, omega, out, ffn_norm, gate_up, down) = objects;
        Ok(WeightBuffers {
            attention_norm: buffer("attention_norm", attention_norm)?,
            qkv: buffer("qkv", qkv)?,
            log_temperature: buffer("log_temperature", log_temperature)?,
            omega: optional("omega", omega.as_ref())?,
            out: buffer("out", out)?,
            ffn_norm: buffer("ffn_norm", ffn_norm)?,
            gate_up: buffer("gate_up", gate_up)?,
            down: buffer("down", down)?,
        })
    }

    fn weights(&self, py: Python<'_>) -> PyResult<BlockWeights<'_, T>> {
        Ok(BlockWeights {
            attention_norm: contiguous(py, "attention_norm", &self.attention_norm)?,
            qkv: contiguous(py, "qkv", &self.qkv)?,
            log_temperature: contiguous(py, "log_temperature", &self.log_temperature)?,
            omega: optional_contiguous(py, "omega", self.omega.as_ref())?,
            out: contiguous(py, "out", &self.out)?,
            ffn_norm: contiguous(py, "ffn_norm", &self.ffn_norm)?,
            gate_up: contiguous(py, "gate_up", &self.gate_up)?,
            down: contiguous(py, "down", &self.down)?,
        })
    }
}

/// Sizes that follow from those of the weights; what does not agree is found when they are packed.
fn sizes<T>(weights: &BlockWeights<'_, T>, choice: &Choice) -> (BlockShape, Attention) {
    let model_dim = weights.attention_norm.len();
    let (h, c) = (choice.num_heads, model_dim.max(1));
    let head_dim = weights.qkv.len() / (3 * h * c);
    let shape = BlockShape { model_dim, num_heads: h, head_dim, ffn_dim: weights.down.len() / c };
    let num_features = weights.omega.map_or(0, <[T]>::len) / (h * head_dim).max(1);
    (shape, choice.map.map_or(Attention::Exact, |map| Attention::Favor { map, num_features }))
}

/// Multiply-adds of a forward pass, roughly.
fn work<T>(weights: &BlockWeights<'_, T>, tokens: usize) -> f64 {
    let matrices = weights.qkv.len() + weights.out.len() + weights.gate_up.len() + weights.down.len();
    tokens as f64 * (matrices + 2 * weights.omega.map_or(0, <[T]>::len)) as f64
}

/// Where each token stands: its angles, and the borders of the sequences.
struct Places<T: Float> {
    cosines: PyBuffer<T>,
    sines: PyBuffer<T>,
    cu_seqlens: PyBuffer<i64>,
}

impl<T: Float> Places<T> {
    fn new((cosines, sines, cu_seqlens): &PlaceTuple<'_>) -> PyResult<Self> {
        Ok(Places {
            cosines: buffer("cosines", cosines)?,
            sines: buffer("sines", sines)?,
            cu_seqlens: buffer("cu_seqlens", cu_seqlens)?,
        })
    }

    fn rotary(&self, py: Python<'_>, shape: &BlockShape) -> PyResult<Rotary<'_, T>> {
        let (cosines, sines) = (contiguous(py, "cosines", &self.cosines)?, contiguous(py, "sines", &self.sines)?);
        Rotary::from_tables(cosines, sines, shape.head_dim).map_err(|error| to_python(py, &error))
    }
}

/// What both passes read.
struct Reading<'a, T: Float> {
    weights: BlockWeights<'a, T>,
    shape: BlockShape,
    attention: Attention,
    rotary: Rotary<'a, T>,
    borders: &'a [i64],
}

impl<'a, T: Float> Reading<'a, T> {
    fn new(py: Python<'_>, weights: &'a WeightBuffers<T>, places: &'a Places<T>, choice: &Choice) -> PyResult<Self> {
        let weights = weights.weights(py)?;
        let (shape, attention) = sizes(&weights, choice);
        let (rotary, borders) = (places.rotary(py, &shape)?, contiguous(py, "cu_seqlens", &places.cu_seqlens)?);
        Ok(Reading { weights, shape, attention, rotary, borders })
    }
}

/// Elements per token of each buffer of a trace.
#[pyfunction]
#[pyo3(signature = (model_dim, num_heads, head_dim, ffn_dim))]
fn block_trace_sizes(model_dim: usize, num_heads: usize, head_dim: usize, ffn_dim: usize) -> [usize; 6] {
    BlockShape { model_dim, num_heads, head_dim, ffn_dim }.trace_lens(1)
}

/// Apply a block to output `[N,C]`, which holds the input, in place; fill the trace where there is one.
#[pyfunction]
#[pyo3(signature = (
    output, weights, places, trace, *, num_heads, feature_map, causal, dropout=0.0, key=0,
    precision="f32", isa=None, num_threads=1
))]
#[allow(clippy::too_many_arguments)]
fn block_forward(
    py: Python<'_>,
    output: &Object<'_>,
    weights: WeightTuple<'_>,
    places: PlaceTuple<'_>,
    trace: Option<TraceTuple<'_>>,
    num_heads: usize,
    feature_map: Option<&str>,
    causal: bool,
    dropout: f64,
    key: u64,
    precision: &str,
    isa: Option<&str>,
    num_threads: usize,
) -> PyResult<()> {
    let choice = Choice::new(py, (isa, num_threads, precision), (num_heads, feature_map, causal), (dropout, key))?;
    let forward = if holds::<f64>(output) { forward_as::<f64> } else { forward_as::<f32> };
    guarded(py, || forward(py, output, &weights, &places, trace.as_ref(), &choice))
}

fn forward_as<T: Float>(
    py: Python<'_>,
    output: &Object<'_>,
    weights: &WeightTuple<'_>,
    places: &PlaceTuple<'_>,
    trace: Option<&TraceTuple<'_>>,
    choice: &Choice,
) -> PyResult<()> {
    let (weights, places) = (WeightBuffers::<T>::new(weights)?, Places::<T>::new(places)?);
    let Reading { weights, shape, attention, rotary, borders } = Reading::new(py, &weights, &places, choice)?;
    let output = buffer::<T>("output", output)?;
    let buffers = trace.map(TraceBuffers::<T>::new).transpose()?;
    let kept = buffers.as_ref().map(|buffers| buffers.writable(py)).transpose()?;
    let outputs = Once::new((writable(py, "output", &output)?, kept));
    run(py, work(&weights, rotary.len()), choice.num_threads, |cancel, num_threads| {
        let run = Execution { num_threads, cancel };
        let (output, kept) = outputs.take()?;
        let block = Block::pack(choice.arithmetic, shape, attention, &weights, &run)?;
        match kept {
            Some(mut trace) => {
                block.forward_traced(output, &mut trace, &rotary, (borders, choice.causal), choice.dropout, &run)
            }
            None => block.forward_dropped(output, &rotary, (borders, choice.causal), None, choice.dropout, &run),
        }
    })
}

/// Fill the gradients of the weights, and replace grad `[N,C]`, which arrived at the output, by that of hidden, the
/// input of the forward pass.
#[pyfunction]
#[pyo3(signature = (
    grad, hidden, weights, gradients, places, trace, *, num_heads, feature_map, causal,
    dropout=0.0, key=0, precision="f32", isa=None, num_threads=1
))]
#[allow(clippy::too_many_arguments)]
fn block_backward(
    py: Python<'_>,
    grad: &Object<'_>,
    hidden: &Object<'_>,
    weights: WeightTuple<'_>,
    gradients: GradientTuple<'_>,
    places: PlaceTuple<'_>,
    trace: TraceTuple<'_>,
    num_heads: usize,
    feature_map: Option<&str>,
    causal: bool,
    dropout: f64,
    key: u64,
    precision: &str,
    isa: Option<&str>,
    num_threads: usize,
) -> PyResult<()> {
    let choice = Choice::new(py, (isa, num_threads, precision), (num_heads, feature_map, causal), (dropout, key))?;
    let backward = if holds::<f64>(grad) { backward_as::<f64> } else { backward_as::<f32> };
    guarded(py, || backward(py, [grad, hidden], &weights, &gradients, &places, &trace, &choice))
}

fn backward_as<T: Float>(
    py: Python<'_>,
    [grad, input]: [&Object<'_>; 2],
    weights: &WeightTuple<'_>,
    gradients: &GradientTuple<'_>,
    places: &PlaceTuple<'_>,
    trace: &TraceTuple<'_>,
    choice: &Choice,
) -> PyResult<()> {
    let (weights, places) = (WeightBuffers::<T>::new(weights)?, Places::<T>::new(places)?);
    let Reading { weights, shape, attention, rotary, borders } = Reading::new(py, &weights, &places, choice)?;
    let (input, trace) = (buffer::<T>("input", input)?, TraceBuffers::<T>::new(trace)?);
    let (input, trace) = (contiguous(py, "input", &input)?, trace.readable(py)?);
    let grad = buffer::<T>("grad", grad)?;
    let (attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down) = gradients;
    let of = |name: &'static str, object: &Object<'_>| buffer::<T>(name, object);
    let buffers = [
        of("attention_norm", attention_norm)?,
        of("qkv", qkv)?,
        of("log_temperature", log_temperature)?,
        of("out", out)?,
        of("ffn_norm", ffn_norm)?,
        of("gate_up", gate_up)?,
        of("down", down)?,
    ];
    let [attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down] = &buffers;
    let filled = BlockGradients {
        attention_norm: writable(py, "attention_norm", attention_norm)?,
        qkv: writable(py, "qkv", qkv)?,
        log_temperature: writable(py, "log_temperature", log_temperature)?,
        out: writable(py, "out", out)?,
        ffn_norm: writable(py, "ffn_norm", ffn_norm)?,
        gate_up: writable(py, "gate_up", gate_up)?,
        down: writable(py, "down", down)?,
    };
    let outputs = Once::new((writable(py, "grad", &grad)?, filled));
    run(py, 3.0 * work(&weights, rotary.len()), choice.num_threads, |cancel, num_threads| {
        let run = Execution { num_threads, cancel };
        let (grad, mut gradients) = outputs.take()?;
        let block = BlockBackward::pack(choice.arithmetic, shape, attention, &weights, &run)?;
        let sight = (borders, choice.causal);
        block.run(input, trace, &rotary, sight, choice.dropout, grad, &mut gradients, &run)
    })
}

/// The buffers of a trace.
struct TraceBuffers<T: Float>([PyBuffer<T>; 6]);

const TRACE: [&str; 6] = ["qkv", "inverses", "attended", "denominators", "middle", "gate_up"];

impl<T: Float> TraceBuffers<T> {
    fn new((qkv, inverses, attended, denominators, middle, gate_up): &TraceTuple<'_>) -> PyResult<Self> {
        Ok(TraceBuffers([
            buffer(TRACE[0], qkv)?,
            buffer(TRACE[1], inverses)?,
            buffer(TRACE[2], attended)?,
            buffer(TRACE[3], denominators)?,
            buffer(TRACE[4], middle)?,
            buffer(TRACE[5], gate_up)?,
        ]))
    }

    fn readable(&self, py: Python<'_>) -> PyResult<Trace<'_, T>> {
        let of = |at: usize| contiguous(py, TRACE[at], &self.0[at]);
        Ok(Trace {
            qkv: of(0)?,
            inverses: of(1)?,
            attended: of(2)?,
            denominators: of(3)?,
            middle: of(4)?,
            gate_up: of(5)?,
        })
    }

    fn writable(&self, py: Python<'_>) -> PyResult<TraceMut<'_, T>> {
        let of = |at: usize| writable(py, TRACE[at], &self.0[at]);
        Ok(TraceMut {
            qkv: of(0)?,
            inverses: of(1)?,
            attended: of(2)?,
            denominators: of(3)?,
            middle: of(4)?,
            gate_up: of(5)?,
        })
    }
}

/// `weight * sum of -log p(target)` in nats over some tokens; fills the gradients of hidden, norm and embedding where
/// they are given. hidden `[N,C]`, norm `[C]`, embedding `[V,C]`, positions and targets int64.
#[pyfunction]
#[pyo3(signature = (
    hidden, norm, embedding, positions, targets, weight, gradients, *, precision="f32", isa=None, num_threads=1
))]
#[allow(clippy::too_many_arguments)]
fn head_loss(
    py: Python<'_>,
    hidden: &Object<'_>,
    norm: &Object<'_>,
    embedding: &Object<'_>,
    positions: &Object<'_>,
    targets: &Object<'_>,
    weight: f64,
    gradients: Option<(Object<'_>, Object<'_>, Object<'_>)>,
    precision: &str,
    isa: Option<&str>,
    num_threads: usize,
) -> PyResult<f64> {
    if !weight.is_finite() {
        return Err(raise(py, "ConfigError", format!("weight is {weight}; it must be finite")));
    }
    let arithmetic = arithmetic(isa, precision).map_err(|error| to_python(py, &error))?;
    let loss = if holds::<f64>(hidden) { loss_as::<f64> } else { loss_as::<f32> };
    let run = (arithmetic, num_threads.max(1));
    guarded(py, || loss(py, [hidden, norm, embedding, positions, targets], weight, gradients.as_ref(), run))
}

fn loss_as<T: Float>(
    py: Python<'_>,
    [hidden, norm, embedding, positions, targets]: [&Object<'_>; 5],
    weight: f64,
    gradients: Option<&(Object<'_>, Object<'_>, Object<'_>)>,
    (arithmetic, num_threads): (Arithmetic, usize),
) -> PyResult<f64> {
    let (hidden, norm) = (buffer::<T>("hidden", hidden)?, buffer::<T>("norm", norm)?);
    let embedding = buffer::<T>("embedding", embedding)?;
    let (positions, targets) = (buffer::<i64>("positions", positions)?, buffer::<i64>("targets", targets)?);
    let hidden = contiguous(py, "hidden", &hidden)?;
    let weights =
        HeadWeights { norm: contiguous(py, "norm", &norm)?, embedding: contiguous(py, "embedding", &embedding)? };
    let targets =
        Targets { positions: contiguous(py, "positions", &positions)?, classes: contiguous(py, "targets", &targets)? };
    let buffers = gradients
        .map(|(hidden, norm, embedding)| {
            PyResult::Ok([
                buffer::<T>("grad_hidden", hidden)?,
                buffer::<T>("grad_norm", norm)?,
                buffer::<T>("grad_embedding", embedding)?,
            ])
        })
        .transpose()?;
    let filled = buffers
        .as_ref()
        .map(|[hidden, norm, embedding]| {
            PyResult::Ok(HeadGradients {
                hidden: writable(py, "grad_hidden", hidden)?,
                norm: writable(py, "grad_norm", norm)?,
                embedding: writable(py, "grad_embedding", embedding)?,
            })
        })
        .transpose()?;
    let filled = Once::new(filled);
    let work = 3.0 * targets.positions.len() as f64 * weights.embedding.len() as f64;
    run(py, work, num_threads, |cancel, num_threads| -> Result<f64> {
        let run = Execution { num_threads, cancel };
        token_loss(arithmetic, hidden, weights, targets, weight, filled.take()?, &run)
    })
}
