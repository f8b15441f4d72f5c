//! From the caller's strided tensors to the chunks of the sweeps.

use crate::ops::CpuElement;
use crate::weights::Widths;
use crate::workspace::Side;
use protperf_core::{Family, TensorRef};

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

    /// Copies the i-th row.
    pub fn copy(&self, i: usize, to: &mut [E]) {
        match self.slice(i) {
            Some(row) => to[..row.len()].copy_from_slice(row),
            None => to.iter_mut().zip(self.row(i)).for_each(|(to, x)| *to = x),
        }
    }

    /// Whether every element of the i-th row is finite.
    pub fn is_finite(&self, i: usize) -> bool {
        match self.slice(i) {
            Some(row) => all_finite(row),
            None => self.row(i).all(|x| x.is_finite()),
        }
    }
}

/// A sum of `x * 0` is 0 exactly where every x is finite; free of branches, so it vectorises.
fn all_finite<E: CpuElement>(row: &[E]) -> bool {
    let mut sums = [E::ZERO; 8];
    let mut blocks = row.chunks_exact(8);
    for block in &mut blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += x * E::ZERO;
        }
    }
    sums.into_iter().chain(blocks.remainder().iter().map(|&x| x * E::ZERO)).all(|x| x == E::ZERO)
}

/// Loads the inputs of rows `low..low+rows`, limited so that every product of them is finite.
pub fn load_inputs<E: CpuElement>(
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
        let row = &mut side.x[r * widths.input_row()..][..1 + d];
        from.copy(low + r, &mut row[..d]);
        let mut squares = [E::ZERO; 8];
        for block in row[..d].chunks_mut(8) {
            for (sum, x) in squares.iter_mut().zip(block) {
                *x = if *x > limit { limit } else { *x };
                *x = if *x < -limit { -limit } else { *x };
                *sum += *x * *x;
            }
        }
        let half_norm = squares.into_iter().fold(E::ZERO, |sum, x| sum + x) * scale;
        let (in_column, in_log) = match (norm, family) {
            (true, Family::Exponential) => (-half_norm, E::ZERO),
            (true, Family::Trigonometric) => (E::ZERO, half_norm),
            _ => (E::ZERO, E::ZERO),
        };
        row[d] = in_column;
        side.log[r] = in_log;
        side.shift[r] = E::ZERO;
        side.live[r] = true;
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
    for r in 0..rows {
        let row = &mut side.payload[r * widths.payload_row()..][..widths.payload_row()];
        row.fill(E::ZERO);
        if side.live[r] {
            from.copy(low + r, &mut row[..widths.value_dim]);
            if scale != E::ONE {
                row[..widths.value_dim].iter_mut().for_each(|x| *x *= scale);
            }
            row[widths.padded_value()] = E::ONE;
        }
    }
}
