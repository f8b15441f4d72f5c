//! A network on the device, block after block, and what its layers remember of sequences.

use crate::block::NORM_EPSILON;
use crate::config::Config;
use crate::device::{Layer, Reading};
use crate::fault::Result;
use crate::source::{OwnedBlock, TensorSource};
use crate::weights::Attention;
use protperf_core::alphabet::VOCABULARY_SIZE;
use protperf_core::{Error, Execution, MapArgs, Omega, try_reserved};
use protperf_wgpu::network as ops;
use protperf_wgpu::network::{Activations, Favor, Forward, Heads, Keys, Matrix, Pooling, Sequences};
use protperf_wgpu::{Gpu, GpuError, OnDevice};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The largest buffer that a batch of several sequences makes, in bytes.
const BATCH_BYTES: u64 = 64 << 20;
/// Multiply-adds of a submission, unless one block of one sequence is more. Desktop systems reset a GPU that works on one
/// for two seconds; an integrated GPU that makes 10^11 operations per second needs 0.6 for these.
const SUBMISSION_WORK: f64 = 3e10;

/// A network whose weights lie on the device.
pub struct GpuNetwork {
    pub(super) config: Config,
    /// Which opening of the device they lie on.
    opening: u64,
    /// `[V,C]`.
    embedding: Activations,
    /// `[2,C]`: masked, causal.
    modes: Activations,
    blocks: Vec<Block>,
    /// Gain of the final norm `[C]`.
    norm: Activations,
    /// The embedding once more, for the logits, which are tied to it.
    logits: Matrix,
}

struct Block {
    attention_norm: Activations,
    qkv: Matrix,
    /// Lengths of queries and keys `[H]`: sqrt(temperature) D^1/4.
    lengths: OnDevice,
    /// `None` with exact attention.
    map: Option<Favor>,
    out: Matrix,
    ffn_norm: Activations,
    gate_up: Matrix,
    down: Matrix,
}

/// What every layer remembers of some sequences.
pub struct GpuState {
    num_sequences: usize,
    layers: Vec<Past>,
}

/// What a layer remembers; `None` before the first token.
enum Past {
    Favor(Option<OnDevice>),
    Exact(Option<Keys>),
}

/// Some sequences of a reading.
pub struct Tokens<'a> {
    tokens: &'a [u8],
    /// Which of the sequences they are.
    pub sequences: Range<usize>,
    /// Their tokens among all.
    pub range: Range<usize>,
    /// Each sequence among these tokens.
    pub ranges: Vec<Range<usize>>,
    starts: &'a [u64],
    causal: bool,
}

impl<'a> Tokens<'a> {
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(reading: &Reading<'a>, sequences: Range<usize>) -> Result<Self> {
        let start = reading.borders[sequences.start] as usize;
        let range = start..reading.borders[sequences.end] as usize;
        let mut ranges = try_reserved(sequences.len())?;
        ranges.extend(reading.sequences().skip(sequences.start).take(sequences.len()));
        ranges.iter_mut().for_each(|range: &mut Range<usize>| *range = range.start - start..range.end - start);
        let (tokens, starts) = (&reading.tokens[range.clone()], &reading.starts[sequences.clone()]);
        Ok(Tokens { tokens, sequences, range, ranges, starts, causal: reading.causal })
    }

    fn positions(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().zip(self.starts).flat_map(|(range, &start)| start..start + range.len() as u64)
    }
}

/// What is wanted of some tokens.
pub enum Answer {
    /// Hidden states of all of them.
    Hidden(Layer),
    /// Vectors made of hidden states.
    Pooled(Layer, Vec<(Range<usize>, Pooling)>),
    /// Log-probabilities of predictions: of some tokens or all, of every class or one each.
    LogProbs { rows: Option<Vec<u32>>, targets: Option<Vec<u32>> },
}

impl Answer {
    fn layer(&self) -> Layer {
        match self {
            Answer::Hidden(layer) | Answer::Pooled(layer, _) => *layer,
            Answer::LogProbs { .. } => Layer::Last,
        }
    }
}

