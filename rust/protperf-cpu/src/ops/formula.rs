//! The functions of activation maps over registers, and their slopes: `docs/algorithm.md`, section 3.
//!
//! A map is a pair of formulas, a [`Formula`], and an arm in [`with_formula`], which matches on every function there is: a
//! new one does not compile until it is known here.
//!
//! Errors in f32, as the tests below hold them: sigmoid and tanh 5e-7 relative on [-20, 20], gelu 1e-6 on [-6, 6], cosine
//! 1.5e-6 on [-20, 20], where the rounding of the angle itself is as large.

use super::exponential::{exp_negative, expm1_negative};
use crate::simd::{Real, Simd};
use protperf_core::{Element, GELU};

/// The formulas of one map.
pub trait Formula {
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

/// Calls a function over lanes, generic in its formulas, with those of an [`Activation`](protperf_core::Activation).
macro_rules! with_formula {
    ($activation:expr, $call:ident::<$simd:ident>($($argument:expr),*)) => {
        match $activation {
            ::protperf_core::Activation::Relu => $call::<$simd, $crate::ops::formula::Relu>($($argument),*),
            ::protperf_core::Activation::Elu1 => $call::<$simd, $crate::ops::formula::Elu1>($($argument),*),
            ::protperf_core::Activation::Identity => $call::<$simd, $crate::ops::formula::Identity>($($argument),*),
            ::protperf_core::Activation::Abs => $call::<$simd, $crate::ops::formula::Abs>($($argument),*),
            ::protperf_core::Activation::Relu2 => $call::<$simd, $crate::ops::formula::Relu2>($($argument),*),
            ::protperf_core::Activation::Square => $call::<$simd, $crate::ops::formula::Square>($($argument),*),
            ::protperf_core::Activation::Sigmoid => $call::<$simd, $crate::ops::formula::Sigmoid>($($argument),*),
            ::protperf_core::Activation::Tanh => $call::<$simd, $crate::ops::formula::Tanh>($($argument),*),
            ::protperf_core::Activation::Gelu => $call::<$simd, $crate::ops::formula::Gelu>($($argument),*),
            ::protperf_core::Activation::Cos => $call::<$simd, $crate::ops::formula::Cos>($($argument),*),
        }
    };
}
pub(super) use with_formula;

/// max(0, x).
pub struct Relu;

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
pub struct Elu1;

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

/// x.
pub struct Identity;

impl Formula for Identity {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        x
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(_x: S::Register, g: S::Register) -> S::Register {
        g
    }
}

/// |x|.
pub struct Abs;

impl Formula for Abs {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { abs::<S>(x) }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { sign_of::<S>(x, g) }
    }
}

/// max(0, x)^2.
pub struct Relu2;

impl Formula for Relu2 {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            let x = S::max(x, S::splat(S::T::ZERO));
            S::mul(x, x)
        }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            let x = S::max(x, S::splat(S::T::ZERO));
            S::mul(g, S::add(x, x))
        }
    }
}

/// x^2.
pub struct Square;

impl Formula for Square {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { S::mul(x, x) }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { S::mul(g, S::add(x, x)) }
    }
}

/// 1 / (1 + e^-x).
pub struct Sigmoid;

impl Formula for Sigmoid {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { sigmoid::<S>(x) }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { S::mul(g, sigmoid_slope::<S>(x)) }
    }
}

/// tanh(x) = -(e^-2x - 1) / (e^-2x + 1), whose numerator keeps its digits where x is small.
pub struct Tanh;

impl Formula for Tanh {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            let less_one = expm1_negative::<S>(S::mul(abs::<S>(x), S::splat(-S::T::ONE - S::T::ONE)));
            let size = S::div(less_one, S::add(less_one, S::splat(S::T::ONE + S::T::ONE)));
            sign_of::<S>(S::sub(S::splat(S::T::ZERO), x), size)
        }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            // 1 - tanh^2 = 4 sigmoid'(2x).
            let twice = S::add(x, x);
            S::mul(S::mul(g, S::splat(S::T::from_f64(4.0))), sigmoid_slope::<S>(twice))
        }
    }
}

/// x sigmoid(s), s = sqrt(8/pi) (x + 0.044715 x^3).
pub struct Gelu;

