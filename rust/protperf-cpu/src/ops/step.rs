//! One token in one pass over a panel of `kv_state`: `docs/algorithm.md`, section 9.

use crate::layout::PAD;
use crate::simd::{Real, Simd};

/// Registers of columns that one pass keeps: values, sums, and a row of the state, within 16 registers.
const REGISTERS: usize = 4;

/// What one token adds to a panel of a state, and reads from it.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a, T> {
    /// What the sums of each feature are multiplied with first.
    pub factor: &'a [T],
    /// Features of the key.
    pub key: &'a [T],
    /// Features of the query.
    pub query: &'a [T],
    /// The value, followed by zeros up to a multiple of [`PAD`].
    pub value: &'a [T],
}

/// `kv_m = kv_m factor_m + key_m value` for every feature m `[features][padded_value]`, and `numerator += sum_m query_m kv_m`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn token<S: Simd>(token: &Token<'_, S::T>, state: &mut [S::T], numerator: &mut [S::T]) {
    let Token { factor, key, query, value } = *token;
    let (width, features) = (value.len(), state.len() / value.len().max(1));
    assert!(width.is_multiple_of(PAD) && state.len() == features * width && numerator.len() >= width);
    assert!(factor.len() >= features && key.len() >= features && query.len() >= features);
    let mut col = 0;
    while col < width {
        let registers = REGISTERS.min((width - col) / S::LANES);
        // SAFETY: the lengths were checked above; the width is a multiple of PAD, which LANES divides.
        unsafe {
            match registers {
                4.. => columns::<S, 4>(token, state, numerator, col, features),
                3 => columns::<S, 3>(token, state, numerator, col, features),
                2 => columns::<S, 2>(token, state, numerator, col, features),
                _ => columns::<S, 1>(token, state, numerator, col, features),
            }
        }
        col += registers * S::LANES;
    }
}

/// N registers of columns of all features.
///
/// # Safety
/// The processor must have the instruction set of S, and the lengths must be those that [`token`] checks.
#[inline(always)]
unsafe fn columns<S: Simd, const N: usize>(
    token: &Token<'_, S::T>,
    state: &mut [S::T],
    numerator: &mut [S::T],
    col: usize,
    features: usize,
) {
    let width = token.value.len();
    // SAFETY: passed on from the caller.
    unsafe {
        let mut values = [S::splat(S::T::ZERO); N];
        let mut sums = values;
        for n in 0..N {
            values[n] = S::load(token.value.as_ptr().add(col + n * S::LANES));
            sums[n] = S::load(numerator.as_ptr().add(col + n * S::LANES));
        }
        for m in 0..features {
            let row = state.as_mut_ptr().add(m * width + col);
            let factor = S::splat(*token.factor.get_unchecked(m));
            let key = S::splat(*token.key.get_unchecked(m));
            let query = S::splat(*token.query.get_unchecked(m));
            for n in 0..N {
                let at = row.add(n * S::LANES);
                let sum = S::fma(key, values[n], S::mul(S::load(at), factor));
                S::store(at, sum);
                sums[n] = S::fma(query, sum, sums[n]);
            }
        }
        for (n, &sum) in sums.iter().enumerate() {
            S::store(numerator.as_mut_ptr().add(col + n * S::LANES), sum);
        }
    }
}
