//! The forward pass: one task for each batch entry, head and segment.

use crate::dispatch::Isa;
use crate::load::{Rows, load_inputs, load_values};
use crate::ops::{CpuElement, Ops};
use crate::parallel;
use crate::sweep::{Sweep, Want};
use crate::weights::{Weights, Widths};
use crate::workspace::{CHUNK, try_filled, try_reserved, with_scratch};
use protperf_core::{Error, FavorArgs, FavorShape, Result};
use std::sync::atomic::AtomicBool;

/// How a call runs.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// Threads of the pool; changes no bit of any result.
    pub num_threads: usize,
    /// Raised by the caller to stop the call.
    pub cancel: &'a AtomicBool,
}

/// Rows between two looks at the cancel flag in scans that do little with a row.
const SCAN: usize = 1024;

/// A checked call, ready to be split into tasks.
pub(crate) struct Call<'a, E: CpuElement> {
    pub args: &'a FavorArgs<'a, E>,
    pub shape: FavorShape,
    pub widths: Widths,
    pub ops: &'static Ops<E>,
    pub weights: Vec<Weights<E>>,
    pub segments: Vec<(usize, usize)>,
    pub cancel: &'a AtomicBool,
}

impl<'a, E: CpuElement> Call<'a, E> {
    pub fn new(args: &'a FavorArgs<'a, E>, ctx: &Context<'a>) -> Result<Self> {
        let shape = args.validate()?;
        let widths = Widths::new(args.feature_map, &shape);
        let heads = args.omega.and_then(|omega| omega.num_heads).unwrap_or(1);
        let mut weights = try_reserved(heads)?;
        for head in 0..heads {
            parallel::check(ctx.cancel)?;
            weights.push(Weights::pack(args, &widths, head)?);
        }
        let mut segments = try_reserved(args.cu_seqlens.map_or(1, <[i64]>::len))?;
        match args.cu_seqlens {
            Some(borders) => segments.extend(borders.windows(2).map(|w| (w[0] as usize, (w[1] - w[0]) as usize))),
            None => segments.push((0, shape.q_len)),
        }
        Ok(Call { args, shape, widths, ops: Ops::of(ctx.isa), weights, segments, cancel: ctx.cancel })
    }

    pub fn weights(&self, head: usize) -> &Weights<E> {
        &self.weights[if self.weights.len() == 1 { 0 } else { head }]
    }

    /// Keys of a query segment: the same rows, or all of them without segments.
    pub fn key_range(&self, segment: usize) -> (usize, usize) {
        if self.args.cu_seqlens.is_some() { self.segments[segment] } else { (0, self.shape.kv_len) }
    }

    pub fn is_padding(&self, batch: usize, position: usize) -> bool {
        self.args.key_padding_mask.is_some_and(|mask| mask[batch * self.shape.kv_len + position])
    }

    pub fn stop(&self) -> Result<()> {
        parallel::check(self.cancel)
    }

    /// Asked at every row of a scan over a whole sequence; looks at the flag now and then.
    pub fn stop_at(&self, row: usize) -> Result<()> {
        if row.is_multiple_of(SCAN) { self.stop() } else { Ok(()) }
    }

    /// Index of the first visible key of a segment whose row of k or v is not finite.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn first_bad_key(&self, keys: &Rows<'_, E>, values: &Rows<'_, E>) -> Result<Option<usize>> {
        for j in 0..keys.len {
            self.stop_at(j)?;
            let padding = self.is_padding(keys.batch, keys.position(j));
            if !padding && (!keys.is_finite(j) || !values.is_finite(j)) {
                return Ok(Some(j));
            }
        }
        Ok(None)
    }

    /// Loads keys and values of a chunk on one side.
    pub fn load_keys(
        &self,
        side: &mut crate::workspace::Side<E>,
        keys: &Rows<'_, E>,
        values: &Rows<'_, E>,
        low: usize,
        rows: usize,
        scale: E,
    ) {
        load_inputs(side, &self.widths, keys, low, rows, true);
        for r in 0..rows {
            if self.is_padding(keys.batch, keys.position(low + r)) {
                side.live[r] = false;
                side.x[r * self.widths.input_row()..][..1 + self.widths.head_dim].fill(E::ZERO);
                side.log[r] = E::ZERO;
            }
        }
        load_values(side, &self.widths, values, low, rows, scale);
    }
}

/// A contiguous output that tasks fill in disjoint ranges.
pub(crate) struct SharedOut<E> {
    pointer: *mut E,
    len: usize,
}

// SAFETY: tasks write disjoint ranges (see `range`), and E is plain data.
unsafe impl<E: Send> Sync for SharedOut<E> {}

impl<E> SharedOut<E> {
    pub fn new(out: &mut [E]) -> Self {
        SharedOut { pointer: out.as_mut_ptr(), len: out.len() }
    }

