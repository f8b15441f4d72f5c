//! Every query sees every key: one state over all keys, read by each query.

use super::features::Features;
use super::recurrent::{Denominator, State, finish};

/// One batch entry, head and segment, with finite numbers only.
#[derive(Clone, Copy, Debug)]
pub struct HeadSegment<'a> {
    /// Features of the queries.
    pub queries: &'a Features,
    /// Features of the keys.
    pub keys: &'a Features,
    /// `[v, 1]` of each key, `[S,E+1]`.
    pub values_and_ones: &'a [f64],
    /// False where a key is padding, `[S]`.
    pub keep: &'a [bool],
    /// E.
    pub value_dim: usize,
    /// What was seen before the first key.
    pub initial: &'a State,
}

/// Outputs `[L,E]` of a head segment and the denominators `[L]`.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// `[L,E]`.
    pub out: Vec<f64>,
    /// `[L]`.
    pub denominators: Vec<Denominator>,
}

/// Gradients of a head segment: of the mantissas of its features, and of its values.
#[derive(Clone, Debug)]
pub struct SegmentGradients {
    /// `[L,F]`.
    pub queries: Vec<f64>,
    /// `[S,F]`.
    pub keys: Vec<f64>,
    /// `[S,E]`.
    pub values: Vec<f64>,
    /// The state of everything that read the initial state: [`State::export_gradient`] makes its gradient.
    pub readers: State,
}

impl HeadSegment<'_> {
    /// Number of keys.
    pub fn kv_len(&self) -> usize {
        self.keep.len()
    }

    /// Gradients with no row yet; `readers` holds what arrives at the final state.
    pub fn gradients(&self, readers: &State) -> SegmentGradients {
        SegmentGradients { queries: Vec::new(), keys: Vec::new(), values: Vec::new(), readers: readers.clone() }
    }

    /// `[v, 1]` of a key.
    pub fn values_and_one(&self, key: usize) -> &[f64] {
        &self.values_and_ones[key * (self.value_dim + 1)..][..self.value_dim + 1]
    }

    /// Adds a key to a state, unless it is padding.
    pub fn add_key(&self, key: usize, state: &mut State) {
        if self.keep[key] {
            state.add(self.keys.exponents(key), self.keys.mantissas(key), self.values_and_one(key));
        }
    }

    /// Appends the output of a query.
    pub fn read(&self, query: usize, state: &State, to: &mut Outputs) {
        let (exponent, sums) = state.read(self.queries.exponents(query), self.queries.mantissas(query));
        let denominator = finish(exponent, &sums, &mut to.out);
        to.denominators.push(denominator);
    }

    /// Appends the gradient of a query from the state that it read.
    pub fn pull_query(&self, query: usize, cotangent: Option<&Cotangent>, keys: &State, to: &mut SegmentGradients) {
        match cotangent {
            Some(cotangent) => {
                let exponents = self.queries.exponents(query);
                to.queries.extend(keys.pull(exponents, cotangent.exponent, &cotangent.sums));
            }
            None => to.queries.extend(std::iter::repeat_n(0.0, self.queries.width)),
        }
    }

    /// Adds a query with its cotangent to a state of queries; the features lose the denominator's `2^exponent`.
    pub fn add_query(&self, query: usize, cotangent: &Cotangent, state: &mut State) {
        let exponents: Vec<i64> = self.queries.exponents(query).iter().map(|e| e - cotangent.exponent).collect();
        state.add(&exponents, self.queries.mantissas(query), &cotangent.sums);
    }

    /// Appends the gradients of a key from a state of the queries that see it.
    pub fn pull_key(&self, key: usize, to: &mut SegmentGradients) {
        let queries = &to.readers;
        if !self.keep[key] {
            to.keys.extend(std::iter::repeat_n(0.0, self.keys.width));
            to.values.extend(std::iter::repeat_n(0.0, self.value_dim));
            return;
        }
        let exponents = self.keys.exponents(key);
        to.keys.extend(queries.pull(exponents, 0, self.values_and_one(key)));
        let dvalues_and_one = queries.read_at(exponents, self.keys.mantissas(key), 0);
        to.values.extend(&dvalues_and_one[..self.value_dim]);
    }
}

/// Gradient of a row's `[numerators, denominator] / 2^exponent`.
#[derive(Clone, Debug)]
pub struct Cotangent {
    /// Power of two that the denominator carries.
    pub exponent: i64,
    /// `[g, -g.out] / mantissa`.
    pub sums: Vec<f64>,
}

/// Cotangents of the rows; `None` where no gradient arrives or the row sees no key.
///
/// # Shapes
/// grad `[L,E]`.
pub fn cotangents(outputs: &Outputs, grad: &[f64], value_dim: usize) -> Vec<Option<Cotangent>> {
    let of_row = |(i, denominator): (usize, &Denominator)| {
        let g = &grad[i * value_dim..][..value_dim];
        if denominator.mantissa == 0.0 || g.iter().all(|&g| g == 0.0) {
            return None;
        }
        let out = &outputs.out[i * value_dim..][..value_dim];
        let along = -super::features::dot(g, out);
        let sums = g.iter().copied().chain([along]).map(|g| g / denominator.mantissa).collect();
        Some(Cotangent { exponent: denominator.exponent, sums })
    };
    outputs.denominators.iter().enumerate().map(of_row).collect()
}

/// Outputs of every query, and the state after all keys.
pub fn forward(segment: &HeadSegment<'_>) -> (Outputs, State) {
    let mut state = segment.initial.clone();
    for key in 0..segment.kv_len() {
        segment.add_key(key, &mut state);
    }
    let mut outputs = Outputs::default();
    let num_queries = segment.queries.exponent.len() / segment.queries.width;
    for query in 0..num_queries {
        segment.read(query, &state, &mut outputs);
    }
    (outputs, state)
}

/// Gradients of every row; `arriving` is what arrives at the final state.
pub fn backward(segment: &HeadSegment<'_>, cotangents: &[Option<Cotangent>], arriving: &State) -> SegmentGradients {
    let mut keys = segment.initial.clone();
    for key in 0..segment.kv_len() {
        segment.add_key(key, &mut keys);
    }
    let mut gradients = segment.gradients(arriving);
    for (query, cotangent) in cotangents.iter().enumerate() {
        segment.pull_query(query, cotangent.as_ref(), &keys, &mut gradients);
        if let Some(cotangent) = cotangent {
            segment.add_query(query, cotangent, &mut gradients.readers);
        }
    }
    for key in 0..segment.kv_len() {
        segment.pull_key(key, &mut gradients);
    }
    gradients
}
