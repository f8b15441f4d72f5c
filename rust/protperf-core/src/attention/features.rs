//! Features of the plain f64 reference: each one a mantissa and an integer exponent, `mantissa * 2^exponent`.
//!
//! The exponent carries what could overflow: the logarithm of an exponential feature, the factor
//! `exp(|y|^2/2)` of a trigonometric key. It is an integer, so every change of a reference is an exact power of two.
//! Activation features have exponent 0. Nothing downstream needs to know the family.

use super::MapArgs;
use crate::error::Result;
use crate::feature_map::{Family, Parameters};

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
    /// `phi(k)`: the factor in `h(y)` or `|y|^2/2` counts.
    Key,
}

/// The feature map of one head with its parameters.
#[derive(Clone, Debug)]
pub struct HeadMap {
    family: Family,
    head_dim: usize,
    epsilon: f64,
    parameters: Parameters<Vec<f64>>,
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
    /// The map of a family over its parameters.
    pub fn new(family: Family, parameters: Parameters<Vec<f64>>, head_dim: usize, epsilon: f64) -> Self {
        HeadMap { family, head_dim, epsilon, parameters }
    }

    /// The map of a call over one of its sets of parameters.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn of_call(map: &MapArgs<'_>, set: usize, head_dim: usize) -> Result<Self> {
        Ok(Self::new(map.family(), map.parameters(set, head_dim)?, head_dim, map.kernel_epsilon()))
    }

    /// The same map with zeros in place of its parameters.
    pub(crate) fn zeroed(mut self) -> Self {
        self.parameters.fields_mut().for_each(|field| field.fill(0.0));
        self
    }

    /// P.
    fn num_projections(&self) -> usize {
        self.parameters.query_directions.len() / self.head_dim
    }

    /// F.
    pub fn width(&self) -> usize {
        self.num_projections() * self.family.features_per_projection()
    }

    /// Directions and constants of a side.
    fn of_side(&self, side: Side) -> (&[f64], Option<&[f64]>) {
        let p = &self.parameters;
        match side {
            Side::Query => (&p.query_directions, p.query_constants.as_deref()),
            Side::Key => (p.of_keys(), p.key_constants.as_deref()),
        }
    }

    /// `sum_l g_l x_l^2 / 2`: h(y) of an exponential map, `|y|^2/2` of a trigonometric one.
    fn half_norm(&self, x: &[f64]) -> f64 {
        0.5 * match &self.parameters.key_quadratic {
            None => dot(x, x),
            Some(quadratic) => x.iter().zip(quadratic).map(|(x, g)| g * x * x).sum(),
        }
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
        let (directions, constants) = self.of_side(side);
        for x in inputs.chunks_exact(self.head_dim) {
            let mut projected: Vec<f64> = directions.chunks_exact(self.head_dim).map(|w| dot(w, x)).collect();
            projected.iter_mut().zip(constants.unwrap_or_default()).for_each(|(u, c)| *u += c);
            self.push_row(&projected, self.half_norm(x), &mut made);
            made.projected.extend(projected);
        }
        made.inputs = inputs;
        made
    }

    fn push_row(&self, projected: &[f64], half_norm: f64, made: &mut Features) {
        let half_norm = if made.side == Side::Key { half_norm } else { 0.0 };
        match self.family {
            Family::Exponential => {
                for u in projected {
                    let (exponent, mantissa) = split(u - half_norm);
                    made.exponent.push(exponent);
                    made.mantissa.push(mantissa);
                }
            }
            Family::Activation(f) => {
                made.exponent.extend(projected.iter().map(|_| 0));
                made.mantissa.extend(projected.iter().map(|&u| f.value(u) + self.epsilon));
            }
            Family::Trigonometric => {
                let (exponent, mantissa) = split(half_norm);
                made.exponent.extend(std::iter::repeat_n(exponent, 2 * projected.len()));
                made.mantissa.extend(projected.iter().map(|&u| mantissa * libm::cos(u)));
                made.mantissa.extend(projected.iter().map(|&u| mantissa * libm::sin(u)));
            }
        }
    }

    /// Gradient of the inputs from that of the mantissas; adds the gradient of the parameters to `to`.
    ///
    /// # Shapes
    /// gradient `[rows,F]`, `to` as the parameters; returns `[rows,D]`.
    pub fn pull_back(&self, features: &Features, gradient: &[f64], to: &mut Parameters<Vec<f64>>) -> Vec<f64> {
        let (d, num_projections, scale) = (self.head_dim, self.num_projections(), self.input_scale());
        let (directions, _) = self.of_side(features.side);
        let mut dinputs = Vec::with_capacity(features.inputs.len());
        for (row, x) in features.inputs.chunks_exact(d).enumerate() {
            let projected = &features.projected[row * num_projections..][..num_projections];
            let gradient = &gradient[row * features.width..][..features.width];
            let (dprojected, dnorm) = self.pull_back_row(features.mantissas(row), projected, gradient);
            let mut dx = match features.side {
                Side::Query => vec![0.0; d],
                Side::Key => self.pull_back_norm(x, dnorm, to),
            };
            let (ddirections, dconstants) = gradients_of_side(to, features.side);
            for ((du, w), dw) in dprojected.iter().zip(directions.chunks_exact(d)).zip(ddirections.chunks_exact_mut(d))
            {
                for axis in 0..d {
                    dx[axis] += du * w[axis];
                    dw[axis] += du * x[axis];
                }
            }
            dconstants.iter_mut().zip(&dprojected).for_each(|(to, du)| *to += du);
            dinputs.extend(dx.iter().map(|dx| dx * scale));
        }
        dinputs
    }

    /// The part of a key's gradient that comes through its norm; adds that of the quadratic.
    fn pull_back_norm(&self, x: &[f64], dnorm: f64, to: &mut Parameters<Vec<f64>>) -> Vec<f64> {
        let Some(quadratic) = &self.parameters.key_quadratic else {
            return x.iter().map(|x| dnorm * x).collect();
        };
        if let Some(to) = &mut to.key_quadratic {
            to.iter_mut().zip(x).for_each(|(to, x)| *to += 0.5 * dnorm * x * x);
        }
        x.iter().zip(quadratic).map(|(x, g)| dnorm * g * x).collect()
    }

    /// Gradients of the projections and of `|y|^2/2`.
    fn pull_back_row(&self, mantissa: &[f64], projected: &[f64], gradient: &[f64]) -> (Vec<f64>, f64) {
        match self.family {
            Family::Exponential => {
                let dlog: Vec<f64> = mantissa.iter().zip(gradient).map(|(p, g)| p * g).collect();
                let total: f64 = dlog.iter().sum();
                (dlog, -total)
            }
            Family::Activation(f) => (projected.iter().zip(gradient).map(|(&u, g)| f.slope(u) * g).collect(), 0.0),
            Family::Trigonometric => {
                let (cosines, sines) = mantissa.split_at(projected.len());
                let (dcosines, dsines) = gradient.split_at(projected.len());
                let turn = |m: usize| cosines[m] * dsines[m] - sines[m] * dcosines[m];
                ((0..projected.len()).map(turn).collect(), dot(mantissa, gradient))
            }
        }
    }

    /// A gradient of the parameters to be filled, all 0.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn zero_gradient(&self) -> Result<Parameters<Vec<f64>>> {
        self.parameters.zeros_like()
    }
}

/// Where the gradients of a side's directions and constants are summed.
fn gradients_of_side(to: &mut Parameters<Vec<f64>>, side: Side) -> (&mut [f64], &mut [f64]) {
    let (directions, constants) = match side {
        Side::Query => (&mut to.query_directions, &mut to.query_constants),
        Side::Key => (to.key_directions.as_mut().unwrap_or(&mut to.query_directions), &mut to.key_constants),
    };
    (directions, constants.as_deref_mut().unwrap_or_default())
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
