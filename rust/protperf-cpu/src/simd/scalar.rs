//! Plain arrays for processors without a tier of their own; the compiler vectorises them as it can.
//!
//! On aarch64 every processor has NEON with a fused multiply-add, so there this is the `neon` tier.

use super::Simd;
use protperf_core::Element;

/// f32 lanes.
#[derive(Clone, Copy)]
pub struct F32;
/// f64 lanes.
#[derive(Clone, Copy)]
pub struct F64;

macro_rules! scalar {
    ($name:ty, $t:ty, $lanes:expr) => {
        // SAFETY: no method needs more than the baseline, and each accesses memory only through the pointer it is given.
        unsafe impl Simd for $name {
            type T = $t;
            type Register = [$t; $lanes];
            const LANES: usize = $lanes;
            const TILE_ROWS: usize = 4;
            const TILE_REGISTERS: usize = 2;
            #[inline(always)]
            unsafe fn splat(x: $t) -> Self::Register {
                [x; $lanes]
            }
            #[inline(always)]
            unsafe fn load(p: *const $t) -> Self::Register {
                // SAFETY: the caller guarantees that LANES elements can be read; the read may be unaligned.
                unsafe { p.cast::<Self::Register>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(p: *mut $t, v: Self::Register) {
                // SAFETY: the caller guarantees that LANES elements can be written; the write may be unaligned.
                unsafe { p.cast::<Self::Register>().write_unaligned(v) }
            }
            #[inline(always)]
            unsafe fn add(a: Self::Register, b: Self::Register) -> Self::Register {
                std::array::from_fn(|i| a[i] + b[i])
            }
            #[inline(always)]
            unsafe fn sub(a: Self::Register, b: Self::Register) -> Self::Register {
                std::array::from_fn(|i| a[i] - b[i])
            }
            #[inline(always)]
            unsafe fn mul(a: Self::Register, b: Self::Register) -> Self::Register {
                std::array::from_fn(|i| a[i] * b[i])
            }
            #[inline(always)]
            unsafe fn div(a: Self::Register, b: Self::Register) -> Self::Register {
                std::array::from_fn(|i| a[i] / b[i])
            }
            #[inline(always)]
            unsafe fn max(a: Self::Register, b: Self::Register) -> Self::Register {
                std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            unsafe fn min(a: Self::Register, b: Self::Register) -> Self::Register {
                std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            unsafe fn fma(a: Self::Register, b: Self::Register, c: Self::Register) -> Self::Register {
                #[cfg(target_arch = "aarch64")]
                return std::array::from_fn(|i| a[i].mul_add(b[i], c[i]));
                #[cfg(not(target_arch = "aarch64"))]
                std::array::from_fn(|i| a[i] * b[i] + c[i])
            }
            #[inline(always)]
            unsafe fn round(a: Self::Register) -> Self::Register {
                std::array::from_fn(|i| {
                    // Adding 1.5 * 2^mantissa leaves the nearest integer; larger values are integers already.
                    let magic: $t = 1.5 / <$t>::EPSILON;
                    if a[i].abs() < 0.25 / <$t>::EPSILON { (a[i] + magic) - magic } else { a[i] }
                })
            }
            #[inline(always)]
            unsafe fn scale2(p: Self::Register, k: Self::Register) -> Self::Register {
                std::array::from_fn(|i| p[i] * <$t as Element>::exp2_int(k[i]))
            }
            #[inline(always)]
            unsafe fn select_positive(x: Self::Register, a: Self::Register, b: Self::Register) -> Self::Register {
                std::array::from_fn(|i| if x[i] > 0.0 { a[i] } else { b[i] })
            }
            #[inline(always)]
            unsafe fn zip(a: Self::Register, b: Self::Register) -> (Self::Register, Self::Register) {
                let at = |j: usize| if j.is_multiple_of(2) { a[j / 2] } else { b[j / 2] };
                (std::array::from_fn(at), std::array::from_fn(|j| at(j + $lanes)))
            }
        }
    };
}

scalar!(F32, f32, 8);
scalar!(F64, f64, 4);
