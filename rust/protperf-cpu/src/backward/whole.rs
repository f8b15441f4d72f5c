//! Head segments that are not cut: all query heads of one key head are one task, or two where the sums run both ways.
//! `docs/algorithm.md`, section 7.

use super::block::{Backward, CausalSegment};
use super::parameters::ParameterSums;
use crate::packed_omega::ParameterGradient;
use crate::plan::HeadSegment;
use crate::stored::CpuStored;
use protperf_core::{Result, try_reserved};

/// Gradients of some head segments.
///
/// # Errors
/// `OutOfMemory`, `Interrupted`.
pub fn run<S: CpuStored>(
    pass: &Backward<'_, S>,
    head_segments: &[HeadSegment],
    sums: &mut ParameterSums,
) -> Result<()> {
    let call = pass.call;
    let group = call.plan.shape.group().max(1);
    let mut groups = try_reserved(head_segments.len().div_ceil(group))?;
    groups.extend(head_segments.chunks(group));
    let num_query_tasks = if call.args.causal { head_segments.len() } else { 0 };
    call.workers.fold(
        groups.len() + num_query_tasks,
        |task| match groups.get(task) {
            Some(head_segments) if call.args.causal => causal_keys(pass, head_segments),
            Some(head_segments) => noncausal(pass, head_segments),
            None => {
                let head_segment = &head_segments[task - groups.len()];
                let scan = call.scan(head_segment)?;
                pass.causal_queries(head_segment, &scan, 0..call.keys(head_segment).len(), None).map(Vec::from_iter)
            }
        },
        |_, found| {
            sums.add(call, found);
            Ok(())
        },
    )
}

/// Gradients of the parameters that one task has summed.
type Found<T> = Vec<(usize, ParameterGradient<T>)>;

/// dk and dv of one key head from all query heads that share it.
fn causal_keys<S: CpuStored>(pass: &Backward<'_, S>, head_segments: &[HeadSegment]) -> Result<Found<S::Compute>> {
    let range = 0..pass.call.keys(&head_segments[0]).len();
    let of_keys = pass.call.scan_keys(&head_segments[0])?;
    let mut gradients = pass.key_gradients(&head_segments[0], range.clone())?;
    let mut found = Vec::new();
    for head_segment in head_segments {
        let scan = pass.call.with_shared(head_segment, of_keys);
        let (cotangents, arriving) =
            (pass.cotangents(head_segment, &scan, range.clone())?, pass.arriving(head_segment, &scan));
        let last_not_finite = cotangents.last_not_finite;
        let segment = CausalSegment { head_segment, scan: &scan, arriving: &arriving, last_not_finite };
        found.extend(gradients.causal(pass, &segment, &cotangents, None)?);
        gradients.fill_with_nan(last_not_finite, &arriving);
    }
    gradients.finish();
    Ok(found)
}

/// dq of all query heads that share one key head, and its dk and dv.
fn noncausal<S: CpuStored>(pass: &Backward<'_, S>, head_segments: &[HeadSegment]) -> Result<Found<S::Compute>> {
    let (call, keys) = (pass.call, pass.call.keys(&head_segments[0]));
    let of_keys = call.scan_keys(&head_segments[0])?;
    let mut gradients = pass.key_gradients(&head_segments[0], 0..keys.len())?;
    let mut found = Vec::new();
    for head_segment in head_segments {
        let scan = call.with_shared(head_segment, of_keys);
        let arriving = pass.arriving(head_segment, &scan);
        let last_not_finite = call.with_workspace(head_segment.head, |workspace| {
            pass.clear_parameters(&mut workspace.chunk)?;
            let last = if call.reads_each_other(head_segment) {
                gradients.short(pass, workspace, head_segment, &scan, &arriving)?
            } else {
                let (scale, _) = scan.value_scales();
                pass.first_state(head_segment, &scan, workspace.chunk.state);
                if scan.is_clean() {
                    call.add_keys(workspace, &keys, scale)?;
                }
                arriving.import(&call.layout, scale, workspace.other);
                let queries = call.plan.query_blocks(head_segment).range(0);
                let last = pass.noncausal_queries(workspace, head_segment, &scan, queries)?;
                pass.store_dstate(head_segment, &arriving, workspace.other, &scan, last.is_some());
                std::mem::swap(workspace.chunk.state, workspace.other);
                gradients.noncausal(workspace, &scan, pass.parameters)?;
                last
            };
            found.extend(pass.parameters_of(
                head_segment,
                &workspace.chunk,
                &scan,
                last.is_some() || arriving.is_nan(),
            )?);
            Ok(last)
        })?;
        gradients.fill_with_nan(last_not_finite, &arriving);
    }
    gradients.finish();
    Ok(found)
}
