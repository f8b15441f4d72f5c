//! One head segment, a query head of one batch entry in one segment: its features, outputs and gradients.

use crate::attention::features::{Features, HeadMap, Side, scale2};
use crate::attention::noncausal::{Cotangent, HeadSegment, Outputs, cotangents};
use crate::attention::recurrent::State;
use crate::attention::rows::{SegmentRows, gradient_rows, poison, poison_keys};
use crate::attention::{FavorShape, causal, noncausal};
use crate::element::Stored;
use crate::error::Result;
use crate::feature_map::Parameters;
use crate::state::KV_STATE;
use crate::tensor::TensorRef;

/// What a head segment begins with.
pub(super) struct Initial {
    pub state: State,
    pub is_finite: bool,
}

impl Initial {
    /// A state `[F,2+E]`, or the empty one where none is given; also where it is not finite, for then every row that
    /// sees it is NaN and no number of it may be multiplied.
    pub fn new(rows: Option<&[f64]>, shape: &FavorShape) -> Self {
        let is_finite = rows.is_none_or(|rows| rows.iter().all(|x| x.is_finite()));
        let state = match rows.filter(|_| is_finite) {
            Some(rows) => State::import(rows, shape.value_dim),
            None => State::new(shape.feature_dim, shape.value_dim + 1),
        };
        Initial { state, is_finite }
    }
}

/// A head segment with its features.
pub(super) struct SegmentFeatures<'a> {
    pub rows: SegmentRows,
    pub initial: State,
    map: &'a HeadMap,
    queries: Features,
    keys: Features,
    value_dim: usize,
}

/// Gradients of a head segment.
pub(super) struct FoundGradients {
    /// `[L,D]`.
    pub dq: Vec<f64>,
    /// `[S,D]`.
    pub dk: Vec<f64>,
    /// `[S,E]`.
    pub dv: Vec<f64>,
    pub parameters: Parameters<Vec<f64>>,
    readers: State,
    /// Rows of the incoming gradient that saw something that is not finite, `[L]`.
    bad_rows: Vec<bool>,
    /// What arrives at the final state is not finite, or meets something that is not.
    is_state_bad: bool,
}

impl<'a> SegmentFeatures<'a> {
    pub fn new(map: &'a HeadMap, shape: &FavorShape, rows: SegmentRows, initial: State) -> Self {
        let queries = map.features(&rows.queries, Side::Query);
        let keys = map.features(&rows.keys, Side::Key);
        SegmentFeatures { rows, initial, map, queries, keys, value_dim: shape.value_dim }
    }

    /// Outputs, NaN in the rows that see something that is not finite, and the state after all keys.
    pub fn forward(&self) -> (Outputs, State) {
        let power = self.value_power();
        let mut initial = self.initial.clone();
        initial.scale_values(-power);
        let values_and_ones = self.values_and_ones(power);
        let segment = self.segment(&values_and_ones, &initial);
        let (mut outputs, mut state) =
            if self.rows.causal { causal::forward(&segment) } else { noncausal::forward(&segment) };
        state.scale_values(power);
        outputs.out.iter_mut().for_each(|x| *x = scale2(*x, power).clamp(-f64::MAX, f64::MAX));
        for query in (0..self.rows.place.q_len).filter(|&i| self.rows.is_bad(i)) {
            outputs.out[query * self.value_dim..][..self.value_dim].fill(f64::NAN);
            outputs.denominators[query].mantissa = f64::NAN;
        }
        (outputs, state)
    }

