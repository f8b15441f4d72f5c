//! Head segments that are cut into blocks: states of each block first, merged in order; then gradients.
//! `docs/algorithm.md`, sections 5 and 7.

use super::arriving::Arriving;
use super::block::{Backward, CausalSegment};
use super::parameters::{OfTask, ParameterSums};
use crate::packed_omega::ParameterGradient;
use crate::plan::{BlockTask, HeadSegment};
use crate::scan::KeyScan;
use crate::state::State;
use crate::stored::CpuStored;
use crate::workspace::Workspace;
use protperf_core::{Result, try_filled};
use std::ops::Range;

/// What the queries of one block leave to others.
struct OfBlock<T> {
    state: Option<State<T>>,
    last_not_finite: Option<usize>,
    parameters: OfTask<T>,
}

/// The cotangents of whole head segments.
struct Summed<T> {
    states: Vec<State<T>>,
    last_not_finite: Vec<Option<usize>>,
}

/// What the blocks of causal head segments start from.
struct Ends<T> {
    /// For each head segment, the keys before block 0, 1, ...
    before: Vec<Vec<State<T>>>,
    /// For each head segment, the cotangents after the last block, the one before it, ...
    after: Vec<Vec<State<T>>>,
    last_not_finite: Vec<Option<usize>>,
}

/// Noncausal head segments: states of keys, then queries and states of cotangents, then keys again.
///
/// # Errors
/// `OutOfMemory`, `Interrupted`.
pub fn noncausal<S: CpuStored>(
    pass: &Backward<'_, S>,
    head_segments: &[HeadSegment],
    sums: &mut ParameterSums,
) -> Result<()> {
    let call = pass.call;
    let scans = call.scan_blocks(head_segments)?;
    let mut tasks = call.plan.key_tasks(head_segments)?;
    let arriving = arriving_at(pass, head_segments, &scans);
    let keys = summed_keys(pass, head_segments, &scans, &tasks)?;
    let cotangents = summed_cotangents(pass, head_segments, &scans, &arriving, &keys, sums)?;
    for (at, head_segment) in head_segments.iter().enumerate() {
        let is_nan = cotangents.last_not_finite[at].is_some();
        pass.store_dstate(head_segment, &arriving[at], &cotangents.states[at], &scans[at], is_nan);
    }
    let group = call.plan.shape.group().max(1);
    tasks.retain(|(at, _)| at.is_multiple_of(group));
    call.workers.fold(
        tasks.len(),
        |task| {
            let (first, range) = &tasks[task];
            let mut gradients = pass.key_gradients(&head_segments[*first], range.clone())?;
            let mut found = Vec::new();
            for (at, head_segment) in head_segments.iter().enumerate().skip(*first).take(group) {
                found.extend(call.with_workspace(head_segment.head, |workspace| {
                    pass.clear_parameters(&mut workspace.chunk)?;
                    workspace.chunk.state.copy_from(&cotangents.states[at]);
                    gradients.noncausal(workspace, &scans[at], pass.parameters)?;
                    pass.parameters_of(head_segment, &workspace.chunk, &scans[at], arriving[at].is_nan())
                })?);
                gradients.fill_with_nan(cotangents.last_not_finite[at], &arriving[at]);
            }
            gradients.finish();
            Ok(found)
        },
        |_, found| {
            sums.add(call, found);
            Ok(())
        },
    )
}

fn arriving_at<'a, S: CpuStored>(
    pass: &Backward<'a, S>,
    head_segments: &[HeadSegment],
    scans: &[KeyScan<S::Compute>],
) -> Vec<Arriving<'a, S::Compute>> {
    head_segments.iter().zip(scans).map(|(head_segment, scan)| pass.arriving(head_segment, scan)).collect()
}

/// For each head segment the state before its first key.
fn first_states<S: CpuStored>(
    pass: &Backward<'_, S>,
    head_segments: &[HeadSegment],
    scans: &[KeyScan<S::Compute>],
) -> Result<Vec<State<S::Compute>>> {
    let state_of = |(head_segment, scan)| {
        let mut state = State::new(&pass.call.layout)?;
        pass.first_state(head_segment, scan, &mut state);
        Ok(state)
    };
    head_segments.iter().zip(scans).map(state_of).collect()
}

