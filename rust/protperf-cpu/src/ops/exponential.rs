//! Exponential features of one panel, `2^y` with a reference per feature: `docs/algorithm.md`, section 2.
//!
//! ```text
//! raise_reference:  n_m    = max(n_m, max_j round(b_jm) - shift_j)
//! keys:             phi_jm = 2^(b_jm - shift_j - n_m)
//! tops:             t_i    = max(t_i, max_m (a_im + n_m))
//! queries:          phi_im = 2^(a_im + n_m - shift_i)
//! ```
//!
//! A log-feature y in bits is split once as `y = I + f` with I an integer and |f| <= 1/2. The polynomial gives 2^f;
//! I, the references and the shifts are integers held as floats, so that combining them is exact and the last step,
//! a scaling by a power of two, changes no bit of the mantissa. The difference `y - reference` is never formed: it
//! would round, and the result would then depend on the reference.

use super::panel::clear_tail;
use crate::layout::{Extent, PAD, PANEL};
use crate::simd::{Real, Simd};
use protperf_core::Element;

/// 2^f for |f| <= 1/2.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn exp2_fraction<S: Simd>(f: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set, and a polynomial has at least one coefficient.
    unsafe {
        let mut coefficients = S::T::EXP2.iter().rev();
        let mut sum = S::splat(*coefficients.next().unwrap_unchecked());
        for &c in coefficients {
            sum = S::fma(sum, f, S::splat(c));
        }
        sum
    }
}

/// 2^f - 1 for |f| <= 1/2: the same polynomial without its 1, so that no digit of a small f is lost.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
unsafe fn exp2m1_fraction<S: Simd>(f: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let mut sum = S::splat(S::T::ZERO);
        for &c in S::T::EXP2[1..].iter().rev() {
            sum = S::fma(sum, f, S::splat(c));
        }
        S::mul(sum, f)
    }
}

/// Raises `reference[m]` to the largest `round(y) - shift` of the visible rows.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn raise_reference<S: Simd>(
    y: &[S::T],
    extent: Extent,
    visible: &[bool],
    shift: &[S::T],
    reference: &mut [S::T],
) {
    extent.check(&[y.len()]);
    assert!(visible.len() >= extent.rows && shift.len() >= extent.rows && reference.len() >= extent.width());
    for col in (0..extent.width()).step_by(S::LANES) {
        // SAFETY: the checks above: rows * PANEL elements lie in `y` and `width` in `reference`, and a register that
        // starts below the width ends inside it, for the width is a multiple of every register's length.
        unsafe {
            let mut top = S::load(reference.as_ptr().add(col));
            for row in 0..extent.rows {
                if visible[row] {
                    let whole = S::round(S::load(y.as_ptr().add(row * PANEL + col)));
                    top = S::max(S::sub(whole, S::splat(shift[row])), top);
                }
            }
            S::store(reference.as_mut_ptr().add(col), top);
        }
    }
    // Padding projects to 0, which must not look like a key that was seen.
    reference[extent.features..extent.width()].fill(S::T::EMPTY_REFERENCE);
}

/// `features = 2^(y - shift - reference)` of visible rows, 0 of the others.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn keys<S: Simd>(
    y: &[S::T],
    extent: Extent,
    visible: &[bool],
    shift: &[S::T],
    reference: &[S::T],
    features: &mut [S::T],
) {
    extent.check(&[y.len(), features.len()]);
    assert!(visible.len() >= extent.rows && shift.len() >= extent.rows && reference.len() >= extent.width());
    for row in 0..extent.rows {
        if !visible[row] {
            features[row * PANEL..row * PANEL + extent.width()].fill(S::T::ZERO);
            continue;
        }
        // SAFETY: the checks above: rows * PANEL elements lie in `y` and `features`, `width` in `reference`.
        unsafe {
            let down = S::splat(shift[row]);
            for col in (0..extent.width()).step_by(S::LANES) {
                let x = S::load(y.as_ptr().add(row * PANEL + col));
                let whole = S::round(x);
                let power = S::sub(S::sub(whole, down), S::load(reference.as_ptr().add(col)));
                let value = S::scale2(exp2_fraction::<S>(S::sub(x, whole)), power);
                S::store(features.as_mut_ptr().add(row * PANEL + col), value);
            }
        }
    }
    clear_tail(features, extent);
}

