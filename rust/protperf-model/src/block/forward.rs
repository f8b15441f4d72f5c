//! The forward pass of a block.

use super::attend::{Heads, Scope};
use super::frame::{Frame, Matrices, stride};
use super::state::LayerState;
use super::trace::TraceMut;
use crate::buffer::Buffer;
use crate::dropout::{Dropout, Site};
use crate::linear::Panels;
use crate::products::Arithmetic;
use crate::rotary::Rotary;
use crate::tiles::Tiles;
use crate::weights::{Attention, BlockShape, BlockWeights};
use protperf_core::{Execution, Result, check_len};
use protperf_cpu::{CpuElement, Workers};

/// Tokens of a tile of the forward pass.
const TILE: usize = 128;
/// A block whose weights are packed for the forward pass.
#[derive(Debug)]
pub struct Block<T: CpuElement> {
    frame: Frame<T>,
    matrices: Matrices<T>,
}

/// Where the feed-forward stage leaves what the backward pass needs.
struct Kept<'a, T> {
    middle: &'a mut [T],
    gate_up: &'a mut [T],
}

impl<T: CpuElement> Block<T> {
    /// Packs the weights of a block.
    ///
    /// # Errors
    /// `ShapeMismatch` naming a tensor of another size than its shape; `OutOfMemory`; `Interrupted`.
    pub fn pack(
        arithmetic: impl Into<Arithmetic>,
        shape: BlockShape,
        attention: Attention,
        weights: &BlockWeights<'_, T>,
        run: &Execution<'_>,
    ) -> Result<Self> {
        let frame = Frame::new(arithmetic.into(), shape, attention, weights)?;
        let pack = |w: &[T], rows, depth| Panels::of_columns(&frame.products, w, depth, rows);
        let matrices = Matrices::pack(&shape, weights, run, pack)?;
        Ok(Block { frame, matrices })
    }

    /// The widths.
    pub fn shape(&self) -> &BlockShape {
        &self.frame.shape
    }

    /// Applies the block to the residual stream of some tokens, in place.
    ///
    /// # Shapes
    /// hidden `[N,C]`; `rotary` has N rows; `order` are the borders of the sequences, from 0 to N, and whether tokens see
    /// only those before them.
    ///
    /// With a state the sequences continue, left to right, and the state is updated.
    ///
    /// # Errors
    /// `ShapeMismatch`, `InvalidOption`, `OutOfMemory`, `Interrupted`.
    pub fn forward(
        &self,
        hidden: &mut [T],
        rotary: &Rotary<'_, T>,
        order: (&[i64], bool),
        state: Option<&mut LayerState<T>>,
        run: &Execution<'_>,
    ) -> Result<()> {
        self.forward_dropped(hidden, rotary, order, state, Dropout::NONE, run)
    }

