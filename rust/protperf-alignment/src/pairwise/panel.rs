//! The objective of a few columns that are predicted together, and its gradient.
//!
//! A panel is as many columns as fit the 64 lanes that the ops work on. Its parameters are a table [num_states + 1, 64]:
//! for each state of the alignment the couplings to all residues of the panel's columns, and in the last row their
//! fields. The fields are those of the average row,
//!
//! ```text
//! logits(row) = fields + sum_{states of the row} table[state] - sum_states share[state] table[state]
//! ```
//!
//! since a change of a coupling would otherwise be a change of the fields, too, and the fit takes ten times the steps.
//! Per row and panel a pass reads and adds L rows of 64 numbers for the logits, and as many for the gradient: 2 L N L / 3
//! rows in all, which come out of the second cache; everything else is small.

use super::observed::{BLOCK, NUM_STATES, Observed};
use protperf_core::{Result, try_filled};
use protperf_cpu::Workers;
use protperf_cpu::layout::{Extent, PANEL};
use protperf_cpu::ops::Ops;
use std::f64::consts::{LN_2, LOG2_E};

/// Columns of a panel.
pub(super) const COLUMNS: usize = PANEL / NUM_STATES;
/// Rows that a rare residue is taken to have, where a logarithm or a quotient needs some.
const PSEUDOCOUNT: f64 = 0.5;

/// How strongly parameters are drawn to zero.
#[derive(Clone, Copy, Debug)]
pub struct Penalties {
    /// Of the square of a field.
    pub field: f64,
    /// Of the square of a coupling, half of it for each of the two columns.
    pub coupling: f64,
}

/// A few columns next to each other, and what they are predicted from.
pub struct Panel<'a> {
    pub observed: &'a Observed<'a>,
    pub penalties: Penalties,
    pub first: usize,
    pub num_columns: usize,
    pub ops: &'static Ops<f32>,
}

/// Memory that evaluations use again.
pub struct Scratch {
    /// Logits of a block, then probabilities, then residuals [BLOCK, PANEL].
    rows: Vec<f32>,
    /// Logit of the residue that is there, in bits below the highest [BLOCK, COLUMNS].
    bits: Vec<f32>,
    everyone: Vec<u32>,
}

impl Scratch {
    pub fn new() -> Result<Self> {
        let (rows, bits) = (try_filled(BLOCK * PANEL, 0.0)?, try_filled(BLOCK * COLUMNS, 0.0)?);
        Ok(Scratch { rows, bits, everyone: (0..BLOCK as u32).collect() })
    }
}

