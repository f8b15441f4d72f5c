//! Outputs of exact attention, a block of queries at a time: `docs/algorithm.md`, section 8.

use super::call::{Call, Square, limits};
use super::scratch::Scratch;
use crate::layout::{CHUNK, Extent, PAD};
use crate::load::KeyView;
use crate::ops::{CpuElement, Mode, Product, Triangle, sum_of};
use crate::out_rows::{OutRows, RowsMut};
use crate::plan::HeadSegment;
use crate::products::{Packed, Products};
use crate::scan::KeyScan;
use crate::shared_out::SharedOut;
use crate::simd::Real;
use crate::stored::{CpuStored, nan};
use protperf_core::{Element, Result, try_reserved};
use std::ops::Range;

/// Queries of one task: enough that loading a chunk of keys for them costs little, and few enough for L2.
const BLOCK: usize = 256;

/// Runs a checked call.
///
/// # Errors
/// `OutOfMemory`, `Interrupted`.
pub fn run<S: CpuStored>(call: &Call<'_, S>, out: OutRows<'_, S>, den: Option<&mut [S::Compute]>) -> Result<()> {
    let (cut, mut segments) = call.plan.head_segments()?;
    segments.extend(cut);
    let blocks = |segment: &HeadSegment| call.plan.query_range(segment).len().div_ceil(BLOCK);
    let mut tasks = try_reserved(segments.iter().map(blocks).sum())?;
    for segment in &segments {
        // Causal blocks cost more towards the end: the longest first.
        tasks.extend((0..blocks(segment)).rev().map(|block| (segment, block * BLOCK)));
    }
    let den = den.map(SharedOut::new);
    call.workers.run(tasks.len(), |task| {
        let (segment, low) = tasks[task];
        let range = low..call.plan.query_range(segment).len().min(low + BLOCK);
        let (first, row) = (call.plan.query_range(segment).start, call.plan.first_query(segment) + low);
        // SAFETY: a task has the rows of one block of one head segment.
        let out = unsafe { out.rows(segment.batch, segment.head, first + range.start..first + range.end) };
        // SAFETY: the same.
        let den = den.as_ref().map(|den| unsafe { den.range(row * 2, range.len() * 2) });
        call.with_scratch(|scratch, products| QueryBlock { call, products, segment, range, out, den }.run(scratch))
    })
}

/// The queries of one task.
struct QueryBlock<'a, S: CpuStored> {
    call: &'a Call<'a, S>,
    products: Products<'a, S::Compute>,
    segment: &'a HeadSegment,
    /// Rows of the segment.
    range: Range<usize>,
    out: RowsMut<'a, S>,
    den: Option<&'a mut [S::Compute]>,
}

impl<S: CpuStored> QueryBlock<'_, S> {
    fn run(mut self, scratch: &mut Scratch<S::Compute>) -> Result<()> {
        let (call, shape, rows) = (self.call, &self.call.plan.shape, self.range.len());
        scratch.grow(rows, shape.head_dim, shape.value_dim, false)?;
        let keys = call.keys(self.segment);
        let seen = call.seen(self.segment, self.range.end - 1);
        let scan = KeyScan::new(&call.workers, call.ops, &keys, 0..seen)?;
        // Rows from here on see a key that is not finite.
        let usable = (0..rows).find(|&row| call.reaches(&scan, self.range.start + row)).unwrap_or(rows);
        if usable > 0 {
            self.load_queries(usable, scratch);
            let seen = call.seen(self.segment, self.range.start + usable - 1);
            for low in (0..seen).step_by(CHUNK) {
                call.workers.check()?;
                let count = CHUNK.min(seen - low);
                load_chunk(call, &self.products, &keys, low, count, scan.value_scales().0, scratch);
                self.attend(&keys, low, count, usable, scratch);
            }
        }
        self.store(usable, &scan, scratch);
        Ok(())
    }

    fn load_queries(&self, usable: usize, scratch: &mut Scratch<S::Compute>) {
        let (call, (limit, _)) = (self.call, limits());
        let (d, e) = (padded(call.plan.shape.head_dim), padded(call.plan.shape.value_dim));
        let rows = call.queries(&call.args.q, self.segment);
        let by = [call.query_scale(), limit];
        rows.load(call.ops, self.range.start, usable, by, &mut scratch.queries, d, &mut scratch.gathered);
        scratch.of_queries[..usable * e].fill(S::Compute::ZERO);
        scratch.sums[..usable * PAD].fill(S::Compute::ZERO);
        scratch.maxima[..usable].fill(S::Compute::EMPTY_REFERENCE);
    }

    /// Adds a chunk of keys to the sums of all queries that see some of them.
    fn attend(
        &self,
        keys: &KeyView<'_, S>,
        low: usize,
        count: usize,
        usable: usize,
        scratch: &mut Scratch<S::Compute>,
    ) {
        let e = padded(self.call.plan.shape.value_dim);
        let packed_keys = pack_keys(self.call, &self.products, &scratch.keys, count);
        let mut packed_values = None;
        for first in (0..usable).step_by(CHUNK) {
            let rows = CHUNK.min(usable - first);
            let square = Square { row: self.range.start + first, rows, key: low, keys: count };
            if self.call.seen(self.segment, square.row + rows - 1) <= low {
                continue;
            }
            let d = padded(self.call.plan.shape.head_dim);
            let queries = &scratch.queries[first * d..];
            let keys_of = (&packed_keys, &*scratch.transposed_keys);
            score(self.call, &self.products, &square, queries, keys_of, &mut scratch.scores);
            square.hide(self.call, self.segment, keys, &mut scratch.scores);
            let (ops, extent) = (self.call.ops, Extent { rows, features: count });
            let power = &mut scratch.power[first..];
            let sums = &mut scratch.sums[first * PAD..];
            ops.softmax(&mut scratch.scores, extent, &mut scratch.maxima[first..], power, sums);
            let numerators = &mut scratch.of_queries[first * e..];
            ops.rescale_rows(numerators, e, e, &power[..rows]);
            let is_diagonal = square.is_diagonal(self.call);
            let weighted = Product {
                a: &scratch.scores,
                a_row: CHUNK,
                a_depth: 1,
                b: &scratch.values,
                b_row: e + PAD,
                rows,
                cols: e,
                depth: count,
                mode: Mode::Add,
                triangle: if is_diagonal { Triangle::LowerDepth } else { Triangle::Whole },
            };
            let values = packed_values.get_or_insert_with(|| self.products.right(&weighted));
            self.products.product_with(values, &weighted, numerators, e);
        }
    }

    fn store(&mut self, usable: usize, scan: &KeyScan<S::Compute>, scratch: &Scratch<S::Compute>) {
        let (call, zero) = (self.call, S::Compute::ZERO);
        let (e, (_, back)) = (padded(call.plan.shape.value_dim), scan.value_scales());
        let queries = call.queries(&call.args.q, self.segment).part(self.range.clone(), false);
        let (_, all_finite) = queries.largest_of(call.ops, 0..usable);
        for row in 0..self.range.len() {
            let is_bad = row >= usable || !all_finite && !queries.largest(call.ops, row).1;
            let sum = if is_bad { zero } else { sum_of(&scratch.sums[row * PAD..][..PAD]) };
            let to = self.out.row(row);
            if is_bad {
                to.fill(nan());
            } else if sum == zero {
                to.fill(S::round(zero));
            } else {
                let from = &scratch.of_queries[row * e..][..e];
                let inverse = S::Compute::ONE / sum;
                to.iter_mut().zip(from).for_each(|(to, &x)| *to = S::round(limited(x * inverse * back)));
            }
            let Some(den) = &mut self.den else { continue };
            let (exponent, mantissa) = if sum == zero { (zero, zero) } else { sum.frexp() };
            let top = if sum == zero { zero } else { scratch.maxima[row] };
            let mantissa = if is_bad { S::Compute::from_f64(f64::NAN) } else { mantissa };
            den[row * 2..][..2].copy_from_slice(&[top + exponent, mantissa]);
        }
    }
}

