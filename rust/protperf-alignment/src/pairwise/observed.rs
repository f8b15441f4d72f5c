//! An alignment as the fit reads it: which parameters each row meets, and which rows meet each parameter.
//!
//! The parameters of a panel of columns are a table with one row per residue of each column of the alignment (the state
//! `column * NUM_STATES + residue`). A row of the alignment adds up the rows of its states; the gradient of a state adds
//! up the rows of the alignment that have it. Both lists are made once and serve every panel and every step.

use crate::codes::Codes;
use protperf_core::{Error, Execution, Result, check_len, try_filled, try_reserved};
use protperf_cpu::Workers;

/// Residues that a column can have: codes 0 to 19. Every higher code is a gap.
pub const NUM_STATES: usize = 20;
/// Rows of the alignment that are evaluated together: their logits stay in the second cache.
pub(super) const BLOCK: usize = 512;

/// What a fit needs to know of an alignment.
#[derive(Debug)]
pub struct Observed<'a> {
    codes: Codes<'a>,
    weights: &'a [f32],
    states: Lists,
    holders: Lists,
    counts: Vec<f64>,
    total: f64,
}

/// Lists of numbers, one after another.
#[derive(Debug)]
struct Lists {
    items: Vec<u32>,
    borders: Vec<usize>,
}

impl Lists {
    fn get(&self, index: usize) -> &[u32] {
        &self.items[self.borders[index]..self.borders[index + 1]]
    }
}

impl<'a> Observed<'a> {
    /// An alignment and the weights of its rows.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`]: another number of weights than of rows, or 2^32 states; [`Error::InvalidOption`]: a
    /// weight that is negative or not finite; [`Error::OutOfMemory`], [`Error::Interrupted`].
    pub fn new(codes: Codes<'a>, weights: &'a [f32], run: &Execution<'_>) -> Result<Self> {
        check_len("weights", weights.len(), codes.num_rows())?;
        if let Some(row) = weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0)) {
            let detail = format!("has {} at row {row}; weights must be finite and not negative", weights[row]);
            return Err(Error::option("weights", detail));
        }
        let num_states = codes.num_columns().saturating_mul(NUM_STATES);
        if u32::try_from(num_states).is_err() {
            return Err(Error::SizeOverflow { argument: "codes" });
        }
        let mut counts = try_filled(num_states, 0.0)?;
        let workers = Workers::new(run);
        for (row, &weight) in weights.iter().enumerate() {
            workers.check_at(row)?;
            states_of(codes.row(row)).for_each(|state| counts[state as usize] += f64::from(weight));
        }
        let total = weights.iter().map(|&weight| f64::from(weight)).sum();
        let (states, holders) = (states(&codes, &workers)?, holders(&codes, &workers)?);
        Ok(Observed { codes, weights, states, holders, counts, total })
    }

    pub(super) fn num_rows(&self) -> usize {
        self.codes.num_rows()
    }

    /// Number of columns.
    pub fn num_columns(&self) -> usize {
        self.codes.num_columns()
    }

    /// Number of states of all columns.
    pub(super) fn num_states(&self) -> usize {
        self.counts.len()
    }

    pub(super) fn row(&self, row: usize) -> &'a [u8] {
        self.codes.row(row)
    }

    pub(super) fn weight(&self, row: usize) -> f32 {
        self.weights[row]
    }

    /// The states of a row, in the order of the columns, those with a gap left out.
    pub(super) fn states(&self, row: usize) -> &[u32] {
        self.states.get(row)
    }

    /// The rows of a block that have a state, counted from the block's first.
    pub(super) fn holders(&self, block: usize, state: usize) -> &[u32] {
        self.holders.get(block * self.num_states() + state)
    }

    /// The sum of the weights of the rows that have a state.
    pub(super) fn count(&self, state: usize) -> f64 {
        self.counts[state]
    }

    /// The share of all weight that has a state.
    pub(super) fn share(&self, state: usize) -> f64 {
        if self.total > 0.0 { self.counts[state] / self.total } else { 0.0 }
    }
}

