//! From the caller's strided tensors to the rows of a chunk: `docs/algorithm.md`, section 1, first step.

use crate::chunk::Loaded;
use crate::features::{Family, Norm};
use crate::layout::Layout;
use crate::ops::{CpuElement, Ops, StridedRows};
use crate::packed_omega::PackedOmega;
use crate::plan::{HeadSegment, Plan};
use crate::rows::ChunkRows;
use crate::simd::Real;
use crate::stored::CpuStored;
use protperf_core::{FavorArgs, Side, TensorRef};
use std::ops::Range;
use std::sync::Arc;

/// Rows `start..start+len` of one batch entry and head, in forward or reversed time.
#[derive(Clone, Copy)]
pub struct RowView<'a, S> {
    tensor: &'a TensorRef<'a, S>,
    batch: usize,
    head: usize,
    start: usize,
    pub len: usize,
    reversed: bool,
}

impl<'a, S: CpuStored> RowView<'a, S> {
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

    /// The i-th row with its elements adjacent, in the type that is computed in: where they lie, or gathered.
    pub fn adjacent<'b>(&self, i: usize, gathered: &'b mut [S::Compute]) -> &'b [S::Compute]
    where
        'a: 'b,
    {
        self.slice(i).and_then(S::as_computed).unwrap_or_else(|| {
            let [_, _, _, width] = self.tensor.shape();
            match self.slice(i) {
                Some(row) => S::widen_row(row, gathered),
                None => gathered.iter_mut().zip(self.elements(i)).for_each(|(to, x)| *to = x.widen()),
            }
            &gathered[..width]
        })
    }

    /// Some rows of a tensor in forward time.
    pub fn new(tensor: &'a TensorRef<'a, S>, batch: usize, head: usize, range: Range<usize>) -> Self {
        RowView { tensor, batch, head, start: range.start, len: range.len(), reversed: false }
    }

    /// Rows `low..low+count` where one follows another at a fixed step in the type that is computed in: the memory from
    /// the first in forward time on, and the step.
    fn block(&self, low: usize, count: usize) -> Option<(&'a [S::Compute], usize)> {
        let [_, _, row_step, step] = self.tensor.strides();
        let [_, _, _, width] = self.tensor.shape();
        if step != 1 || row_step < 0 || count == 0 || width == 0 {
            return None;
        }
        let earliest = if self.reversed { low + count - 1 } else { low };
        let first = self.tensor.position([self.batch, self.head, self.position(earliest), 0]);
        let len = (count - 1) * row_step as usize + width;
        Some((S::as_computed(&self.tensor.data()[first..first + len])?, row_step as usize))
    }

    /// Loads rows times `scale`, limited to `limit` and followed by zeros, into rows that are `to_step` apart; `gathered`
    /// has room for one row.
    #[allow(clippy::too_many_arguments)]
    pub fn load(
        &self,
        ops: &Ops<S::Compute>,
        low: usize,
        count: usize,
        [scale, limit]: [S::Compute; 2],
        to: &mut [S::Compute],
        to_step: usize,
        gathered: &mut [S::Compute],
    ) {
        let [_, _, _, width] = self.tensor.shape();
        if let Some((rows, step)) = self.block(low, count) {
            let from = StridedRows { data: rows, step, width, count, reversed: self.reversed };
            return ops.load_rows(&from, scale, limit, to, to_step);
        }
        for row in 0..count {
            let from = self.adjacent(low + row, gathered);
            let from = StridedRows { data: from, step: width, width, count: 1, reversed: false };
            ops.load_rows(&from, scale, limit, &mut to[row * to_step..], to_step);
        }
    }

    /// The largest magnitude in some rows, and whether all of them are finite.
    pub fn largest_of(&self, ops: &Ops<S::Compute>, range: Range<usize>) -> (S::Compute, bool) {
        if let Some((rows, step)) = self.block(range.start, range.len()) {
            return ops.largest_of_rows(rows, step, self.tensor.shape()[3], range.len());
        }
        range.map(|i| self.largest(ops, i)).fold((S::Compute::ZERO, true), |(top, all), (largest, finite)| {
            (if largest > top { largest } else { top }, all && finite)
        })
    }

    /// The largest magnitude in the i-th row, and whether all of it is finite.
    pub fn largest(&self, ops: &Ops<S::Compute>, i: usize) -> (S::Compute, bool) {
        match self.slice(i) {
            Some(row) => S::largest(ops, row),
            None => self.elements(i).map(S::widen).fold((S::Compute::ZERO, true), |(largest, finite), x| {
                (if x.abs() > largest { x.abs() } else { largest }, finite && x.is_finite())
            }),
        }
    }

    /// Whether the i-th row holds zeros alone.
    pub fn is_zero(&self, i: usize) -> bool {
        self.elements(i).all(|x| x.widen() == S::Compute::ZERO)
    }

    /// The i-th row where its elements are adjacent.
    fn slice(&self, i: usize) -> Option<&'a [S]> {
        let [_, _, _, width] = self.tensor.shape();
        if self.tensor.strides()[3] != 1 || width == 0 {
            return None;
        }
        let first = self.tensor.position([self.batch, self.head, self.position(i), 0]);
        Some(&self.tensor.data()[first..first + width])
    }

    /// The elements of the i-th row.
    fn elements(&self, i: usize) -> impl Iterator<Item = S> + use<'a, S> {
        let [_, _, _, width] = self.tensor.shape();
        let step = self.tensor.strides()[3];
        let first = if width == 0 { 0 } else { self.tensor.position([self.batch, self.head, self.position(i), 0]) };
        let data = self.tensor.data();
        (0..width).map(move |j| data[first.wrapping_add_signed(j as isize * step)])
    }
}

