//! The forward pass: keys add to a state, queries read it. `docs/algorithm.md`, section 1.
//!
//! A head's segment is one task or, where the shape says so (`blocks.rs`), a task for each of its blocks: first every
//! block's keys alone, then, with those states merged in order, its queries.

use crate::call::Call;
use crate::chunk::{Answers, Keys, ReadOptions};
use crate::instructions::Instructions;
use crate::layout::CHUNK;
use crate::load::{KeyView, RowView};
use crate::ops::CpuElement;
use crate::out_rows::{OutRows, RowsMut};
use crate::outputs::RowOutputs;
use crate::plan::HeadSegment;
use crate::prepared::PreparedMap;
use crate::scan::KeyScan;
use crate::shared_out::SharedOut;
use crate::simd::Real;
use crate::state::State;
use crate::stored::{CpuStored, nan};
use crate::workspace::Workspace;
use protperf_core::{Element, Execution, FavorArgs, Result, Stored};
use std::ops::Range;

/// Linear attention on the CPU.
///
/// Working memory besides inputs and outputs is the scratch of each thread, the same for every length: 0.9 MB at f32, D = E =
/// 64 and M = 256. A long sequence of few heads is worked on in blocks of at least 1024 positions; then there is also
/// one state `[F,2+E]` per head, and in the causal form one per block.
///
/// # Errors
/// As [`Backend::forward`](protperf_core::Backend::forward).
pub fn run<S: CpuStored>(
    instructions: Instructions,
    args: &FavorArgs<'_, S>,
    prepared: Option<&PreparedMap<S::Compute>>,
    outputs: RowOutputs<'_, S>,
    run: &Execution<'_>,
) -> Result<()> {
    let call = Call::new(args, prepared, outputs.state_in, instructions, run)?;
    outputs.check(&call.plan.shape)?;
    let (cut, whole) = call.plan.head_segments()?;
    let RowOutputs { out, den, state_out, .. } = outputs;
    let (den, state_out) = (den.map(SharedOut::new), state_out.map(SharedOut::new));
    let pass = Forward { call: &call, out, den, state_out };
    pass.run_cut(&cut)?;
    call.workers.run(whole.len(), |at| pass.run_whole(&whole[at]))
}

struct Forward<'a, S: CpuStored> {
    call: &'a Call<'a, S>,
    out: OutRows<'a, S>,
    den: Option<SharedOut<S::Compute>>,
    state_out: Option<SharedOut<S::Compute>>,
}

