//! Exact softmax attention in f64: the truth that linear attention estimates.

use super::FavorShape;
use super::features::dot;
use super::rows::{InputGradients, Inputs, SegmentRows, check_grad, gradient_rows, poison};
use crate::element::{Element, Stored};
use crate::error::{Error, Result};
use crate::memory::{check_len, try_reserved};
use crate::tensor::TensorRef;

/// Everything that one call of softmax attention takes.
///
/// # Shapes
/// q `[B,H,L,D]`, k `[B,Hk,S,D]`, v `[B,Hk,S,E]`, H a multiple of Hk.
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxArgs<'a, T> {
    /// Queries.
    pub q: TensorRef<'a, T>,
    /// Keys.
    pub k: TensorRef<'a, T>,
    /// Values.
    pub v: TensorRef<'a, T>,
    /// Position i sees positions up to i; needs L == S.
    pub causal: bool,
    /// Segment borders `[num_segments+1]` of a packed batch of one, from 0 to L, not decreasing.
    pub cu_seqlens: Option<&'a [i64]>,
    /// `[B,S]`, true where a key is padding and ignored.
    pub key_padding_mask: Option<&'a [bool]>,
}

impl<'a, T: Stored> SoftmaxArgs<'a, T> {
    fn inputs(&self) -> Inputs<'a, T> {
        Inputs {
            q: self.q,
            k: self.k,
            v: self.v,
            causal: self.causal,
            cu_seqlens: self.cu_seqlens,
            key_padding_mask: self.key_padding_mask,
        }
    }
}

/// Scaled inputs saturate here, so that no logit of finite inputs overflows.
const INPUT_LIMIT: f64 = 1e150;

/// `softmax(q k^T / sqrt(D)) v`, computed in f64; a row that sees no key gives 0.
///
/// `should_stop` is called before every row and, while rows are gathered, now and then.
///
/// # Shapes
/// out `[B,H,L,E]`.
///
/// # Errors
/// [`Error::ShapeMismatch`] or [`Error::InvalidOption`] naming the argument; [`Error::OutOfMemory`];
/// [`Error::Interrupted`].
///
/// # Source
/// Vaswani et al. 2017, arXiv:1706.03762, equation 1.
pub fn softmax_attention<T: Stored>(
    args: &SoftmaxArgs<'_, T>,
    out: &mut [T],
    should_stop: &dyn Fn() -> bool,
) -> Result<()> {
    let inputs = args.inputs();
    let shape = inputs.validate()?;
    check_len("out", out.len(), shape.out().iter().product())?;
    for place in inputs.places(&shape) {
        let segment = Logits::new(inputs.rows(place, should_stop)?, &shape);
        let mut weights = try_reserved(place.k_len)?;
        let mut row = try_reserved(shape.value_dim)?;
        let first = (place.batch * shape.heads + place.head) * shape.q_len + place.q_start;
        for query in 0..place.q_len {
            if should_stop() {
                return Err(Error::Interrupted);
            }
            let out = &mut out[(first + query) * shape.value_dim..][..shape.value_dim];
            segment.probabilities(query, &mut weights);
            segment.output(query, &weights, &mut row);
            out.iter_mut().zip(&row).for_each(|(to, &x)| *to = T::round(T::Compute::from_f64(x)));
        }
    }
    Ok(())
}

