//! A matrix of f32 as tiles of bf16.
//!
//! An operand is the tiles along its depth, then those of the next 16 rows or columns: `[outer][depth]`.

#[cfg(target_arch = "x86_64")]
use crate::simd::avx512bf16;
use crate::simd::plain_tiles::Plain;
use crate::simd::tile::{COLS, DEPTH, Rounding, Tile};

/// A matrix of f32 in memory.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Distance between two rows.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl Matrix<'_> {
    /// W numbers of a row, with zeros where the matrix has ended.
    #[inline(always)]
    fn part<const W: usize>(&self, row: usize, col: usize) -> [f32; W] {
        let mut part = [0.0; W];
        if row < self.rows {
            let from = &self.data[row * self.row + col..];
            match from.first_chunk::<W>() {
                Some(whole) if col + W <= self.cols => part = *whole,
                _ => part[..self.cols - col].copy_from_slice(&from[..self.cols - col]),
            }
        }
        part
    }
}

/// What a matrix is in a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The left operand; the sums run along its rows.
    Left,
    /// Transposed, the left operand.
    LeftTransposed,
    /// The right operand; the sums run along its columns.
    Right,
    /// Transposed, the right operand.
    RightTransposed,
}

impl Role {
    /// Tiles that a matrix of so many rows and columns takes.
    pub fn num_tiles(self, rows: usize, cols: usize) -> usize {
        let [outer, depth] = self.grid(rows, cols);
        outer * depth
    }

    fn grid(self, rows: usize, cols: usize) -> [usize; 2] {
        match self {
            Role::Left | Role::RightTransposed => [rows.div_ceil(COLS), cols.div_ceil(DEPTH)],
            Role::LeftTransposed | Role::Right => [cols.div_ceil(COLS), rows.div_ceil(DEPTH)],
        }
    }

    /// Rounds a matrix into tiles, with zeros where it has ended.
    ///
    /// # Panics
    /// Where the matrix is larger than its memory, or `to` has another length than [`Role::num_tiles`].
    pub fn pack(self, from: &Matrix<'_>, to: &mut [Tile]) {
        assert!(from.rows == 0 || (from.rows - 1) * from.row + from.cols <= from.data.len());
        let [outer, depth] = self.grid(from.rows, from.cols);
        assert_eq!(to.len(), outer * depth);
        // SAFETY: each has the instruction set that it needs, as was just asked where it is more than the baseline.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if avx512bf16::is_available() {
                return pack_avx512(self, depth, from, to);
            }
            pack::<Plain>(self, depth, from, to);
        }
    }
}

/// [`pack`] by the instructions of AVX-512.
///
/// # Safety
/// The processor must have them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma")]
unsafe fn pack_avx512(role: Role, depth: usize, from: &Matrix<'_>, to: &mut [Tile]) {
    // SAFETY: passed on from the caller.
    unsafe { pack::<avx512bf16::Rounded>(role, depth, from, to) };
}

/// [`Role::pack`] once its arguments are checked; `depth` tiles belong to the same 16 rows or columns.
///
/// # Safety
/// The processor must have the instruction set of R.
#[inline(always)]
unsafe fn pack<R: Rounding>(role: Role, depth: usize, from: &Matrix<'_>, to: &mut [Tile]) {
    if depth == 0 {
        return;
    }
    for (outer, tiles) in to.chunks_exact_mut(depth).enumerate() {
        for (at, tile) in tiles.iter_mut().enumerate() {
            let mut transposed = Tile::ZERO;
            // SAFETY: passed on from the caller.
            unsafe {
                match role {
                    Role::Left => left_tile::<R>(from, outer * COLS, at * DEPTH, tile),
                    Role::Right => right_tile::<R>(from, at * DEPTH, outer * COLS, tile),
                    Role::LeftTransposed => {
                        right_tile::<R>(from, at * DEPTH, outer * COLS, &mut transposed);
                        R::transpose(&transposed, tile);
                    }
                    Role::RightTransposed => {
                        left_tile::<R>(from, outer * COLS, at * DEPTH, &mut transposed);
                        R::transpose(&transposed, tile);
                    }
                }
            }
        }
    }
}

