//! One chunk of linear attention: writers add to a running state, readers read it.
//!
//! Every form is made of this. Forward: keys write `[v, 1]`, queries read. Backward: queries read once more for
//! their own gradient; then, in reversed time, queries write their cotangents and keys read. A reader sees the
//! state of all earlier chunks and, in its own chunk, the writers up to its index.
//!
//! The invariant: a reader's result does not depend, bit for bit, on writers after it. References only move results
//! by powers of two; where one looks so far ahead that something could underflow, the row is computed again alone
//! with references over its own past (`redo`).

use crate::ops::{CpuElement, Extent, Mode, Ops, PAD, PANEL, Part, Product, sum_of};
use crate::weights::{Weights, Widths};
use crate::workspace::{CHUNK, Scratch, Side};
use protperf_core::Family;

/// What the readers of a chunk want.
#[derive(Clone, Copy, Debug, Default)]
pub struct Want {
    /// Sums of payload: numerators and denominators.
    pub sums: bool,
    /// Gradients of the readers' inputs against their payload as cotangent.
    pub gradient: bool,
    /// Gradients of the directions too.
    pub directions: bool,
    /// The row exponent is chosen from the row's largest feature instead of taken from `shift`.
    pub normalize: bool,
    /// Readers also see writers of their own chunk up to their index.
    pub local: bool,
    /// The norm is part of the readers' features.
    pub norm: bool,
}

/// The passes, the directions and the buffers of one task.
pub struct Sweep<'a, E: CpuElement> {
    pub ops: &'static Ops<E>,
    pub weights: &'a Weights<E>,
    pub widths: Widths,
    pub epsilon: E,
    pub buffers: &'a mut Scratch<E>,
}

