//! A matrix of f32 as tiles of bf16: `docs/algorithm.md`, section 10.
//!
//! An operand is the tiles along its depth, then those of the next 16 rows or columns: `[outer][depth]`.

#[cfg(target_arch = "x86_64")]
use crate::simd::avx512bf16;
use crate::simd::plain_tiles::{Low, Plain};
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
    /// R rows of C numbers where they lie, the rows as far apart as those of the matrix; `None` where it has fewer.
    #[inline(always)]
    fn whole<const R: usize, const C: usize>(&self, [row, col]: [usize; 2]) -> Option<&[f32]> {
        let lies_inside = row + R <= self.rows && col + C <= self.cols;
        lies_inside.then(|| &self.data[row * self.row + col..][..(R - 1) * self.row + C])
    }

    /// A copy of up to R rows of C numbers, with zeros where the matrix has ended.
    #[cold]
    fn padded<const R: usize, const C: usize>(&self, [row, col]: [usize; 2]) -> [[f32; C]; R] {
        let mut padded = [[0.0; C]; R];
        let width = C.min(self.cols.saturating_sub(col));
        for (at, to) in padded.iter_mut().enumerate().take(self.rows.saturating_sub(row)) {
            to[..width].copy_from_slice(&self.data[(row + at) * self.row + col..][..width]);
        }
        padded
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

/// One of the two terms that a number is split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// The high term: the number rounded to bf16.
    High,
    /// The low term: what that rounding left, rounded to bf16.
    Low,
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
        self.pack_terms(from, &[Term::High], to);
    }

    /// The same for terms of the numbers, where the tiles of each 16 rows or columns are those of the first term, of
    /// the next, and then some that are left as they are.
    ///
    /// # Panics
    /// Where the matrix is larger than its memory, or `to` is not so many tiles for each 16 rows or columns.
    pub fn pack_terms(self, from: &Matrix<'_>, terms: &[Term], to: &mut [Tile]) {
        assert!(from.rows == 0 || (from.rows - 1) * from.row + from.cols <= from.data.len());
        let [outer, depth] = self.grid(from.rows, from.cols);
        if outer == 0 {
            return assert!(to.is_empty());
        }
        let step = to.len() / outer;
        assert!(to.len() == outer * step && step >= depth * terms.len());
        if depth == 0 || step == 0 {
            return;
        }
        // SAFETY: each has the instruction set that it needs, as was just asked where it is more than the baseline.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if avx512bf16::is_available() {
                return pack_avx512(self, [depth, step], from, terms, to);
            }
            pack_all::<Plain>(self, [depth, step], from, terms, to);
        }
    }
}

/// [`pack`] by the instructions of AVX-512.
///
/// # Safety
/// The processor must have them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma")]
unsafe fn pack_avx512(role: Role, sizes: [usize; 2], from: &Matrix<'_>, terms: &[Term], to: &mut [Tile]) {
    // SAFETY: passed on from the caller.
    unsafe { pack_all::<avx512bf16::Rounded>(role, sizes, from, terms, to) };
}

/// [`Role::pack_terms`] once its arguments are checked: tiles along the depth, and from 16 rows or columns to the next.
///
/// # Safety
/// The processor must have the instruction set of R.
#[inline(always)]
unsafe fn pack_all<R: Rounding>(
    role: Role,
    [depth, step]: [usize; 2],
    from: &Matrix<'_>,
    terms: &[Term],
    to: &mut [Tile],
) {
    for (outer, tiles) in to.chunks_exact_mut(step).enumerate() {
        for (term, tiles) in terms.iter().zip(tiles.chunks_exact_mut(depth)) {
            // SAFETY: passed on from the caller.
            unsafe {
                match term {
                    Term::High => pack::<R>(role, outer, from, tiles),
                    Term::Low => pack::<Low<R>>(role, outer, from, tiles),
                }
            }
        }
    }
}

/// The tiles of the `outer`-th 16 rows or columns.
///
/// # Safety
/// The processor must have the instruction set of R.
#[inline(always)]
unsafe fn pack<R: Rounding>(role: Role, outer: usize, from: &Matrix<'_>, to: &mut [Tile]) {
    for (at, tile) in to.iter_mut().enumerate() {
        let (outer, depth) = (outer * COLS, at * DEPTH);
        // SAFETY: passed on from the caller.
        unsafe {
            match role {
                Role::Left | Role::RightTransposed => left_tile::<R>(from, [outer, depth], tile),
                Role::Right | Role::LeftTransposed => right_tile::<R>(from, [depth, outer], tile),
            }
            if matches!(role, Role::LeftTransposed | Role::RightTransposed) {
                R::transpose(tile);
            }
        }
    }
}

/// 16 rows and 32 columns of a matrix from an element on.
///
/// # Safety
/// The processor must have the instruction set of R.
#[inline(always)]
unsafe fn left_tile<R: Rounding>(from: &Matrix<'_>, place: [usize; 2], to: &mut Tile) {
    // SAFETY: passed on from the caller; `whole` and `padded` have so many rows.
    unsafe {
        match from.whole::<COLS, DEPTH>(place) {
            Some(part) => R::along_rows(part.as_ptr(), from.row, to),
            None => R::along_rows(from.padded::<COLS, DEPTH>(place).as_flattened().as_ptr(), DEPTH, to),
        }
    }
}

/// 32 rows and 16 columns of a matrix from an element on.
///
/// # Safety
/// The processor must have the instruction set of R.
#[inline(always)]
unsafe fn right_tile<R: Rounding>(from: &Matrix<'_>, place: [usize; 2], to: &mut Tile) {
    // SAFETY: passed on from the caller; `whole` and `padded` have so many rows.
    unsafe {
        match from.whole::<DEPTH, COLS>(place) {
            Some(part) => R::across_rows(part.as_ptr(), from.row, to),
            None => R::across_rows(from.padded::<DEPTH, COLS>(place).as_flattened().as_ptr(), COLS, to),
        }
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
                unsafe { pack_all::<Plain>(role, [depth.max(1); 2], &from, &[Term::High], &mut plain) };
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
            unsafe { pack_all::<Plain>(role, [2; 2], &from, &[Term::High], &mut plain) };
            assert_eq!(tiles, plain);
        }
    }
}
