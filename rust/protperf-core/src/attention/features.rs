//! Features of the plain f64 reference: each one a mantissa and an integer exponent, `mantissa * 2^exponent`.
//!
//! The exponent carries whatever could overflow: the logarithm of an exponential feature, the factor
//! `exp(|y|^2/2)` of a trigonometric key. It is an integer, so every change of a reference is an exact power of two.
//! Activation features have exponent 0. Nothing downstream needs to know the family.

use crate::feature_map::{Family, FeatureMap};

/// Scaled inputs saturate here, so that no log-feature of a finite input overflows.
const INPUT_LIMIT: f64 = 1e15;
/// Logarithms of features saturate here.
const LOG_LIMIT: f64 = 268_435_456.0;
const LOG2_E: f64 = std::f64::consts::LOG2_E;
/// log2(e) less [`LOG2_E`].
const LOG2_E_LOW: f64 = 2.035_527_374_093_103_3e-17;

/// `x * 2^k`, exact wherever the result is normal, 0 far below.
pub fn scale2(x: f64, k: i64) -> f64 {
    libm::ldexp(x, k.clamp(-2200, 2200) as i32)
}

/// Which side of the kernel a row is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `phi(q)`: any factor a row carries cancels in the quotient, so none is computed.
    Query,
    /// `phi(k)`: the factor in `|y|^2/2` counts.
    Key,
}

/// The feature map of one head with its directions.
#[derive(Clone, Debug)]
pub struct HeadMap {
    map: FeatureMap,
    head_dim: usize,
    epsilon: f64,
    /// Directions `[P,D]`.
    weights: Vec<f64>,
}

/// Features of the rows of one side, and what their gradient needs.
#[derive(Clone, Debug)]
pub struct Features {
    /// F.
    pub width: usize,
    /// `[rows,F]`.
    pub mantissa: Vec<f64>,
    /// `[rows,F]`.
    pub exponent: Vec<i64>,
    /// Scaled inputs `[rows,D]`.
    inputs: Vec<f64>,
    /// Projections `[rows,P]`.
    projected: Vec<f64>,
    side: Side,
}

impl Features {
    /// Mantissas of a row.
    pub fn mantissas(&self, row: usize) -> &[f64] {
        &self.mantissa[row * self.width..][..self.width]
    }

    /// Exponents of a row.
    pub fn exponents(&self, row: usize) -> &[i64] {
        &self.exponent[row * self.width..][..self.width]
    }
}

impl HeadMap {
    /// The map over the directions it makes of omega `[M,D]`, or over the axes themselves.
    pub fn new(map: FeatureMap, omega: Option<&[f64]>, head_dim: usize, epsilon: f64) -> Self {
        let weights = match omega {
            Some(omega) => map.weights(omega, head_dim),
            None => (0..head_dim * head_dim).map(|i| f64::from(i % (head_dim + 1) == 0)).collect(),
        };
        HeadMap { map, head_dim, epsilon, weights }
    }

    /// F.
    pub fn width(&self) -> usize {
        self.weights.len() / self.head_dim * if self.map.family() == Family::Trigonometric { 2 } else { 1 }
    }

    /// D^-1/4: on queries and on keys, so that their products carry D^-1/2.
    pub fn input_scale(&self) -> f64 {
        1.0 / libm::sqrt(libm::sqrt(self.head_dim as f64))
    }

    /// Features of rows `[rows,D]`.
    pub fn features(&self, rows: &[f64], side: Side) -> Features {
        let scale = self.input_scale();
        let inputs: Vec<f64> = rows.iter().map(|x| (x * scale).clamp(-INPUT_LIMIT, INPUT_LIMIT)).collect();
        let mut made = Features {
            width: self.width(),
            mantissa: Vec::new(),
            exponent: Vec::new(),
            projected: Vec::new(),
            inputs: Vec::new(),
            side,
        };
        for x in inputs.chunks_exact(self.head_dim) {
            let projected: Vec<f64> = self.weights.chunks_exact(self.head_dim).map(|w| dot(w, x)).collect();
            self.push_row(&projected, 0.5 * dot(x, x), &mut made);
            made.projected.extend(projected);
        }
        made.inputs = inputs;
        made
    }