impl<E: CpuElement> Sweep<'_, E> {
    fn exponential(&self) -> bool {
        self.widths.map.family() == Family::Exponential
    }

    /// Projects the loaded rows of the writers and raises the references; call before [`Sweep::read`].
    pub fn absorb(&mut self, rows: usize, norm: bool) {
        project(self.ops, self.weights, &self.widths, &mut self.buffers.writer, rows, norm, &mut self.buffers.read);
        self.take(rows);
    }

    /// Adds the readers of a chunk, as writers, to `buffers.other`: their projections are made already. Call after
    /// [`Sweep::read`], which must not have seen writers of its own chunk.
    pub fn commit_readers(&mut self, rows: usize) {
        let b = &mut *self.buffers;
        std::mem::swap(&mut b.reader, &mut b.writer);
        std::mem::swap(&mut b.state, &mut b.other);
        self.take(rows);
        self.commit(rows);
        let b = &mut *self.buffers;
        std::mem::swap(&mut b.state, &mut b.other);
    }

    /// Raises the references to the projected writers and makes their features.
    fn take(&mut self, rows: usize) {
        let b = &mut *self.buffers;
        b.reference.copy_from_slice(&b.state.reference);
        for panel in 0..self.widths.panels() {
            let extent = self.widths.extent(panel, rows);
            let reference = &mut b.reference[panel * PANEL..][..PANEL];
            if self.widths.map.family() == Family::Exponential {
                let y = &b.writer.y[panel * CHUNK * PANEL..][..CHUNK * PANEL];
                self.ops.raise_reference(y, extent, &b.writer.live, &b.writer.shift, reference);
            } else {
                raise_scalar(&b.writer, rows, reference);
            }
        }
        let mut furthest = E::ZERO;
        for ((power, &old), &new) in b.power.iter_mut().zip(&b.state.reference).zip(&b.reference) {
            *power = if old == E::NIL { E::ZERO } else { old - new };
            if *power < furthest {
                furthest = *power;
            }
        }
        b.before.reference.copy_from_slice(&b.state.reference);
        b.far = furthest < -E::THETA;
        if b.far {
            b.before.copy_from(&b.state);
        }
        if furthest < E::ZERO {
            let width = self.widths.padded_value();
            self.ops.rescale_rows(&mut b.state.values, width, width, &b.power);
            for (sum, &power) in b.state.sums.iter_mut().zip(&b.power) {
                *sum *= E::exp2_int(power);
            }
        }
        b.state.reference.copy_from_slice(&b.reference);
        let written = std::mem::take(&mut b.written);
        self.buffers.written = self.write_features(written, rows);
    }

    /// Features of the writers relative to the current references.
    fn write_features(&mut self, mut written: Vec<E>, rows: usize) -> Vec<E> {
        for panel in 0..self.widths.panels() {
            let to = &mut written[panel * CHUNK * PANEL..][..CHUNK * PANEL];
            self.writer_panel(panel, rows, to);
            to[rows * PANEL..rows.next_multiple_of(PAD) * PANEL].fill(E::ZERO);
        }
        written
    }

    /// One panel of writers' features relative to `buffers.reference`.
    pub(crate) fn writer_panel(&mut self, panel: usize, rows: usize, to: &mut [E]) {
        let extent = self.widths.extent(panel, rows);
        let b = &mut *self.buffers;
        let y = &b.writer.y[panel * CHUNK * PANEL..][..CHUNK * PANEL];
        let reference = &b.reference[panel * PANEL..][..PANEL];
        if self.widths.map.family() == Family::Exponential {
            self.ops.writer_features(y, extent, &b.writer.live, &b.writer.shift, reference, to);
            return;
        }
        let carried = carried_log(&self.widths);
        for row in 0..rows {
            let log = b.writer.log[row] * carried;
            let whole = log.round_even();
            let power = whole - b.writer.shift[row] - reference[0];
            b.factor[row] = if b.writer.live[row] { exp2(log - whole) * E::exp2_int(power) } else { E::ZERO };
        }
        if self.widths.map.family() == Family::Activation {
            self.ops.activate(y, extent, self.widths.map, self.epsilon, &mut b.read);
            self.ops.scale_rows(&b.read, extent, &b.factor, to);
        } else {
            self.ops.scale_rows(y, extent, &b.factor, to);
        }
    }

    /// Adds the writers of the chunk to the state; call after [`Sweep::read`].
    pub fn commit(&mut self, rows: usize) {
        let (payload_row, padded_value) = (self.widths.payload_row(), self.widths.padded_value());
        let b = &mut *self.buffers;
        for panel in 0..self.widths.panels() {
            let extent = self.widths.extent(panel, rows);
            let features = &b.written[panel * CHUNK * PANEL..][..CHUNK * PANEL];
            let product = Product {
                a: features,
                a_row: 1,
                a_depth: PANEL,
                b: &b.writer.payload,
                b_row: payload_row,
                rows: extent.features,
                cols: padded_value,
                depth: rows,
                mode: Mode::Add,
                part: Part::Full,
            };
            if padded_value > 0 {
                self.ops.product(&product, &mut b.state.values[panel * PANEL * padded_value..], padded_value);
            }
            let last = &b.writer.payload[padded_value..];
            self.ops.add_rows(features, extent, last, payload_row, &mut b.state.sums[panel * PANEL..]);
        }
    }

    /// Computes what the loaded readers want; results are in `numerator`, `denominator`, `exponent` and
    /// `input_gradient`.
    pub fn read(&mut self, rows: usize, want: Want) {
        project(
            self.ops,
            self.weights,
            &self.widths,
            &mut self.buffers.reader,
            rows,
            want.norm,
            &mut self.buffers.read,
        );
        self.buffers.reference.copy_from_slice(&self.buffers.state.reference);
        let mut again = self.row_exponents(rows, want);
        if want.gradient && want.local {
            self.score_gradient(rows);
        }
        self.clear_results(rows);
        if want.gradient && !again.is_empty() {
            again.iter().for_each(|&row| self.redo_gradient(row, want));
            let b = &mut *self.buffers;
            b.reference.copy_from_slice(&b.state.reference);
            again.iter().for_each(|&row| b.exponent[row] = -E::NIL);
        }
        for panel in 0..self.widths.projection_panels() {
            self.read_panel(panel, rows, &again, want);
        }
        if want.sums {
            self.finish_sums(rows, want);
            if want.normalize && want.local && self.exponential() {
                let floor = E::exp2_int(-E::THETA);
                again.extend((0..rows).filter(|&i| self.buffers.denominator[i].abs() < floor));
            }
        }
        if want.gradient {
            let b = &mut *self.buffers;
            for &row in &again {
                b.norms[row * PAD..][..PAD].copy_from_slice(&b.stashed_norms[row * PAD..][..PAD]);
            }
            self.finish_input_gradient(rows, want.norm);
        }
        if want.sums {
            again.iter().for_each(|&row| self.redo_sums(row, want));
        }
    }

    /// Chooses each row's exponent; returns the rows whose references look too far ahead.
    fn row_exponents(&mut self, rows: usize, want: Want) -> Vec<usize> {
        let family = self.widths.map.family();
        let b = &mut *self.buffers;
        b.tops[..rows * PAD].fill(E::NIL + E::NIL);
        if family == Family::Exponential && (want.normalize || want.local) {
            for panel in 0..self.widths.panels() {
                let extent = self.widths.extent(panel, rows);
                let y = &b.reader.y[panel * CHUNK * PANEL..][..CHUNK * PANEL];
                self.ops.reader_top(y, extent, &b.reference[panel * PANEL..], &mut b.tops);
            }
        }
        let mut again = Vec::new();
        let mut seen = b.before.reference[0];
        for row in 0..rows {
            let top = match family {
                Family::Exponential => top_of(&b.tops[row * PAD..][..PAD]),
                _ => b.reference[0] + b.reader.log[row].round_even(),
            };
            let own = b.writer.log[row].round_even() - b.writer.shift[row];
            if want.local && b.writer.live[row] && own > seen {
                seen = own;
            }
            if want.normalize {
                b.exponent[row] = top;
                if want.local && family != Family::Exponential && seen != E::NIL && b.reference[0] - seen > E::THETA {
                    again.push(row);
                }
            } else {
                b.exponent[row] = b.reader.shift[row];
                if want.local && top - b.reader.shift[row] > E::THETA {
                    again.push(row);
                }
            }
        }
        // The rows' features vanish here; `redo_gradient` and `redo_sums` give what they contribute.
        for &row in &again {
            b.exponent[row] = -E::NIL;
        }
        again
    }

    fn clear_results(&mut self, rows: usize) {
        let b = &mut *self.buffers;
        b.scores[..rows * CHUNK].fill(E::ZERO);
        b.numerator[..rows * self.widths.payload_row()].fill(E::ZERO);
        b.lanes[..rows * PAD].fill(E::ZERO);
        b.norms[..rows * PAD].fill(E::ZERO);
        b.input_gradient[..rows * self.widths.padded_head()].fill(E::ZERO);
    }

    /// One panel of projections: features of the readers, and what they contribute.
    fn read_panel(&mut self, panel: usize, rows: usize, redone: &[usize], want: Want) {
        let halves = self.widths.panels() / self.widths.projection_panels();
        for half in 0..halves {
            let at = panel + half * self.widths.projection_panels();
            self.reader_panel(at, 0..rows);
            if want.sums {
                self.add_sums(at, rows, want.local);
            }
            if want.gradient {
                self.feature_gradient(at, half, rows, want.local);
            }
        }
        if want.gradient {
            self.add_input_gradient(panel, rows, redone, want);
        }
    }

    /// Features of some readers relative to `buffers.reference` and their exponents, into `buffers.read`.
    pub(crate) fn reader_panel(&mut self, panel: usize, rows: std::ops::Range<usize>) {
        let extent = self.widths.extent(panel, rows.len());
        let b = &mut *self.buffers;
        let y = &b.reader.y[(panel * CHUNK + rows.start) * PANEL..][..rows.len() * PANEL];
        let reference = &b.reference[panel * PANEL..][..PANEL];
        let to = &mut b.read[rows.start * PANEL..];
        if self.widths.map.family() == Family::Exponential {
            self.ops.reader_features(y, extent, reference, &b.exponent[rows.start..], to);
            return;
        }
        let carried = carried_log(&self.widths);
        for row in rows.clone() {
            let log = b.reader.log[row] * carried;
            let whole = log.round_even();
            b.factor[row] = exp2(log - whole) * E::exp2_int(whole + reference[0] - b.exponent[row]);
        }
        let factor = &b.factor[rows.start..];
        if self.widths.map.family() == Family::Activation {
            self.ops.activate(y, extent, self.widths.map, self.epsilon, &mut b.gradient[CHUNK * PANEL..]);
            self.ops.scale_rows(&b.gradient[CHUNK * PANEL..], extent, factor, to);
        } else {
            self.ops.scale_rows(y, extent, factor, to);
        }
    }

    /// Scores of the chunk, and sums over the state.
    fn add_sums(&mut self, panel: usize, rows: usize, local: bool) {
        let extent = self.widths.extent(panel, rows);
        let (payload_row, padded_value) = (self.widths.payload_row(), self.widths.padded_value());
        let b = &mut *self.buffers;
        let base = Product {
            a: &b.read,
            a_row: PANEL,
            a_depth: 1,
            b: &[],
            b_row: 0,
            rows,
            cols: 0,
            depth: extent.features,
            mode: Mode::Continue,
            part: Part::Full,
        };
        if local {
            let written = &b.written[panel * CHUNK * PANEL..][..CHUNK * PANEL];
            let padded = rows.next_multiple_of(PAD);
            self.ops.transpose(written, PANEL, padded, extent.width(), &mut b.turned, CHUNK);
            let product = Product { b: &b.turned, b_row: CHUNK, cols: padded, part: Part::LowerColumns, ..base };
            self.ops.product(&product, &mut b.scores, CHUNK);
        }
        let values = &b.state.values[panel * PANEL * padded_value..];
        if padded_value > 0 {
            let product = Product { b: values, b_row: padded_value, cols: padded_value, ..base };
            self.ops.product(&product, &mut b.numerator, payload_row);
        }
        self.ops.dot_rows(&b.read, extent, &b.state.sums[panel * PANEL..], &mut b.lanes);
    }

    /// Adds the chunk's own writers to the sums over the state.
    fn finish_sums(&mut self, rows: usize, want: Want) {
        let payload_row = self.widths.payload_row();
        let b = &mut *self.buffers;
        if want.local {
            keep_lower(&mut b.scores, rows);
            self.ops.product(
                &local_sums(&b.scores, &b.writer.payload, &self.widths, rows),
                &mut b.numerator,
                payload_row,
            );
        }
        for row in 0..rows {
            let last = &b.writer.payload[self.widths.padded_value()..];
            let own = if want.local { weighted(&b.scores[row * CHUNK..][..=row], last, payload_row) } else { E::ZERO };
            b.denominator[row] = sum_of(&b.lanes[row * PAD..][..PAD]) + own;
        }
    }
}

