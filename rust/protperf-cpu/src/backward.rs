//! The backward pass: one sweep over queries for their gradient, one in reversed time for keys and values.
//!
//! Only out and the denominators are kept from the forward pass; features are computed again. With the denominator
//! of row i as `p 2^T`, the cotangent of its sums is `[g, -g.out] / p`, and the row's features lose `2^T`: both
//! scalings are exact or harmless, and every weight that is formed is at most about 1.

use crate::forward::{Call, Context, SharedOut, check_len};
use crate::load::{Rows, load_inputs};
use crate::ops::CpuElement;
use crate::parallel;
use crate::sweep::{Sweep, Want};
use crate::workspace::{CHUNK, Side, try_filled, with_scratch};
use protperf_core::{FavorArgs, Result, TensorRef};
use std::sync::Mutex;

/// What the backward pass reads beside the arguments of the forward pass.
pub struct Saved<'a, E> {
    /// Output of the forward pass `[B,H,L,E]`.
    pub out: &'a TensorRef<'a, E>,
    /// Denominators of the forward pass `[B,H,L,2]`.
    pub den: &'a [E],
    /// Gradient of the output `[B,H,L,E]`.
    pub grad: &'a TensorRef<'a, E>,
}

/// Gradients to fill: dq `[B,H,L,D]`, dk `[B,Hk,S,D]`, dv `[B,Hk,S,E]`, domega as omega.
pub struct Gradients<'a, E> {
    pub dq: &'a mut [E],
    pub dk: &'a mut [E],
    pub dv: &'a mut [E],
    pub domega: Option<&'a mut [f64]>,
}

/// Gradients of the directions that one task has summed, with the head each belongs to.
type DirectionParts<E> = Vec<(usize, Vec<E>)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    /// No gradient arrives, or no key is seen: contributes nothing, whatever its output.
    Dead,
    Active,
    /// A gradient arrives and something the row saw is not finite.
    Bad,
}

/// Gradients of linear attention on the CPU.
///
/// A row whose incoming gradient is all zeros contributes nothing, even where its output is NaN. A row with a
/// gradient that saw something not finite makes NaN of its dq and of dk, dv of every key it sees.
///
/// # Errors
/// As [`FavorArgs::validate`]; `OutOfMemory`; `Interrupted`.
pub fn favor_backward<E: CpuElement>(
    args: &FavorArgs<'_, E>,
    saved: &Saved<'_, E>,
    gradients: Gradients<'_, E>,
    ctx: &Context<'_>,
) -> Result<()> {
    let call = Call::new(args, ctx)?;
    let s = call.shape;
    for (argument, tensor) in [("out", saved.out), ("grad", saved.grad)] {
        if tensor.shape() != s.out() {
            let detail = format!("has shape {:?} but the output has {:?}", tensor.shape(), s.out());
            return Err(protperf_core::Error::ShapeMismatch { argument, detail });
        }
    }
    check_len("den", saved.den.len(), s.batch * s.heads * s.q_len * 2)?;
    check_len("dq", gradients.dq.len(), s.batch * s.heads * s.q_len * s.head_dim)?;
    check_len("dk", gradients.dk.len(), s.batch * s.kv_heads * s.kv_len * s.head_dim)?;
    check_len("dv", gradients.dv.len(), s.batch * s.kv_heads * s.kv_len * s.value_dim)?;
    let (dq, dk, dv) = (SharedOut::new(gradients.dq), SharedOut::new(gradients.dk), SharedOut::new(gradients.dv));
    let parts = call.segments.len();
    let query_tasks = s.batch * s.heads * parts;
    let tasks = query_tasks + s.batch * s.kv_heads * parts;
    let directions: Option<Mutex<Vec<DirectionParts<E>>>> = match &gradients.domega {
        Some(_) => Some(Mutex::new(try_filled(tasks, Vec::new())?)),
        None => None,
    };
    let pass = Pass { call: &call, saved, directions: directions.is_some() };
    parallel::run(tasks, ctx.num_threads, ctx.cancel, |task| {
        let found = if task < query_tasks {
            pass.queries(task / parts, task % parts, &dq)
        } else {
            pass.keys((task - query_tasks) / parts, (task - query_tasks) % parts, &dk, &dv)
        }?;
        if let Some(all) = &directions {
            all.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[task] = found;
        }
        Ok(())
    })?;
    if let (Some(domega), Some(all)) = (gradients.domega, directions) {
        let all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        add_directions(&call, all, domega)?;
    }
    Ok(())
}

