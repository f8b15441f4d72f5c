//! Families whose features share one reference: a row's features are plain numbers times the row's own power of two.
//! `docs/algorithm.md`, sections 3 and 4.

use crate::layout::CHUNK;
use crate::ops::CpuElement;
use crate::rows::ChunkRows;
use std::ops::Range;

/// Raises the one reference of all features to the largest exponent of the visible rows.
pub fn raise_reference<T: CpuElement>(keys: &ChunkRows<T>, count: usize, reference: &mut [T]) {
    let mut top = reference[0];
    for row in (0..count).filter(|&row| keys.visible[row]) {
        let own = keys.log[row].round_even() - keys.shift[row];
        if own > top {
            top = own;
        }
    }
    reference.fill(top);
}

/// Exponents of query rows.
pub fn row_tops<T: CpuElement>(queries: &ChunkRows<T>, range: Range<usize>, reference: &[T], tops: &mut [T]) {
    for row in range {
        tops[row] = reference[0] + queries.log[row].round_even();
    }
}

/// Whether the reference lies too far above what a row has seen.
pub fn looks_too_far<T: CpuElement>(reference: T, seen: T) -> bool {
    seen != T::EMPTY_REFERENCE && reference - seen > T::MAX_LOOKAHEAD_BITS
}

/// Factors of key rows, `log` being that of a row's own factor: 0 where the row is padding.
pub fn key_factors<T: CpuElement>(
    keys: &ChunkRows<T>,
    count: usize,
    reference: T,
    own_factor: impl Fn(usize) -> (T, T),
) -> [T; CHUNK] {
    let mut factors = [T::ZERO; CHUNK];
    for row in (0..count).filter(|&row| keys.visible[row]) {
        let (mantissa, whole) = own_factor(row);
        factors[row] = mantissa * T::exp2_int(whole - keys.shift[row] - reference);
    }
    factors
}

/// Factors of query rows, those of a range first.
pub fn query_factors<T: CpuElement>(
    range: &Range<usize>,
    reference: T,
    exponent: &[T],
    own_factor: impl Fn(usize) -> (T, T),
) -> [T; CHUNK] {
    let mut factors = [T::ZERO; CHUNK];
    for (factor, row) in factors.iter_mut().zip(range.clone()) {
        let (mantissa, whole) = own_factor(row);
        *factor = mantissa * T::exp2_int(whole + reference - exponent[row]);
    }
    factors
}
