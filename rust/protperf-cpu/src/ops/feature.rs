//! From projections to features, and back: passes over one panel of at most 64 features.
//!
//! A panel is `[rows][PANEL]`. Log-features are in bits; a feature is split once as `2^(I + f)`, |f| <= 1/2, and
//! every reference is an integer, so a change of reference is an exact power of two and changes no bit.

use crate::simd::{Real, Simd};
use protperf_core::{Element, FeatureMap};

/// Features of one panel, and the distance between its rows.
pub const PANEL: usize = 64;
/// Every padded width is a multiple of this; every register length divides it.
pub const PAD: usize = 16;

/// Rows and columns of a panel in use.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Rows in use.
    pub rows: usize,
    /// Features of the panel; the rest up to the next multiple of [`PAD`] is kept at zero.
    pub features: usize,
}

impl Extent {
    /// Features with their padding.
    pub fn width(self) -> usize {
        self.features.next_multiple_of(PAD)
    }
    fn check(self, lens: &[usize]) {
        assert!(self.features <= PANEL && lens.iter().all(|&n| n >= self.rows * PANEL));
    }
}

/// 2^f for |f| <= 1/2.
#[inline(always)]
unsafe fn exp2_fraction<S: Simd>(f: S::V) -> S::V {
    // SAFETY: the caller guarantees the ISA.
    unsafe {
        let mut terms = S::E::EXP2.iter().rev();
        let mut sum = S::splat(*terms.next().unwrap_unchecked());
        for &c in terms {
            sum = S::fma(sum, f, S::splat(c));
        }
        sum
    }
}

#[inline(always)]
fn clear_tail<E: Real>(panel: &mut [E], extent: Extent) {
    if extent.features < extent.width() {
        for row in panel.chunks_exact_mut(PANEL).take(extent.rows) {
            row[extent.features..extent.width()].fill(E::ZERO);
        }
    }
}

/// Raises `reference[m]` to the largest `round(y) - shift` of the live rows.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn raise_reference<S: Simd>(
    y: &[S::E],
    extent: Extent,
    live: &[bool],
    shift: &[S::E],
    reference: &mut [S::E],
) {
    extent.check(&[y.len()]);
    assert!(live.len() >= extent.rows && shift.len() >= extent.rows && reference.len() >= extent.width());
    for col in (0..extent.width()).step_by(S::LANES) {
        // SAFETY: rows * PANEL elements lie in `y`, `width` in `reference`.
        unsafe {
            let mut top = S::load(reference.as_ptr().add(col));
            for row in 0..extent.rows {
                if live[row] {
                    let whole = S::round(S::load(y.as_ptr().add(row * PANEL + col)));
                    top = S::max(S::sub(whole, S::splat(shift[row])), top);
                }
            }
            S::store(reference.as_mut_ptr().add(col), top);
        }
    }
    reference[extent.features..extent.width()].fill(S::E::NIL);
}

/// `features = 2^(y - shift - reference)` of live rows, 0 of the others.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn writer_features<S: Simd>(
    y: &[S::E],
    extent: Extent,
    live: &[bool],
    shift: &[S::E],
    reference: &[S::E],
    features: &mut [S::E],
) {
    extent.check(&[y.len(), features.len()]);
    assert!(live.len() >= extent.rows && shift.len() >= extent.rows && reference.len() >= extent.width());
    for row in 0..extent.rows {
        if !live[row] {
            features[row * PANEL..row * PANEL + extent.width()].fill(S::E::ZERO);
            continue;
        }
        // SAFETY: rows * PANEL elements lie in `y` and `features`, `width` in `reference`.
        unsafe {
            let down = S::splat(shift[row]);
            for col in (0..extent.width()).step_by(S::LANES) {
                let x = S::load(y.as_ptr().add(row * PANEL + col));
                let whole = S::round(x);
                let power = S::sub(S::sub(whole, down), S::load(reference.as_ptr().add(col)));
                let value = S::scale2(exp2_fraction::<S>(S::sub(x, whole)), power);
                S::store(features.as_mut_ptr().add(row * PANEL + col), value);
            }
        }
    }
    clear_tail(features, extent);
}

