//! Head segments that are not cut: all query heads of one key head are one task, or two where the sums run both ways.

use super::block::Backward;
use super::omega_gradient::OmegaGradient;
use crate::ops::CpuElement;
use crate::plan::HeadSegment;
use protperf_core::{Result, try_reserved};

/// Gradients of some head segments.
///
/// # Errors
/// `OutOfMemory`, `Interrupted`.
pub fn run<T: CpuElement>(pass: &Backward<'_, T>, parts: &[HeadSegment], sums: &mut OmegaGradient) -> Result<()> {
    let call = pass.call;
    let group = call.plan.shape.group().max(1);
    let mut groups = try_reserved(parts.len().div_ceil(group))?;
    groups.extend(parts.chunks(group));
    let num_query_tasks = if call.args.causal { parts.len() } else { 0 };
    call.workers.fold(
        groups.len() + num_query_tasks,
        |task| match groups.get(task) {
            Some(parts) if call.args.causal => causal_keys(pass, parts),
            Some(parts) => noncausal(pass, parts),
            None => {
                let part = &parts[task - groups.len()];
                let scan = call.scan(part)?;
                pass.causal_queries(part, &scan, 0..call.keys(part).len(), None).map(Vec::from_iter)
            }
        },
        |_, found| {
            sums.add(found);
            Ok(())
        },
    )
}

/// Gradients of the directions that one task has summed.
type Found<T> = Vec<(usize, Vec<T>)>;

/// dk and dv of one key head from all query heads that share it.
fn causal_keys<T: CpuElement>(pass: &Backward<'_, T>, parts: &[HeadSegment]) -> Result<Found<T>> {
    let range = 0..pass.call.keys(&parts[0]).len();
    let scan = pass.call.scan(&parts[0])?;
    let mut gradients = pass.key_gradients(&parts[0], &scan, range.clone());
    let mut found = Vec::new();
    for part in parts {
        let cotangents = pass.cotangents(part, &scan, range.clone())?;
        found.extend(gradients.causal(pass, part, &cotangents, None)?);
        gradients.fill_with_nan(cotangents.last_not_finite);
    }
    Ok(found)
}

/// dq of all query heads that share one key head, and its dk and dv.
fn noncausal<T: CpuElement>(pass: &Backward<'_, T>, parts: &[HeadSegment]) -> Result<Found<T>> {
    let (call, keys) = (pass.call, pass.call.keys(&parts[0]));
    let scan = call.scan(&parts[0])?;
    let mut gradients = pass.key_gradients(&parts[0], &scan, 0..keys.len());
    let mut found = Vec::new();
    for part in parts {
        let last_not_finite = call.with_workspace(part.head, |workspace| {
            pass.clear_directions(&mut workspace.chunk)?;
            if scan.first_not_finite.is_none() {
                call.add_keys(workspace, &keys, T::ONE)?;
            }
            let queries = call.plan.query_blocks(part).range(0);
            let last = pass.noncausal_queries(workspace, part, &scan, queries)?;
            std::mem::swap(workspace.chunk.state, workspace.other);
            gradients.noncausal(workspace, pass.directions)?;
            found.extend(pass.directions(part, &workspace.chunk, last.is_some())?);
            Ok(last)
        })?;
        gradients.fill_with_nan(last_not_finite);
    }
    Ok(found)
}