    /// A part of the output.
    ///
    /// # Safety
    /// No two live ranges overlap: each task asks only for the rows of its own batch entry, head and segment.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [E] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the slice this was made of; disjointness is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), len) }
    }
}

/// Linear attention on the CPU.
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
    let (out, den) = (SharedOut::new(out), SharedOut::new(den));
    let state_out = state_out.map(SharedOut::new);
    let tasks = s.batch * s.heads * call.segments.len();
    parallel::run(tasks, ctx.num_threads, ctx.cancel, |task| {
        let (line, segment) = (task / call.segments.len(), task % call.segments.len());
        let (start, len) = call.segments[segment];
        let row = line * s.q_len + start;
        let per_state = state / (s.batch * s.heads);
        // SAFETY: `line` and `segment` are this task's own, so no other task asks for these ranges.
        let (out, den, state_out) = unsafe {
            (
                out.range(row * s.value_dim, len * s.value_dim),
                den.range(row * 2, len * 2),
                state_out.as_ref().map(|all| all.range(line * per_state, per_state)),
            )
        };
        let state_in = state_in.map(|all| &all[line * per_state..][..per_state]);
        with_scratch(call.widths, |buffers| {
            let sweep = Sweep {
                ops: call.ops,
                weights: call.weights(line % s.heads),
                widths: call.widths,
                epsilon: E::from_f64(args.kernel_epsilon),
                buffers,
            };
            Task { call: &call, batch: line / s.heads, head: line % s.heads, segment, sweep }
                .run(state_in, out, den, state_out)
        })
    })
}

pub(crate) fn check_len(argument: &'static str, found: usize, needed: usize) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    Err(Error::ShapeMismatch { argument, detail: format!("has {found} elements, its shape needs {needed}") })
}

struct Task<'a, E: CpuElement> {
    call: &'a Call<'a, E>,
    batch: usize,
    head: usize,
    segment: usize,
    sweep: Sweep<'a, E>,
}

impl<E: CpuElement> Task<'_, E> {
    fn run(mut self, state_in: Option<&[E]>, out: &mut [E], den: &mut [E], state_out: Option<&mut [E]>) -> Result<()> {
        let (call, args) = (self.call, self.call.args);
        let (start, len) = call.segments[self.segment];
        let (key_start, key_len) = call.key_range(self.segment);
        let kv_head = self.head / call.shape.group();
        let rows = |tensor, head, start, len| Rows { tensor, batch: self.batch, head, start, len, reversed: false };
        let queries = rows(&args.q, self.head, start, len);
        let keys = rows(&args.k, kv_head, key_start, key_len);
        let values = rows(&args.v, kv_head, key_start, key_len);
        let bad = call.first_bad_key(&keys, &values)?;
        let power = value_power(call, &values)?;
        match state_in {
            Some(state) => {
                self.sweep.buffers.state.import(&call.widths, state);
                scale_values(&mut self.sweep.buffers.state.values, E::exp2_int(-power));
            }
            None => self.sweep.buffers.state.clear(),
        }
        let poisoned = state_in.is_some_and(|state| state.iter().any(|x| !x.is_finite()));
        // Rows from here on see something that is not finite.
        let end = match (poisoned, bad) {
            (true, _) => 0,
            (_, Some(at)) => {
                if args.causal {
                    at
                } else {
                    0
                }
            }
            _ => len,
        };
        let scale = E::exp2_int(-power);
        if end > 0 && args.causal {
            let state_wanted = state_out.is_some();
            for low in (0..end).step_by(CHUNK) {
                call.stop()?;
                let n = CHUNK.min(end - low);
                call.load_keys(&mut self.sweep.buffers.writer, &keys, &values, low, n, scale);
                self.sweep.absorb(n, true);
                self.read(&queries, low, n, true);
                self.store(&queries, low, n, power, out, den);
                if low + n < end || state_wanted {
                    self.sweep.commit(n);
                }
            }
        } else if end > 0 {
            for low in (0..key_len).step_by(CHUNK) {
                call.stop()?;
                let n = CHUNK.min(key_len - low);
                call.load_keys(&mut self.sweep.buffers.writer, &keys, &values, low, n, scale);
                self.sweep.absorb(n, true);
                self.sweep.commit(n);
            }
            for low in (0..len).step_by(CHUNK) {
                call.stop()?;
                let n = CHUNK.min(len - low);
                self.read(&queries, low, n, false);
                self.store(&queries, low, n, power, out, den);
            }
        }
        let nan = E::from_f64(f64::NAN);
        out[end * call.shape.value_dim..].fill(nan);
        for row in den[end * 2..].chunks_exact_mut(2) {
            row.copy_from_slice(&[E::ZERO, nan]);
        }
        if let Some(state) = state_out {
            scale_values(&mut self.sweep.buffers.state.values, E::exp2_int(power));
            self.sweep.buffers.state.export(&call.widths, state);
            if poisoned || bad.is_some() {
                state.fill(nan);
            }
        }
        Ok(())
    }

    fn read(&mut self, queries: &Rows<'_, E>, low: usize, n: usize, local: bool) {
        load_inputs(&mut self.sweep.buffers.reader, &self.call.widths, queries, low, n, false);
        self.sweep.read(n, Want { sums: true, normalize: true, local, ..Want::default() });
    }

    fn store(&mut self, queries: &Rows<'_, E>, low: usize, n: usize, power: E, out: &mut [E], den: &mut [E]) {
        let (e, b) = (self.call.shape.value_dim, &*self.sweep.buffers);
        let payload_row = self.call.widths.payload_row();
        let back = E::exp2_int(power);
        for r in 0..n {
            let (to, den) = (&mut out[(low + r) * e..][..e], &mut den[(low + r) * 2..][..2]);
            if !queries.is_finite(low + r) {
                to.fill(E::from_f64(f64::NAN));
                den.copy_from_slice(&[E::ZERO, E::from_f64(f64::NAN)]);
                continue;
            }
            let denominator = b.denominator[r];
            if denominator == E::ZERO {
                to.fill(E::ZERO);
                den.fill(E::ZERO);
                continue;
            }
            for (to, &numerator) in to.iter_mut().zip(&b.numerator[r * payload_row..]) {
                *to = numerator / denominator;
            }
            if power != E::ZERO {
                let most = E::MOST;
                to.iter_mut().for_each(|x| {
                    let scaled = *x * back;
                    *x = if scaled > most {
                        most
                    } else if scaled < -most {
                        -most
                    } else {
                        scaled
                    };
                });
            }
            let (exponent, mantissa) = denominator.frexp();
            den.copy_from_slice(&[b.exponent[r] + exponent, mantissa]);
        }
    }
}

