//! From the caller's memory into scratch: passes over one row of any length. `docs/algorithm.md`, section 1, "load".

use crate::layout::PAD;
use crate::simd::{Real, Simd};

/// The lanes of registers in order, the rest zero.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
unsafe fn lanes<S: Simd>(register: S::Register) -> [S::T; PAD] {
    let mut all = [S::T::ZERO; PAD];
    // SAFETY: PAD is at least LANES; the caller guarantees the instruction set.
    unsafe { S::store(all.as_mut_ptr(), register) };
    all
}

/// Runs `body` over the registers of a row, the last one filled up with zeros.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
unsafe fn for_each_register<S: Simd>(row: &[S::T], mut body: impl FnMut(usize, S::Register)) {
    let whole = row.len() / S::LANES * S::LANES;
    // SAFETY: whole registers lie in the row; the caller guarantees the instruction set.
    unsafe {
        for col in (0..whole).step_by(S::LANES) {
            body(col, S::load(row.as_ptr().add(col)));
        }
        if whole < row.len() {
            body(whole, last::<S>(row));
        }
    }
}

/// The last register of a row that no whole number of registers fills, with zeros.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
unsafe fn last<S: Simd>(row: &[S::T]) -> S::Register {
    let mut last = [S::T::ZERO; PAD];
    let rest = row.len() % S::LANES;
    last[..rest].copy_from_slice(&row[row.len() - rest..]);
    // SAFETY: PAD is at least LANES; the caller guarantees the instruction set.
    unsafe { S::load(last.as_ptr()) }
}

/// `to = from`, limited to +-limit and followed by zeros; the sum of its squares, and whether all of `from` is finite.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn load_row<S: Simd>(from: &[S::T], limit: S::T, to: &mut [S::T]) -> (S::T, bool) {
    let padded = from.len().next_multiple_of(PAD);
    assert!(to.len() >= padded);
    // SAFETY: a register of `from` begins below its length, so it ends below `padded`.
    unsafe {
        let (zero, high, low) = (S::splat(S::T::ZERO), S::splat(limit), S::splat(-limit));
        let (mut squares, mut bad) = (zero, zero);
        to[from.len().saturating_sub(1) / PAD * PAD..padded].fill(S::T::ZERO);
        for_each_register::<S>(from, |col, x| {
            // A sum of x * 0 is 0 if and only if every x is finite, and costs one multiply-add.
            bad = S::fma(x, zero, bad);
            let x = S::max(S::min(x, high), low);
            squares = S::fma(x, x, squares);
            S::store(to.as_mut_ptr().add(col), x);
        });
        (sum_of(&lanes::<S>(squares)), lanes::<S>(bad) == [S::T::ZERO; PAD])
    }
}

/// Rows in memory, `step` elements apart; in reversed time the last comes first.
#[derive(Clone, Copy, Debug)]
pub struct StridedRows<'a, T> {
    pub data: &'a [T],
    pub step: usize,
    pub width: usize,
    pub count: usize,
    pub reversed: bool,
}

/// `to = from * scale` for some rows, limited to +-limit and followed by zeros up to the next multiple of the padding.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn load_rows<S: Simd>(
    from: &StridedRows<'_, S::T>,
    scale: S::T,
    limit: S::T,
    to: &mut [S::T],
    to_step: usize,
) {
    let StridedRows { data, step, width, count, reversed } = *from;
    let padded = width.next_multiple_of(PAD);
    if count == 0 || width == 0 {
        return;
    }
    assert!((count - 1) * step + width <= data.len());
    assert!(padded <= to_step && (count - 1) * to_step + padded <= to.len());
    for row in 0..count {
        let at = if reversed { count - 1 - row } else { row };
        let (from, to) = (&data[at * step..][..width], &mut to[row * to_step..][..padded]);
        // SAFETY: a register of `from` begins below its length, so it ends below `padded`.
        unsafe {
            let (by, high, low) = (S::splat(scale), S::splat(limit), S::splat(-limit));
            to[(width - 1) / PAD * PAD..].fill(S::T::ZERO);
            for_each_register::<S>(from, |col, x| {
                S::store(to.as_mut_ptr().add(col), S::max(S::min(S::mul(x, by), high), low));
            });
        }
    }
}

/// The largest magnitude in some rows (NaN counts as nothing), and whether all of them are finite.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn largest_of_rows<S: Simd>(from: &[S::T], step: usize, width: usize, rows: usize) -> (S::T, bool) {
    assert!(rows == 0 || (rows - 1) * step + width <= from.len());
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let zero = S::splat(S::T::ZERO);
        let (mut top, mut bad) = (zero, zero);
        for row in 0..rows {
            for_each_register::<S>(&from[row * step..][..width], |_, x| {
                bad = S::fma(x, zero, bad);
                // The second operand is what a comparison with NaN gives.
                top = S::max(S::max(x, S::sub(zero, x)), top);
            });
        }
        let largest = lanes::<S>(top).into_iter().fold(S::T::ZERO, |largest, x| if x > largest { x } else { largest });
        (largest, lanes::<S>(bad) == [S::T::ZERO; PAD])
    }
}