/// Width of a row with its padding.
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(PAD)
}

/// Loads keys, and values times `scale` each followed by a one; those that are padding are zeros.
pub fn load_chunk<S: CpuStored>(
    call: &Call<'_, S>,
    products: &Products<'_, S::Compute>,
    keys: &KeyView<'_, S>,
    low: usize,
    count: usize,
    scale: S::Compute,
    scratch: &mut Scratch<S::Compute>,
) {
    let (ops, (limit, largest), zero) = (call.ops, limits(), S::Compute::ZERO);
    let (d, e) = (padded(call.plan.shape.head_dim), padded(call.plan.shape.value_dim));
    let gathered = &mut scratch.gathered;
    keys.keys.load(ops, low, count, [S::Compute::ONE, limit], &mut scratch.keys, d, gathered);
    keys.values.load(ops, low, count, [scale, largest], &mut scratch.values, e + PAD, gathered);
    for row in 0..count {
        let one = &mut scratch.values[row * (e + PAD) + e..][..PAD];
        one.fill(zero);
        one[0] = S::Compute::ONE;
    }
    if keys.has_padding() {
        for row in (0..count).filter(|&row| keys.is_padding(low + row)) {
            scratch.keys[row * d..][..d].fill(zero);
            scratch.values[row * (e + PAD)..][..e + PAD].fill(zero);
        }
    }
    let rows = padded(count);
    scratch.keys[count * d..rows * d].fill(zero);
    scratch.values[count * (e + PAD)..rows * (e + PAD)].fill(zero);
    if !products.is_packed() {
        ops.transpose(&scratch.keys, d, rows, d, &mut scratch.transposed_keys, CHUNK);
    }
}

/// Keys of a chunk as the right operand of scores.
pub fn pack_keys<'m, S: CpuStored>(
    call: &Call<'_, S>,
    products: &Products<'m, S::Compute>,
    keys: &[S::Compute],
    count: usize,
) -> Packed<'m> {
    let shape = &call.plan.shape;
    let product = Product {
        a: &[],
        a_row: 0,
        a_depth: 1,
        b: keys,
        b_row: padded(shape.head_dim),
        rows: 0,
        cols: padded(count),
        depth: shape.head_dim,
        mode: Mode::Store,
        triangle: Triangle::Whole,
    };
    products.split_right(&product)
}

/// Scores `[rows][CHUNK]` of a square, in bits.
pub fn score<S: CpuStored>(
    call: &Call<'_, S>,
    products: &Products<'_, S::Compute>,
    square: &Square,
    queries: &[S::Compute],
    (packed_keys, transposed_keys): (&Packed<'_>, &[S::Compute]),
    to: &mut [S::Compute],
) {
    let product = Product {
        a: queries,
        a_row: padded(call.plan.shape.head_dim),
        a_depth: 1,
        b: transposed_keys,
        b_row: CHUNK,
        rows: square.rows,
        cols: padded(square.keys),
        depth: call.plan.shape.head_dim,
        mode: Mode::Store,
        triangle: if square.is_diagonal(call) { Triangle::LowerColumns } else { Triangle::Whole },
    };
    let left = products.split_left(&product);
    products.split_product(&left, packed_keys, &product, to, CHUNK);
}

/// The nearest finite value: rounding may carry a mean of the largest values past them.
fn limited<T: CpuElement>(x: T) -> T {
    let x = if x > T::MAX { T::MAX } else { x };
    if x < -T::MAX { -T::MAX } else { x }
}
