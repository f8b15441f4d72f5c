//! The running state: sums over the keys seen so far. `docs/algorithm.md`, section 5.
//!
//! ```text
//! S_m = sum_j 2^(b_jm - n_m) [v_j, 1]
//! merge:  n = max(n', n''),  S = 2^(n' - n) S' + 2^(n'' - n) S''
//! ```
//!
//! One chunk hands it to the next, one block to the next, and one call to a later one. References are integers, so
//! that raising one scales its sums by an exact power of two.

use crate::aligned::Aligned;
use crate::layout::{Layout, PANEL};
use crate::ops::{CpuElement, Ops};
use protperf_core::Result;
use protperf_core::state::KV_STATE;

/// Sums over the keys seen so far, relative to `2^reference` of each feature.
pub struct State<T> {
    /// `[feature_panels * PANEL]`; [`protperf_core::Element::EMPTY_REFERENCE`] where a feature has seen no key.
    pub reference: Aligned<T>,
    /// `k_state`, `[feature_panels * PANEL]`.
    pub sums: Aligned<T>,
    /// `kv_state`, `[feature_panels * PANEL][padded_value]`.
    pub values: Aligned<T>,
    /// Whether the sums may be other than 0. Where not, as in all of a short sequence, they are not read.
    pub has_keys: bool,
}

impl<T: CpuElement> State<T> {
    /// A state that has seen no key.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(layout: &Layout) -> Result<Self> {
        let features = layout.feature_panels() * PANEL;
        Ok(State {
            reference: Aligned::filled(features, T::EMPTY_REFERENCE)?,
            sums: Aligned::filled(features, T::ZERO)?,
            values: Aligned::filled(features * layout.padded_value(), T::ZERO)?,
            has_keys: false,
        })
    }

    /// Forgets every key.
    pub fn clear(&mut self) {
        self.reference.fill(T::EMPTY_REFERENCE);
        self.sums.fill(T::ZERO);
        self.values.fill(T::ZERO);
        self.has_keys = false;
    }

    /// A copy.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(State {
            reference: copied(&self.reference)?,
            sums: copied(&self.sums)?,
            values: copied(&self.values)?,
            has_keys: self.has_keys,
        })
    }

    /// Makes this a copy of another state of the same sizes.
    pub fn copy_from(&mut self, other: &State<T>) {
        self.reference.copy_from_slice(&other.reference);
        self.sums.copy_from_slice(&other.sums);
        self.values.copy_from_slice(&other.values);
        self.has_keys = other.has_keys;
    }

    /// Adds the keys of another state.
    pub fn merge(&mut self, other: &State<T>) {
        self.has_keys |= other.has_keys;
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

    /// Reads a public state `[F,2+E]`.
    pub fn import(&mut self, layout: &Layout, state: &[T]) {
        self.clear();
        self.has_keys = true;
        for (feature, row) in state.chunks_exact(KV_STATE + layout.value_dim).enumerate() {
            let at = layout.place(feature);
            self.reference[at] = row[0];
            self.sums[at] = row[1];
            self.values_mut(layout, at).copy_from_slice(&row[KV_STATE..]);
        }
    }

    /// Writes a public state `[F,2+E]`.
    pub fn export(&self, layout: &Layout, state: &mut [T]) {
        for (feature, row) in state.chunks_exact_mut(KV_STATE + layout.value_dim).enumerate() {
            let at = layout.place(feature);
            row[0] = self.reference[at];
            row[1] = self.sums[at];
            row[KV_STATE..].copy_from_slice(self.values(layout, at));
        }
    }

    /// Reads what arrives at the sums of a final public state `[F,2+E]`, as a state of cotangents: `R = G`, relative to
    /// `2^-n` as the sums themselves are to `2^n`. Where values are multiplied with `value_scale`, the gradient of their
    /// sums is the same, and that of `k_state` is in units of theirs.
    pub fn import_gradient(&mut self, layout: &Layout, final_state: &[T], gradient: &[T], value_scale: T) {
        self.clear();
        self.has_keys = true;
        let width = KV_STATE + layout.value_dim;
        let rows = final_state.chunks_exact(width).zip(gradient.chunks_exact(width));
        for (feature, (last, row)) in rows.enumerate() {
            // A feature that has seen no key has no key to pass its gradient on to.
            if is_empty(last[0]) {
                continue;
            }
            let at = layout.place(feature);
            self.reference[at] = -last[0];
            self.sums[at] = row[1] * value_scale;
            self.values_mut(layout, at).copy_from_slice(&row[KV_STATE..]);
        }
    }

    /// Writes the gradient of the sums of an initial public state `[F,2+E]`: `2^n R`, where this is the state of all
    /// cotangents of values that were divided by `value_unscale`. `arrived` are the final state and its gradient.
    pub fn export_gradient(
        &self,
        layout: &Layout,
        initial: &[T],
        arrived: Option<(&[T], &[T])>,
        value_unscale: T,
        to: &mut [T],
    ) {
        let width = KV_STATE + layout.value_dim;
        for (feature, (first, row)) in initial.chunks_exact(width).zip(to.chunks_exact_mut(width)).enumerate() {
            row.fill(T::ZERO);
            if !is_empty(first[0]) {
                let at = layout.place(feature);
                let power = T::exp2_int(self.reference[at] + first[0]);
                row[1] = self.sums[at] * power * value_unscale;
                row[KV_STATE..].iter_mut().zip(self.values(layout, at)).for_each(|(to, &x)| *to = x * power);
            } else if let Some((_, gradient)) = arrived.filter(|(last, _)| is_empty(last[feature * width])) {
                // No key on the way: the final sums are the initial ones.
                row[1..].copy_from_slice(&gradient[feature * width..][1..width]);
            }
        }
    }

    fn values(&self, layout: &Layout, at: usize) -> &[T] {
        &self.values[at * layout.padded_value()..][..layout.value_dim]
    }

    fn values_mut(&mut self, layout: &Layout, at: usize) -> &mut [T] {
        &mut self.values[at * layout.padded_value()..][..layout.value_dim]
    }
}

fn copied<T: CpuElement>(from: &[T]) -> Result<Aligned<T>> {
    let mut to = Aligned::filled(from.len(), T::ZERO)?;
    to.copy_from_slice(from);
    Ok(to)
}

/// Whether a reference is that of a feature that has seen no key.
fn is_empty<T: CpuElement>(reference: T) -> bool {
    reference <= T::EMPTY_REFERENCE
}

/// The common reference of two features, and the powers of two that bring the sums of each to it.
fn joined<T: CpuElement>(left: T, right: T) -> (T, T, T) {
    let top = if left > right { left } else { right };
    (top, T::exp2_int(left - top), T::exp2_int(right - top))
}
