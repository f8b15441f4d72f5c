//! One query alone, with references over its own past: `docs/algorithm.md`, section 6.
//!
//! The slow twin of the fast form, for rows whose references were raised so far by keys that the row does not see that
//! its own terms were flushed to zero. Every sum has the order of the fast form, so that the bits agree wherever both
//! hold: the result of a row does not depend on whether later keys sent it here.

use super::buffers::{GradientBuffers, Keys, Queries, References, Scores, Sums};
use super::gradient::row_over_state;
use super::read::weighted_ones;
use crate::features::{Family, KeyPanel, QueryPanel};
use crate::layout::{CHUNK, PAD, PANEL};
use crate::ops::{CpuElement, Mode, Product, Triangle, sum_of};
use crate::packed_omega::Head;
use crate::products::Place;
use crate::state::State;

/// What a row is computed again from.
pub struct Recompute<'c, 'b, T: CpuElement> {
    pub head: &'c Head<'c, T>,
    pub family: &'c dyn Family<T>,
    pub state: &'c State<T>,
    pub keys: &'c Keys<'b, T>,
    pub queries: &'c Queries<'b, T>,
    pub normalize: bool,
    pub references: &'c mut References<T>,
    pub scores: &'c mut Scores<T>,
    pub sums: &'c mut Sums<T>,
}

impl<T: CpuElement> Recompute<'_, '_, T> {
    /// Computes the sums of a row again.
    pub fn sums(&mut self, row: usize) {
        self.choose_references(row);
        let (layout, sums) = (&self.head.layout, &mut *self.sums);
        let value_row = layout.value_row();
        self.scores.values[row * CHUNK..][..CHUNK].fill(T::ZERO);
        sums.numerator[row * value_row..][..value_row].fill(T::ZERO);
        sums.lanes[row * PAD..][..PAD].fill(T::ZERO);
        // The order of the fast form: of each panel of projections the cosines, then the sines.
        let (panels, all) = (layout.projection_panels(), layout.feature_panels());
        for panel in 0..panels {
            for panel in (panel..all).step_by(panels) {
                self.make_features(panel, row);
                self.add_panel(panel, row);
            }
        }
        self.finish(row);
    }

    /// Puts the gradient of a row's projections and norm where [`super::gradient::add_to_inputs`] and
    /// [`super::gradient::add_norms`] find them at the row's turn.
    pub fn gradient(&mut self, row: usize, gradients: &mut GradientBuffers<T>) {
        self.choose_references(row);
        gradients.norms[row * PAD..][..PAD].fill(T::ZERO);
        let (panels, all) = (self.head.layout.projection_panels(), self.head.layout.feature_panels());
        for panel in 0..panels {
            for (half, panel) in (panel..all).step_by(panels).enumerate() {
                self.make_features(panel, row);
                self.feature_gradient(panel, row, &mut gradients.features[half * CHUNK * PANEL..][..CHUNK * PANEL]);
            }
            let range = row..row + 1;
            let from = QueryPanel {
                panel,
                queries: self.queries.rows,
                range: &range,
                reference: &self.references.reference,
                exponent: &self.sums.exponent,
            };
            let features = &self.sums.features[row * PANEL..];
            let norms = &mut gradients.norms[row * PAD..];
            self.family.pull_back(self.head, &from, features, &mut gradients.features, norms);
            gradients.recomputed[(panel * CHUNK + row) * PANEL..][..PANEL]
                .copy_from_slice(&gradients.features[..PANEL]);
        }
        let norms = &gradients.norms[row * PAD..][..PAD];
        gradients.recomputed_norms[row * PAD..][..PAD].copy_from_slice(norms);
    }

    /// References over the state from before the chunk and the keys up to the row; the row's exponent; the powers of
    /// two from the references of the state that is read to these.
    fn choose_references(&mut self, row: usize) {
        let (head, keys, queries) = (self.head, self.keys.rows, self.queries.rows);
        let (references, sums) = (&mut *self.references, &mut *self.sums);
        references.reference.copy_from_slice(&references.before.reference);
        self.family.raise_reference(head, keys, row + 1, &mut references.reference);
        sums.exponent[row] = if self.normalize {
            let range = row..row + 1;
            self.family.row_tops(
                head,
                queries,
                range,
                &references.reference,
                &mut sums.lanes[row * PAD..],
                &mut sums.tops,
            );
            sums.tops[row]
        } else {
            queries.shift[row]
        };
        let from = if references.is_far { &references.before.reference } else { &self.state.reference };
        let own = references.before.reference.iter().zip(&references.reference);
        for ((power, &from), (&before, &reference)) in references.power.iter_mut().zip(from).zip(own) {
            // A feature that had seen no key before the chunk contributes nothing from the state.
            *power = if before == T::EMPTY_REFERENCE { T::ZERO } else { T::exp2_int(from - reference) };
        }
    }

