//! What arrives at the outputs of some queries, as the backward passes read it and add it up: `docs/algorithm.md`,
//! section 7.

use crate::call::Call;
use crate::chunk::Loaded;
use crate::load::RowView;
use crate::plan::HeadSegment;
use crate::rows::ChunkRows;
use crate::scan::KeyScan;
use crate::simd::Real;
use crate::stored::CpuStored;
use protperf_core::backend::Saved;
use protperf_core::{Result, try_filled};
use std::ops::Range;

/// Rows that are looked at together.
const ROWS_AT_ONCE: usize = 256;

/// What a query contributes to the gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contribution {
    /// Nothing, even where its output is NaN: no gradient arrives, or it sees no key.
    Nothing,
    /// Its cotangent.
    Cotangent,
    /// NaN: a gradient arrives, and it is not finite or meets something that is not.
    NotFinite,
}

/// Some queries of a head segment with the cotangents of their sums.
pub struct Cotangents<'a, S: CpuStored> {
    queries: RowView<'a, S>,
    pub contributions: Vec<Contribution>,
    /// The last row that makes NaN, counted from the first row of the segment.
    pub last_not_finite: Option<usize>,
    out: RowView<'a, S>,
    grad: RowView<'a, S>,
    den: &'a [S::Compute],
    /// What the keys' values are multiplied with, and so the outputs.
    value_scale: S::Compute,
}

impl<'a, S: CpuStored> Cotangents<'a, S> {
    /// The queries `range` of a segment.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn new(
        call: &'a Call<'a, S>,
        saved: &'a Saved<'a, S>,
        segment: &HeadSegment,
        scan: &KeyScan<S::Compute>,
        range: Range<usize>,
    ) -> Result<Self> {
        let rows = |tensor| call.queries(tensor, segment).part(range.clone(), false);
        let (queries, out, grad) = (rows(&call.args.q), rows(&saved.out), rows(&saved.grad));
        let (first, zero) = (call.plan.first_query(segment) + range.start, S::Compute::ZERO);
        let den = &saved.den[first * 2..(first + range.len()) * 2];
        let mut contributions = try_filled(range.len(), Contribution::Nothing)?;
        let ops = call.loader.ops;
        for low in (0..contributions.len()).step_by(ROWS_AT_ONCE) {
            call.workers.check()?;
            let rows = low..contributions.len().min(low + ROWS_AT_ONCE);
            let is_finite = |view: &RowView<'_, S>| view.largest_of(ops, rows.clone()).1;
            // Nearly always all is finite; then only rows of zeros have to be found. They must be: a query that
            // contributes nothing would raise references, and move bits of the gradients of earlier keys.
            let is_clean = is_finite(&grad) && is_finite(&queries);
            for i in rows.clone() {
                let finite = is_clean || grad.largest(ops, i).1;
                if finite && grad.is_zero(i) {
                    continue;
                }
                let is_reached = scan.reaches(range.start + i, call.args.causal);
                if is_reached || !finite || !is_clean && !queries.largest(ops, i).1 {
                    contributions[i] = Contribution::NotFinite;
                } else if den[2 * i + 1] != zero {
                    contributions[i] = Contribution::Cotangent;
                }
            }
        }
        let last = contributions.iter().rposition(|&kind| kind == Contribution::NotFinite);
        let last_not_finite = last.map(|at| range.start + at);
        let (value_scale, _) = scan.value_scales();
        Ok(Cotangents { queries, contributions, last_not_finite, out, grad, den, value_scale })
    }

    /// How many queries there are.
    pub fn len(&self) -> usize {
        self.contributions.len()
    }

    /// Loads queries with what they carry: cotangents `[g, -g.out] / p`, out scaled as the values are, and exponents T. Rows that contribute no
    /// cotangent carry zeros and are not visible.
    pub fn load<'b>(
        &self,
        call: &Call<'_, S>,
        rows: &'b mut ChunkRows<S::Compute>,
        low: usize,
        count: usize,
        reversed: bool,
    ) -> Loaded<'b, S::Compute> {
        let queries = self.queries.part(0..self.len(), reversed);
        let loaded = call.loader.load_queries(rows, &queries, low, count);
        for row in 0..count {
            let i = queries.index(low + row);
            if self.contributions[i] == Contribution::Cotangent {
                self.load_cotangent(call, loaded.rows, row, i);
            } else {
                loaded.rows.drop_row(&call.layout, row);
            }
        }
        loaded
    }

    fn load_cotangent(&self, call: &Call<'_, S>, rows: &mut ChunkRows<S::Compute>, row: usize, i: usize) {
        let layout = &call.layout;
        let to = &mut rows.values_and_one[row * layout.value_row()..][..layout.value_row()];
        rows.shift[row] = self.den[2 * i];
        let inverse = S::Compute::ONE / self.den[2 * i + 1];
        let (of_grad, of_out) = rows.gathered.split_at_mut(layout.padded_value());
        let (grad, out) = (self.grad.adjacent(i, of_grad), self.out.adjacent(i, of_out));
        let dot = call.loader.ops.load_cotangent(grad, out, self.value_scale, inverse, to);
        to[layout.padded_value()] = -dot * inverse;
    }
}
