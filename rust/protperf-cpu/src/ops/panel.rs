//! Passes over one panel `[rows][PANEL]` that hold for every feature map: `docs/algorithm.md`, sections 1 and 7.

use super::row::largest_of;
use crate::layout::{Extent, PAD, PANEL};
use crate::simd::{Real, Simd};

/// Zeroes the lanes between the features in use and the next multiple of the padding, so that sums over whole
/// registers may include them.
#[inline(always)]
pub fn clear_tail<T: Real>(panel: &mut [T], extent: Extent) {
    if extent.features < extent.width() {
        for row in panel.chunks_exact_mut(PANEL).take(extent.rows) {
            row[extent.features..extent.width()].fill(T::ZERO);
        }
    }
}

/// `to = from * factor[row]`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn scale_rows<S: Simd>(from: &[S::T], extent: Extent, factor: &[S::T], to: &mut [S::T]) {
    extent.check(&[from.len(), to.len()]);
    assert!(factor.len() >= extent.rows);
    for (row, &factor) in factor.iter().enumerate().take(extent.rows) {
        // SAFETY: the checks above: every index below rows * PANEL lies in each panel.
        unsafe {
            let by = S::splat(factor);
            for col in (0..extent.width()).step_by(S::LANES) {
                let at = row * PANEL + col;
                S::store(to.as_mut_ptr().add(at), S::mul(S::load(from.as_ptr().add(at)), by));
            }
        }
    }
}

/// `gradient = gradient * features`, and `sums[row]` lanes += its columns.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn times_features<S: Simd>(features: &[S::T], extent: Extent, gradient: &mut [S::T], sums: &mut [S::T]) {
    extent.check(&[features.len(), gradient.len()]);
    assert!(sums.len() >= extent.rows * PAD);
    for row in 0..extent.rows {
        // SAFETY: the checks above: every index below rows * PANEL lies in each panel, and `sums` holds PAD lanes per row.
        unsafe {
            let mut sum = S::load(sums.as_ptr().add(row * PAD));
            for col in (0..extent.width()).step_by(S::LANES) {
                let at = row * PANEL + col;
                let g = S::mul(S::load(gradient.as_ptr().add(at)), S::load(features.as_ptr().add(at)));
                sum = S::add(sum, g);
                S::store(gradient.as_mut_ptr().add(at), g);
            }
            S::store(sums.as_mut_ptr().add(row * PAD), sum);
        }
    }
}

/// Raises `tops[row]` to the largest projection of the row, or the largest magnitude of one.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn raise_tops<S: Simd>(y: &[S::T], extent: Extent, of_magnitudes: bool, tops: &mut [S::T]) {
    extent.check(&[y.len()]);
    assert!(tops.len() >= extent.rows);
    for (row, top) in tops.iter_mut().enumerate().take(extent.rows) {
        let y = &y[row * PANEL..][..extent.features];
        let whole = extent.features / S::LANES * S::LANES;
        // SAFETY: whole registers lie in the row, and PAD is at least LANES.
        unsafe {
            let mut best = S::splat(*top);
            for col in (0..whole).step_by(S::LANES) {
                let x = S::load(y.as_ptr().add(col));
                let x = if of_magnitudes { S::max(x, S::sub(S::splat(S::T::ZERO), x)) } else { x };
                best = S::max(x, best);
            }
            let mut lanes = [*top; PAD];
            S::store(lanes.as_mut_ptr(), best);
            let best = largest_of(&lanes);
            let size = |y: S::T| if of_magnitudes { y.abs() } else { y };
            *top = y[whole..].iter().map(|&y| size(y)).fold(best, |top, y| if y > top { y } else { top });
        }
    }
}

/// `sums[row]` lanes += features * column.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn dot_rows<S: Simd>(features: &[S::T], extent: Extent, column: &[S::T], sums: &mut [S::T]) {
    extent.check(&[features.len()]);
    assert!(column.len() >= extent.width() && sums.len() >= extent.rows * PAD);
    for row in 0..extent.rows {
        // SAFETY: the checks above: every index below rows * PANEL lies in each panel, and `sums` holds PAD lanes per row.
        unsafe {
            let mut sum = S::load(sums.as_ptr().add(row * PAD));
            for col in (0..extent.width()).step_by(S::LANES) {
                let f = S::load(features.as_ptr().add(row * PANEL + col));
                sum = S::fma(f, S::load(column.as_ptr().add(col)), sum);
            }
            S::store(sums.as_mut_ptr().add(row * PAD), sum);
        }
    }
}

/// `totals[m] = totals[m] + sum over rows of features * factor[row]`, the sum starting from 0.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn add_rows<S: Simd>(features: &[S::T], extent: Extent, factor: &[S::T], step: usize, totals: &mut [S::T]) {
    extent.check(&[features.len()]);
    assert!(extent.rows == 0 || factor.len() > (extent.rows - 1) * step);
    assert!(totals.len() >= extent.width());
    for col in (0..extent.width()).step_by(S::LANES) {
        // SAFETY: the checks above: every index below rows * PANEL lies in each panel, and the last index of `factor` was checked.
        unsafe {
            let mut sum = S::splat(S::T::ZERO);
            for row in 0..extent.rows {
                let w = S::splat(*factor.get_unchecked(row * step));
                sum = S::fma(S::load(features.as_ptr().add(row * PANEL + col)), w, sum);
            }
            let at = totals.as_mut_ptr().add(col);
            S::store(at, S::add(S::load(at), sum));
        }
    }
}

/// `to[r][c] = factor[r step] row[c]` of some rows, which are `to_row` apart.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn outer<S: Simd>(factor: &[S::T], step: usize, row: &[S::T], rows: usize, to: &mut [S::T], to_row: usize) {
    assert!(row.len().is_multiple_of(PAD) && row.len() <= to_row);
    assert!(rows == 0 || (rows - 1) * step < factor.len() && (rows - 1) * to_row + row.len() <= to.len());
    for at in 0..rows {
        // SAFETY: the last factor and the end of the last row were checked.
        unsafe {
            let by = S::splat(*factor.get_unchecked(at * step));
            for col in (0..row.len()).step_by(S::LANES) {
                S::store(to.as_mut_ptr().add(at * to_row + col), S::mul(by, S::load(row.as_ptr().add(col))));
            }
        }
    }
}

/// Row r of `values` (`width` wide, `step` apart) times 2^power[r].
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn rescale_rows<S: Simd>(values: &mut [S::T], step: usize, width: usize, power: &[S::T]) {
    assert!(width.is_multiple_of(PAD) && (power.is_empty() || (power.len() - 1) * step + width <= values.len()));
    for (row, &k) in power.iter().enumerate() {
        if k == S::T::ZERO {
            continue;
        }
        // SAFETY: the last row was checked to end inside `values`.
        unsafe {
            for col in (0..width).step_by(S::LANES) {
                let at = values.as_mut_ptr().add(row * step + col);
                S::store(at, S::scale2(S::load(at), S::splat(k)));
            }
        }
    }
}
