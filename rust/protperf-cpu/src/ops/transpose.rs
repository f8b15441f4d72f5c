//! Transposition, register by register.

use crate::layout::PAD;
use crate::simd::{Real, Simd};

/// `to[c][r] = from[r][c]`; rows and columns are multiples of [`PAD`].
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn transpose<S: Simd>(
    from: &[S::T],
    from_row: usize,
    rows: usize,
    cols: usize,
    to: &mut [S::T],
    to_row: usize,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(rows.is_multiple_of(PAD) && cols.is_multiple_of(PAD));
    assert!((rows - 1) * from_row + cols <= from.len() && (cols - 1) * to_row + rows <= to.len());
    for row in (0..rows).step_by(S::LANES) {
        for col in (0..cols).step_by(S::LANES) {
            // SAFETY: the block lies inside both, as checked above.
            unsafe {
                let mut block = [S::splat(S::T::ZERO); PAD];
                let mut next = block;
                for (i, register) in block.iter_mut().take(S::LANES).enumerate() {
                    *register = S::load(from.as_ptr().add((row + i) * from_row + col));
                }
                // A perfect shuffle of all registers, log2(LANES) times, is a transposition.
                let mut span = 1;
                while span < S::LANES {
                    for i in 0..S::LANES / 2 {
                        (next[2 * i], next[2 * i + 1]) = S::zip(block[i], block[i + S::LANES / 2]);
                    }
                    std::mem::swap(&mut block, &mut next);
                    span *= 2;
                }
                for (i, register) in block.iter().take(S::LANES).enumerate() {
                    S::store(to.as_mut_ptr().add((col + i) * to_row + row), *register);
                }
            }
        }
    }
}
