//! One block: attention, then a gated feed-forward layer, each on the normed residual stream.
//!
//! The work is cut into tiles of tokens. A tile goes through all that one token needs alone while it lies in cache, so
//! that no intermediate of the size `[N, F]` is formed unless a training keeps it; attention is the one stage that looks
//! across tokens. Row by row the arithmetic does not depend on the tile, so the size of a batch and the number of threads
//! change no bit.
//!
//! ```text
//! forward:   x -> norm -> qkv -> unit, rotate | attend | -> out -> + x = middle -> norm -> gate, up -> down -> + middle
//! backward:  the same stages from right to left, cut at the same two bars
//! ```

mod attend;
mod backward;
mod forward;
mod trace;

use crate::linear::{Groups, Panels};
use crate::weights::{Attention, BlockShape, BlockWeights};
use attend::Attend;
pub use attend::LayerState;
use protperf_core::{Error, Execution, Result, check_len, try_copied, try_reserved};
use protperf_cpu::layout::PAD;
use protperf_cpu::ops::Ops;
use protperf_cpu::{CpuElement, Isa, Workers};
pub use trace::{Trace, TraceMut};

pub use backward::BlockGradients;

/// Tokens of a tile of the forward pass.
const TILE: usize = 128;
/// Added to the mean square of a row before its root: the epsilon of f32, in every type.
const NORM_EPSILON: f64 = f32::EPSILON as f64;

/// A block whose weights are packed for the forward pass.
#[derive(Debug)]
pub struct Block<T: CpuElement> {
    ops: &'static Ops<T>,
    shape: BlockShape,
    attend: Attend,
    attention_norm: Vec<T>,
    ffn_norm: Vec<T>,
    /// Lengths of the queries and of the keys of each head: the root of its temperature, times D^1/4 that attention
    /// divides by.
    lengths: Vec<T>,
    qkv: Panels<T>,
    out: Panels<T>,
    gate_up: Panels<T>,
    down: Panels<T>,
}

impl<T: CpuElement> Block<T> {
    /// Packs the weights of a block.
    ///
    /// # Errors
    /// `ShapeMismatch` naming a tensor of another size than its shape; `OutOfMemory`; `Interrupted`.
    pub fn pack(
        isa: Isa,
        shape: BlockShape,
        attention: Attention,
        weights: &BlockWeights<'_, T>,
        run: &Execution<'_>,
    ) -> Result<Self> {
        check_weights(&shape, attention, weights)?;
        let ops = Ops::of(isa);
        let BlockShape { model_dim, ffn_dim, .. } = shape;
        let matrices = [
            (weights.qkv, model_dim, Groups::one(3 * shape.inner())),
            (weights.out, shape.inner(), Groups::one(model_dim)),
            (weights.gate_up, model_dim, Groups { size: ffn_dim, count: 2 }),
            (weights.down, ffn_dim, Groups::one(model_dim)),
        ];
        let mut packed = try_reserved(matrices.len())?;
        let pack = |at: usize| {
            let (w, depth, groups) = matrices[at];
            Panels::of_columns(ops, w, depth, groups)
        };
        Workers::new(run).fold(matrices.len(), pack, |_, panels| {
            packed.push(panels);
            Ok(())
        })?;
        let Ok([qkv, out, gate_up, down]) = <[Panels<T>; 4]>::try_from(packed) else { return Err(Error::Interrupted) };
        let mut lengths = try_reserved(shape.num_heads)?;
        let unscaled = (shape.head_dim as f64).powf(0.25);
        lengths.extend(weights.log_temperature.iter().map(|log| T::from_f64((0.5 * log.to_f64()).exp() * unscaled)));
        Ok(Block {
            ops,
            shape,
            attend: Attend::new(isa, &shape, attention, weights.omega)?,
            attention_norm: try_copied(weights.attention_norm)?,
            ffn_norm: try_copied(weights.ffn_norm)?,
            lengths,
            qkv,
            out,
            gate_up,
            down,
        })
    }

    /// The widths.
    pub fn shape(&self) -> &BlockShape {
        &self.shape
    }

    fn norm_epsilon() -> T {
        T::from_f64(NORM_EPSILON)
    }
}

/// Distance between the rows of a tile: the width, padded, and never a multiple of 128 bytes, so that a column of a tile
/// lies in many sets of the cache.
fn stride(width: usize) -> usize {
    let padded = width.next_multiple_of(PAD);
    if (padded / PAD).is_multiple_of(2) { padded + PAD } else { padded }
}

/// Copies rows into a tile and follows them with zeros up to the padding.
fn copy_rows<T: CpuElement>(from: &[T], width: usize, to: &mut [T], to_row: usize) {
    for (from, to) in from.chunks_exact(width).zip(to.chunks_exact_mut(to_row)) {
        to[..width].copy_from_slice(from);
        to[width..width.next_multiple_of(PAD)].fill(T::ZERO);
    }
}

fn check_weights<T>(shape: &BlockShape, attention: Attention, weights: &BlockWeights<'_, T>) -> Result<()> {
    let BlockShape { model_dim: c, num_heads: h, head_dim: d, ffn_dim: f } = *shape;
    if [c, h, d, f].contains(&0) || d % 2 != 0 {
        return Err(Error::shape("head_dim", format!("is {d}; widths must be at least 1, and it must be even")));
    }
    let omega = match attention {
        Attention::Favor { num_features, .. } => h * num_features * d,
        Attention::Exact => 0,
    };
    let sizes = [
        ("attention_norm", weights.attention_norm.len(), c),
        ("qkv", weights.qkv.len(), 3 * h * d * c),
        ("log_temperature", weights.log_temperature.len(), h),
        ("omega", weights.omega.map_or(0, <[T]>::len), omega),
        ("out", weights.out.len(), c * h * d),
        ("ffn_norm", weights.ffn_norm.len(), c),
        ("gate_up", weights.gate_up.len(), 2 * f * c),
        ("down", weights.down.len(), c * f),
    ];
    sizes.into_iter().try_for_each(|(name, found, needed)| check_len(name, found, needed))
}