    /// Features of one panel relative to the row's own references: of the keys up to the row, and of the row.
    fn make_features(&mut self, panel: usize, row: usize) {
        let keys = KeyPanel { panel, keys: self.keys.rows, count: row + 1, reference: &self.references.reference };
        self.family.key_features(self.head, &keys, &mut self.scores.own_keys);
        self.scores.own_keys[(row + 1) * PANEL..(row + 1).next_multiple_of(PAD) * PANEL].fill(T::ZERO);
        self.query_features(panel, row);
    }

    fn query_features(&mut self, panel: usize, row: usize) {
        let range = row..row + 1;
        let queries = QueryPanel {
            panel,
            queries: self.queries.rows,
            range: &range,
            reference: &self.references.reference,
            exponent: &self.sums.exponent,
        };
        self.family.query_features(self.head, &queries, &mut self.sums.features[row * PANEL..]);
    }

    fn add_panel(&mut self, panel: usize, row: usize) {
        let (layout, ops) = (&self.head.layout, self.head.ops);
        let (extent, padded_value) = (layout.extent(panel, 1), layout.padded_value());
        let padded = (row + 1).next_multiple_of(PAD);
        let Scores { own_keys, transposed, values: scores, .. } = &mut *self.scores;
        let alone = Product {
            a: &self.sums.features[row * PANEL..][..PANEL],
            a_row: PANEL,
            a_depth: 1,
            b: own_keys,
            b_row: PANEL,
            rows: 1,
            cols: padded,
            depth: extent.features,
            mode: Mode::Continue,
            triangle: Triangle::Whole,
        };
        let products = self.head.products;
        let left = products.left(Place::Left, &alone);
        products.product_of_transposed(&left, &alone, (transposed, CHUNK), &mut scores[row * CHUNK..], CHUNK);
        drop(left);
        let mut features = [T::ZERO; PANEL];
        features.copy_from_slice(alone.a);
        for (feature, &power) in features.iter_mut().zip(&self.references.power[panel * PANEL..]) {
            *feature *= power;
        }
        let state = if self.references.is_far { &self.references.before } else { self.state };
        if padded_value > 0 {
            let values = &state.values[panel * PANEL * padded_value..];
            let product = Product { a: &features, b: values, b_row: padded_value, cols: padded_value, ..alone };
            products.product(&product, &mut self.sums.numerator[row * layout.value_row()..], layout.value_row());
        }
        ops.dot_rows(&features, extent, &state.sums[panel * PANEL..], &mut self.sums.lanes[row * PAD..]);
    }

    fn feature_gradient(&mut self, panel: usize, row: usize, gradient: &mut [T]) {
        let layout = &self.head.layout;
        let extent = layout.extent(panel, 1);
        let product = Product {
            a: &self.scores.gradient[row * CHUNK..],
            a_row: CHUNK,
            a_depth: 1,
            b: &self.scores.own_keys,
            b_row: PANEL,
            rows: 1,
            cols: extent.width(),
            depth: row + 1,
            mode: Mode::Store,
            triangle: Triangle::Whole,
        };
        self.head.products.product(&product, gradient, PANEL);
        let carried = &self.queries.rows.values_and_one[row * layout.value_row()..];
        let state = if self.references.is_far { &self.references.before } else { self.state };
        let from_state = row_over_state(self.head, panel, state, carried, &mut self.scores.transposed);
        let powers = &self.references.power[panel * PANEL..];
        for ((g, &from_state), &power) in gradient.iter_mut().zip(&from_state).zip(powers) {
            *g += from_state * power;
        }
    }

    fn finish(&mut self, row: usize) {
        let (value_row, padded_value) = (self.head.layout.value_row(), self.head.layout.padded_value());
        let own = &self.scores.values[row * CHUNK..][..=row];
        let carried = &self.keys.rows.values_and_one;
        let product = Product {
            a: own,
            a_row: CHUNK,
            a_depth: 1,
            b: carried,
            b_row: value_row,
            rows: 1,
            cols: padded_value,
            depth: row + 1,
            mode: Mode::Add,
            triangle: Triangle::Whole,
        };
        self.head.products.product(&product, &mut self.sums.numerator[row * value_row..], value_row);
        let own = weighted_ones(own, &carried[padded_value..], value_row);
        self.sums.denominator[row] = sum_of(&self.sums.lanes[row * PAD..][..PAD]) + own;
    }
}
