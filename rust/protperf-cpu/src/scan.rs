//! What has to be known of all keys of a segment before the first of them is summed: `docs/algorithm.md`, section 1, on
//! numbers that are not finite.

use crate::load::KeyView;
use crate::ops::{CpuElement, Ops};
use crate::parallel::Workers;
use crate::stored::CpuStored;
use protperf_core::Result;
use protperf_core::state::KV_STATE;
use std::ops::Range;

/// Rows that are looked at together, and after which the cancel flag is.
const ROWS_AT_ONCE: usize = 256;

/// Facts about the visible keys of a head's segment.
#[derive(Clone, Copy, Debug)]
pub struct KeyScan<T> {
    /// The first visible key whose row of k or v holds a number that is not finite.
    first_not_finite: Option<usize>,
    /// Whether something that every row sees, the initial state or the map's parameters, is not finite.
    is_all_bad: bool,
    /// The largest magnitude of the visible values, in rows that are finite, and of the initial state's sums of values.
    largest: T,
}

impl<T: CpuElement> KeyScan<T> {
    /// The facts about no key.
    pub fn empty() -> Self {
        KeyScan { first_not_finite: None, is_all_bad: false, largest: T::ZERO }
    }

    /// Scans some keys.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn new<S: CpuStored<Compute = T>>(
        workers: &Workers<'_>,
        ops: &Ops<T>,
        keys: &KeyView<'_, S>,
        range: Range<usize>,
    ) -> Result<Self> {
        let mut scan = KeyScan::empty();
        let mut low = range.start;
        while low < range.end {
            workers.check()?;
            let rows = low..range.end.min(low + ROWS_AT_ONCE);
            low = rows.end;
            if !keys.has_padding() {
                let (largest, finite) = keys.values.largest_of(ops, rows.clone());
                if finite && keys.keys.largest_of(ops, rows.clone()).1 {
                    scan.largest = if largest > scan.largest { largest } else { scan.largest };
                    continue;
                }
            }
            scan.add_rows(ops, keys, rows);
        }
        Ok(scan)
    }

    /// Adds some keys one by one: those of which some are padding or not finite.
    fn add_rows<S: CpuStored<Compute = T>>(&mut self, ops: &Ops<T>, keys: &KeyView<'_, S>, rows: Range<usize>) {
        for j in rows {
            if keys.is_padding(j) {
                continue;
            }
            let (largest, finite) = keys.values.largest(ops, j);
            if self.first_not_finite.is_none() && !(finite && keys.keys.largest(ops, j).1) {
                self.first_not_finite = Some(j);
            }
            // A row that is not finite is never summed, so it must not choose the scale of those before it.
            if largest > self.largest && finite {
                self.largest = largest;
            }
        }
    }

    /// Adds the facts about later keys.
    pub fn join(&mut self, later: &Self) {
        self.first_not_finite = self.first_not_finite.or(later.first_not_finite);
        if later.largest > self.largest {
            self.largest = later.largest;
        }
    }

    /// Marks everything that the segment computes as seeing a number that is not finite.
    pub fn mark_all_bad(&mut self) {
        self.is_all_bad = true;
    }

    /// Adds the initial state `[F,2+E]` of the segment.
    pub fn join_state(&mut self, ops: &Ops<T>, state: &[T], value_dim: usize) {
        for row in state.chunks_exact(KV_STATE + value_dim) {
            self.is_all_bad |= !ops.largest(&row[..KV_STATE]).1;
            let (largest, finite) = ops.largest(&row[KV_STATE..]);
            self.is_all_bad |= !finite;
            if largest > self.largest {
                self.largest = largest;
            }
        }
    }

    /// Whether every number that the segment's rows may see is finite.
    pub fn is_clean(&self) -> bool {
        self.first_not_finite.is_none() && !self.is_all_bad
    }

    /// Whether a row sees a number that is not finite in keys, values, state or parameters.
    pub fn reaches(&self, row: usize, causal: bool) -> bool {
        self.is_all_bad || self.first_not_finite.is_some_and(|at| !causal || row >= at)
    }

    /// How many rows of a range, from its first on, see finite numbers alone.
    pub fn usable(&self, range: &Range<usize>, causal: bool) -> usize {
        if self.is_all_bad || !causal && self.first_not_finite.is_some() {
            return 0;
        }
        self.first_not_finite.map_or(range.len(), |at| at.clamp(range.start, range.end) - range.start)
    }

    /// What values are multiplied with before they are summed, and what undoes it: `2^-power` and `2^power` of
    /// [`KeyScan::value_power`].
    pub fn value_scales(&self) -> (T, T) {
        let power = self.value_power();
        (T::exp2_int(-power), T::exp2_int(power))
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
