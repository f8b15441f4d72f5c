//! The backward pass: queries read the keys' state for their own gradient and add their cotangents to another state,
//! which keys read for theirs; when causal, the second in reversed time. `docs/algorithm.md`, section 7.
//!
//! Only the output and the denominators are kept from the forward pass; features are computed again. With the
//! denominator of row i as `p 2^T`, the cotangent of its sums is `[g, -g.out] / p`, and the row's features lose `2^T`:
//! the second scaling is exact, the first keeps the magnitude of the gradient, and every factor that is formed is at most
//! about 1. Head segments are cut into blocks as in the forward pass.

mod block;
mod cut;
mod omega_gradient;
mod whole;

use crate::blocks::MAX_BLOCKS;
use crate::call::{Call, Context};
use crate::cotangent::Saved;
use crate::ops::CpuElement;
use crate::shared_out::SharedOut;
use block::Backward;
use omega_gradient::OmegaGradient;
use protperf_core::{FavorArgs, FavorShape, Result, check_len};

/// Gradients to fill: dq `[B,H,L,D]`, dk `[B,Hk,S,D]`, dv `[B,Hk,S,E]`, domega as omega.
pub struct Gradients<'a, T> {
    pub dq: &'a mut [T],
    pub dk: &'a mut [T],
    pub dv: &'a mut [T],
    pub domega: Option<&'a mut [f64]>,
}

/// Gradients of linear attention on the CPU.
///
/// A row whose incoming gradient is all zeros contributes nothing, even where its output is NaN. A row with a
/// gradient that saw a number that is not finite makes NaN of its dq and of dk, dv of every key it sees.
///
/// Working memory besides inputs and outputs is as in [`crate::favor_forward`], with a byte per query, two states per
/// block where a causal segment is cut, and an omega for each thread where `domega` is wanted. Where query heads share a
/// key head, the features of its keys are made again for each of them: they are never kept.
///
/// # Errors
/// As [`FavorArgs::validate`]; `OutOfMemory`; `Interrupted`.
pub fn favor_backward<T: CpuElement>(
    args: &FavorArgs<'_, T>,
    saved: &Saved<'_, T>,
    gradients: Gradients<'_, T>,
    ctx: &Context<'_>,
) -> Result<()> {
    let call = Call::new(args, ctx)?;
    check_shapes(&call.plan.shape, saved, &gradients)?;
    let pass = Backward {
        call: &call,
        saved,
        directions: gradients.domega.is_some(),
        dq: SharedOut::new(gradients.dq),
        dk: SharedOut::new(gradients.dk),
        dv: SharedOut::new(gradients.dv),
    };
    let mut sums = OmegaGradient::new(&call, pass.directions)?;
    let (mut cut, mut whole) = call.plan.head_segments()?;
    if !args.causal && call.plan.shape.group() > 1 && whole.len() < MAX_BLOCKS {
        // One task would do all query heads of a key head; the numbers are the same either way.
        cut.append(&mut whole);
    }
    match args.causal {
        true => cut::causal(&pass, &cut, &mut sums)?,
        false => cut::noncausal(&pass, &cut, &mut sums)?,
    }
    whole::run(&pass, &whole, &mut sums)?;
    gradients.domega.map_or(Ok(()), |domega| sums.store(&call, domega))
}

fn check_shapes<T: CpuElement>(shape: &FavorShape, saved: &Saved<'_, T>, gradients: &Gradients<'_, T>) -> Result<()> {
    for (argument, tensor) in [("out", saved.out), ("grad", saved.grad)] {
        if tensor.shape() != shape.out() {
            let detail = format!("has shape {:?} but the output has {:?}", tensor.shape(), shape.out());
            return Err(protperf_core::Error::ShapeMismatch { argument, detail });
        }
    }
    let (queries, keys) = (shape.batch * shape.heads * shape.q_len, shape.batch * shape.kv_heads * shape.kv_len);
    check_len("den", saved.den.len(), queries * 2)?;
    check_len("dq", gradients.dq.len(), queries * shape.head_dim)?;
    check_len("dk", gradients.dk.len(), keys * shape.head_dim)?;
    check_len("dv", gradients.dv.len(), keys * shape.value_dim)
}