/// Raises the lanes `top[row]` to the largest `y + reference`.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn reader_top<S: Simd>(y: &[S::E], extent: Extent, reference: &[S::E], top: &mut [S::E]) {
    extent.check(&[y.len()]);
    assert!(reference.len() >= extent.width() && top.len() >= extent.rows * PAD);
    for row in 0..extent.rows {
        // SAFETY: as in `writer_features`; `top` holds PAD lanes a row.
        unsafe {
            let mut best = S::load(top.as_ptr().add(row * PAD));
            for col in (0..extent.width()).step_by(S::LANES) {
                let sum = S::add(S::load(y.as_ptr().add(row * PANEL + col)), S::load(reference.as_ptr().add(col)));
                best = S::max(sum, best);
            }
            S::store(top.as_mut_ptr().add(row * PAD), best);
        }
    }
}

/// `features = 2^(y + reference - shift)`.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn reader_features<S: Simd>(
    y: &[S::E],
    extent: Extent,
    reference: &[S::E],
    shift: &[S::E],
    features: &mut [S::E],
) {
    extent.check(&[y.len(), features.len()]);
    assert!(shift.len() >= extent.rows && reference.len() >= extent.width());
    for (row, &shift) in shift.iter().enumerate().take(extent.rows) {
        // SAFETY: as in `writer_features`.
        unsafe {
            let down = S::splat(shift);
            for col in (0..extent.width()).step_by(S::LANES) {
                let x = S::load(y.as_ptr().add(row * PANEL + col));
                let whole = S::round(x);
                let power = S::sub(S::add(whole, S::load(reference.as_ptr().add(col))), down);
                let value = S::scale2(exp2_fraction::<S>(S::sub(x, whole)), power);
                S::store(features.as_mut_ptr().add(row * PANEL + col), value);
            }
        }
    }
    clear_tail(features, extent);
}

/// `features = y * scale[row]`.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn scale_rows<S: Simd>(y: &[S::E], extent: Extent, scale: &[S::E], features: &mut [S::E]) {
    extent.check(&[y.len(), features.len()]);
    assert!(scale.len() >= extent.rows);
    for (row, &scale) in scale.iter().enumerate().take(extent.rows) {
        // SAFETY: as in `writer_features`.
        unsafe {
            let by = S::splat(scale);
            for col in (0..extent.width()).step_by(S::LANES) {
                let at = row * PANEL + col;
                S::store(features.as_mut_ptr().add(at), S::mul(S::load(y.as_ptr().add(at)), by));
            }
        }
    }
}

/// `features = f(y) + epsilon` of an activation map; y is limited so that products of two features stay finite.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn activate<S: Simd>(y: &[S::E], extent: Extent, map: FeatureMap, epsilon: S::E, features: &mut [S::E]) {
    extent.check(&[y.len(), features.len()]);
    for row in 0..extent.rows {
        // SAFETY: as in `writer_features`.
        unsafe {
            for col in (0..extent.width()).step_by(S::LANES) {
                let at = row * PANEL + col;
                let x = S::min(S::load(y.as_ptr().add(at)), S::splat(S::E::LIMIT));
                let value = if map == FeatureMap::Elu1 { elu1::<S>(x) } else { S::max(x, S::splat(S::E::ZERO)) };
                S::store(features.as_mut_ptr().add(at), S::add(value, S::splat(epsilon)));
            }
        }
    }
    clear_tail(features, extent);
}

#[inline(always)]
unsafe fn elu1<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller guarantees the ISA.
    unsafe { S::select_positive(x, S::add(x, S::splat(S::E::ONE)), exp_negative::<S>(x)) }
}

/// e^min(x, 0).
#[inline(always)]
unsafe fn exp_negative<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller guarantees the ISA.
    unsafe {
        // Below twice the exponent range the result is 0 long since, and the reduction would overflow.
        let x = S::max(S::min(x, S::splat(S::E::ZERO)), S::splat(-S::E::TOP - S::E::TOP));
        let whole = S::round(S::mul(x, S::splat(S::E::from_f64(std::f64::consts::LOG2_E))));
        // ln 2 in two parts, so that the fraction keeps its last bits.
        let part = S::fma(whole, S::splat(-S::E::LN2_HIGH), x);
        let part = S::fma(whole, S::splat(-S::E::LN2_LOW), part);
        let f = S::mul(part, S::splat(S::E::from_f64(std::f64::consts::LOG2_E)));
        S::scale2(exp2_fraction::<S>(f), whole)
    }
}

