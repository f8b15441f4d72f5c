//! Blocks of a Haar-distributed rotation: the QR decomposition of a normal matrix, signs corrected.
//!
//! Householder's R has a negative diagonal as a rule, so plain Q is not Haar: its i-th row leans away from the i-th
//! axis. Multiplying each column of Q by the sign of R's diagonal entry makes it so.

use super::{Norm, length};
use crate::rng::Stream;

pub(super) fn draw(num_features: usize, head_dim: usize, norm: Norm, numbers: &mut Stream, omega: &mut Vec<f64>) {
    let mut left = num_features;
    while left > 0 {
        let rows = left.min(head_dim);
        // Row i of the block is column i of Q.
        let rotation = haar_columns(head_dim, numbers);
        for column in rotation.chunks_exact(head_dim).take(rows) {
            let norm = match norm {
                Norm::SqrtDim => libm::sqrt(head_dim as f64),
                Norm::Chi => {
                    let normal: Vec<f64> = (0..head_dim).map(|_| numbers.normal()).collect();
                    length(&normal)
                }
            };
            omega.extend(column.iter().map(|x| x * norm));
        }
        left -= rows;
    }
}

/// The columns of a Haar-distributed rotation, one after another.
fn haar_columns(n: usize, numbers: &mut Stream) -> Vec<f64> {
    // Column-major normal matrix; reflections are kept below the diagonal, as usual.
    let mut a: Vec<f64> = (0..n * n).map(|_| numbers.normal()).collect();
    let (mut betas, mut signs) = (vec![0.0; n], vec![1.0; n]);
    for k in 0..n {
        let (column, rest) = a[k * n..].split_at_mut(n);
        let x = &mut column[k..];
        let norm = length(x);
        // R's diagonal entry is -sign(x0) |x|; the reflection vector is x - r e1.
        let diagonal = if x[0] > 0.0 { -norm } else { norm };
        signs[k] = if diagonal < 0.0 { -1.0 } else { 1.0 };
        x[0] -= diagonal;
        let squares: f64 = x.iter().map(|x| x * x).sum();
        betas[k] = if squares > 0.0 { 2.0 / squares } else { 0.0 };
        for other in rest.chunks_exact_mut(n) {
            reflect(x, betas[k], &mut other[k..]);
        }
    }
    // Q e_i by applying the reflections backwards to each unit vector.
    let mut q = vec![0.0; n * n];
    for (i, column) in q.chunks_exact_mut(n).enumerate() {
        column[i] = signs[i];
        for k in (0..n).rev() {
            reflect(&a[k * n + k..(k + 1) * n], betas[k], &mut column[k..]);
        }
    }
    q
}

/// `x - beta v (v.x)`.
fn reflect(v: &[f64], beta: f64, x: &mut [f64]) {
    let scale = beta * v.iter().zip(x.iter()).map(|(v, x)| v * x).sum::<f64>();
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= scale * v);
}
