//! The backward pass of a block: the stages of the forward pass from right to left.
//!
//! Norms and the activation are computed again from what the trace holds: that costs less than reading them would. Each
//! task sums the gradients of the weights over its own tokens; the sums are added up in the order of the tasks, whichever
//! thread is done first.

use super::attend::{Heads, Scope};
use super::frame::{Frame, Matrices, copy_rows, stride};
use super::trace::Trace;
use crate::buffer::Buffer;
use crate::dropout::{Dropout, Site};
use crate::linear::{Panels, outer};
use crate::products::Arithmetic;
use crate::rotary::Rotary;
use crate::tiles::Tiles;
use crate::weights::{Attention, BlockShape, BlockWeights};
use protperf_core::{Execution, Result, check_len};
use protperf_cpu::layout::PAD;
use protperf_cpu::{CpuElement, Workers};

/// Tokens of a task: enough that adding up the gradients of its weights costs little, few enough that its rows stay in
/// the second-level cache.
const TILE: usize = 256;

/// Gradients of the weights, which the backward pass overwrites; shapes as in [`BlockWeights`].
#[derive(Debug)]
#[allow(missing_docs)]
pub struct BlockGradients<'a, T> {
    pub attention_norm: &'a mut [T],
    pub qkv: &'a mut [T],
    pub log_temperature: &'a mut [T],
    pub out: &'a mut [T],
    pub ffn_norm: &'a mut [T],
    pub gate_up: &'a mut [T],
    pub down: &'a mut [T],
}

/// A block whose weights are packed for the backward pass.
#[derive(Debug)]
pub struct BlockBackward<T: CpuElement> {
    frame: Frame<T>,
    matrices: Matrices<T>,
}

/// What the stages of one pass read.
struct Pass<'a, T: CpuElement> {
    frame: &'a Frame<T>,
    matrices: &'a Matrices<T>,
    input: &'a [T],
    trace: Trace<'a, T>,
    rotary: &'a Rotary<'a, T>,
    dropout: Dropout,
}

impl<T: CpuElement> BlockBackward<T> {
    /// Packs the weights of a block.
    ///
    /// # Errors
    /// As [`Block::pack`](super::Block::pack).
    pub fn pack(
        arithmetic: impl Into<Arithmetic>,
        shape: BlockShape,
        attention: Attention,
        weights: &BlockWeights<'_, T>,
        run: &Execution<'_>,
    ) -> Result<Self> {
        let frame = Frame::new(arithmetic.into(), shape, attention, weights)?;
        let pack = |w: &[T], rows, width| Panels::of_rows(&frame.products, w, width, rows);
        let matrices = Matrices::pack(&shape, weights, run, pack)?;
        Ok(BlockBackward { frame, matrices })
    }

    /// Gradients of [`Block::forward_traced`](super::Block::forward_traced), whose `input` and trace these are: that of
    /// the input replaces `grad`, which arrived at the output; those of the weights fill `gradients`.
    ///
    /// # Shapes
    /// input and grad `[N,C]`.
    ///
    /// # Errors
    /// `ShapeMismatch`, `OutOfMemory`, `Interrupted`.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &self,
        input: &[T],
        trace: Trace<'_, T>,
        rotary: &Rotary<'_, T>,
        (borders, causal): (&[i64], bool),
        dropout: Dropout,
        grad: &mut [T],
        gradients: &mut BlockGradients<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let BlockBackward { frame, matrices } = self;
        let (tokens, c) = (rotary.len(), frame.shape.model_dim);
        check_len("input", input.len(), tokens * c)?;
        check_len("grad", grad.len(), tokens * c)?;
        trace.check(&frame.shape, tokens)?;
        gradients.start(&frame.shape)?;
        let pass = Pass { frame, matrices, input, trace, rotary, dropout };
        let row = matrices.out.cols();
        let mut arriving = Buffer::new(tokens * row)?;
        pass.feed_forward(grad, &mut arriving, gradients, run)?;
        let heads = Heads { shape: &frame.shape, qkv: trace.qkv };
        let scope = Scope { borders, causal, run };
        let saved = (trace.attended, trace.denominators);
        let mut of_heads = Buffer::new(tokens * 3 * frame.shape.inner())?;
        frame.attend.backward(&heads, &scope, saved, (&arriving, row), &mut of_heads)?;
        pass.project(grad, &of_heads, gradients, run)
    }
}

