//! Head segments that are cut into blocks: states of each block first, merged in order; then gradients.

use super::block::Backward;
use super::omega_gradient::{DirectionGradient, OmegaGradient};
use crate::ops::CpuElement;
use crate::plan::{BlockTask, HeadSegment};
use crate::scan::KeyScan;
use crate::state::State;
use protperf_core::{Result, try_filled};
use std::ops::Range;

/// What the queries of one block leave to others.
struct OfBlock<T> {
    state: Option<State<T>>,
    last_not_finite: Option<usize>,
    directions: DirectionGradient<T>,
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
pub fn noncausal<T: CpuElement>(pass: &Backward<'_, T>, parts: &[HeadSegment], sums: &mut OmegaGradient) -> Result<()> {
    let call = pass.call;
    let scans = call.scan_blocks(parts)?;
    let mut tasks = call.plan.key_tasks(parts)?;
    let keys = summed_keys(pass, parts, &scans, &tasks)?;
    let cotangents = summed_cotangents(pass, parts, &scans, &keys, sums)?;
    let group = call.plan.shape.group().max(1);
    tasks.retain(|(at, _)| at.is_multiple_of(group));
    call.workers.fold(
        tasks.len(),
        |task| {
            let (first, range) = &tasks[task];
            let mut gradients = pass.key_gradients(&parts[*first], &scans[*first], range.clone());
            let mut found = Vec::new();
            for (at, part) in parts.iter().enumerate().skip(*first).take(group) {
                found.extend(call.with_workspace(part.head, |workspace| {
                    pass.clear_directions(&mut workspace.chunk)?;
                    workspace.chunk.state.copy_from(&cotangents.states[at]);
                    gradients.noncausal(workspace, pass.directions)?;
                    pass.directions(part, &workspace.chunk, false)
                })?);
                gradients.fill_with_nan(cotangents.last_not_finite[at]);
            }
            Ok(found)
        },
        |_, found| {
            sums.add(found);
            Ok(())
        },
    )
}

fn empty_states<T: CpuElement>(pass: &Backward<'_, T>, parts: &[HeadSegment]) -> Result<Vec<State<T>>> {
    parts.iter().map(|_| State::new(&pass.call.layout)).collect()
}

/// The state of all keys of each head segment.
fn summed_keys<T: CpuElement>(
    pass: &Backward<'_, T>,
    parts: &[HeadSegment],
    scans: &[KeyScan<T>],
    tasks: &[BlockTask],
) -> Result<Vec<State<T>>> {
    let (call, mut states) = (pass.call, empty_states(pass, parts)?);
    call.workers.fold(
        tasks.len(),
        |task| {
            let (at, range) = &tasks[task];
            call.with_workspace(parts[*at].head, |workspace| {
                if scans[*at].first_not_finite.is_none() {
                    call.add_keys(workspace, &call.keys(&parts[*at]).part(range.clone(), false), T::ONE)?;
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
fn summed_cotangents<T: CpuElement>(
    pass: &Backward<'_, T>,
    parts: &[HeadSegment],
    scans: &[KeyScan<T>],
    keys: &[State<T>],
    sums: &mut OmegaGradient,
) -> Result<Summed<T>> {
    let call = pass.call;
    let mut summed = Summed { states: empty_states(pass, parts)?, last_not_finite: try_filled(parts.len(), None)? };
    let tasks = call.plan.query_tasks(parts)?;
    call.workers.fold(
        tasks.len(),
        |task| {
            let (at, range) = &tasks[task];
            let part = &parts[*at];
            call.with_workspace(part.head, |workspace| {
                pass.clear_directions(&mut workspace.chunk)?;
                workspace.chunk.state.copy_from(&keys[*at]);
                let last_not_finite = pass.noncausal_queries(workspace, part, &scans[*at], range.clone())?;
                let directions = pass.directions(part, &workspace.chunk, last_not_finite.is_some())?;
                Ok(OfBlock { state: Some(workspace.other.try_clone()?), last_not_finite, directions })
            })
        },
        |task, found: OfBlock<T>| {
            let at = tasks[task].0;
            found.state.iter().for_each(|state| summed.states[at].merge(state));
            summed.last_not_finite[at] = summed.last_not_finite[at].max(found.last_not_finite);
            sums.add(found.directions);
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
pub fn causal<T: CpuElement>(pass: &Backward<'_, T>, parts: &[HeadSegment], sums: &mut OmegaGradient) -> Result<()> {
    let call = pass.call;
    let scans = call.scan_blocks(parts)?;
    let ends = ends(pass, parts, &scans)?;
    let group = call.plan.shape.group().max(1);
    let queries = call.plan.query_tasks(parts)?;
    let keys: Vec<_> = queries.iter().filter(|(at, _)| at.is_multiple_of(group)).collect();
    call.workers.fold(
        keys.len() + queries.len(),
        |task| match keys.get(task) {
            Some((first, range)) => causal_keys(pass, &parts[*first..][..group], *first, range, &scans, &ends),
            None => {
                let (at, range) = &queries[task - keys.len()];
                let before = &ends.before[*at][range.start / call.plan.query_blocks(&parts[*at]).step()];
                pass.causal_queries(&parts[*at], &scans[*at], range.clone(), Some(before)).map(Vec::from_iter)
            }
        },
        |_, found| {
            sums.add(found);
            Ok(())
        },
    )
}

/// dk and dv of one block of a key head, from the head segments that share it, the first of which is number `first`.
fn causal_keys<T: CpuElement>(
    pass: &Backward<'_, T>,
    parts: &[HeadSegment],
    first: usize,
    range: &Range<usize>,
    scans: &[KeyScan<T>],
    ends: &Ends<T>,
) -> Result<Vec<(usize, Vec<T>)>> {
    let mut gradients = pass.key_gradients(&parts[0], &scans[first], range.clone());
    let mut found = Vec::new();
    for (at, part) in (first..).zip(parts) {
        let cotangents = pass.cotangents(part, &scans[at], range.clone())?;
        let blocks = pass.call.plan.query_blocks(part);
        let after = &ends.after[at][blocks.count() - 1 - range.start / blocks.step()];
        found.extend(gradients.causal(pass, part, &cotangents, Some(after))?);
        gradients.fill_with_nan(ends.last_not_finite[at]);
    }
    Ok(found)
}

fn ends<T: CpuElement>(pass: &Backward<'_, T>, parts: &[HeadSegment], scans: &[KeyScan<T>]) -> Result<Ends<T>> {
    let call = pass.call;
    let first = || Ok(empty_states(pass, parts)?.into_iter().map(|state| vec![state]).collect::<Vec<_>>());
    let mut ends = Ends { before: first()?, after: first()?, last_not_finite: try_filled(parts.len(), None)? };
    let mut keys = call.plan.key_tasks(parts)?;
    // No query comes after the last block.
    keys.retain(|(at, range)| range.end < call.plan.key_blocks(&parts[*at]).len());
    let mut queries = call.plan.query_tasks(parts)?;
    queries.reverse();
    call.workers.fold(
        keys.len() + queries.len(),
        |task| match keys.get(task) {
            Some((at, range)) => call.with_workspace(parts[*at].head, |workspace| {
                let usable = range.start..range.start + scans[*at].usable(range);
                call.add_keys(workspace, &call.keys(&parts[*at]).part(usable, false), T::ONE)?;
                let state = Some(workspace.chunk.state.try_clone()?);
                Ok(OfBlock { state, last_not_finite: None, directions: None })
            }),
            None => {
                let (at, range) = &queries[task - keys.len()];
                block_cotangents(pass, &parts[*at], &scans[*at], range)
            }
        },
        |task, found: OfBlock<T>| {
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
fn block_cotangents<T: CpuElement>(
    pass: &Backward<'_, T>,
    part: &HeadSegment,
    scan: &KeyScan<T>,
    range: &Range<usize>,
) -> Result<OfBlock<T>> {
    let call = pass.call;
    let cotangents = pass.cotangents(part, scan, range.clone())?;
    let of_block = |state| OfBlock { state, last_not_finite: cotangents.last_not_finite, directions: None };
    if range.start == 0 {
        return Ok(of_block(None));
    }
    call.with_workspace(part.head, |workspace| {
        let crate::workspace::Workspace { chunk, keys: rows, features, .. } = workspace;
        call.workers.for_each_chunk(range.len(), |low, count| {
            let adding = chunk.project_keys(cotangents.load(call, rows, low, count, true), features);
            chunk.update_state(adding);
        })?;
        Ok(of_block(Some(chunk.state.try_clone()?)))
    })
}
