//! Gradients of exact attention: `docs/algorithm.md`, section 8.
//!
//! ```text
//! g~_i = [g_i, -g_i . out_i] / p_i                       the cotangent of row i, its sum of weights being p_i 2^T_i
//! for each chunk of keys, for each chunk of queries that see some of them:
//!     W   = 2^(s - T)                                     s as in the forward pass
//!     dv += W^T . g~
//!     dS  = W * (g~ . [v, 1]^T)
//!     dq += dS . k,   dk += dS^T . q
//! ```

use super::call::{Call, ExactSaved, Square, limits};
use super::forward::{load_chunk, pack_keys, padded, score};
use super::scratch::Scratch;
use crate::backward::Accumulator;
use crate::layout::{CHUNK, Extent, PAD};
use crate::load::KeyView;
use crate::ops::{Mode, Product, Triangle};
use crate::out_rows::{OutRows, RowsMut};
use crate::plan::HeadSegment;
use crate::products::{Packed, Place, Products};
use crate::scan::KeyScan;
use crate::simd::Real;
use crate::stored::{CpuStored, nan};
use protperf_core::{Element, Result, try_filled, try_reserved};

/// Runs a checked call: one task per key head and segment, for all query heads that share it.
///
/// # Errors
/// `OutOfMemory`, `Interrupted`.
pub fn run<S: CpuStored>(
    call: &Call<'_, S>,
    saved: &ExactSaved<'_, S>,
    [dq, dk, dv]: [OutRows<'_, S>; 3],
) -> Result<()> {
    // `head_segments` has room for every head segment.
    let (cut, mut head_segments) = call.plan.head_segments()?;
    head_segments.extend(cut);
    let group = call.plan.shape.group().max(1);
    let mut groups = try_reserved(head_segments.len().div_ceil(group))?;
    groups.extend(head_segments.chunks(group));
    call.workers.run(groups.len(), |task| {
        let head_segments = groups[task];
        let (batch, head, range) =
            (head_segments[0].batch, call.plan.key_head(&head_segments[0]), call.plan.key_range(&head_segments[0]));
        // SAFETY: a task has the key rows of one key head and segment, for all query heads that share it.
        let (dk, dv) = unsafe { (dk.rows(batch, head, range.clone()), dv.rows(batch, head, range)) };
        let (mut dk, mut dv) = (Accumulator::new(dk, group)?, Accumulator::new(dv, group)?);
        let keys = call.keys(&head_segments[0]);
        let scan = KeyScan::new(&call.workers, call.ops, &keys, 0..keys.len())?;
        for head_segment in head_segments {
            // SAFETY: a task has the query rows of each of its head segments.
            let dq = unsafe { dq.rows(batch, head_segment.head, call.plan.query_range(head_segment)) };
            call.with_scratch(|scratch, products| {
                let segment = Segment { call, products, saved, head_segment, keys, scan: &scan };
                segment.run(scratch, dq, &mut dk, &mut dv)
            })?;
        }
        dk.finish();
        dv.finish();
        Ok(())
    })
}

/// One query head over its keys.
struct Segment<'a, S: CpuStored> {
    call: &'a Call<'a, S>,
    products: Products<'a, S::Compute>,
    saved: &'a ExactSaved<'a, S>,
    head_segment: &'a HeadSegment,
    keys: KeyView<'a, S>,
    scan: &'a KeyScan<S::Compute>,
}

