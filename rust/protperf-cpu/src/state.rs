//! Running sums over writers: what a chunk hands to the next, a block to the next, and a caller to a later call.

use crate::call::{SCAN, check_len};
use crate::ops::{CpuElement, PANEL};
use crate::parallel;
use crate::weights::Widths;
use crate::workspace::{try_filled, try_reserved};
use protperf_core::{FavorShape, Result};
use std::sync::atomic::AtomicBool;

/// Running sums over the writers seen so far, relative to `2^reference` of each feature.
pub struct State<E> {
    /// `[panels * PANEL]`.
    pub reference: Vec<E>,
    /// `k_state`, `[panels * PANEL]`.
    pub sums: Vec<E>,
    /// `kv_state`, `[panels * PANEL][padded_value]`.
    pub values: Vec<E>,
}

impl<E: CpuElement> State<E> {
    /// A state that has seen no writer.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(widths: &Widths) -> Result<Self> {
        let features = widths.panels() * PANEL;
        Ok(State {
            reference: try_filled(features, E::NIL)?,
            sums: try_filled(features, E::ZERO)?,
            values: try_filled(features * widths.padded_value(), E::ZERO)?,
        })
    }

    /// Forgets every writer.
    pub fn clear(&mut self) {
        self.reference.fill(E::NIL);
        self.sums.fill(E::ZERO);
        self.values.fill(E::ZERO);
    }

    /// A copy.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(State {
            reference: try_copy(&self.reference)?,
            sums: try_copy(&self.sums)?,
            values: try_copy(&self.values)?,
        })
    }

    /// Makes this a copy of another state of the same sizes.
    pub fn copy_from(&mut self, other: &State<E>) {
        self.reference.copy_from_slice(&other.reference);
        self.sums.copy_from_slice(&other.sums);
        self.values.copy_from_slice(&other.values);
    }

    /// Adds the writers of another block.
    pub fn merge(&mut self, other: &State<E>) {
        let width = if self.sums.is_empty() { 0 } else { self.values.len() / self.sums.len() };
        for m in 0..self.sums.len() {
            let (before, after) = (self.reference[m], other.reference[m]);
            let top = if before > after { before } else { after };
            let (left, right) = (E::exp2_int(before - top), E::exp2_int(after - top));
            self.reference[m] = top;
            self.sums[m] = self.sums[m] * left + other.sums[m] * right;
            let (values, added) = (&mut self.values[m * width..][..width], &other.values[m * width..][..width]);
            values.iter_mut().zip(added).for_each(|(x, &y)| *x = *x * left + y * right);
        }
    }

    /// Multiplies `kv_state`.
    pub fn scale_values(&mut self, scale: E) {
        if scale != E::ONE {
            self.values.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// Reads a public state `[F, 2 + E]`.
    pub fn import(&mut self, widths: &Widths, state: &[E]) {
        self.clear();
        let e = widths.value_dim;
        for (feature, row) in state.chunks_exact(2 + e).enumerate() {
            let at = widths.place(feature);
            self.reference[at] = row[0];
            self.sums[at] = row[1];
            self.values[at * widths.padded_value()..][..e].copy_from_slice(&row[2..]);
        }
    }

    /// Writes a public state `[F, 2 + E]`.
    pub fn export(&self, widths: &Widths, state: &mut [E]) {
        let e = widths.value_dim;
        for (feature, row) in state.chunks_exact_mut(2 + e).enumerate() {
            let at = widths.place(feature);
            row[0] = self.reference[at];
            row[1] = self.sums[at];
            row[2..].copy_from_slice(&self.values[at * widths.padded_value()..][..e]);
        }
    }
}

/// Adds state b to state a: the state of both sets of keys.
///
/// # Shapes
/// All `[.., 2 + value_dim]` rows, one a feature: reference, `k_state`, `kv_state`.
///
/// # Errors
/// `ShapeMismatch` where the lengths differ; `Interrupted`.
pub fn merge_states<E: CpuElement>(
    a: &[E],
    b: &[E],
    value_dim: usize,
    out: &mut [E],
    cancel: &AtomicBool,
) -> Result<()> {
    check_len("b", b.len(), a.len())?;
    check_len("out", out.len(), a.len())?;
    let rows = a.chunks_exact(2 + value_dim).zip(b.chunks_exact(2 + value_dim));
    for (row, ((a, b), out)) in rows.zip(out.chunks_exact_mut(2 + value_dim)).enumerate() {
        if row.is_multiple_of(SCAN) {
            parallel::check(cancel)?;
        }
        let top = if a[0] > b[0] { a[0] } else { b[0] };
        let (left, right) = (E::exp2_int(a[0] - top), E::exp2_int(b[0] - top));
        out[0] = top;
        for ((out, &a), &b) in out[1..].iter_mut().zip(&a[1..]).zip(&b[1..]) {
            *out = a * left + b * right;
        }
    }
    Ok(())
}

/// A state that has seen no key, `[B,H,F,2+E]`.
///
/// # Errors
/// `OutOfMemory`.
pub fn empty_state<E: CpuElement>(shape: &FavorShape) -> Result<Vec<E>> {
    let mut state = try_filled(shape.state().iter().product(), E::ZERO)?;
    state.chunks_exact_mut(2 + shape.value_dim).for_each(|row| row[0] = E::NIL);
    Ok(state)
}

fn try_copy<E: CpuElement>(from: &[E]) -> Result<Vec<E>> {
    let mut copy = try_reserved(from.len())?;
    copy.extend_from_slice(from);
    Ok(copy)
}
