//! The backward pass of lines that are cut into blocks: states of each block first, merged in order; then gradients.

use super::{Backward, Directions, Part};
use crate::call::{Facts, Line, tasks};
use crate::cotangent::Cotangents;
use crate::ops::CpuElement;
use crate::state::State;
use crate::workspace::try_filled;
use protperf_core::Result;
use std::ops::Range;

/// Blocks with the index of their line.
type Blocks = [(usize, Range<usize>)];

/// What one block leaves to others.
struct Local<E> {
    state: Option<State<E>>,
    last_bad: Option<usize>,
    part: Part<E>,
}

/// The cotangents of whole lines.
struct Summed<E> {
    states: Vec<State<E>>,
    last_bad: Vec<Option<usize>>,
}

/// What the blocks of causal lines start from.
struct Ends<E> {
    /// Of each line, the keys before block 0, 1, ...
    before: Vec<Vec<State<E>>>,
    /// Of each line, the cotangents after the last block, the one before it, ...
    after: Vec<Vec<State<E>>>,
    last_bad: Vec<Option<usize>>,
}

impl<E: CpuElement> Backward<'_, E> {
    /// Noncausal lines: states of keys, then queries and states of cotangents, then keys again.
    pub(super) fn cut_noncausal(&self, lines: &[Line], sums: &mut Directions) -> Result<()> {
        let call = self.call;
        let facts = call.facts_of(lines)?;
        let mut blocks = tasks(lines, |line| call.key_blocks(line))?;
        let keys = self.summed_keys(lines, &facts, &blocks)?;
        let cotangents = self.summed_cotangents(lines, &facts, &keys, sums)?;
        let group = call.shape.group().max(1);
        blocks.retain(|(at, _)| at.is_multiple_of(group));
        call.fold(
            blocks.len(),
            |task| {
                let (first, range) = &blocks[task];
                let mut block = self.key_block(&lines[*first], &facts[*first], range.clone());
                let mut parts = Vec::new();
                for (at, line) in lines.iter().enumerate().skip(*first).take(group) {
                    parts.extend(call.with_sweep(line.head, |sweep| {
                        self.begin(sweep)?;
                        sweep.buffers.state.copy_from(&cotangents.states[at]);
                        block.noncausal(sweep, self.directions)?;
                        self.taken(line, sweep, false)
                    })?);
                    block.poison(cotangents.last_bad[at]);
                }
                Ok(parts)
            },
            |_, parts| {
                sums.add(parts);
                Ok(())
            },
        )
    }

    fn empty_states(&self, lines: &[Line]) -> Result<Vec<State<E>>> {
        lines.iter().map(|_| State::new(&self.call.widths)).collect()
    }

    /// The state of all keys of each line.
    fn summed_keys(&self, lines: &[Line], facts: &[Facts<E>], blocks: &Blocks) -> Result<Vec<State<E>>> {
        let (call, mut states) = (self.call, self.empty_states(lines)?);
        call.fold(
            blocks.len(),
            |task| {
                let (at, range) = &blocks[task];
                call.with_sweep(lines[*at].head, |sweep| {
                    if facts[*at].bad.is_none() {
                        call.absorb_keys(sweep, &call.keys(&lines[*at]).part(range.clone(), false), E::ONE)?;
                    }
                    sweep.buffers.state.try_clone()
                })
            },
            |task, state| {
                states[blocks[task].0].merge(&state);
                Ok(())
            },
        )?;
        Ok(states)
    }

    /// dq of every query, and the state of all cotangents of each line.
    fn summed_cotangents(
        &self,
        lines: &[Line],
        facts: &[Facts<E>],
        keys: &[State<E>],
        sums: &mut Directions,
    ) -> Result<Summed<E>> {
        let call = self.call;
        let mut summed = Summed { states: self.empty_states(lines)?, last_bad: try_filled(lines.len(), None)? };
        let blocks = tasks(lines, |line| call.query_blocks(line))?;
        call.fold(
            blocks.len(),
            |task| {
                let (at, range) = &blocks[task];
                let line = &lines[*at];
                call.with_sweep(line.head, |sweep| {
                    self.begin(sweep)?;
                    sweep.buffers.state.copy_from(&keys[*at]);
                    let last_bad = self.noncausal_queries(sweep, line, &facts[*at], range.clone())?;
                    let part = self.taken(line, sweep, last_bad.is_some())?;
                    Ok(Local { state: Some(sweep.buffers.other.try_clone()?), last_bad, part })
                })
            },
            |task, found: Local<E>| {
                let at = blocks[task].0;
                found.state.iter().for_each(|state| summed.states[at].merge(state));
                summed.last_bad[at] = summed.last_bad[at].max(found.last_bad);
                sums.add(found.part);
                Ok(())
            },
        )?;
        Ok(summed)
    }

    /// Causal lines: states of each block's keys and of its cotangents, merged from both ends; then each block's
    /// gradients from the states before and after it.
    pub(super) fn cut_causal(&self, lines: &[Line], sums: &mut Directions) -> Result<()> {
        let call = self.call;
        let facts = call.facts_of(lines)?;
        let ends = self.ends(lines, &facts)?;
        let group = call.shape.group().max(1);
        let queries = tasks(lines, |line| call.query_blocks(line))?;
        let keys: Vec<_> = queries.iter().filter(|(at, _)| at.is_multiple_of(group)).collect();
        call.fold(
            keys.len() + queries.len(),
            |task| {
                let Some((first, range)) = keys.get(task) else {
                    let (at, range) = &queries[task - keys.len()];
                    let block = range.start / call.query_blocks(&lines[*at]).step();
                    let before = &ends.before[*at][block];
                    return Ok(Vec::from_iter(self.causal_queries(
                        &lines[*at],
                        &facts[*at],
                        range.clone(),
                        Some(before),
                    )?));
                };
                let mut block = self.key_block(&lines[*first], &facts[*first], range.clone());
                let mut parts = Vec::new();
                for (at, line) in lines.iter().enumerate().skip(*first).take(group) {
                    let rows = Cotangents::new(call, self.saved, line, range.clone(), facts[at].bad)?;
                    let blocks = call.query_blocks(line);
                    let after = &ends.after[at][blocks.count() - 1 - range.start / blocks.step()];
                    parts.extend(block.causal(self, line, &rows, Some(after))?);
                    block.poison(ends.last_bad[at]);
                }
                Ok(parts)
            },
            |_, parts| {
                sums.add(parts);
                Ok(())
            },
        )
    }

    fn ends(&self, lines: &[Line], facts: &[Facts<E>]) -> Result<Ends<E>> {
        let call = self.call;
        let first = || Ok(self.empty_states(lines)?.into_iter().map(|state| vec![state]).collect::<Vec<_>>());
        let mut ends = Ends { before: first()?, after: first()?, last_bad: try_filled(lines.len(), None)? };
        let mut keys = tasks(lines, |line| call.key_blocks(line))?;
        // Nobody reads after the last block.
        keys.retain(|(at, range)| range.end < call.key_blocks(&lines[*at]).len());
        let mut queries = tasks(lines, |line| call.query_blocks(line))?;
        queries.reverse();
        call.fold(
            keys.len() + queries.len(),
            |task| match keys.get(task) {
                Some((at, range)) => call.with_sweep(lines[*at].head, |sweep| {
                    let usable = range.start..range.start + facts[*at].usable(range);
                    call.absorb_keys(sweep, &call.keys(&lines[*at]).part(usable, false), E::ONE)?;
                    Ok(Local { state: Some(sweep.buffers.state.try_clone()?), last_bad: None, part: None })
                }),
                None => {
                    let (at, range) = &queries[task - keys.len()];
                    self.local_cotangents(&lines[*at], &facts[*at], range)
                }
            },
            |task, found: Local<E>| {
                let (at, states) = match keys.get(task) {
                    Some((at, _)) => (*at, &mut ends.before[*at]),
                    None => (queries[task - keys.len()].0, &mut ends.after[queries[task - keys.len()].0]),
                };
                if let Some(mut state) = found.state {
                    state.merge(&states[states.len() - 1]);
                    states.push(state);
                }
                ends.last_bad[at] = ends.last_bad[at].max(found.last_bad);
                Ok(())
            },
        )?;
        Ok(ends)
    }

    /// The state of a block's cotangents, in reversed time; none for the first block, before which nobody reads.
    fn local_cotangents(&self, line: &Line, facts: &Facts<E>, range: &Range<usize>) -> Result<Local<E>> {
        let call = self.call;
        let rows = Cotangents::new(call, self.saved, line, range.clone(), facts.bad)?;
        let local = |state| Local { state, last_bad: rows.last_bad, part: None };
        if range.start == 0 {
            return Ok(local(None));
        }
        call.with_sweep(line.head, |sweep| {
            call.chunks(range.len(), |low, n| {
                rows.load(call, &mut sweep.buffers.writer, low, n, true);
                sweep.absorb(n, false);
                sweep.commit(n);
            })?;
            Ok(local(Some(sweep.buffers.state.try_clone()?)))
        })
    }
}
