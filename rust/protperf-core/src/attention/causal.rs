//! Position i sees the keys up to i: the state is read after each key, and gradients of keys gather in reverse.

use super::noncausal::{Cotangent, Line, LineGradients, Outputs};

/// Outputs of every position.
pub fn forward(line: &Line<'_>) -> Outputs {
    let mut state = line.state();
    let mut outputs = Outputs::default();
    for position in 0..line.kv_len() {
        line.add_key(position, &mut state);
        line.read(position, &state, &mut outputs);
    }
    outputs
}

/// Gradients of every position.
pub fn backward(line: &Line<'_>, cotangents: &[Option<Cotangent>]) -> LineGradients {
    let mut keys = line.state();
    let mut gradients = LineGradients::default();
    for (position, cotangent) in cotangents.iter().enumerate() {
        line.add_key(position, &mut keys);
        match cotangent {
            Some(cotangent) => {
                let exponents = line.queries.exponents(position);
                gradients.queries.extend(keys.pull(exponents, cotangent.exponent, &cotangent.payload));
            }
            None => gradients.queries.extend(std::iter::repeat_n(0.0, line.queries.width)),
        }
    }
    let mut later = line.state();
    let mut reversed = LineGradients::default();
    for (position, cotangent) in cotangents.iter().enumerate().rev() {
        if let Some(cotangent) = cotangent {
            line.add_query(position, cotangent, &mut later);
        }
        line.pull_key(position, &later, &mut reversed);
    }
    gradients.keys = rows_reversed(&reversed.keys, line.keys.width);
    gradients.values = rows_reversed(&reversed.values, line.value_dim);
    gradients
}

fn rows_reversed(rows: &[f64], width: usize) -> Vec<f64> {
    rows.chunks_exact(width.max(1)).rev().flatten().copied().collect()
}
