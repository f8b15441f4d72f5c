//! What both passes of a block share: its weights in panels, its norms, and how tiles lie in memory.

use super::attend::Attend;
use crate::linear::{Groups, Panels};
use crate::products::{Arithmetic, Products};
use crate::weights::{Attention, BlockShape, BlockWeights};
use protperf_core::{Error, Execution, Result, check_len, try_copied, try_reserved};
use protperf_cpu::layout::PAD;
use protperf_cpu::ops::Ops;
use protperf_cpu::{CpuElement, Workers};

/// Added to the mean square of a row before its root: the epsilon of f32, in every type.
pub(crate) const NORM_EPSILON: f64 = f32::EPSILON as f64;

/// What both passes of a block need.
#[derive(Debug)]
pub(super) struct Frame<T: CpuElement> {
    pub(super) ops: &'static Ops<T>,
    pub(super) products: Products<T>,
    pub(super) shape: BlockShape,
    pub(super) attend: Attend<T>,
    pub(super) attention_norm: Vec<T>,
    pub(super) ffn_norm: Vec<T>,
    /// Lengths of the queries and of the keys of each head: the root of its temperature, times D^1/4 that attention
    /// divides by.
    pub(super) lengths: Vec<T>,
}

/// The matrices of a block, each in panels.
#[derive(Debug)]
pub(super) struct Matrices<T: CpuElement> {
    pub(super) qkv: Panels<T>,
    pub(super) out: Panels<T>,
    pub(super) gate_up: Panels<T>,
    pub(super) down: Panels<T>,
}

impl<T: CpuElement> Matrices<T> {
    /// Packs each matrix by `pack`, which is given its rows, in groups, and its width.
    pub(super) fn pack(
        shape: &BlockShape,
        weights: &BlockWeights<'_, T>,
        run: &Execution<'_>,
        pack: impl Fn(&[T], Groups, usize) -> Result<Panels<T>> + Sync,
    ) -> Result<Self> {
        let BlockShape { model_dim, ffn_dim, .. } = *shape;
        let all = [
            (weights.qkv, Groups::one(3 * shape.inner()), model_dim),
            (weights.out, Groups::one(model_dim), shape.inner()),
            (weights.gate_up, Groups { size: ffn_dim, count: 2 }, model_dim),
            (weights.down, Groups::one(model_dim), ffn_dim),
        ];
        let mut packed = try_reserved(all.len())?;
        let pack = |at: usize| {
            let (w, rows, width) = all[at];
            pack(w, rows, width)
        };
        Workers::new(run).fold(all.len(), pack, |_, panels| {
            packed.push(panels);
            Ok(())
        })?;
        let Ok([qkv, out, gate_up, down]) = <[Panels<T>; 4]>::try_from(packed) else { return Err(Error::Interrupted) };
        Ok(Matrices { qkv, out, gate_up, down })
    }
}

impl<T: CpuElement> Frame<T> {
    pub(super) fn new(
        arithmetic: Arithmetic,
        shape: BlockShape,
        attention: Attention,
        weights: &BlockWeights<'_, T>,
    ) -> Result<Self> {
        check_weights(&shape, attention, weights)?;
        let mut lengths = try_reserved(shape.num_heads)?;
        let unscaled = (shape.head_dim as f64).powf(0.25);
        lengths.extend(weights.log_temperature.iter().map(|log| T::from_f64((0.5 * log.to_f64()).exp() * unscaled)));
        let products = Products::new(arithmetic)?;
        Ok(Frame {
            ops: products.ops,
            products,
            shape,
            attend: Attend::new(arithmetic.cpu(), &shape, attention, weights.omega)?,
            attention_norm: try_copied(weights.attention_norm)?,
            ffn_norm: try_copied(weights.ffn_norm)?,
            lengths,
        })
    }

    /// Norms of some rows `[rows,C]` into a tile; `each` is called with the place of a row and 1 / rms.
    pub(super) fn normalize(&self, rows: &[T], gain: &[T], normed: &mut [T], mut each: impl FnMut(usize, T)) {
        let c = self.shape.model_dim;
        for (at, (row, normed)) in rows.chunks_exact(c).zip(normed.chunks_exact_mut(stride(c))).enumerate() {
            each(at, self.ops.rms_norm(row, gain, T::from_f64(NORM_EPSILON), normed));
        }
    }
}

/// Distance between the rows of a tile: the width, padded, and never a multiple of 128 bytes, so that a column of a tile
/// lies in many sets of the cache.
pub(super) fn stride(width: usize) -> usize {
    let padded = width.next_multiple_of(PAD);
    if (padded / PAD).is_multiple_of(2) { padded + PAD } else { padded }
}

/// Copies rows into a tile and follows them with zeros up to the padding.
pub(super) fn copy_rows<T: CpuElement>(from: &[T], width: usize, to: &mut [T], to_row: usize) {
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