/// `scores . payload` of a chunk, without the payload's last entry.
fn local_sums<'a, E>(scores: &'a [E], payload: &'a [E], widths: &Widths, rows: usize) -> Product<'a, E> {
    Product {
        a: scores,
        a_row: CHUNK,
        a_depth: 1,
        b: payload,
        b_row: widths.payload_row(),
        rows,
        cols: widths.padded_value(),
        depth: rows,
        mode: Mode::Add,
        part: Part::LowerDepth,
    }
}

/// Projections of the loaded rows: log-features in bits, plain projections, or cosines and sines.
fn project<E: CpuElement>(
    ops: &Ops<E>,
    weights: &Weights<E>,
    widths: &Widths,
    side: &mut Side<E>,
    rows: usize,
    norm: bool,
    spare: &mut [E],
) {
    let depth = widths.head_dim + usize::from(norm && widths.map.family() == Family::Exponential);
    let panels = widths.projection_panels();
    for panel in 0..panels {
        let extent = widths.extent(panel, rows);
        let product = Product {
            a: &side.x,
            a_row: widths.input_row(),
            a_depth: 1,
            b: &weights.columns[panel * (widths.head_dim + 1) * PANEL..],
            b_row: PANEL,
            rows,
            cols: extent.width(),
            depth,
            mode: Mode::Store,
            part: Part::Full,
        };
        if widths.map.family() != Family::Trigonometric {
            ops.product(&product, &mut side.y[panel * CHUNK * PANEL..], PANEL);
            if widths.map.family() == Family::Activation {
                raise_row_logs(side, panel, extent);
            }
            continue;
        }
        ops.product(&product, spare, PANEL);
        let (cosines, sines) = side.y.split_at_mut(panels * CHUNK * PANEL);
        for row in 0..rows {
            let at = panel * CHUNK * PANEL + row * PANEL;
            for lane in 0..extent.width() {
                let inside = lane < extent.features;
                let (sine, cosine) = spare[row * PANEL + lane].to_f64().sin_cos();
                cosines[at + lane] = if inside { E::from_f64(cosine) } else { E::ZERO };
                sines[at + lane] = if inside { E::from_f64(sine) } else { E::ZERO };
            }
        }
    }
}

