//! Gradients of one block: of its queries, or of its keys. `docs/algorithm.md`, section 7.

use super::accumulator::Accumulator;
use super::arriving::Arriving;
use super::parameters::OfTask;
use crate::call::Call;
use crate::chunk::{Answers, Chunk, Keys, Queries, ReadOptions};
use crate::cotangent::{Contribution, Cotangents};
use crate::layout::CHUNK;
use crate::load::KeyView;
use crate::out_rows::{OutRows, RowsMut};
use crate::plan::HeadSegment;
use crate::scan::KeyScan;
use crate::shared_out::SharedOut;
use crate::simd::Real;
use crate::state::State;
use crate::stored::{CpuStored, nan};
use crate::workspace::Workspace;
use protperf_core::backend::Saved;
use protperf_core::state::KV_STATE;
use protperf_core::{Element, Result, try_copied};
use std::ops::Range;

/// What every block of a backward pass shares.
pub struct Backward<'a, S: CpuStored> {
    pub call: &'a Call<'a, S>,
    pub saved: &'a Saved<'a, S>,
    /// Whether gradients of the map's parameters are wanted.
    pub parameters: bool,
    pub dq: OutRows<'a, S>,
    pub dk: OutRows<'a, S>,
    pub dv: OutRows<'a, S>,
    /// Gradient of the initial state, where it is wanted.
    pub dstate: Option<SharedOut<S::Compute>>,
}

