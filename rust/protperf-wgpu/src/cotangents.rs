//! What arrives at the rows and at the final states of some batch heads: `docs/algorithm.md`, section 7.
//! BH: batch entries times heads, those of one group.

use crate::batch_heads::{BatchHeads, Call, LEFT_OUT, OF_ZEROS, Powers, extreme_power, gather, power_of_two};
use protperf_core::backend::{FinalState, Saved};
use protperf_core::state::KV_STATE;
use protperf_core::{Element, Result, Stored, try_filled};
use std::ops::Range;

/// Gradients of what the queries read, as the shaders take them.
pub struct Cotangents {
    /// `[-g . out, g] / p` over the powers of two of its segment, `[BH,L,E+1]`.
    pub rows: Vec<f32>,
    /// T of the denominators `p 2^T`, or [`LEFT_OUT`] where nothing arrives, `[BH,L]`.
    pub shifts: Vec<i32>,
    /// What arrives at the final states, as states of queries `[BH,segments,F,2+E]`.
    pub final_states: Vec<f32>,
    /// Powers of two that gradients are divided by, `[BH,segments]`.
    pub powers: Vec<i32>,
    /// Powers of two that values are divided by, `[BH,segments]`: that of the last row that something arrives at, so
    /// that values which nothing sees that arrives have no part in it.
    pub value_powers: Vec<i32>,
    /// The end of the keys that are seen, as rows of the batch head, `[BH,segments]`.
    pub seen_ends: Vec<usize>,
    /// Rows of gradients that are not finite, or that meet something that is not, `[BH,L]`.
    pub bad_rows: Vec<bool>,
    /// The same of the final states, `[BH,segments]`.
    pub bad_states: Vec<bool>,
}

impl Cotangents {
    /// # Errors
    /// `OutOfMemory`.
    pub fn new<T: Stored>(
        call: &Call<'_, T>,
        batch_heads: &BatchHeads,
        powers: &Powers,
        saved: &Saved<'_, T>,
    ) -> Result<Self> {
        let (num_batch_heads, len, e) = (batch_heads.range.len(), call.shape.q_len, call.shape.value_dim);
        let num_segments = call.segments[0].len();
        let (out, _) = gather(&saved.out, batch_heads.range.clone(), len)?;
        let (grad, not_finite) = gather(&saved.grad, batch_heads.range.clone(), len)?;
        let mut cotangents = Cotangents {
            rows: try_filled(num_batch_heads * len * (e + 1), 0.0)?,
            shifts: try_filled(num_batch_heads * len, LEFT_OUT)?,
            final_states: try_filled(batch_heads.first_states.len(), 0.0)?,
            powers: try_filled(num_batch_heads * num_segments, 0)?,
            value_powers: try_filled(num_batch_heads * num_segments, 0)?,
            seen_ends: try_filled(num_batch_heads * num_segments, 0)?,
            bad_rows: not_finite,
            bad_states: try_filled(num_batch_heads * num_segments, false)?,
        };
        for of_segment in 0..num_batch_heads * num_segments {
            let (at, segment) = (of_segment / num_segments, of_segment % num_segments);
            let rows = call.segments[0][segment].clone();
            let grad_of = |row: usize| &grad[(at * len + row) * e..][..e];
            let den_of = |row: usize| {
                let den = &saved.den[((batch_heads.range.start + at) * len + row) * 2..][..2];
                [den[0].to_f64(), den[1].to_f64()]
            };
            cotangents.powers[of_segment] = extreme_power(rows.clone().flat_map(grad_of));
            let mut last = None;
            for row in rows.clone().filter(|&row| grad_of(row).iter().any(|&g| g != 0.0)) {
                cotangents.bad_rows[at * len + row] |= batch_heads.is_bad(call, at, segment, row);
                let [_, mantissa] = den_of(row);
                if !cotangents.bad_rows[at * len + row] && mantissa != 0.0 && mantissa.is_finite() {
                    cotangents.shifts[at * len + row] = den_of(row)[0] as i32;
                    last = Some(row);
                }
            }
            let reaches_state = cotangents.judge_state(call, batch_heads, of_segment, saved.final_state);
            cotangents.set_seen(call, powers, of_segment, last, reaches_state);
            for row in rows.filter(|row| cotangents.shifts[at * len + row] != LEFT_OUT).collect::<Vec<_>>() {
                let out = &out[(at * len + row) * e..][..e];
                cotangents.set_row(of_segment, at * len + row, [grad_of(row), out], den_of(row)[1]);
            }
            let arriving = saved.final_state.filter(|_| reaches_state);
            cotangents.set_final_state(call, batch_heads, of_segment, arriving);
        }
        Ok(cotangents)
    }

