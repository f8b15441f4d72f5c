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
mod call;
mod forward;
mod scratch;

use crate::instructions::Instructions;
use crate::out_rows::OutRows;
use crate::stored::CpuStored;
use call::Call;
pub use call::ExactSaved;
use protperf_core::attention::exact::SoftmaxArgs;
use protperf_core::{Error, Execution, Result, check_len};

/// Softmax attention on the CPU; see [`Cpu::exact_forward`](crate::Cpu::exact_forward).
///
/// # Errors
/// `ShapeMismatch`, `InvalidOption`, `OutOfMemory`, `Interrupted`.
pub fn forward<S: CpuStored>(
    instructions: Instructions,
    args: &SoftmaxArgs<'_, S>,
    out: OutRows<'_, S>,
    den: Option<&mut [S::Compute]>,
    run: &Execution<'_>,
) -> Result<()> {
    let call = Call::new(instructions, args, run)?;
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
    instructions: Instructions,
    args: &SoftmaxArgs<'_, S>,
    saved: &ExactSaved<'_, S>,
    [dq, dk, dv]: [OutRows<'_, S>; 3],
    run: &Execution<'_>,
) -> Result<()> {
    let call = Call::new(instructions, args, run)?;
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
