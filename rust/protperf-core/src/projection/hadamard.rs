//! Rows of products of Hadamard matrices and random signs, H D1 H D2 H D3: made in O(D log D) each, not O(D^2).
//!
//! H is the normalised Hadamard matrix of the next power of two, so rows are orthogonal where D is one. They are only
//! nearly uniform on the sphere, and estimates are off by a little for it; rows that are cut to D are nearly orthogonal.
//!
//! Source: Yu et al. 2016, arXiv:1610.09072.

use super::norm::{Norm, length};
use crate::error::Result;
use crate::memory::try_filled;
use crate::rng::Stream;

pub(super) fn draw(
    head_dim: usize,
    norm: Norm,
    numbers: &mut Stream,
    omega: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let size = head_dim.next_power_of_two();
    let (mut signs, mut row) = (try_filled(3 * size, 0.0)?, try_filled(size, 0.0)?);
    for block in omega.chunks_mut(size.saturating_mul(head_dim)) {
        signs.iter_mut().for_each(|sign| *sign = 1f64.copysign(numbers.normal()));
        for (at, to) in block.chunks_exact_mut(head_dim).enumerate() {
            check()?;
            row.fill(0.0);
            row[at] = 1.0;
            for signs in signs.chunks_exact(size) {
                transform(&mut row);
                row.iter_mut().zip(signs).for_each(|(x, sign)| *x *= sign);
            }
            let scale = norm.draw(head_dim, numbers) / length(&row[..head_dim]);
            to.iter_mut().zip(&row).for_each(|(to, x)| *to = scale * x);
        }
    }
    Ok(())
}

/// The Hadamard matrix times x, without its factor of normalisation.
fn transform(x: &mut [f64]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}
