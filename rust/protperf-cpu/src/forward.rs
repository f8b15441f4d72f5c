//! The forward pass: keys add to a state, queries read it.
//!
//! A line (one head of one batch entry in one segment) is one task, or, where the shape says so (`blocks`), a task for
//! each of its blocks: first every block's keys alone, then, with those states merged in order, its queries.

use crate::call::{Call, Context, Facts, Keys, Line, SharedOut, check_len, tasks};
use crate::load::Rows;
use crate::ops::CpuElement;
use crate::state::State;
use crate::sweep::{Sweep, Want};
use crate::workspace::CHUNK;
use protperf_core::{Error, FavorArgs, Result};
use std::ops::Range;

/// Linear attention on the CPU.
///
/// Working memory beside inputs and outputs is the scratch of each thread, whatever the length: 0.9 MB at f32, D = E =
/// 64 and M = 256. A long sequence of few heads is worked on in blocks of at least 1024 positions; then there is also
/// one state `[F,2+E]` a head, and in the causal form one a block.
///
/// # Shapes
/// out `[B,H,L,E]`; den `[B,H,L,2]`, for each row T and p with the denominator `p 2^T` and p in [1/2, 1) (0 where the
/// row sees no key); states `[B,H,F,2+E]`.
///
/// # Errors
/// As [`FavorArgs::validate`]; `OutOfMemory`; `Interrupted`.
pub fn favor_forward<E: CpuElement>(
    args: &FavorArgs<'_, E>,
    state_in: Option<&[E]>,
    out: &mut [E],
    den: &mut [E],
    state_out: Option<&mut [E]>,
    ctx: &Context<'_>,
) -> Result<()> {
    let call = Call::new(args, ctx)?;
    let s = &call.shape;
    let [rows, state] = [s.batch * s.heads * s.q_len, s.state().iter().product()];
    let wants_state = state_in.is_some() || state_out.is_some();
    if wants_state && (!args.causal || call.args.cu_seqlens.is_some()) {
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
    let (cut, whole) = call.lines()?;
    let pass = Forward {
        call: &call,
        out: SharedOut::new(out),
        den: SharedOut::new(den),
        state_in,
        state_out: state_out.map(SharedOut::new),
    };
    pass.cut(&cut)?;
    call.run(whole.len(), |at| pass.whole(&whole[at]))
}

struct Forward<'a, E: CpuElement> {
    call: &'a Call<'a, E>,
    out: SharedOut<E>,
    den: SharedOut<E>,
    state_in: Option<&'a [E]>,
    state_out: Option<SharedOut<E>>,
}

impl<'a, E: CpuElement> Forward<'a, E> {
    /// A line as one task.
    fn whole(&self, line: &Line) -> Result<()> {
        let (call, keys) = (self.call, self.call.keys(line));
        let facts = call.facts(&keys, 0..keys.keys.len)?;
        call.with_sweep(line.head, |sweep| {
            self.begin(line, &facts, &mut sweep.buffers.state);
            if !call.args.causal && self.end(line, &facts, keys.keys.len) > 0 {
                call.absorb_keys(sweep, &keys, E::exp2_int(-facts.power()))?;
            }
            self.rows(sweep, line, &facts, call.query_blocks(line).range(0))
        })
    }

    /// Lines as one task a block.
    fn cut(&self, lines: &[Line]) -> Result<()> {
        let call = self.call;
        let facts = call.facts_of(lines)?;
        // What the queries of each block, or of all blocks, start from.
        let mut states: Vec<Vec<State<E>>> = Vec::new();
        for (line, facts) in lines.iter().zip(&facts) {
            let mut first = State::new(&call.widths)?;
            self.begin(line, facts, &mut first);
            states.push(vec![first]);
        }
        let mut blocks = tasks(lines, |line| call.key_blocks(line))?;
        if call.args.causal {
            // Nobody reads after the last block.
            blocks.retain(|(at, range)| range.end < call.key_blocks(&lines[*at]).len());
        }
        call.fold(
            blocks.len(),
            |task| {
                let (at, range) = &blocks[task];
                let keys = call.keys(&lines[*at]);
                let range = range.start..range.end.min(self.end(&lines[*at], &facts[*at], keys.keys.len));
                call.with_sweep(lines[*at].head, |sweep| {
                    if !range.is_empty() {
                        call.absorb_keys(sweep, &keys.part(range, false), E::exp2_int(-facts[*at].power()))?;
                    }
                    sweep.buffers.state.try_clone()
                })
            },
            |task, mut state| {
                let states = &mut states[blocks[task].0];
                if call.args.causal {
                    state.merge(&states[states.len() - 1]);
                    states.push(state);
                } else {
                    states[0].merge(&state);
                }
                Ok(())
            },
        )?;
        let blocks = tasks(lines, |line| call.query_blocks(line))?;
        call.run(blocks.len(), |task| {
            let (at, range) = &blocks[task];
            let block = if call.args.causal { range.start / call.query_blocks(&lines[*at]).step() } else { 0 };
            call.with_sweep(lines[*at].head, |sweep| {
                sweep.buffers.state.copy_from(&states[*at][block]);
                self.rows(sweep, &lines[*at], &facts[*at], range.clone())
            })
        })
    }