fn states_of(row: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let known = row.iter().enumerate().filter(|&(_, &code)| usize::from(code) < NUM_STATES);
    known.map(|(column, &code)| (column * NUM_STATES) as u32 + u32::from(code))
}

fn states(codes: &Codes<'_>, workers: &Workers<'_>) -> Result<Lists> {
    let mut found = Lists { items: try_reserved(codes.num_rows() * codes.num_columns())?, borders: vec![0] };
    for row in 0..codes.num_rows() {
        workers.check_at(row)?;
        found.items.extend(states_of(codes.row(row)));
        found.borders.push(found.items.len());
    }
    Ok(found)
}

/// For each block and state the rows that have it, sorted by counting.
fn holders(codes: &Codes<'_>, workers: &Workers<'_>) -> Result<Lists> {
    let num_states = codes.num_columns() * NUM_STATES;
    let num_blocks = codes.num_rows().div_ceil(BLOCK);
    let mut found = Lists {
        items: try_filled(codes.num_rows() * codes.num_columns(), 0)?,
        borders: try_reserved(num_blocks * num_states + 1)?,
    };
    let mut end = 0;
    found.borders.push(0);
    let mut next = try_filled(num_states, 0usize)?;
    for first in (0..codes.num_rows()).step_by(BLOCK) {
        workers.check()?;
        let rows = first..codes.num_rows().min(first + BLOCK);
        next.fill(0);
        for row in rows.clone() {
            states_of(codes.row(row)).for_each(|state| next[state as usize] += 1);
        }
        for count in &mut next {
            end += std::mem::replace(count, end);
            found.borders.push(end);
        }
        for row in rows {
            for state in states_of(codes.row(row)) {
                let at = &mut next[state as usize];
                found.items[*at] = (row - first) as u32;
                *at += 1;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn observed<'a>(codes: Codes<'a>, weights: &'a [f32]) -> Result<Observed<'a>> {
        Observed::new(codes, weights, &Execution { num_threads: 1, cancel: &AtomicBool::new(false) })
    }

    #[test]
    fn lists_name_every_residue_once_from_both_sides() {
        let (num_rows, num_columns) = (BLOCK + 70, 5);
        let data: Vec<u8> = (0..num_rows * num_columns).map(|i| ((i * i + i / 7) % 23) as u8).collect();
        let weights: Vec<f32> = (0..num_rows).map(|row| (row % 4) as f32 / 4.0).collect();
        let observed = observed(Codes::new(&data, num_rows, num_columns).unwrap(), &weights).unwrap();
        let mut total = 0.0;
        for state in 0..observed.num_states() {
            let (column, code) = (state / NUM_STATES, (state % NUM_STATES) as u8);
            let has = |row: &usize| data[row * num_columns + column] == code;
            let rows: Vec<usize> = (0..num_rows).filter(has).collect();
            let blocks = (0..2)
                .flat_map(|block| observed.holders(block, state).iter().map(move |&row| block * BLOCK + row as usize));
            assert_eq!(blocks.collect::<Vec<_>>(), rows);
            let met: Vec<usize> = (0..num_rows).filter(|&row| observed.states(row).contains(&(state as u32))).collect();
            assert_eq!(met, rows);
            assert_eq!(observed.count(state), rows.iter().map(|&row| f64::from(weights[row])).sum::<f64>());
            total += observed.share(state);
        }
        assert!(total < 5.0 && total > 4.0, "{total}");
    }

    #[test]
    fn weights_that_are_none_are_refused() {
        let codes = Codes::new(&[0; 6], 2, 3).unwrap();
        for wrong in [&[1.0][..], &[1.0, -0.5], &[f32::NAN, 1.0], &[1.0, f32::INFINITY]] {
            let error = observed(codes, wrong).unwrap_err().to_string();
            assert!(error.starts_with("weights has"), "{error}");
        }
    }
}
