//! Independent normal rows.

use super::norm::{Norm, length};
use crate::error::Result;
use crate::rng::Stream;

pub(super) fn draw(
    head_dim: usize,
    norm: Norm,
    numbers: &mut Stream,
    omega: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    for row in omega.chunks_exact_mut(head_dim) {
        check()?;
        row.iter_mut().for_each(|x| *x = numbers.normal());
        if norm == Norm::SqrtDim {
            let scale = libm::sqrt(head_dim as f64) / length(row);
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
    Ok(())
}
