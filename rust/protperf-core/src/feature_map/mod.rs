//! The one registry of feature maps.
//!
//! A map is a row of [`FeatureMap`] and the parameters it draws from omega. Exponential maps are log-linear, so
//! each is only a matrix of directions (`weights`): with scaled inputs x = q D^-1/4 and y = k D^-1/4 the features
//! are `exp(w_m . x)` and `exp(w_m . y - |y|^2 / 2)`. A new exponential map needs no kernel, only its rows here.

use crate::error::{Error, Result};

/// How projections become features, and which reference keeps them in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `exp(w.x)`, `exp(w.y - |y|^2/2)`; one running maximum per feature, base 2, exact.
    Exponential,
    /// `f(w.x) + kernel_epsilon`; never overflows, a zero denominator gives 0.
    Activation,
    /// `[cos, sin](w.x)`, `[cos, sin](w.y) exp(|y|^2/2)`; one running maximum of `|y|^2/2`.
    Trigonometric,
}

/// The feature maps by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeatureMap {
    /// FAVOR+ (Choromanski et al. 2021, Lemma 1).
    Positive,
    /// FAVOR+ with every direction and its opposite.
    Hyperbolic,
    /// FAVOR+ with all norms of omega set to sqrt(D) (Choromanski et al. 2021, Theorem 1).
    Smreg,
    /// max(0, x), the paper's generalized attention.
    Relu,
    /// elu(x) + 1 (Katharopoulos et al. 2020).
    Elu1,
    /// sine and cosine features (Rahimi and Recht 2007).
    Trigonometric,
}

impl FeatureMap {
    /// Every map, in the order of the public list.
    pub const ALL: [FeatureMap; 6] = [
        FeatureMap::Positive,
        FeatureMap::Hyperbolic,
        FeatureMap::Smreg,
        FeatureMap::Relu,
        FeatureMap::Elu1,
        FeatureMap::Trigonometric,
    ];

    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            FeatureMap::Positive => "positive",
            FeatureMap::Hyperbolic => "hyperbolic",
            FeatureMap::Smreg => "smreg",
            FeatureMap::Relu => "relu",
            FeatureMap::Elu1 => "elu1",
            FeatureMap::Trigonometric => "trigonometric",
        }
    }

    /// The map of a public name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] that lists the names there are.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|map| map.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::option("feature_map", format!("{name:?} is unknown; choose one of {names}"))
        })
    }

    /// The family that computes the map.
    pub fn family(self) -> Family {
        match self {
            FeatureMap::Positive | FeatureMap::Hyperbolic | FeatureMap::Smreg => Family::Exponential,
            FeatureMap::Relu | FeatureMap::Elu1 => Family::Activation,
            FeatureMap::Trigonometric => Family::Trigonometric,
        }
    }

    /// What is added to every feature unless the caller says otherwise.
    pub fn default_epsilon(self) -> f64 {
        if self == FeatureMap::Relu { 1e-3 } else { 0.0 }
    }

    /// Projections computed for each row of omega: 2 where its opposite is used too.
    fn projections_per_row(self) -> usize {
        if self == FeatureMap::Hyperbolic { 2 } else { 1 }
    }

    /// Rows of [`FeatureMap::weights`] for `num_features` rows of omega.
    pub fn num_projections(self, num_features: usize) -> usize {
        num_features * self.projections_per_row()
    }

    /// F, the width of phi(x), for `num_features` rows of omega.
    pub fn feature_dim(self, num_features: usize) -> usize {
        match self {
            FeatureMap::Hyperbolic | FeatureMap::Trigonometric => 2 * num_features,
            _ => num_features,
        }
    }

    /// The directions `w` that this map makes of omega, unscaled.
    ///
    /// # Shapes
    /// omega `[M,D]`; returns `[num_projections(M), D]`.
    pub fn weights(self, omega: &[f64], head_dim: usize) -> Vec<f64> {
        let mut weights = vec![0.0; omega.len() * self.projections_per_row()];
        self.write_weights(omega, head_dim, &mut weights);
        weights
    }

    /// Writes the directions into memory of the caller's, which may have been short of it.
    ///
    /// # Shapes
    /// omega `[M,D]`, weights `[num_projections(M), D]`.
    ///
    /// # Panics
    /// Where the sizes disagree.
    pub fn write_weights(self, omega: &[f64], head_dim: usize, weights: &mut [f64]) {
        let (plus, minus) = weights.split_at_mut(omega.len());
        plus.copy_from_slice(omega);
        match self {
            FeatureMap::Hyperbolic => minus.iter_mut().zip(omega).for_each(|(to, w)| *to = -w),
            FeatureMap::Smreg => {
                let radius = libm::sqrt(head_dim as f64);
                for row in plus.chunks_exact_mut(head_dim.max(1)) {
                    let norm = row_norm(row);
                    let scale = if norm > 0.0 { radius / norm } else { 0.0 };
                    row.iter_mut().for_each(|w| *w *= scale);
                }
            }
            _ => {}
        }
    }

    /// The gradient of omega from the gradient of [`FeatureMap::weights`].
    ///
    /// # Shapes
    /// omega `[M,D]`, dweights `[num_projections(M), D]`; adds to domega `[M,D]`.
    pub fn add_omega_gradient(self, omega: &[f64], head_dim: usize, dweights: &[f64], domega: &mut [f64]) {
        match self {
            FeatureMap::Hyperbolic => {
                let (plus, minus) = dweights.split_at(omega.len());
                for ((d, p), m) in domega.iter_mut().zip(plus).zip(minus) {
                    *d += p - m;
                }
            }
            FeatureMap::Smreg => {
                let radius = libm::sqrt(head_dim as f64);
                let rows = omega.chunks_exact(head_dim.max(1)).zip(dweights.chunks_exact(head_dim.max(1)));
                for ((row, dw), d) in rows.zip(domega.chunks_exact_mut(head_dim.max(1))) {
                    let norm = row_norm(row);
                    if norm == 0.0 {
                        continue;
                    }
                    let along = row.iter().zip(dw).map(|(w, g)| w * g).sum::<f64>() / (norm * norm);
                    for ((d, g), w) in d.iter_mut().zip(dw).zip(row) {
                        *d += radius / norm * (g - along * w);
                    }
                }
            }
            _ => {
                for (d, g) in domega.iter_mut().zip(dweights) {
                    *d += g;
                }
            }
        }
    }
}

fn row_norm(row: &[f64]) -> f64 {
    // Scaled by the largest entry, so that neither tiny nor huge rows lose their norm.
    let largest = row.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return if largest == 0.0 { 0.0 } else { f64::NAN };
    }
    largest * libm::sqrt(row.iter().map(|w| (w / largest) * (w / largest)).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_map() {
        for map in FeatureMap::ALL {
            assert_eq!(FeatureMap::from_name(map.name()), Ok(map));
        }
        assert!(FeatureMap::from_name("softmax").is_err());
    }

    #[test]
    fn smreg_rows_have_norm_sqrt_d_and_a_tangent_gradient() {
        let omega = [3.0, 4.0, 0.1, -0.2];
        let weights = FeatureMap::Smreg.weights(&omega, 2);
        for row in weights.chunks(2) {
            assert!((row_norm(row) - 2f64.sqrt()).abs() < 1e-14);
        }
        let mut domega = [0.0; 4];
        FeatureMap::Smreg.add_omega_gradient(&omega, 2, &[1.0, 2.0, -0.5, 0.25], &mut domega);
        for (row, d) in omega.chunks(2).zip(domega.chunks(2)) {
            assert!((row[0] * d[0] + row[1] * d[1]).abs() < 1e-13);
        }
    }
}
