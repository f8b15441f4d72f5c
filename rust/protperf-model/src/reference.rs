//! The network written plainly in f64, one sequence and one token after another: the judge of the fast one.
//!
//! ```text
//! x = embedding[token] + mode[mode]
//! for each block:
//!     q, k, v = qkv . norm(x);   q, k = rotate(unit(q, k) sqrt(temperature) D^1/4)
//!     x += out . attention(q, k, v)
//!     x += down . (silu(gate . norm(x)) * up . norm(x))
//! log p = log softmax(embedding . norm(x))
//! ```
//!
//! Linear attention is the reference of protperf-core; all else is written here, and nothing of the fast form is used but
//! the pooling of hidden states, which is plain f64 there, too: a test writes its formulas out.

use crate::config::Config;
use crate::device::{Device, Layer, Reading, Wanted};
use crate::fault::Result;
use crate::source::{OwnedBlock, TensorSource};
use crate::weights::{Attention, BlockShape};
use protperf_core::alphabet::VOCABULARY_SIZE;
use protperf_core::backend::Outputs;
use protperf_core::reference::Reference;
use protperf_core::{Backend, Error, Execution, FavorArgs, FeatureMap, MapArgs, Omega, TensorRef};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// The epsilon of a norm, that of float32 in every type.
const NORM_EPSILON: f64 = f32::EPSILON as f64;
/// The least length of a query or key, as torch's `normalize` has it.
const LEAST_LENGTH: f64 = 1e-12;

/// The plain device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

/// A network as its tensors are.
pub struct PlainNetwork {
    config: Config,
    embedding: Vec<f64>,
    mode: Vec<f64>,
    norm: Vec<f64>,
    blocks: Vec<OwnedBlock<f64>>,
}

/// States by sequence and layer.
#[derive(Clone, Debug)]
pub struct PlainState(Vec<Vec<Past>>);

/// What a layer remembers of one sequence.
#[derive(Clone, Debug)]
enum Past {
    /// `[H,F,2+D]`; `None` before the first token.
    Favor(Option<Vec<f64>>),
    /// Keys and values of each token, `[H,D]` each.
    Exact { keys: Vec<Vec<f64>>, values: Vec<Vec<f64>> },
}

impl Device<f64> for Plain {
    type Network = PlainNetwork;
    type State = PlainState;

    fn prepare(&self, config: &Config, source: &dyn TensorSource<f64>, _: &Execution<'_>) -> Result<PlainNetwork> {
        let blocks = (0..config.num_layers).map(|layer| OwnedBlock::read(source, config, layer));
        Ok(PlainNetwork {
            config: config.clone(),
            embedding: source.tensor("embedding.weight")?,
            mode: source.tensor("mode.weight")?,
            norm: source.tensor("norm.weight")?,
            blocks: blocks.collect::<Result<_>>()?,
        })
    }

    fn empty_state(&self, network: &PlainNetwork, num_sequences: usize) -> Result<PlainState> {
        let past = match network.config.attention {
            Attention::Favor { .. } => Past::Favor(None),
            Attention::Exact => Past::Exact { keys: Vec::new(), values: Vec::new() },
        };
        Ok(PlainState(vec![vec![past; network.config.num_layers]; num_sequences]))
    }

    fn select(&self, _: &PlainNetwork, state: &PlainState, indices: &[usize]) -> Result<PlainState> {
        Ok(PlainState(indices.iter().map(|&index| state.0[index].clone()).collect()))
    }

    fn read(
        &self,
        network: &PlainNetwork,
        reading: &Reading<'_>,
        wanted: Wanted<'_, f64>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let mut state = self.empty_state(network, reading.starts.len())?;
        self.advance(network, &mut state, reading, wanted, run)
    }

