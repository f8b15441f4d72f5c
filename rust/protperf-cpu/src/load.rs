//! From the caller's strided tensors to the rows of a chunk: `docs/algorithm.md`, section 1, first step.

use crate::chunk::Loaded;
use crate::features::Family;
use crate::layout::Layout;
use crate::ops::{CpuElement, Ops};
use crate::plan::{HeadSegment, Plan};
use crate::rows::{ChunkRows, Side};
use protperf_core::{FavorArgs, TensorRef};
use std::ops::Range;
use std::sync::Arc;

/// Rows `start..start+len` of one batch entry and head, in forward or reversed time.
#[derive(Clone, Copy)]
pub struct RowView<'a, T> {
    tensor: &'a TensorRef<'a, T>,
    batch: usize,
    head: usize,
    start: usize,
    pub len: usize,
    reversed: bool,
}

impl<'a, T: CpuElement> RowView<'a, T> {
    /// Position in the sequence of the i-th row.
    pub fn position(&self, i: usize) -> usize {
        self.start + self.index(i)
    }

    /// Index of the i-th row among the rows of the view in forward time.
    pub fn index(&self, i: usize) -> usize {
        if self.reversed { self.len - 1 - i } else { i }
    }

    /// Some of these rows, in forward or reversed time.
    pub fn part(&self, range: Range<usize>, reversed: bool) -> Self {
        debug_assert!(!self.reversed && range.end <= self.len);
        RowView { start: self.start + range.start, len: range.len(), reversed, ..*self }
    }

    /// The i-th row with its elements adjacent: where they lie, or gathered.
    pub fn adjacent<'b>(&self, i: usize, gathered: &'b mut [T]) -> &'b [T]
    where
        'a: 'b,
    {
        self.slice(i).unwrap_or_else(|| {
            let [_, _, _, width] = self.tensor.shape();
            gathered.iter_mut().zip(self.elements(i)).for_each(|(to, x)| *to = x);
            &gathered[..width]
        })
    }

    /// The largest magnitude in the i-th row, and whether all of it is finite.
    pub fn largest(&self, ops: &Ops<T>, i: usize) -> (T, bool) {
        match self.slice(i) {
            Some(row) => ops.largest(row),
            None => self.elements(i).fold((T::ZERO, true), |(largest, finite), x| {
                (if x.abs() > largest { x.abs() } else { largest }, finite && x.is_finite())
            }),
        }
    }

    /// The i-th row where its elements are adjacent.
    fn slice(&self, i: usize) -> Option<&'a [T]> {
        let [_, _, _, width] = self.tensor.shape();
        if self.tensor.strides()[3] != 1 || width == 0 {
            return None;
        }
        let first = self.tensor.position([self.batch, self.head, self.position(i), 0]);
        Some(&self.tensor.data()[first..first + width])
    }

    /// The elements of the i-th row.
    fn elements(&self, i: usize) -> impl Iterator<Item = T> + use<'a, T> {
        let [_, _, _, width] = self.tensor.shape();
        let step = self.tensor.strides()[3];
        let first = if width == 0 { 0 } else { self.tensor.position([self.batch, self.head, self.position(i), 0]) };
        let data = self.tensor.data();
        (0..width).map(move |j| data[first.wrapping_add_signed(j as isize * step)])
    }
}

/// Keys with their values, and which of them are padding.
#[derive(Clone, Copy)]
pub struct KeyView<'a, T> {
    pub keys: RowView<'a, T>,
    pub values: RowView<'a, T>,
    /// `[S]` of the batch entry.
    padding: Option<&'a [bool]>,
}

impl<T: CpuElement> KeyView<'_, T> {
    /// Some of these keys, in forward or reversed time.
    pub fn part(&self, range: Range<usize>, reversed: bool) -> Self {
        KeyView { keys: self.keys.part(range.clone(), reversed), values: self.values.part(range, reversed), ..*self }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len
    }

    /// Whether the i-th key is padding.
    pub fn is_padding(&self, i: usize) -> bool {
        self.padding.is_some_and(|padding| padding[self.keys.position(i)])
    }
}

/// Finds and loads the rows of one call.
pub struct Loader<'a, T: CpuElement> {
    pub args: &'a FavorArgs<'a, T>,
    pub ops: &'static Ops<T>,
    pub layout: Layout,
    pub family: Arc<dyn Family<T>>,
}