/// The power of two that values are divided by before they are summed: 0 unless they are so large that sums could
/// overflow, or so small that products could vanish.
fn value_power<E: CpuElement>(call: &Call<'_, E>, values: &Rows<'_, E>) -> Result<E> {
    let mut most = E::ZERO;
    for j in 0..values.len {
        call.stop_at(j)?;
        if call.is_padding(values.batch, values.position(j)) {
            continue;
        }
        let largest = match values.slice(j) {
            Some(row) => largest(row),
            None => values.row(j).fold(E::ZERO, |m, x| if x.abs() > m { x.abs() } else { m }),
        };
        // A row that is not finite is summed by nobody, and must not decide for those before it.
        if largest > most && largest.is_finite() {
            most = largest;
        }
    }
    let half = (E::TOP * E::from_f64(0.5)).round_even();
    if most == E::ZERO {
        return Ok(E::ZERO);
    }
    let (exponent, _) = most.frexp();
    Ok(if exponent > half {
        (exponent - half).round_even()
    } else if exponent < -half {
        let power = exponent + half;
        if power < E::FLUSH { E::FLUSH } else { power }
    } else {
        E::ZERO
    })
}

fn largest<E: CpuElement>(row: &[E]) -> E {
    let mut lanes = [E::ZERO; 8];
    for block in row.chunks(8) {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(E::ZERO, |m, x| if x > m { x } else { m })
}

fn scale_values<E: CpuElement>(values: &mut [E], scale: E) {
    if scale != E::ONE {
        values.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Adds state b to state a: the state of both sets of keys.
///
/// # Shapes
/// All `[.., 2 + value_dim]` rows, one a feature: reference, `k_state`, `kv_state`.
///
/// # Errors
/// `ShapeMismatch` where the lengths differ; `Interrupted`.
pub fn merge_states<E: CpuElement>(
    a: &[E],
    b: &[E],
    value_dim: usize,
    out: &mut [E],
    cancel: &AtomicBool,
) -> Result<()> {
    check_len("b", b.len(), a.len())?;
    check_len("out", out.len(), a.len())?;
    let rows = a.chunks_exact(2 + value_dim).zip(b.chunks_exact(2 + value_dim));
    for (row, ((a, b), out)) in rows.zip(out.chunks_exact_mut(2 + value_dim)).enumerate() {
        if row.is_multiple_of(SCAN) {
            parallel::check(cancel)?;
        }
        let top = if a[0] > b[0] { a[0] } else { b[0] };
        let (left, right) = (E::exp2_int(a[0] - top), E::exp2_int(b[0] - top));
        out[0] = top;
        for ((out, &a), &b) in out[1..].iter_mut().zip(&a[1..]).zip(&b[1..]) {
            *out = a * left + b * right;
        }
    }
    Ok(())
}

/// A state that has seen no key, `[B,H,F,2+E]`.
///
/// # Errors
/// `OutOfMemory`.
pub fn empty_state<E: CpuElement>(shape: &FavorShape) -> Result<Vec<E>> {
    let mut state = try_filled(shape.state().iter().product(), E::ZERO)?;
    state.chunks_exact_mut(2 + shape.value_dim).for_each(|row| row[0] = E::NIL);
    Ok(state)
}
