//! Blocks of a Haar-distributed rotation: the QR decomposition of a normal matrix, signs corrected.
//!
//! Householder's R has a negative diagonal as a rule, so plain Q is not Haar: its i-th row leans away from the i-th
//! axis. Multiplying each column of Q by the sign of R's diagonal entry makes it so.

use super::norm::{Norm, length};
use crate::error::Result;
use crate::memory::try_reserved;
use crate::rng::Stream;

/// Draws omega; `arrange` turns the orthonormal rows of each block into its directions.
pub(super) fn draw(
    head_dim: usize,
    norm: Norm,
    arrange: fn(usize, &mut [f64]),
    numbers: &mut Stream,
    omega: &mut [f64],
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let mut factors = try_reserved(head_dim)?;
    for block in omega.chunks_mut(head_dim.saturating_mul(head_dim)) {
        fill_haar_rows(head_dim, numbers, block, &mut factors, check)?;
        arrange(head_dim, block);
        for row in block.chunks_exact_mut(head_dim) {
            // Divided by its own length, which the reflections leave at 1 only up to rounding.
            let scale = norm.draw(head_dim, numbers) / length(row);
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
    Ok(())
}

/// Fills `block` with the first columns of a Haar-distributed rotation of `n` axes, each as a row. `factors` has room
/// for one entry per row.
fn fill_haar_rows(
    n: usize,
    numbers: &mut Stream,
    block: &mut [f64],
    factors: &mut Vec<(f64, f64)>,
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let rows = block.len() / n;
    for row in block.chunks_exact_mut(n) {
        check()?;
        row.iter_mut().for_each(|x| *x = numbers.normal());
    }
    factors.clear();
    for k in 0..rows {
        let (column, rest) = block[k * n..].split_at_mut(n);
        let x = &mut column[k..];
        let norm = length(x);
        // R's diagonal entry is -sign(x0) |x|; the reflection's vector is x - r e1 and stays where x was.
        let diagonal = if x[0] > 0.0 { -norm } else { norm };
        x[0] -= diagonal;
        let squares: f64 = x.iter().map(|x| x * x).sum();
        let beta = if squares > 0.0 { 2.0 / squares } else { 0.0 };
        for other in rest.chunks_exact_mut(n) {
            check()?;
            reflect(x, beta, &mut other[k..]);
        }
        factors.push((beta, if diagonal < 0.0 { -1.0 } else { 1.0 }));
    }
    // Column i of Q is the reflections 0 to i on the i-th axis. From the last column on, its own reflection is the
    // only one that its memory still has to hold.
    for i in (0..rows).rev() {
        let (earlier, column) = block[..(i + 1) * n].split_at_mut(i * n);
        let (beta, sign) = factors[i];
        let first = column[i];
        column[..i].fill(0.0);
        column[i..].iter_mut().for_each(|v| *v *= -beta * first * sign);
        column[i] += sign;
        for k in (0..i).rev() {
            check()?;
            reflect(&earlier[k * n + k..(k + 1) * n], factors[k].0, &mut column[k..]);
        }
    }
    Ok(())
}

/// `x - beta v (v.x)`.
fn reflect(v: &[f64], beta: f64, x: &mut [f64]) {
    let scale = beta * v.iter().zip(x.iter()).map(|(v, x)| v * x).sum::<f64>();
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= scale * v);
}