impl<'a, T: CpuElement> Loader<'a, T> {
    /// Rows of a tensor that has one row for each query of the segment.
    pub fn queries(&self, plan: &Plan, tensor: &'a TensorRef<'a, T>, part: &HeadSegment) -> RowView<'a, T> {
        let Range { start, end } = plan.query_range(part);
        RowView { tensor, batch: part.batch, head: part.head, start, len: end - start, reversed: false }
    }

    /// Keys and values of the segment.
    pub fn keys(&self, plan: &Plan, part: &HeadSegment) -> KeyView<'a, T> {
        let Range { start, end } = plan.key_range(part);
        let head = plan.key_head(part);
        let rows = |tensor| RowView { tensor, batch: part.batch, head, start, len: end - start, reversed: false };
        let kv_len = plan.shape.kv_len;
        let padding = self.args.key_padding_mask.map(|mask| &mask[part.batch * kv_len..][..kv_len]);
        KeyView { keys: rows(&self.args.k), values: rows(&self.args.v), padding }
    }

    /// Loads some keys and their values times `scale`; padding carries zeros and is not visible.
    pub fn load_keys<'b>(
        &self,
        rows: &'b mut ChunkRows<T>,
        from: &KeyView<'_, T>,
        low: usize,
        count: usize,
        scale: T,
    ) -> Loaded<'b, T> {
        let loaded = self.load_inputs(rows, &from.keys, low, count, Side::Key);
        for row in (0..count).filter(|&row| from.is_padding(low + row)) {
            loaded.rows.drop_row(&self.layout, row);
        }
        self.load_values(loaded.rows, &from.values, low, count, scale);
        loaded
    }

    /// Loads some queries; what they carry is left as it is.
    pub fn load_queries<'b>(
        &self,
        rows: &'b mut ChunkRows<T>,
        from: &RowView<'_, T>,
        low: usize,
        count: usize,
    ) -> Loaded<'b, T> {
        self.load_inputs(rows, from, low, count, Side::Query)
    }

    /// Loads inputs, limited so that every product of them is finite.
    fn load_inputs<'b>(
        &self,
        rows: &'b mut ChunkRows<T>,
        from: &RowView<'_, T>,
        low: usize,
        count: usize,
        side: Side,
    ) -> Loaded<'b, T> {
        let (layout, d) = (&self.layout, self.layout.head_dim);
        // The scale D^-1/4 is part of the directions, so the limit of the scaled input is divided by it here.
        let limit = T::LIMIT * T::from_f64(1.0 / layout.input_scale());
        let half_norm = T::from_f64(0.5 / (d as f64).sqrt() * std::f64::consts::LOG2_E);
        let norm = self.family.norm();
        let (to_column, to_log) = match side {
            Side::Query => (T::ZERO, T::ZERO),
            Side::Key => (half_norm * T::from_f64(norm.column), half_norm * T::from_f64(norm.log)),
        };
        for row in 0..count {
            let x = &mut rows.x[row * layout.input_row()..][..layout.input_row()];
            let (squares, finite) = self.ops.load_row(from.adjacent(low + row, &mut rows.gathered), limit, x);
            x[d] = squares * to_column;
            let log = squares * to_log;
            rows.log[row] = log;
            rows.mantissa[row] = exp2_of_fraction(log);
            rows.shift[row] = T::ZERO;
            rows.visible[row] = true;
            rows.finite[row] = finite;
        }
        Loaded { rows, count, side }
    }

    /// Loads values times `scale`, each followed by a one; rows that are not visible keep their zeros.
    fn load_values(&self, rows: &mut ChunkRows<T>, from: &RowView<'_, T>, low: usize, count: usize, scale: T) {
        let (width, padded) = (self.layout.value_dim, self.layout.padded_value());
        for row in (0..count).filter(|&row| rows.visible[row]) {
            let to = &mut rows.values_and_one[row * self.layout.value_row()..][..self.layout.value_row()];
            to[..width].copy_from_slice(from.adjacent(low + row, &mut rows.gathered));
            to[width..].fill(T::ZERO);
            to[padded] = T::ONE;
            if scale != T::ONE {
                to[..width].iter_mut().for_each(|x| *x *= scale);
            }
        }
    }
}

/// 2 to the part of a log that its nearest integer leaves.
fn exp2_of_fraction<T: CpuElement>(log: T) -> T {
    // Only trigonometric keys have such a log; the others skip the two calls into the maths library.
    if log == T::ZERO { T::ONE } else { T::from_f64((log - log.round_even()).to_f64().exp2()) }
}
