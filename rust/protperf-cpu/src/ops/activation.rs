//! Activation features of one panel, `f(y) + epsilon`, and their gradient: `docs/algorithm.md`, section 3.
//!
//! A map is a pair of formulas over registers (`formula.rs`), f and f', and one arm in [`activate`] and in [`gradient`].
//! Both match on every function there is, so a new one does not compile until they know it.

use super::formula::{Abs, Cos, Elu1, Formula, Gelu, Identity, Relu, Relu2, Sigmoid, Square, Tanh};
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
    unsafe {
        match activation {
            Activation::Relu => activate_as::<S, Relu>(y, extent, epsilon, factor, features),
            Activation::Elu1 => activate_as::<S, Elu1>(y, extent, epsilon, factor, features),
            Activation::Identity => activate_as::<S, Identity>(y, extent, epsilon, factor, features),
            Activation::Abs => activate_as::<S, Abs>(y, extent, epsilon, factor, features),
            Activation::Relu2 => activate_as::<S, Relu2>(y, extent, epsilon, factor, features),
            Activation::Square => activate_as::<S, Square>(y, extent, epsilon, factor, features),
            Activation::Sigmoid => activate_as::<S, Sigmoid>(y, extent, epsilon, factor, features),
            Activation::Tanh => activate_as::<S, Tanh>(y, extent, epsilon, factor, features),
            Activation::Gelu => activate_as::<S, Gelu>(y, extent, epsilon, factor, features),
            Activation::Cos => activate_as::<S, Cos>(y, extent, epsilon, factor, features),
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
            Activation::Identity => gradient_as::<S, Identity>(y, extent, factor, gradient),
            Activation::Abs => gradient_as::<S, Abs>(y, extent, factor, gradient),
            Activation::Relu2 => gradient_as::<S, Relu2>(y, extent, factor, gradient),
            Activation::Square => gradient_as::<S, Square>(y, extent, factor, gradient),
            Activation::Sigmoid => gradient_as::<S, Sigmoid>(y, extent, factor, gradient),
            Activation::Tanh => gradient_as::<S, Tanh>(y, extent, factor, gradient),
            Activation::Gelu => gradient_as::<S, Gelu>(y, extent, factor, gradient),
            Activation::Cos => gradient_as::<S, Cos>(y, extent, factor, gradient),
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
