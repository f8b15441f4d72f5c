//! Dropout of one row: which numbers are dropped is a function of a key and of their place, so that the backward pass
//! drops the same ones and nothing is stored.

use crate::simd::{Real, Simd};

/// Two rounds of multiplication and shift, by constants that were found by search for the least bias.
///
/// Source: the family of hash functions in Wellons 2018, "Prospecting for hash functions".
#[inline(always)]
fn mixed(x: u32, key: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad);
    let x = (x ^ key ^ (x >> 15)).wrapping_mul(0x735a_2d97);
    x ^ (x >> 15)
}

/// Zeroes each number whose hash lies below `threshold` (of 2^32) and multiplies the others by `scale`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn dropout<S: Simd>(x: &mut [S::T], key: u64, threshold: u32, scale: S::T) {
    let (low, high) = (key as u32, (key >> 32) as u32);
    for (i, x) in x.iter_mut().enumerate() {
        let is_dropped = mixed((i as u32).wrapping_mul(0x9e37_79b1) ^ low, high) < threshold;
        *x = if is_dropped { S::T::ZERO } else { *x * scale };
    }
}
