//! One chunk of linear attention: keys add to a running state, queries read it. `docs/algorithm.md`, section 1.
//!
//! Every pass is made of this. Forward: keys add `[v, 1]`, queries read their sums. Backward: queries read once more
//! for their own gradients; then, with time reversed, queries add their cotangents and keys read. A query sees the
//! state of all earlier chunks and, in its own chunk, the keys up to its own position.
//!
//! The invariant: a query's result does not depend, bit for bit, on keys after it. References move results by powers of
//! two alone; where one lies so far above what the query sees that something could underflow, the row is computed again
//! with references over its own past ([`recompute`]).

mod buffers;
mod gradient;
mod read;
mod recompute;

pub use read::keep_lower;

pub use buffers::{Answers, Buffers, Keys, Loaded, Queries, ReadOptions};
#[cfg(test)]
pub use buffers::{GradientBuffers, References, Scores, Sums};

use crate::features::{Family, KeyPanel, QueryPanel};
use crate::layout::{CHUNK, PAD, PANEL};
use crate::ops::{CpuElement, Mode, Product, Triangle};
use crate::packed_omega::Head;
use crate::rows::ChunkRows;
use crate::state::State;
use recompute::Recompute;

/// The stages of the chunks of one head, over one running state.
pub struct Chunk<'a, T: CpuElement> {
    pub head: Head<'a, T>,
    pub family: &'a dyn Family<T>,
    pub state: &'a mut State<T>,
    pub buffers: &'a mut Buffers<T>,
}

