//! From cotangents to gradients, for the queries of one chunk: `docs/algorithm.md`, section 7.
//!
//! ```text
//! G    = tril(g . [v, 1]^T)                              cotangents of the scores
//! dphi = g . S^T + G . phi_k                             gradients of the queries' features
//! da   = the family's pull-back of dphi                  gradients of their projections
//! dx   = da . w + norm term,   dw += da^T . x,   dc += sum of da over rows
//! ```

use super::buffers::{GradientBuffers, Keys, Queries, Scores};
use super::read::keep_lower;
use crate::features::Family;
use crate::layout::{CHUNK, Layout, PAD, PANEL};
use crate::ops::{CpuElement, Mode, Product, Triangle, sum_of};
use crate::packed_omega::{Head, constants_of, directions_of};
use crate::rows::{ChunkRows, Side};
use crate::state::State;

/// Cotangents of the chunk's scores: what queries carry against what keys carry, lower triangle.
pub fn score_gradient<T: CpuElement>(
    head: &Head<'_, T>,
    keys: &Keys<'_, T>,
    queries: &Queries<'_, T>,
    scores: &mut Scores<T>,
) {
    let value_row = head.layout.value_row();
    let padded = queries.count.next_multiple_of(PAD);
    let carried = &keys.rows.values_and_one;
    head.ops.transpose(carried, value_row, padded, value_row, &mut scores.transposed_values, CHUNK);
    let product = Product {
        a: &queries.rows.values_and_one,
        a_row: value_row,
        a_depth: 1,
        b: &scores.transposed_values,
        b_row: CHUNK,
        rows: queries.count,
        cols: padded,
        depth: head.layout.padded_value() + 1,
        mode: Mode::Store,
        triangle: Triangle::LowerColumns,
    };
    head.ops.product(&product, &mut scores.gradient, CHUNK);
    keep_lower(&mut scores.gradient, queries.count);
}

/// Gradients of the features of one panel, before the features' own factor.
pub fn feature_gradient<T: CpuElement>(
    head: &Head<'_, T>,
    panel: usize,
    state: &State<T>,
    keys: Option<&Keys<'_, T>>,
    queries: &Queries<'_, T>,
    scores: &mut Scores<T>,
    gradient: &mut [T],
) {
    let extent = head.layout.extent(panel, queries.count);
    match keys {
        Some(keys) => {
            let product = Product {
                a: &scores.gradient,
                a_row: CHUNK,
                a_depth: 1,
                b: &keys.features[panel * CHUNK * PANEL..][..CHUNK * PANEL],
                b_row: PANEL,
                rows: queries.count,
                cols: extent.width(),
                depth: queries.count,
                mode: Mode::Store,
                triangle: Triangle::LowerDepth,
            };
            head.ops.product(&product, gradient, PANEL);
        }
        None => gradient[..queries.count * PANEL].fill(T::ZERO),
    }
    if !state.has_keys {
        return;
    }
    transpose_state(head, panel, state, &mut scores.transposed);
    let carried = &queries.rows.values_and_one;
    let product = over_state(&head.layout, carried, &scores.transposed, queries.count, extent.width(), Mode::Add);
    head.ops.product(&product, gradient, PANEL);
}

/// One panel of the state as `[padded_value + 1][PANEL]`: `kv_state` transposed, then `k_state`.
pub fn transpose_state<T: CpuElement>(head: &Head<'_, T>, panel: usize, state: &State<T>, to: &mut [T]) {
    let padded_value = head.layout.padded_value();
    let width = head.layout.extent(panel, 0).width();
    let values = &state.values[panel * PANEL * padded_value..];
    head.ops.transpose(values, padded_value, width, padded_value, to, PANEL);
    to[padded_value * PANEL..][..PANEL].copy_from_slice(&state.sums[panel * PANEL..][..PANEL]);
}

/// `g . S^T` of one panel.
pub fn over_state<'a, T>(
    layout: &Layout,
    carried: &'a [T],
    transposed_state: &'a [T],
    rows: usize,
    cols: usize,
    mode: Mode,
) -> Product<'a, T> {
    Product {
        a: carried,
        a_row: layout.value_row(),
        a_depth: 1,
        b: transposed_state,
        b_row: PANEL,
        rows,
        cols,
        depth: layout.padded_value() + 1,
        mode,
        triangle: Triangle::Whole,
    }
}

