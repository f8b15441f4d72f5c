//! From cotangents to gradients: what the readers of a chunk want in the backward pass.

use crate::ops::{CpuElement, Mode, PAD, PANEL, Part, Product, sum_of};
use crate::sweep::{Sweep, Want, keep_lower};
use crate::workspace::CHUNK;
use protperf_core::Family;

impl<E: CpuElement> Sweep<'_, E> {
    /// Cotangents of the chunk's scores: readers' payload against writers' payload, lower triangle.
    pub(crate) fn score_gradient(&mut self, rows: usize) {
        let payload_row = self.widths.payload_row();
        let b = &mut *self.buffers;
        let padded = rows.next_multiple_of(PAD);
        b.writer.payload[rows * payload_row..padded * payload_row].fill(E::ZERO);
        self.ops.transpose(&b.writer.payload, payload_row, padded, payload_row, &mut b.payload_turned, CHUNK);
        let product = Product {
            a: &b.reader.payload,
            a_row: payload_row,
            a_depth: 1,
            b: &b.payload_turned,
            b_row: CHUNK,
            rows,
            cols: padded,
            depth: self.widths.padded_value() + 1,
            mode: Mode::Store,
            part: Part::LowerColumns,
        };
        self.ops.product(&product, &mut b.score_gradient, CHUNK);
        keep_lower(&mut b.score_gradient, rows);
    }

    /// Gradient of some readers' features of one panel, before the features' own factor: into `buffers.gradient`.
    pub(crate) fn feature_gradient(&mut self, panel: usize, half: usize, rows: usize, local: bool) {
        let extent = self.widths.extent(panel, rows);
        let (payload_row, padded_value) = (self.widths.payload_row(), self.widths.padded_value());
        let b = &mut *self.buffers;
        let gradient = &mut b.gradient[half * CHUNK * PANEL..][..CHUNK * PANEL];
        if local {
            let product = Product {
                a: &b.score_gradient,
                a_row: CHUNK,
                a_depth: 1,
                b: &b.written[panel * CHUNK * PANEL..][..CHUNK * PANEL],
                b_row: PANEL,
                rows,
                cols: extent.width(),
                depth: rows,
                mode: Mode::Store,
                part: Part::LowerDepth,
            };
            self.ops.product(&product, gradient, PANEL);
        } else {
            gradient[..rows * PANEL].fill(E::ZERO);
        }
        let values = &b.state.values[panel * PANEL * padded_value..];
        self.ops.transpose(values, padded_value, extent.width(), padded_value, &mut b.turned, PANEL);
        b.turned[padded_value * PANEL..][..PANEL].copy_from_slice(&b.state.sums[panel * PANEL..][..PANEL]);
        let product = Product {
            a: &b.reader.payload,
            a_row: payload_row,
            a_depth: 1,
            b: &b.turned,
            b_row: PANEL,
            rows,
            cols: extent.width(),
            depth: padded_value + 1,
            mode: Mode::Add,
            part: Part::Full,
        };
        self.ops.product(&product, gradient, PANEL);
    }

    /// From gradients of features to gradients of projections, one panel of them: in `buffers.gradient`.
    pub(crate) fn log_gradient(&mut self, panel: usize, rows: std::ops::Range<usize>) {
        let extent = self.widths.extent(panel, rows.len());
        let panels = self.widths.projection_panels();
        let b = &mut *self.buffers;
        let at = (panel * CHUNK + rows.start) * PANEL;
        let norms = &mut b.norms[rows.start * PAD..];
        match self.widths.map.family() {
            Family::Exponential => {
                self.ops.times_features(&b.read[rows.start * PANEL..], extent, &mut b.gradient, norms);
            }
            Family::Activation => {
                let factor = &b.factor[rows.start..];
                self.ops.activation_gradient(&b.reader.y[at..], extent, self.widths.map, factor, &mut b.gradient);
            }
            Family::Trigonometric => {
                let (cosines, sines) = (&b.reader.y[at..], &b.reader.y[at + panels * CHUNK * PANEL..]);
                let (to, from) = b.gradient.split_at_mut(CHUNK * PANEL);
                for row in 0..rows.len() {
                    let factor = b.factor[rows.start + row];
                    for i in row * PANEL..row * PANEL + extent.features {
                        let (by_cosine, by_sine) = (to[i] * factor, from[i] * factor);
                        norms[row * PAD] += by_cosine * cosines[i] + by_sine * sines[i];
                        to[i] = by_sine * cosines[i] - by_cosine * sines[i];
                    }
                }
            }
        }
    }

    /// From gradients of features to gradients of inputs and directions, one panel of projections; rows that have
    /// been redone come from the stash.
    pub(crate) fn add_input_gradient(&mut self, panel: usize, rows: usize, redone: &[usize], want: Want) {
        self.log_gradient(panel, 0..rows);
        let extent = self.widths.extent(panel, rows);
        let padded_head = self.widths.padded_head();
        let b = &mut *self.buffers;
        for &row in redone {
            let stashed = &b.stash[(panel * CHUNK + row) * PANEL..][..PANEL];
            b.gradient[row * PANEL..][..PANEL].copy_from_slice(stashed);
        }
        let product = Product {
            a: &b.gradient,
            a_row: PANEL,
            a_depth: 1,
            b: &self.weights.rows[panel * PANEL * padded_head..],
            b_row: padded_head,
            rows,
            cols: padded_head,
            depth: extent.features,
            mode: Mode::Continue,
            part: Part::Full,
        };
        self.ops.product(&product, &mut b.input_gradient, padded_head);
        if want.directions {
            let product = Product {
                a: &b.gradient,
                a_row: 1,
                a_depth: PANEL,
                b: &b.reader.x,
                b_row: self.widths.input_row(),
                rows: extent.features,
                depth: rows,
                mode: Mode::Add,
                ..product
            };
            self.ops.product(&product, &mut b.direction_gradient[panel * PANEL * padded_head..], padded_head);
        }
    }

    /// The norm's part of the gradient: `-(sum of log-feature gradients) x / sqrt(D)`, plus for trigonometric keys.
    pub(crate) fn finish_input_gradient(&mut self, rows: usize, norm: bool) {
        let family = self.widths.map.family();
        if !norm || family == Family::Activation {
            return;
        }
        let sign = if family == Family::Exponential { -1.0 } else { 1.0 };
        let scale = E::from_f64(sign / (self.widths.head_dim as f64).sqrt());
        let (input_row, padded_head) = (self.widths.input_row(), self.widths.padded_head());
        let b = &mut *self.buffers;
        for row in 0..rows {
            let sum = sum_of(&b.norms[row * PAD..][..PAD]) * scale;
            let x = &b.reader.x[row * input_row..][..self.widths.head_dim];
            for (g, &x) in b.input_gradient[row * padded_head..].iter_mut().zip(x) {
                *g += sum * x;
            }
        }
    }
}
