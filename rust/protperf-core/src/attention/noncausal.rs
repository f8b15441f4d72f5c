//! Every query sees every key: one state over all keys, read by each query.

use super::features::Features;
use super::recurrent::{Denominator, State, finish};

/// One batch entry, head and segment, every number of it finite.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Features of the queries.
    pub queries: &'a Features,
    /// Features of the keys.
    pub keys: &'a Features,
    /// `[v, 1]` of each key, `[S,E+1]`.
    pub payloads: &'a [f64],
    /// False where a key is padding, `[S]`.
    pub keep: &'a [bool],
    /// E.
    pub value_dim: usize,
}

/// Outputs `[L,E]` of a line and the denominators `[L]`.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// `[L,E]`.
    pub out: Vec<f64>,
    /// `[L]`.
    pub denominators: Vec<Denominator>,
}

/// Gradients of a line: of the mantissas of its features, and of its values.
#[derive(Clone, Debug, Default)]
pub struct LineGradients {
    /// `[L,F]`.
    pub queries: Vec<f64>,
    /// `[S,F]`.
    pub keys: Vec<f64>,
    /// `[S,E]`.
    pub values: Vec<f64>,
}

impl Line<'_> {
    /// Number of keys.
    pub fn kv_len(&self) -> usize {
        self.keep.len()
    }

    /// An empty state for payloads of this line.
    pub fn state(&self) -> State {
        State::new(self.keys.width, self.value_dim + 1)
    }

    /// `[v, 1]` of a key.
    pub fn payload(&self, key: usize) -> &[f64] {
        &self.payloads[key * (self.value_dim + 1)..][..self.value_dim + 1]
    }

    /// Adds a key to a state, unless it is padding.
    pub fn add_key(&self, key: usize, state: &mut State) {
        if self.keep[key] {
            state.add(self.keys.exponents(key), self.keys.mantissas(key), self.payload(key));
        }
    }

    /// Appends the output of a query.
    pub fn read(&self, query: usize, state: &State, to: &mut Outputs) {
        let (exponent, sums) = state.read(self.queries.exponents(query), self.queries.mantissas(query));
        let denominator = finish(exponent, &sums, &mut to.out);
        to.denominators.push(denominator);
    }

    /// Adds a query with its cotangent to a state of queries; the features lose the denominator's `2^exponent`.
    pub fn add_query(&self, query: usize, cotangent: &Cotangent, state: &mut State) {
        let exponents: Vec<i64> = self.queries.exponents(query).iter().map(|e| e - cotangent.exponent).collect();
        state.add(&exponents, self.queries.mantissas(query), &cotangent.payload);
    }

    /// Appends the gradients of a key from a state of the queries that see it.
    pub fn pull_key(&self, key: usize, queries: &State, to: &mut LineGradients) {
        if !self.keep[key] {
            to.keys.extend(std::iter::repeat_n(0.0, self.keys.width));
            to.values.extend(std::iter::repeat_n(0.0, self.value_dim));
            return;
        }
        let exponents = self.keys.exponents(key);
        to.keys.extend(queries.pull(exponents, 0, self.payload(key)));
        let dpayload = queries.read_at(exponents, self.keys.mantissas(key), 0);
        to.values.extend(&dpayload[..self.value_dim]);
    }
}

/// Gradient of a row's `[numerators, denominator] / 2^exponent`.
#[derive(Clone, Debug)]
pub struct Cotangent {
    /// Power of two that the denominator carries.
    pub exponent: i64,
    /// `[g, -g.out] / mantissa`.
    pub payload: Vec<f64>,
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
        let payload = g.iter().copied().chain([along]).map(|g| g / denominator.mantissa).collect();
        Some(Cotangent { exponent: denominator.exponent, payload })
    };
    outputs.denominators.iter().enumerate().map(of_row).collect()
}

/// Outputs of every query.
pub fn forward(line: &Line<'_>) -> Outputs {
    let mut state = line.state();
    for key in 0..line.kv_len() {
        line.add_key(key, &mut state);
    }
    let mut outputs = Outputs::default();
    let num_queries = line.queries.mantissa.len() / line.queries.width;
    for query in 0..num_queries {
        line.read(query, &state, &mut outputs);
    }
    outputs
}

/// Gradients of every row.
pub fn backward(line: &Line<'_>, cotangents: &[Option<Cotangent>]) -> LineGradients {
    let (mut keys, mut queries) = (line.state(), line.state());
    for key in 0..line.kv_len() {
        line.add_key(key, &mut keys);
    }
    let mut gradients = LineGradients::default();
    for (query, cotangent) in cotangents.iter().enumerate() {
        let Some(cotangent) = cotangent else {
            gradients.queries.extend(std::iter::repeat_n(0.0, line.queries.width));
            continue;
        };
        let exponents = line.queries.exponents(query);
        gradients.queries.extend(keys.pull(exponents, cotangent.exponent, &cotangent.payload));
        line.add_query(query, cotangent, &mut queries);
    }
    for key in 0..line.kv_len() {
        line.pull_key(key, &queries, &mut gradients);
    }
    gradients
}