/// Sums the tasks' gradients of the directions in their order and carries them back to omega.
fn add_directions<E: CpuElement>(call: &Call<'_, E>, tasks: Vec<DirectionParts<E>>, domega: &mut [f64]) -> Result<()> {
    let Some(omega) = &call.args.omega else { return Ok(()) };
    let (d, padded) = (call.shape.head_dim, call.widths.padded_head());
    let size = omega.num_features * d;
    check_len("domega", domega.len(), call.weights.len() * size)?;
    domega.fill(0.0);
    let scale = call.widths.input_scale();
    for (index, domega) in domega.chunks_exact_mut(size).enumerate() {
        let mut total = try_filled(call.widths.projections * d, 0.0)?;
        for (_, part) in tasks.iter().flatten().filter(|(head, _)| call.weights.len() == 1 || *head == index) {
            call.stop()?;
            for (total, part) in total.chunks_exact_mut(d).zip(part.chunks_exact(padded)) {
                total.iter_mut().zip(part).for_each(|(t, p)| *t += p.to_f64() * scale);
            }
        }
        call.args.feature_map.add_omega_gradient(omega.head(index), d, &total, domega);
    }
    Ok(())
}

/// Rows of one query head and segment, as both sweeps see them.
struct Line<'a, E> {
    queries: Rows<'a, E>,
    out: Rows<'a, E>,
    grad: Rows<'a, E>,
    den: &'a [E],
    kinds: Vec<Row>,
    /// Any bad row, and the last one.
    last_bad: Option<usize>,
}

struct Pass<'a, E: CpuElement> {
    call: &'a Call<'a, E>,
    saved: &'a Saved<'a, E>,
    directions: bool,
}

impl<'a, E: CpuElement> Pass<'a, E> {
    #[allow(clippy::type_complexity)]
    fn keys_of(
        &self,
        batch: usize,
        kv_head: usize,
        segment: usize,
    ) -> Result<(Rows<'a, E>, Rows<'a, E>, Option<usize>)> {
        let (start, len) = self.call.key_range(segment);
        let rows = |tensor| Rows { tensor, batch, head: kv_head, start, len, reversed: false };
        let (keys, values) = (rows(&self.call.args.k), rows(&self.call.args.v));
        Ok((keys, values, self.call.first_bad_key(&keys, &values)?))
    }