impl<S: CpuStored> Forward<'_, S> {
    /// A head's segment as one task.
    fn run_whole(&self, segment: &HeadSegment) -> Result<()> {
        let (call, keys) = (self.call, self.call.keys(segment));
        let scan = call.scan(segment)?;
        call.with_workspace(segment.head, |workspace| {
            self.first_state(segment, &scan, workspace.chunk.state);
            let reads_keys = !call.args.causal && self.state_out.is_none() && call.reads_keys(segment);
            if !call.args.causal && !reads_keys && scan.is_clean() {
                call.add_keys(workspace, &keys, scan.value_scales().0)?;
            }
            self.answer_queries(
                workspace,
                segment,
                &scan,
                call.plan.query_blocks(segment).range(0),
                reads_keys.then_some(&keys),
            )
        })
    }

    /// Head segments as one task per block.
    fn run_cut(&self, segments: &[HeadSegment]) -> Result<()> {
        let call = self.call;
        let scans = call.scan_blocks(segments)?;
        let states = self.block_states(segments, &scans)?;
        let tasks = call.plan.query_tasks(segments)?;
        call.workers.run(tasks.len(), |task| {
            let (at, range) = &tasks[task];
            let block = if call.args.causal { range.start / call.plan.query_blocks(&segments[*at]).step() } else { 0 };
            call.with_workspace(segments[*at].head, |workspace| {
                workspace.chunk.state.copy_from(&states[*at][block]);
                self.answer_queries(workspace, &segments[*at], &scans[*at], range.clone(), None)
            })
        })
    }

    /// For each head segment the states that the queries of each block start from; one state, of all keys, where the
    /// call is not causal.
    fn block_states(&self, segments: &[HeadSegment], scans: &[KeyScan<S::Compute>]) -> Result<Vec<BlockStates<S>>> {
        let (call, causal) = (self.call, self.call.args.causal);
        let mut states: Vec<BlockStates<S>> = Vec::new();
        for (segment, scan) in segments.iter().zip(scans) {
            let mut first = State::new(&call.layout)?;
            self.first_state(segment, scan, &mut first);
            states.push(vec![first]);
        }
        let mut tasks = call.plan.key_tasks(segments)?;
        if causal {
            // No query comes after the last block.
            tasks.retain(|(at, range)| range.end < call.plan.key_blocks(&segments[*at]).len());
        }
        call.workers.fold(
            tasks.len(),
            |task| {
                let (at, range) = &tasks[task];
                let usable = range.start..range.start + scans[*at].usable(range, causal);
                call.with_workspace(segments[*at].head, |workspace| {
                    let (scale, _) = scans[*at].value_scales();
                    call.add_keys(workspace, &call.keys(&segments[*at]).part(usable, false), scale)?;
                    workspace.chunk.state.try_clone()
                })
            },
            |task, mut state| {
                let states = &mut states[tasks[task].0];
                if causal {
                    state.merge(&states[states.len() - 1]);
                    states.push(state);
                } else {
                    states[0].merge(&state);
                }
                Ok(())
            },
        )?;
        Ok(states)
    }

    /// The state before the segment's first key, its sums of values divided as the values will be.
    fn first_state(&self, segment: &HeadSegment, scan: &KeyScan<S::Compute>, state: &mut State<S::Compute>) {
        self.call.import_state(segment, state);
        state.scale_values(scan.value_scales().0);
    }

    /// Outputs of some queries, from the state before them or of all keys, or from the keys that are given.
    fn answer_queries(
        &self,
        workspace: &mut Workspace<'_, S::Compute>,
        segment: &HeadSegment,
        scan: &KeyScan<S::Compute>,
        range: Range<usize>,
        keys: Option<&KeyView<'_, S>>,
    ) -> Result<()> {
        let call = self.call;
        let all = call.queries(&call.args.q, segment);
        let (row, first) = (call.plan.first_query(segment) + range.start, call.plan.query_range(segment).start);
        // SAFETY: this task alone has the query rows of this head, segment and block.
        let out = unsafe { self.out.rows(segment.batch, segment.head, first + range.start..first + range.end) };
        // SAFETY: the same.
        let den = self.den.as_ref().map(|den| unsafe { den.range(row * 2, range.len() * 2) });
        let usable = scan.usable(&range, call.args.causal);
        let is_last = range.end == all.len;
        let mut outputs =
            QueryOutputs { call, queries: all.part(range.clone(), false), value_power: scan.value_power(), out, den };
        if call.args.causal {
            let keys = call.keys(segment).part(range, false);
            outputs.causal(workspace, &keys, usable, is_last && self.state_out.is_some())?;
        } else {
            outputs.noncausal(workspace, keys, usable)?;
        }
        outputs.fill_with_nan(usable);
        if is_last {
            self.store_state(workspace.chunk.state, segment, scan);
        }
        Ok(())
    }

    fn store_state(&self, state: &mut State<S::Compute>, segment: &HeadSegment, scan: &KeyScan<S::Compute>) {
        let Some(state_out) = &self.state_out else { return };
        let range = self.call.plan.state_range(segment);
        // SAFETY: one task has the last query rows of a head segment.
        let to = unsafe { state_out.range(range.start, range.len()) };
        state.scale_values(scan.value_scales().1);
        state.export(&self.call.layout, to);
        if !scan.is_clean() {
            to.fill(S::Compute::from_f64(f64::NAN));
        }
    }
}

/// The states that the blocks of one head segment start from.
type BlockStates<S> = Vec<State<<S as Stored>::Compute>>;

/// Some queries of a head segment, and where their outputs go.
struct QueryOutputs<'a, S: CpuStored> {
    call: &'a Call<'a, S>,
    queries: RowView<'a, S>,
    value_power: S::Compute,
    out: RowsMut<'a, S>,
    /// Denominators `[rows,2]`, where they are wanted.
    den: Option<&'a mut [S::Compute]>,
}

const FORWARD: ReadOptions = ReadOptions { sums: true, gradient: false, parameters: false, normalize: true };

