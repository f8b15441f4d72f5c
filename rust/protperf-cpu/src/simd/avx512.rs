//! AVX-512: 16 floats or 8 doubles per register, tiles of 6 rows by 4 registers (24 of 32 accumulate).

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
    ($name:ty, $t:ty, $v:ty, $lanes:expr, $mask:ty, $low:expr, $high:expr,
     $set1:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident, $max:ident, $min:ident,
     $fma:ident, $round:ident, $scalef:ident, $cmp:ident, $blend:ident, $permute:ident, $loadi:ident) => {
        // SAFETY: every method is a few intrinsics of AVX-512, and accesses memory only through the pointer it is given.
        unsafe impl Simd for $name {
            type T = $t;
            type Register = $v;
            const LANES: usize = $lanes;
            const TILE_ROWS: usize = 6;
            const TILE_REGISTERS: usize = 4;
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
                    let kept: $mask = $cmp::<_CMP_GE_OQ>(k, $set1(<$t as super::Real>::FLUSH));
                    $scalef(kept, p, $min(k, $set1(<$t as super::Real>::TOP)))
                }
            }
            #[inline(always)]
            unsafe fn select_positive(x: $v, a: $v, b: $v) -> $v {
                // SAFETY: as in `intrinsics!`: these need the instruction set alone, which the caller guarantees.
                unsafe { $blend($cmp::<_CMP_GT_OQ>(x, $set1(0.0)), b, a) }
            }
            #[inline(always)]
            unsafe fn zip(a: $v, b: $v) -> ($v, $v) {
                // SAFETY: as in `intrinsics!`: the caller guarantees the instruction set, and the index tables fill a register.
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
    LOW_16,
    HIGH_16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_div_ps,
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
    LOW_8,
    HIGH_8,
    _mm512_set1_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_add_pd,
    _mm512_sub_pd,
    _mm512_mul_pd,
    _mm512_div_pd,
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