    fn advance(
        &self,
        network: &PlainNetwork,
        state: &mut PlainState,
        reading: &Reading<'_>,
        wanted: Wanted<'_, f64>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let mut streams = vec![Vec::new(); network.blocks.len() + 1];
        for (sequence, range) in reading.sequences().enumerate() {
            let mut rows = network.embed(&reading.tokens[range], reading.causal);
            streams[0].extend(rows.clone());
            for (layer, block) in network.blocks.iter().enumerate() {
                let past = &mut state.0[sequence][layer];
                let place = Place { start: reading.starts[sequence], causal: reading.causal };
                run_block(&network.config, block, &mut rows, place, past, run)?;
                streams[layer + 1].extend(rows.clone());
            }
        }
        let rows = match wanted.layer() {
            Layer::After(num_blocks) => streams.swap_remove(num_blocks),
            Layer::Last => streams.pop().iter().flatten().map(|row| norm(row, &network.norm)).collect(),
        };
        match wanted {
            Wanted::Hidden { out, .. } => out.copy_from_slice(&rows.concat()),
            Wanted::Pooled { pools, out, .. } => {
                let hidden = rows.concat();
                for (pool, out) in pools.iter().zip(out.chunks_exact_mut(network.config.shape.model_dim)) {
                    pool.fill(&hidden, reading.borders, out)?;
                }
            }
            Wanted::LogProbs { rows: places, targets, out } => {
                let places: Vec<usize> = match places {
                    Some(places) => places.iter().map(|&place| place as usize).collect(),
                    None => (0..rows.len()).collect(),
                };
                let width = if targets.is_some() { 1 } else { VOCABULARY_SIZE };
                for (at, (place, out)) in places.into_iter().zip(out.chunks_exact_mut(width)).enumerate() {
                    let found = network.log_probs(&rows[place]);
                    match targets {
                        Some(targets) => out[0] = found[usize::from(targets[at])],
                        None => out.copy_from_slice(&found),
                    }
                }
            }
        }
        Ok(())
    }
}

impl PlainNetwork {
    fn embed(&self, tokens: &[u8], causal: bool) -> Vec<Vec<f64>> {
        let c = self.config.shape.model_dim;
        let mode = &self.mode[usize::from(causal) * c..][..c];
        let row = |&token: &u8| {
            let row = &self.embedding[usize::from(token) * c..][..c];
            row.iter().zip(mode).map(|(x, y)| x + y).collect()
        };
        tokens.iter().map(row).collect()
    }

    /// Of one normalized row.
    fn log_probs(&self, row: &[f64]) -> Vec<f64> {
        let logits = product(&self.embedding, row);
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
        logits.iter().map(|x| x - largest - total.ln()).collect()
    }
}

/// Where a sequence goes on, and what its tokens see.
#[derive(Clone, Copy)]
struct Place {
    start: u64,
    causal: bool,
}

fn run_block(
    config: &Config,
    block: &OwnedBlock<f64>,
    rows: &mut [Vec<f64>],
    place: Place,
    past: &mut Past,
    run: &Execution<'_>,
) -> Result<()> {
    let (weights, shape) = (block.weights(), config.shape);
    let inner = shape.inner();
    let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (position, row) in (place.start..).zip(rows.iter()) {
        let qkv = product(weights.qkv, &norm(row, weights.attention_norm));
        queries.push(unit(&qkv[..inner], weights.log_temperature, &shape, position));
        keys.push(unit(&qkv[inner..2 * inner], weights.log_temperature, &shape, position));
        values.push(qkv[2 * inner..].to_vec());
    }
    let attended = match (past, config.attention, weights.omega) {
        (Past::Favor(state), Attention::Favor { map, num_features }, Some(omega)) => {
            let omega = Omega { data: omega, num_heads: Some(shape.num_heads), num_features, head_dim: shape.head_dim };
            favor(&shape, (map, omega), [&queries, &keys, &values], place, state, run)?
        }
        (Past::Exact { keys: all_keys, values: all_values }, ..) => {
            let before = all_keys.len();
            all_keys.extend(keys);
            all_values.extend(values);
            exact(&shape, &queries, [all_keys, all_values], place.causal.then_some(before), run)?
        }
        _ => return Err(Error::InvalidOption { argument: "state", detail: "is of another network".into() }.into()),
    };
    for (row, attended) in rows.iter_mut().zip(attended) {
        add(row, &product(weights.out, &attended));
        let gate_up = product(weights.gate_up, &norm(row, weights.ffn_norm));
        let (gate, up) = gate_up.split_at(shape.ffn_dim);
        let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        add(row, &product(weights.down, &gated));
    }
    Ok(())
}

/// `W x` for the rows of W.
fn product(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn add(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to += x);
}

fn norm(row: &[f64], scales: &[f64]) -> Vec<f64> {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    row.iter().zip(scales).map(|(x, w)| x / (mean + NORM_EPSILON).sqrt() * w).collect()
}