    fn push_row(&self, projected: &[f64], half_norm: f64, made: &mut Features) {
        let half_norm = if made.side == Side::Key { half_norm } else { 0.0 };
        match self.map.family() {
            Family::Exponential => {
                for u in projected {
                    let (exponent, mantissa) = split(u - half_norm);
                    made.exponent.push(exponent);
                    made.mantissa.push(mantissa);
                }
            }
            Family::Activation => {
                made.exponent.extend(projected.iter().map(|_| 0));
                made.mantissa.extend(projected.iter().map(|&u| self.activation(u) + self.epsilon));
            }
            Family::Trigonometric => {
                let (exponent, mantissa) = split(half_norm);
                made.exponent.extend(std::iter::repeat_n(exponent, 2 * projected.len()));
                made.mantissa.extend(projected.iter().map(|&u| mantissa * libm::cos(u)));
                made.mantissa.extend(projected.iter().map(|&u| mantissa * libm::sin(u)));
            }
        }
    }

    fn activation(&self, u: f64) -> f64 {
        match self.map {
            FeatureMap::Elu1 if u > 0.0 => u + 1.0,
            FeatureMap::Elu1 => libm::exp(u),
            // NaN stays NaN: `max` would drop it.
            _ if u < 0.0 => 0.0,
            _ => u,
        }
    }

    fn activation_slope(&self, u: f64) -> f64 {
        match self.map {
            _ if u > 0.0 => 1.0,
            FeatureMap::Elu1 => libm::exp(u),
            _ => 0.0,
        }
    }

    /// Gradient of the inputs from that of the mantissas; adds the gradient of the directions to `dweights`.
    ///
    /// # Shapes
    /// gradient `[rows,F]`, dweights `[P,D]`; returns `[rows,D]`.
    pub fn pull_back(&self, features: &Features, gradient: &[f64], dweights: &mut [f64]) -> Vec<f64> {
        let (d, num_projections) = (self.head_dim, self.weights.len() / self.head_dim);
        let scale = self.input_scale();
        let mut dinputs = Vec::with_capacity(features.inputs.len());
        for (row, x) in features.inputs.chunks_exact(d).enumerate() {
            let projected = &features.projected[row * num_projections..][..num_projections];
            let gradient = &gradient[row * features.width..][..features.width];
            let (dprojected, dnorm) = self.pull_back_row(features.mantissas(row), projected, gradient);
            let dnorm = if features.side == Side::Key { dnorm } else { 0.0 };
            let mut dx: Vec<f64> = x.iter().map(|x| dnorm * x).collect();
            for ((du, w), dw) in dprojected.iter().zip(self.weights.chunks_exact(d)).zip(dweights.chunks_exact_mut(d)) {
                for axis in 0..d {
                    dx[axis] += du * w[axis];
                    dw[axis] += du * x[axis];
                }
            }
            dinputs.extend(dx.iter().map(|dx| dx * scale));
        }
        dinputs
    }

    /// Gradients of the projections and of `|y|^2/2`.
    fn pull_back_row(&self, mantissa: &[f64], projected: &[f64], gradient: &[f64]) -> (Vec<f64>, f64) {
        match self.map.family() {
            Family::Exponential => {
                let dlog: Vec<f64> = mantissa.iter().zip(gradient).map(|(p, g)| p * g).collect();
                let total: f64 = dlog.iter().sum();
                (dlog, -total)
            }
            Family::Activation => {
                (projected.iter().zip(gradient).map(|(&u, g)| self.activation_slope(u) * g).collect(), 0.0)
            }
            Family::Trigonometric => {
                let (cosines, sines) = mantissa.split_at(projected.len());
                let (dcosines, dsines) = gradient.split_at(projected.len());
                let turn = |m: usize| cosines[m] * dsines[m] - sines[m] * dcosines[m];
                ((0..projected.len()).map(turn).collect(), dot(mantissa, gradient))
            }
        }
    }

    /// Adds the gradient of omega `[M,D]` that the gradient of the directions gives.
    pub fn add_omega_gradient(&self, omega: &[f64], dweights: &[f64], domega: &mut [f64]) {
        self.map.add_omega_gradient(omega, self.head_dim, dweights, domega);
    }

    /// A gradient of the directions to be filled, all 0.
    pub fn zero_weight_gradient(&self) -> Vec<f64> {
        vec![0.0; self.weights.len()]
    }
}

/// `e^log = mantissa * 2^exponent` with the mantissa in `[2^-1/2, 2^1/2]`.
fn split(log: f64) -> (i64, f64) {
    let log = log.clamp(-LOG_LIMIT, LOG_LIMIT);
    let exponent = libm::rint(log * LOG2_E);
    // The product in one rounding and log2(e) in two parts: a large log keeps every bit of its fraction.
    let fraction = libm::fma(log, LOG2_E, -exponent) + log * LOG2_E_LOW;
    (exponent as i64, libm::exp2(fraction))
}

/// Inner product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
