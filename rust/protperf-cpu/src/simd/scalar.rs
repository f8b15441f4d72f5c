//! Plain arrays for processors without a tier of their own; the compiler vectorises them as it can.
//!
//! On aarch64 every processor has NEON with a fused multiply-add, so there this is the `neon` tier.

use super::{Real, Simd};

/// f32 lanes.
#[derive(Clone, Copy)]
pub struct F32;
/// f64 lanes.
#[derive(Clone, Copy)]
pub struct F64;

macro_rules! scalar {
    ($name:ty, $t:ty, $lanes:expr) => {
        // SAFETY: no method needs more than the baseline; pointers are the caller's promise.
        unsafe impl Simd for $name {
            type E = $t;
            type V = [$t; $lanes];
            const LANES: usize = $lanes;
            const TILE: (usize, usize) = (4, 2);
            #[inline(always)]
            unsafe fn splat(x: $t) -> Self::V {
                [x; $lanes]
            }
            #[inline(always)]
            unsafe fn load(p: *const $t) -> Self::V {
                // SAFETY: the caller guarantees LANES elements; the read is unaligned.
                unsafe { p.cast::<Self::V>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(p: *mut $t, v: Self::V) {
                // SAFETY: the caller guarantees LANES elements; the write is unaligned.
                unsafe { p.cast::<Self::V>().write_unaligned(v) }
            }
            #[inline(always)]
            unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] + b[i])
            }
            #[inline(always)]
            unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] - b[i])
            }
            #[inline(always)]
            unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| a[i] * b[i])
            }
            #[inline(always)]
            unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
            }
            #[inline(always)]
            unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                #[cfg(target_arch = "aarch64")]
                return std::array::from_fn(|i| a[i].mul_add(b[i], c[i]));
                #[cfg(not(target_arch = "aarch64"))]
                std::array::from_fn(|i| a[i] * b[i] + c[i])
            }
            #[inline(always)]
            unsafe fn round(a: Self::V) -> Self::V {
                std::array::from_fn(|i| {
                    // Adding 1.5 * 2^mantissa leaves the nearest integer; larger values are integers already.
                    let magic: $t = 1.5 / <$t>::EPSILON;
                    if a[i].abs() < 0.25 / <$t>::EPSILON { (a[i] + magic) - magic } else { a[i] }
                })
            }
            #[inline(always)]
            unsafe fn scale2(p: Self::V, k: Self::V) -> Self::V {
                std::array::from_fn(|i| p[i] * <$t as Real>::exp2_int(k[i]))
            }
            #[inline(always)]
            unsafe fn select_positive(x: Self::V, a: Self::V, b: Self::V) -> Self::V {
                std::array::from_fn(|i| if x[i] > 0.0 { a[i] } else { b[i] })
            }
            #[inline(always)]
            unsafe fn zip(a: Self::V, b: Self::V) -> (Self::V, Self::V) {
                let at = |j: usize| if j.is_multiple_of(2) { a[j / 2] } else { b[j / 2] };
                (std::array::from_fn(at), std::array::from_fn(|j| at(j + $lanes)))
            }
        }
    };
}

scalar!(F32, f32, 8);
scalar!(F64, f64, 4);
