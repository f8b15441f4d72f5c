//! Log-probabilities of one row of logits, and the gradient of the cross-entropy.

use super::exponential::exp_negative;
use crate::layout::PAD;
use crate::simd::{Real, Simd};
use protperf_core::Element;

/// `exp(x - top)` of a row, its length a multiple of [`PAD`], where no x is above `top`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
unsafe fn exponentials<S: Simd>(x: &mut [S::T], top: S::T) {
    assert!(x.len().is_multiple_of(PAD));
    for at in (0..x.len()).step_by(S::LANES) {
        // SAFETY: the caller guarantees the instruction set; LANES divides PAD.
        unsafe {
            let shifted = S::sub(S::load(x.as_ptr().add(at)), S::splat(top));
            S::store(x.as_mut_ptr().add(at), exp_negative::<S>(shifted));
        }
    }
}

/// The largest of some numbers; NaN where one is NaN.
#[inline(always)]
fn top_of<T: Real>(x: &[T]) -> T {
    let mut top = x[0];
    for &x in x {
        // NaN is not ordered; once it is there it stays.
        top = if top >= x || top.partial_cmp(&top).is_none() { top } else { x };
    }
    top
}

/// Turns the first `classes` numbers of a row, logits, into log-probabilities; returns log(sum(exp(logits))).
///
/// The row's length is a multiple of [`PAD`]; what follows the classes is overwritten.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn log_softmax<S: Simd>(row: &mut [S::T], classes: usize, scratch: &mut [S::T]) -> S::T {
    assert!(classes > 0 && classes <= row.len() && scratch.len() == row.len());
    let top = top_of(&row[..classes]);
    row[classes..].fill(top);
    scratch.copy_from_slice(row);
    // SAFETY: the caller guarantees the instruction set.
    unsafe { exponentials::<S>(scratch, top) };
    let mut sum = S::T::ZERO;
    scratch[..classes].iter().for_each(|&e| sum += e);
    let log = top + S::T::from_f64(sum.to_f64().ln());
    row.iter_mut().for_each(|x| *x = *x - log);
    log
}

/// Turns log-probabilities into the gradient with respect to the logits of `-weight * log-probability of target`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn cross_entropy_gradient<S: Simd>(row: &mut [S::T], classes: usize, target: usize, weight: S::T) {
    assert!(target < classes && classes <= row.len());
    row[classes..].fill(S::T::ZERO);
    // SAFETY: the caller guarantees the instruction set.
    unsafe { exponentials::<S>(row, S::T::ZERO) };
    row.iter_mut().for_each(|p| *p *= weight);
    row[classes..].fill(S::T::ZERO);
    row[target] = row[target] - weight;
}
