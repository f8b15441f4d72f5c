//! Matrix products of a few dozen rows: the one place where nearly all time is spent. `docs/algorithm.md`, section 1.
//!
//! `C[r][c] (op)= sum_k A[r][k] B[k][c]`. A is broadcast element by element from any strides, B is read in whole
//! registers, the accumulators never leave the registers. Each element of C is one chain of fused multiply-adds in
//! the order of k, in every tile the same: results do not depend on how rows are grouped.

use crate::simd::{Real, Simd};

/// What happens to the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// C = sum.
    Store,
    /// C = C + sum, the sum started from 0.
    Add,
    /// The chain of multiply-adds goes on from C.
    Continue,
}

/// Which triangle of a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Triangle {
    /// The whole product.
    Whole,
    /// Columns up to the row index (and the rest of the tile they fall in).
    LowerColumns,
    /// A is lower triangular: depth up to the row index, the rest of the tile's depth being zeros in A.
    LowerDepth,
}

/// One product; strides in elements.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a, T> {
    /// Left operand.
    pub a: &'a [T],
    /// Step from one row of A to the next.
    pub a_row: usize,
    /// Step along the depth of A.
    pub a_depth: usize,
    /// Right operand, rows contiguous.
    pub b: &'a [T],
    /// Step from one row of B to the next.
    pub b_row: usize,
    /// Rows of A and C.
    pub rows: usize,
    /// Columns of B and C: a multiple of 16.
    pub cols: usize,
    /// Terms of each sum.
    pub depth: usize,
    /// What happens to the sum.
    pub mode: Mode,
    /// Which triangle is computed.
    pub triangle: Triangle,
}

impl<T> Product<'_, T> {
    /// Panics unless every element that will be touched lies inside its slice.
    fn check(&self, c_len: usize, c_row: usize) {
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        assert!(self.cols.is_multiple_of(16));
        assert!((self.rows - 1) * c_row + self.cols <= c_len, "C is too small");
        if self.depth > 0 {
            assert!((self.rows - 1) * self.a_row + (self.depth - 1) * self.a_depth < self.a.len(), "A is too small");
            assert!((self.depth - 1) * self.b_row + self.cols <= self.b.len(), "B is too small");
        }
    }
}

/// Pointers to the first elements of one tile, and its strides.
struct Tile<T> {
    a: *const T,
    a_row: usize,
    a_depth: usize,
    b: *const T,
    b_row: usize,
    c: *mut T,
    c_row: usize,
    depth: usize,
    mode: Mode,
}

/// Computes `p` into c, whose rows are `c_row` apart.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn product<S: Simd>(p: &Product<'_, S::T>, c: &mut [S::T], c_row: usize) {
    p.check(c.len(), c_row);
    let mut row = 0;
    while row < p.rows {
        let rows = S::TILE_ROWS.min(p.rows - row);
        let cols = match p.triangle {
            Triangle::LowerColumns => p.cols.min((row + rows).next_multiple_of(S::LANES)),
            _ => p.cols,
        };
        let depth = if p.triangle == Triangle::LowerDepth { p.depth.min(row + rows) } else { p.depth };
        let mut col = 0;
        while col < cols {
            let registers = S::TILE_REGISTERS.min((cols - col) / S::LANES);
            // SAFETY: `check` has bounded every row, column and depth index that is used here.
            unsafe {
                let tile = Tile {
                    a: p.a.as_ptr().add(row * p.a_row),
                    a_row: p.a_row,
                    a_depth: p.a_depth,
                    b: p.b.as_ptr().add(col),
                    b_row: p.b_row,
                    c: c.as_mut_ptr().add(row * c_row + col),
                    c_row,
                    depth,
                    mode: p.mode,
                };
                match rows {
                    6.. => columns::<S, 6>(&tile, registers),
                    5 => columns::<S, 5>(&tile, registers),
                    4 => columns::<S, 4>(&tile, registers),
                    3 => columns::<S, 3>(&tile, registers),
                    2 => columns::<S, 2>(&tile, registers),
                    _ => columns::<S, 1>(&tile, registers),
                }
            }
            col += registers * S::LANES;
        }
        row += rows;
    }
}

/// One tile of R rows and some registers of columns.
///
/// # Safety
/// The processor must have the instruction set of S, and every element of the tile must lie in its slice.
#[inline(always)]
unsafe fn columns<S: Simd, const R: usize>(tile: &Tile<S::T>, registers: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        match registers {
            4.. => fixed::<S, R, 4>(tile),
            3 => fixed::<S, R, 3>(tile),
            2 => fixed::<S, R, 2>(tile),
            _ => fixed::<S, R, 1>(tile),
        }
    }
}

/// One tile of R rows and N registers of columns, its accumulators in registers throughout.
///
/// # Safety
/// The processor must have the instruction set of S, and every element of the tile must lie in its slice.
#[inline(always)]
unsafe fn fixed<S: Simd, const R: usize, const N: usize>(tile: &Tile<S::T>) {
    // SAFETY: the caller guarantees the instruction set and the elements of the tile; the loops stay inside it.
    unsafe {
        let mut sums = [[S::splat(S::T::ZERO); N]; R];
        if tile.mode == Mode::Continue {
            for (r, row) in sums.iter_mut().enumerate() {
                for (n, sum) in row.iter_mut().enumerate() {
                    *sum = S::load(tile.c.add(r * tile.c_row + n * S::LANES));
                }
            }
        }
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.depth {
            let mut right = [S::splat(S::T::ZERO); N];
            for (n, register) in right.iter_mut().enumerate() {
                *register = S::load(b.add(n * S::LANES));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let left = S::splat(*a.add(r * tile.a_row));
                for (sum, register) in row.iter_mut().zip(right) {
                    *sum = S::fma(left, register, *sum);
                }
            }
            a = a.wrapping_add(tile.a_depth);
            b = b.wrapping_add(tile.b_row);
        }
        for (r, row) in sums.iter().enumerate() {
            for (n, &sum) in row.iter().enumerate() {
                let at = tile.c.add(r * tile.c_row + n * S::LANES);
                S::store(at, if tile.mode == Mode::Add { S::add(S::load(at), sum) } else { sum });
            }
        }
    }
}