    fn own_state<'b>(&self, all: &'b [E], line: &Line) -> &'b [E] {
        let s = &self.call.shape;
        let size = s.feature_dim * (s.value_dim + 2);
        &all[(line.batch * s.heads + line.head) * size..][..size]
    }

    /// The state before the line's first key.
    fn begin(&self, line: &Line, facts: &Facts<E>, state: &mut State<E>) {
        if let Some(all) = self.state_in {
            state.import(&self.call.widths, self.own_state(all, line));
            state.scale_values(E::exp2_int(-facts.power()));
        }
    }

    /// Rows from here on see something that is not finite.
    fn end(&self, line: &Line, facts: &Facts<E>, len: usize) -> usize {
        let poisoned = self.state_in.is_some_and(|all| self.own_state(all, line).iter().any(|x| !x.is_finite()));
        match facts.bad {
            _ if poisoned => 0,
            Some(at) if self.call.args.causal => at,
            Some(_) => 0,
            None => len,
        }
    }

    /// Outputs of some queries from the state before them, or of all keys.
    fn rows(&self, sweep: &mut Sweep<'_, E>, line: &Line, facts: &Facts<E>, range: Range<usize>) -> Result<()> {
        let (call, e) = (self.call, self.call.shape.value_dim);
        let all = call.queries(&call.args.q, line);
        let row = call.first_query(line) + range.start;
        // SAFETY: this task alone has the rows of this line and block.
        let (out, den) =
            unsafe { (self.out.range(row * e, range.len() * e), self.den.range(row * 2, range.len() * 2)) };
        let end = self.end(line, facts, all.len);
        let usable = end.clamp(range.start, range.end) - range.start;
        let last = range.end == all.len;
        let mut block = Block { call, queries: all.part(range.clone(), false), power: facts.power(), out, den };
        if call.args.causal {
            let keys = call.keys(line).part(range, false);
            block.causal(sweep, &keys, usable, last && self.state_out.is_some())?;
        } else {
            call.chunks(usable, |low, n| block.read(sweep, low, n, false))?;
        }
        block.poison(usable);
        if let Some(state_out) = self.state_out.as_ref().filter(|_| last) {
            let size = call.shape.feature_dim * (e + 2);
            // SAFETY: one task has the last rows of a line, and there is one segment.
            let to = unsafe { state_out.range((line.batch * call.shape.heads + line.head) * size, size) };
            sweep.buffers.state.scale_values(E::exp2_int(facts.power()));
            sweep.buffers.state.export(&call.widths, to);
            if end < all.len || facts.bad.is_some() {
                to.fill(E::from_f64(f64::NAN));
            }
        }
        Ok(())
    }
}

/// Some queries of a line, and where their outputs go.
struct Block<'a, E: CpuElement> {
    call: &'a Call<'a, E>,
    queries: Rows<'a, E>,
    power: E,
    out: &'a mut [E],
    den: &'a mut [E],
}

impl<E: CpuElement> Block<'_, E> {
    /// The first `usable` rows, each of which sees the state and the keys up to its own.
    fn causal(&mut self, sweep: &mut Sweep<'_, E>, keys: &Keys<'_, E>, usable: usize, keep: bool) -> Result<()> {
        let scale = E::exp2_int(-self.power);
        self.call.chunks(usable, |low, n| {
            self.call.load_keys(&mut sweep.buffers.writer, keys, low, n, scale);
            sweep.absorb(n, true);
            self.read(sweep, low, n, true);
            if keep || low + CHUNK < usable {
                sweep.commit(n);
            }
        })
    }

    fn read(&mut self, sweep: &mut Sweep<'_, E>, low: usize, n: usize, local: bool) {
        self.call.load_queries(&mut sweep.buffers.reader, &self.queries, low, n);
        sweep.read(n, Want { sums: true, normalize: true, local, ..Want::default() });
        self.store(sweep, low, n);
    }

    fn store(&mut self, sweep: &Sweep<'_, E>, low: usize, n: usize) {
        let (e, b) = (self.call.shape.value_dim, &*sweep.buffers);
        let payload_row = self.call.widths.payload_row();
        let back = E::exp2_int(self.power);
        for r in 0..n {
            let (to, den) = (&mut self.out[(low + r) * e..][..e], &mut self.den[(low + r) * 2..][..2]);
            let denominator = b.denominator[r];
            if !b.reader.finite[r] {
                to.fill(E::from_f64(f64::NAN));
                den.copy_from_slice(&[E::ZERO, E::from_f64(f64::NAN)]);
                continue;
            }
            if denominator == E::ZERO {
                to.fill(E::ZERO);
                den.fill(E::ZERO);
                continue;
            }
            for (to, &numerator) in to.iter_mut().zip(&b.numerator[r * payload_row..]) {
                *to = numerator / denominator;
            }
            if self.power != E::ZERO {
                to.iter_mut().for_each(|x| *x = limited(*x * back));
            }
            let (exponent, mantissa) = denominator.frexp();
            den.copy_from_slice(&[b.exponent[r] + exponent, mantissa]);
        }
    }

    /// Rows from `usable` on see something that is not finite.
    fn poison(&mut self, usable: usize) {
        let nan = E::from_f64(f64::NAN);
        self.out[usable * self.call.shape.value_dim..].fill(nan);
        for row in self.den[usable * 2..].chunks_exact_mut(2) {
            row.copy_from_slice(&[E::ZERO, nan]);
        }
    }
}

/// The nearest finite value.
fn limited<E: CpuElement>(x: E) -> E {
    if x > E::MOST {
        E::MOST
    } else if x < -E::MOST {
        -E::MOST
    } else {
        x
    }
}