    /// Whether something arrives at a final state that is not bad.
    fn judge_state<T: Stored>(
        &mut self,
        call: &Call<'_, T>,
        batch_heads: &BatchHeads,
        of_segment: usize,
        last: Option<FinalState<'_, T>>,
    ) -> bool {
        let Some(last) = last else { return false };
        let num_segments = call.segments[0].len();
        let (at, segment) = (of_segment / num_segments, of_segment % num_segments);
        let grad = &last.grad[call.state_range(batch_heads.range.start + at, segment)];
        let row = KV_STATE + call.shape.value_dim;
        let sums = || grad.chunks_exact(row).flat_map(|row| &row[1..]).map(|g| g.to_f64());
        let meets_bad = batch_heads.is_state_bad(call, at, segment);
        let arrives = sums().any(|g| g != 0.0);
        self.bad_states[of_segment] = arrives && (meets_bad || sums().any(|g| !g.is_finite()));
        arrives && !self.bad_states[of_segment]
    }

    /// Which keys are seen by something that arrives, and what their values are divided by.
    fn set_seen<T>(
        &mut self,
        call: &Call<'_, T>,
        powers: &Powers,
        of_segment: usize,
        last: Option<usize>,
        reaches_state: bool,
    ) {
        let num_segments = call.segments[1].len();
        let keys: &Range<usize> = &call.segments[1][of_segment % num_segments];
        let (end, power) = match last {
            Some(row) if call.args.causal && !reaches_state => {
                (row + 1, powers.keys[of_segment / num_segments * call.shape.kv_len + row])
            }
            None if !reaches_state => (keys.start, 0),
            _ => (keys.end, powers.segments[of_segment]),
        };
        self.seen_ends[of_segment] = end;
        // Of zeros any power is right.
        self.value_powers[of_segment] = if power == OF_ZEROS { 0 } else { power };
    }

    fn set_row(&mut self, of_segment: usize, row: usize, [grad, out]: [&[f32]; 2], mantissa: f64) {
        let by = power_of_two(-self.powers[of_segment]) / mantissa;
        let along: f64 = grad.iter().zip(out).map(|(&g, &out)| f64::from(g) * f64::from(out)).sum();
        let to = &mut self.rows[row * (grad.len() + 1)..][..grad.len() + 1];
        to[0] = (-along * power_of_two(-self.value_powers[of_segment]) * by) as f32;
        to[1..].iter_mut().zip(grad).for_each(|(to, &g)| *to = (f64::from(g) * by) as f32);
    }

    /// A feature's sums count with `2^-reference` of the final state; the state is empty where nothing arrives at it.
    fn set_final_state<T: Stored>(
        &mut self,
        call: &Call<'_, T>,
        batch_heads: &BatchHeads,
        of_segment: usize,
        last: Option<FinalState<'_, T>>,
    ) {
        let (row, num_segments) = (KV_STATE + call.shape.value_dim, call.segments[0].len());
        let size = call.shape.feature_dim * row;
        let to = &mut self.final_states[of_segment * size..][..size];
        protperf_core::state::fill_empty(to, call.shape.value_dim);
        let Some(last) = last else { return };
        let range = call.state_range(batch_heads.range.start + of_segment / num_segments, of_segment % num_segments);
        let (state, grad) = (&last.state[range.clone()], &last.grad[range]);
        let by = power_of_two(-self.powers[of_segment]);
        let of_ones = by * power_of_two(-self.value_powers[of_segment]);
        for ((to, state), grad) in to.chunks_exact_mut(row).zip(state.chunks_exact(row)).zip(grad.chunks_exact(row)) {
            if state[0] > T::Compute::EMPTY_REFERENCE {
                to[0] = -state[0].to_f64() as f32;
            }
            to[1] = (grad[1].to_f64() * of_ones) as f32;
            let values = to[KV_STATE..].iter_mut().zip(&grad[KV_STATE..]);
            values.for_each(|(to, g)| *to = (g.to_f64() * by) as f32);
        }
    }

    /// Whether anything that arrives at a segment of a batch head is bad.
    pub fn is_any_bad<T>(&self, call: &Call<'_, T>, at: usize, segment: usize) -> bool {
        let rows = call.segments[0][segment].clone();
        self.bad_states[at * call.segments[0].len() + segment]
            || rows.clone().any(|row| self.bad_rows[at * call.shape.q_len + row])
    }
}