impl<'a, S: CpuStored> Backward<'a, S> {
    /// The cotangents of some queries of a head segment.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn cotangents(
        &self,
        head_segment: &HeadSegment,
        scan: &KeyScan<S::Compute>,
        range: Range<usize>,
    ) -> Result<Cotangents<'a, S>> {
        Cotangents::new(self.call, self.saved, head_segment, scan, range)
    }

    /// What arrives at the final state of a head segment.
    pub fn arriving(&self, head_segment: &HeadSegment, scan: &KeyScan<S::Compute>) -> Arriving<'a, S::Compute> {
        let range = self.call.plan.state_range(head_segment);
        let rows = self.saved.final_state.map(|last| (&last.state[range.clone()], &last.grad[range]));
        Arriving::new(self.call.loader.ops, rows, self.call.layout.value_dim, scan.is_clean())
    }

    /// dq of some queries from the state of all keys; adds their cotangents to the workspace's other state. Returns the
    /// last row that makes NaN.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn noncausal_queries(
        &self,
        workspace: &mut Workspace<'_, S::Compute>,
        head_segment: &HeadSegment,
        scan: &KeyScan<S::Compute>,
        range: Range<usize>,
    ) -> Result<Option<usize>> {
        let Workspace { chunk, queries: rows, features, other, .. } = workspace;
        let cotangents = self.cotangents(head_segment, scan, range.clone())?;
        let mut dq = self.dq_of(head_segment, range);
        if scan.is_clean() {
            let (_, unscale) = scan.value_scales();
            self.call.workers.for_each_chunk(cotangents.len(), |low, count| {
                let queries = chunk.project_queries(cotangents.load(self.call, rows, low, count, false));
                self.store_dq(&chunk.read(None, &queries, self.of_queries()), low, count, unscale, &mut dq);
                chunk.add_queries(queries, features, other);
            })?;
        }
        self.fill_dq_with_nan(&cotangents, &mut dq);
        Ok(cotangents.last_not_finite)
    }

    /// dq of some queries, each of which sees the state before them (`None`: the initial one) and the keys up to its
    /// own.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn causal_queries(
        &self,
        head_segment: &HeadSegment,
        scan: &KeyScan<S::Compute>,
        range: Range<usize>,
        before: Option<&State<S::Compute>>,
    ) -> Result<OfTask<S::Compute>> {
        let call = self.call;
        let cotangents = self.cotangents(head_segment, scan, range.clone())?;
        let keys = call.keys(head_segment).part(range.clone(), false);
        let usable = scan.usable(&range, true);
        let mut dq = self.dq_of(head_segment, range);
        call.with_workspace(head_segment.head, |workspace| {
            self.clear_parameters(&mut workspace.chunk)?;
            let Workspace { chunk, keys: key_rows, queries: query_rows, features, .. } = workspace;
            match before {
                Some(before) => chunk.state.copy_from(before),
                None => self.first_state(head_segment, scan, chunk.state),
            }
            let (omega, (scale, unscale)) = (chunk.head.omega, scan.value_scales());
            call.workers.for_each_chunk(usable, |low, count| {
                let keys = call.loader.load_keys(omega, key_rows, &keys, low, count, scale);
                let keys = chunk.project_keys(keys, features);
                let queries = chunk.project_queries(cotangents.load(call, query_rows, low, count, false));
                self.store_dq(&chunk.read(Some(&keys), &queries, self.of_queries()), low, count, unscale, &mut dq);
                if low + CHUNK < usable {
                    chunk.update_state(keys);
                }
            })?;
            self.fill_dq_with_nan(&cotangents, &mut dq);
            self.parameters_of(head_segment, chunk, scan, cotangents.last_not_finite.is_some())
        })
    }

    /// The state before a head segment's first key, its sums of values scaled as the values are.
    pub fn first_state(&self, head_segment: &HeadSegment, scan: &KeyScan<S::Compute>, to: &mut State<S::Compute>) {
        self.call.import_state(head_segment, to);
        to.scale_values(scan.value_scales().0);
    }

    fn of_queries(&self) -> ReadOptions {
        ReadOptions { sums: false, gradient: true, parameters: self.parameters, normalize: false }
    }

    /// Zeros for the gradient of some queries.
    fn dq_of(&self, head_segment: &HeadSegment, range: Range<usize>) -> RowsMut<'_, S> {
        let first = self.call.plan.query_range(head_segment).start;
        // SAFETY: one task asks for the query rows of a head, segment and block.
        let mut dq =
            unsafe { self.dq.rows(head_segment.batch, head_segment.head, first + range.start..first + range.end) };
        dq.fill(0..range.len(), S::default());
        dq
    }

    /// Stores gradients of queries, which are in units of the scaled values.
    fn store_dq(
        &self,
        answers: &Answers<'_, S::Compute>,
        low: usize,
        count: usize,
        unscale: S::Compute,
        dq: &mut RowsMut<'_, S>,
    ) {
        for (row, from) in answers.input_gradient.chunks(self.call.layout.padded_head()).enumerate().take(count) {
            dq.row(low + row).iter_mut().zip(from).for_each(|(to, &x)| *to = S::round(x * unscale));
        }
    }

    fn fill_dq_with_nan(&self, cotangents: &Cotangents<'_, S>, dq: &mut RowsMut<'_, S>) {
        let rows = cotangents.contributions.iter().enumerate();
        for (row, _) in rows.filter(|(_, kind)| **kind == Contribution::NotFinite) {
            dq.row(row).fill(nan());
        }
    }

    /// Some keys of a head segment's key head, and zeros for their gradients.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn key_gradients(&self, head_segment: &HeadSegment, range: Range<usize>) -> Result<KeyGradients<'_, S>> {
        let (call, head) = (self.call, self.call.plan.key_head(head_segment));
        let first = call.plan.key_range(head_segment).start;
        let rows = first + range.start..first + range.end;
        // SAFETY: one task asks for the key rows of a key head, segment and block, for all heads that share them.
        let (dk, dv) = unsafe {
            (self.dk.rows(head_segment.batch, head, rows.clone()), self.dv.rows(head_segment.batch, head, rows))
        };
        let group = call.plan.shape.group();
        Ok(KeyGradients {
            call,
            keys: call.keys(head_segment).part(range.clone(), false),
            range,
            dk: Accumulator::new(dk, group)?,
            dv: Accumulator::new(dv, group)?,
        })
    }

    /// Writes the gradient of the initial state of a head segment, where it is wanted; `cotangents` is the state of
    /// everything that arrived.
    pub fn store_dstate(
        &self,
        head_segment: &HeadSegment,
        arriving: &Arriving<'_, S::Compute>,
        cotangents: &State<S::Compute>,
        scan: &KeyScan<S::Compute>,
        is_nan: bool,
    ) {
        let (Some(dstate), Some(initial)) = (&self.dstate, self.call.state_in(head_segment)) else { return };
        let range = self.call.plan.state_range(head_segment);
        // SAFETY: one task has the state of a head segment: that of its first keys, or the thread that merges.
        let to = unsafe { dstate.range(range.start, range.len()) };
        cotangents.export_gradient(&self.call.layout, initial, arriving.rows(), scan.value_scales().1, to);
        if is_nan || arriving.is_nan() {
            let rows = to.chunks_exact_mut(KV_STATE + self.call.layout.value_dim);
            rows.for_each(|row| row[1..].fill(S::Compute::from_f64(f64::NAN)));
        }
    }

    /// Makes a chunk ready to sum gradients of the map's parameters.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn clear_parameters(&self, chunk: &mut Chunk<'_, S::Compute>) -> Result<()> {
        if !self.parameters {
            return Ok(());
        }
        let kept = &mut chunk.buffers.gradients.parameters;
        let mut zeros = match kept.take().filter(|kept| chunk.head.omega.has_sizes_of(kept)) {
            Some(kept) => kept,
            None => chunk.head.omega.zero_gradient()?,
        };
        zeros.fields_mut().for_each(|field| field.fill(S::Compute::ZERO));
        *kept = Some(zeros);
        Ok(())
    }

    /// The gradients of the map's parameters that a chunk has summed, in units of the scaled values.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn parameters_of(
        &self,
        head_segment: &HeadSegment,
        chunk: &Chunk<'_, S::Compute>,
        scan: &KeyScan<S::Compute>,
        is_nan: bool,
    ) -> Result<OfTask<S::Compute>> {
        let Some(found) = chunk.buffers.gradients.parameters.as_ref().filter(|_| self.parameters) else {
            return Ok(None);
        };
        let mut gradient = found.try_map(|field| try_copied(field))?;
        let (_, unscale) = scan.value_scales();
        if unscale != S::Compute::ONE {
            gradient.fields_mut().flatten().for_each(|x| *x *= unscale);
        }
        if is_nan {
            gradient.fields_mut().for_each(|field| field.fill(S::Compute::from_f64(f64::NAN)));
        }
        Ok(Some((head_segment.head, gradient)))
    }
}

