//! What arrives at the rows and at the final states of some lines: `docs/algorithm.md`, section 7.

use crate::lines::{Call, LEFT_OUT, Lines, extreme_power, gather, power_of_two};
use protperf_core::backend::{FinalState, Saved};
use protperf_core::state::KV_STATE;
use protperf_core::{Element, Result, Stored, try_filled};

/// Gradients of what the queries read, as the shaders take them.
pub struct Cotangents {
    /// `[-g . out, g] / p` over the powers of two of its line, `[lines,L,E+1]`.
    pub rows: Vec<f32>,
    /// T of the denominators `p 2^T`, or [`LEFT_OUT`] where nothing arrives, `[lines,L]`.
    pub shifts: Vec<i32>,
    /// What arrives at the final states, as states of queries `[lines,segments,F,2+E]`.
    pub final_states: Vec<f32>,
    /// Powers of two that gradients are divided by, `[lines]`.
    pub powers: Vec<i32>,
    /// Rows of gradients that are not finite, or that meet something that is not, `[lines,L]`.
    pub bad_rows: Vec<bool>,
    /// The same of the final states, `[lines,segments]`.
    pub bad_states: Vec<bool>,
}

impl Cotangents {
    /// # Errors
    /// `OutOfMemory`.
    pub fn new<T: Stored>(call: &Call<'_, T>, lines: &Lines, saved: &Saved<'_, T>) -> Result<Self> {
        let (num_lines, len, e) = (lines.range.len(), call.shape.q_len, call.shape.value_dim);
        let (out, _) = gather(&saved.out, lines.range.clone(), len)?;
        let (grad, not_finite) = gather(&saved.grad, lines.range.clone(), len)?;
        let mut cotangents = Cotangents {
            rows: try_filled(num_lines * len * (e + 1), 0.0)?,
            shifts: try_filled(num_lines * len, LEFT_OUT)?,
            final_states: try_filled(lines.first_states.len(), 0.0)?,
            powers: grad.chunks(len.saturating_mul(e).max(1)).map(|of_line| extreme_power(of_line.iter())).collect(),
            bad_rows: not_finite,
            bad_states: Vec::new(),
        };
        cotangents.powers.resize(num_lines, 0);
        for at in 0..num_lines {
            for (segment, rows) in call.segments[0].iter().enumerate() {
                for row in rows.clone() {
                    let own = (at * len + row) * e;
                    let den = &saved.den[((lines.range.start + at) * len + row) * 2..][..2];
                    let (grad, out) = (&grad[own..][..e], &out[own..][..e]);
                    let arrives = grad.iter().any(|&g| g != 0.0);
                    cotangents.bad_rows[at * len + row] |= arrives && lines.is_bad(call, at, segment, row);
                    if arrives {
                        cotangents.set_row(lines, at * len + row, at, [grad, out], [den[0].to_f64(), den[1].to_f64()]);
                    }
                }
            }
        }
        cotangents.set_final_states(call, lines, saved.final_state);
        Ok(cotangents)
    }

    fn set_row(
        &mut self,
        lines: &Lines,
        row: usize,
        at: usize,
        [grad, out]: [&[f32]; 2],
        [exponent, mantissa]: [f64; 2],
    ) {
        if self.bad_rows[row] || mantissa == 0.0 || !mantissa.is_finite() {
            return;
        }
        let by = power_of_two(-self.powers[at]) / mantissa;
        let along: f64 = grad.iter().zip(out).map(|(&g, &out)| f64::from(g) * f64::from(out)).sum();
        let to = &mut self.rows[row * (grad.len() + 1)..][..grad.len() + 1];
        to[0] = (-along * power_of_two(-lines.value_powers[at]) * by) as f32;
        to[1..].iter_mut().zip(grad).for_each(|(to, &g)| *to = (f64::from(g) * by) as f32);
        self.shifts[row] = exponent as i32;
    }

    /// A feature's sums count with `2^-reference` of the final state.
    fn set_final_states<T: Stored>(&mut self, call: &Call<'_, T>, lines: &Lines, last: Option<FinalState<'_, T>>) {
        let (row, num_segments) = (KV_STATE + call.shape.value_dim, call.segments[0].len());
        let size = call.shape.feature_dim * row;
        for (at, line) in lines.range.clone().enumerate() {
            for segment in 0..num_segments {
                let to = &mut self.final_states[(at * num_segments + segment) * size..][..size];
                protperf_core::state::fill_empty(to, call.shape.value_dim);
                let Some(last) = last else {
                    self.bad_states.push(false);
                    continue;
                };
                let range = call.state_range(line, segment);
                let (state, grad) = (&last.state[range.clone()], &last.grad[range]);
                let sums = || grad.chunks_exact(row).flat_map(|row| &row[1..]).map(|g| g.to_f64());
                let meets_bad = lines.is_state_bad(call, at, segment);
                self.bad_states.push(sums().any(|g| g != 0.0) && (meets_bad || sums().any(|g| !g.is_finite())));
                if meets_bad || self.bad_states[at * num_segments + segment] {
                    continue;
                }
                let by = power_of_two(-self.powers[at]);
                let of_ones = by * power_of_two(-lines.value_powers[at]);
                for ((to, state), grad) in
                    to.chunks_exact_mut(row).zip(state.chunks_exact(row)).zip(grad.chunks_exact(row))
                {
                    if state[0] > T::Compute::EMPTY_REFERENCE {
                        to[0] = -state[0].to_f64() as f32;
                    }
                    to[1] = (grad[1].to_f64() * of_ones) as f32;
                    let values = to[KV_STATE..].iter_mut().zip(&grad[KV_STATE..]);
                    values.for_each(|(to, g)| *to = (g.to_f64() * by) as f32);
                }
            }
        }
    }

    /// Whether anything that arrives at a segment of a line is bad.
    pub fn is_any_bad<T>(&self, call: &Call<'_, T>, at: usize, segment: usize) -> bool {
        let rows = call.segments[0][segment].clone();
        self.bad_states[at * call.segments[0].len() + segment]
            || rows.clone().any(|row| self.bad_rows[at * call.shape.q_len + row])
    }
}
