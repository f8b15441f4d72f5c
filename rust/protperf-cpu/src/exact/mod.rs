//! Exact softmax attention on the tiles of the linear kernels: `docs/algorithm.md`, section 8.
//!
//! ```text
//! for each block of queries, for each chunk of keys that one of them sees:
//!     s = (q D^-1/2 log2 e) . k^T                     scores in bits; those a row does not see are hidden
//!     m' = max(m, max_j round(s_j)),  p = 2^(s - m')
//!     N = 2^(m - m') N + p . v,   sum = 2^(m - m') sum + sum_j p_j
//! out = N / sum
//! ```
//!
//! Scores exist one square of 64 by 64 at a time. Special values are those of the plain form,
//! `protperf_core::attention::exact`: a row that sees no key gives 0; a row of q that is not finite makes its output NaN,
//! one of k or v every output that sees it. Scaled queries and keys are limited to 1e15, so that every score is finite.

mod backward;
mod forward;
mod scratch;

use crate::dispatch::Isa;
use crate::layout::CHUNK;
use crate::load::{KeyView, RowView};
use crate::ops::Ops;
use crate::out_rows::OutRows;
use crate::parallel::Workers;
use crate::plan::{HeadSegment, Plan};
use crate::scan::KeyScan;
use crate::simd::Real;
use crate::stored::CpuStored;
use protperf_core::attention::exact::SoftmaxArgs;
use protperf_core::attention::{check_qkv, check_visibility};
use protperf_core::{Element, Error, Execution, Result, TensorRef, check_len};

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
struct Call<'a, S: CpuStored> {
    args: &'a SoftmaxArgs<'a, S>,
    plan: Plan,
    /// Keys that the first query of a causal call sees besides its own: S - L.
    offset: usize,
    ops: &'static Ops<S::Compute>,
    workers: Workers<'a>,
}

impl<'a, S: CpuStored> Call<'a, S> {
    /// Checks the arguments.
    ///
    /// # Errors
    /// `ShapeMismatch`, `InvalidOption`, `OutOfMemory`.
    fn new(isa: Isa, args: &'a SoftmaxArgs<'a, S>, run: &Execution<'a>) -> Result<Self> {
        let shape = check_qkv(&args.q, &args.k, &args.v, false)?;
        check_visibility(&shape, args.cu_seqlens, args.key_padding_mask)?;
        if args.causal && shape.kv_len < shape.q_len {
            let detail = format!("has length {} but causal attention needs at least q's {}", shape.kv_len, shape.q_len);
            return Err(Error::ShapeMismatch { argument: "k", detail });
        }
        let offset = shape.kv_len - shape.q_len.min(shape.kv_len);
        let plan = Plan::new(shape, args.causal, args.cu_seqlens)?;
        Ok(Call { args, plan, offset, ops: Ops::of(isa), workers: Workers::new(run) })
    }

    /// What queries are multiplied with, so that their products with keys are scores in bits.
    fn query_scale(&self) -> S::Compute {
        S::Compute::from_f64(std::f64::consts::LOG2_E / (self.plan.shape.head_dim as f64).sqrt())
    }

    fn queries(&self, tensor: &'a TensorRef<'a, S>, part: &HeadSegment) -> RowView<'a, S> {
        RowView::new(tensor, part.batch, part.head, self.plan.query_range(part))
    }

    fn keys(&self, part: &HeadSegment) -> KeyView<'a, S> {
        let tensors = [&self.args.k, &self.args.v];
        let (head, range) = (self.plan.key_head(part), self.plan.key_range(part));
        KeyView::new(tensors, self.args.key_padding_mask, part.batch, head, range)
    }

    /// How many keys a query row of a segment sees, padding counted.
    fn seen(&self, part: &HeadSegment, row: usize) -> usize {
        if self.args.causal { self.offset + row + 1 } else { self.plan.key_range(part).len() }
    }

    /// Whether a query row sees a key that is not finite.
    fn reaches(&self, scan: &KeyScan<S::Compute>, row: usize) -> bool {
        scan.reaches(self.offset + row, self.args.causal)
    }
}

/// Softmax attention on the CPU; see [`Cpu::exact_forward`](crate::Cpu::exact_forward).
///
/// # Errors
/// `ShapeMismatch`, `InvalidOption`, `OutOfMemory`, `Interrupted`.
pub fn forward<S: CpuStored>(
    isa: Isa,
    args: &SoftmaxArgs<'_, S>,
    out: OutRows<'_, S>,
    den: Option<&mut [S::Compute]>,
    run: &Execution<'_>,
) -> Result<()> {
    let call = Call::new(isa, args, run)?;
    let shape = &call.plan.shape;
    out.check("out", shape.out())?;
    let rows = shape.batch * shape.heads * shape.q_len;
    check_len("den", den.as_ref().map_or(rows * 2, |den| den.len()), rows * 2)?;
    forward::run(&call, out, den)
}

/// Gradients of softmax attention on the CPU; see [`Cpu::exact_backward`](crate::Cpu::exact_backward).
///
/// # Errors
/// As [`forward`].
pub fn backward<S: CpuStored>(
    isa: Isa,
    args: &SoftmaxArgs<'_, S>,
    saved: &ExactSaved<'_, S>,
    [dq, dk, dv]: [OutRows<'_, S>; 3],
    run: &Execution<'_>,
) -> Result<()> {
    let call = Call::new(isa, args, run)?;
    let s = &call.plan.shape;
    for (argument, found) in [("out", saved.out.shape()), ("grad", saved.grad.shape())] {
        if found != s.out() {
            let detail = format!("has shape {found:?} but the output has {:?}", s.out());
            return Err(Error::ShapeMismatch { argument, detail });
        }
    }
    check_len("den", saved.den.len(), s.batch * s.heads * s.q_len * 2)?;
    dq.check("dq", [s.batch, s.heads, s.q_len, s.head_dim])?;
    dk.check("dk", [s.batch, s.kv_heads, s.kv_len, s.head_dim])?;
    dv.check("dv", [s.batch, s.kv_heads, s.kv_len, s.value_dim])?;
    backward::run(&call, saved, [dq, dk, dv])
}

/// A square of scores: some queries of a segment against a chunk of its keys.
#[derive(Clone, Copy)]
struct Square {
    /// The first query and how many there are, at most [`CHUNK`].
    row: usize,
    rows: usize,
    /// The first key and how many there are, at most [`CHUNK`].
    key: usize,
    keys: usize,
}

impl Square {
    /// Whether row i sees the keys up to the i-th and no others.
    fn is_diagonal<S: CpuStored>(&self, call: &Call<'_, S>) -> bool {
        call.args.causal && self.key == call.offset + self.row
    }

    /// Hides the scores `[rows][CHUNK]` of keys that a row does not see, and those beyond the last key.
    fn hide<S: CpuStored>(
        &self,
        call: &Call<'_, S>,
        part: &HeadSegment,
        keys: &KeyView<'_, S>,
        scores: &mut [S::Compute],
    ) {
        let (hidden, padded) = (S::Compute::EMPTY_REFERENCE, self.keys.next_multiple_of(crate::layout::PAD));
        if self.keys < padded || call.args.causal && call.seen(part, self.row) < self.key + self.keys {
            for (row, scores) in scores.chunks_exact_mut(CHUNK).take(self.rows).enumerate() {
                let seen = call.seen(part, self.row + row).saturating_sub(self.key).min(self.keys);
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
fn limits<T: Real>() -> (T, T) {
    (T::LIMIT, T::MAX)
}
