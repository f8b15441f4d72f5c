//! Queries or keys of one token: every head scaled to a length of its own, and turned by the token's position.
//!
//! Pairs (x[i], x[i + D/2]) are rotated by the angles of Su et al. 2021, arXiv:2104.09864.

use super::row::dot;
use crate::simd::{Real, Simd};
use protperf_core::Element;

/// Vectors shorter than this are scaled as if they were this long, as torch's `normalize` does.
const SHORTEST: f64 = 1e-12;

/// `x = length[head] * rotate(x / |x|)` for every head of a row; 1 / |x| goes to `inverses`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn unit_rotate<S: Simd>(
    x: &mut [S::T],
    lengths: &[S::T],
    cosines: &[S::T],
    sines: &[S::T],
    inverses: &mut [S::T],
) {
    let half = cosines.len();
    assert!(half > 0 && sines.len() == half && inverses.len() == lengths.len());
    assert!(x.len() == lengths.len() * 2 * half);
    let heads = x.chunks_exact_mut(2 * half).zip(lengths).zip(inverses);
    for ((head, &length), inverse) in heads {
        let norm = dot(head, head).sqrt();
        let shortest = S::T::from_f64(SHORTEST);
        *inverse = S::T::ONE / if norm > shortest { norm } else { shortest };
        let by = *inverse * length;
        let (first, second) = head.split_at_mut(half);
        for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            let (x, y) = (*a * by, *b * by);
            *a = x * c - y * s;
            *b = x * s + y * c;
        }
    }
}

/// The gradient of [`unit_rotate`]: `y` is its result; `grad` arrived there and becomes the gradient of the input. Adds
/// the gradient with respect to `2 log(length)` of every head to `dlog`.
///
/// With u = R^T y / length the unit vector, `dx = (length R^T grad - u (y . grad)) / |x|`.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn unit_rotate_gradient<S: Simd>(
    y: &[S::T],
    lengths: &[S::T],
    cosines: &[S::T],
    sines: &[S::T],
    inverses: &[S::T],
    grad: &mut [S::T],
    dlog: &mut [S::T],
) {
    let half = cosines.len();
    assert!(half > 0 && sines.len() == half && inverses.len() == lengths.len() && dlog.len() == lengths.len());
    assert!(y.len() == lengths.len() * 2 * half && grad.len() == y.len());
    let heads = y.chunks_exact(2 * half).zip(grad.chunks_exact_mut(2 * half));
    for (((y, grad), (&length, &inverse)), dlog) in heads.zip(lengths.iter().zip(inverses)).zip(dlog) {
        let along = dot(y, grad);
        *dlog += S::T::from_f64(0.5) * along;
        // A vector that counts as longer than it is has no length of its own to divide by.
        let is_short = inverse >= S::T::from_f64(1.0 / SHORTEST);
        let back = if is_short { S::T::ZERO } else { along / length * inverse };
        let by = length * inverse;
        let (first, second) = grad.split_at_mut(half);
        let (y_first, y_second) = y.split_at(half);
        let pairs = first.iter_mut().zip(second).zip(y_first.iter().zip(y_second));
        for (((a, b), (&p, &q)), (&c, &s)) in pairs.zip(cosines.iter().zip(sines)) {
            let (x, z) = (*a * by - p * back, *b * by - q * back);
            *a = x * c + z * s;
            *b = z * c - x * s;
        }
    }
}