impl<T: CpuElement> Chunk<'_, T> {
    /// Projects keys, raises the references of the state to them, and makes their features.
    pub fn project_keys<'b>(&mut self, keys: Loaded<'b, T>, features: &'b mut [T]) -> Keys<'b, T> {
        let Loaded { rows, count, side } = keys;
        self.family.project(&self.head, rows, count, side);
        let value_row = self.head.layout.value_row();
        rows.values_and_one[count * value_row..count.next_multiple_of(PAD) * value_row].fill(T::ZERO);
        self.as_keys(rows, count, features)
    }

    /// Raises the references of the state to queries and makes their features, as of keys that the rows of another chunk
    /// see all of.
    pub fn queries_as_keys<'b>(&mut self, queries: Queries<'b, T>, features: &'b mut [T]) -> Keys<'b, T> {
        Keys { is_causal: false, ..self.as_keys(queries.rows, queries.count, features) }
    }

    fn as_keys<'b>(&mut self, rows: &'b ChunkRows<T>, count: usize, features: &'b mut [T]) -> Keys<'b, T> {
        raise_state(&self.head, self.family, rows, count, self.state, self.buffers);
        key_features(&self.head, self.family, rows, count, &self.state.reference, features);
        Keys { rows, features, count, is_causal: true }
    }

    /// Projects queries.
    pub fn project_queries<'b>(&mut self, queries: Loaded<'b, T>) -> Queries<'b, T> {
        let Loaded { rows, count, side } = queries;
        self.family.project(&self.head, rows, count, side);
        Queries { rows, count, side }
    }

    /// Adds the keys to the state.
    pub fn update_state(&mut self, keys: Keys<'_, T>) {
        add_keys(&self.head, &keys, self.state);
    }

    /// Adds queries, as keys, to a state of their own; `features` is memory for their features.
    pub fn add_queries(&mut self, queries: Queries<'_, T>, features: &mut [T], to: &mut State<T>) {
        let Queries { rows, count, .. } = queries;
        raise_state(&self.head, self.family, rows, count, to, self.buffers);
        key_features(&self.head, self.family, rows, count, &to.reference, features);
        add_keys(&self.head, &Keys { rows, features, count, is_causal: true }, to);
    }

    /// What the queries read: from the state alone, or with `keys` also from these keys, those of their chunk up to their own
    /// position or all of them.
    pub fn read<'c>(
        &'c mut self,
        keys: Option<&Keys<'_, T>>,
        queries: &'c Queries<'_, T>,
        options: ReadOptions,
    ) -> Answers<'c, T> {
        let (head, family) = (self.head, self.family);
        let Buffers { references, scores, sums, .. } = &mut *self.buffers;
        references.reference.copy_from_slice(&self.state.reference);
        // The references are those of all that a query sees, unless later keys have raised them.
        let causal = keys.filter(|keys| keys.is_causal);
        let mut again = read::choose_exponents(&head, family, references, causal, queries, options.normalize, sums);
        let operands = options.gradient.then(|| gradient::prepare(&head, keys, queries, scores));
        self.clear_results(queries.count);
        if let Some(keys) = keys.filter(|_| options.gradient && !again.is_empty()) {
            let (mut recompute, gradients) = self.recompute(keys, queries, options);
            again.iter().for_each(|&row| recompute.gradient(row, gradients));
            let buffers = &mut *self.buffers;
            buffers.references.reference.copy_from_slice(&self.state.reference);
            read::hide_rows(&again, &mut buffers.sums);
        }
        for panel in 0..head.layout.projection_panels() {
            self.read_panel(panel, (keys, queries), operands.as_ref(), &again, options);
        }
        let Buffers { scores, sums, gradients, .. } = &mut *self.buffers;
        if options.sums {
            read::finish(&head, keys, queries.count, scores, sums);
            // Underflow only makes a sum of positive terms smaller, so a small denominator finds every such row.
            if let Some(floor) = family.denominator_floor().filter(|_| options.normalize && causal.is_some()) {
                again.extend((0..queries.count).filter(|&row| sums.denominator[row].abs() < floor));
            }
        }
        if options.gradient {
            gradient::add_norms(&head, family, queries, &again, options.parameters, gradients);
        }
        if let Some(keys) = keys.filter(|_| options.sums && !again.is_empty()) {
            let (mut recompute, _) = self.recompute(keys, queries, options);
            again.iter().for_each(|&row| recompute.sums(row));
        }
        self.answers(queries)
    }

    fn clear_results(&mut self, count: usize) {
        let (layout, Buffers { scores, sums, gradients, .. }) = (&self.head.layout, &mut *self.buffers);
        scores.values[..count * CHUNK].fill(T::ZERO);
        sums.numerator[..count * layout.value_row()].fill(T::ZERO);
        sums.lanes[..count * PAD].fill(T::ZERO);
        gradients.norms[..count * PAD].fill(T::ZERO);
        gradients.inputs[..count * layout.padded_head()].fill(T::ZERO);
    }

    /// One panel of projections: features of the queries, and what they contribute.
    fn read_panel(
        &mut self,
        panel: usize,
        (keys, queries): (Option<&Keys<'_, T>>, &Queries<'_, T>),
        operands: Option<&gradient::Operands<'_>>,
        again: &[usize],
        options: ReadOptions,
    ) {
        let (head, family) = (self.head, self.family);
        let Buffers { references, scores, sums, gradients } = &mut *self.buffers;
        let (range, panels) = (0..queries.count, head.layout.projection_panels());
        let of_panel =
            QueryPanel { panel, queries: queries.rows, range: &range, reference: &references.reference, exponent: &[] };
        for (half, panel) in (panel..head.layout.feature_panels()).step_by(panels).enumerate() {
            let from = QueryPanel { panel, exponent: &sums.exponent, ..of_panel };
            family.query_features(&head, &from, &mut sums.features);
            if options.sums {
                read::add_panel(&head, panel, self.state, keys, queries.count, scores, sums);
            }
            if let Some(operands) = operands {
                let gradient = &mut gradients.features[half * CHUNK * PANEL..][..CHUNK * PANEL];
                gradient::feature_gradient(&head, panel, self.state, operands, (keys, queries), scores, gradient);
            }
        }
        if options.gradient {
            let from = QueryPanel { exponent: &sums.exponent, ..of_panel };
            family.pull_back(&head, &from, &sums.features, &mut gradients.features, &mut gradients.norms);
            gradient::add_to_inputs(&head, panel, queries, again, gradients);
            if options.parameters {
                gradient::add_to_parameters(&head, panel, queries, gradients);
            }
        }
    }

    fn recompute<'c, 'b>(
        &'c mut self,
        keys: &'c Keys<'b, T>,
        queries: &'c Queries<'b, T>,
        options: ReadOptions,
    ) -> (Recompute<'c, 'b, T>, &'c mut buffers::GradientBuffers<T>) {
        let Buffers { references, scores, sums, gradients } = &mut *self.buffers;
        let recompute = Recompute {
            head: &self.head,
            family: self.family,
            state: self.state,
            keys,
            queries,
            normalize: options.normalize,
            references,
            scores,
            sums,
        };
        (recompute, gradients)
    }

    fn answers<'c>(&'c self, queries: &'c Queries<'_, T>) -> Answers<'c, T> {
        let Buffers { sums, gradients, .. } = &*self.buffers;
        Answers {
            rows: queries.rows,
            numerator: &sums.numerator,
            denominator: &sums.denominator,
            exponent: &sums.exponent,
            input_gradient: &gradients.inputs,
        }
    }
}

