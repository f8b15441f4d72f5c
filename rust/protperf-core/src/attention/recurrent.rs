//! The running state and the one-step form: the exact stabilizer, in f64.
//!
//! A state holds, for each feature, the sum of `phi(k) [v, 1]` relative to `2^reference`, where the reference is the
//! largest exponent that the feature has seen. References are integers, so raising one rescales by an exact power
//! of two, and no output depends on which reference was used.

use super::features::{Features, HeadMap, Side, dot, scale2};
use crate::element::Element;
use crate::state::KV_STATE;

/// Reference of a feature that has seen no key.
const EMPTY: i64 = -(1 << 60);

/// Sums over the keys seen so far: `kv_state` and `k_state` with one reference per feature.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    width: usize,
    reference: Vec<i64>,
    /// `[F, width]`.
    sums: Vec<f64>,
}

/// A denominator, `mantissa * 2^exponent` with the mantissa in `±[1/2, 1)`; 0 where the row sees no key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Denominator {
    /// The power of two.
    pub exponent: i64,
    /// The factor of the power of two.
    pub mantissa: f64,
}

impl State {
    /// A state of F features that has seen nothing; rows of `values_and_one` have `width` entries.
    pub fn new(num_features: usize, width: usize) -> Self {
        State { width, reference: vec![EMPTY; num_features], sums: vec![0.0; num_features * width] }
    }

    /// E + 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Reads a state as callers hold it, `[F,2+E]`.
    pub fn import(rows: &[f64], value_dim: usize) -> Self {
        let rows = rows.chunks_exact(KV_STATE + value_dim);
        let mut state = State { width: value_dim + 1, reference: Vec::new(), sums: Vec::new() };
        for row in rows {
            state.reference.push(if row[0] <= f64::EMPTY_REFERENCE { EMPTY } else { row[0] as i64 });
            state.sums.extend(row[KV_STATE..].iter().chain(&row[1..KV_STATE]));
        }
        state
    }

    /// Writes a state as callers hold it, `[F,2+E]`.
    pub fn export(&self, rows: &mut [f64]) {
        let sums = self.sums.chunks_exact(self.width);
        for ((sums, &reference), row) in sums.zip(&self.reference).zip(rows.chunks_exact_mut(self.width + 1)) {
            let (k_state, kv_state) = sums.split_last().expect("a row of sums ends in k_state");
            row[0] = if reference == EMPTY { f64::EMPTY_REFERENCE } else { reference as f64 };
            row[1] = *k_state;
            row[KV_STATE..].copy_from_slice(kv_state);
        }
    }

    /// What arrives at the sums of a final state, as a state of queries: keys read it for their gradients. A feature
    /// counts with `2^-reference`, for its sums are relative to `2^reference`.
    pub fn of_gradient(final_state: &[f64], gradient: &[f64], value_dim: usize) -> Self {
        let mut state = State::import(gradient, value_dim);
        for (reference, row) in state.reference.iter_mut().zip(final_state.chunks_exact(KV_STATE + value_dim)) {
            // The negative of an empty reference would be above all others; no key is there to read it.
            *reference = if row[0] <= f64::EMPTY_REFERENCE { EMPTY } else { -(row[0] as i64) };
        }
        state
    }

    /// The gradient of the sums of an initial state, `[F,2+E]`, from the state of everything that read them.
    pub fn export_gradient(&self, initial: &State, rows: &mut [f64]) {
        let sums = self.sums.chunks_exact(self.width).zip(self.reference.iter().zip(&initial.reference));
        for ((sums, (reference, initial)), row) in sums.zip(rows.chunks_exact_mut(self.width + 1)) {
            // A feature that no key and no query touched passes its gradient through.
            let power = if *reference == EMPTY && *initial == EMPTY { 0 } else { reference + initial };
            let (k_state, kv_state) = sums.split_last().expect("a row of sums ends in k_state");
            row[0] = 0.0;
            row[1] = scale2(*k_state, power);
            row[KV_STATE..].iter_mut().zip(kv_state).for_each(|(to, x)| *to = scale2(*x, power));
        }
    }

    /// Multiplies `kv_state` by `2^power`.
    pub fn scale_values(&mut self, power: i64) {
        for sums in self.sums.chunks_exact_mut(self.width) {
            sums[..self.width - 1].iter_mut().for_each(|sum| *sum = scale2(*sum, power));
        }
    }

    /// The largest magnitude in `kv_state`.
    pub fn largest_value(&self) -> f64 {
        let values = self.sums.chunks_exact(self.width).flat_map(|sums| &sums[..self.width - 1]);
        values.fold(0.0, |largest, x| largest.max(x.abs()))
    }