/// Keys with their values, and which of them are padding.
#[derive(Clone, Copy)]
pub struct KeyView<'a, S> {
    pub keys: RowView<'a, S>,
    pub values: RowView<'a, S>,
    /// `[S]` of the batch entry.
    padding: Option<&'a [bool]>,
}

impl<'a, S: CpuStored> KeyView<'a, S> {
    /// Keys and values of a head of a batch entry, in forward time; `mask` is `[B,S]`.
    pub fn new(
        [k, v]: [&'a TensorRef<'a, S>; 2],
        mask: Option<&'a [bool]>,
        batch: usize,
        head: usize,
        range: Range<usize>,
    ) -> Self {
        let [_, _, kv_len, _] = k.shape();
        let padding = mask.map(|mask| &mask[batch * kv_len..][..kv_len]);
        let [keys, values] = [k, v].map(|tensor| RowView::new(tensor, batch, head, range.clone()));
        KeyView { keys, values, padding }
    }

    /// Whether any of these may be padding.
    pub fn has_padding(&self) -> bool {
        self.padding.is_some()
    }

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
pub struct Loader<'a, S: CpuStored> {
    pub args: &'a FavorArgs<'a, S>,
    pub ops: &'static Ops<S::Compute>,
    pub layout: Layout,
    pub family: Arc<dyn Family<S::Compute>>,
}

impl<'a, S: CpuStored> Loader<'a, S> {
    /// Rows of a tensor that has one row for each query of the segment.
    pub fn queries(&self, plan: &Plan, tensor: &'a TensorRef<'a, S>, segment: &HeadSegment) -> RowView<'a, S> {
        RowView::new(tensor, segment.batch, segment.head, plan.query_range(segment))
    }

    /// Keys and values of the segment.
    pub fn keys(&self, plan: &Plan, segment: &HeadSegment) -> KeyView<'a, S> {
        let (tensors, mask) = ([&self.args.k, &self.args.v], self.args.key_padding_mask);
        KeyView::new(tensors, mask, segment.batch, plan.key_head(segment), plan.key_range(segment))
    }

    /// Loads some keys and their values times `scale`; padding carries zeros and is not visible.
    pub fn load_keys<'b>(
        &self,
        omega: &PackedOmega<S::Compute>,
        rows: &'b mut ChunkRows<S::Compute>,
        from: &KeyView<'_, S>,
        low: usize,
        count: usize,
        scale: S::Compute,
    ) -> Loaded<'b, S::Compute> {
        let norm = self.family.norm();
        let quadratic = omega.key_quadratic.as_deref();
        let loaded = self.load_inputs(rows, &from.keys, low, count, Some((norm, quadratic)));
        for row in (0..count).filter(|&row| from.is_padding(low + row)) {
            loaded.rows.drop_row(&self.layout, row);
        }
        self.load_values(loaded.rows, &from.values, low, count, scale);
        loaded
    }

    /// Loads some queries; what they carry is left as it is.
    pub fn load_queries<'b>(
        &self,
        rows: &'b mut ChunkRows<S::Compute>,
        from: &RowView<'_, S>,
        low: usize,
        count: usize,
    ) -> Loaded<'b, S::Compute> {
        self.load_inputs(rows, from, low, count, None)
    }

    /// Loads inputs, limited so that every product of them is finite; with their norm where they are keys, whose
    /// squares have the factors of the quadratic.
    fn load_inputs<'b>(
        &self,
        rows: &'b mut ChunkRows<S::Compute>,
        from: &RowView<'_, S>,
        low: usize,
        count: usize,
        norm_of_keys: Option<(Norm, Option<&[S::Compute]>)>,
    ) -> Loaded<'b, S::Compute> {
        let scales = InputScales::new(&self.layout, norm_of_keys.map(|(norm, _)| norm));
        let quadratic = norm_of_keys.and_then(|(_, quadratic)| quadratic);
        let mut gathered = std::mem::take(&mut rows.gathered);
        let has_norm = norm_of_keys.is_some_and(|(norm, _)| norm.slope().is_some());
        if !has_norm && from.largest_of(self.ops, low..low + count).1 {
            let by = [S::Compute::ONE, scales.limit];
            from.load(self.ops, low, count, by, &mut rows.x, self.layout.input_row(), &mut gathered);
            (0..count).for_each(|row| scales.note(&self.layout, S::Compute::ZERO, true, rows, row));
            rows.gathered = gathered;
            return Loaded { rows, count, side: if norm_of_keys.is_some() { Side::Key } else { Side::Query } };
        }
        for row in 0..count {
            let from = from.adjacent(low + row, &mut gathered);
            scales.load(self.ops, &self.layout, from, quadratic, rows, row);
        }
        rows.gathered = gathered;
        Loaded { rows, count, side: if norm_of_keys.is_some() { Side::Key } else { Side::Query } }
    }

    /// Loads values times `scale`, each followed by a one; rows that are not visible keep their zeros.
    fn load_values(
        &self,
        rows: &mut ChunkRows<S::Compute>,
        from: &RowView<'_, S>,
        low: usize,
        count: usize,
        scale: S::Compute,
    ) {
        let (width, padded) = (self.layout.value_dim, self.layout.padded_value());
        if rows.visible[..count].iter().all(|&visible| visible) && width > 0 {
            let (step, by) = (self.layout.value_row(), [scale, S::Compute::MAX]);
            from.load(self.ops, low, count, by, &mut rows.values_and_one, step, &mut rows.gathered);
            for row in rows.values_and_one.chunks_exact_mut(step).take(count) {
                row[padded..].fill(S::Compute::ZERO);
                row[padded] = S::Compute::ONE;
            }
            return;
        }
        for row in (0..count).filter(|&row| rows.visible[row]) {
            let to = &mut rows.values_and_one[row * self.layout.value_row()..][..self.layout.value_row()];
            to[..width].copy_from_slice(from.adjacent(low + row, &mut rows.gathered));
            to[width..].fill(S::Compute::ZERO);
            to[padded] = S::Compute::ONE;
            if scale != S::Compute::ONE {
                to[..width].iter_mut().for_each(|x| *x *= scale);
            }
        }
    }
}

