//! One checked call of exact attention, and the squares of scores that it is made of: `docs/algorithm.md`, section 8.

use super::scratch::{Scratch, with_scratch};
use crate::bf16::Unit;
use crate::instructions::Instructions;
use crate::layout::{CHUNK, PAD};
use crate::load::{KeyView, RowView};
use crate::ops::{CpuElement, Ops};
use crate::parallel::Workers;
use crate::plan::{HeadSegment, Plan};
use crate::products::{Products, with_products};
use crate::scan::KeyScan;
use crate::simd::Real;
use crate::stored::CpuStored;
use protperf_core::attention::exact::SoftmaxArgs;
use protperf_core::attention::{check_qkv, check_visibility};
use protperf_core::{Element, Error, Execution, Result, TensorRef};

/// What the forward pass of exact attention left, and what arrives at its output.
pub struct ExactSaved<'a, S: CpuStored> {
    /// Output `[B,H,L,E]`.
    pub out: TensorRef<'a, S>,
    /// `[B,H,L,2]`: T and p of each row, where p 2^T is the sum of its weights 2^score; 0 where it sees no key. The
    /// log-sum-exp of the row is (T + log2 p) ln 2.
    pub den: &'a [S::Compute],
    /// Gradient of the output `[B,H,L,E]`.
    pub grad: TensorRef<'a, S>,
}

/// A checked call.
pub struct Call<'a, S: CpuStored> {
    pub args: &'a SoftmaxArgs<'a, S>,
    pub plan: Plan,
    /// Keys that the first query of a causal call sees besides its own: S - L.
    pub offset: usize,
    pub ops: &'static Ops<S::Compute>,
    bf16: Option<Unit>,
    pub workers: Workers<'a>,
}

impl<'a, S: CpuStored> Call<'a, S> {
    /// Checks the arguments.
    ///
    /// # Errors
    /// `ShapeMismatch`, `InvalidOption`, `OutOfMemory`.
    pub fn new(instructions: Instructions, args: &'a SoftmaxArgs<'a, S>, run: &Execution<'a>) -> Result<Self> {
        let shape = check_qkv(&args.q, &args.k, &args.v, false)?;
        check_visibility(&shape, args.cu_seqlens, args.key_padding_mask)?;
        if args.causal && shape.kv_len < shape.q_len {
            let detail = format!("has length {} but causal attention needs at least q's {}", shape.kv_len, shape.q_len);
            return Err(Error::ShapeMismatch { argument: "k", detail });
        }
        let offset = shape.kv_len - shape.q_len.min(shape.kv_len);
        let plan = Plan::new(shape, args.causal, args.cu_seqlens)?;
        if instructions.bf16.is_some() && S::Compute::as_f32(&[]).is_none() {
            return Err(Error::option("precision", "is bf16, which rounds float32; tensors of float64 need f32"));
        }
        Ok(Call {
            args,
            plan,
            offset,
            ops: Ops::of(instructions.isa),
            bf16: instructions.bf16,
            workers: Workers::new(run),
        })
    }

    /// Runs `body` with the products of a task, and with its memory.
    ///
    /// # Errors
    /// `OutOfMemory`, or what `body` returns.
    pub fn with_scratch<R>(
        &self,
        body: impl FnOnce(&mut Scratch<S::Compute>, Products<'_, S::Compute>) -> Result<R>,
    ) -> Result<R> {
        with_scratch(|scratch| {
            let mut memory = std::mem::take(&mut scratch.tiles);
            let widths = [self.plan.shape.head_dim, self.plan.shape.value_dim];
            let result =
                with_products(self.ops, self.bf16, widths, false, &mut memory, |products| body(scratch, products));
            scratch.tiles = memory;
            result
        })
    }

    /// What queries are multiplied with, so that their products with keys are scores in bits.
    pub fn query_scale(&self) -> S::Compute {
        S::Compute::from_f64(std::f64::consts::LOG2_E / (self.plan.shape.head_dim as f64).sqrt())
    }

    /// Rows of a tensor that has one row for each query of the segment.
    pub fn queries(&self, tensor: &'a TensorRef<'a, S>, segment: &HeadSegment) -> RowView<'a, S> {
        RowView::new(tensor, segment.batch, segment.head, self.plan.query_range(segment))
    }

    /// Keys and values of the segment.
    pub fn keys(&self, segment: &HeadSegment) -> KeyView<'a, S> {
        let tensors = [&self.args.k, &self.args.v];
        let (head, range) = (self.plan.key_head(segment), self.plan.key_range(segment));
        KeyView::new(tensors, self.args.key_padding_mask, segment.batch, head, range)
    }

    /// How many keys a query row of a segment sees, padding counted.
    pub fn seen(&self, segment: &HeadSegment, row: usize) -> usize {
        if self.args.causal { self.offset + row + 1 } else { self.plan.key_range(segment).len() }
    }

    /// Whether a query row sees a key that is not finite.
    pub fn reaches(&self, scan: &KeyScan<S::Compute>, row: usize) -> bool {
        scan.reaches(self.offset + row, self.args.causal)
    }
}

/// A square of scores: some queries of a segment against a chunk of its keys.
#[derive(Clone, Copy)]
pub struct Square {
    /// The first query and how many there are, at most [`CHUNK`].
    pub row: usize,
    pub rows: usize,
    /// The first key and how many there are, at most [`CHUNK`].
    pub key: usize,
    pub keys: usize,
}

impl Square {
    /// Whether row i sees the keys up to the i-th and no others.
    pub fn is_diagonal<S: CpuStored>(&self, call: &Call<'_, S>) -> bool {
        call.args.causal && self.key == call.offset + self.row
    }

    /// Hides the scores `[rows][CHUNK]` of keys that a row does not see, and those beyond the last key.
    pub fn hide<S: CpuStored>(
        &self,
        call: &Call<'_, S>,
        segment: &HeadSegment,
        keys: &KeyView<'_, S>,
        scores: &mut [S::Compute],
    ) {
        let (hidden, padded) = (S::Compute::EMPTY_REFERENCE, self.keys.next_multiple_of(PAD));
        if self.keys < padded || call.args.causal && call.seen(segment, self.row) < self.key + self.keys {
            for (row, scores) in scores.chunks_exact_mut(CHUNK).take(self.rows).enumerate() {
                let seen = call.seen(segment, self.row + row).saturating_sub(self.key).min(self.keys);
                scores[seen..padded].fill(hidden);
            }
        }
        if !keys.has_padding() {
            return;
        }
        for key in (0..self.keys).filter(|&key| keys.is_padding(self.key + key)) {
            scores.iter_mut().skip(key).step_by(CHUNK).take(self.rows).for_each(|score| *score = hidden);
        }
    }
}

/// Keys and values of chunks, and what they are multiplied with, are limited as the linear kernels limit them.
pub fn limits<T: Real>() -> (T, T) {
    (T::LIMIT, T::MAX)
}
