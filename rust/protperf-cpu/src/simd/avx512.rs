//! AVX-512: 16 floats or 8 doubles a register, tiles of 6 rows by 4 registers (24 of 32 accumulate).

use super::Simd;
use std::arch::x86_64::*;

/// f32 lanes.
#[derive(Clone, Copy)]
pub struct F32;
/// f64 lanes.
#[derive(Clone, Copy)]
pub struct F64;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

macro_rules! avx512 {
    ($name:ty, $t:ty, $v:ty, $lanes:expr, $mask:ty, $bits:ident, $low:expr, $high:expr,
     $set1:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $max:ident, $min:ident, $fma:ident,
     $round:ident, $scalef:ident, $cmp:ident, $blend:ident, $permute:ident, $loadi:ident) => {
        // SAFETY: each method is one intrinsic; the caller of a trait method guarantees the ISA and the pointers.
        unsafe impl Simd for $name {
            type E = $t;
            type V = $v;
            const LANES: usize = $lanes;
            const TILE: (usize, usize) = (6, 4);
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
                    let live: $mask = $cmp::<_CMP_GE_OQ>(k, $set1(<$t as super::Real>::FLUSH));
                    $scalef(live, p, $min(k, $set1(<$t as super::Real>::TOP)))
                }
            }
            #[inline(always)]
            unsafe fn select_positive(x: $v, a: $v, b: $v) -> $v {
                unsafe { $blend($cmp::<_CMP_GT_OQ>(x, $set1(0.0)), b, a) }
            }
            #[inline(always)]
            unsafe fn zip(a: $v, b: $v) -> ($v, $v) {
                unsafe {
                    let (low, high) = ($loadi($low.as_ptr().cast()), $loadi($high.as_ptr().cast()));
                    ($permute(a, low, b), $permute(a, high, b))
                }
            }
        }
    };
}

const LOW_16: [u32; 16] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
const HIGH_16: [u32; 16] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];
const LOW_8: [u64; 8] = [0, 8, 1, 9, 2, 10, 3, 11];
const HIGH_8: [u64; 8] = [4, 12, 5, 13, 6, 14, 7, 15];

avx512!(
    F32,
    f32,
    __m512,
    16,
    __mmask16,
    u32,
    LOW_16,
    HIGH_16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    _mm512_fmadd_ps,
    _mm512_roundscale_ps,
    _mm512_maskz_scalef_ps,
    _mm512_cmp_ps_mask,
    _mm512_mask_blend_ps,
    _mm512_permutex2var_ps,
    _mm512_loadu_si512
);
avx512!(
    F64,
    f64,
    __m512d,
    8,
    __mmask8,
    u64,
    LOW_8,
    HIGH_8,
    _mm512_set1_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_add_pd,
    _mm512_sub_pd,
    _mm512_mul_pd,
    _mm512_max_pd,
    _mm512_min_pd,
    _mm512_fmadd_pd,
    _mm512_roundscale_pd,
    _mm512_maskz_scalef_pd,
    _mm512_cmp_pd_mask,
    _mm512_mask_blend_pd,
    _mm512_permutex2var_pd,
    _mm512_loadu_si512
);