impl<S: CpuStored> Segment<'_, S> {
    fn run(
        &self,
        scratch: &mut Scratch<S::Compute>,
        mut dq: RowsMut<'_, S>,
        dk: &mut Accumulator<'_, S>,
        dv: &mut Accumulator<'_, S>,
    ) -> Result<()> {
        let (call, shape, rows) = (self.call, &self.call.plan.shape, dq.len());
        let d = padded(shape.head_dim);
        scratch.grow(rows, shape.head_dim, shape.value_dim, true)?;
        let bad = self.load_cotangents(scratch, rows)?;
        scratch.of_queries[..rows * d].fill(S::Compute::ZERO);
        // Keys from here on may hold numbers that are not finite; no row with a finite gradient sees them.
        let usable = self.scan.usable(&(0..self.keys.len()), call.args.causal);
        for low in (0..usable).step_by(CHUNK) {
            call.workers.check()?;
            let count = CHUNK.min(usable - low);
            load_chunk(call, &self.products, &self.keys, low, count, self.scan.value_scales().0, scratch);
            self.chunk(low, count, rows, scratch)?;
            self.store_chunk(low, count, scratch, dk, dv);
        }
        let scale = S::Compute::from_f64(1.0 / (shape.head_dim as f64).sqrt()) * self.scan.value_scales().1;
        for row in 0..rows {
            let from = &scratch.of_queries[row * d..][..d];
            dq.row(row).iter_mut().zip(from).for_each(|(to, &x)| *to = S::round(x * scale));
        }
        self.poison(&bad, dq, dk, dv);
        Ok(())
    }

    /// Loads all queries with their cotangents; returns which rows make NaN. Rows that contribute nothing have an
    /// exponent at which their weights vanish.
    fn load_cotangents(&self, scratch: &mut Scratch<S::Compute>, rows: usize) -> Result<Vec<bool>> {
        let (call, zero) = (self.call, S::Compute::ZERO);
        let (d, e, (limit, _)) = (padded(call.plan.shape.head_dim), padded(call.plan.shape.value_dim), limits());
        let Scratch { queries, cotangents, maxima, gathered, .. } = scratch;
        let tensors = [&call.args.q, &self.saved.out, &self.saved.grad];
        let [q, out, grad] = tensors.map(|tensor| call.queries(tensor, self.head_segment));
        q.load(call.ops, 0, rows, [call.query_scale(), limit], queries, d, gathered);
        let den = &self.saved.den[call.plan.first_query(self.head_segment) * 2..][..rows * 2];
        let (_, all_finite) = q.largest_of(call.ops, 0..rows);
        let mut bad = try_filled(rows, false)?;
        for row in 0..rows {
            call.workers.check_at(row)?;
            let to = &mut cotangents[row * (e + PAD)..][..e + PAD];
            let (largest, finite) = grad.largest(call.ops, row);
            let arrives = largest != zero || !finite;
            let is_finite = finite && (all_finite || q.largest(call.ops, row).1) && !call.reaches(self.scan, row);
            bad[row] = arrives && !is_finite;
            if !arrives || bad[row] || den[2 * row + 1] == zero {
                to.fill(zero);
                maxima[row] = -S::Compute::EMPTY_REFERENCE;
                // What is not finite must not meet a weight of 0.
                queries[row * d..][..d].fill(zero);
                continue;
            }
            maxima[row] = den[2 * row];
            let inverse = S::Compute::ONE / den[2 * row + 1];
            let (of_grad, of_out) = gathered.split_at_mut(e);
            let (grad, out) = (grad.adjacent(row, of_grad), out.adjacent(row, of_out));
            let dot = call.ops.load_cotangent(grad, out, self.scan.value_scales().0, inverse, to);
            to[e] = -dot * inverse;
        }
        Ok(bad)
    }

    /// Gradients of one chunk of keys, and what it adds to those of the queries.
    fn chunk(&self, low: usize, count: usize, rows: usize, scratch: &mut Scratch<S::Compute>) -> Result<()> {
        let (call, zero) = (self.call, S::Compute::ZERO);
        let (d, e) = (padded(call.plan.shape.head_dim), padded(call.plan.shape.value_dim));
        let packed_keys = pack_keys(call, &self.products, &scratch.keys, count);
        if !self.products.is_packed() {
            call.ops.transpose(&scratch.values, e + PAD, padded(count), e + PAD, &mut scratch.transposed_values, CHUNK);
        }
        scratch.of_keys[..count * d].fill(zero);
        scratch.of_values[..count * e].fill(zero);
        for row in (0..rows).step_by(CHUNK) {
            let square = Square { row, rows: CHUNK.min(rows - row), key: low, keys: count };
            if call.seen(self.head_segment, row + square.rows - 1) > low {
                call.workers.check()?;
                self.square(&square, &packed_keys, scratch);
            }
        }
        Ok(())
    }

    fn square(&self, square: &Square, packed_keys: &Packed<'_>, scratch: &mut Scratch<S::Compute>) {
        let (call, ops, products, Square { row, rows, keys, .. }) = (self.call, self.call.ops, &self.products, *square);
        let (d, e) = (padded(call.plan.shape.head_dim), padded(call.plan.shape.value_dim));
        let Scratch { queries, cotangents, scores, gradients, of_queries, of_keys, of_values, .. } = scratch;
        let transposed_values = &mut scratch.transposed_values;
        let (queries, cotangents) = (&queries[row * d..], &cotangents[row * (e + PAD)..]);
        score(call, products, square, queries, (packed_keys, &scratch.transposed_keys), scores);
        square.hide(call, self.head_segment, &self.keys, scores);
        let extent = Extent { rows, features: keys };
        ops.weights(scores, extent, &scratch.maxima[row..]);
        let [whole, columns, depth] = match square.is_diagonal(call) {
            true => [Triangle::Whole, Triangle::LowerColumns, Triangle::LowerDepth],
            false => [Triangle::Whole; 3],
        };
        let by_key = Product {
            a: scores,
            a_row: 1,
            a_depth: CHUNK,
            b: cotangents,
            b_row: e + PAD,
            rows: keys,
            cols: e,
            depth: rows,
            mode: Mode::Add,
            triangle: whole,
        };
        products.product(&by_key, of_values, e);
        let of_scores = Product {
            a: cotangents,
            a_row: e + PAD,
            a_depth: 1,
            b: &scratch.values,
            b_row: e + PAD,
            rows,
            cols: padded(keys),
            depth: e,
            mode: Mode::Store,
            triangle: columns,
        };
        if products.is_packed() {
            let mut ones = [S::Compute::ZERO; CHUNK];
            ones.iter_mut().zip(scratch.values.chunks_exact(e + PAD)).for_each(|(to, row)| *to = row[e]);
            let carried = products.left(Place::Carried, &of_scores);
            products.product_with_last(&carried, &of_scores, &ones, (transposed_values, CHUNK), gradients, CHUNK);
        } else {
            let product = Product { b: transposed_values, b_row: CHUNK, depth: e + 1, ..of_scores };
            ops.product(&product, gradients, CHUNK);
        }
        if columns == Triangle::LowerColumns {
            // Beyond the last tile stands what an earlier square left.
            crate::chunk::keep_lower(gradients, rows);
        }
        ops.multiply(scores, extent, gradients);
        let of_rows = Product {
            a: gradients,
            a_row: CHUNK,
            a_depth: 1,
            b: &scratch.keys,
            b_row: d,
            rows,
            cols: d,
            depth: keys,
            mode: Mode::Add,
            triangle: depth,
        };
        products.product(&of_rows, &mut of_queries[row * d..], d);
        let of_columns = Product { a: gradients, b: queries, b_row: d, cols: d, ..by_key };
        products.product(&of_columns, of_keys, d);
    }

    fn store_chunk(
        &self,
        low: usize,
        count: usize,
        scratch: &Scratch<S::Compute>,
        dk: &mut Accumulator<'_, S>,
        dv: &mut Accumulator<'_, S>,
    ) {
        let shape = &self.call.plan.shape;
        let (d, e) = (padded(shape.head_dim), padded(shape.value_dim));
        // Queries are in bits: times ln 2 they are in natural logarithms.
        let scale = S::Compute::from_f64(std::f64::consts::LN_2) * self.scan.value_scales().1;
        for row in (0..count).filter(|&row| !self.keys.is_padding(low + row)) {
            dk.add(low + row, &scratch.of_keys[row * d..][..shape.head_dim], scale);
            dv.add(low + row, &scratch.of_values[row * e..][..shape.value_dim], S::Compute::ONE);
        }
    }

    /// NaN for rows that make it, and for every key that they see.
    fn poison(&self, bad: &[bool], mut dq: RowsMut<'_, S>, dk: &mut Accumulator<'_, S>, dv: &mut Accumulator<'_, S>) {
        (0..bad.len()).filter(|&row| bad[row]).for_each(|row| dq.row(row).fill(nan()));
        let Some(last) = bad.iter().rposition(|&bad| bad) else { return };
        for key in (0..self.call.seen(self.head_segment, last)).filter(|&key| !self.keys.is_padding(key)) {
            dk.fill_with_nan(key);
            dv.fill_with_nan(key);
        }
    }
}
