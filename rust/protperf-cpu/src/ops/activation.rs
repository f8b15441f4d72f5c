//! Activation features of one panel, `f(y) + epsilon`, and their gradient: `docs/algorithm.md`, section 3.
//!
//! The loops are written once, over the pair of formulas of a map, f and f' (`formula.rs`).

use super::formula::{Formula, with_formula};
use super::panel::clear_tail;
use crate::layout::{Extent, PANEL};
use crate::simd::{Real, Simd};
use protperf_core::Activation;

/// `features = (f(y) + epsilon) * factor[row]`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn activate<S: Simd>(
    y: &[S::T],
    extent: Extent,
    activation: Activation,
    epsilon: S::T,
    factor: &[S::T],
    features: &mut [S::T],
) {
    // SAFETY: the caller guarantees the instruction set.
    unsafe { with_formula!(activation, activate_as::<S>(y, extent, epsilon, factor, features)) }
}

/// `gradient = gradient * factor[row] * f'(y)`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn gradient<S: Simd>(
    y: &[S::T],
    extent: Extent,
    activation: Activation,
    factor: &[S::T],
    gradient: &mut [S::T],
) {
    // SAFETY: the caller guarantees the instruction set.
    unsafe { with_formula!(activation, gradient_as::<S>(y, extent, factor, gradient)) }
}

#[inline(always)]
unsafe fn activate_as<S: Simd, F: Formula>(
    y: &[S::T],
    extent: Extent,
    epsilon: S::T,
    factor: &[S::T],
    features: &mut [S::T],
) {
    extent.check(&[y.len(), features.len()]);
    assert!(factor.len() >= extent.rows);
    for (row, &factor) in factor.iter().enumerate().take(extent.rows) {
        // SAFETY: the caller guarantees the instruction set; rows * PANEL elements lie in both panels, as was checked.
        unsafe {
            let by = S::splat(factor);
            for col in (0..extent.width()).step_by(S::LANES) {
                let at = row * PANEL + col;
                // The limit keeps products of two features finite.
                let x = S::min(S::load(y.as_ptr().add(at)), S::splat(S::T::LIMIT));
                let x = S::max(x, S::splat(-S::T::LIMIT));
                let value = S::add(F::value::<S>(x), S::splat(epsilon));
                S::store(features.as_mut_ptr().add(at), S::mul(value, by));
            }
        }
    }
    clear_tail(features, extent);
}

#[inline(always)]
unsafe fn gradient_as<S: Simd, F: Formula>(y: &[S::T], extent: Extent, factor: &[S::T], gradient: &mut [S::T]) {
    extent.check(&[y.len(), gradient.len()]);
    assert!(factor.len() >= extent.rows);
    for (row, &factor) in factor.iter().enumerate().take(extent.rows) {
        // SAFETY: the caller guarantees the instruction set; rows * PANEL elements lie in both panels, as was checked.
        unsafe {
            let by = S::splat(factor);
            for col in (0..extent.width()).step_by(S::LANES) {
                let at = row * PANEL + col;
                let g = S::mul(S::load(gradient.as_ptr().add(at)), by);
                let x = S::load(y.as_ptr().add(at));
                S::store(gradient.as_mut_ptr().add(at), F::times_slope::<S>(x, g));
            }
        }
    }
}
