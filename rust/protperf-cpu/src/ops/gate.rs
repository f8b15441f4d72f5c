//! The gated feed-forward layer, one row: `silu(gate) * up`, and its gradient.
//!
//! Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU).

use super::exponential::exp_negative;
use crate::layout::PAD;
use crate::simd::{Real, Simd};

/// The logistic function of PAD numbers.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
unsafe fn logistic<S: Simd>(x: &[S::T]) -> [S::T; PAD] {
    let mut sigma = [S::T::ZERO; PAD];
    assert!(x.len() == PAD);
    // e^-|x| cannot overflow. SAFETY: the caller guarantees the instruction set; LANES divides PAD.
    unsafe {
        for at in (0..PAD).step_by(S::LANES) {
            let x = S::load(x.as_ptr().add(at));
            let minus = S::sub(S::splat(S::T::ZERO), x);
            S::store(sigma.as_mut_ptr().add(at), exp_negative::<S>(S::min(x, minus)));
        }
    }
    for (sigma, &x) in sigma.iter_mut().zip(x) {
        let e = *sigma;
        *sigma = if x > S::T::ZERO { S::T::ONE } else { e } / (S::T::ONE + e);
    }
    sigma
}

/// `to = gate * logistic(gate) * up`; lengths are equal multiples of [`PAD`].
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn gate<S: Simd>(gate: &[S::T], up: &[S::T], to: &mut [S::T]) {
    assert!(gate.len().is_multiple_of(PAD) && up.len() == gate.len() && to.len() == gate.len());
    for ((gate, up), to) in gate.chunks_exact(PAD).zip(up.chunks_exact(PAD)).zip(to.chunks_exact_mut(PAD)) {
        // SAFETY: the caller guarantees the instruction set.
        let sigma = unsafe { logistic::<S>(gate) };
        for i in 0..PAD {
            to[i] = gate[i] * sigma[i] * up[i];
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
    for at in (0..width).step_by(PAD) {
        // SAFETY: the caller guarantees the instruction set.
        let sigma = unsafe { logistic::<S>(&gate[at..at + PAD]) };
        for (i, sigma) in (at..at + PAD).zip(sigma) {
            let silu = gate[i] * sigma;
            value[i] = silu * up[i];
            dup[i] = grad[i] * silu;
            dgate[i] = grad[i] * up[i] * (sigma + silu * (S::T::ONE - sigma));
        }
    }
}