/// Heads `[H,D]` of one token with length `sqrt(temperature) D^1/4`, rotated to its position.
fn unit(heads: &[f64], log_temperature: &[f64], shape: &BlockShape, position: u64) -> Vec<f64> {
    let d = shape.head_dim;
    let mut rotated = Vec::new();
    for (head, log_temperature) in heads.chunks_exact(d).zip(log_temperature) {
        let length = head.iter().map(|x| x * x).sum::<f64>().sqrt().max(LEAST_LENGTH);
        let scale = (0.5 * log_temperature).exp() * (d as f64).powf(0.25) / length;
        let angle = |pair: usize| position as f64 * 10000f64.powf(-(2.0 * pair as f64) / d as f64);
        let rotated_at = |at: usize| {
            let pair = at % (d / 2);
            let (first, second, (sine, cosine)) = (head[pair], head[pair + d / 2], angle(pair).sin_cos());
            if at < d / 2 { first * cosine - second * sine } else { first * sine + second * cosine }
        };
        rotated.extend((0..d).map(|at| rotated_at(at) * scale));
    }
    rotated
}

/// Linear attention of new tokens `[L][H,D]` by the reference of the core.
fn favor(
    shape: &BlockShape,
    (map, omega): (FeatureMap, Omega<'_>),
    inputs: [&[Vec<f64>]; 3],
    place: Place,
    state: &mut Option<Vec<f64>>,
    run: &Execution<'_>,
) -> Result<Vec<Vec<f64>>> {
    let (h, d, len) = (shape.num_heads, shape.head_dim, inputs[0].len());
    // [L][H,D] as [1,H,L,D]: by strides.
    let [q, k, v] = inputs.map(|rows| rows.concat());
    let strides = [0, d as isize, (h * d) as isize, 1];
    let view = |name, data| TensorRef::new(name, data, 0, [1, h, len, d], strides);
    let args = FavorArgs {
        q: view("q", &q)?,
        k: view("k", &k)?,
        v: view("v", &v)?,
        map: MapArgs::Named { map, omega: Some(omega), kernel_epsilon: map.default_epsilon() },
        causal: place.causal,
        cu_seqlens: None,
        key_padding_mask: None,
    };
    let mut after = vec![0.0; args.validate()?.state().iter().product()];
    let (mut out, mut den) = (vec![0.0; h * len * d], vec![0.0; h * len * 2]);
    let outputs = Outputs { state_in: state.as_deref(), out: &mut out, den: &mut den, state_out: Some(&mut after) };
    Reference.forward(&args, outputs, run)?;
    *state = Some(after);
    let row = |at: usize| (0..h).flat_map(|head| out[(head * len + at) * d..][..d].to_vec()).collect();
    Ok((0..len).map(row).collect())
}

/// Softmax attention of new tokens; causal where the number of tokens before them is given.
fn exact(
    shape: &BlockShape,
    queries: &[Vec<f64>],
    [keys, values]: [&[Vec<f64>]; 2],
    before: Option<usize>,
    run: &Execution<'_>,
) -> Result<Vec<Vec<f64>>> {
    let d = shape.head_dim;
    let mut attended = Vec::new();
    for (at, query) in queries.iter().enumerate() {
        if run.cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted.into());
        }
        let seen = before.map_or(keys.len(), |before| before + at + 1);
        let mut row = Vec::new();
        for head in (0..shape.num_heads).map(|head| head * d..(head + 1) * d) {
            row.extend(one_head(&query[head.clone()], &keys[..seen], &values[..seen], head));
        }
        attended.push(row);
    }
    Ok(attended)
}

fn one_head(query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>], head: Range<usize>) -> Vec<f64> {
    let dot = |key: &Vec<f64>| query.iter().zip(&key[head.clone()]).map(|(x, y)| x * y).sum::<f64>();
    let logits: Vec<f64> = keys.iter().map(|key| dot(key) / (query.len() as f64).sqrt()).collect();
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut total) = (vec![0.0; query.len()], 0.0);
    for (logit, value) in logits.iter().zip(values) {
        let weight = (logit - largest).exp();
        total += weight;
        sum.iter_mut().zip(&value[head.clone()]).for_each(|(to, x)| *to += weight * x);
    }
    sum.iter().map(|x| x / total).collect()
}
