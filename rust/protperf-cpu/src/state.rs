//! The running state: sums over the keys seen so far. `docs/algorithm.md`, section 5.
//!
//! ```text
//! S_m = sum_j 2^(b_jm - n_m) [v_j, 1]
//! merge:  n = max(n', n''),  S = 2^(n' - n) S' + 2^(n'' - n) S''
//! ```
//!
//! One chunk hands it to the next, one block to the next, and one call to a later one. References are integers, so
//! that raising one scales its sums by an exact power of two.

use crate::layout::{Layout, PANEL};
use crate::ops::{CpuElement, Ops};
use protperf_core::{Result, try_copied, try_filled};

/// Sums over the keys seen so far, relative to `2^reference` of each feature.
pub struct State<T> {
    /// `[feature_panels * PANEL]`; [`crate::simd::Real::NIL`] where a feature has seen no key.
    pub reference: Vec<T>,
    /// `k_state`, `[feature_panels * PANEL]`.
    pub sums: Vec<T>,
    /// `kv_state`, `[feature_panels * PANEL][padded_value]`.
    pub values: Vec<T>,
}

impl<T: CpuElement> State<T> {
    /// A state that has seen no key.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(layout: &Layout) -> Result<Self> {
        let features = layout.feature_panels() * PANEL;
        Ok(State {
            reference: try_filled(features, T::NIL)?,
            sums: try_filled(features, T::ZERO)?,
            values: try_filled(features * layout.padded_value(), T::ZERO)?,
        })
    }

    /// Forgets every key.
    pub fn clear(&mut self) {
        self.reference.fill(T::NIL);
        self.sums.fill(T::ZERO);
        self.values.fill(T::ZERO);
    }

    /// A copy.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(State {
            reference: try_copied(&self.reference)?,
            sums: try_copied(&self.sums)?,
            values: try_copied(&self.values)?,
        })
    }

    /// Makes this a copy of another state of the same sizes.
    pub fn copy_from(&mut self, other: &State<T>) {
        self.reference.copy_from_slice(&other.reference);
        self.sums.copy_from_slice(&other.sums);
        self.values.copy_from_slice(&other.values);
    }

    /// Adds the keys of another state.
    pub fn merge(&mut self, other: &State<T>) {
        let width = if self.sums.is_empty() { 0 } else { self.values.len() / self.sums.len() };
        for m in 0..self.sums.len() {
            let (top, left, right) = joined(self.reference[m], other.reference[m]);
            self.reference[m] = top;
            self.sums[m] = self.sums[m] * left + other.sums[m] * right;
            let (values, added) = (&mut self.values[m * width..][..width], &other.values[m * width..][..width]);
            values.iter_mut().zip(added).for_each(|(x, &y)| *x = *x * left + y * right);
        }
    }

    /// Multiplies the sums of feature m by `2^power[m]`, a power of 0 or less.
    pub fn rescale(&mut self, ops: &Ops<T>, layout: &Layout, power: &[T]) {
        let width = layout.padded_value();
        ops.rescale_rows(&mut self.values, width, width, power);
        for (sum, &power) in self.sums.iter_mut().zip(power) {
            *sum *= T::exp2_int(power);
        }
    }

    /// Multiplies `kv_state`.
    pub fn scale_values(&mut self, scale: T) {
        if scale != T::ONE {
            self.values.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Reads a public state `[F, 2 + E]`.
    pub fn import(&mut self, layout: &Layout, state: &[T]) {
        self.clear();
        let e = layout.value_dim;
        for (feature, row) in state.chunks_exact(2 + e).enumerate() {
            let at = layout.place(feature);
            self.reference[at] = row[0];
            self.sums[at] = row[1];
            self.values[at * layout.padded_value()..][..e].copy_from_slice(&row[2..]);
        }
    }

    /// Writes a public state `[F, 2 + E]`.
    pub fn export(&self, layout: &Layout, state: &mut [T]) {
        let e = layout.value_dim;
        for (feature, row) in state.chunks_exact_mut(2 + e).enumerate() {
            let at = layout.place(feature);
            row[0] = self.reference[at];
            row[1] = self.sums[at];
            row[2..].copy_from_slice(&self.values[at * layout.padded_value()..][..e]);
        }
    }
}

/// The common reference of two features, and the powers of two that bring the sums of each to it.
fn joined<T: CpuElement>(left: T, right: T) -> (T, T, T) {
    let top = if left > right { left } else { right };
    (top, T::exp2_int(left - top), T::exp2_int(right - top))
}
