//! From the caller's strided tensors to the chunks of the sweeps.

use crate::ops::{CpuElement, Ops};
use crate::weights::Widths;
use crate::workspace::Side;
use protperf_core::{Family, TensorRef};
use std::ops::Range;

/// Rows `start..start+len` of one batch entry and head, in forward or reversed time.
#[derive(Clone, Copy)]
pub struct Rows<'a, E> {
    pub tensor: &'a TensorRef<'a, E>,
    pub batch: usize,
    pub head: usize,
    pub start: usize,
    pub len: usize,
    pub reversed: bool,
}

impl<'a, E: CpuElement> Rows<'a, E> {
    /// Position in the sequence of the i-th row.
    pub fn position(&self, i: usize) -> usize {
        self.start + if self.reversed { self.len - 1 - i } else { i }
    }

    /// The elements of the i-th row.
    pub fn row(&self, i: usize) -> impl Iterator<Item = E> + Clone + use<'a, E> {
        let [_, _, _, width] = self.tensor.shape();
        let step = self.tensor.strides()[3];
        let first = if width == 0 { 0 } else { self.tensor.position([self.batch, self.head, self.position(i), 0]) };
        let data = self.tensor.data();
        (0..width).map(move |j| data[first.wrapping_add_signed(j as isize * step)])
    }

    /// The i-th row where its elements are adjacent.
    pub fn slice(&self, i: usize) -> Option<&'a [E]> {
        let [_, _, _, width] = self.tensor.shape();
        if self.tensor.strides()[3] != 1 || width == 0 {
            return None;
        }
        let first = self.tensor.position([self.batch, self.head, self.position(i), 0]);
        Some(&self.tensor.data()[first..first + width])
    }

    /// Some of these rows, in forward or reversed time.
    pub fn part(&self, range: Range<usize>, reversed: bool) -> Self {
        debug_assert!(!self.reversed && range.end <= self.len);
        Rows { start: self.start + range.start, len: range.len(), reversed, ..*self }
    }

    /// The i-th row with its elements adjacent: where they lie, or gathered.
    pub fn adjacent<'b>(&self, i: usize, gathered: &'b mut [E]) -> &'b [E]
    where
        'a: 'b,
    {
        self.slice(i).unwrap_or_else(|| {
            let [_, _, _, width] = self.tensor.shape();
            gathered.iter_mut().zip(self.row(i)).for_each(|(to, x)| *to = x);
            &gathered[..width]
        })
    }

    /// The largest magnitude in the i-th row, and whether all of it is finite.
    pub fn largest(&self, ops: &Ops<E>, i: usize) -> (E, bool) {
        match self.slice(i) {
            Some(row) => ops.largest(row),
            None => self.row(i).fold((E::ZERO, true), |(most, finite), x| {
                (if x.abs() > most { x.abs() } else { most }, finite && x.is_finite())
            }),
        }
    }
}

/// Loads the inputs of rows `low..low+rows`, limited so that every product of them is finite.
pub fn load_inputs<E: CpuElement>(
    ops: &Ops<E>,
    side: &mut Side<E>,
    widths: &Widths,
    from: &Rows<'_, E>,
    low: usize,
    rows: usize,
    norm: bool,
) {
    let (d, family) = (widths.head_dim, widths.map.family());
    let limit = E::LIMIT * E::from_f64(1.0 / widths.input_scale());
    let scale = E::from_f64(0.5 / (d as f64).sqrt() * std::f64::consts::LOG2_E);
    for r in 0..rows {
        let row = &mut side.x[r * widths.input_row()..][..widths.input_row()];
        let (squares, finite) = ops.load_row(from.adjacent(low + r, &mut side.gathered), limit, row);
        let half_norm = squares * scale;
        let (in_column, in_log) = match (norm, family) {
            (true, Family::Exponential) => (-half_norm, E::ZERO),
            (true, Family::Trigonometric) => (E::ZERO, half_norm),
            _ => (E::ZERO, E::ZERO),
        };
        row[d] = in_column;
        side.log[r] = in_log;
        side.shift[r] = E::ZERO;
        side.live[r] = true;
        side.finite[r] = finite;
    }
}

/// Loads values times `scale` with a last entry of 1; rows that are not live carry zeros.
pub fn load_values<E: CpuElement>(
    side: &mut Side<E>,
    widths: &Widths,
    from: &Rows<'_, E>,
    low: usize,
    rows: usize,
    scale: E,
) {
    let (width, padded) = (widths.value_dim, widths.padded_value());
    for r in (0..rows).filter(|&r| side.live[r]) {
        let row = &mut side.payload[r * widths.payload_row()..][..widths.payload_row()];
        row[..width].copy_from_slice(from.adjacent(low + r, &mut side.gathered));
        row[width..].fill(E::ZERO);
        row[padded] = E::ONE;
        if scale != E::ONE {
            row[..width].iter_mut().for_each(|x| *x *= scale);
        }
    }
}