impl<T: CpuElement> BlockGradients<'_, T> {
    /// Checks the sizes and sets all gradients to 0.
    fn start(&mut self, shape: &BlockShape) -> Result<()> {
        let BlockShape { model_dim: c, num_heads: h, ffn_dim: f, .. } = *shape;
        let inner = shape.inner();
        let BlockGradients { attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down } = self;
        let all = [
            ("attention_norm", attention_norm, c),
            ("qkv", qkv, 3 * inner * c),
            ("log_temperature", log_temperature, h),
            ("out", out, c * inner),
            ("ffn_norm", ffn_norm, c),
            ("gate_up", gate_up, 2 * f * c),
            ("down", down, c * f),
        ];
        for (name, buffer, needed) in all {
            check_len(name, buffer.len(), needed)?;
            buffer.fill(T::ZERO);
        }
        Ok(())
    }
}

/// Gradients of the feed-forward layer and of the output layer of attention, over the tokens of one task.
struct FeedForwardSums<T: CpuElement> {
    down: Buffer<T>,
    gate_up: Buffer<T>,
    out: Buffer<T>,
    gain: Buffer<T>,
}

/// Gradients of the layer of queries, keys and values, over the tokens of one task.
struct ProjectSums<T: CpuElement> {
    qkv: Buffer<T>,
    gain: Buffer<T>,
    log_temperature: Buffer<T>,
}

