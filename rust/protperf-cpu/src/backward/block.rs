//! One block of the backward pass: gradients of its queries, or of its keys.

use super::{Backward, Part};
use crate::call::{Call, Facts, Keys, Line};
use crate::cotangent::{Cotangents, Row};
use crate::ops::CpuElement;
use crate::state::State;
use crate::sweep::{Sweep, Want};
use crate::workspace::CHUNK;
use protperf_core::Result;
use std::ops::Range;

impl<'a, E: CpuElement> Backward<'a, E> {
    /// dq of some queries from the state of all keys; `buffers.other` is the state of their cotangents after it.
    pub(super) fn noncausal_queries(
        &self,
        sweep: &mut Sweep<'_, E>,
        line: &Line,
        facts: &Facts<E>,
        range: Range<usize>,
    ) -> Result<Option<usize>> {
        let rows = Cotangents::new(self.call, self.saved, line, range.clone(), facts.bad)?;
        let dq = self.dq_of(line, range);
        let want = Want { gradient: true, directions: self.directions, ..Want::default() };
        sweep.buffers.other.clear();
        if facts.bad.is_none() {
            self.call.chunks(rows.kinds.len(), |low, n| {
                rows.load(self.call, &mut sweep.buffers.reader, low, n, false);
                sweep.read(n, want);
                self.store(sweep, low, n, dq);
                sweep.commit_readers(n);
            })?;
        }
        self.poison(&rows, dq);
        Ok(rows.last_bad)
    }

    /// dq of some queries, each of which sees the state before them and the keys up to its own.
    pub(super) fn causal_queries(
        &self,
        line: &Line,
        facts: &Facts<E>,
        range: Range<usize>,
        before: Option<&State<E>>,
    ) -> Result<Part<E>> {
        let call = self.call;
        let rows = Cotangents::new(call, self.saved, line, range.clone(), facts.bad)?;
        let keys = call.keys(line).part(range.clone(), false);
        let usable = facts.usable(&range);
        let dq = self.dq_of(line, range);
        let want = Want { gradient: true, local: true, directions: self.directions, ..Want::default() };
        call.with_sweep(line.head, |sweep| {
            self.begin(sweep)?;
            if let Some(before) = before {
                sweep.buffers.state.copy_from(before);
            }
            call.chunks(usable, |low, n| {
                call.load_keys(&mut sweep.buffers.writer, &keys, low, n, E::ONE);
                sweep.absorb(n, true);
                rows.load(call, &mut sweep.buffers.reader, low, n, false);
                sweep.read(n, want);
                self.store(sweep, low, n, dq);
                if low + CHUNK < usable {
                    sweep.commit(n);
                }
            })?;
            self.poison(&rows, dq);
            self.taken(line, sweep, rows.last_bad.is_some())
        })
    }

    /// Zeros for the gradient of some queries.
    #[allow(clippy::mut_from_ref)]
    fn dq_of(&self, line: &Line, range: Range<usize>) -> &mut [E] {
        let d = self.call.shape.head_dim;
        // SAFETY: one task asks for the queries of a line and block.
        let dq = unsafe { self.dq.range((self.call.first_query(line) + range.start) * d, range.len() * d) };
        dq.fill(E::ZERO);
        dq
    }

    fn store(&self, sweep: &Sweep<'_, E>, low: usize, n: usize, dq: &mut [E]) {
        let (d, padded) = (self.call.shape.head_dim, self.call.widths.padded_head());
        for (to, from) in dq[low * d..][..n * d].chunks_exact_mut(d).zip(sweep.buffers.input_gradient.chunks(padded)) {
            to.copy_from_slice(&from[..d]);
        }
    }

    fn poison(&self, rows: &Cotangents<'_, E>, dq: &mut [E]) {
        for (row, _) in dq.chunks_exact_mut(self.call.shape.head_dim).zip(&rows.kinds).filter(|(_, k)| **k == Row::Bad)
        {
            row.fill(E::from_f64(f64::NAN));
        }
    }

