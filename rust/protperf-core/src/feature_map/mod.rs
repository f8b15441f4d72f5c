//! The one registry of feature maps: one row per map.
//!
//! A row names the family that computes the map, its default epsilon, and the recipe that makes its parameters from
//! omega. A new exponential map is a recipe and a row; a new activation map is a formula in [`activation`] (and in
//! each backend) and a row.

mod activation;
mod parameters;
mod recipe;

use crate::error::{Error, Result};
pub use activation::{Activation, GELU};
pub use parameters::Parameters;
pub use recipe::Recipe;

/// How projections become features, and which reference keeps them in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `exp(w^q.x + c^q)`, `exp(w^k.y + c^k - h(y))`; one running maximum per feature, base 2, exact.
    Exponential,
    /// `f(w.x) + kernel_epsilon`; never overflows, a zero denominator gives 0.
    Activation(Activation),
    /// `[cos, sin](w.x)`, `[cos, sin](w.y) exp(|y|^2/2)`; one running maximum of `|y|^2/2`.
    Trigonometric,
}

impl Family {
    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Family::Exponential => "exponential",
            Family::Activation(_) => "activation",
            Family::Trigonometric => "trigonometric",
        }
    }

    /// F / P: features that a projection makes.
    pub fn features_per_projection(self) -> usize {
        match self {
            Family::Exponential | Family::Activation(_) => 1,
            Family::Trigonometric => 2,
        }
    }
}

/// What the registry knows about a map.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The public name.
    pub name: &'static str,
    /// The family that computes the map.
    pub family: Family,
    /// What is added to every feature unless the caller says otherwise; 0 outside the activation maps.
    pub default_epsilon: f64,
    /// How its parameters are made from omega.
    pub recipe: Recipe,
}

impl Row {
    const fn exponential(name: &'static str, recipe: Recipe) -> Self {
        Row { name, family: Family::Exponential, default_epsilon: 0.0, recipe }
    }

    const fn activation(name: &'static str, activation: Activation, default_epsilon: f64) -> Self {
        Row { name, family: Family::Activation(activation), default_epsilon, recipe: recipe::ROWS }
    }

    const fn trigonometric(name: &'static str, recipe: Recipe) -> Self {
        Row { name, family: Family::Trigonometric, default_epsilon: 0.0, recipe }
    }
}

/// From one row per map: the enum, the list of all maps, and the function from a map to its row.
macro_rules! registry {
    ($($(#[$doc:meta])* $map:ident = $row:expr;)*) => {
        /// The feature maps by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FeatureMap {
            $($(#[$doc])* $map,)*
        }

        impl FeatureMap {
            /// Every map, in the order of the public list.
            pub const ALL: [FeatureMap; [$(FeatureMap::$map),*].len()] = [$(FeatureMap::$map),*];

            /// What the registry knows about the map.
            pub const fn row(self) -> Row {
                match self {
                    $(FeatureMap::$map => $row,)*
                }
            }
        }
    };
}

registry! {
    /// FAVOR+ (Choromanski et al. 2021, Lemma 1).
    Positive = Row::exponential("positive", recipe::ROWS);
    /// FAVOR+ with every direction and its opposite.
    Hyperbolic = Row::exponential("hyperbolic", recipe::OPPOSITES);
    /// FAVOR+ with all norms of omega set to sqrt(D) (Choromanski et al. 2021, Theorem 1).
    Smreg = Row::exponential("smreg", recipe::SPHERE);
    /// max(0, x), the paper's generalized attention.
    Relu = Row::activation("relu", Activation::Relu, 1e-3);
    /// elu(x) + 1 (Katharopoulos et al. 2020).
    Elu1 = Row::activation("elu1", Activation::Elu1, 0.0);
    /// Sine and cosine features (Rahimi and Recht 2007).
    Trigonometric = Row::trigonometric("trigonometric", recipe::ROWS);
    /// The Gaussian kernel exp(-|x - y|^2/2) by positive features.
    Gaussian = Row::exponential("gaussian", recipe::STEEP);
    /// The Gaussian kernel by sines and cosines (Rahimi and Recht 2007).
    Fourier = Row::trigonometric("fourier", recipe::FLAT);
    /// exp(u), without the norm that would make it an estimate of softmax.
    Exp = Row::exponential("exp", recipe::FLAT);
    /// u: attention by the inner product of projections.
    Identity = Row::activation("identity", Activation::Identity, 0.0);
    /// |u|.
    Abs = Row::activation("abs", Activation::Abs, 0.0);
    /// max(0, u)^2.
    Relu2 = Row::activation("relu2", Activation::Relu2, 0.0);
    /// u^2.
    Square = Row::activation("square", Activation::Square, 0.0);
    /// 1 / (1 + exp(-u)).
    Sigmoid = Row::activation("sigmoid", Activation::Sigmoid, 0.0);
    /// tanh(u).
    Tanh = Row::activation("tanh", Activation::Tanh, 0.0);
    /// gelu(u), in the form with tanh.
    Gelu = Row::activation("gelu", Activation::Gelu, 0.0);
    /// cos(u).
    Cos = Row::activation("cos", Activation::Cos, 0.0);
}

impl FeatureMap {
    /// The public name.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The map of a public name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] that lists the names there are.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|map| map.name() == name);
        found.ok_or_else(|| Error::unknown_name("feature_map", name, &Self::ALL.map(Self::name)))
    }

    /// The family that computes the map.
    pub fn family(self) -> Family {
        self.row().family
    }

    /// What is added to every feature unless the caller says otherwise.
    pub fn default_epsilon(self) -> f64 {
        self.row().default_epsilon
    }

    /// P, the projections computed for `num_features` rows of omega.
    pub fn num_projections(self, num_features: usize) -> usize {
        num_features * self.row().recipe.projections_per_row
    }

    /// F, the width of phi(x), for `num_features` rows of omega.
    pub fn feature_dim(self, num_features: usize) -> usize {
        self.num_projections(num_features) * self.family().features_per_projection()
    }

    /// The parameters that this map makes of the omega of a head.
    ///
    /// # Shapes
    /// omega `[M,D]`; P is [`FeatureMap::num_projections`] of M.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn parameters(self, omega: &[f64], head_dim: usize) -> Result<Parameters<Vec<f64>>> {
        (self.row().recipe.parameters)(omega, head_dim)
    }

    /// Adds to domega `[M,D]` what the gradient of [`FeatureMap::parameters`] gives.
    pub fn add_omega_gradient(
        self,
        omega: &[f64],
        head_dim: usize,
        gradient: &Parameters<Vec<f64>>,
        domega: &mut [f64],
    ) {
        (self.row().recipe.pull_back)(omega, head_dim, gradient, domega);
    }
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
    fn only_activation_maps_have_an_epsilon() {
        for map in FeatureMap::ALL {
            let row = map.row();
            assert!(row.default_epsilon == 0.0 || matches!(row.family, Family::Activation(_)), "{}", row.name);
        }
    }

    #[test]
    fn parameters_have_the_widths_that_the_registry_promises() {
        let omega: Vec<f64> = (0..15).map(|i| f64::from(i) - 6.5).collect();
        for map in FeatureMap::ALL {
            let found = map.parameters(&omega, 3).unwrap();
            assert_eq!(found.query_directions.len(), map.num_projections(5) * 3, "{}", map.name());
            assert_eq!(found.of_keys().len(), map.num_projections(5) * 3, "{}", map.name());
        }
    }
}