impl<T: CpuElement> Pass<'_, T> {
    /// From the output to the outputs of attention: `grad` becomes the gradient of the residual stream before
    /// attention's, and `arriving` `[N, HD padded]` what arrives at the outputs of the heads.
    fn feed_forward(
        &self,
        grad: &mut [T],
        arriving: &mut [T],
        gradients: &mut BlockGradients<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let shape = &self.frame.shape;
        let (c, f, inner) = (shape.model_dim, shape.ffn_dim, shape.inner());
        let tokens = self.rotary.len();
        let (grad, arriving) = (Tiles::new(grad, c, TILE)?, Tiles::new(arriving, self.matrices.out.cols(), TILE)?);
        Workers::new(run).fold(
            tokens.div_ceil(TILE),
            |tile| {
                let mut grad = grad.take(tile);
                let (down, gate_up, gain) = self.through_gate(&mut grad, tile * TILE)?;
                let out = self.through_out(&grad, &mut arriving.take(tile), tile * TILE)?;
                Ok(FeedForwardSums { down, gate_up, out, gain })
            },
            |_, sums| {
                add_matrix(self.frame, &sums.down, f, gradients.down);
                add_matrix(self.frame, &sums.gate_up, c, gradients.gate_up);
                add_matrix(self.frame, &sums.out, inner, gradients.out);
                self.frame.ops.add(&sums.gain, gradients.ffn_norm);
                Ok(())
            },
        )
    }

    /// The feed-forward layer of one tile: adds its gradient to `grad`; returns those of down, gate and up, and gain.
    fn through_gate(&self, grad: &mut [T], first: usize) -> Result<(Buffer<T>, Buffer<T>, Buffer<T>)> {
        let (frame, shape) = (self.frame, &self.frame.shape);
        let (c, f, rows) = (shape.model_dim, shape.ffn_dim, grad.len() / shape.model_dim);
        let (c_row, f_row) = (stride(c), stride(f));
        let padded = f.next_multiple_of(PAD);
        let mut dropped = Buffer::new(rows * c_row)?;
        self.drop_rows(grad, Site::FeedForward, first, &mut dropped, c_row);
        let (mut dvalue, mut value) = (Buffer::new(rows * f_row)?, Buffer::new(rows * f_row)?);
        self.matrices.down.multiply(&frame.products, (&dropped, c_row), rows, (&mut dvalue, f_row))?;
        let wide_row = stride(2 * padded);
        let mut wide = Buffer::new(rows * wide_row)?;
        let gate_up = &self.trace.gate_up[first * 2 * padded..][..rows * 2 * padded];
        let tiles = wide.chunks_exact_mut(wide_row).zip(dvalue.chunks_exact(f_row)).zip(value.chunks_exact_mut(f_row));
        for (gate_up, ((wide, dvalue), value)) in gate_up.chunks_exact(2 * padded).zip(tiles) {
            let ((gate, up), (dgate, rest)) = (gate_up.split_at(padded), wide.split_at_mut(padded));
            frame.ops.gate_gradient(gate, up, &dvalue[..padded], dgate, &mut rest[..padded], &mut value[..padded]);
        }
        let mut down = Buffer::new(c * padded)?;
        outer(&frame.products, (&dropped, c_row, 0), (&value, f_row), rows, &mut down, [c, f])?;
        // The norm again, and through it.
        let mut normed = Buffer::new(rows * c_row)?;
        let middle = &self.trace.middle[first * c..][..rows * c];
        let inverses = self.normalized(middle, &frame.ffn_norm, &mut normed)?;
        let mut sums = Buffer::new(2 * f * c.next_multiple_of(PAD))?;
        let (gate_sums, up_sums) = sums.split_at_mut(f * c.next_multiple_of(PAD));
        outer(&frame.products, (&wide, wide_row, 0), (&normed, c_row), rows, gate_sums, [f, c])?;
        outer(&frame.products, (&wide, wide_row, padded), (&normed, c_row), rows, up_sums, [f, c])?;
        self.matrices.gate_up.multiply(&frame.products, (&wide, wide_row), rows, (&mut normed, c_row))?;
        let gain = self.through_norm(middle, &frame.ffn_norm, &inverses, &normed, grad)?;
        Ok((down, sums, gain))
    }

    /// The output layer of attention: what arrives at the heads of one tile; returns the gradient of the layer.
    fn through_out(&self, grad: &[T], arriving: &mut [T], first: usize) -> Result<Buffer<T>> {
        let (frame, shape) = (self.frame, &self.frame.shape);
        let (c, inner, rows) = (shape.model_dim, shape.inner(), grad.len() / shape.model_dim);
        let (c_row, heads_row) = (stride(c), stride(inner));
        let (mut dropped, mut heads) = (Buffer::new(rows * c_row)?, Buffer::new(rows * heads_row)?);
        self.drop_rows(grad, Site::Attention, first, &mut dropped, c_row);
        let out_row = self.matrices.out.cols();
        self.matrices.out.multiply(&frame.products, (&dropped, c_row), rows, (arriving, out_row))?;
        copy_rows(&self.trace.attended[first * inner..][..rows * inner], inner, &mut heads, heads_row);
        let mut out = Buffer::new(c * inner.next_multiple_of(PAD))?;
        outer(&frame.products, (&dropped, c_row, 0), (&heads, heads_row), rows, &mut out, [c, inner])?;
        Ok(out)
    }

    /// From queries, keys and values to the input: adds the gradient to `grad`.
    fn project(
        &self,
        grad: &mut [T],
        of_heads: &[T],
        gradients: &mut BlockGradients<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let c = self.frame.shape.model_dim;
        let tokens = self.rotary.len();
        let grad = Tiles::new(grad, c, TILE)?;
        Workers::new(run).fold(
            tokens.div_ceil(TILE),
            |tile| self.through_qkv(&mut grad.take(tile), of_heads, tile * TILE),
            |_, sums| {
                add_matrix(self.frame, &sums.qkv, c, gradients.qkv);
                self.frame.ops.add(&sums.gain, gradients.attention_norm);
                self.frame.ops.add(&sums.log_temperature, gradients.log_temperature);
                Ok(())
            },
        )
    }

    fn through_qkv(&self, grad: &mut [T], of_heads: &[T], first: usize) -> Result<ProjectSums<T>> {
        let (frame, shape) = (self.frame, &self.frame.shape);
        let (c, inner, rows) = (shape.model_dim, shape.inner(), grad.len() / shape.model_dim);
        let (c_row, wide_row) = (stride(c), stride(3 * inner));
        let mut wide = Buffer::new(rows * wide_row)?;
        copy_rows(&of_heads[first * 3 * inner..][..rows * 3 * inner], 3 * inner, &mut wide, wide_row);
        let mut log_temperature = Buffer::zeros(shape.num_heads)?;
        for (at, wide) in wide.chunks_exact_mut(wide_row).enumerate() {
            self.through_rotation(first + at, &mut wide[..2 * inner], &mut log_temperature);
        }
        let mut normed = Buffer::new(rows * c_row)?;
        let input = &self.input[first * c..][..rows * c];
        let inverses = self.normalized(input, &frame.attention_norm, &mut normed)?;
        let mut qkv = Buffer::new(3 * inner * c.next_multiple_of(PAD))?;
        outer(&frame.products, (&wide, wide_row, 0), (&normed, c_row), rows, &mut qkv, [3 * inner, c])?;
        self.matrices.qkv.multiply(&frame.products, (&wide, wide_row), rows, (&mut normed, c_row))?;
        let gain = self.through_norm(input, &frame.attention_norm, &inverses, &normed, grad)?;
        Ok(ProjectSums { qkv, gain, log_temperature })
    }

    /// Through lengths and rotation of the queries and keys of one token `[2HD]`.
    fn through_rotation(&self, token: usize, grad: &mut [T], log_temperature: &mut [T]) {
        let (shape, (cosines, sines)) = (&self.frame.shape, self.rotary.row(token));
        let (inner, heads) = (shape.inner(), shape.num_heads);
        let rows = &self.trace.qkv[token * shape.qkv_row()..][..2 * inner];
        let inverses = &self.trace.inverses[token * 2 * heads..][..2 * heads];
        let sides = rows.chunks_exact(inner).zip(inverses.chunks_exact(heads)).zip(grad.chunks_exact_mut(inner));
        for ((y, inverses), grad) in sides {
            self.frame.ops.unit_rotate_gradient(
                y,
                &self.frame.lengths,
                cosines,
                sines,
                inverses,
                grad,
                log_temperature,
            );
        }
    }

    /// The rows of `grad` into a tile, those numbers dropped that the forward pass dropped.
    fn drop_rows(&self, grad: &[T], site: Site, first: usize, to: &mut [T], to_row: usize) {
        let c = self.frame.shape.model_dim;
        copy_rows(grad, c, to, to_row);
        for (at, row) in to.chunks_exact_mut(to_row).enumerate() {
            self.dropout.apply(self.frame.ops, site, first + at, &mut row[..c]);
        }
    }

    /// Norms of some rows into a tile, and the inverses of their roots of mean squares.
    fn normalized(&self, rows: &[T], gain: &[T], to: &mut [T]) -> Result<Buffer<T>> {
        let mut inverses = Buffer::new(rows.len() / self.frame.shape.model_dim)?;
        self.frame.normalize(rows, gain, to, |at, inverse| inverses[at] = inverse);
        Ok(inverses)
    }

    /// Adds to `grad` what goes through a norm, where the rows of the tile `arriving` arrived; returns that of the gain.
    fn through_norm(
        &self,
        rows: &[T],
        gain: &[T],
        inverses: &[T],
        arriving: &[T],
        grad: &mut [T],
    ) -> Result<Buffer<T>> {
        let c = self.frame.shape.model_dim;
        let mut dgain = Buffer::zeros(c)?;
        let tiles = rows.chunks_exact(c).zip(arriving.chunks_exact(stride(c))).zip(grad.chunks_exact_mut(c));
        for (((row, arriving), grad), &inverse) in tiles.zip(inverses) {
            self.frame.ops.rms_norm_gradient(row, gain, inverse, &arriving[..c], grad, &mut dgain);
        }
        Ok(dgain)
    }
}

/// Adds a matrix whose rows of `width` are padded to one without padding.
fn add_matrix<T: CpuElement>(frame: &Frame<T>, from: &[T], width: usize, to: &mut [T]) {
    let padded = width.next_multiple_of(PAD);
    for (from, to) in from.chunks_exact(padded).zip(to.chunks_exact_mut(width)) {
        frame.ops.add(&from[..width], to);
    }
}
