//! One reader alone, with references over its own past: the slow twin of `Sweep::read` for rows whose references
//! look too far ahead. Every sum has the order of the fast form, so that the bits agree wherever both hold.

use crate::ops::{CpuElement, Mode, PAD, PANEL, Part, Product, sum_of};
use crate::sweep::{Sweep, Want, raise_scalar, top_of, weighted};
use crate::workspace::CHUNK;
use protperf_core::Family;

impl<E: CpuElement> Sweep<'_, E> {
    /// Computes the sums of row `row` of the chunk again.
    pub(crate) fn redo_sums(&mut self, row: usize, want: Want) {
        self.own_references(row, want);
        let payload_row = self.widths.payload_row();
        let b = &mut *self.buffers;
        b.scores[row * CHUNK..][..CHUNK].fill(E::ZERO);
        b.numerator[row * payload_row..][..payload_row].fill(E::ZERO);
        b.lanes[row * PAD..][..PAD].fill(E::ZERO);
        // The order of `Sweep::read`: each panel's cosines, then its sines.
        let panels = self.widths.projection_panels();
        for panel in 0..panels {
            for at in (panel..self.widths.panels()).step_by(panels) {
                self.own_features(at, row);
                self.redo_panel_sums(at, row);
            }
        }
        self.finish_redone_sums(row);
    }

    /// Puts the gradient of row `row` into the stash, where [`Sweep::add_input_gradient`] finds it at the row's turn:
    /// the gradient of the directions is a sum over rows, and its order must not tell which of them were redone.
    pub(crate) fn redo_gradient(&mut self, row: usize, want: Want) {
        self.own_references(row, want);
        self.buffers.norms[row * PAD..][..PAD].fill(E::ZERO);
        let panels = self.widths.projection_panels();
        for panel in 0..panels {
            for half in 0..self.widths.panels() / panels {
                let at = panel + half * panels;
                self.own_features(at, row);
                self.redo_feature_gradient(at, half, row);
            }
            self.log_gradient(panel, row..row + 1);
            let b = &mut *self.buffers;
            b.stash[(panel * CHUNK + row) * PANEL..][..PANEL].copy_from_slice(&b.gradient[..PANEL]);
        }
        let b = &mut *self.buffers;
        b.stashed_norms[row * PAD..][..PAD].copy_from_slice(&b.norms[row * PAD..][..PAD]);
    }

    /// References over the state from before the chunk and the writers up to `row`; the row's exponent; the powers
    /// from the state's references to these.
    fn own_references(&mut self, row: usize, want: Want) {
        let family = self.widths.map.family();
        let b = &mut *self.buffers;
        b.reference.copy_from_slice(&b.before.reference);
        let top = &mut b.tops[row * PAD..][..PAD];
        top.fill(E::NIL + E::NIL);
        for panel in 0..self.widths.panels() {
            let reference = &mut b.reference[panel * PANEL..][..PANEL];
            if family != Family::Exponential {
                raise_scalar(&b.writer, row + 1, reference);
                continue;
            }
            let written = &b.writer.y[panel * CHUNK * PANEL..][..CHUNK * PANEL];
            let seen = self.widths.extent(panel, row + 1);
            self.ops.raise_reference(written, seen, &b.writer.live, &b.writer.shift, reference);
            let read = &b.reader.y[(panel * CHUNK + row) * PANEL..][..PANEL];
            self.ops.reader_top(read, self.widths.extent(panel, 1), reference, top);
        }
        b.exponent[row] = match (want.normalize, family) {
            (false, _) => b.reader.shift[row],
            (true, Family::Exponential) => top_of(top),
            (true, _) => b.reference[0] + b.reader.log[row].round_even(),
        };
        for (m, power) in b.power.iter_mut().enumerate() {
            let from = if b.far { b.before.reference[m] } else { b.state.reference[m] };
            // An empty state lends nothing.
            let empty = b.before.reference[m] == E::NIL;
            *power = if empty { E::ZERO } else { E::exp2_int(from - b.reference[m]) };
        }
    }

    /// Features of one panel relative to the row's own references: of the writers up to `row`, and of the row.
    fn own_features(&mut self, panel: usize, row: usize) {
        let mut spare = std::mem::take(&mut self.buffers.spare);
        self.writer_panel(panel, row + 1, &mut spare);
        spare[(row + 1) * PANEL..(row + 1).next_multiple_of(PAD) * PANEL].fill(E::ZERO);
        self.buffers.spare = spare;
        self.reader_panel(panel, row..row + 1);
    }

    fn redo_panel_sums(&mut self, panel: usize, row: usize) {
        let extent = self.widths.extent(panel, 1);
        let (payload_row, padded_value) = (self.widths.payload_row(), self.widths.padded_value());
        let b = &mut *self.buffers;
        let padded = (row + 1).next_multiple_of(PAD);
        self.ops.transpose(&b.spare, PANEL, padded, extent.width(), &mut b.turned, CHUNK);
        let read = &mut b.read[row * PANEL..][..PANEL];
        let alone = Product {
            a: &[],
            a_row: PANEL,
            a_depth: 1,
            b: &[],
            b_row: 0,
            rows: 1,
            cols: 0,
            depth: extent.features,
            mode: Mode::Continue,
            part: Part::Full,
        };
        let product = Product { a: read, b: &b.turned, b_row: CHUNK, cols: padded, ..alone };
        self.ops.product(&product, &mut b.scores[row * CHUNK..], CHUNK);
        for (feature, &power) in read.iter_mut().zip(&b.power[panel * PANEL..]) {
            *feature *= power;
        }
        let state = if b.far { &b.before } else { &b.state };
        if padded_value > 0 {
            let values = &state.values[panel * PANEL * padded_value..];
            let product = Product { a: read, b: values, b_row: padded_value, cols: padded_value, ..alone };
            self.ops.product(&product, &mut b.numerator[row * payload_row..], payload_row);
        }
        self.ops.dot_rows(read, extent, &state.sums[panel * PANEL..], &mut b.lanes[row * PAD..]);
        self.reader_panel(panel, row..row + 1);
    }

    fn redo_feature_gradient(&mut self, panel: usize, half: usize, row: usize) {
        let extent = self.widths.extent(panel, 1);
        let (payload_row, padded_value) = (self.widths.payload_row(), self.widths.padded_value());
        let b = &mut *self.buffers;
        let gradient = &mut b.gradient[half * CHUNK * PANEL..][..CHUNK * PANEL];
        let product = Product {
            a: &b.score_gradient[row * CHUNK..],
            a_row: CHUNK,
            a_depth: 1,
            b: &b.spare,
            b_row: PANEL,
            rows: 1,
            cols: extent.width(),
            depth: row + 1,
            mode: Mode::Store,
            part: Part::Full,
        };
        self.ops.product(&product, gradient, PANEL);
        let state = if b.far { &b.before } else { &b.state };
        let values = &state.values[panel * PANEL * padded_value..];
        self.ops.transpose(values, padded_value, extent.width(), padded_value, &mut b.turned, PANEL);
        b.turned[padded_value * PANEL..][..PANEL].copy_from_slice(&state.sums[panel * PANEL..][..PANEL]);
        let product = Product {
            a: &b.reader.payload[row * payload_row..],
            a_row: payload_row,
            b: &b.turned,
            depth: padded_value + 1,
            ..product
        };
        let mut over_state = [E::ZERO; PANEL];
        self.ops.product(&product, &mut over_state, PANEL);
        for ((g, &over), &power) in gradient.iter_mut().zip(&over_state).zip(&b.power[panel * PANEL..]) {
            *g += over * power;
        }
    }

    fn finish_redone_sums(&mut self, row: usize) {
        let (payload_row, padded_value) = (self.widths.payload_row(), self.widths.padded_value());
        let b = &mut *self.buffers;
        let scores = &b.scores[row * CHUNK..][..=row];
        let product = Product {
            a: scores,
            a_row: CHUNK,
            a_depth: 1,
            b: &b.writer.payload,
            b_row: payload_row,
            rows: 1,
            cols: padded_value,
            depth: row + 1,
            mode: Mode::Add,
            part: Part::Full,
        };
        self.ops.product(&product, &mut b.numerator[row * payload_row..], payload_row);
        let own = weighted(scores, &b.writer.payload[padded_value..], payload_row);
        b.denominator[row] = sum_of(&b.lanes[row * PAD..][..PAD]) + own;
    }
}
