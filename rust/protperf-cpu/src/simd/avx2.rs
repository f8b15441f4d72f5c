//! AVX2 with FMA: 8 floats or 4 doubles a register, tiles of 6 rows by 2 registers (12 of 16 accumulate).

use super::{Real, Simd};
use std::arch::x86_64::*;

/// f32 lanes.
#[derive(Clone, Copy)]
pub struct F32;
/// f64 lanes.
#[derive(Clone, Copy)]
pub struct F64;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// 2^k of integers k in [FLUSH, TOP], built in the exponent field.
#[inline(always)]
unsafe fn power_f32(k: __m256) -> __m256 {
    // SAFETY: the caller guarantees AVX2.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

#[inline(always)]
unsafe fn power_f64(k: __m256d) -> __m256d {
    // SAFETY: the caller guarantees AVX2.
    unsafe {
        let biased = _mm_add_epi32(_mm256_cvtpd_epi32(k), _mm_set1_epi32(1023));
        _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_cvtepi32_epi64(biased)))
    }
}

macro_rules! avx2 {
    ($name:ty, $t:ty, $v:ty, $lanes:expr, $power:ident, $set1:ident, $load:ident, $store:ident, $add:ident, $sub:ident,
     $mul:ident, $max:ident, $min:ident, $fma:ident, $round:ident, $and:ident, $cmp:ident, $blend:ident,
     $low:ident, $high:ident, $halves:ident) => {
        // SAFETY: each method is a few intrinsics; the caller of a trait method guarantees the ISA and the pointers.
        unsafe impl Simd for $name {
            type E = $t;
            type V = $v;
            const LANES: usize = $lanes;
            const TILE: (usize, usize) = (6, 2);
            #[inline(always)]
            unsafe fn splat(x: $t) -> $v {
                unsafe { $set1(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const $t) -> $v {
                unsafe { $load(p) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut $t, v: $v) {
                unsafe { $store(p, v) }
            }
            #[inline(always)]
            unsafe fn add(a: $v, b: $v) -> $v {
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn sub(a: $v, b: $v) -> $v {
                unsafe { $sub(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: $v, b: $v) -> $v {
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            unsafe fn max(a: $v, b: $v) -> $v {
                unsafe { $max(a, b) }
            }
            #[inline(always)]
            unsafe fn min(a: $v, b: $v) -> $v {
                unsafe { $min(a, b) }
            }
            #[inline(always)]
            unsafe fn fma(a: $v, b: $v, c: $v) -> $v {
                unsafe { $fma(a, b, c) }
            }
            #[inline(always)]
            unsafe fn round(a: $v) -> $v {
                unsafe { $round::<NEAREST>(a) }
            }
            #[inline(always)]
            unsafe fn scale2(p: $v, k: $v) -> $v {
                unsafe {
                    let flush = $set1(<$t as Real>::FLUSH);
                    let live = $cmp::<_CMP_GE_OQ>(k, flush);
                    let inside = $min($max(k, flush), $set1(<$t as Real>::TOP));
                    $and(live, $mul(p, $power(inside)))
                }
            }
            #[inline(always)]
            unsafe fn select_positive(x: $v, a: $v, b: $v) -> $v {
                unsafe { $blend(b, a, $cmp::<_CMP_GT_OQ>(x, $set1(0.0))) }
            }
            #[inline(always)]
            unsafe fn zip(a: $v, b: $v) -> ($v, $v) {
                unsafe {
                    let (low, high) = ($low(a, b), $high(a, b));
                    ($halves::<0x20>(low, high), $halves::<0x31>(low, high))
                }
            }
        }
    };
}

avx2!(
    F32,
    f32,
    __m256,
    8,
    power_f32,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_fmadd_ps,
    _mm256_round_ps,
    _mm256_and_ps,
    _mm256_cmp_ps,
    _mm256_blendv_ps,
    _mm256_unpacklo_ps,
    _mm256_unpackhi_ps,
    _mm256_permute2f128_ps
);
avx2!(
    F64,
    f64,
    __m256d,
    4,
    power_f64,
    _mm256_set1_pd,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_add_pd,
    _mm256_sub_pd,
    _mm256_mul_pd,
    _mm256_max_pd,
    _mm256_min_pd,
    _mm256_fmadd_pd,
    _mm256_round_pd,
    _mm256_and_pd,
    _mm256_cmp_pd,
    _mm256_blendv_pd,
    _mm256_unpacklo_pd,
    _mm256_unpackhi_pd,
    _mm256_permute2f128_pd
);