/// Carries the gradients of one panel of projections on to inputs and to directions and constants.
///
/// The gradient of a parameter is a sum over rows, and its order must not depend on which rows were computed again: those
/// of `again` are put into their places first.
pub fn add_to_inputs<T: CpuElement>(
    head: &Head<'_, T>,
    panel: usize,
    queries: &Queries<'_, T>,
    again: &[usize],
    gradients: &mut GradientBuffers<T>,
) {
    let (layout, extent) = (&head.layout, head.layout.extent(panel, queries.count));
    let padded_head = layout.padded_head();
    for &row in again {
        let recomputed = &gradients.recomputed[(panel * CHUNK + row) * PANEL..][..PANEL];
        gradients.features[row * PANEL..][..PANEL].copy_from_slice(recomputed);
    }
    let product = Product {
        a: &gradients.features,
        a_row: PANEL,
        a_depth: 1,
        b: &head.omega.directions(queries.side).rows[panel * PANEL * padded_head..],
        b_row: padded_head,
        rows: queries.count,
        cols: padded_head,
        depth: extent.features,
        mode: Mode::Continue,
        triangle: Triangle::Whole,
    };
    head.ops.product(&product, &mut gradients.inputs, padded_head);
}

/// Adds the gradients of the directions and constants of one panel.
pub fn add_to_parameters<T: CpuElement>(
    head: &Head<'_, T>,
    panel: usize,
    queries: &Queries<'_, T>,
    gradients: &mut GradientBuffers<T>,
) {
    let Some(parameters) = &mut gradients.parameters else { return };
    let (layout, extent) = (&head.layout, head.layout.extent(panel, queries.count));
    let padded_head = layout.padded_head();
    let product = Product {
        a: &gradients.features,
        a_row: 1,
        a_depth: PANEL,
        b: &queries.rows.x,
        b_row: layout.input_row(),
        rows: extent.features,
        cols: padded_head,
        depth: queries.count,
        mode: Mode::Add,
        triangle: Triangle::Whole,
    };
    let directions = directions_of(parameters, queries.side);
    head.ops.product(&product, &mut directions[panel * PANEL * padded_head..], padded_head);
    if let Some(constants) = constants_of(parameters, queries.side) {
        // One factor for all rows: a step of 0.
        head.ops.add_rows(&gradients.features, extent, &[T::ONE], 0, &mut constants[panel * PANEL..][..PANEL]);
    }
}

/// Adds the norm's part of the gradient: the sum of the log-features' gradients times the slope of the norm.
pub fn add_norms<T: CpuElement>(
    head: &Head<'_, T>,
    family: &dyn Family<T>,
    queries: &Queries<'_, T>,
    again: &[usize],
    wants_parameters: bool,
    gradients: &mut GradientBuffers<T>,
) {
    let Some(slope) = family.norm().slope().filter(|_| queries.side == Side::Key) else { return };
    for &row in again {
        let recomputed = &gradients.recomputed_norms[row * PAD..][..PAD];
        gradients.norms[row * PAD..][..PAD].copy_from_slice(recomputed);
    }
    let scale = T::from_f64(slope / (head.layout.head_dim as f64).sqrt());
    let parameters = gradients.parameters.as_mut().filter(|_| wants_parameters);
    let mut of_quadratic = parameters.and_then(|parameters| parameters.key_quadratic.as_mut());
    let rows = gradients.inputs.chunks_exact_mut(head.layout.padded_head()).take(queries.count);
    for (row, inputs) in rows.enumerate() {
        let sum = sum_of(&gradients.norms[row * PAD..][..PAD]) * scale;
        let x = input(queries.rows, &head.layout, row);
        match &head.omega.key_quadratic {
            None => inputs.iter_mut().zip(x).for_each(|(to, &x)| *to += sum * x),
            Some(g) => inputs.iter_mut().zip(x.iter().zip(g)).for_each(|(to, (&x, &g))| *to += sum * (g * x)),
        }
        if let Some(to) = &mut of_quadratic {
            let half = sum * T::from_f64(0.5);
            to.iter_mut().zip(x).for_each(|(to, &x)| *to += half * (x * x));
        }
    }
}

/// The input of one row.
fn input<'a, T: CpuElement>(rows: &'a ChunkRows<T>, layout: &Layout, row: usize) -> &'a [T] {
    &rows.x[row * layout.input_row()..][..layout.head_dim]
}