impl Formula for Gelu {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { S::mul(x, sigmoid::<S>(gelu_argument::<S>(x).0)) }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            let (s, rate, near) = gelu_argument::<S>(x);
            S::mul(g, S::fma(S::mul(near, rate), sigmoid_slope::<S>(s), sigmoid::<S>(s)))
        }
    }
}

/// cos(x).
pub struct Cos;

impl Formula for Cos {
    #[inline(always)]
    unsafe fn value<S: Simd>(x: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe { cos::<S>(x) }
    }
    #[inline(always)]
    unsafe fn times_slope<S: Simd>(x: S::Register, g: S::Register) -> S::Register {
        // SAFETY: the caller guarantees the instruction set.
        unsafe {
            // -sin(x) = cos(x + pi/2).
            S::mul(g, cos::<S>(S::add(x, S::splat(S::T::from_f64(std::f64::consts::FRAC_PI_2)))))
        }
    }
}

/// |x|.
#[inline(always)]
unsafe fn abs<S: Simd>(x: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe { S::max(x, S::sub(S::splat(S::T::ZERO), x)) }
}

/// a with the sign of x: a, 0 or -a.
#[inline(always)]
unsafe fn sign_of<S: Simd>(x: S::Register, a: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let zero = S::splat(S::T::ZERO);
        S::select_positive(x, a, S::select_positive(S::sub(zero, x), S::sub(zero, a), zero))
    }
}

/// e^-|x|, which no x makes overflow.
#[inline(always)]
unsafe fn decay<S: Simd>(x: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe { exp_negative::<S>(S::sub(S::splat(S::T::ZERO), abs::<S>(x))) }
}

/// 1 / (1 + e^-x): with e = e^-|x|, 1 / (1 + e) above 0 and e / (1 + e) below.
#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let (one, e) = (S::splat(S::T::ONE), decay::<S>(x));
        S::div(S::select_positive(x, one, e), S::add(one, e))
    }
}

/// The slope of the sigmoid, e / (1 + e)^2.
#[inline(always)]
unsafe fn sigmoid_slope<S: Simd>(x: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let e = decay::<S>(x);
        let sum = S::add(S::splat(S::T::ONE), e);
        S::div(e, S::mul(sum, sum))
    }
}

/// s = sqrt(8/pi) (x + 0.044715 x^3), its slope, and the x that they are of: limited, for beyond it sigmoid(s) is 0 or 1
/// already and x^3 would overflow.
#[inline(always)]
unsafe fn gelu_argument<S: Simd>(x: S::Register) -> (S::Register, S::Register, S::Register) {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let limit = S::T::from_f64(32.0);
        let near = S::max(S::min(x, S::splat(limit)), S::splat(-limit));
        let cubic = S::mul(S::mul(near, near), S::splat(S::T::from_f64(GELU[0] * GELU[1])));
        let linear = S::splat(S::T::from_f64(GELU[0]));
        let s = S::mul(near, S::add(cubic, linear));
        (s, S::fma(cubic, S::splat(S::T::from_f64(3.0)), linear), near)
    }
}

/// cos(x) = (-1)^k cos(r), r = x - k pi in [-pi/2, pi/2], by its series.
///
/// Beyond 2^16 the digits of x itself no longer tell its place in a period; there the result is only in [-1, 1].
#[inline(always)]
unsafe fn cos<S: Simd>(x: S::Register) -> S::Register {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let (one, half_turn) = (S::splat(S::T::ONE), S::T::from_f64(std::f64::consts::FRAC_PI_2));
        let k = S::round(S::mul(x, S::splat(S::T::from_f64(std::f64::consts::FRAC_1_PI))));
        let mut r = x;
        for part in S::T::PI_PARTS {
            r = S::fma(k, S::splat(-part), r);
        }
        let r = S::max(S::min(r, S::splat(half_turn)), S::splat(-half_turn));
        let square = S::mul(r, r);
        // 1 - r^2/(1 2) (1 - r^2/(3 4) (1 - ...)).
        let mut sum = one;
        for n in (1..=S::T::COS_TERMS).rev() {
            let by = S::T::from_f64(-1.0 / f64::from((2 * n - 1) * (2 * n)));
            sum = S::fma(S::mul(square, S::splat(by)), sum, one);
        }
        let half = S::round(S::mul(k, S::splat(S::T::from_f64(0.5))));
        let odd = abs::<S>(S::fma(half, S::splat(S::T::from_f64(-2.0)), k));
        S::mul(sum, S::fma(odd, S::splat(S::T::from_f64(-2.0)), one))
    }
}