impl Panel<'_> {
    /// Number of parameters, those of unused lanes among them.
    pub fn len(&self) -> usize {
        (self.observed.num_states() + 1) * PANEL
    }

    /// The state of a residue of one of the panel's columns, and its lane.
    fn lanes(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.num_columns * NUM_STATES).map(|lane| (self.first * NUM_STATES + lane, lane))
    }

    /// The share of a state of the panel among the residues of its column.
    fn frequency(&self, state: usize) -> f64 {
        let first = state / NUM_STATES * NUM_STATES;
        let total: f64 = (first..first + NUM_STATES).map(|other| self.observed.count(other)).sum();
        (self.observed.count(state) + PSEUDOCOUNT) / (total + PSEUDOCOUNT * NUM_STATES as f64)
    }

    /// Parameters of columns that know nothing of each other: where a fit starts.
    pub fn start(&self, parameters: &mut [f32]) {
        parameters.fill(0.0);
        let fields = &mut parameters[self.observed.num_states() * PANEL..];
        for (state, lane) in self.lanes() {
            fields[lane] = self.frequency(state).ln() as f32;
        }
        for column in fields[..self.num_columns * NUM_STATES].chunks_mut(NUM_STATES) {
            let mean = column.iter().sum::<f32>() / NUM_STATES as f32;
            column.iter_mut().for_each(|field| *field -= mean);
        }
    }

    /// One over the second derivative of the objective by each parameter, as it is at the start.
    pub fn scale(&self, scale: &mut [f32]) {
        scale.fill(0.0);
        let num_states = self.observed.num_states();
        for (own, lane) in self.lanes() {
            let frequency = self.frequency(own);
            let column = own / NUM_STATES * NUM_STATES;
            let total: f64 = (column..column + NUM_STATES).map(|state| self.observed.count(state)).sum();
            let curvature = (total + PSEUDOCOUNT) * frequency * (1.0 - frequency);
            for state in 0..num_states {
                let share = self.observed.share(state);
                let second = curvature * share * (1.0 - share) + self.penalties.coupling;
                scale[state * PANEL + lane] = (1.0 / second.max(1e-6)) as f32;
            }
            scale[num_states * PANEL + lane] = (1.0 / (curvature + 2.0 * self.penalties.field)) as f32;
        }
    }

    /// Fills the gradient and returns the objective, in nats.
    ///
    /// # Errors
    /// [`protperf_core::Error::Interrupted`].
    pub fn evaluate(
        &self,
        parameters: &[f32],
        gradient: &mut [f32],
        scratch: &mut Scratch,
        workers: &Workers<'_>,
    ) -> Result<f64> {
        let num_states = self.observed.num_states();
        let table = &parameters[..num_states * PANEL];
        let average = self.average(parameters);
        gradient.fill(0.0);
        let mut value = 0.0;
        for (block, first) in (0..self.observed.num_rows()).step_by(BLOCK).enumerate() {
            workers.check()?;
            let num_rows = BLOCK.min(self.observed.num_rows() - first);
            for (row, logits) in scratch.rows.chunks_exact_mut(PANEL).take(num_rows).enumerate() {
                logits.copy_from_slice(&average);
                self.ops.add_chosen(table, self.observed.states(first + row), logits);
            }
            value += self.residuals(first, num_rows, scratch);
            let residuals = &scratch.rows[..num_rows * PANEL];
            for (state, sums) in gradient.chunks_exact_mut(PANEL).enumerate() {
                let rows = if state < num_states {
                    self.observed.holders(block, state)
                } else {
                    &scratch.everyone[..num_rows]
                };
                if !rows.is_empty() {
                    self.ops.add_chosen(residuals, rows, sums);
                }
            }
        }
        self.center(gradient);
        Ok(value + self.penalize(parameters, gradient))
    }

    /// What the logits of every row have in common.
    fn average(&self, parameters: &[f32]) -> [f32; PANEL] {
        let (table, fields) = parameters.split_at(self.observed.num_states() * PANEL);
        let mut sums: [f64; PANEL] = std::array::from_fn(|lane| f64::from(fields[lane]));
        for (state, row) in table.chunks_exact(PANEL).enumerate() {
            let share = self.observed.share(state);
            sums.iter_mut().zip(row).for_each(|(sum, &coupling)| *sum -= share * f64::from(coupling));
        }
        sums.map(|sum| sum as f32)
    }

    /// Turns the logits of a block into weighted residuals, probability minus observation; returns the weighted negative
    /// log-likelihood.
    fn residuals(&self, first: usize, num_rows: usize, scratch: &mut Scratch) -> f64 {
        let Scratch { rows, bits, .. } = scratch;
        let own = self.first..self.first + self.num_columns;
        for (row, logits) in rows.chunks_exact_mut(PANEL).take(num_rows).enumerate() {
            let codes = &self.observed.row(first + row)[own.clone()];
            for (column, logits) in logits.chunks_exact_mut(NUM_STATES).take(self.num_columns).enumerate() {
                let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                logits.iter_mut().for_each(|logit| *logit = (*logit - top) * LOG2_E as f32);
                bits[row * COLUMNS + column] = logits.get(usize::from(codes[column])).copied().unwrap_or(0.0);
            }
        }
        let extent = Extent { rows: num_rows, features: self.num_columns * NUM_STATES };
        self.ops.weights(rows, extent, &[0.0; BLOCK]);
        let mut value = 0.0;
        for (row, powers) in rows.chunks_exact_mut(PANEL).take(num_rows).enumerate() {
            let (codes, weight) = (&self.observed.row(first + row)[own.clone()], self.observed.weight(first + row));
            for (column, powers) in powers.chunks_exact_mut(NUM_STATES).take(self.num_columns).enumerate() {
                let code = usize::from(codes[column]);
                if code >= NUM_STATES {
                    powers.fill(0.0);
                    continue;
                }
                let sum: f32 = powers.iter().sum();
                value += f64::from(weight) * (f64::from(sum).ln() - LN_2 * f64::from(bits[row * COLUMNS + column]));
                powers.iter_mut().for_each(|power| *power *= weight / sum);
                powers[code] -= weight;
            }
        }
        value
    }

    /// The gradient by couplings next to the fields of the average row; a column has no coupling with itself.
    fn center(&self, gradient: &mut [f32]) {
        let (table, fields) = gradient.split_at_mut(self.observed.num_states() * PANEL);
        for (state, row) in table.chunks_exact_mut(PANEL).enumerate() {
            let share = self.observed.share(state) as f32;
            row.iter_mut().zip(&*fields).for_each(|(sum, field)| *sum -= share * field);
        }
        for (state, lane) in self.lanes() {
            let own = lane / NUM_STATES * NUM_STATES;
            table[state * PANEL + own..][..NUM_STATES].fill(0.0);
        }
    }

    /// Adds the gradient of the penalties; returns their value.
    fn penalize(&self, parameters: &[f32], gradient: &mut [f32]) -> f64 {
        let fields = self.observed.num_states() * PANEL;
        let mut value = 0.0;
        for (range, penalty) in [(0..fields, self.penalties.coupling / 2.0), (fields..self.len(), self.penalties.field)]
        {
            let twice = (2.0 * penalty) as f32;
            let mut squares = 0.0;
            for (x, gradient) in parameters[range.clone()].chunks(PANEL).zip(gradient[range].chunks_mut(PANEL)) {
                squares += f64::from(x.iter().map(|x| x * x).sum::<f32>());
                gradient.iter_mut().zip(x).for_each(|(gradient, x)| *gradient += twice * x);
            }
            value += penalty * squares;
        }
        value
    }

    /// The fields of a column as they are next to all its couplings, and the coupling of its residues with a state.
    pub fn unpack(&self, column: usize, parameters: &[f32], fields: &mut [f32], couplings: &mut [f32]) {
        let lanes = column * NUM_STATES..(column + 1) * NUM_STATES;
        fields.copy_from_slice(&self.average(parameters)[lanes.clone()]);
        let table = &parameters[..self.observed.num_states() * PANEL];
        let blocks = couplings.chunks_exact_mut(NUM_STATES * NUM_STATES);
        for (block, states) in blocks.zip(table.chunks_exact(NUM_STATES * PANEL)) {
            for (other, row) in states.chunks_exact(PANEL).enumerate() {
                for (own, &coupling) in row[lanes.clone()].iter().enumerate() {
                    block[own * NUM_STATES + other] = coupling;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Codes;
    use protperf_core::Execution;
    use protperf_cpu::Isa;
    use std::sync::atomic::AtomicBool;

    const PENALTIES: Penalties = Penalties { field: 0.3, coupling: 0.7 };

    /// The objective as the formulas are written, in f64, of parameters `[num_states + 1, PANEL]`.
    fn plain(panel: &Panel<'_>, parameters: &[f64]) -> f64 {
        let (observed, num_states) = (panel.observed, panel.observed.num_states());
        let mut value = 0.0;
        for lane in 0..panel.num_columns * NUM_STATES {
            let squares: f64 = (0..num_states).map(|state| parameters[state * PANEL + lane].powi(2)).sum();
            value += panel.penalties.coupling / 2.0 * squares;
            value += panel.penalties.field * parameters[num_states * PANEL + lane].powi(2);
        }
        let average: Vec<f64> = (0..PANEL)
            .map(|lane| (0..num_states).map(|state| observed.share(state) * parameters[state * PANEL + lane]).sum())
            .collect();
        for row in 0..observed.num_rows() {
            for column in 0..panel.num_columns {
                let code = usize::from(observed.row(row)[panel.first + column]);
                if code >= NUM_STATES {
                    continue;
                }
                let logit = |residue: usize| {
                    let lane = column * NUM_STATES + residue;
                    let at = |state: usize| parameters[state * PANEL + lane];
                    at(num_states) - average[lane]
                        + observed.states(row).iter().map(|&state| at(state as usize)).sum::<f64>()
                };
                let sum: f64 = (0..NUM_STATES).map(|residue| logit(residue).exp()).sum();
                value -= f64::from(observed.weight(row)) * (logit(code) - sum.ln());
            }
        }
        value
    }

    /// Numbers between -1 and 1.
    fn noise(index: usize) -> f64 {
        let mixed = (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed >> 32) as f64 / 2f64.powi(31)) - 1.0
    }

    #[test]
    fn value_and_gradient_are_those_of_the_formulas() {
        let (num_rows, num_columns) = (BLOCK + 3, 5);
        // Codes 20 to 22 are gaps; the last column is all gaps.
        let code = |i: usize| if i % num_columns == 4 { 20 } else { ((noise(i) + 1.0) * 11.5) as u8 };
        let data: Vec<u8> = (0..num_rows * num_columns).map(code).collect();
        let weights: Vec<f32> = (0..num_rows).map(|row| (noise(row) + 1.0) as f32).collect();
        let cancel = AtomicBool::new(false);
        let run = Execution { num_threads: 1, cancel: &cancel };
        let observed = Observed::new(Codes::new(&data, num_rows, num_columns).unwrap(), &weights, &run).unwrap();
        let workers = Workers::new(&run);
        for (first, num_columns) in [(0, 3), (3, 2), (4, 1)] {
            let on = |isa| Panel { observed: &observed, penalties: PENALTIES, first, num_columns, ops: Ops::of(isa) };
            let panel = on(Isa::available()[0]);
            let is_free = |index: usize| {
                let (state, lane) = (index / PANEL, index % PANEL);
                lane < num_columns * NUM_STATES && state / NUM_STATES != first + lane / NUM_STATES
            };
            let of = |index| if is_free(index) { noise(index) as f32 } else { 0.0 };
            let parameters: Vec<f32> = (0..panel.len()).map(of).collect();
            let mut exact: Vec<f64> = parameters.iter().map(|&x| f64::from(x)).collect();
            let wanted = plain(&panel, &exact);
            let mut slope = |index: usize| {
                let (x, step) = (exact[index], 1e-4);
                let [above, below] = [x + step, x - step].map(|moved| {
                    exact[index] = moved;
                    plain(&panel, &exact)
                });
                exact[index] = x;
                if is_free(index) { (above - below) / (2.0 * step) } else { 0.0 }
            };
            let some = (0..panel.len()).step_by(101).chain((panel.len() - PANEL..panel.len()).step_by(5));
            let slopes: Vec<(usize, f64)> = some.map(|index| (index, slope(index))).collect();
            for isa in Isa::available() {
                let mut gradient = vec![f32::NAN; panel.len()];
                let mut scratch = Scratch::new().unwrap();
                scratch.rows.fill(f32::NAN);
                let value = on(isa).evaluate(&parameters, &mut gradient, &mut scratch, &workers).unwrap();
                assert!((value - wanted).abs() < 1e-6 * wanted, "{isa:?} {first}: {value} is not {wanted}");
                for &(index, slope) in &slopes {
                    let found = f64::from(gradient[index]);
                    assert!((found - slope).abs() < 1e-3, "{isa:?} {first} parameter {index}: {found} is not {slope}");
                }
            }
        }
    }

    #[test]
    fn the_scale_is_one_over_the_curvature_at_the_start() {
        let data: Vec<u8> = (0..300 * 2).map(|i| ((noise(i) + 1.0) * 2.0) as u8).collect();
        let weights = vec![1.0; 300];
        let run = Execution { num_threads: 1, cancel: &AtomicBool::new(false) };
        let observed = Observed::new(Codes::new(&data, 300, 2).unwrap(), &weights, &run).unwrap();
        let ops = Ops::of(Isa::available()[0]);
        let panel = Panel { observed: &observed, penalties: PENALTIES, first: 0, num_columns: 1, ops };
        let (mut start, mut scale) = (vec![0.0; panel.len()], vec![0.0; panel.len()]);
        panel.start(&mut start);
        panel.scale(&mut scale);
        let start: Vec<f64> = start.into_iter().map(f64::from).collect();
        for (state, residue) in [(20, 0), (21, 1), (23, 3), (40, 0), (40, 2)] {
            let (index, step) = (state * PANEL + residue, 1e-3);
            let mut moved = start.clone();
            let mut at = |x: f64| {
                moved[index] = start[index] + x;
                plain(&panel, &moved)
            };
            let curvature = (at(step) - 2.0 * at(0.0) + at(-step)) / (step * step);
            let ratio = curvature * f64::from(scale[index]);
            assert!((ratio - 1.0).abs() < 0.25, "state {state} residue {residue}: {ratio}");
        }
    }
}