/// Rows of huge activation features lose a power of two, so that sums of products with them stay finite.
fn raise_row_logs<E: CpuElement>(side: &mut Side<E>, panel: usize, extent: Extent) {
    let huge = E::from_f64((1u64 << 30) as f64);
    let lines = side.y[panel * CHUNK * PANEL..].chunks_exact(PANEL);
    for (line, log) in lines.zip(&mut side.log).take(extent.rows) {
        let top = line[..extent.features].iter().fold(E::ZERO, |top, &y| if y > top { y } else { top });
        if top > huge {
            let (exponent, _) = (if top > E::LIMIT { E::LIMIT } else { top }).frexp();
            *log = if exponent > *log { exponent } else { *log };
        }
    }
}

/// Raises the one reference of all features to the largest exponent of the live rows.
pub(crate) fn raise_scalar<E: CpuElement>(side: &Side<E>, rows: usize, reference: &mut [E]) {
    let mut top = reference[0];
    for row in (0..rows).filter(|&row| side.live[row]) {
        let own = side.log[row].round_even() - side.shift[row];
        if own > top {
            top = own;
        }
    }
    reference.fill(top);
}

/// 1 where a row's log is a factor beside its projections (trigonometric), 0 where they hold it already.
fn carried_log<E: CpuElement>(widths: &Widths) -> E {
    if widths.map.family() == Family::Trigonometric { E::ONE } else { E::ZERO }
}

/// 2^x of a fraction.
fn exp2<E: CpuElement>(x: E) -> E {
    if x == E::ZERO { E::ONE } else { E::from_f64(x.to_f64().exp2()) }
}

/// Zeroes what lies right of the diagonal in the rows of a chunk.
pub(crate) fn keep_lower<E: CpuElement>(square: &mut [E], rows: usize) {
    for (row, line) in square.chunks_exact_mut(CHUNK).take(rows).enumerate() {
        line[row + 1..].fill(E::ZERO);
    }
}

/// The largest lane, as an integer.
pub(crate) fn top_of<E: CpuElement>(lanes: &[E]) -> E {
    lanes.iter().copied().fold(E::NIL + E::NIL, |top, x| if x > top { x } else { top }).round_even()
}

/// `sum_j scores[j] * last[j * step]`, in order.
pub(crate) fn weighted<E: CpuElement>(scores: &[E], last: &[E], step: usize) -> E {
    scores.iter().enumerate().fold(E::ZERO, |sum, (j, &score)| sum + score * last[j * step])
}
