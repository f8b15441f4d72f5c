//! The fit of some columns: panels next to each other, each on a thread of its own.

use super::lbfgs::minimize;
use super::observed::{NUM_STATES, Observed};
use super::panel::{COLUMNS, Panel, Penalties, Scratch};
use protperf_core::{Error, Execution, Result, check_len, try_filled};
use protperf_cpu::ops::Ops;
use protperf_cpu::{Isa, Workers};
use std::ops::Range;

/// A fit ends where the gradient is this share of the one at the start.
const TOLERANCE: f64 = 0.01;

/// Fits some columns, each to all others, and fills their fields and couplings; see the head of the module. A coupling is
/// that of a residue of the column with one of another column, and zero within the column.
///
/// Columns are fitted in threes from the first of the range; who calls for them in parts gets the same bits as in one
/// call where each part but the last is a multiple of three.
///
/// # Shapes
/// `fields` is `[C, NUM_STATES]` and `couplings` is `[C, L, NUM_STATES, NUM_STATES]`, C the columns of the range.
///
/// # Errors
/// [`Error::ShapeMismatch`]: a range that is not within the alignment, or buffers of another length;
/// [`Error::InvalidOption`]: a penalty that is negative or not finite; [`Error::UnsupportedIsa`], [`Error::OutOfMemory`],
/// [`Error::Interrupted`].
pub fn fit_columns(
    observed: &Observed<'_>,
    columns: Range<usize>,
    penalties: Penalties,
    fields: &mut [f32],
    couplings: &mut [f32],
    run: &Execution<'_>,
) -> Result<()> {
    if columns.start > columns.end || columns.end > observed.num_columns() {
        let detail = format!("are {columns:?}, the alignment has {}", observed.num_columns());
        return Err(Error::shape("columns", detail));
    }
    for (name, penalty) in [("field_penalty", penalties.field), ("coupling_penalty", penalties.coupling)] {
        if !(penalty.is_finite() && penalty >= 0.0) {
            return Err(Error::option(name, format!("is {penalty}; it must be finite and not negative")));
        }
    }
    let row = observed.num_states() * NUM_STATES;
    check_len("fields", fields.len(), columns.len() * NUM_STATES)?;
    check_len("couplings", couplings.len(), columns.len() * row)?;
    let ops = Ops::of(Isa::from_env()?);
    let workers = Workers::new(run);
    let panel = |index: usize| {
        let first = columns.start + index * COLUMNS;
        Panel { observed, penalties, first, num_columns: COLUMNS.min(columns.end - first), ops }
    };
    workers.fold(
        columns.len().div_ceil(COLUMNS),
        |index| fit_panel(&panel(index), &workers),
        |index, parameters: Vec<f32>| {
            let panel = panel(index);
            for column in 0..panel.num_columns {
                let place = index * COLUMNS + column;
                let (fields, couplings) = (&mut fields[place * NUM_STATES..], &mut couplings[place * row..]);
                panel.unpack(column, &parameters, &mut fields[..NUM_STATES], &mut couplings[..row]);
            }
            Ok(())
        },
    )
}