/// Raises the references of a state to the projected keys and rescales its sums; keeps what the state was before where
/// the references rise so far that sums may vanish.
fn raise_state<T: CpuElement>(
    head: &Head<'_, T>,
    family: &dyn Family<T>,
    keys: &ChunkRows<T>,
    count: usize,
    state: &mut State<T>,
    buffers: &mut Buffers<T>,
) {
    let references = &mut buffers.references;
    references.reference.copy_from_slice(&state.reference);
    family.raise_reference(head, keys, count, &mut references.reference);
    let mut furthest = T::ZERO;
    let raised = state.reference.iter().zip(&references.reference);
    for (power, (&old, &new)) in references.power.iter_mut().zip(raised) {
        // The sums of a feature that has seen no key are 0 at any reference.
        *power = if old == T::EMPTY_REFERENCE { T::ZERO } else { old - new };
        if *power < furthest {
            furthest = *power;
        }
    }
    references.before.reference.copy_from_slice(&state.reference);
    references.is_far = furthest < -T::MAX_LOOKAHEAD_BITS;
    if references.is_far {
        references.before.copy_from(state);
    }
    if furthest < T::ZERO {
        state.rescale(head.ops, &head.layout, &references.power);
    }
    state.reference.copy_from_slice(&references.reference);
}

/// Features of all panels of some keys.
fn key_features<T: CpuElement>(
    head: &Head<'_, T>,
    family: &dyn Family<T>,
    keys: &ChunkRows<T>,
    count: usize,
    reference: &[T],
    to: &mut [T],
) {
    for (panel, to) in to.chunks_exact_mut(CHUNK * PANEL).enumerate() {
        family.key_features(head, &KeyPanel { panel, keys, count, reference }, to);
        to[count * PANEL..count.next_multiple_of(PAD) * PANEL].fill(T::ZERO);
    }
}

/// `S = S + phi_k^T . [v, 1]`, the sum over the chunk starting from 0.
fn add_keys<T: CpuElement>(head: &Head<'_, T>, keys: &Keys<'_, T>, state: &mut State<T>) {
    state.has_keys = true;
    let (value_row, padded_value) = (head.layout.value_row(), head.layout.padded_value());
    let mut right = None;
    for (panel, features) in keys.features.chunks_exact(CHUNK * PANEL).enumerate() {
        let extent = head.layout.extent(panel, keys.count);
        let product = Product {
            a: features,
            a_row: 1,
            a_depth: PANEL,
            b: &keys.rows.values_and_one,
            b_row: value_row,
            rows: extent.features,
            cols: padded_value,
            depth: keys.count,
            mode: Mode::Add,
            triangle: Triangle::Whole,
        };
        if padded_value > 0 {
            let values = right.get_or_insert_with(|| head.products.right(&product));
            let to = &mut state.values[panel * PANEL * padded_value..];
            head.products.product_with(values, &product, to, padded_value);
        }
        let ones = &keys.rows.values_and_one[padded_value..];
        head.ops.add_rows(features, extent, ones, value_row, &mut state.sums[panel * PANEL..]);
    }
}
