//! The forward pass: keys add to a state, queries read it. `docs/algorithm.md`, section 1.
//!
//! A head's segment is one task or, where the shape says so (`blocks.rs`), a task for each of its blocks: first every
//! block's keys alone, then, with those states merged in order, its queries.

use crate::call::{Call, Context};
use crate::chunk::{Answers, ReadOptions};
use crate::layout::CHUNK;
use crate::load::{KeyView, RowView};
use crate::ops::CpuElement;
use crate::plan::HeadSegment;
use crate::scan::KeyScan;
use crate::shared_out::SharedOut;
use crate::state::State;
use crate::workspace::Workspace;
use protperf_core::{Error, FavorArgs, Result, check_len};
use std::ops::Range;

/// Linear attention on the CPU.
///
/// Working memory besides inputs and outputs is the scratch of each thread, whatever the length: 0.9 MB at f32, D = E =
/// 64 and M = 256. A long sequence of few heads is worked on in blocks of at least 1024 positions; then there is also
/// one state `[F,2+E]` per head, and in the causal form one per block.
///
/// # Shapes
/// out `[B,H,L,E]`; den `[B,H,L,2]`, for each row T and p with the denominator `p 2^T` and p in [1/2, 1) (0 where the
/// row sees no key); states `[B,H,F,2+E]`.
///
/// # Errors
/// As [`FavorArgs::validate`]; `OutOfMemory`; `Interrupted`.
pub fn favor_forward<T: CpuElement>(
    args: &FavorArgs<'_, T>,
    state_in: Option<&[T]>,
    out: &mut [T],
    den: &mut [T],
    state_out: Option<&mut [T]>,
    ctx: &Context<'_>,
) -> Result<()> {
    let call = Call::new(args, ctx)?;
    let s = &call.plan.shape;
    let [rows, state] = [s.batch * s.heads * s.q_len, s.state().iter().product()];
    let wants_state = state_in.is_some() || state_out.is_some();
    if wants_state && (!args.causal || args.cu_seqlens.is_some()) {
        return Err(Error::InvalidOption {
            argument: "state",
            detail: "continues one causal sequence; it needs causal and no cu_seqlens".into(),
        });
    }
    check_len("out", out.len(), rows * s.value_dim)?;
    check_len("den", den.len(), rows * 2)?;
    if let Some(state_in) = state_in {
        check_len("state", state_in.len(), state)?;
    }
    if let Some(state_out) = &state_out {
        check_len("state", state_out.len(), state)?;
    }
    let (cut, whole) = call.plan.head_segments()?;
    let pass = Forward {
        call: &call,
        out: SharedOut::new(out),
        den: SharedOut::new(den),
        state_in,
        state_out: state_out.map(SharedOut::new),
    };
    pass.run_cut(&cut)?;
    call.workers.run(whole.len(), |at| pass.run_whole(&whole[at]))
}

struct Forward<'a, T: CpuElement> {
    call: &'a Call<'a, T>,
    out: SharedOut<T>,
    den: SharedOut<T>,
    state_in: Option<&'a [T]>,
    state_out: Option<SharedOut<T>>,
}

impl<'a, T: CpuElement> Forward<'a, T> {
    /// A head's segment as one task.
    fn run_whole(&self, part: &HeadSegment) -> Result<()> {
        let (call, keys) = (self.call, self.call.keys(part));
        let scan = call.scan(part)?;
        call.with_workspace(part.head, |workspace| {
            self.first_state(part, &scan, workspace.chunk.state);
            if !call.args.causal && self.num_usable(part, &scan, keys.len()) > 0 {
                call.add_keys(workspace, &keys, T::exp2_int(-scan.value_power()))?;
            }
            self.answer_queries(workspace, part, &scan, call.plan.query_blocks(part).range(0))
        })
    }

    /// Head segments as one task per block.
    fn run_cut(&self, parts: &[HeadSegment]) -> Result<()> {
        let call = self.call;
        let scans = call.scan_blocks(parts)?;
        let states = self.block_states(parts, &scans)?;
        let tasks = call.plan.query_tasks(parts)?;
        call.workers.run(tasks.len(), |task| {
            let (at, range) = &tasks[task];
            let block = if call.args.causal { range.start / call.plan.query_blocks(&parts[*at]).step() } else { 0 };
            call.with_workspace(parts[*at].head, |workspace| {
                workspace.chunk.state.copy_from(&states[*at][block]);
                self.answer_queries(workspace, &parts[*at], &scans[*at], range.clone())
            })
        })
    }