    fn line(&self, batch: usize, head: usize, segment: usize, bad_key: Option<usize>) -> Result<Line<'a, E>> {
        let (start, len) = self.call.segments[segment];
        let rows = |tensor| Rows { tensor, batch, head, start, len, reversed: false };
        let (queries, out, grad) = (rows(&self.call.args.q), rows(self.saved.out), rows(self.saved.grad));
        let first = (batch * self.call.shape.heads + head) * self.call.shape.q_len + start;
        let den = &self.saved.den[first * 2..(first + len) * 2];
        let mut kinds = try_filled(len, Row::Dead)?;
        for (i, kind) in kinds.iter_mut().enumerate() {
            self.call.stop_at(i)?;
            if grad.row(i).all(|g| g == E::ZERO) {
                continue;
            }
            let sees_bad = bad_key.is_some_and(|at| !self.call.args.causal || i >= at);
            if sees_bad || !queries.is_finite(i) || !grad.is_finite(i) {
                *kind = Row::Bad;
            } else if den[2 * i + 1] != E::ZERO {
                *kind = Row::Active;
            }
        }
        let last_bad = kinds.iter().rposition(|&kind| kind == Row::Bad);
        Ok(Line { queries, out, grad, den, kinds, last_bad })
    }

    fn sweep<'b>(&'b self, head: usize, buffers: &'b mut crate::workspace::Scratch<E>) -> Result<Sweep<'b, E>> {
        buffers.state.clear();
        if self.directions {
            let len = self.call.widths.projection_panels() * crate::ops::PANEL * self.call.widths.padded_head();
            if buffers.direction_gradient.len() != len {
                buffers.direction_gradient = try_filled(len, E::ZERO)?;
            }
            buffers.direction_gradient.fill(E::ZERO);
        }
        Ok(Sweep {
            ops: self.call.ops,
            weights: self.call.weights(head),
            widths: self.call.widths,
            epsilon: E::from_f64(self.call.args.kernel_epsilon),
            buffers,
        })
    }

    /// dq of one query head and segment; returns its gradient of the directions.
    fn queries(&self, line: usize, segment: usize, dq: &SharedOut<E>) -> Result<DirectionParts<E>> {
        let (call, s) = (self.call, &self.call.shape);
        let (batch, head) = (line / s.heads, line % s.heads);
        let (keys, values, bad_key) = self.keys_of(batch, head / s.group(), segment)?;
        let line_rows = self.line(batch, head, segment, bad_key)?;
        let (start, len) = call.segments[segment];
        // SAFETY: this task alone owns the rows of this head and segment.
        let dq = unsafe { dq.range((line * s.q_len + start) * s.head_dim, len * s.head_dim) };
        dq.fill(E::ZERO);
        let end = usable(bad_key, call.args.causal, len, keys.len);
        let want = Want { gradient: true, local: call.args.causal, directions: self.directions, ..Want::default() };
        let found = with_scratch(call.widths, |buffers| {
            let mut sweep = self.sweep(head, buffers)?;
            if call.args.causal {
                for low in (0..end).step_by(CHUNK) {
                    call.stop()?;
                    let n = CHUNK.min(end - low);
                    call.load_keys(&mut sweep.buffers.writer, &keys, &values, low, n, E::ONE);
                    sweep.absorb(n, true);
                    self.read_queries(&mut sweep, &line_rows, low, n, want, dq);
                    if low + n < end {
                        sweep.commit(n);
                    }
                }
            } else if end > 0 {
                for low in (0..keys.len).step_by(CHUNK) {
                    call.stop()?;
                    let n = CHUNK.min(keys.len - low);
                    call.load_keys(&mut sweep.buffers.writer, &keys, &values, low, n, E::ONE);
                    sweep.absorb(n, true);
                    sweep.commit(n);
                }
                for low in (0..len).step_by(CHUNK) {
                    call.stop()?;
                    let n = CHUNK.min(len - low);
                    self.read_queries(&mut sweep, &line_rows, low, n, want, dq);
                }
            }
            self.taken(head, &mut sweep, line_rows.last_bad.is_some())
        })?;
        let nan = E::from_f64(f64::NAN);
        for (row, _) in dq.chunks_exact_mut(s.head_dim).zip(&line_rows.kinds).filter(|(_, k)| **k == Row::Bad) {
            row.fill(nan);
        }
        Ok(found)
    }

    fn read_queries(
        &self,
        sweep: &mut Sweep<'_, E>,
        line: &Line<'_, E>,
        low: usize,
        n: usize,
        want: Want,
        dq: &mut [E],
    ) {
        let widths = self.call.widths;
        load_inputs(&mut sweep.buffers.reader, &widths, &line.queries, low, n, false);
        self.load_cotangents(&mut sweep.buffers.reader, line, low, n, false);
        sweep.read(n, want);
        for r in 0..n {
            let from = &sweep.buffers.input_gradient[r * widths.padded_head()..][..widths.head_dim];
            dq[(low + r) * widths.head_dim..][..widths.head_dim].copy_from_slice(from);
        }
    }

    /// Cotangents `[g, -g.out] / p` and row exponents T; rows that are not active carry zeros and are not live.
    fn load_cotangents(&self, side: &mut Side<E>, line: &Line<'_, E>, low: usize, n: usize, reversed: bool) {
        let widths = &self.call.widths;
        let len = line.kinds.len();
        for r in 0..n {
            let i = if reversed { len - 1 - (low + r) } else { low + r };
            let row = &mut side.payload[r * widths.payload_row()..][..widths.payload_row()];
            row.fill(E::ZERO);
            side.live[r] = line.kinds[i] == Row::Active;
            side.shift[r] = E::ZERO;
            if !side.live[r] {
                side.x[r * widths.input_row()..][..1 + widths.head_dim].fill(E::ZERO);
                continue;
            }
            let mantissa = line.den[2 * i + 1];
            side.shift[r] = line.den[2 * i];
            let mut dot = E::ZERO;
            for ((to, g), o) in row.iter_mut().zip(line.grad.row(i)).zip(line.out.row(i)) {
                *to = g / mantissa;
                dot += g * o;
            }
            row[widths.padded_value()] = -dot / mantissa;
        }
    }

    /// dk and dv of one key head and segment, summed over the query heads that share it.
    fn keys(&self, kv_line: usize, segment: usize, dk: &SharedOut<E>, dv: &SharedOut<E>) -> Result<DirectionParts<E>> {
        let (call, s) = (self.call, &self.call.shape);
        let (batch, kv_head) = (kv_line / s.kv_heads, kv_line % s.kv_heads);
        let (keys, values, bad_key) = self.keys_of(batch, kv_head, segment)?;
        let first = kv_line * s.kv_len + keys.start;
        // SAFETY: this task alone owns the rows of this key head and segment.
        let (dk, dv) = unsafe {
            (dk.range(first * s.head_dim, keys.len * s.head_dim), dv.range(first * s.value_dim, keys.len * s.value_dim))
        };
        dk.fill(E::ZERO);
        dv.fill(E::ZERO);
        let mut found = Vec::new();
        for head in kv_head * s.group()..(kv_head + 1) * s.group() {
            let line = self.line(batch, head, segment, bad_key)?;
            let len = line.kinds.len();
            let end = usable(bad_key, call.args.causal, len, keys.len);
            let part = with_scratch(call.widths, |buffers| {
                let mut sweep = self.sweep(head, buffers)?;
                if end > 0 {
                    self.sweep_keys(&mut sweep, &line, &keys, &values, end, dk, dv)?;
                }
                self.taken(head, &mut sweep, line.last_bad.is_some())
            })?;
            found.extend(part);
            if let Some(last) = line.last_bad {
                let nan = E::from_f64(f64::NAN);
                let seen = if call.args.causal { last + 1 } else { keys.len };
                for j in (0..seen).filter(|&j| !call.is_padding(batch, keys.position(j))) {
                    dk[j * s.head_dim..][..s.head_dim].fill(nan);
                    dv[j * s.value_dim..][..s.value_dim].fill(nan);
                }
            }
        }
        Ok(found)
    }

    #[allow(clippy::too_many_arguments)]
    fn sweep_keys(
        &self,
        sweep: &mut Sweep<'_, E>,
        line: &Line<'_, E>,
        keys: &Rows<'_, E>,
        values: &Rows<'_, E>,
        end: usize,
        dk: &mut [E],
        dv: &mut [E],
    ) -> Result<()> {
        let (call, causal) = (self.call, self.call.args.causal);
        let want = Want {
            sums: true,
            gradient: true,
            directions: self.directions,
            local: causal,
            norm: true,
            ..Want::default()
        };
        let queries = Rows { reversed: causal, ..line.queries };
        let len = queries.len;
        let write = |sweep: &mut Sweep<'_, E>, low: usize, n: usize| {
            load_inputs(&mut sweep.buffers.writer, &call.widths, &queries, low, n, false);
            self.load_cotangents(&mut sweep.buffers.writer, line, low, n, causal);
            sweep.absorb(n, false);
        };
        if causal {
            let keys = Rows { reversed: true, ..*keys };
            let values = Rows { reversed: true, ..*values };
            for low in (0..len).step_by(CHUNK) {
                call.stop()?;
                let n = CHUNK.min(len - low);
                write(sweep, low, n);
                self.read_keys(sweep, &keys, &values, end, low, n, want, dk, dv);
                if low + n < len {
                    sweep.commit(n);
                }
            }
            return Ok(());
        }
        for low in (0..len).step_by(CHUNK) {
            call.stop()?;
            let n = CHUNK.min(len - low);
            write(sweep, low, n);
            sweep.commit(n);
        }
        for low in (0..keys.len).step_by(CHUNK) {
            call.stop()?;
            let n = CHUNK.min(keys.len - low);
            self.read_keys(sweep, keys, values, keys.len, low, n, want, dk, dv);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn read_keys(
        &self,
        sweep: &mut Sweep<'_, E>,
        keys: &Rows<'_, E>,
        values: &Rows<'_, E>,
        end: usize,
        low: usize,
        n: usize,
        want: Want,
        dk: &mut [E],
        dv: &mut [E],
    ) {
        let (call, widths) = (self.call, self.call.widths);
        call.load_keys(&mut sweep.buffers.reader, keys, values, low, n, E::ONE);
        // Keys from `end` on are seen by no row with a gradient, and may hold what is not finite.
        let side = &mut sweep.buffers.reader;
        for r in (0..n).filter(|&r| keys.position(low + r) - keys.start >= end) {
            side.live[r] = false;
            side.x[r * widths.input_row()..][..widths.input_row()].fill(E::ZERO);
            side.payload[r * widths.payload_row()..][..widths.payload_row()].fill(E::ZERO);
            side.log[r] = E::ZERO;
        }
        sweep.read(n, want);
        let (d, e) = (widths.head_dim, widths.value_dim);
        for r in 0..n {
            if !sweep.buffers.reader.live[r] {
                continue;
            }
            let j = keys.position(low + r) - keys.start;
            let from = &sweep.buffers.input_gradient[r * widths.padded_head()..][..d];
            dk[j * d..][..d].iter_mut().zip(from).for_each(|(to, &g)| *to += g);
            let from = &sweep.buffers.numerator[r * widths.payload_row()..][..e];
            dv[j * e..][..e].iter_mut().zip(from).for_each(|(to, &g)| *to += g);
        }
    }

    /// The gradient of the directions that a sweep has summed.
    fn taken(&self, head: usize, sweep: &mut Sweep<'_, E>, bad: bool) -> Result<DirectionParts<E>> {
        if !self.directions {
            return Ok(Vec::new());
        }
        let mut part = try_filled(sweep.buffers.direction_gradient.len(), E::ZERO)?;
        part.copy_from_slice(&sweep.buffers.direction_gradient);
        if bad {
            part.fill(E::from_f64(f64::NAN));
        }
        Ok(vec![(head, part)])
    }
}

/// Rows whose gradients are computed: those before the first key that is not finite, when causal; all or none
/// otherwise.
fn usable(bad_key: Option<usize>, causal: bool, len: usize, keys: usize) -> usize {
    match bad_key {
        Some(at) if causal => at,
        Some(_) => 0,
        None if causal => len,
        None => len.max(keys),
    }
}