impl GpuNetwork {
    /// Carries the weights to the device.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`]; `Device`; `OutOfMemory`; `Interrupted`.
    pub fn prepare(gpu: &Gpu, config: &Config, source: &dyn TensorSource<f32>, run: &Execution<'_>) -> Result<Self> {
        let mut forward = Forward::new(gpu);
        let c = config.shape.model_dim;
        let embedding = source.tensor("embedding.weight")?;
        let mut blocks = try_reserved(config.num_layers)?;
        for layer in 0..config.num_layers {
            if run.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted.into());
            }
            blocks.push(Block::prepare(&mut forward, config, &OwnedBlock::read(source, config, layer)?)?);
            // What is carried over waits in memory of the host until something is submitted.
            forward.submit();
        }
        let network = GpuNetwork {
            config: config.clone(),
            opening: gpu.opening(),
            embedding: forward.rows(&embedding, c)?,
            modes: forward.rows(&source.tensor("mode.weight")?, c)?,
            blocks,
            norm: forward.rows(&source.tensor("norm.weight")?, c)?,
            logits: forward.matrix(&embedding, c, &[VOCABULARY_SIZE])?,
        };
        forward.finish(run.cancel)?;
        Ok(network)
    }

    /// Refuses a device that the weights do not lie on.
    ///
    /// # Errors
    /// [`GpuError::Gone`].
    pub fn check(&self, gpu: &Gpu) -> Result<(), GpuError> {
        gpu.check_opening(self.opening, "the model", "load the model again")
    }

    /// How much of a batch a sequence takes up; batches of several sequences are at most full, by memory and by work.
    pub fn share_of_batch(&self, gpu: &Gpu, len: usize) -> f64 {
        let shape = &self.config.shape;
        let widest = (3 * shape.inner()).max(2 * shape.ffn_dim).max(shape.model_dim) as f64 + 8.0;
        let by_memory = len as f64 * 4.0 * widest / BATCH_BYTES.min(gpu.max_binding()) as f64;
        by_memory.max(self.config.work(len, 0) / SUBMISSION_WORK)
    }

    /// States of sequences of which nothing has been read.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn empty_state(&self, num_sequences: usize) -> Result<GpuState, Error> {
        let mut layers = try_reserved(self.blocks.len())?;
        layers.extend(self.blocks.iter().map(|block| match block.map {
            Some(_) => Past::Favor(None),
            None => Past::Exact(None),
        }));
        Ok(GpuState { num_sequences, layers })
    }

    /// Copies of the states of some sequences.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], and as [`Forward::finish`].
    pub fn select(&self, mut forward: Forward<'_>, state: &GpuState, indices: &[usize]) -> Result<GpuState, GpuError> {
        let shape = &self.config.shape;
        let indices: Vec<u32> = indices.iter().map(|&index| index as u32).collect();
        let mut layers = Vec::new();
        for (block, past) in self.blocks.iter().zip(&state.layers) {
            layers.push(match (past, &block.map) {
                (Past::Favor(Some(states)), Some(map)) => {
                    let count = state.num_sequences;
                    Past::Favor(Some(ops::select_states(&mut forward, states, count, &indices, shape.num_heads, map)?))
                }
                (Past::Exact(Some(keys)), _) => Past::Exact(Some(ops::select_keys(
                    &mut forward,
                    keys,
                    &indices,
                    [shape.num_heads, shape.head_dim],
                )?)),
                (Past::Favor(_), _) => Past::Favor(None),
                (Past::Exact(_), _) => Past::Exact(None),
            });
        }
        forward.finish(&AtomicBool::new(false))?;
        Ok(GpuState { num_sequences: indices.len(), layers })
    }

    /// Reads tokens, from a state on where there is one, and answers.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::TooMany`], and as [`Forward::read_back`].
    pub fn read(
        &self,
        mut forward: Forward<'_>,
        tokens: &Tokens<'_>,
        mut state: Option<&mut GpuState>,
        answer: &Answer,
        cancel: &AtomicBool,
    ) -> Result<Vec<f32>, GpuError> {
        let head_dim = self.config.shape.head_dim;
        let sequences = forward.sequences(tokens.ranges.clone(), tokens.positions(), head_dim, tokens.causal)?;
        let stream = ops::embed(&mut forward, tokens.tokens, &self.embedding, &self.modes, usize::from(tokens.causal))?;
        let all: Vec<u32> = (0..stream.rows as u32).collect();
        let work = tokens.ranges.iter().zip(tokens.starts).map(|(range, &start)| self.config.work(range.len(), start));
        let together = blocks_together(work.sum::<f64>() / self.blocks.len() as f64);
        let mut kept = None;
        for (layer, block) in self.blocks.iter().enumerate() {
            if answer.layer() == Layer::After(layer) {
                kept = Some(ops::some_rows(&mut forward, &stream, &all)?);
                // A state is one of all layers, whichever of them is wanted.
                if state.is_none() {
                    break;
                }
            }
            if layer > 0 && layer % together == 0 {
                forward.submit();
            }
            let past = state.as_deref_mut().map(|state| &mut state.layers[layer]);
            block.run(&mut forward, &self.config, &stream, &sequences, past)?;
        }
        let stream = kept.unwrap_or(stream);
        let hidden = match (answer, answer.layer()) {
            (Answer::LogProbs { rows: Some(rows), .. }, _) => {
                let rows = ops::some_rows(&mut forward, &stream, rows)?;
                ops::norm(&mut forward, &rows, &self.norm, NORM_EPSILON)?
            }
            (_, Layer::Last) => ops::norm(&mut forward, &stream, &self.norm, NORM_EPSILON)?,
            (_, Layer::After(_)) => stream,
        };
        let found = match answer {
            Answer::Hidden(_) => hidden,
            Answer::Pooled(_, pools) => ops::pool(&mut forward, &hidden, pools)?,
            Answer::LogProbs { targets, .. } => {
                let logits = ops::linear(&mut forward, &hidden, &self.logits)?;
                let log_probs = ops::log_softmax(&mut forward, logits, VOCABULARY_SIZE);
                match targets {
                    Some(targets) => ops::picked(&mut forward, &log_probs, targets)?,
                    None => log_probs,
                }
            }
        };
        forward.read_back(&found, cancel)
    }
}