    /// For each head segment the states that the queries of each block start from; one state, of all keys, where the
    /// call is not causal.
    fn block_states(&self, parts: &[HeadSegment], scans: &[KeyScan<T>]) -> Result<Vec<Vec<State<T>>>> {
        let call = self.call;
        let mut states: Vec<Vec<State<T>>> = Vec::new();
        for (part, scan) in parts.iter().zip(scans) {
            let mut first = State::new(&call.layout)?;
            self.first_state(part, scan, &mut first);
            states.push(vec![first]);
        }
        let mut tasks = call.plan.key_tasks(parts)?;
        if call.args.causal {
            // No query comes after the last block.
            tasks.retain(|(at, range)| range.end < call.plan.key_blocks(&parts[*at]).len());
        }
        call.workers.fold(
            tasks.len(),
            |task| {
                let (at, range) = &tasks[task];
                let keys = call.keys(&parts[*at]);
                let range = range.start..range.end.min(self.num_usable(&parts[*at], &scans[*at], keys.len()));
                call.with_workspace(parts[*at].head, |workspace| {
                    if !range.is_empty() {
                        let scale = T::exp2_int(-scans[*at].value_power());
                        call.add_keys(workspace, &keys.part(range, false), scale)?;
                    }
                    workspace.chunk.state.try_clone()
                })
            },
            |task, mut state| {
                let states = &mut states[tasks[task].0];
                if call.args.causal {
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

    fn own_state(&self, all: &'a [T], part: &HeadSegment) -> &'a [T] {
        &all[self.call.plan.state_range(part)]
    }

    /// The state before the segment's first key.
    fn first_state(&self, part: &HeadSegment, scan: &KeyScan<T>, state: &mut State<T>) {
        if let Some(all) = self.state_in {
            state.import(&self.call.layout, self.own_state(all, part));
            state.scale_values(T::exp2_int(-scan.value_power()));
        }
    }

    /// How many rows, from the first on, see finite numbers alone.
    fn num_usable(&self, part: &HeadSegment, scan: &KeyScan<T>, len: usize) -> usize {
        let is_poisoned = self.state_in.is_some_and(|all| self.own_state(all, part).iter().any(|x| !x.is_finite()));
        match scan.first_not_finite {
            _ if is_poisoned => 0,
            Some(at) if self.call.args.causal => at,
            Some(_) => 0,
            None => len,
        }
    }

    /// Outputs of some queries, from the state before them or of all keys.
    fn answer_queries(
        &self,
        workspace: &mut Workspace<'_, T>,
        part: &HeadSegment,
        scan: &KeyScan<T>,
        range: Range<usize>,
    ) -> Result<()> {
        let (call, e) = (self.call, self.call.layout.value_dim);
        let all = call.queries(&call.args.q, part);
        let row = call.plan.first_query(part) + range.start;
        // SAFETY: this task alone has the query rows of this head, segment and block.
        let (out, den) =
            unsafe { (self.out.range(row * e, range.len() * e), self.den.range(row * 2, range.len() * 2)) };
        let num_usable = self.num_usable(part, scan, all.len);
        let usable = num_usable.clamp(range.start, range.end) - range.start;
        let is_last = range.end == all.len;
        let mut outputs =
            QueryOutputs { call, queries: all.part(range.clone(), false), value_power: scan.value_power(), out, den };
        if call.args.causal {
            let keys = call.keys(part).part(range, false);
            outputs.causal(workspace, &keys, usable, is_last && self.state_out.is_some())?;
        } else {
            outputs.noncausal(workspace, usable)?;
        }
        outputs.fill_with_nan(usable);
        if is_last {
            let is_finite = num_usable == all.len && scan.first_not_finite.is_none();
            self.store_state(workspace.chunk.state, part, scan, is_finite);
        }
        Ok(())
    }

    fn store_state(&self, state: &mut State<T>, part: &HeadSegment, scan: &KeyScan<T>, is_finite: bool) {
        let Some(state_out) = &self.state_out else { return };
        let range = self.call.plan.state_range(part);
        // SAFETY: one task has the last rows of a head, and there is one segment.
        let to = unsafe { state_out.range(range.start, range.len()) };
        state.scale_values(T::exp2_int(scan.value_power()));
        state.export(&self.call.layout, to);
        if !is_finite {
            to.fill(T::from_f64(f64::NAN));
        }
    }
}

/// Some queries of a head segment, and where their outputs go.
struct QueryOutputs<'a, T: CpuElement> {
    call: &'a Call<'a, T>,
    queries: RowView<'a, T>,
    value_power: T,
    out: &'a mut [T],
    den: &'a mut [T],
}

const FORWARD: ReadOptions = ReadOptions { sums: true, gradient: false, directions: false, normalize: true };

impl<T: CpuElement> QueryOutputs<'_, T> {
    /// The first `usable` rows, each of which sees the state and the keys up to its own. The last chunk's keys are
    /// added only where the state is wanted after them.
    fn causal(
        &mut self,
        workspace: &mut Workspace<'_, T>,
        keys: &KeyView<'_, T>,
        usable: usize,
        wants_state: bool,
    ) -> Result<()> {
        let Workspace { chunk, keys: key_rows, queries: query_rows, features, .. } = workspace;
        let (call, scale) = (self.call, T::exp2_int(-self.value_power));
        call.workers.for_each_chunk(usable, |low, count| {
            let keys = chunk.project_keys(call.loader.load_keys(key_rows, keys, low, count, scale), features);
            let queries = call.loader.load_queries(query_rows, &self.queries, low, count);
            let queries = chunk.project_queries(queries);
            self.store(&chunk.read(Some(&keys), &queries, FORWARD), low, count);
            if wants_state || low + CHUNK < usable {
                chunk.update_state(keys);
            }
        })
    }

    /// The first `usable` rows, each of which sees the state.
    fn noncausal(&mut self, workspace: &mut Workspace<'_, T>, usable: usize) -> Result<()> {
        let Workspace { chunk, queries: query_rows, .. } = workspace;
        let call = self.call;
        call.workers.for_each_chunk(usable, |low, count| {
            let queries = call.loader.load_queries(query_rows, &self.queries, low, count);
            let queries = chunk.project_queries(queries);
            self.store(&chunk.read(None, &queries, FORWARD), low, count);
        })
    }

    /// Quotients, and denominators as a mantissa and an exponent.
    fn store(&mut self, answers: &Answers<'_, T>, low: usize, count: usize) {
        let (e, value_row) = (self.call.layout.value_dim, self.call.layout.value_row());
        let back = T::exp2_int(self.value_power);
        for row in 0..count {
            let (to, den) = (&mut self.out[(low + row) * e..][..e], &mut self.den[(low + row) * 2..][..2]);
            let denominator = answers.denominator[row];
            if !answers.rows.finite[row] {
                to.fill(T::from_f64(f64::NAN));
                den.copy_from_slice(&[T::ZERO, T::from_f64(f64::NAN)]);
                continue;
            }
            if denominator == T::ZERO {
                to.fill(T::ZERO);
                den.fill(T::ZERO);
                continue;
            }
            for (to, &numerator) in to.iter_mut().zip(&answers.numerator[row * value_row..]) {
                *to = numerator / denominator;
            }
            if self.value_power != T::ZERO {
                to.iter_mut().for_each(|x| *x = limited(*x * back));
            }
            let (exponent, mantissa) = denominator.frexp();
            den.copy_from_slice(&[answers.exponent[row] + exponent, mantissa]);
        }
    }

    /// Rows from `usable` on see a number that is not finite.
    fn fill_with_nan(&mut self, usable: usize) {
        let nan = T::from_f64(f64::NAN);
        self.out[usable * self.call.layout.value_dim..].fill(nan);
        for row in self.den[usable * 2..].chunks_exact_mut(2) {
            row.copy_from_slice(&[T::ZERO, nan]);
        }
    }
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
