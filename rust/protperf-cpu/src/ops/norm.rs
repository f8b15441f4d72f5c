//! Root-mean-square normalization of one row, and its gradient.
//!
//! These loops are plain: compiled for an instruction set they become its vector code. A product and a sum are two
//! roundings, so every instruction set gives the same bits.

use super::row::dot;
use crate::simd::{Real, Simd};
use protperf_core::Element;

/// `to = x * gain / rms(x)`; returns 1 / rms, with `epsilon` added to the mean square.
///
/// Source: Zhang and Sennrich 2019, arXiv:1910.07467.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn rms_norm<S: Simd>(x: &[S::T], gain: &[S::T], epsilon: S::T, to: &mut [S::T]) -> S::T {
    assert!(gain.len() == x.len() && to.len() >= x.len());
    let mean = dot(x, x) / S::T::from_f64(x.len() as f64);
    let inverse = S::T::ONE / (mean + epsilon).sqrt();
    for ((to, &x), &gain) in to.iter_mut().zip(x).zip(gain) {
        *to = x * inverse * gain;
    }
    inverse
}

/// The gradient of [`rms_norm`]: adds that of x to `dx` and that of the gain to `dgain`, where `grad` arrived at the
/// result and `inverse` was returned.
///
/// With r the inverse and C the width, `dx = r gain grad - x r^3 / C * sum(x gain grad)`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn rms_norm_gradient<S: Simd>(
    x: &[S::T],
    gain: &[S::T],
    inverse: S::T,
    grad: &[S::T],
    dx: &mut [S::T],
    dgain: &mut [S::T],
) {
    let width = x.len();
    assert!(gain.len() == width && grad.len() >= width && dx.len() >= width && dgain.len() >= width);
    for ((dgain, &x), &grad) in dgain.iter_mut().zip(x).zip(grad) {
        *dgain += grad * x * inverse;
    }
    let mut lanes = [S::T::ZERO; 16];
    for at in (0..width).step_by(16) {
        for (lane, i) in lanes.iter_mut().zip(at..width.min(at + 16)) {
            *lane += x[i] * gain[i] * grad[i];
        }
    }
    let sum = super::row::sum_of(&lanes);
    let along = inverse * inverse * inverse * sum / S::T::from_f64(width as f64);
    for (((dx, &x), &gain), &grad) in dx.iter_mut().zip(x).zip(gain).zip(grad) {
        *dx += inverse * gain * grad - x * along;
    }
}
