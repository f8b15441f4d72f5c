//! The plain f64 reference of linear attention, forward and backward: the judge of every fast form.
//!
//! It is written to be read, not to be fast: one row after another, every feature kept, references exact. All
//! outputs are f64 whatever the inputs are.

use crate::attention::features::{Features, HeadMap, Side, scale2};
use crate::attention::noncausal::{Line, LineGradients, Outputs, cotangents};
use crate::attention::recurrent::Denominator;
pub use crate::attention::rows::Gradients;
use crate::attention::rows::{Inputs, LineRows, check_grad, gradient_rows, poison};
use crate::attention::{FavorArgs, FavorShape, causal, noncausal};
use crate::error::Result;
use crate::tensor::{Element, TensorRef};

/// What the forward form computes, contiguous.
#[derive(Clone, Debug)]
pub struct Forward {
    /// `[B,H,L,E]`.
    pub out: Vec<f64>,
    /// `[B,H,L]`.
    pub denominators: Vec<Denominator>,
}

/// `sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j)` over the keys that row i sees.
///
/// A zero denominator gives 0. A row of q, k or v that is not finite makes NaN of every output that sees it.
///
/// # Errors
/// As [`FavorArgs::validate`].
///
/// # Source
/// Choromanski et al. 2021, arXiv:2009.14794, equations 4 to 6.
pub fn favor_forward<T: Element>(args: &FavorArgs<'_, T>) -> Result<Forward> {
    let shape = args.validate()?;
    let inputs = inputs_of(args);
    let rows = shape.batch * shape.heads * shape.q_len;
    let mut result = Forward {
        out: vec![0.0; rows * shape.value_dim],
        denominators: vec![Denominator { exponent: 0, mantissa: 0.0 }; rows],
    };
    for place in inputs.places(&shape) {
        let rows = inputs.rows(place, &|| false)?;
        let line = FeatureLine::new(args, &shape, rows);
        let outputs = line.forward();
        let first = (place.batch * shape.heads + place.head) * shape.q_len + place.q_start;
        result.out[first * shape.value_dim..][..outputs.out.len()].copy_from_slice(&outputs.out);
        result.denominators[first..][..place.q_len].copy_from_slice(&outputs.denominators);
    }
    Ok(result)
}

/// Gradients of [`favor_forward`].
///
/// A row of `grad` that is all zeros contributes nothing, even where its output is NaN. A row with a gradient that
/// saw something not finite makes NaN of its dq, of dk and dv of every key it sees, and of its head's domega.
///
/// # Shapes
/// grad `[B,H,L,E]`.
///
/// # Errors
/// As [`FavorArgs::validate`].
pub fn favor_backward<T: Element>(args: &FavorArgs<'_, T>, grad: &TensorRef<'_, T>) -> Result<Gradients> {
    let shape = args.validate()?;
    check_grad(grad, &shape)?;
    let inputs = inputs_of(args);
    let mut gradients = Gradients::zeros(&shape, args.omega.map(|omega| omega.data.len()));
    for place in inputs.places(&shape) {
        let line = FeatureLine::new(args, &shape, inputs.rows(place, &|| false)?);
        let g = gradient_rows(grad, &place);
        let bad = line.rows.bad_gradients(&g, shape.value_dim);
        let parts = line.backward(&g, &bad);
        let mut dweights = line.map.zero_weight_gradient();
        let mut dq = line.map.pull_back(&line.queries, &parts.queries, &mut dweights);
        let mut dk = line.map.pull_back(&line.keys, &parts.keys, &mut dweights);
        let mut dv = parts.values;
        poison(&line.rows, &bad, &shape, [&mut dq, &mut dk, &mut dv]);
        gradients.add_line(&shape, &place, [&dq, &dk, &dv]);
        if let (Some(omega), Some(domega)) = (&args.omega, &mut gradients.domega) {
            let size = omega.num_features * omega.head_dim;
            let start = if omega.num_heads.is_some() { place.head * size } else { 0 };
            let domega = &mut domega[start..start + size];
            if bad.contains(&true) {
                domega.fill(f64::NAN);
            }
            line.map.add_omega_gradient(omega.head(place.head), &dweights, domega);
        }
    }
    Ok(gradients)
}

fn inputs_of<'a, T: Element>(args: &FavorArgs<'a, T>) -> Inputs<'a, T> {
    Inputs {
        q: args.q,
        k: args.k,
        v: args.v,
        causal: args.causal,
        cu_seqlens: args.cu_seqlens,
        key_padding_mask: args.key_padding_mask,
    }
}

/// A line with its features.
struct FeatureLine {
    rows: LineRows,
    map: HeadMap,
    queries: Features,
    keys: Features,
    value_dim: usize,
}

impl FeatureLine {
    fn new<T: Element>(args: &FavorArgs<'_, T>, shape: &FavorShape, rows: LineRows) -> Self {
        let omega = args.omega.as_ref().map(|omega| omega.head(rows.place.head));
        let map = HeadMap::new(args.feature_map, omega, shape.head_dim, args.kernel_epsilon);
        let queries = map.features(&rows.queries, Side::Query);
        let keys = map.features(&rows.keys, Side::Key);
        FeatureLine { rows, map, queries, keys, value_dim: shape.value_dim }
    }

    /// `[v, 1]` of each key, v divided by `2^power`.
    fn payloads(&self, power: i64) -> Vec<f64> {
        let mut payloads = Vec::new();
        for key in 0..self.rows.place.k_len {
            let value = &self.rows.values[key * self.value_dim..][..self.value_dim];
            payloads.extend(value.iter().map(|v| scale2(*v, -power)).chain([1.0]));
        }
        payloads
    }

    fn line<'a>(&'a self, payloads: &'a [f64]) -> Line<'a> {
        Line { queries: &self.queries, keys: &self.keys, payloads, keep: &self.rows.keep, value_dim: self.value_dim }
    }

    /// Outputs; NaN in the rows that see something not finite.
    fn forward(&self) -> Outputs {
        let power = value_power(&self.rows.values);
        let payloads = self.payloads(power);
        let line = self.line(&payloads);
        let mut outputs = if self.rows.causal { causal::forward(&line) } else { noncausal::forward(&line) };
        outputs.out.iter_mut().for_each(|x| *x = scale2(*x, power).clamp(-f64::MAX, f64::MAX));
        for query in (0..self.rows.place.q_len).filter(|&i| self.rows.is_bad(i)) {
            outputs.out[query * self.value_dim..][..self.value_dim].fill(f64::NAN);
            outputs.denominators[query].mantissa = f64::NAN;
        }
        outputs
    }

    /// Gradients of mantissas and values, without the rows that are bad.
    fn backward(&self, grad: &[f64], bad: &[bool]) -> LineGradients {
        let mut cotangents = cotangents(&self.forward(), grad, self.value_dim);
        cotangents.iter_mut().zip(bad).filter(|(_, bad)| **bad).for_each(|(cotangent, _)| *cotangent = None);
        let payloads = self.payloads(0);
        let line = self.line(&payloads);
        if self.rows.causal { causal::backward(&line, &cotangents) } else { noncausal::backward(&line, &cotangents) }
    }
}

/// The power of two that values are divided by: 0 unless their sums could overflow or their products vanish.
fn value_power(values: &[f64]) -> i64 {
    let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let (_, exponent) = libm::frexp(largest);
    if exponent.abs() > 500 { i64::from(exponent) } else { 0 }
}