    /// Gradients without what is bad, from the gradient of all outputs and, of the final state, its values and
    /// gradient.
    pub fn backward<T: Stored>(
        &self,
        grad: &TensorRef<'_, T>,
        final_state: Option<(&[f64], &[f64])>,
    ) -> Result<FoundGradients> {
        let g = gradient_rows(grad, &self.rows.place);
        let bad_rows = self.rows.bad_gradients(&g, self.value_dim);
        let is_state_bad = final_state.is_some_and(|(_, grad)| self.is_state_gradient_bad(grad));
        let arriving = match final_state {
            Some((state, grad)) if !is_state_bad => State::of_gradient(state, grad, self.value_dim),
            _ => State::new(self.keys.width, self.value_dim + 1),
        };
        let cotangents = self.cotangents(&g, &bad_rows);
        let values_and_ones = self.values_and_ones(0);
        let segment = self.segment(&values_and_ones, &self.initial);
        let found = match self.rows.causal {
            true => causal::backward(&segment, &cotangents, &arriving),
            false => noncausal::backward(&segment, &cotangents, &arriving),
        };
        let mut parameters = self.map.zero_gradient()?;
        let dq = self.map.pull_back(&self.queries, &found.queries, &mut parameters);
        let dk = self.map.pull_back(&self.keys, &found.keys, &mut parameters);
        let (dv, readers) = (found.values, found.readers);
        Ok(FoundGradients { dq, dk, dv, parameters, readers, bad_rows, is_state_bad })
    }

    /// Writes NaN where something that is not finite was seen.
    pub fn poison(&self, found: &mut FoundGradients, shape: &FavorShape) {
        let FoundGradients { dq, dk, dv, bad_rows, is_state_bad, .. } = found;
        poison(&self.rows, bad_rows, shape, [dq, &mut *dk, &mut *dv]);
        if *is_state_bad {
            poison_keys(self.rows.not_padding(self.rows.place.k_len), shape, [dk, dv]);
        }
    }

    /// `[v, 1]` of each key, v divided by `2^power`.
    fn values_and_ones(&self, power: i64) -> Vec<f64> {
        let mut all = Vec::new();
        for key in 0..self.rows.place.k_len {
            let value = &self.rows.values[key * self.value_dim..][..self.value_dim];
            all.extend(value.iter().map(|v| scale2(*v, -power)).chain([1.0]));
        }
        all
    }

    fn segment<'b>(&'b self, values_and_ones: &'b [f64], initial: &'b State) -> HeadSegment<'b> {
        HeadSegment {
            queries: &self.queries,
            keys: &self.keys,
            values_and_ones,
            keep: &self.rows.keep,
            value_dim: self.value_dim,
            initial,
        }
    }

    fn cotangents(&self, grad: &[f64], bad: &[bool]) -> Vec<Option<Cotangent>> {
        let mut cotangents = cotangents(&self.forward().0, grad, self.value_dim);
        cotangents.iter_mut().zip(bad).filter(|(_, bad)| **bad).for_each(|(cotangent, _)| *cotangent = None);
        cotangents
    }

    /// As for a row of outputs: a gradient that is all zeros is never bad.
    fn is_state_gradient_bad(&self, grad: &[f64]) -> bool {
        let sums = || grad.chunks_exact(KV_STATE + self.value_dim).flat_map(|row| &row[1..]);
        sums().any(|&g| g != 0.0) && (self.rows.is_state_bad() || sums().any(|g| !g.is_finite()))
    }

    /// The power of two that values are divided by: 0 unless their sums could overflow or their products vanish.
    fn value_power(&self) -> i64 {
        let largest = self.rows.values.iter().fold(self.initial.largest_value(), |m, v| m.max(v.abs()));
        let (_, exponent) = libm::frexp(largest);
        if exponent.abs() > 500 { i64::from(exponent) } else { 0 }
    }
}

impl FoundGradients {
    /// Whether anything that arrives is bad: then the gradients of what the whole head segment shares are NaN.
    pub fn is_any_bad(&self) -> bool {
        self.is_state_bad || self.bad_rows.contains(&true)
    }

    /// Writes the gradient of the initial state.
    pub fn write_state_gradient(&self, initial: &State, to: &mut [f64]) {
        self.readers.export_gradient(initial, to);
        if self.is_any_bad() {
            let value_dim = self.readers.width() - 1;
            to.chunks_exact_mut(KV_STATE + value_dim).for_each(|row| row[1..].fill(f64::NAN));
        }
    }
}
