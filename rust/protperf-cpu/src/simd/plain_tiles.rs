//! Tiles in plain Rust: the oracle of the instructions, and their place where a processor has none.
//! `docs/algorithm.md`, section 10.

use super::tile::{COLS, DEPTH, Rounding, Tile, Tiles};
use std::marker::PhantomData;

/// The bits of the bf16 that is nearest to `x`, ties to even; denormals become zero, and a NaN stays a NaN.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let finite = if magnitude < 0x0080_0000 { bits & 0x8000_0000 } else { rounded };
    ((if magnitude > 0x7f80_0000 { bits | 0x0040_0000 } else { finite }) >> 16) as u16
}

/// Replaces each number by its nearest bf16.
pub fn round_all(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = f32::from_bits(u32::from(round(*x)) << 16));
}

/// Two numbers as a word, the first in its low half.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    u32::from(round(first)) | u32::from(round(second)) << 16
}

/// Rounding for every processor.
pub struct Plain;

// SAFETY: no method needs more than the baseline.
unsafe impl Rounding for Plain {
    #[inline(always)]
    unsafe fn along_rows(from: *const f32, step: usize, to: &mut Tile) {
        for (at, words) in to.0.iter_mut().enumerate() {
            // SAFETY: the caller guarantees the rows.
            let row = unsafe { &*from.add(at * step).cast::<[f32; DEPTH]>() };
            *words = std::array::from_fn(|at| pair(row[2 * at], row[2 * at + 1]));
        }
    }

    #[inline(always)]
    unsafe fn across_rows(from: *const f32, step: usize, to: &mut Tile) {
        for (at, words) in to.0.iter_mut().enumerate() {
            // SAFETY: the caller guarantees the rows.
            let [first, second] = [0, 1].map(|row| unsafe { &*from.add((2 * at + row) * step).cast::<[f32; COLS]>() });
            *words = std::array::from_fn(|at| pair(first[at], second[at]));
        }
    }

    #[inline(always)]
    unsafe fn transpose(tile: &mut Tile) {
        *tile = Tile(std::array::from_fn(|row| std::array::from_fn(|col| tile.0[col][row])));
    }
}

/// Rounding of what [`Rounding`] by R leaves of each number.
pub struct Low<R>(PhantomData<R>);

/// What rounding to bf16 leaves of each number; 0 where that is not a number.
///
/// # Safety
/// The rows must be readable.
#[inline(always)]
unsafe fn low<const R: usize, const C: usize>(from: *const f32, step: usize) -> [[f32; C]; R] {
    std::array::from_fn(|row| {
        // SAFETY: passed on from the caller.
        let row = unsafe { &*from.add(row * step).cast::<[f32; C]>() };
        row.map(|x| {
            let left = x - f32::from_bits(u32::from(round(x)) << 16);
            if left.is_nan() { 0.0 } else { left }
        })
    })
}

// SAFETY: passed on to R.
unsafe impl<R: Rounding> Rounding for Low<R> {
    #[inline(always)]
    unsafe fn along_rows(from: *const f32, step: usize, to: &mut Tile) {
        // SAFETY: passed on from the caller.
        unsafe { R::along_rows(low::<COLS, DEPTH>(from, step).as_flattened().as_ptr(), DEPTH, to) };
    }

    #[inline(always)]
    unsafe fn across_rows(from: *const f32, step: usize, to: &mut Tile) {
        // SAFETY: passed on from the caller.
        unsafe { R::across_rows(low::<DEPTH, COLS>(from, step).as_flattened().as_ptr(), COLS, to) };
    }

    #[inline(always)]
    unsafe fn transpose(tile: &mut Tile) {
        // SAFETY: passed on from the caller.
        unsafe { R::transpose(tile) };
    }
}

/// Eight tile registers in memory.
pub struct Emulated([Tile; 8]);

impl Emulated {
    /// Registers of zeros.
    pub fn zeroed() -> Self {
        Emulated([Tile::ZERO; 8])
    }
}

/// Zero in place of a denormal.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

/// `a b + sum`, rounded once: for two bf16 the f64 sum is exact wherever its rounding to f32 is close.
#[inline(always)]
fn multiply_add(a: f32, b: f32, sum: f32) -> f32 {
    (f64::from(a) * f64::from(b) + f64::from(sum)) as f32
}

/// The two halves of a word as f32.
#[inline(always)]
fn halves(word: u32) -> [f32; 2] {
    [word << 16, word & 0xffff_0000].map(|bits| flushed(f32::from_bits(bits)))
}

impl Tiles for Emulated {
    fn zero<const REGISTER: usize>(&mut self) {
        self.0[REGISTER] = Tile::ZERO;
    }

    fn load<const REGISTER: usize>(&mut self, from: &Tile) {
        self.0[REGISTER] = *from;
    }

    fn load_sums<const REGISTER: usize>(&mut self, from: &[f32], row: usize) {
        for (sums, from) in self.0[REGISTER].0.iter_mut().zip(from.chunks(row)) {
            sums.iter_mut().zip(&from[..COLS]).for_each(|(sum, from)| *sum = from.to_bits());
        }
    }

    fn multiply<const SUMS: usize, const LEFT: usize, const RIGHT: usize>(&mut self) {
        let (mut sums, left, right) = (self.0[SUMS], self.0[LEFT], self.0[RIGHT]);
        for (sums, left) in sums.0.iter_mut().zip(&left.0) {
            let mut of_row = [[0.0f32; COLS]; 2];
            for (&left, right) in left.iter().zip(&right.0) {
                let left = halves(left);
                for (col, &right) in right.iter().enumerate() {
                    for (half, right) in halves(right).into_iter().enumerate() {
                        of_row[half][col] = flushed(multiply_add(left[half], right, of_row[half][col]));
                    }
                }
            }
            for (col, sum) in sums.iter_mut().enumerate() {
                let added = flushed(of_row[0][col] + of_row[1][col]);
                *sum = flushed(flushed(f32::from_bits(*sum)) + added).to_bits();
            }
        }
        self.0[SUMS] = sums;
    }

    fn store<const REGISTER: usize>(&self, to: &mut [f32], row: usize) {
        for (sums, to) in self.0[REGISTER].0.iter().zip(to.chunks_mut(row)) {
            to[..COLS].copy_from_slice(&sums.map(f32::from_bits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_bf16_and_the_even_one_of_two() {
        let one = 1.0f32.to_bits();
        for (bits, rounded) in [
            (one, 0x3f80),
            (one + 0x7fff, 0x3f80),
            (one + 0x8000, 0x3f80),
            (one + 0x8001, 0x3f81),
            (one + 0x1_8000, 0x3f82),
            (f32::MAX.to_bits(), 0x7f80),
            (f32::MIN_POSITIVE.to_bits(), 0x0080),
            (f32::MIN_POSITIVE.to_bits() - 1, 0),
            (0x8000_0001, 0x8000),
            (f32::INFINITY.to_bits(), 0x7f80),
            (0xff80_0000, 0xff80),
            (0x7f80_0001, 0x7fc0),
            (0xffff_ffff, 0xffff),
        ] {
            assert_eq!(round(f32::from_bits(bits)), rounded, "{bits:08x}");
        }
    }

    #[test]
    fn normal_numbers_round_as_the_library_half_rounds_them() {
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            if x.is_normal() {
                assert_eq!(round(x), half::bf16::from_f32(x).to_bits(), "{x:e}");
            }
        }
    }
}