#[cfg(test)]
mod tests {
    use crate::Isa;
    use crate::layout::{Extent, PANEL};
    use crate::ops::{CpuElement, Ops};
    use protperf_core::Activation;

    /// Values and slopes of 64 numbers by the kernels, as f64.
    fn by_kernels<T: CpuElement>(isa: Isa, f: Activation, x: &[f64]) -> [Vec<f64>; 2] {
        let (ops, extent) = (Ops::<T>::of(isa), Extent { rows: 1, features: PANEL });
        let x: Vec<T> = x.iter().map(|&x| T::from_f64(x)).collect();
        let (mut value, mut slope) = (vec![T::ZERO; PANEL], vec![T::ONE; PANEL]);
        ops.activate(&x, extent, f, T::ZERO, &[T::ONE], &mut value);
        ops.activation_gradient(&x, extent, f, &[T::ONE], &mut slope);
        [value, slope].map(|x| x.into_iter().map(T::to_f64).collect())
    }

    /// The largest errors of values and slopes on a grid, relative to `size` of the truth.
    fn worst<T: CpuElement>(f: Activation, reach: f64, size: impl Fn(f64) -> f64) -> [f64; 2] {
        let mut worst = [0.0f64; 2];
        for isa in Isa::available() {
            for start in 0..64 {
                let at = |i: usize| (2.0 * (i * 64 + start) as f64 / (64.0 * PANEL as f64 - 1.0) - 1.0) * reach;
                let x: Vec<f64> = (0..PANEL).map(|i| T::from_f64(at(i)).to_f64()).collect();
                for (side, found) in by_kernels::<T>(isa, f, &x).into_iter().enumerate() {
                    for (found, &x) in found.iter().zip(&x) {
                        let truth = if side == 0 { f.value(x) } else { f.slope(x) };
                        worst[side] = worst[side].max((found - truth).abs() / size(truth));
                    }
                }
            }
        }
        worst
    }

    #[test]
    fn functions_have_the_accuracy_that_is_stated() {
        let relative = |truth: f64| truth.abs().max(1e-30);
        for (f, bounds) in
            [(Activation::Sigmoid, [5e-7, 5e-7]), (Activation::Tanh, [5e-7, 2e-6]), (Activation::Elu1, [5e-7, 5e-7])]
        {
            let found = worst::<f32>(f, 20.0, relative);
            assert!(found[0] <= bounds[0] && found[1] <= bounds[1], "{f:?} {found:?}");
            let found = worst::<f64>(f, 20.0, relative);
            assert!(found.iter().all(|&x| x < 4e-15), "{f:?} in f64 {found:?}");
        }
        // Slopes of gelu and values of the cosine pass through 0.
        for (f, reach, bound) in [(Activation::Gelu, 6.0, 1e-6), (Activation::Cos, 20.0, 1.5e-6)] {
            let found = worst::<f32>(f, reach, |truth| truth.abs().max(1.0));
            assert!(found.iter().all(|&x| x < bound), "{f:?} {found:?}");
            let found = worst::<f64>(f, reach, |truth| truth.abs().max(1.0));
            assert!(found.iter().all(|&x| x < 6e-15), "{f:?} in f64 {found:?}");
        }
    }

    #[test]
    fn the_cosine_is_bounded_and_tanh_keeps_the_digits_of_small_numbers() {
        let mut x = vec![0.0; PANEL];
        x[..6].copy_from_slice(&[1e6, -1e9, 1e15, -3e8, 65_537.0, 1e-20]);
        for isa in Isa::available() {
            let found = by_kernels::<f32>(isa, Activation::Cos, &x);
            assert!(found.iter().flatten().all(|x| x.abs() <= 1.000_001), "{isa:?} {found:?}");
            let small = by_kernels::<f32>(isa, Activation::Tanh, &x)[0][5];
            assert!((small / 1e-20 - 1.0).abs() < 1e-6, "{isa:?} {small:e}");
        }
    }
}
