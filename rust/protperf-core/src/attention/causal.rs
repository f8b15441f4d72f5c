//! Position i sees the keys up to i: the state is read after each key, and gradients of keys gather in reverse.

use super::noncausal::{Cotangent, Line, LineGradients, Outputs};
use super::recurrent::State;

/// Outputs of every position, and the state after the last.
pub fn forward(line: &Line<'_>) -> (Outputs, State) {
    let mut state = line.initial.clone();
    let mut outputs = Outputs::default();
    for position in 0..line.kv_len() {
        line.add_key(position, &mut state);
        line.read(position, &state, &mut outputs);
    }
    (outputs, state)
}

/// Gradients of every position; `arriving` is what arrives at the final state.
pub fn backward(line: &Line<'_>, cotangents: &[Option<Cotangent>], arriving: &State) -> LineGradients {
    let mut keys = line.initial.clone();
    let mut gradients = line.gradients(arriving);
    for (position, cotangent) in cotangents.iter().enumerate() {
        line.add_key(position, &mut keys);
        line.pull_query(position, cotangent.as_ref(), &keys, &mut gradients);
    }
    // A key is read by its own position and all later ones, so the queries are gathered from the end.
    for (position, cotangent) in cotangents.iter().enumerate().rev() {
        if let Some(cotangent) = cotangent {
            line.add_query(position, cotangent, &mut gradients.readers);
        }
        line.pull_key(position, &mut gradients);
    }
    gradients.keys = rows_reversed(&gradients.keys, line.keys.width);
    gradients.values = rows_reversed(&gradients.values, line.value_dim);
    gradients
}

fn rows_reversed(rows: &[f64], width: usize) -> Vec<f64> {
    rows.chunks_exact(width.max(1)).rev().flatten().copied().collect()
}