/// What the inputs of one side are loaded with.
pub struct InputScales<T> {
    /// Inputs are limited to this, so that every product of them is finite. The scale D^-1/4 is part of the directions,
    /// so the limit of the scaled input is divided by it.
    limit: T,
    /// Times the sum of squares: the column of the norm, and the log of the row's factor.
    to_column: T,
    to_log: T,
}

impl<T: CpuElement> InputScales<T> {
    /// For keys, which have a norm, or for queries.
    pub fn new(layout: &Layout, norm_of_keys: Option<Norm>) -> Self {
        let half_norm = T::from_f64(0.5 / (layout.head_dim as f64).sqrt() * std::f64::consts::LOG2_E);
        let times = |factor: f64| half_norm * T::from_f64(factor);
        let (to_column, to_log) = norm_of_keys.map_or((T::ZERO, T::ZERO), |norm| (times(norm.column), times(norm.log)));
        InputScales { limit: T::LIMIT * T::from_f64(1.0 / layout.input_scale()), to_column, to_log }
    }

    /// Loads one row; the squares in the norm of a key have the factors of the quadratic.
    pub fn load(
        &self,
        ops: &Ops<T>,
        layout: &Layout,
        from: &[T],
        quadratic: Option<&[T]>,
        rows: &mut ChunkRows<T>,
        row: usize,
    ) {
        let x = &mut rows.x[row * layout.input_row()..][..layout.input_row()];
        let (squares, finite) = ops.load_row(from, self.limit, x);
        let squares = quadratic.map_or(squares, |g| ops.weighted_squares(&x[..layout.padded_head()], g));
        self.note(layout, squares, finite, rows, row);
    }

    /// What is known of a row once it is loaded.
    fn note(&self, layout: &Layout, squares: T, finite: bool, rows: &mut ChunkRows<T>, row: usize) {
        rows.x[row * layout.input_row() + layout.head_dim] = squares * self.to_column;
        let log = squares * self.to_log;
        rows.log[row] = log;
        rows.mantissa[row] = exp2_of_fraction(log);
        rows.shift[row] = T::ZERO;
        rows.visible[row] = true;
        rows.finite[row] = finite;
    }
}

/// 2 to the part of a log that its nearest integer leaves.
fn exp2_of_fraction<T: CpuElement>(log: T) -> T {
    // Only trigonometric keys have such a log; the others skip the two calls into the maths library.
    if log == T::ZERO { T::ONE } else { T::from_f64((log - log.round_even()).to_f64().exp2()) }
}
