//! Gradients of one block: of its queries, or of its keys. `docs/algorithm.md`, section 7.

use super::omega_gradient::DirectionGradient;
use crate::call::Call;
use crate::chunk::{Answers, Chunk, ReadOptions};
use crate::cotangent::{Contribution, Cotangents, Saved};
use crate::layout::{CHUNK, PANEL};
use crate::load::KeyView;
use crate::ops::CpuElement;
use crate::plan::HeadSegment;
use crate::scan::KeyScan;
use crate::shared_out::SharedOut;
use crate::state::State;
use crate::workspace::Workspace;
use protperf_core::{Result, try_filled};
use std::ops::Range;

/// What every block of a backward pass shares.
pub struct Backward<'a, T: CpuElement> {
    pub call: &'a Call<'a, T>,
    pub saved: &'a Saved<'a, T>,
    /// Whether the gradient of the directions is wanted.
    pub directions: bool,
    pub dq: SharedOut<T>,
    pub dk: SharedOut<T>,
    pub dv: SharedOut<T>,
}

impl<'a, T: CpuElement> Backward<'a, T> {
    /// The cotangents of some queries of a head segment.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn cotangents(&self, part: &HeadSegment, scan: &KeyScan<T>, range: Range<usize>) -> Result<Cotangents<'a, T>> {
        Cotangents::new(self.call, self.saved, part, range, scan.first_not_finite)
    }

    /// dq of some queries from the state of all keys; the workspace's other state becomes that of their cotangents.
    /// Returns the last row that makes NaN.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn noncausal_queries(
        &self,
        workspace: &mut Workspace<'_, T>,
        part: &HeadSegment,
        scan: &KeyScan<T>,
        range: Range<usize>,
    ) -> Result<Option<usize>> {
        let Workspace { chunk, queries: rows, features, other, .. } = workspace;
        let cotangents = self.cotangents(part, scan, range.clone())?;
        let dq = self.dq_of(part, range);
        other.clear();
        if scan.first_not_finite.is_none() {
            self.call.workers.for_each_chunk(cotangents.len(), |low, count| {
                let queries = chunk.project_queries(cotangents.load(self.call, rows, low, count, false));
                self.store_dq(&chunk.read(None, &queries, self.of_queries()), low, count, dq);
                chunk.add_queries(queries, features, other);
            })?;
        }
        self.fill_dq_with_nan(&cotangents, dq);
        Ok(cotangents.last_not_finite)
    }

    /// dq of some queries, each of which sees the state before them and the keys up to its own.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn causal_queries(
        &self,
        part: &HeadSegment,
        scan: &KeyScan<T>,
        range: Range<usize>,
        before: Option<&State<T>>,
    ) -> Result<DirectionGradient<T>> {
        let call = self.call;
        let cotangents = self.cotangents(part, scan, range.clone())?;
        let keys = call.keys(part).part(range.clone(), false);
        let usable = scan.usable(&range);
        let dq = self.dq_of(part, range);
        call.with_workspace(part.head, |workspace| {
            self.clear_directions(&mut workspace.chunk)?;
            let Workspace { chunk, keys: key_rows, queries: query_rows, features, .. } = workspace;
            if let Some(before) = before {
                chunk.state.copy_from(before);
            }
            call.workers.for_each_chunk(usable, |low, count| {
                let keys = chunk.project_keys(call.loader.load_keys(key_rows, &keys, low, count, T::ONE), features);
                let queries = chunk.project_queries(cotangents.load(call, query_rows, low, count, false));
                self.store_dq(&chunk.read(Some(&keys), &queries, self.of_queries()), low, count, dq);
                if low + CHUNK < usable {
                    chunk.update_state(keys);
                }
            })?;
            self.fill_dq_with_nan(&cotangents, dq);
            self.directions(part, chunk, cotangents.last_not_finite.is_some())
        })
    }

    fn of_queries(&self) -> ReadOptions {
        ReadOptions { sums: false, gradient: true, directions: self.directions, normalize: false }
    }

    /// Zeros for the gradient of some queries.
    #[allow(clippy::mut_from_ref)]
    fn dq_of(&self, part: &HeadSegment, range: Range<usize>) -> &mut [T] {
        let d = self.call.layout.head_dim;
        // SAFETY: one task asks for the query rows of a head, segment and block.
        let dq = unsafe { self.dq.range((self.call.plan.first_query(part) + range.start) * d, range.len() * d) };
        dq.fill(T::ZERO);
        dq
    }

    fn store_dq(&self, answers: &Answers<'_, T>, low: usize, count: usize, dq: &mut [T]) {
        let (d, padded) = (self.call.layout.head_dim, self.call.layout.padded_head());
        let rows = dq[low * d..][..count * d].chunks_exact_mut(d).zip(answers.input_gradient.chunks(padded));
        rows.for_each(|(to, from)| to.copy_from_slice(&from[..d]));
    }

    fn fill_dq_with_nan(&self, cotangents: &Cotangents<'_, T>, dq: &mut [T]) {
        let rows = dq.chunks_exact_mut(self.call.layout.head_dim).zip(&cotangents.contributions);
        for (row, _) in rows.filter(|(_, kind)| **kind == Contribution::NotFinite) {
            row.fill(T::from_f64(f64::NAN));
        }
    }

    /// Some keys of a head segment's key head, and zeros for their gradients.
    pub fn key_gradients(&self, part: &HeadSegment, scan: &KeyScan<T>, range: Range<usize>) -> KeyGradients<'_, T> {
        let (call, layout) = (self.call, &self.call.layout);
        let first = call.plan.first_key(part) + range.start;
        // SAFETY: one task asks for the key rows of a key head, segment and block, for all heads that share them.
        let (dk, dv) = unsafe {
            (
                self.dk.range(first * layout.head_dim, range.len() * layout.head_dim),
                self.dv.range(first * layout.value_dim, range.len() * layout.value_dim),
            )
        };
        dk.fill(T::ZERO);
        dv.fill(T::ZERO);
        let usable = if call.args.causal || scan.first_not_finite.is_none() { scan.usable(&range) } else { 0 };
        KeyGradients { call, keys: call.keys(part).part(range.clone(), false), first: range.start, usable, dk, dv }
    }

    /// Makes a chunk ready to sum gradients of the directions.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn clear_directions(&self, chunk: &mut Chunk<'_, T>) -> Result<()> {
        if self.directions {
            let len = self.call.layout.projection_panels() * PANEL * self.call.layout.padded_head();
            let directions = &mut chunk.buffers.gradients.directions;
            if directions.len() != len {
                *directions = try_filled(len, T::ZERO)?;
            }
            directions.fill(T::ZERO);
        }
        Ok(())
    }

    /// The gradient of the directions that a chunk has summed.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn directions(&self, part: &HeadSegment, chunk: &Chunk<'_, T>, is_nan: bool) -> Result<DirectionGradient<T>> {
        if !self.directions {
            return Ok(None);
        }
        let found = &chunk.buffers.gradients.directions;
        let mut gradient = try_filled(found.len(), T::from_f64(f64::NAN))?;
        if !is_nan {
            gradient.copy_from_slice(found);
        }
        Ok(Some((part.head, gradient)))
    }
}