fn fit_panel(panel: &Panel<'_>, workers: &Workers<'_>) -> Result<Vec<f32>> {
    let (mut parameters, mut scale) = (try_filled(panel.len(), 0.0)?, try_filled(panel.len(), 0.0)?);
    let mut scratch = Scratch::new()?;
    panel.start(&mut parameters);
    panel.scale(&mut scale);
    minimize(&mut parameters, &scale, TOLERANCE, |parameters, gradient| {
        panel.evaluate(parameters, gradient, &mut scratch, workers)
    })?;
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Codes;
    use std::sync::atomic::{AtomicBool, Ordering};

    const PENALTIES: Penalties = Penalties { field: 0.01, coupling: 1.0 };

    struct Fitted {
        fields: Vec<f32>,
        couplings: Vec<f32>,
        num_columns: usize,
    }

    impl Fitted {
        fn coupling(&self, [i, j]: [usize; 2], [a, b]: [usize; 2]) -> f32 {
            self.couplings[((i * self.num_columns + j) * NUM_STATES + a) * NUM_STATES + b]
        }
    }

    /// All columns, `at_once` per call.
    fn fitted(data: &[u8], num_columns: usize, at_once: usize, num_threads: usize) -> Fitted {
        let num_rows = data.len() / num_columns;
        let weights = vec![1.0; num_rows];
        let cancel = AtomicBool::new(false);
        let run = Execution { num_threads, cancel: &cancel };
        let observed = Observed::new(Codes::new(data, num_rows, num_columns).unwrap(), &weights, &run).unwrap();
        let row = num_columns * NUM_STATES * NUM_STATES;
        let (mut fields, mut couplings) = (vec![f32::NAN; num_columns * NUM_STATES], vec![f32::NAN; num_columns * row]);
        for first in (0..num_columns).step_by(at_once) {
            let columns = first..num_columns.min(first + at_once);
            let fields = &mut fields[columns.start * NUM_STATES..columns.end * NUM_STATES];
            let couplings = &mut couplings[columns.start * row..columns.end * row];
            fit_columns(&observed, columns, PENALTIES, fields, couplings, &run).unwrap();
        }
        Fitted { fields, couplings, num_columns }
    }

    /// Column 4 follows column 1 in four rows of five; all others are on their own.
    fn planted(num_rows: usize) -> Vec<u8> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let mut data = Vec::new();
        for _ in 0..num_rows {
            let mut row: [u8; 7] = std::array::from_fn(|_| (next() % 4) as u8);
            if next() % 5 > 0 {
                row[4] = (row[1] + 2) % 4;
            }
            data.extend(row);
        }
        data
    }

    #[test]
    fn a_planted_pair_is_found_from_both_sides_and_no_other() {
        let found = fitted(&planted(2000), 7, 7, 2);
        let strength = |i: usize, j: usize| (0..4).map(|a| found.coupling([i, j], [a, (a + 2) % 4])).sum::<f32>();
        for (i, j) in (0..7).flat_map(|i| (0..7).map(move |j| (i, j))) {
            let is_planted = (i, j) == (1, 4) || (i, j) == (4, 1);
            assert_eq!(strength(i, j) > 4.0, is_planted, "{i} {j}: {}", strength(i, j));
            assert!(is_planted || strength(i, j).abs() < 0.7, "{i} {j}: {}", strength(i, j));
        }
    }

    #[test]
    fn conditional_frequencies_of_the_model_are_those_of_the_rows() {
        let data = planted(2000);
        let found = fitted(&data, 7, 7, 1);
        for given in 0..4 {
            let rows: Vec<&[u8]> = data.chunks(7).filter(|row| row[1] == given).collect();
            for residue in 0..4 {
                let seen = rows.iter().filter(|row| row[4] == residue).count() as f64 / rows.len() as f64;
                let predicted: f64 = rows.iter().map(|row| probability(&found, row, 4, residue)).sum();
                assert!((predicted / rows.len() as f64 - seen).abs() < 0.01, "{given} {residue}: {predicted} {seen}");
            }
        }
    }

    fn probability(found: &Fitted, row: &[u8], column: usize, residue: u8) -> f64 {
        let logit = |a: usize| {
            let pairs = row.iter().enumerate().map(|(j, &b)| found.coupling([column, j], [a, usize::from(b)]));
            f64::from(found.fields[column * NUM_STATES + a] + pairs.sum::<f32>())
        };
        logit(usize::from(residue)).exp() / (0..NUM_STATES).map(|a| logit(a).exp()).sum::<f64>()
    }

    #[test]
    fn threads_and_parts_change_no_bit() {
        let data = planted(600);
        let once = fitted(&data, 7, 7, 1);
        for (at_once, num_threads) in [(7, 3), (3, 1), (6, 2)] {
            let found = fitted(&data, 7, at_once, num_threads);
            assert!(found.fields == once.fields && found.couplings == once.couplings, "{at_once} {num_threads}");
        }
    }

    #[test]
    fn alignments_that_say_little_give_finite_models() {
        let all_gaps: Vec<u8> =
            planted(50).into_iter().enumerate().map(|(i, c)| if i % 7 == 3 { 20 } else { c }).collect();
        for (data, num_columns) in
            [(vec![], 2), (vec![3, 4, 20], 3), (vec![1; 40], 1), (vec![20; 30], 3), (all_gaps, 7)]
        {
            let found = fitted(&data, num_columns, num_columns, 1);
            assert!(found.fields.iter().chain(&found.couplings).all(|x| x.is_finite()), "{data:?}");
        }
    }

    #[test]
    fn wrong_arguments_are_refused_and_a_raised_flag_stops() {
        let data = planted(10);
        let weights = [1.0; 10];
        let cancel = AtomicBool::new(false);
        let run = Execution { num_threads: 1, cancel: &cancel };
        let observed = Observed::new(Codes::new(&data, 10, 7).unwrap(), &weights, &run).unwrap();
        cancel.store(true, Ordering::Relaxed);
        let (mut fields, mut couplings) = (vec![0.0; 20], vec![0.0; 7 * 400]);
        let mut fit = |columns, penalties| {
            fit_columns(&observed, columns, penalties, &mut fields, &mut couplings, &run).unwrap_err().to_string()
        };
        assert!(fit(6..8, PENALTIES).starts_with("columns are 6..8"));
        assert!(fit(0..2, PENALTIES).starts_with("fields has 20"));
        assert!(fit(0..1, Penalties { field: -1.0, ..PENALTIES }).starts_with("field_penalty is -1"));
        assert!(fit(0..1, Penalties { coupling: f64::NAN, ..PENALTIES }).starts_with("coupling_penalty is NaN"));
        assert_eq!(fit(0..1, PENALTIES), "interrupted");
    }
}