/// How many blocks are one submission, where each is so much work.
fn blocks_together(work: f64) -> usize {
    ((SUBMISSION_WORK / work) as usize).max(1)
}

impl Block {
    fn prepare(forward: &mut Forward<'_>, config: &Config, tensors: &OwnedBlock<f32>) -> Result<Self> {
        let (shape, weights) = (&config.shape, tensors.weights());
        let (c, inner, h, d) = (shape.model_dim, shape.inner(), shape.num_heads, shape.head_dim);
        let length = |log_temperature: &f32| ((0.5 * f64::from(*log_temperature)).exp() * (d as f64).powf(0.25)) as f32;
        let lengths: Vec<f32> = weights.log_temperature.iter().map(length).collect();
        Ok(Block {
            attention_norm: forward.rows(weights.attention_norm, c)?,
            qkv: forward.matrix(weights.qkv, c, &[3 * inner])?,
            lengths: forward.numbers(&lengths)?,
            map: match (config.attention, weights.omega) {
                (Attention::Favor { map, num_features }, Some(omega)) => {
                    let wide: Vec<f64> = omega.iter().map(|&x| x.into()).collect();
                    let omega = Omega { data: &wide, num_heads: Some(h), num_features, head_dim: d };
                    let args = MapArgs::Named { map, omega: Some(omega), kernel_epsilon: map.default_epsilon() };
                    Some(ops::favor_map(forward, &args, d, config.feature_dim())?)
                }
                _ => None,
            },
            out: forward.matrix(weights.out, inner, &[c])?,
            ffn_norm: forward.rows(weights.ffn_norm, c)?,
            gate_up: forward.matrix(weights.gate_up, c, &[shape.ffn_dim, shape.ffn_dim])?,
            down: forward.matrix(weights.down, shape.ffn_dim, &[c])?,
        })
    }

    /// Adds to the residual stream what attention and the feed-forward layer compute from it.
    fn run(
        &self,
        forward: &mut Forward<'_>,
        config: &Config,
        stream: &Activations,
        sequences: &Sequences,
        past: Option<&mut Past>,
    ) -> Result<(), GpuError> {
        let shape = &config.shape;
        let normed = ops::norm(forward, stream, &self.attention_norm, NORM_EPSILON)?;
        let qkv = ops::linear(forward, &normed, &self.qkv)?;
        let heads = Heads { count: shape.num_heads, dim: shape.head_dim, lengths: &self.lengths, sequences };
        let attended = match (&self.map, past) {
            (Some(map), Some(Past::Favor(state))) => ops::favor(forward, &qkv, &heads, map, Some(state))?,
            (Some(map), _) => ops::favor(forward, &qkv, &heads, map, None)?,
            (None, Some(Past::Exact(keys))) => ops::exact(forward, &qkv, &heads, Some(keys))?,
            (None, _) => ops::exact(forward, &qkv, &heads, None)?,
        };
        drop(qkv);
        ops::add_linear(forward, &attended, &self.out, stream);
        let normed = ops::norm(forward, stream, &self.ffn_norm, NORM_EPSILON)?;
        let gate_up = ops::linear(forward, &normed, &self.gate_up)?;
        let gated = ops::gate(forward, &gate_up)?;
        ops::add_linear(forward, &gated, &self.down, stream);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submissions_are_whole_blocks_and_no_more_work_than_a_desktop_waits_for() {
        assert_eq!(blocks_together(0.0), usize::MAX);
        assert_eq!(blocks_together(SUBMISSION_WORK / 12.0), 12);
        assert_eq!(blocks_together(SUBMISSION_WORK / 2.9), 2);
        assert_eq!(blocks_together(SUBMISSION_WORK * 1.5), 1);
    }
}