/// A head segment of a causal call, as each of its blocks sees it.
pub struct CausalSegment<'a, T> {
    pub head_segment: &'a HeadSegment,
    pub scan: &'a KeyScan<T>,
    pub arriving: &'a Arriving<'a, T>,
    /// The last row of the whole segment that makes NaN.
    pub last_not_finite: Option<usize>,
}

/// Some keys and their gradients, summed over the query heads that share them.
pub struct KeyGradients<'a, S: CpuStored> {
    call: &'a Call<'a, S>,
    keys: KeyView<'a, S>,
    /// Where the block lies in the segment.
    range: Range<usize>,
    dk: Accumulator<'a, S>,
    dv: Accumulator<'a, S>,
}

impl<S: CpuStored> KeyGradients<'_, S> {
    /// Gradients from the state of all cotangents.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn noncausal(
        &mut self,
        workspace: &mut Workspace<'_, S::Compute>,
        scan: &KeyScan<S::Compute>,
        parameters: bool,
    ) -> Result<()> {
        let Workspace { chunk, queries: rows, .. } = workspace;
        let (call, keys, omega) = (self.call, self.keys, chunk.head.omega);
        let (scale, unscale) = scan.value_scales();
        call.workers.for_each_chunk(scan.usable(&self.range, false), |low, count| {
            let loaded = call.loader.load_keys(omega, rows, &keys, low, count, scale);
            let reading = chunk.project_queries(loaded);
            self.add(&chunk.read(None, &reading, of_keys(parameters)), &keys, low, count, unscale);
        })
    }

    /// Gradients of a head segment whose queries and keys are one chunk each: the queries read the keys for dq, and then the
    /// keys what arrived at the queries and at the final state. Returns the last row that makes NaN.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn short(
        &mut self,
        pass: &Backward<'_, S>,
        workspace: &mut Workspace<'_, S::Compute>,
        head_segment: &HeadSegment,
        scan: &KeyScan<S::Compute>,
        arriving: &Arriving<'_, S::Compute>,
    ) -> Result<Option<usize>> {
        let Workspace { chunk, keys: key_rows, queries: query_rows, features, .. } = workspace;
        let (call, keys, (scale, unscale)) = (self.call, self.keys, scan.value_scales());
        let range = call.plan.query_blocks(head_segment).range(0);
        let cotangents = pass.cotangents(head_segment, scan, range.clone())?;
        let mut dq = pass.dq_of(head_segment, range.clone());
        if scan.is_clean() {
            let loaded = call.loader.load_keys(chunk.head.omega, key_rows, &keys, 0, keys.len(), scale);
            let side = loaded.side;
            let seen = Keys { is_causal: false, ..chunk.project_keys(loaded, features) };
            let queries = chunk.project_queries(cotangents.load(call, query_rows, 0, range.len(), false));
            pass.store_dq(&chunk.read(Some(&seen), &queries, pass.of_queries()), 0, range.len(), unscale, &mut dq);
            arriving.import(&call.layout, scale, chunk.state);
            let adding = chunk.queries_as_keys(queries, features);
            let reading = Queries { rows: key_rows, count: keys.len(), side };
            self.add(&chunk.read(Some(&adding), &reading, of_keys(pass.parameters)), &keys, 0, keys.len(), unscale);
        }
        pass.fill_dq_with_nan(&cotangents, &mut dq);
        Ok(cotangents.last_not_finite)
    }

    /// Gradients from the state of the cotangents after the block (`None`: what arrives at the final state) and from
    /// those in it, in reversed time. The first block also has the gradient of the initial state.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn causal(
        &mut self,
        pass: &Backward<'_, S>,
        segment: &CausalSegment<'_, S::Compute>,
        cotangents: &Cotangents<'_, S>,
        after: Option<&State<S::Compute>>,
    ) -> Result<OfTask<S::Compute>> {
        let (call, len) = (self.call, cotangents.len());
        let CausalSegment { head_segment, arriving, .. } = segment;
        let keys = self.keys.part(0..len, true);
        // Keys from here on may hold numbers that are not finite; no row with a finite gradient sees them.
        let usable = segment.scan.usable(&self.range, true);
        let wants_dstate = self.range.start == 0 && pass.dstate.is_some();
        let (scale, unscale) = segment.scan.value_scales();
        call.with_workspace(head_segment.head, |workspace| {
            pass.clear_parameters(&mut workspace.chunk)?;
            let Workspace { chunk, keys: adding_rows, queries: reading_rows, features, .. } = workspace;
            match after {
                Some(after) => chunk.state.copy_from(after),
                None => arriving.import(&call.layout, scale, chunk.state),
            }
            let omega = chunk.head.omega;
            let seen = if usable > 0 { len } else { 0 };
            call.workers.for_each_chunk(seen, |low, count| {
                let adding = chunk.project_keys(cotangents.load(call, adding_rows, low, count, true), features);
                let loaded = call.loader.load_keys(omega, reading_rows, &keys, low, count, scale);
                for row in (0..count).filter(|&row| keys.keys.index(low + row) >= usable) {
                    loaded.rows.drop_row(&call.layout, row);
                }
                let reading = chunk.project_queries(loaded);
                self.add(&chunk.read(Some(&adding), &reading, of_keys(pass.parameters)), &keys, low, count, unscale);
                if wants_dstate || low + CHUNK < len {
                    chunk.update_state(adding);
                }
            })?;
            if wants_dstate {
                pass.store_dstate(head_segment, arriving, chunk.state, segment.scan, segment.last_not_finite.is_some());
            }
            pass.parameters_of(
                head_segment,
                chunk,
                segment.scan,
                cotangents.last_not_finite.is_some() || arriving.is_nan(),
            )
        })
    }

    /// Adds what some keys have read; `unscale` brings the gradients of their inputs back from units of the scaled values.
    fn add(
        &mut self,
        answers: &Answers<'_, S::Compute>,
        keys: &KeyView<'_, S>,
        low: usize,
        count: usize,
        unscale: S::Compute,
    ) {
        let layout = &self.call.layout;
        for row in (0..count).filter(|&row| answers.rows.visible[row]) {
            let at = keys.keys.index(low + row);
            let of_input = &answers.input_gradient[row * layout.padded_head()..][..layout.head_dim];
            self.dk.add(at, of_input, unscale);
            self.dv.add(at, &answers.numerator[row * layout.value_row()..][..layout.value_dim], S::Compute::ONE);
        }
    }

    /// NaN for the keys that a row which makes NaN saw, the last such row being `last`, and for all keys where what
    /// arrives at the final state is NaN.
    pub fn fill_with_nan(&mut self, last: Option<usize>, arriving: &Arriving<'_, S::Compute>) {
        let seen = match last {
            _ if arriving.is_nan() => usize::MAX,
            None => return,
            Some(last) if self.call.args.causal => (last + 1).saturating_sub(self.range.start),
            Some(_) => usize::MAX,
        };
        for j in (0..self.keys.len().min(seen)).filter(|&j| !self.keys.is_padding(j)) {
            self.dk.fill_with_nan(j);
            self.dv.fill_with_nan(j);
        }
    }

    /// Stores what has not been stored yet.
    pub fn finish(self) {
        self.dk.finish();
        self.dv.finish();
    }
}

/// Keys read the gradients of their values as sums, and of their inputs.
fn of_keys(parameters: bool) -> ReadOptions {
    ReadOptions { sums: true, gradient: true, parameters, normalize: false }
}
