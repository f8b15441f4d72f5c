//! AVX-512 BF16: numbers rounded into the words of tiles, 32 per instruction, and products of tiles.

use super::Simd;
use super::avx512::F32;
use super::tile::{COLS, DEPTH, Rounding, Tile};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Rows whose sums are in registers at a time: with two registers of columns each, half of the 32 registers.
const ROWS: usize = 8;

/// Whether this processor has the instructions of this file.
pub fn is_available() -> bool {
    is_x86_feature_detected!("avx512bf16") && crate::dispatch::Isa::Avx512.is_available()
}

/// Whether `vdpbf16ps` multiplies faster than f32 does: twice as fast on AMD's processors (Zen 4), half as fast on Intel's.
pub fn is_fast() -> bool {
    let vendor = __cpuid(0);
    is_available() && [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// 16 rows of `left right`, where the tiles of each operand follow one another along the depth; N tiles of columns.
///
/// # Safety
/// [`is_available`] must hold.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma")]
pub unsafe fn product<const N: usize>(left: &[Tile], right: [&[Tile]; N], to: &mut [[[f32; COLS]; N]; COLS]) {
    for first in (0..COLS).step_by(ROWS) {
        let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
        for (k, left) in left.iter().enumerate() {
            for pair in 0..COLS {
                // SAFETY: a row of a tile is one register.
                let right = right.map(|tiles| unsafe { _mm512_loadu_si512(tiles[k].0[pair].as_ptr().cast()) });
                for (row, sums) in sums.iter_mut().enumerate() {
                    let left = _mm512_set1_epi32(left.0[first + row][pair] as i32);
                    for (sum, right) in sums.iter_mut().zip(right) {
                        // SAFETY: 16 words are 32 bf16.
                        let [left, right] = unsafe { transmute::<[__m512i; 2], [__m512bh; 2]>([left, right]) };
                        *sum = _mm512_dpbf16_ps(*sum, left, right);
                    }
                }
            }
        }
        for (sums, to) in sums.iter().zip(&mut to[first..]) {
            for (&sum, to) in sums.iter().zip(to) {
                // SAFETY: a row of sums is one register.
                unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sum) };
            }
        }
    }
}

/// Rounding by `vcvtne2ps2bf16`, with the bits of [`super::plain_tiles::Plain`].
pub struct Rounded;

// SAFETY: every method is a few intrinsics, and accesses memory only through the references it is given.
unsafe impl Rounding for Rounded {
    #[inline(always)]
    unsafe fn along(row: &[f32; DEPTH]) -> [u32; COLS] {
        // SAFETY: the caller guarantees the instruction set; the row has two registers; 64 bytes are 16 words.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row.as_ptr().add(COLS)));
            transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    #[inline(always)]
    unsafe fn across(first: &[f32; COLS], second: &[f32; COLS]) -> [u32; COLS] {
        // SAFETY: the caller guarantees the instruction set; each row is one register; 64 bytes are 16 words.
        unsafe {
            let widened = |row: &[f32; COLS]| {
                let rounded: __m256i = transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(row.as_ptr())));
                _mm512_cvtepu16_epi32(rounded)
            };
            transmute(_mm512_or_si512(widened(first), _mm512_slli_epi32::<16>(widened(second))))
        }
    }

    #[inline(always)]
    unsafe fn transpose(from: &Tile, to: &mut Tile) {
        // SAFETY: the caller guarantees the instruction set; each row is one register.
        unsafe {
            let mut words = [F32::splat(0.0); COLS];
            for (words, from) in words.iter_mut().zip(&from.0) {
                *words = F32::load(from.as_ptr().cast());
            }
            // A perfect shuffle of all registers, four times, is a transposition; no bit of a word is looked at.
            for _ in 0..COLS.ilog2() {
                let mut next = words;
                for i in 0..COLS / 2 {
                    (next[2 * i], next[2 * i + 1]) = F32::zip(words[i], words[i + COLS / 2]);
                }
                words = next;
            }
            for (words, to) in words.iter().zip(&mut to.0) {
                F32::store(to.as_mut_ptr().cast(), *words);
            }
        }
    }
}