    /// Some keys of a line's key head, and zeros for their gradients.
    pub(super) fn key_block(&self, line: &Line, facts: &Facts<E>, range: Range<usize>) -> KeyBlock<'_, E> {
        let (call, s) = (self.call, &self.call.shape);
        let keys = call.keys(line).part(range.clone(), false);
        let first = (line.batch * s.kv_heads + line.head / s.group()) * s.kv_len + keys.keys.start;
        // SAFETY: one task asks for the keys of a key head and block.
        let (dk, dv) = unsafe {
            (
                self.dk.range(first * s.head_dim, range.len() * s.head_dim),
                self.dv.range(first * s.value_dim, range.len() * s.value_dim),
            )
        };
        dk.fill(E::ZERO);
        dv.fill(E::ZERO);
        let usable = if call.args.causal || facts.bad.is_none() { facts.usable(&range) } else { 0 };
        KeyBlock { call, keys, first: range.start, usable, dk, dv }
    }
}

/// Some keys and their gradients, summed over the query heads that share them.
pub(super) struct KeyBlock<'a, E: CpuElement> {
    call: &'a Call<'a, E>,
    keys: Keys<'a, E>,
    /// Where the block begins in the line.
    first: usize,
    /// Keys from here on may hold what is not finite, and are seen by no row with a gradient that is.
    usable: usize,
    dk: &'a mut [E],
    dv: &'a mut [E],
}

const WANT: Want = Want { sums: true, gradient: true, norm: true, directions: false, normalize: false, local: false };

impl<E: CpuElement> KeyBlock<'_, E> {
    /// Gradients from the state of all cotangents.
    pub fn noncausal(&mut self, sweep: &mut Sweep<'_, E>, directions: bool) -> Result<()> {
        let (call, keys) = (self.call, self.keys);
        let want = Want { directions, ..WANT };
        call.chunks(self.usable, |low, n| self.read(sweep, &keys, low, n, want))
    }

    /// Gradients from the state of the cotangents after the block and from those in it, in reversed time.
    pub fn causal(
        &mut self,
        pass: &Backward<'_, E>,
        line: &Line,
        rows: &Cotangents<'_, E>,
        after: Option<&State<E>>,
    ) -> Result<Part<E>> {
        let (call, len) = (self.call, rows.kinds.len());
        let want = Want { local: true, directions: pass.directions, ..WANT };
        let keys = self.keys.part(0..len, true);
        call.with_sweep(line.head, |sweep| {
            pass.begin(sweep)?;
            if let Some(after) = after {
                sweep.buffers.state.copy_from(after);
            }
            let visible = if self.usable > 0 { len } else { 0 };
            call.chunks(visible, |low, n| {
                rows.load(call, &mut sweep.buffers.writer, low, n, true);
                sweep.absorb(n, false);
                self.read(sweep, &keys, low, n, want);
                if low + CHUNK < len {
                    sweep.commit(n);
                }
            })?;
            pass.taken(line, sweep, rows.last_bad.is_some())
        })
    }

    fn read(&mut self, sweep: &mut Sweep<'_, E>, keys: &Keys<'_, E>, low: usize, n: usize, want: Want) {
        let (call, widths) = (self.call, &self.call.widths);
        call.load_keys(&mut sweep.buffers.reader, keys, low, n, E::ONE);
        let index = |r: usize| keys.keys.position(low + r) - keys.keys.start;
        for r in (0..n).filter(|&r| index(r) >= self.usable) {
            sweep.buffers.reader.drop_row(widths, r);
        }
        sweep.read(n, want);
        let (d, e, b) = (widths.head_dim, widths.value_dim, &*sweep.buffers);
        for r in (0..n).filter(|&r| b.reader.live[r]) {
            let from = &b.input_gradient[r * widths.padded_head()..][..d];
            self.dk[index(r) * d..][..d].iter_mut().zip(from).for_each(|(to, &g)| *to += g);
            let from = &b.numerator[r * widths.payload_row()..][..e];
            self.dv[index(r) * e..][..e].iter_mut().zip(from).for_each(|(to, &g)| *to += g);
        }
    }

    /// NaN for the keys that a bad row saw, the last of which is `last_bad`.
    pub fn poison(&mut self, last_bad: Option<usize>) {
        let Some(last) = last_bad else { return };
        let (d, e, nan) = (self.call.shape.head_dim, self.call.shape.value_dim, E::from_f64(f64::NAN));
        let seen = if self.call.args.causal { (last + 1).saturating_sub(self.first) } else { usize::MAX };
        let keys = self.keys.keys;
        for j in (0..keys.len.min(seen)).filter(|&j| !self.call.is_padding(keys.batch, keys.position(j))) {
            self.dk[j * d..][..d].fill(nan);
            self.dv[j * e..][..e].fill(nan);
        }
    }
}
