//! Activation features of one panel, `f(y) + epsilon`, and their gradient: `docs/algorithm.md`, section 3.
//!
//! A map is a pair of formulas over registers, f and f', and one arm in [`activate`] and in [`gradient`]. Both match
//! on every function there is, so a new one does not compile until they know it.

use super::exponential::exp_negative;
use super::panel::clear_tail;
use crate::layout::{Extent, PANEL};
use crate::simd::{Real, Simd};
use protperf_core::Activation;

/// The formulas of one map.
trait Formula {
    /// f(x).
    ///
    /// # Safety
    /// The processor must have the instruction set of S.
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register;

    /// g f'(x).
    ///
    /// # Safety
    /// The processor must have the instruction set of S.
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register;
}

/// max(0, x).
struct Relu;

impl Formula for Relu {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { S::max(x, S::splat(S::T::ZERO)) }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { S::select_positive(x, g, S::splat(S::T::ZERO)) }
    }
}

/// elu(x) + 1: x + 1 above 0, e^x below.
struct Elu1;

impl Formula for Elu1 {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { S::select_positive(x, S::add(x, S::splat(S::T::ONE)), exp_negative::<S>(x)) }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { S::select_positive(x, g, S::mul(g, exp_negative::<S>(x))) }
    }
}

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
    unsafe {
        match activation {
            Activation::Relu => activate_as::<S, Relu>(y, extent, epsilon, factor, features),
            Activation::Elu1 => activate_as::<S, Elu1>(y, extent, epsilon, factor, features),
        }
    }
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
    unsafe {
        match activation {
            Activation::Relu => gradient_as::<S, Relu>(y, extent, factor, gradient),
            Activation::Elu1 => gradient_as::<S, Elu1>(y, extent, factor, gradient),
        }
    }
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