/// Some keys and their gradients, summed over the query heads that share them.
pub struct KeyGradients<'a, T: CpuElement> {
    call: &'a Call<'a, T>,
    keys: KeyView<'a, T>,
    /// Where the block starts in the segment.
    first: usize,
    /// Keys from here on may hold numbers that are not finite, and are seen by no row with a finite gradient.
    usable: usize,
    dk: &'a mut [T],
    dv: &'a mut [T],
}

impl<T: CpuElement> KeyGradients<'_, T> {
    /// Gradients from the state of all cotangents.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn noncausal(&mut self, workspace: &mut Workspace<'_, T>, directions: bool) -> Result<()> {
        let Workspace { chunk, queries: rows, .. } = workspace;
        let (call, keys) = (self.call, self.keys);
        call.workers.for_each_chunk(self.usable, |low, count| {
            let loaded = call.loader.load_keys(rows, &keys, low, count, T::ONE);
            let reading = chunk.project_queries(loaded);
            self.add(&chunk.read(None, &reading, of_keys(directions)), &keys, low, count);
        })
    }

    /// Gradients from the state of the cotangents after the block and from those in it, in reversed time.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn causal(
        &mut self,
        pass: &Backward<'_, T>,
        part: &HeadSegment,
        cotangents: &Cotangents<'_, T>,
        after: Option<&State<T>>,
    ) -> Result<DirectionGradient<T>> {
        let (call, len) = (self.call, cotangents.len());
        let keys = self.keys.part(0..len, true);
        call.with_workspace(part.head, |workspace| {
            pass.clear_directions(&mut workspace.chunk)?;
            let Workspace { chunk, keys: adding_rows, queries: reading_rows, features, .. } = workspace;
            if let Some(after) = after {
                chunk.state.copy_from(after);
            }
            let seen = if self.usable > 0 { len } else { 0 };
            call.workers.for_each_chunk(seen, |low, count| {
                let adding = chunk.project_keys(cotangents.load(call, adding_rows, low, count, true), features);
                let loaded = call.loader.load_keys(reading_rows, &keys, low, count, T::ONE);
                for row in (0..count).filter(|&row| keys.keys.index(low + row) >= self.usable) {
                    loaded.rows.drop_row(&call.layout, row);
                }
                let reading = chunk.project_queries(loaded);
                self.add(&chunk.read(Some(&adding), &reading, of_keys(pass.directions)), &keys, low, count);
                if low + CHUNK < len {
                    chunk.update_state(adding);
                }
            })?;
            pass.directions(part, chunk, cotangents.last_not_finite.is_some())
        })
    }

    fn add(&mut self, answers: &Answers<'_, T>, keys: &KeyView<'_, T>, low: usize, count: usize) {
        let layout = &self.call.layout;
        let (d, e) = (layout.head_dim, layout.value_dim);
        for row in (0..count).filter(|&row| answers.rows.visible[row]) {
            let at = keys.keys.index(low + row);
            let from = &answers.input_gradient[row * layout.padded_head()..][..d];
            self.dk[at * d..][..d].iter_mut().zip(from).for_each(|(to, &g)| *to += g);
            let from = &answers.numerator[row * layout.value_row()..][..e];
            self.dv[at * e..][..e].iter_mut().zip(from).for_each(|(to, &g)| *to += g);
        }
    }

    /// NaN for the keys that a row which makes NaN saw; the last such row is `last`.
    pub fn fill_with_nan(&mut self, last: Option<usize>) {
        let Some(last) = last else { return };
        let (d, e, nan) = (self.call.layout.head_dim, self.call.layout.value_dim, T::from_f64(f64::NAN));
        let seen = if self.call.args.causal { (last + 1).saturating_sub(self.first) } else { usize::MAX };
        for j in (0..self.keys.len().min(seen)).filter(|&j| !self.keys.is_padding(j)) {
            self.dk[j * d..][..d].fill(nan);
            self.dv[j * e..][..e].fill(nan);
        }
    }
}

/// Keys read the gradients of their values as sums, and of their inputs.
fn of_keys(directions: bool) -> ReadOptions {
    ReadOptions { sums: true, gradient: true, directions, normalize: false }
}