/// For each head segment the state of cotangents after its last position.
fn last_states<S: CpuStored>(
    pass: &Backward<'_, S>,
    arriving: &[Arriving<'_, S::Compute>],
    scans: &[KeyScan<S::Compute>],
) -> Result<Vec<State<S::Compute>>> {
    let state_of = |(arriving, scan): (&Arriving<'_, S::Compute>, &KeyScan<S::Compute>)| {
        let mut state = State::new(&pass.call.layout)?;
        arriving.import(&pass.call.layout, scan.value_scales().0, &mut state);
        Ok(state)
    };
    arriving.iter().zip(scans).map(state_of).collect()
}

/// The state of all keys of each head segment.
fn summed_keys<S: CpuStored>(
    pass: &Backward<'_, S>,
    head_segments: &[HeadSegment],
    scans: &[KeyScan<S::Compute>],
    tasks: &[BlockTask],
) -> Result<Vec<State<S::Compute>>> {
    let (call, mut states) = (pass.call, first_states(pass, head_segments, scans)?);
    call.workers.fold(
        tasks.len(),
        |task| {
            let (at, range) = &tasks[task];
            call.with_workspace(head_segments[*at].head, |workspace| {
                if scans[*at].is_clean() {
                    let keys = call.keys(&head_segments[*at]).part(range.clone(), false);
                    call.add_keys(workspace, &keys, scans[*at].value_scales().0)?;
                }
                workspace.chunk.state.try_clone()
            })
        },
        |task, state| {
            states[tasks[task].0].merge(&state);
            Ok(())
        },
    )?;
    Ok(states)
}

/// dq of every query, and the state of all cotangents of each head segment.
fn summed_cotangents<S: CpuStored>(
    pass: &Backward<'_, S>,
    head_segments: &[HeadSegment],
    scans: &[KeyScan<S::Compute>],
    arriving: &[Arriving<'_, S::Compute>],
    keys: &[State<S::Compute>],
    sums: &mut ParameterSums,
) -> Result<Summed<S::Compute>> {
    let call = pass.call;
    let mut summed =
        Summed { states: last_states(pass, arriving, scans)?, last_not_finite: try_filled(head_segments.len(), None)? };
    let tasks = call.plan.query_tasks(head_segments)?;
    call.workers.fold(
        tasks.len(),
        |task| {
            let (at, range) = &tasks[task];
            let head_segment = &head_segments[*at];
            call.with_workspace(head_segment.head, |workspace| {
                pass.clear_parameters(&mut workspace.chunk)?;
                workspace.chunk.state.copy_from(&keys[*at]);
                workspace.other.clear();
                let last_not_finite = pass.noncausal_queries(workspace, head_segment, &scans[*at], range.clone())?;
                let parameters =
                    pass.parameters_of(head_segment, &workspace.chunk, &scans[*at], last_not_finite.is_some())?;
                Ok(OfBlock { state: Some(workspace.other.try_clone()?), last_not_finite, parameters })
            })
        },
        |task, found: OfBlock<S::Compute>| {
            let at = tasks[task].0;
            found.state.iter().for_each(|state| summed.states[at].merge(state));
            summed.last_not_finite[at] = summed.last_not_finite[at].max(found.last_not_finite);
            sums.add(call, found.parameters);
            Ok(())
        },
    )?;
    Ok(summed)
}

/// Causal head segments: states of each block's keys and of its cotangents, merged from both ends; then each block's
/// gradients from the states before and after it.
///
/// # Errors
/// `OutOfMemory`, `Interrupted`.
pub fn causal<S: CpuStored>(
    pass: &Backward<'_, S>,
    head_segments: &[HeadSegment],
    sums: &mut ParameterSums,
) -> Result<()> {
    let call = pass.call;
    let scans = call.scan_blocks(head_segments)?;
    let arriving = arriving_at(pass, head_segments, &scans);
    let ends = ends(pass, head_segments, &scans, &arriving)?;
    let group = call.plan.shape.group().max(1);
    let queries = call.plan.query_tasks(head_segments)?;
    let keys: Vec<_> = queries.iter().filter(|(at, _)| at.is_multiple_of(group)).collect();
    call.workers.fold(
        keys.len() + queries.len(),
        |task| match keys.get(task) {
            Some((first, range)) => {
                let segments = (*first..*first + group).map(|at| CausalSegment {
                    head_segment: &head_segments[at],
                    scan: &scans[at],
                    arriving: &arriving[at],
                    last_not_finite: ends.last_not_finite[at],
                });
                causal_keys(pass, segments, &ends.after[*first..], range)
            }
            None => {
                let (at, range) = &queries[task - keys.len()];
                let before = &ends.before[*at][range.start / call.plan.query_blocks(&head_segments[*at]).step()];
                pass.causal_queries(&head_segments[*at], &scans[*at], range.clone(), Some(before)).map(Vec::from_iter)
            }
        },
        |_, found| {
            sums.add(call, found);
            Ok(())
        },
    )
}

/// dk and dv of one block of a key head, from the head segments that share it and the cotangents after their blocks.
fn causal_keys<'a, S: CpuStored>(
    pass: &Backward<'_, S>,
    segments: impl Iterator<Item = CausalSegment<'a, S::Compute>>,
    after: &[Vec<State<S::Compute>>],
    range: &Range<usize>,
) -> Result<Vec<(usize, ParameterGradient<S::Compute>)>> {
    let mut segments = segments.peekable();
    let Some(first) = segments.peek() else { return Ok(Vec::new()) };
    let mut gradients = pass.key_gradients(first.head_segment, range.clone())?;
    let mut found = Vec::new();
    for (segment, after) in segments.zip(after) {
        let cotangents = pass.cotangents(segment.head_segment, segment.scan, range.clone())?;
        let blocks = pass.call.plan.query_blocks(segment.head_segment);
        let after = &after[blocks.count() - 1 - range.start / blocks.step()];
        found.extend(gradients.causal(pass, &segment, &cotangents, Some(after))?);
        gradients.fill_with_nan(segment.last_not_finite, segment.arriving);
    }
    gradients.finish();
    Ok(found)
}

fn ends<S: CpuStored>(
    pass: &Backward<'_, S>,
    head_segments: &[HeadSegment],
    scans: &[KeyScan<S::Compute>],
    arriving: &[Arriving<'_, S::Compute>],
) -> Result<Ends<S::Compute>> {
    let call = pass.call;
    let each_alone = |states: Vec<State<S::Compute>>| states.into_iter().map(|state| vec![state]).collect();
    let mut ends = Ends {
        before: each_alone(first_states(pass, head_segments, scans)?),
        after: each_alone(last_states(pass, arriving, scans)?),
        last_not_finite: try_filled(head_segments.len(), None)?,
    };
    let mut keys = call.plan.key_tasks(head_segments)?;
    // No query comes after the last block.
    keys.retain(|(at, range)| range.end < call.plan.key_blocks(&head_segments[*at]).len());
    let mut queries = call.plan.query_tasks(head_segments)?;
    queries.reverse();
    call.workers.fold(
        keys.len() + queries.len(),
        |task| match keys.get(task) {
            Some((at, range)) => call.with_workspace(head_segments[*at].head, |workspace| {
                let usable = range.start..range.start + scans[*at].usable(range, true);
                let keys = call.keys(&head_segments[*at]).part(usable, false);
                call.add_keys(workspace, &keys, scans[*at].value_scales().0)?;
                let state = Some(workspace.chunk.state.try_clone()?);
                Ok(OfBlock { state, last_not_finite: None, parameters: None })
            }),
            None => {
                let (at, range) = &queries[task - keys.len()];
                block_cotangents(pass, &head_segments[*at], &scans[*at], range)
            }
        },
        |task, found: OfBlock<S::Compute>| {
            let (at, states) = match keys.get(task) {
                Some((at, _)) => (*at, &mut ends.before[*at]),
                None => (queries[task - keys.len()].0, &mut ends.after[queries[task - keys.len()].0]),
            };
            if let Some(mut state) = found.state {
                state.merge(&states[states.len() - 1]);
                states.push(state);
            }
            ends.last_not_finite[at] = ends.last_not_finite[at].max(found.last_not_finite);
            Ok(())
        },
    )?;
    Ok(ends)
}

/// The state of a block's cotangents, in reversed time; none for the first block, before which no key comes.
fn block_cotangents<S: CpuStored>(
    pass: &Backward<'_, S>,
    head_segment: &HeadSegment,
    scan: &KeyScan<S::Compute>,
    range: &Range<usize>,
) -> Result<OfBlock<S::Compute>> {
    let call = pass.call;
    let cotangents = pass.cotangents(head_segment, scan, range.clone())?;
    let of_block = |state| OfBlock { state, last_not_finite: cotangents.last_not_finite, parameters: None };
    if range.start == 0 {
        return Ok(of_block(None));
    }
    call.with_workspace(head_segment.head, |workspace| {
        let Workspace { chunk, keys: rows, features, .. } = workspace;
        call.workers.for_each_chunk(range.len(), |low, count| {
            let adding = chunk.project_keys(cotangents.load(call, rows, low, count, true), features);
            chunk.update_state(adding);
        })?;
        Ok(of_block(Some(chunk.state.try_clone()?)))
    })
}
