//! The gated feed-forward layer, one row: `silu(gate) * up`, and its gradient.
//!
//! Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU).

use super::exponential::exp_negative;
use crate::layout::PAD;
use crate::simd::{Real, Simd};

/// The logistic function.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
unsafe fn logistic<S: Simd>(x: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let one = S::splat(S::T::ONE);
        // e^-|x| cannot overflow.
        let e = exp_negative::<S>(S::min(x, S::sub(S::splat(S::T::ZERO), x)));
        S::div(S::select_positive(x, one, e), S::add(one, e))
    }
}

/// `to = gate * logistic(gate) * up`; lengths are equal multiples of [`PAD`].
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn gate<S: Simd>(gate: &[S::T], up: &[S::T], to: &mut [S::T]) {
    let width = gate.len();
    assert!(width.is_multiple_of(PAD) && up.len() == width && to.len() == width);
    for at in (0..width).step_by(S::LANES) {
        // SAFETY: LANES divides PAD, so a register that starts below the width ends inside all three rows.
        unsafe {
            let x = S::load(gate.as_ptr().add(at));
            let silu = S::mul(x, logistic::<S>(x));
            S::store(to.as_mut_ptr().add(at), S::mul(silu, S::load(up.as_ptr().add(at))));
        }
    }
}

/// The gradient of [`gate`] where `grad` arrived at its result, which is computed again into `value`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn gate_gradient<S: Simd>(
    gate: &[S::T],
    up: &[S::T],
    grad: &[S::T],
    dgate: &mut [S::T],
    dup: &mut [S::T],
    value: &mut [S::T],
) {
    let width = gate.len();
    assert!(width.is_multiple_of(PAD) && [up.len(), grad.len(), dgate.len(), dup.len(), value.len()] == [width; 5]);
    for at in (0..width).step_by(S::LANES) {
        // SAFETY: LANES divides PAD, so a register that starts below the width ends inside all six rows.
        unsafe {
            let x = S::load(gate.as_ptr().add(at));
            let (up, grad) = (S::load(up.as_ptr().add(at)), S::load(grad.as_ptr().add(at)));
            let sigma = logistic::<S>(x);
            let silu = S::mul(x, sigma);
            let slope = S::add(sigma, S::mul(silu, S::sub(S::splat(S::T::ONE), sigma)));
            S::store(value.as_mut_ptr().add(at), S::mul(silu, up));
            S::store(dup.as_mut_ptr().add(at), S::mul(grad, silu));
            S::store(dgate.as_mut_ptr().add(at), S::mul(S::mul(grad, up), slope));
        }
    }
}