/// Raises the lanes `tops[row]` to the largest `y + reference`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn tops<S: Simd>(y: &[S::T], extent: Extent, reference: &[S::T], tops: &mut [S::T]) {
    extent.check(&[y.len()]);
    assert!(reference.len() >= extent.width() && tops.len() >= extent.rows * PAD);
    for row in 0..extent.rows {
        // SAFETY: the checks above: rows * PANEL elements lie in `y`, `width` in `reference`, and `tops` holds PAD
        // lanes per row, at least the length of a register.
        unsafe {
            let mut best = S::load(tops.as_ptr().add(row * PAD));
            for col in (0..extent.width()).step_by(S::LANES) {
                let sum = S::add(S::load(y.as_ptr().add(row * PANEL + col)), S::load(reference.as_ptr().add(col)));
                best = S::max(sum, best);
            }
            S::store(tops.as_mut_ptr().add(row * PAD), best);
        }
    }
}

/// `features = 2^(y + reference - shift)`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn queries<S: Simd>(y: &[S::T], extent: Extent, reference: &[S::T], shift: &[S::T], features: &mut [S::T]) {
    extent.check(&[y.len(), features.len()]);
    assert!(shift.len() >= extent.rows && reference.len() >= extent.width());
    for (row, &shift) in shift.iter().enumerate().take(extent.rows) {
        // SAFETY: the checks above: rows * PANEL elements lie in `y` and `features`, `width` in `reference`.
        unsafe {
            let down = S::splat(shift);
            for col in (0..extent.width()).step_by(S::LANES) {
                let x = S::load(y.as_ptr().add(row * PANEL + col));
                let whole = S::round(x);
                let power = S::sub(S::add(whole, S::load(reference.as_ptr().add(col))), down);
                let value = S::scale2(exp2_fraction::<S>(S::sub(x, whole)), power);
                S::store(features.as_mut_ptr().add(row * PANEL + col), value);
            }
        }
    }
    clear_tail(features, extent);
}

/// e^min(x, 0).
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn exp_negative<S: Simd>(x: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let (whole, f) = in_bits_negative::<S>(x);
        S::scale2(exp2_fraction::<S>(f), whole)
    }
}

/// e^min(x, 0) - 1, with all its digits where x is small.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn expm1_negative<S: Simd>(x: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let (whole, f) = in_bits_negative::<S>(x);
        let power = S::scale2(S::splat(S::T::ONE), whole);
        S::fma(power, exp2m1_fraction::<S>(f), S::sub(power, S::splat(S::T::ONE)))
    }
}

/// min(x, 0) log2 e as an integer and a fraction of at most 1/2.
#[inline(always)]
unsafe fn in_bits_negative<S: Simd>(x: S::Register) -> (S::Register, S::Register) {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        // At twice the exponent range the result is 0 already; further down the reduction would overflow.
        let x = S::max(S::min(x, S::splat(S::T::ZERO)), S::splat(-S::T::TOP - S::T::TOP));
        let whole = S::round(S::mul(x, S::splat(S::T::from_f64(std::f64::consts::LOG2_E))));
        // ln 2 in two parts, so that the fraction keeps its last bits.
        let part = S::fma(whole, S::splat(-S::T::LN2_HIGH), x);
        let part = S::fma(whole, S::splat(-S::T::LN2_LOW), part);
        (whole, S::mul(part, S::splat(S::T::from_f64(std::f64::consts::LOG2_E))))
    }
}
