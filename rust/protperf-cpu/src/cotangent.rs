//! What arrives at the outputs of some queries, as the backward sweeps read and sum it.

use crate::call::{Call, Line};
use crate::load::Rows;
use crate::ops::{CpuElement, Ops};
use crate::weights::Widths;
use crate::workspace::{Side, try_filled};
use protperf_core::{Result, TensorRef};
use std::ops::Range;

/// What the backward pass reads beside the arguments of the forward pass.
pub struct Saved<'a, E> {
    /// Output of the forward pass `[B,H,L,E]`.
    pub out: &'a TensorRef<'a, E>,
    /// Denominators of the forward pass `[B,H,L,2]`.
    pub den: &'a [E],
    /// Gradient of the output `[B,H,L,E]`.
    pub grad: &'a TensorRef<'a, E>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// No gradient arrives, or no key is seen: contributes nothing, whatever its output.
    Dead,
    Active,
    /// A gradient arrives and something the row saw is not finite.
    Bad,
}

/// Some queries of a line with the cotangents of their sums.
pub(crate) struct Cotangents<'a, E> {
    pub queries: Rows<'a, E>,
    pub kinds: Vec<Row>,
    /// The last bad row, counted from the line's first.
    pub last_bad: Option<usize>,
    out: Rows<'a, E>,
    grad: Rows<'a, E>,
    den: &'a [E],
}

impl<'a, E: CpuElement> Cotangents<'a, E> {
    /// The queries `range` of a line; `bad_key` is the first key of the line that is not finite.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn new(
        call: &'a Call<'a, E>,
        saved: &'a Saved<'a, E>,
        line: &Line,
        range: Range<usize>,
        bad_key: Option<usize>,
    ) -> Result<Self> {
        let rows = |tensor| call.queries(tensor, line).part(range.clone(), false);
        let (queries, out, grad) = (rows(&call.args.q), rows(saved.out), rows(saved.grad));
        let first = call.first_query(line) + range.start;
        let den = &saved.den[first * 2..(first + range.len()) * 2];
        let mut kinds = try_filled(range.len(), Row::Dead)?;
        for (i, kind) in kinds.iter_mut().enumerate() {
            call.stop_at(i)?;
            let (most, finite) = grad.largest(call.ops, i);
            if most == E::ZERO && finite {
                continue;
            }
            let sees_bad = bad_key.is_some_and(|at| !call.args.causal || range.start + i >= at);
            if sees_bad || !finite || !queries.largest(call.ops, i).1 {
                *kind = Row::Bad;
            } else if den[2 * i + 1] != E::ZERO {
                *kind = Row::Active;
            }
        }
        let last_bad = kinds.iter().rposition(|&kind| kind == Row::Bad).map(|at| range.start + at);
        Ok(Cotangents { queries, kinds, last_bad, out, grad, den })
    }

    /// Queries with what they carry: cotangents `[g, -g.out] / p` and row exponents T. Rows that are not active carry
    /// zeros and are not live.
    pub fn load(&self, call: &Call<'_, E>, side: &mut Side<E>, low: usize, n: usize, reversed: bool) {
        let queries = Rows { reversed, ..self.queries };
        call.load_queries(side, &queries, low, n);
        for r in 0..n {
            let i = if reversed { self.kinds.len() - 1 - (low + r) } else { low + r };
            if self.kinds[i] == Row::Active {
                self.load_row(call.ops, &call.widths, side, r, i);
            } else {
                side.drop_row(&call.widths, r);
            }
        }
    }

    fn load_row(&self, ops: &Ops<E>, widths: &Widths, side: &mut Side<E>, r: usize, i: usize) {
        let row = &mut side.payload[r * widths.payload_row()..][..widths.payload_row()];
        side.shift[r] = self.den[2 * i];
        let inverse = E::ONE / self.den[2 * i + 1];
        let (of_grad, of_out) = side.gathered.split_at_mut(widths.padded_value());
        let (grad, out) = (self.grad.adjacent(i, of_grad), self.out.adjacent(i, of_out));
        let dot = ops.load_cotangent(grad, out, inverse, row);
        row[widths.padded_value()] = -dot * inverse;
    }
}