    /// The same with dropout, and without a trace: a training's pass that no backward pass follows.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn forward_dropped(
        &self,
        hidden: &mut [T],
        rotary: &Rotary<'_, T>,
        order: (&[i64], bool),
        state: Option<&mut LayerState<T>>,
        dropout: Dropout,
        run: &Execution<'_>,
    ) -> Result<()> {
        let attended = self.attend(hidden, rotary, order, state, run)?;
        self.feed_forward(hidden, &attended, None, dropout, run)
    }

    /// The residual stream after the block of some tokens alone, `[rows,C]`, with the bits of [`Block::forward`]: what is
    /// wanted of a last block whose other tokens are only seen by these.
    ///
    /// # Errors
    /// As [`Block::forward`].
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward_rows(
        &self,
        hidden: &[T],
        rotary: &Rotary<'_, T>,
        order: (&[i64], bool),
        state: Option<&mut LayerState<T>>,
        rows: &[i64],
        run: &Execution<'_>,
    ) -> Result<Buffer<T>> {
        let attended = self.attend(hidden, rotary, order, state, run)?;
        let mut of_rows = gather(hidden, self.frame.shape.model_dim, rows)?;
        let attended = gather(&attended, self.frame.shape.inner(), rows)?;
        self.feed_forward(&mut of_rows, &attended, None, Dropout::NONE, run)?;
        Ok(of_rows)
    }

    /// What the heads read, `[N,HD]`.
    fn attend(
        &self,
        hidden: &[T],
        rotary: &Rotary<'_, T>,
        (borders, causal): (&[i64], bool),
        state: Option<&mut LayerState<T>>,
        run: &Execution<'_>,
    ) -> Result<Buffer<T>> {
        let tokens = rotary.len();
        check_len("hidden", hidden.len(), tokens * self.frame.shape.model_dim)?;
        let [qkv, inverses, attended, ..] = self.frame.shape.trace_lens(tokens);
        let (mut qkv, mut inverses, mut attended) = (Buffer::new(qkv)?, Buffer::new(inverses)?, Buffer::new(attended)?);
        self.project(hidden, rotary, &mut qkv, &mut inverses, run)?;
        let scope = Scope { borders, causal, run };
        let heads = Heads { shape: &self.frame.shape, qkv: &qkv };
        self.frame.attend.forward(&heads, &scope, state, &mut attended, None)?;
        Ok(attended)
    }

    /// The same for a training: `output` starts as the input, and the trace is kept for the backward pass.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn forward_traced(
        &self,
        output: &mut [T],
        trace: &mut TraceMut<'_, T>,
        rotary: &Rotary<'_, T>,
        (borders, causal): (&[i64], bool),
        dropout: Dropout,
        run: &Execution<'_>,
    ) -> Result<()> {
        let tokens = rotary.len();
        check_len("output", output.len(), tokens * self.frame.shape.model_dim)?;
        trace.view().check(&self.frame.shape, tokens)?;
        let TraceMut { qkv, inverses, attended, denominators, middle, gate_up } = trace;
        self.project(output, rotary, qkv, inverses, run)?;
        let scope = Scope { borders, causal, run };
        let heads = Heads { shape: &self.frame.shape, qkv };
        self.frame.attend.forward(&heads, &scope, None, attended, Some(denominators))?;
        self.feed_forward(output, attended, Some(Kept { middle, gate_up }), dropout, run)
    }

    /// Norm, queries, keys and values; queries and keys of unit length times the head's own, rotated.
    fn project(
        &self,
        hidden: &[T],
        rotary: &Rotary<'_, T>,
        qkv: &mut [T],
        inverses: &mut [T],
        run: &Execution<'_>,
    ) -> Result<()> {
        let (c, inner, heads) = (self.frame.shape.model_dim, self.frame.shape.inner(), self.frame.shape.num_heads);
        let (row, normed_row) = (self.frame.shape.qkv_row(), stride(c));
        let (qkv, inverses) = (Tiles::new(qkv, row, TILE)?, Tiles::new(inverses, 2 * heads, TILE)?);
        Workers::new(run).run(rotary.len().div_ceil(TILE), |tile| {
            let (mut qkv, mut inverses) = (qkv.take(tile), inverses.take(tile));
            let rows = qkv.len() / row;
            let mut normed = Buffer::new(rows * normed_row)?;
            let hidden = &hidden[tile * TILE * c..][..rows * c];
            self.frame.normalize(hidden, &self.frame.attention_norm, &mut normed, |_, _| ());
            self.matrices.qkv.multiply(&self.frame.products, (&normed, normed_row), rows, (&mut qkv, row))?;
            for (at, (qkv, inverses)) in qkv.chunks_exact_mut(row).zip(inverses.chunks_exact_mut(2 * heads)).enumerate()
            {
                let (cosines, sines) = rotary.row(tile * TILE + at);
                let sides = qkv[..2 * inner].chunks_exact_mut(inner).zip(inverses.chunks_exact_mut(heads));
                for (side, inverses) in sides {
                    self.frame.ops.unit_rotate(side, &self.frame.lengths, cosines, sines, inverses);
                }
            }
            Ok(())
        })
    }

    /// The output layer of attention and the feed-forward layer, each added to the residual stream.
    fn feed_forward(
        &self,
        hidden: &mut [T],
        attended: &[T],
        kept: Option<Kept<'_, T>>,
        dropout: Dropout,
        run: &Execution<'_>,
    ) -> Result<()> {
        let (c, tokens) = (self.frame.shape.model_dim, hidden.len() / self.frame.shape.model_dim);
        let hidden = Tiles::new(hidden, c, TILE)?;
        let gate_up_row = self.frame.shape.gate_up_row();
        let (middle, gate_up) = match kept {
            Some(kept) => (Tiles::new(kept.middle, c, TILE)?, Tiles::new(kept.gate_up, gate_up_row, TILE)?),
            None => (Tiles::new(&mut [], 1, 1)?, Tiles::new(&mut [], 1, 1)?),
        };
        Workers::new(run).run(tokens.div_ceil(TILE), |tile| {
            let mut hidden = hidden.take(tile);
            self.add_attention(&mut hidden, attended, tile * TILE, dropout)?;
            if !middle.is_empty() {
                middle.take(tile).copy_from_slice(&hidden);
                self.add_gated(&mut hidden, &mut gate_up.take(tile), tile * TILE, dropout)
            } else {
                let mut gate_up = Buffer::new(hidden.len() / c * gate_up_row)?;
                self.add_gated(&mut hidden, &mut gate_up, tile * TILE, dropout)
            }
        })
    }

    /// `hidden += dropout(attended w^T)` for the tokens of a tile, of which `first` is the first.
    fn add_attention(&self, hidden: &mut [T], attended: &[T], first: usize, dropout: Dropout) -> Result<()> {
        let (c, inner, rows) =
            (self.frame.shape.model_dim, self.frame.shape.inner(), hidden.len() / self.frame.shape.model_dim);
        let added_row = self.matrices.out.cols();
        let mut added = Buffer::new(rows * added_row)?;
        let heads = &attended[first * inner..][..rows * inner];
        self.matrices.out.multiply(&self.frame.products, (heads, inner), rows, (&mut added, added_row))?;
        self.add_dropped(&mut added, added_row, hidden, (Site::Attention, first), dropout, c);
        Ok(())
    }

    /// `hidden += dropout((silu(gate) up) w^T)` for the tokens of a tile.
    fn add_gated(&self, hidden: &mut [T], gate_up: &mut [T], first: usize, dropout: Dropout) -> Result<()> {
        let (c, rows) = (self.frame.shape.model_dim, hidden.len() / self.frame.shape.model_dim);
        let gate_up_row = self.frame.shape.gate_up_row();
        let (normed_row, value_row, added_row) =
            (stride(c), stride(self.frame.shape.ffn_dim), self.matrices.down.cols());
        let (mut normed, mut values) = (Buffer::new(rows * normed_row)?, Buffer::new(rows * value_row)?);
        self.frame.normalize(hidden, &self.frame.ffn_norm, &mut normed, |_, _| ());
        let products = &self.frame.products;
        self.matrices.gate_up.multiply(products, (&normed, normed_row), rows, (&mut *gate_up, gate_up_row))?;
        for (gate_up, value) in gate_up.chunks_exact(gate_up_row).zip(values.chunks_exact_mut(value_row)) {
            let (gate, up) = gate_up.split_at(gate_up_row / 2);
            self.frame.ops.gate(gate, up, &mut value[..gate.len()]);
        }
        let mut added = Buffer::new(rows * added_row)?;
        self.matrices.down.multiply(products, (&values, value_row), rows, (&mut added, added_row))?;
        self.add_dropped(&mut added, added_row, hidden, (Site::FeedForward, first), dropout, c);
        Ok(())
    }

    fn add_dropped(
        &self,
        added: &mut [T],
        added_row: usize,
        hidden: &mut [T],
        (site, first): (Site, usize),
        dropout: Dropout,
        c: usize,
    ) {
        for (at, (added, hidden)) in added.chunks_exact_mut(added_row).zip(hidden.chunks_exact_mut(c)).enumerate() {
            dropout.apply(self.frame.ops, site, first + at, &mut added[..c]);
            self.frame.ops.add(&added[..c], hidden);
        }
    }
}

/// Copies of some rows of `width` elements.
fn gather<T: CpuElement>(from: &[T], width: usize, rows: &[i64]) -> Result<Buffer<T>> {
    let mut gathered = Buffer::new(rows.len() * width)?;
    for (&row, to) in rows.iter().zip(gathered.chunks_exact_mut(width)) {
        to.copy_from_slice(&from[row as usize * width..][..width]);
    }
    Ok(gathered)
}
