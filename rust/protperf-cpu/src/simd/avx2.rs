//! AVX2 with FMA: 8 floats or 4 doubles per register, tiles of 6 rows by 2 registers (12 of 16 accumulate).

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
    // SAFETY: the caller guarantees AVX2; the intrinsics touch no memory.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

#[inline(always)]
unsafe fn power_f64(k: __m256d) -> __m256d {
    // SAFETY: the caller guarantees AVX2; the intrinsics touch no memory.
    unsafe {
        let biased = _mm_add_epi32(_mm256_cvtpd_epi32(k), _mm_set1_epi32(1023));
        _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_cvtepi32_epi64(biased)))
    }
}

macro_rules! avx2 {
    ($name:ty, $t:ty, $v:ty, $lanes:expr, $power:ident, $set1:ident, $load:ident, $store:ident, $add:ident, $sub:ident,
     $mul:ident, $div:ident, $max:ident, $min:ident, $fma:ident, $round:ident, $and:ident, $cmp:ident, $blend:ident,
     $low:ident, $high:ident, $halves:ident) => {
        // SAFETY: every method is a few intrinsics of AVX2 and FMA, and accesses memory only through the pointer it is given.
        unsafe impl Simd for $name {
            type T = $t;
            type Register = $v;
            const LANES: usize = $lanes;
            const TILE_ROWS: usize = 6;
            const TILE_REGISTERS: usize = 2;
            intrinsics! {
                splat(x: $t) -> $v = $set1;
                load(p: *const $t) -> $v = $load;
                store(p: *mut $t, v: $v) = $store;
                add(a: $v, b: $v) -> $v = $add;
                sub(a: $v, b: $v) -> $v = $sub;
                mul(a: $v, b: $v) -> $v = $mul;
                div(a: $v, b: $v) -> $v = $div;
                max(a: $v, b: $v) -> $v = $max;
                min(a: $v, b: $v) -> $v = $min;
                fma(a: $v, b: $v, c: $v) -> $v = $fma;
                round(a: $v) -> $v = $round::<NEAREST>;
            }
            #[inline(always)]
            unsafe fn scale2(p: $v, k: $v) -> $v {
                // SAFETY: as in `intrinsics!`: these need the instruction set alone, which the caller guarantees.
                unsafe {
                    let flush = $set1(<$t as Real>::FLUSH);
                    let kept = $cmp::<_CMP_GE_OQ>(k, flush);
                    let inside = $min($max(k, flush), $set1(<$t as Real>::TOP));
                    $and(kept, $mul(p, $power(inside)))
                }
            }
            #[inline(always)]
            unsafe fn select_positive(x: $v, a: $v, b: $v) -> $v {
                // SAFETY: as in `intrinsics!`: these need the instruction set alone, which the caller guarantees.
                unsafe { $blend(b, a, $cmp::<_CMP_GT_OQ>(x, $set1(0.0))) }
            }
            #[inline(always)]
            unsafe fn zip(a: $v, b: $v) -> ($v, $v) {
                // SAFETY: as in `intrinsics!`: these need the instruction set alone, which the caller guarantees.
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
    _mm256_div_ps,
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
    _mm256_div_pd,
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
