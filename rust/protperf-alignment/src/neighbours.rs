//! How many rows of an alignment resemble each row: all pairs are compared, column by column.
//!
//! ```text
//! count[r] = number of rows s, r among them, with  #{columns where r and s have the same code} >= identity * columns
//! ```
//!
//! Blocks of rows are compared with blocks of rows, so that both stay in the first cache, and a pair is left as soon as
//! it differs in too many columns. Counts are integers, so their order of addition does not matter.

use crate::codes::Codes;
use protperf_core::{Error, Execution, Result};
use protperf_cpu::Workers;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Rows of a block.
const BLOCK: usize = 64;
/// Columns between two looks at how many differ: below 256, so that a byte per lane counts them.
const SLICE: usize = 128;

/// How many rows have at least the share `identity` of their columns in common with each row, itself included; one in
/// that number is the weight that makes a crowd of near-equal rows count as one. Gaps are compared like residues.
///
/// # Errors
/// [`Error::InvalidOption`]: an identity that is not above 0 and at most 1; [`Error::Interrupted`].
pub fn count_neighbours(codes: &Codes<'_>, identity: f64, run: &Execution<'_>) -> Result<Vec<u32>> {
    if !(identity > 0.0 && identity <= 1.0) {
        return Err(Error::option("identity", format!("is {identity}; it must be above 0 and at most 1")));
    }
    // 0.55 * 100 is a little more than 55: a share that is met exactly must count.
    let needed = (identity * codes.num_columns() as f64 - 1e-6).ceil() as usize;
    let most = codes.num_columns() - needed;
    let counts: Vec<AtomicU32> = (0..codes.num_rows()).map(|_| AtomicU32::new(1)).collect();
    let num_blocks = codes.num_rows().div_ceil(BLOCK);
    let block = |index: usize| index * BLOCK..codes.num_rows().min((index + 1) * BLOCK);
    let workers = Workers::new(run);
    workers.run(num_blocks, |later| {
        for earlier in 0..=later {
            workers.check()?;
            compare(codes, block(later), block(earlier), most, &counts);
        }
        Ok(())
    })?;
    Ok(counts.into_iter().map(AtomicU32::into_inner).collect())
}

/// Counts the pairs of a row and an earlier one that differ in at most `most` columns.
fn compare(codes: &Codes<'_>, rows: Range<usize>, earlier: Range<usize>, most: usize, counts: &[AtomicU32]) {
    for row in rows {
        let others = earlier.start..earlier.end.min(row);
        for other in others.filter(|&other| differ_at_most(codes.row(row), codes.row(other), most)) {
            counts[row].fetch_add(1, Ordering::Relaxed);
            counts[other].fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn differ_at_most(a: &[u8], b: &[u8], most: usize) -> bool {
    let mut differing = 0;
    for (a, b) in a.chunks(SLICE).zip(b.chunks(SLICE)) {
        let slice: u8 = a.iter().zip(b).map(|(a, b)| u8::from(a != b)).sum();
        differing += usize::from(slice);
        if differing > most {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Rows of families: some equal to their ancestor up to a few columns, so that every identity has pairs near it.
    fn rows(num_rows: usize, num_columns: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let ancestors: Vec<u8> = (0..3 * num_columns).map(|_| (next() % 21) as u8).collect();
        let mut data = Vec::new();
        for _ in 0..num_rows {
            let (family, changed) = (next() % 3, next() % 100);
            for column in 0..num_columns {
                let kept = ancestors[family * num_columns + column];
                data.push(if next() % 100 < changed { (next() % 21) as u8 } else { kept });
            }
        }
        data
    }

    fn counted(data: &[u8], num_columns: usize, identity: f64, num_threads: usize) -> Vec<u32> {
        let cancel = AtomicBool::new(false);
        let codes = Codes::new(data, data.len() / num_columns, num_columns).unwrap();
        count_neighbours(&codes, identity, &Execution { num_threads, cancel: &cancel }).unwrap()
    }

    #[test]
    fn counts_are_those_of_all_pairs_for_any_number_of_threads() {
        for (num_rows, num_columns) in [(0, 3), (1, 1), (63, 1), (64, 127), (65, 128), (130, 129), (200, 300)] {
            let data = rows(num_rows, num_columns);
            for identity in [0.01, 0.5, 0.8, 1.0] {
                let same = |a: &[u8], b: &[u8]| a.iter().zip(b).filter(|(a, b)| a == b).count();
                let near = |a: &[u8], b: &[u8]| same(a, b) as f64 / num_columns as f64 >= identity;
                let all = || data.chunks(num_columns);
                let wanted: Vec<u32> = all().map(|a| all().filter(|b| near(a, b)).count() as u32).collect();
                for num_threads in [1, 3] {
                    assert_eq!(counted(&data, num_columns, identity, num_threads), wanted, "{num_rows}x{num_columns}");
                }
            }
        }
    }

    #[test]
    fn a_share_that_is_met_exactly_counts() {
        for same in 1..100 {
            let other: Vec<u8> = (0..100).map(|column| u8::from(column >= same)).collect();
            let data = [vec![0; 100], other].concat();
            assert_eq!(counted(&data, 100, same as f64 / 100.0, 1), [2, 2], "{same}");
            assert_eq!(counted(&data, 100, (same as f64 + 0.5) / 100.0, 1), [1, 1], "{same}");
        }
    }

    #[test]
    fn wrong_arguments_are_refused_and_a_raised_flag_stops() {
        let cancel = AtomicBool::new(true);
        let codes = Codes::new(&[0; 6], 2, 3).unwrap();
        let run = Execution { num_threads: 1, cancel: &cancel };
        assert_eq!(count_neighbours(&codes, 0.8, &run), Err(Error::Interrupted));
        for identity in [0.0, 1.01, f64::NAN] {
            let error = count_neighbours(&codes, identity, &run).unwrap_err().to_string();
            assert!(error.starts_with("identity is"), "{error}");
        }
        assert!(Codes::new(&[0; 6], 4, 2).is_err() && Codes::new(&[], 3, 0).is_err());
    }
}
