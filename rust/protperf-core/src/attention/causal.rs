//! Position i sees the keys up to i: the state is read after each key, and gradients of keys gather in reverse.

use super::noncausal::{Cotangent, HeadSegment, Outputs, SegmentGradients};
use super::recurrent::State;

/// Outputs of every position, and the state after the last.
pub fn forward(segment: &HeadSegment<'_>) -> (Outputs, State) {
    let mut state = segment.initial.clone();
    let mut outputs = Outputs::default();
    for position in 0..segment.kv_len() {
        segment.add_key(position, &mut state);
        segment.read(position, &state, &mut outputs);
    }
    (outputs, state)
}

/// Gradients of every position; `arriving` is what arrives at the final state.
pub fn backward(segment: &HeadSegment<'_>, cotangents: &[Option<Cotangent>], arriving: &State) -> SegmentGradients {
    let mut keys = segment.initial.clone();
    let mut gradients = segment.gradients(arriving);
    for (position, cotangent) in cotangents.iter().enumerate() {
        segment.add_key(position, &mut keys);
        segment.pull_query(position, cotangent.as_ref(), &keys, &mut gradients);
    }
    // A key is read by its own position and all later ones, so the queries are gathered from the end.
    for (position, cotangent) in cotangents.iter().enumerate().rev() {
        if let Some(cotangent) = cotangent {
            segment.add_query(position, cotangent, &mut gradients.readers);
        }
        segment.pull_key(position, &mut gradients);
    }
    gradients.keys = rows_reversed(&gradients.keys, segment.keys.width);
    gradients.values = rows_reversed(&gradients.values, segment.value_dim);
    gradients
}

fn rows_reversed(rows: &[f64], width: usize) -> Vec<f64> {
    rows.chunks_exact(width.max(1)).rev().flatten().copied().collect()
}