impl<S: CpuStored> QueryOutputs<'_, S> {
    /// The first `usable` rows, each of which sees the state and the keys up to its own. The last chunk's keys are
    /// added only where the state is wanted after them.
    fn causal(
        &mut self,
        workspace: &mut Workspace<'_, S::Compute>,
        keys: &KeyView<'_, S>,
        usable: usize,
        wants_state: bool,
    ) -> Result<()> {
        let Workspace { chunk, keys: key_rows, queries: query_rows, features, .. } = workspace;
        let (call, omega, scale) = (self.call, chunk.head.omega, S::Compute::exp2_int(-self.value_power));
        call.workers.for_each_chunk(usable, |low, count| {
            let keys = call.loader.load_keys(omega, key_rows, keys, low, count, scale);
            let keys = chunk.project_keys(keys, features);
            let queries = call.loader.load_queries(query_rows, &self.queries, low, count);
            let queries = chunk.project_queries(queries);
            self.store(&chunk.read(Some(&keys), &queries, FORWARD), low, count);
            if wants_state || low + CHUNK < usable {
                chunk.update_state(keys);
            }
        })
    }

    /// The first `usable` rows, each of which sees the state, or all of the keys, which are one chunk.
    fn noncausal(
        &mut self,
        workspace: &mut Workspace<'_, S::Compute>,
        keys: Option<&KeyView<'_, S>>,
        usable: usize,
    ) -> Result<()> {
        let Workspace { chunk, keys: key_rows, queries: query_rows, features, .. } = workspace;
        let (call, omega, scale) = (self.call, chunk.head.omega, S::Compute::exp2_int(-self.value_power));
        let keys = keys.filter(|_| usable > 0).map(|keys| {
            let loaded = call.loader.load_keys(omega, key_rows, keys, 0, keys.len(), scale);
            Keys { is_causal: false, ..chunk.project_keys(loaded, features) }
        });
        call.workers.for_each_chunk(usable, |low, count| {
            let queries = call.loader.load_queries(query_rows, &self.queries, low, count);
            let queries = chunk.project_queries(queries);
            self.store(&chunk.read(keys.as_ref(), &queries, FORWARD), low, count);
        })
    }

    /// Quotients, and denominators as a mantissa and an exponent.
    fn store(&mut self, answers: &Answers<'_, S::Compute>, low: usize, count: usize) {
        let value_row = self.call.layout.value_row();
        let (zero, back) = (S::Compute::ZERO, S::Compute::exp2_int(self.value_power));
        for row in 0..count {
            let (to, denominator) = (self.out.row(low + row), answers.denominator[row]);
            if let Some(den) = &mut self.den {
                den[(low + row) * 2..][..2].copy_from_slice(&exponent_and_mantissa(answers, row));
            }
            if !answers.rows.finite[row] {
                to.fill(nan());
                continue;
            }
            if denominator == zero {
                to.fill(S::round(zero));
                continue;
            }
            let quotients = answers.numerator[row * value_row..].iter().map(|&numerator| numerator / denominator);
            if self.value_power == zero {
                to.iter_mut().zip(quotients).for_each(|(to, x)| *to = S::round(x));
            } else {
                to.iter_mut().zip(quotients).for_each(|(to, x)| *to = S::round(limited(x * back)));
            }
        }
    }

    /// Rows from `usable` on see a number that is not finite.
    fn fill_with_nan(&mut self, usable: usize) {
        self.out.fill(usable..self.out.len(), nan());
        for row in self.den.iter_mut().flat_map(|den| den[usable * 2..].chunks_exact_mut(2)) {
            row.copy_from_slice(&[S::Compute::ZERO, S::Compute::from_f64(f64::NAN)]);
        }
    }
}

/// The denominator of a row as T and p, `p 2^T`.
fn exponent_and_mantissa<T: CpuElement>(answers: &Answers<'_, T>, row: usize) -> [T; 2] {
    let denominator = answers.denominator[row];
    if !answers.rows.finite[row] {
        return [T::ZERO, T::from_f64(f64::NAN)];
    }
    if denominator == T::ZERO {
        return [T::ZERO; 2];
    }
    let (exponent, mantissa) = denominator.frexp();
    [answers.exponent[row] + exponent, mantissa]
}

/// The nearest finite value: scaling back may round the largest values up to infinity.
fn limited<T: CpuElement>(x: T) -> T {
    if x > T::MAX {
        T::MAX
    } else if x < -T::MAX {
        -T::MAX
    } else {
        x
    }
}
