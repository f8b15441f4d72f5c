//! What has to be known of all keys of a segment before the first of them is summed.

use crate::load::KeyView;
use crate::ops::{CpuElement, Ops};
use crate::parallel::Workers;
use protperf_core::Result;
use std::ops::Range;

/// Facts about the visible keys of a head's segment.
#[derive(Clone, Copy, Debug)]
pub struct KeyScan<T> {
    /// The first visible key whose row of k or v holds a number that is not finite.
    pub first_not_finite: Option<usize>,
    /// The largest magnitude of the visible values, in rows that are finite.
    largest: T,
}

impl<T: CpuElement> KeyScan<T> {
    /// The facts about no key.
    pub fn empty() -> Self {
        KeyScan { first_not_finite: None, largest: T::ZERO }
    }

    /// Scans some keys.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn new(workers: &Workers<'_>, ops: &Ops<T>, keys: &KeyView<'_, T>, range: Range<usize>) -> Result<Self> {
        let mut scan = KeyScan::empty();
        for j in range {
            workers.check_at(j)?;
            if keys.is_padding(j) {
                continue;
            }
            let (largest, finite) = keys.values.largest(ops, j);
            if scan.first_not_finite.is_none() && !(finite && keys.keys.largest(ops, j).1) {
                scan.first_not_finite = Some(j);
            }
            // A row that is not finite is never summed, so it must not choose the scale of those before it.
            if largest > scan.largest && finite {
                scan.largest = largest;
            }
        }
        Ok(scan)
    }

    /// Adds the facts about later keys.
    pub fn join(&mut self, later: &Self) {
        self.first_not_finite = self.first_not_finite.or(later.first_not_finite);
        if later.largest > self.largest {
            self.largest = later.largest;
        }
    }

    /// How many keys of a range come before the first that is not finite.
    pub fn usable(&self, range: &Range<usize>) -> usize {
        self.first_not_finite.map_or(range.len(), |at| at.clamp(range.start, range.end) - range.start)
    }

    /// The power of two that values are divided by before they are summed: 0 unless they are so large that sums could
    /// overflow, or so small that products could vanish.
    pub fn value_power(&self) -> T {
        let half = (T::TOP * T::from_f64(0.5)).round_even();
        if self.largest == T::ZERO {
            return T::ZERO;
        }
        let (exponent, _) = self.largest.frexp();
        if exponent > half {
            (exponent - half).round_even()
        } else if exponent < -half {
            let power = exponent + half;
            if power < T::FLUSH { T::FLUSH } else { power }
        } else {
            T::ZERO
        }
    }
}