/// Gradients of [`softmax_attention`] in f64.
///
/// A row of `grad` that is all zeros contributes nothing, even where its output is NaN.
///
/// # Shapes
/// grad `[B,H,L,E]`.
///
/// # Errors
/// As [`softmax_attention`].
pub fn softmax_attention_backward<T: Stored>(
    args: &SoftmaxArgs<'_, T>,
    grad: &TensorRef<'_, T>,
    should_stop: &dyn Fn() -> bool,
) -> Result<InputGradients> {
    let inputs = args.inputs();
    let shape = inputs.validate()?;
    check_grad(grad, &shape)?;
    let mut gradients = InputGradients::zeros(&shape)?;
    for place in inputs.places(&shape) {
        let segment = Logits::new(inputs.rows(place, should_stop)?, &shape);
        let g = gradient_rows(grad, &place);
        let bad = segment.rows.bad_gradients(&g, shape.value_dim);
        let mut dq = vec![0.0; place.q_len * shape.head_dim];
        let mut dk = vec![0.0; place.k_len * shape.head_dim];
        let mut dv = vec![0.0; place.k_len * shape.value_dim];
        for query in (0..place.q_len).filter(|&i| !bad[i]) {
            if should_stop() {
                return Err(Error::Interrupted);
            }
            let g = &g[query * shape.value_dim..][..shape.value_dim];
            if g.iter().any(|&g| g != 0.0) {
                segment.pull_back(query, g, [&mut dq, &mut dk, &mut dv]);
            }
        }
        poison(&segment.rows, &bad, &shape, [&mut dq, &mut dk, &mut dv]);
        gradients.add_segment(&shape, &place, [&dq, &dk, &dv]);
    }
    Ok(gradients)
}

/// A head segment with scaled queries and keys.
struct Logits {
    rows: SegmentRows,
    head_dim: usize,
    value_dim: usize,
    scale: f64,
}

impl Logits {
    fn new(mut rows: SegmentRows, shape: &FavorShape) -> Self {
        let scale = 1.0 / libm::sqrt(libm::sqrt(shape.head_dim as f64));
        for x in rows.queries.iter_mut().chain(&mut rows.keys) {
            *x = (*x * scale).clamp(-INPUT_LIMIT, INPUT_LIMIT);
        }
        Logits { rows, head_dim: shape.head_dim, value_dim: shape.value_dim, scale }
    }

    fn query(&self, query: usize) -> &[f64] {
        &self.rows.queries[query * self.head_dim..][..self.head_dim]
    }

    fn key(&self, key: usize) -> &[f64] {
        &self.rows.keys[key * self.head_dim..][..self.head_dim]
    }

    fn value(&self, key: usize) -> &[f64] {
        &self.rows.values[key * self.value_dim..][..self.value_dim]
    }

    /// Keys that a query sees with their softmax weights, instead of what `weights` held.
    fn probabilities(&self, query: usize, weights: &mut Vec<(usize, f64)>) {
        let seen = self.rows.seen(query).filter(|&key| self.rows.keep[key]);
        weights.clear();
        weights.extend(seen.map(|key| (key, dot(self.query(query), self.key(key)))));
        let top = weights.iter().fold(f64::NEG_INFINITY, |top, &(_, logit)| top.max(logit));
        weights.iter_mut().for_each(|(_, weight)| *weight = libm::exp(*weight - top));
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        weights.iter_mut().for_each(|(_, weight)| *weight /= total);
    }

    /// The output of a query, instead of what `out` held.
    fn output(&self, query: usize, weights: &[(usize, f64)], out: &mut Vec<f64>) {
        out.clear();
        if self.rows.is_bad(query) {
            return out.resize(self.value_dim, f64::NAN);
        }
        out.resize(self.value_dim, 0.0);
        for &(key, weight) in weights {
            out.iter_mut().zip(self.value(key)).for_each(|(to, v)| *to += weight * v);
        }
        // Rounding may carry a mean of the largest values past them.
        out.iter_mut().for_each(|x| *x = x.clamp(-f64::MAX, f64::MAX));
    }

    fn pull_back(&self, query: usize, g: &[f64], [dq, dk, dv]: [&mut [f64]; 3]) {
        let (mut weights, mut out) = (Vec::new(), Vec::new());
        self.probabilities(query, &mut weights);
        self.output(query, &weights, &mut out);
        let along = dot(g, &out);
        for (key, weight) in weights {
            let dlogit = weight * (dot(g, self.value(key)) - along) * self.scale;
            for axis in 0..self.head_dim {
                dq[query * self.head_dim + axis] += dlogit * self.key(key)[axis];
                dk[key * self.head_dim + axis] += dlogit * self.query(query)[axis];
            }
            for (axis, g) in g.iter().enumerate() {
                dv[key * self.value_dim + axis] += weight * g;
            }
        }
    }
}