/// `gradient = gradient * f'(y) * scale[row]` of an activation map.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn activation_gradient<S: Simd>(
    y: &[S::E],
    extent: Extent,
    map: FeatureMap,
    scale: &[S::E],
    gradient: &mut [S::E],
) {
    extent.check(&[y.len(), gradient.len()]);
    assert!(scale.len() >= extent.rows);
    for (row, &scale) in scale.iter().enumerate().take(extent.rows) {
        // SAFETY: as in `writer_features`.
        unsafe {
            let by = S::splat(scale);
            for col in (0..extent.width()).step_by(S::LANES) {
                let at = row * PANEL + col;
                let x = S::load(y.as_ptr().add(at));
                let g = S::mul(S::load(gradient.as_ptr().add(at)), by);
                let below =
                    if map == FeatureMap::Elu1 { S::mul(g, exp_negative::<S>(x)) } else { S::splat(S::E::ZERO) };
                S::store(gradient.as_mut_ptr().add(at), S::select_positive(x, g, below));
            }
        }
    }
}

/// `gradient = gradient * features`, and `sums[row]` lanes += its columns.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn times_features<S: Simd>(features: &[S::E], extent: Extent, gradient: &mut [S::E], sums: &mut [S::E]) {
    extent.check(&[features.len(), gradient.len()]);
    assert!(sums.len() >= extent.rows * PAD);
    for row in 0..extent.rows {
        // SAFETY: as in `writer_features`; `sums` holds PAD lanes a row.
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

/// `sums[row]` lanes += features * weights.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn dot_rows<S: Simd>(features: &[S::E], extent: Extent, weights: &[S::E], sums: &mut [S::E]) {
    extent.check(&[features.len()]);
    assert!(weights.len() >= extent.width() && sums.len() >= extent.rows * PAD);
    for row in 0..extent.rows {
        // SAFETY: as in `writer_features`; `sums` holds PAD lanes a row.
        unsafe {
            let mut sum = S::load(sums.as_ptr().add(row * PAD));
            for col in (0..extent.width()).step_by(S::LANES) {
                let f = S::load(features.as_ptr().add(row * PANEL + col));
                sum = S::fma(f, S::load(weights.as_ptr().add(col)), sum);
            }
            S::store(sums.as_mut_ptr().add(row * PAD), sum);
        }
    }
}

/// `totals[m] = totals[m] + sum over rows of features * weight[row]`, the sum started from 0.
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn add_rows<S: Simd>(features: &[S::E], extent: Extent, weight: &[S::E], step: usize, totals: &mut [S::E]) {
    extent.check(&[features.len()]);
    assert!(extent.rows == 0 || weight.len() > (extent.rows - 1) * step);
    assert!(totals.len() >= extent.width());
    for col in (0..extent.width()).step_by(S::LANES) {
        // SAFETY: as in `writer_features`; the weights' last index was checked.
        unsafe {
            let mut sum = S::splat(S::E::ZERO);
            for row in 0..extent.rows {
                let w = S::splat(*weight.get_unchecked(row * step));
                sum = S::fma(S::load(features.as_ptr().add(row * PANEL + col)), w, sum);
            }
            let at = totals.as_mut_ptr().add(col);
            S::store(at, S::add(S::load(at), sum));
        }
    }
}

/// Row r of `values` (`width` wide, `step` apart) times 2^power[r].
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn rescale_rows<S: Simd>(values: &mut [S::E], step: usize, width: usize, power: &[S::E]) {
    assert!(width.is_multiple_of(PAD) && (power.is_empty() || (power.len() - 1) * step + width <= values.len()));
    for (row, &k) in power.iter().enumerate() {
        if k == S::E::ZERO {
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

/// `to[c][r] = from[r][c]`; rows and columns are multiples of [`PAD`].
///
/// # Safety
/// The ISA of S.
#[inline(always)]
pub unsafe fn transpose<S: Simd>(
    from: &[S::E],
    from_row: usize,
    rows: usize,
    cols: usize,
    to: &mut [S::E],
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
                let mut block = [S::splat(S::E::ZERO); PAD];
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
