//! How each map makes the parameters of a head from its omega, and carries their gradient back.
//!
//! An exponential map is a [`Recipe`] here and a row in the registry; it needs no kernel.

use super::parameters::Parameters;
use crate::error::Result;
use crate::memory::{try_copied, try_filled};

/// From omega `[M,D]` and D to the parameters; fails where there is no memory for them.
type MakeParameters = fn(&[f64], usize) -> Result<Parameters<Vec<f64>>>;
/// From omega, D and the gradient of the parameters: adds to the gradient of omega.
type PullBack = fn(&[f64], usize, &Parameters<Vec<f64>>, &mut [f64]);

/// How a map makes its parameters from the omega `[M,D]` of a head.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// P / M: projections that a row of omega makes.
    pub projections_per_row: usize,
    /// The parameters.
    pub parameters: MakeParameters,
    /// The gradient of omega that the gradient of the parameters gives.
    pub pull_back: PullBack,
}

/// Every row of omega as it is.
pub const ROWS: Recipe = Recipe {
    projections_per_row: 1,
    parameters: |omega, _| Ok(Parameters::of_directions(try_copied(omega)?)),
    pull_back: |_, _, gradient, domega| {
        domega.iter_mut().zip(&gradient.query_directions).for_each(|(to, from)| *to += from);
    },
};

/// Every row of omega, and no norm of the keys: g = 0.
pub const FLAT: Recipe = Recipe { parameters: |omega, head_dim| with_quadratic(omega, head_dim, 0.0), ..ROWS };

/// Every row of omega, and twice the norm of the keys: exp(x . y) exp(-|y|^2/2), which is the Gaussian kernel but for a
/// factor of the query.
pub const STEEP: Recipe = Recipe { parameters: |omega, head_dim| with_quadratic(omega, head_dim, 2.0), ..ROWS };

/// Every row of omega, then the opposite of every row.
pub const OPPOSITES: Recipe = Recipe {
    projections_per_row: 2,
    parameters: |omega, _| {
        let mut directions = try_filled(2 * omega.len(), 0.0)?;
        let (plus, minus) = directions.split_at_mut(omega.len());
        plus.copy_from_slice(omega);
        minus.iter_mut().zip(omega).for_each(|(to, w)| *to = -w);
        Ok(Parameters::of_directions(directions))
    },
    pull_back: |omega, _, gradient, domega| {
        let (plus, minus) = gradient.query_directions.split_at(omega.len());
        for ((to, plus), minus) in domega.iter_mut().zip(plus).zip(minus) {
            *to += plus - minus;
        }
    },
};

/// Every row of omega with its norm set to sqrt(D); a row of zeros stays one.
pub const SPHERE: Recipe = Recipe {
    projections_per_row: 1,
    parameters: |omega, head_dim| {
        let radius = libm::sqrt(head_dim as f64);
        let mut directions = try_copied(omega)?;
        for row in directions.chunks_exact_mut(head_dim.max(1)) {
            let norm = row_norm(row);
            let scale = if norm > 0.0 { radius / norm } else { 0.0 };
            row.iter_mut().for_each(|w| *w *= scale);
        }
        Ok(Parameters::of_directions(directions))
    },
    pull_back: |omega, head_dim, gradient, domega| {
        let (radius, width) = (libm::sqrt(head_dim as f64), head_dim.max(1));
        let rows = omega.chunks_exact(width).zip(gradient.query_directions.chunks_exact(width));
        for ((row, dw), to) in rows.zip(domega.chunks_exact_mut(width)) {
            let norm = row_norm(row);
            if norm == 0.0 {
                continue;
            }
            // Only what is tangent to the sphere moves the direction.
            let along = row.iter().zip(dw).map(|(w, g)| w * g).sum::<f64>() / (norm * norm);
            for ((to, g), w) in to.iter_mut().zip(dw).zip(row) {
                *to += radius / norm * (g - along * w);
            }
        }
    },
};

fn with_quadratic(omega: &[f64], head_dim: usize, g: f64) -> Result<Parameters<Vec<f64>>> {
    let key_quadratic = Some(try_filled(head_dim, g)?);
    Ok(Parameters { key_quadratic, ..Parameters::of_directions(try_copied(omega)?) })
}

fn row_norm(row: &[f64]) -> f64 {
    // Checked first: `max` below would drop a NaN, and a row of nothing else would have norm 0.
    if row.iter().any(|w| !w.is_finite()) {
        return f64::NAN;
    }
    // Scaled by the largest entry, so that neither tiny nor huge rows lose their norm.
    let largest = row.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    largest * libm::sqrt(row.iter().map(|w| (w / largest) * (w / largest)).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_on_the_sphere_have_norm_sqrt_d_and_a_tangent_gradient() {
        let omega = [3.0, 4.0, 0.1, -0.2];
        let found = (SPHERE.parameters)(&omega, 2).unwrap();
        for row in found.query_directions.chunks(2) {
            assert!((row_norm(row) - 2f64.sqrt()).abs() < 1e-14);
        }
        let mut domega = [0.0; 4];
        (SPHERE.pull_back)(&omega, 2, &Parameters::of_directions(vec![1.0, 2.0, -0.5, 0.25]), &mut domega);
        for (row, d) in omega.chunks(2).zip(domega.chunks(2)) {
            assert!((row[0] * d[0] + row[1] * d[1]).abs() < 1e-13);
        }
    }

    #[test]
    fn a_row_of_zeros_has_no_direction_and_no_gradient() {
        let found = (SPHERE.parameters)(&[0.0, 0.0], 2).unwrap();
        assert_eq!(found.query_directions, [0.0, 0.0]);
        let mut domega = [0.0; 2];
        (SPHERE.pull_back)(&[0.0, 0.0], 2, &Parameters::of_directions(vec![1.0, 2.0]), &mut domega);
        assert_eq!(domega, [0.0, 0.0]);
    }

    #[test]
    fn a_row_that_is_not_finite_has_a_gradient_that_is_nan() {
        for row in [[f64::NAN, f64::NAN], [f64::NAN, 1.0], [f64::INFINITY, 1.0]] {
            let mut domega = [0.0; 2];
            (SPHERE.pull_back)(&row, 2, &Parameters::of_directions(vec![1.0, 2.0]), &mut domega);
            assert!(domega.iter().all(|x| x.is_nan()), "{row:?}");
        }
    }
}
