//! From cotangents to gradients, for the queries of one chunk: `docs/algorithm.md`, section 7.
//!
//! ```text
//! G    = g . [v, 1]^T, causal its lower triangle         cotangents of the scores
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
use crate::products::{Packed, Place};
use crate::rows::ChunkRows;
use crate::state::State;
use protperf_core::Side;

/// Left operands of the products of every panel.
pub struct Operands<'m> {
    /// What the queries carry.
    carried: Packed<'m>,
    /// Cotangents of the chunk's scores, where there are any.
    scores: Option<Packed<'m>>,
}

/// Prepares the gradients of a chunk's queries; with keys, computes the cotangents of its scores first: what queries carry
/// against what keys carry, where a query sees the key.
pub fn prepare<'m, T: CpuElement>(
    head: &Head<'m, T>,
    keys: Option<&Keys<'_, T>>,
    queries: &Queries<'_, T>,
    scores: &mut Scores<T>,
) -> Operands<'m> {
    let (value_row, padded_value) = (head.layout.value_row(), head.layout.padded_value());
    let product = carried_product(head, &queries.rows.values_and_one, queries.count);
    let carried = head.products.left(Place::Carried, &product);
    let Some(keys) = keys else { return Operands { carried, scores: None } };
    let mut ones = [T::ZERO; CHUNK];
    let of_rows = keys.rows.values_and_one.chunks_exact(value_row).map(|row| row[padded_value]);
    ones.iter_mut().zip(of_rows).for_each(|(to, one)| *to = one);
    let product = Product {
        b: &keys.rows.values_and_one,
        b_row: value_row,
        cols: keys.count.next_multiple_of(PAD),
        triangle: if keys.is_causal { Triangle::LowerColumns } else { Triangle::Whole },
        ..product
    };
    let Scores { gradient, transposed_values, .. } = scores;
    head.products.product_with_last(&carried, &product, &ones, (transposed_values, CHUNK), gradient, CHUNK);
    if keys.is_causal {
        keep_lower(gradient, queries.count);
    }
    let of_scores = head.products.left(Place::Shared, &scores_product(gradient, keys, queries.count));
    Operands { carried, scores: Some(of_scores) }
}

/// A product of what some rows carry, the last column left out; its right operand is to be filled in.
fn carried_product<'a, T: CpuElement>(head: &Head<'_, T>, carried: &'a [T], rows: usize) -> Product<'a, T> {
    Product {
        a: carried,
        a_row: head.layout.value_row(),
        a_depth: 1,
        b: &[],
        b_row: 0,
        rows,
        cols: 0,
        depth: head.layout.padded_value(),
        mode: Mode::Store,
        triangle: Triangle::Whole,
    }
}

/// A product of the cotangents of a chunk's scores; its right operand is to be filled in.
fn scores_product<'a, T: CpuElement>(gradient: &'a [T], keys: &Keys<'_, T>, rows: usize) -> Product<'a, T> {
    Product {
        a: gradient,
        a_row: CHUNK,
        a_depth: 1,
        b: &[],
        b_row: 0,
        rows,
        cols: 0,
        depth: keys.count,
        mode: Mode::Store,
        triangle: if keys.is_causal { Triangle::LowerDepth } else { Triangle::Whole },
    }
}

/// Gradients of the features of one panel, before the features' own factor.
pub fn feature_gradient<T: CpuElement>(
    head: &Head<'_, T>,
    panel: usize,
    state: &State<T>,
    operands: &Operands<'_>,
    (keys, queries): (Option<&Keys<'_, T>>, &Queries<'_, T>),
    scores: &mut Scores<T>,
    gradient: &mut [T],
) {
    let extent = head.layout.extent(panel, queries.count);
    match (keys, &operands.scores) {
        (Some(keys), Some(packed)) => {
            let features = &keys.features[panel * CHUNK * PANEL..][..CHUNK * PANEL];
            let product = scores_product(&scores.gradient, keys, queries.count);
            let product = Product { b: features, b_row: PANEL, cols: extent.width(), ..product };
            head.products.product_of(packed, &product, gradient, PANEL);
        }
        _ => gradient[..queries.count * PANEL].fill(T::ZERO),
    }
    if state.has_keys {
        let carried = (&operands.carried, &*queries.rows.values_and_one, queries.count);
        over_state(head, panel, state, carried, Mode::Add, &mut scores.transposed, gradient);
    }
}

/// `g . S^T` of one panel, of what some rows carry.
fn over_state<T: CpuElement>(
    head: &Head<'_, T>,
    panel: usize,
    state: &State<T>,
    (packed, carried, rows): (&Packed<'_>, &[T], usize),
    mode: Mode,
    transposed: &mut [T],
    to: &mut [T],
) {
    let padded_value = head.layout.padded_value();
    let product = Product {
        b: &state.values[panel * PANEL * padded_value..],
        b_row: padded_value,
        cols: head.layout.extent(panel, 0).width(),
        mode,
        ..carried_product(head, carried, rows)
    };
    let sums = &state.sums[panel * PANEL..][..PANEL];
    head.products.product_with_last(packed, &product, sums, (transposed, PANEL), to, PANEL);
}

/// `g . S^T` of one panel and one row.
pub fn row_over_state<T: CpuElement>(
    head: &Head<'_, T>,
    panel: usize,
    state: &State<T>,
    carried: &[T],
    transposed: &mut [T],
) -> [T; PANEL] {
    let mut to = [T::ZERO; PANEL];
    let packed = head.products.left(Place::Left, &carried_product(head, carried, 1));
    over_state(head, panel, state, (&packed, carried, 1), Mode::Store, transposed, &mut to);
    to
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
    head.products.product(&product, &mut gradients.inputs, padded_head);
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
    head.products.product(&product, &mut directions[panel * PANEL * padded_head..], padded_head);
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
