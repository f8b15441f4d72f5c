//! The one registry of feature maps, so that a new map is an edit of this file (and of one in each backend that has to
//! know its formula).
//!
//! One row per map names the family that computes it, its default epsilon, and the recipe that makes its parameters from
//! omega. An exponential map is a row and a [`Recipe`] below it: parameters, so no kernel knows it. An activation map is a
//! row and a function with its slope, a variant of [`Activation`].

mod parameters;

use crate::error::{Error, Result};
use crate::memory::{try_copied, try_filled};
pub use parameters::Parameters;

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
pub struct MapRow {
    /// The public name.
    pub name: &'static str,
    /// The family that computes the map.
    pub family: Family,
    /// What is added to every feature unless the caller says otherwise; 0 outside the activation maps.
    pub default_epsilon: f64,
    /// How its parameters are made from omega.
    pub recipe: Recipe,
}

impl MapRow {
    const fn exponential(name: &'static str, recipe: Recipe) -> Self {
        MapRow { name, family: Family::Exponential, default_epsilon: 0.0, recipe }
    }

    const fn activation(name: &'static str, activation: Activation, default_epsilon: f64) -> Self {
        MapRow { name, family: Family::Activation(activation), default_epsilon, recipe: ROWS }
    }

    const fn trigonometric(name: &'static str, recipe: Recipe) -> Self {
        MapRow { name, family: Family::Trigonometric, default_epsilon: 0.0, recipe }
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
            pub const fn row(self) -> MapRow {
                match self {
                    $(FeatureMap::$map => $row,)*
                }
            }
        }
    };
}

registry! {
    /// FAVOR+ (Choromanski et al. 2021, Lemma 1).
    Positive = MapRow::exponential("positive", ROWS);
    /// FAVOR+ with every direction and its opposite.
    Hyperbolic = MapRow::exponential("hyperbolic", OPPOSITES);
    /// FAVOR+ with all norms of omega set to sqrt(D) (Choromanski et al. 2021, Theorem 1).
    Smreg = MapRow::exponential("smreg", SPHERE);
    /// max(0, x), the paper's generalized attention.
    Relu = MapRow::activation("relu", Activation::Relu, 1e-3);
    /// elu(x) + 1 (Katharopoulos et al. 2020).
    Elu1 = MapRow::activation("elu1", Activation::Elu1, 0.0);
    /// Sine and cosine features (Rahimi and Recht 2007).
    Trigonometric = MapRow::trigonometric("trigonometric", ROWS);
    /// The Gaussian kernel exp(-|x - y|^2/2) by positive features.
    Gaussian = MapRow::exponential("gaussian", STEEP);
    /// The Gaussian kernel by sines and cosines (Rahimi and Recht 2007).
    Fourier = MapRow::trigonometric("fourier", FLAT);
    /// exp(u), without the norm that would make it an estimate of softmax.
    Exp = MapRow::exponential("exp", FLAT);
    /// u: attention by the inner product of projections.
    Identity = MapRow::activation("identity", Activation::Identity, 0.0);
    /// |u|.
    Abs = MapRow::activation("abs", Activation::Abs, 0.0);
    /// max(0, u)^2.
    Relu2 = MapRow::activation("relu2", Activation::Relu2, 0.0);
    /// u^2.
    Square = MapRow::activation("square", Activation::Square, 0.0);
    /// 1 / (1 + exp(-u)).
    Sigmoid = MapRow::activation("sigmoid", Activation::Sigmoid, 0.0);
    /// tanh(u).
    Tanh = MapRow::activation("tanh", Activation::Tanh, 0.0);
    /// gelu(u), in the form with tanh.
    Gelu = MapRow::activation("gelu", Activation::Gelu, 0.0);
    /// cos(u).
    Cos = MapRow::activation("cos", Activation::Cos, 0.0);
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

/// The functions f that activation maps apply to projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// max(0, u).
    Relu,
    /// elu(u) + 1: u + 1 above 0, exp(u) below.
    Elu1,
    /// u.
    Identity,
    /// |u|.
    Abs,
    /// max(0, u)^2.
    Relu2,
    /// u^2.
    Square,
    /// 1 / (1 + exp(-u)).
    Sigmoid,
    /// tanh(u).
    Tanh,
    /// u sigmoid(2 sqrt(2/pi) (u + 0.044715 u^3)), the form with tanh.
    Gelu,
    /// cos(u).
    Cos,
}

