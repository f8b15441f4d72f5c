//! The backward pass: queries read the keys' state for their own gradient and add their cotangents to another state,
//! which keys read for theirs; when causal, the second in reversed time. In short noncausal segments the two read each
//! other. `docs/algorithm.md`, section 7.
//!
//! Only the output and the denominators are kept from the forward pass; features are computed again. With the
//! denominator of row i as `p 2^T`, the cotangent of its sums is `[g, -g.out] / p`, and the row's features lose `2^T`:
//! the second scaling is exact, the first keeps the magnitude of the gradient, and every factor that is formed is at most
//! about 1. Head segments are cut into blocks as in the forward pass.

mod accumulator;
mod arriving;
mod block;
mod cut;
mod parameters;
mod whole;

pub use accumulator::Accumulator;

use crate::blocks::MAX_BLOCKS;
use crate::call::Call;
use crate::instructions::Instructions;
use crate::outputs::RowGradients;
use crate::prepared::PreparedMap;
use crate::shared_out::SharedOut;
use crate::stored::CpuStored;
use block::Backward;
use parameters::ParameterSums;
use protperf_core::backend::Saved;
use protperf_core::{Execution, FavorArgs, Result};

/// Gradients of linear attention on the CPU.
///
/// Working memory besides inputs and outputs is as in [`crate::forward::run`], with a byte per query, two states per
/// block where a causal segment is cut, and a set of parameters for each thread where their gradients are wanted. Where
/// query heads share a key head, the features of its keys are made again for each of them: they are never kept.
///
/// # Errors
/// As [`Backend::backward`](protperf_core::Backend::backward).
pub fn run<S: CpuStored>(
    instructions: Instructions,
    args: &FavorArgs<'_, S>,
    prepared: Option<&PreparedMap<S::Compute>>,
    saved: &Saved<'_, S>,
    gradients: RowGradients<'_, S>,
    run: &Execution<'_>,
) -> Result<()> {
    let call = Call::new(args, prepared, saved.state_in, instructions, run)?;
    saved.check(&call.plan.shape)?;
    gradients.check(args, &call.plan.shape)?;
    let RowGradients { dq, dk, dv, map, state_in } = gradients;
    let pass =
        Backward { call: &call, saved, parameters: map.is_some(), dq, dk, dv, dstate: state_in.map(SharedOut::new) };
    let mut sums = ParameterSums::new(&call, pass.parameters)?;
    let (mut cut, mut whole) = call.plan.head_segments()?;
    if !args.causal && call.plan.shape.group() > 1 && whole.len() < MAX_BLOCKS {
        // One task would do all query heads of a key head; the numbers are the same either way, from states.
        cut.extend(whole.extract_if(.., |head_segment| !call.reads_each_other(head_segment)));
    }
    match args.causal {
        true => cut::causal(&pass, &cut, &mut sums)?,
        false => cut::noncausal(&pass, &cut, &mut sums)?,
    }
    whole::run(&pass, &whole, &mut sums)?;
    map.map_or(Ok(()), |to| sums.store(&call, to))
}
