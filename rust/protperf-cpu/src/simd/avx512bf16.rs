//! AVX-512 BF16: numbers rounded into the words of tiles, 32 per instruction, and products of tiles.
//! `docs/algorithm.md`, section 10.

use super::Simd;
use super::avx512::F32;
use super::tile::{COLS, Rounding, Tile};
use std::arch::asm;
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

/// Adds 16 rows of `left right` to sums, where the tiles of each operand follow one another along the depth; N tiles of columns.
///
/// # Safety
/// [`is_available`] must hold.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma")]
pub unsafe fn product<const N: usize>(left: &[Tile], right: [&[Tile]; N], to: &mut [[[f32; COLS]; N]; COLS]) {
    for first in (0..COLS).step_by(ROWS) {
        // SAFETY: a row of sums is one register.
        let mut sums: [_; ROWS] =
            std::array::from_fn(|row| to[first + row].each_ref().map(|sums| unsafe { _mm512_loadu_ps(sums.as_ptr()) }));
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

/// Places of the halves of a register of 32 words, one of each by turns.
const BY_TURNS: [u16; 2 * COLS] = {
    let mut places = [0; 2 * COLS];
    let mut at = 0;
    while at < 2 * COLS {
        places[at] = (at / 2 + at % 2 * COLS) as u16;
        at += 1;
    }
    places
};

/// 16 rows of 32 numbers as words.
///
/// # Safety
/// [`is_available`] must hold, and the rows must be readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma")]
#[inline(never)]
unsafe fn along_rows(mut from: *const f32, step: usize, to: &mut Tile) {
    for words in &mut to.0 {
        // SAFETY: the caller guarantees the rows; 16 words are one register.
        unsafe {
            let rounded = rounded(_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(COLS)));
            _mm512_storeu_si512(words.as_mut_ptr().cast(), rounded);
            from = from.wrapping_add(step);
        }
    }
}

/// 32 rows of 16 numbers as words.
///
/// # Safety
/// As [`along_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma")]
#[inline(never)]
unsafe fn across_rows(mut from: *const f32, step: usize, to: &mut Tile) {
    // SAFETY: as many places as a register has halves of words.
    let by_turns = unsafe { _mm512_loadu_si512(BY_TURNS.as_ptr().cast()) };
    for words in &mut to.0 {
        // SAFETY: the caller guarantees the rows; 16 words are one register.
        unsafe {
            // All of the first row, then all of the second; then one of each by turns.
            let rounded = rounded(_mm512_loadu_ps(from), _mm512_loadu_ps(from.wrapping_add(step)));
            _mm512_storeu_si512(words.as_mut_ptr().cast(), _mm512_permutexvar_epi16(by_turns, rounded));
            from = from.wrapping_add(2 * step);
        }
    }
}

/// 32 numbers in one register. Not by an intrinsic: where a shuffle follows, the compiler makes two conversions of it, each as slow
/// as this one.
///
/// # Safety
/// [`is_available`] must hold.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma")]
#[inline]
unsafe fn rounded(first: __m512, second: __m512) -> __m512i {
    let both: __m512i;
    // SAFETY: the caller guarantees the instruction.
    unsafe {
        asm!("vcvtne2ps2bf16 {}, {}, {}", lateout(zmm_reg) both, in(zmm_reg) second, in(zmm_reg) first,
            options(pure, nomem, nostack, preserves_flags));
    }
    both
}

/// Rounding by `vcvtne2ps2bf16`, with the bits of [`super::plain_tiles::Plain`].
pub struct Rounded;

// SAFETY: every method accesses memory only through the references and the rows it is given.
unsafe impl Rounding for Rounded {
    #[inline(always)]
    unsafe fn along_rows(from: *const f32, step: usize, to: &mut Tile) {
        // SAFETY: passed on from the caller.
        unsafe { along_rows(from, step, to) };
    }

    #[inline(always)]
    unsafe fn across_rows(from: *const f32, step: usize, to: &mut Tile) {
        // SAFETY: passed on from the caller.
        unsafe { across_rows(from, step, to) };
    }

    #[inline(always)]
    unsafe fn transpose(tile: &mut Tile) {
        // SAFETY: the caller guarantees the instruction set; each row is one register.
        unsafe {
            let mut words = [F32::splat(0.0); COLS];
            for (words, from) in words.iter_mut().zip(&tile.0) {
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
            for (words, to) in words.iter().zip(&mut tile.0) {
                F32::store(to.as_mut_ptr().cast(), *words);
            }
        }
    }
}