    /// Adds `feature * values_and_one` to every feature's sum.
    pub fn add(&mut self, exponents: &[i64], mantissas: &[f64], values_and_one: &[f64]) {
        for (m, (&exponent, &mantissa)) in exponents.iter().zip(mantissas).enumerate() {
            let raised = exponent.max(self.reference[m]);
            self.raise(m, raised);
            let feature = scale2(mantissa, exponent - raised);
            for (sum, x) in self.sums[m * self.width..][..self.width].iter_mut().zip(values_and_one) {
                *sum += feature * x;
            }
        }
    }

    /// Adds everything that another state has seen.
    pub fn merge(&mut self, other: &State) {
        for m in 0..self.reference.len() {
            let raised = self.reference[m].max(other.reference[m]);
            self.raise(m, raised);
            for column in 0..self.width {
                let at = m * self.width + column;
                self.sums[at] += scale2(other.sums[at], other.reference[m] - raised);
            }
        }
    }

    fn raise(&mut self, m: usize, raised: i64) {
        let down = self.reference[m] - raised;
        if down == 0 {
            return;
        }
        self.sums[m * self.width..][..self.width].iter_mut().for_each(|sum| *sum = scale2(*sum, down));
        self.reference[m] = raised;
    }

    /// The sum over features of `feature * sum`, as `sums * 2^exponent` with the exponent as large as a term's.
    pub fn read(&self, exponents: &[i64], mantissas: &[f64]) -> (i64, Vec<f64>) {
        let seen = self.reference.iter().zip(exponents).filter(|(n, _)| **n != EMPTY);
        let top = seen.map(|(n, exponent)| n + exponent).max().unwrap_or(0);
        (top, self.read_at(exponents, mantissas, top))
    }

    /// The same sum divided by `2^top`.
    pub fn read_at(&self, exponents: &[i64], mantissas: &[f64], top: i64) -> Vec<f64> {
        let mut total = vec![0.0; self.width];
        for (m, (exponent, mantissa)) in exponents.iter().zip(mantissas).enumerate() {
            let feature = scale2(*mantissa, exponent + self.reference[m] - top);
            for (total, sum) in total.iter_mut().zip(&self.sums[m * self.width..]) {
                *total += feature * sum;
            }
        }
        total
    }

    /// Gradient of the mantissas in a read divided by `2^top`, from the gradient of what was read.
    pub fn pull(&self, exponents: &[i64], top: i64, cotangent: &[f64]) -> Vec<f64> {
        let rows = self.sums.chunks_exact(self.width).zip(&self.reference).zip(exponents);
        rows.map(|((sums, reference), exponent)| scale2(dot(sums, cotangent), exponent + reference - top)).collect()
    }
}

/// Numerators over the denominator, the last sum: 0 where the denominator is.
pub fn finish(exponent: i64, sums: &[f64], out: &mut Vec<f64>) -> Denominator {
    let (&denominator, numerators) = sums.split_last().expect("the sum of the ones is there");
    if denominator == 0.0 {
        out.extend(numerators.iter().map(|_| 0.0));
        return Denominator { exponent: 0, mantissa: 0.0 };
    }
    out.extend(numerators.iter().map(|n| n / denominator));
    let (mantissa, more) = libm::frexp(denominator);
    Denominator { exponent: exponent + i64::from(more), mantissa }
}

/// One head, decoded position by position: each step adds a key and reads a query.
#[derive(Clone, Debug)]
pub struct Decoder {
    map: HeadMap,
    state: State,
}

impl Decoder {
    /// A decoder that has seen nothing.
    pub fn new(map: HeadMap, value_dim: usize) -> Self {
        let state = State::new(map.width(), value_dim + 1);
        Decoder { map, state }
    }

    /// Adds a key `[D]` with its value `[E]`.
    pub fn add(&mut self, key: &[f64], value: &[f64]) {
        let features = self.map.features(key, Side::Key);
        let values_and_one: Vec<f64> = value.iter().copied().chain([1.0]).collect();
        self.state.add(features.exponents(0), features.mantissas(0), &values_and_one);
    }

    /// The output `[E]` of a query `[D]` over the keys added so far.
    pub fn read(&self, query: &[f64]) -> Vec<f64> {
        let features: Features = self.map.features(query, Side::Query);
        let (exponent, sums) = self.state.read(features.exponents(0), features.mantissas(0));
        let mut out = Vec::new();
        finish(exponent, &sums, &mut out);
        out
    }

    /// Adds every key that another decoder of the same head has seen.
    pub fn merge(&mut self, other: &Decoder) {
        self.state.merge(&other.state);
    }
}