/// sqrt(8 / pi), and the share of u^3, of [`Activation::Gelu`].
pub const GELU: [f64; 2] = [1.595_769_121_605_730_9, 0.044_715];

impl Activation {
    /// f(u); NaN for NaN.
    pub fn value(self, u: f64) -> f64 {
        match self {
            // NaN stays NaN: `max` would drop it.
            Activation::Relu => {
                if u < 0.0 {
                    0.0
                } else {
                    u
                }
            }
            Activation::Elu1 => {
                if u > 0.0 {
                    u + 1.0
                } else {
                    libm::exp(u)
                }
            }
            Activation::Identity => u,
            Activation::Abs => u.abs(),
            Activation::Relu2 => {
                let positive = Activation::Relu.value(u);
                positive * positive
            }
            Activation::Square => u * u,
            Activation::Sigmoid => sigmoid(u),
            Activation::Tanh => libm::tanh(u),
            Activation::Gelu => u * sigmoid(GELU[0] * (u + GELU[1] * u * u * u)),
            Activation::Cos => libm::cos(u),
        }
    }

    /// f'(u), the left derivative where the two differ, but 0 for |u| at 0.
    pub fn slope(self, u: f64) -> f64 {
        match self {
            Activation::Relu => f64::from(u > 0.0),
            Activation::Elu1 => {
                if u > 0.0 {
                    1.0
                } else {
                    libm::exp(u)
                }
            }
            Activation::Identity => 1.0,
            Activation::Abs => f64::from(u > 0.0) - f64::from(u < 0.0),
            Activation::Relu2 => 2.0 * Activation::Relu.value(u),
            Activation::Square => 2.0 * u,
            Activation::Sigmoid => sigmoid(u) * sigmoid(-u),
            Activation::Tanh => {
                let e = libm::exp(-2.0 * u.abs());
                4.0 * e / ((1.0 + e) * (1.0 + e))
            }
            Activation::Gelu => {
                let inner = GELU[0] * (u + GELU[1] * u * u * u);
                let rate = GELU[0] * (1.0 + 3.0 * GELU[1] * u * u);
                // Far out the product is 0 times a square that may not be finite.
                let turn = sigmoid(inner) * sigmoid(-inner);
                sigmoid(inner) + if turn > 0.0 { u * turn * rate } else { 0.0 }
            }
            Activation::Cos => -libm::sin(u),
        }
    }

    /// How f grows towards positive and towards negative u: the power of |u| that it follows, 0 where it is bounded.
    pub fn growth(self) -> [i32; 2] {
        match self {
            Activation::Relu | Activation::Elu1 | Activation::Gelu => [1, 0],
            Activation::Identity | Activation::Abs => [1, 1],
            Activation::Relu2 => [2, 0],
            Activation::Square => [2, 2],
            Activation::Sigmoid | Activation::Tanh | Activation::Cos => [0, 0],
        }
    }
}

fn sigmoid(u: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-u))
}

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
const ROWS: Recipe = Recipe {
    projections_per_row: 1,
    parameters: |omega, _| Ok(Parameters::of_directions(try_copied(omega)?)),
    pull_back: |_, _, gradient, domega| {
        domega.iter_mut().zip(&gradient.query_directions).for_each(|(to, from)| *to += from);
    },
};

/// Every row of omega, and no norm of the keys: g = 0.
const FLAT: Recipe = Recipe { parameters: |omega, head_dim| with_quadratic(omega, head_dim, 0.0), ..ROWS };

/// Every row of omega, and twice the norm of the keys: exp(x . y) exp(-|y|^2/2), which is the Gaussian kernel but for a
/// factor of the query.
const STEEP: Recipe = Recipe { parameters: |omega, head_dim| with_quadratic(omega, head_dim, 2.0), ..ROWS };

/// Every row of omega, then the opposite of every row.
const OPPOSITES: Recipe = Recipe {
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
const SPHERE: Recipe = Recipe {
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
