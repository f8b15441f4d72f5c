//! Softmax weights of one square of scores in bits: `docs/algorithm.md`, section 8.
//!
//! ```text
//! softmax:  m' = max(m, max_j round(s_j)),  s_j <- 2^(s_j - m'),  sum <- 2^(m - m') sum + sum_j s_j
//! weights:  s_j <- 2^(s_j - shift)
//! ```
//!
//! The maximum is an integer, as the references of features are: raising it scales earlier sums by a power of two, and
//! changes no bit of them.

use super::exponential::exp2_fraction;
use super::panel::clear_tail;
use super::row::largest_of;
use crate::layout::{Extent, PAD, PANEL};
use crate::simd::{Real, Simd};
use protperf_core::Element;

/// Turns scores into weights relative to the running maximum of each row, `maxima`, which it raises; `power[row]` is by
/// how much it rose, as the exponent of what scales the row's earlier sums; adds the weights to the row's lanes of `sums`.
///
/// Hidden scores are [`Element::EMPTY_REFERENCE`]; a row that has seen none but these keeps that maximum.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn softmax<S: Simd>(
    scores: &mut [S::T],
    extent: Extent,
    maxima: &mut [S::T],
    power: &mut [S::T],
    sums: &mut [S::T],
) {
    extent.check(&[scores.len()]);
    assert!(maxima.len() >= extent.rows && power.len() >= extent.rows && sums.len() >= extent.rows * PAD);
    for row in 0..extent.rows {
        // SAFETY: the checks above: rows * PANEL elements lie in `scores`, a register that starts below the width ends
        // inside it, and `sums` holds PAD lanes per row, at least the length of a register.
        unsafe {
            let at = scores.as_mut_ptr().add(row * PANEL);
            let mut best = S::splat(S::T::EMPTY_REFERENCE);
            for col in (0..extent.width()).step_by(S::LANES) {
                best = S::max(S::load(at.add(col)), best);
            }
            let mut lanes = [S::T::EMPTY_REFERENCE; PAD];
            S::store(lanes.as_mut_ptr(), best);
            let (old, top) = (maxima[row], largest_of(&lanes).round_even());
            let new = if top > old { top } else { old };
            maxima[row] = new;
            // Sums over nothing are 0 at any maximum.
            power[row] = if old == S::T::EMPTY_REFERENCE { S::T::ZERO } else { old - new };
            let shift = S::splat(if new == S::T::EMPTY_REFERENCE { S::T::ZERO } else { new });
            let mut sum = S::load(sums.as_ptr().add(row * PAD));
            if power[row] != S::T::ZERO {
                sum = S::scale2(sum, S::splat(power[row]));
            }
            for col in (0..extent.width()).step_by(S::LANES) {
                let x = S::load(at.add(col));
                let whole = S::round(x);
                let value = S::scale2(exp2_fraction::<S>(S::sub(x, whole)), S::sub(whole, shift));
                S::store(at.add(col), value);
                sum = S::add(sum, value);
            }
            S::store(sums.as_mut_ptr().add(row * PAD), sum);
        }
    }
}

/// Turns scores into weights relative to the exponent of each row.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn weights<S: Simd>(scores: &mut [S::T], extent: Extent, shift: &[S::T]) {
    extent.check(&[scores.len()]);
    assert!(shift.len() >= extent.rows);
    for (row, &shift) in shift.iter().enumerate().take(extent.rows) {
        // SAFETY: the checks above: rows * PANEL elements lie in `scores`, and a register that starts below the width
        // ends inside it.
        unsafe {
            let (at, down) = (scores.as_mut_ptr().add(row * PANEL), S::splat(shift));
            for col in (0..extent.width()).step_by(S::LANES) {
                let x = S::load(at.add(col));
                let whole = S::round(x);
                let value = S::scale2(exp2_fraction::<S>(S::sub(x, whole)), S::sub(whole, down));
                S::store(at.add(col), value);
            }
        }
    }
    clear_tail(scores, extent);
}

/// `to = to * by`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn multiply<S: Simd>(by: &[S::T], extent: Extent, to: &mut [S::T]) {
    extent.check(&[by.len(), to.len()]);
    for row in 0..extent.rows {
        for col in (0..extent.width()).step_by(S::LANES) {
            // SAFETY: the checks above: rows * PANEL elements lie in both.
            unsafe {
                let (at, by) = (to.as_mut_ptr().add(row * PANEL + col), by.as_ptr().add(row * PANEL + col));
                S::store(at, S::mul(S::load(at), S::load(by)));
            }
        }
    }
}
