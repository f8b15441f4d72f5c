//! Independent normal rows.

use super::{Norm, length};
use crate::rng::Stream;

pub(super) fn draw(num_features: usize, head_dim: usize, norm: Norm, numbers: &mut Stream, omega: &mut Vec<f64>) {
    for _ in 0..num_features {
        let start = omega.len();
        omega.extend((0..head_dim).map(|_| numbers.normal()));
        if norm == Norm::SqrtDim {
            let row = &mut omega[start..];
            let scale = libm::sqrt(head_dim as f64) / length(row);
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
}