/// 16 rows and 32 columns of a matrix from an element on.
///
/// # Safety
/// The processor must have the instruction set of R.
#[inline(always)]
unsafe fn left_tile<R: Rounding>(from: &Matrix<'_>, row: usize, col: usize, to: &mut Tile) {
    for (at, words) in to.0.iter_mut().enumerate() {
        // SAFETY: passed on from the caller.
        *words = unsafe { R::along(&from.part(row + at, col)) };
    }
}

/// 32 rows and 16 columns of a matrix from an element on.
///
/// # Safety
/// The processor must have the instruction set of R.
#[inline(always)]
unsafe fn right_tile<R: Rounding>(from: &Matrix<'_>, row: usize, col: usize, to: &mut Tile) {
    for (at, words) in to.0.iter_mut().enumerate() {
        let (first, second) = (from.part(row + 2 * at, col), from.part(row + 2 * at + 1, col));
        // SAFETY: passed on from the caller.
        *words = unsafe { R::across(&first, &second) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::plain_tiles::round;

    /// What a role says each half of each word is.
    fn expected(role: Role, from: &Matrix<'_>, outer: usize, depth: usize, [row, col]: [usize; 2], half: usize) -> u16 {
        // The place among the 16 of the outer axis and the 32 of the depth.
        let [o, k] = match role {
            Role::Left | Role::LeftTransposed => [row, 2 * col + half],
            Role::Right | Role::RightTransposed => [col, 2 * row + half],
        };
        let (o, k) = (outer * COLS + o, depth * DEPTH + k);
        let (r, c) = if matches!(role, Role::Left | Role::RightTransposed) { (o, k) } else { (k, o) };
        if r < from.rows && c < from.cols { round(from.data[r * from.row + c]) } else { 0 }
    }

    #[test]
    fn every_number_is_rounded_into_its_place_and_the_rest_is_zero() {
        for [rows, cols] in [[0, 5], [5, 0], [1, 1], [16, 32], [32, 16], [17, 33], [33, 17], [50, 70]] {
            let row = cols + 3;
            let data: Vec<f32> =
                (0..rows * row).map(|i| (i as f32 * 0.731).sin() * 1.1f32.powi(i as i32 % 50)).collect();
            let from = Matrix { data: &data, row, rows, cols };
            for role in [Role::Left, Role::LeftTransposed, Role::Right, Role::RightTransposed] {
                let [outer, depth] = role.grid(rows, cols);
                let mut tiles = vec![Tile([[u32::MAX; COLS]; COLS]); role.num_tiles(rows, cols)];
                role.pack(&from, &mut tiles);
                let mut plain = vec![Tile([[u32::MAX; COLS]; COLS]); tiles.len()];
                // SAFETY: every processor has plain Rust.
                unsafe { pack::<Plain>(role, depth, &from, &mut plain) };
                assert_eq!(tiles, plain);
                assert_eq!(tiles.len(), outer * depth);
                for (at, tile) in tiles.iter().enumerate() {
                    for place in (0..256).map(|word| [word / COLS, word % COLS]) {
                        let word = tile.0[place[0]][place[1]];
                        for half in 0..2 {
                            let needed = expected(role, &from, at / depth, at % depth, place, half);
                            assert_eq!(
                                (word >> (16 * half)) as u16,
                                needed,
                                "{role:?} {rows}x{cols} tile {at} {place:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_that_are_not_normal_are_rounded_alike_by_every_instruction_set() {
        let data: Vec<f32> = (0..64 * 64u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b1) ^ i << 23)).collect();
        let mut data = data;
        for (at, bits) in [0u32, 0x8000_0000, 1, 0x807f_ffff, 0x0080_0000, 0x7f80_0000, 0xff80_0001, 0x7f7f_ffff]
            .into_iter()
            .enumerate()
        {
            data[at] = f32::from_bits(bits);
        }
        let from = Matrix { data: &data, row: 64, rows: 64, cols: 64 };
        for role in [Role::Left, Role::LeftTransposed, Role::Right, Role::RightTransposed] {
            let (mut tiles, mut plain) = (vec![Tile::ZERO; 8], vec![Tile::ZERO; 8]);
            role.pack(&from, &mut tiles);
            // SAFETY: every processor has plain Rust.
            unsafe { pack::<Plain>(role, 2, &from, &mut plain) };
            assert_eq!(tiles, plain);
        }
    }
}