/// The sum of `weights * row^2`; both are followed by zeros up to a multiple of the padding.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn weighted_squares<S: Simd>(row: &[S::T], weights: &[S::T]) -> S::T {
    assert!(row.len() == weights.len() && row.len().is_multiple_of(PAD));
    // SAFETY: the caller guarantees the instruction set; a register that starts below the length ends inside it.
    unsafe {
        let mut squares = S::splat(S::T::ZERO);
        for col in (0..row.len()).step_by(S::LANES) {
            let (x, w) = (S::load(row.as_ptr().add(col)), S::load(weights.as_ptr().add(col)));
            squares = S::fma(S::mul(x, x), w, squares);
        }
        sum_of(&lanes::<S>(squares))
    }
}

/// The largest magnitude in a row (NaN counts as nothing), and whether all of it is finite.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn largest<S: Simd>(row: &[S::T]) -> (S::T, bool) {
    // SAFETY: the caller guarantees the instruction set.
    unsafe {
        let zero = S::splat(S::T::ZERO);
        let (mut top, mut bad) = (zero, zero);
        for_each_register::<S>(row, |_, x| {
            bad = S::fma(x, zero, bad);
            // The second operand is what a comparison with NaN gives.
            top = S::max(S::max(x, S::sub(zero, x)), top);
        });
        let largest = lanes::<S>(top).into_iter().fold(S::T::ZERO, |largest, x| if x > largest { x } else { largest });
        (largest, lanes::<S>(bad) == [S::T::ZERO; PAD])
    }
}

/// `to = grad * inverse`, followed by zeros; the product of `grad` and `out * out_scale`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn load_cotangent<S: Simd>(
    grad: &[S::T],
    out: &[S::T],
    out_scale: S::T,
    inverse: S::T,
    to: &mut [S::T],
) -> S::T {
    let padded = grad.len().next_multiple_of(PAD);
    assert!(grad.len() == out.len() && to.len() >= padded);
    to[grad.len().saturating_sub(1) / PAD * PAD..].fill(S::T::ZERO);
    // SAFETY: a register of `grad` begins below its length, so it ends below `padded`; the caller guarantees the instruction set.
    unsafe {
        let (by, of_out, mut dot) = (S::splat(inverse), S::splat(out_scale), S::splat(S::T::ZERO));
        for_each_register::<S>(grad, |col, g| {
            S::store(to.as_mut_ptr().add(col), S::mul(g, by));
        });
        for_each_register::<S>(out, |col, o| {
            let g = if col + S::LANES <= grad.len() { S::load(grad.as_ptr().add(col)) } else { last::<S>(grad) };
            dot = S::fma(g, S::mul(o, of_out), dot);
        });
        sum_of(&lanes::<S>(dot))
    }
}

/// The largest of some lanes; NaN counts as nothing unless it is the first.
pub fn largest_of<T: Real>(lanes: &[T]) -> T {
    let mut tops = [T::ZERO; PAD];
    tops.copy_from_slice(lanes);
    let mut width = PAD / 2;
    while width > 0 {
        for i in 0..width {
            tops[i] = if tops[i + width] > tops[i] { tops[i + width] } else { tops[i] };
        }
        width /= 2;
    }
    tops[0]
}

/// The sum of some lanes: the upper half is added to the lower half until one lane is left. Registers of every length
/// hold PAD lanes of partial sums in the end, so the order is the same for each.
pub fn sum_of<T: Real>(lanes: &[T]) -> T {
    let mut sums = [T::ZERO; PAD];
    sums.copy_from_slice(lanes);
    let mut width = PAD / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// The sum of the products of two rows of one length, in PAD partial sums.
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    assert!(a.len() == b.len());
    let mut sums = [T::ZERO; PAD];
    let (a_whole, b_whole) = (a.chunks_exact(PAD), b.chunks_exact(PAD));
    let rest = a_whole.remainder().iter().zip(b_whole.remainder());
    for (sum, (&a, &b)) in sums.iter_mut().zip(rest) {
        *sum = a * b;
    }
    for (a, b) in a_whole.zip(b_whole) {
        for i in 0..PAD {
            sums[i] += a[i] * b[i];
        }
    }
    sum_of(&sums)
}

/// `to = to + from`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn add<S: Simd>(from: &[S::T], to: &mut [S::T]) {
    assert!(from.len() == to.len());
    to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
}
