//! One checked call, and the lines of work that it consists of.

use crate::blocks::Blocks;
use crate::dispatch::Isa;
use crate::load::{Rows, load_inputs, load_values};
use crate::ops::{CpuElement, Ops};
use crate::parallel;
use crate::sweep::Sweep;
use crate::weights::{Weights, Widths};
use crate::workspace::{CHUNK, Scratch, Side, try_filled, try_reserved, with_scratch};
use protperf_core::{Error, FavorArgs, FavorShape, Result, TensorRef};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Rows between two looks at the cancel flag in scans that do little with a row.
pub(crate) const SCAN: usize = 1024;

/// How a call runs.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// Threads of the pool; changes no bit of any result.
    pub num_threads: usize,
    /// Raised by the caller to stop the call.
    pub cancel: &'a AtomicBool,
}

/// A checked call, ready to be split into tasks.
pub(crate) struct Call<'a, E: CpuElement> {
    pub args: &'a FavorArgs<'a, E>,
    pub shape: FavorShape,
    pub widths: Widths,
    pub ops: &'static Ops<E>,
    weights: Vec<Weights<E>>,
    segments: Vec<(usize, usize)>,
    ctx: Context<'a>,
}

/// One head of one batch entry in one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub batch: usize,
    pub head: usize,
    pub segment: usize,
}

/// What a whole segment's keys and values say about one key head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<E> {
    /// The first visible key whose row of k or v is not finite.
    pub bad: Option<usize>,
    /// The largest magnitude of the visible values in rows that are finite.
    most: E,
}

impl<'a, E: CpuElement> Call<'a, E> {
    pub fn new(args: &'a FavorArgs<'a, E>, ctx: &Context<'a>) -> Result<Self> {
        let shape = args.validate()?;
        let widths = Widths::new(args.feature_map, &shape);
        let heads = args.omega.and_then(|omega| omega.num_heads).unwrap_or(1);
        let mut weights = try_reserved(heads)?;
        for head in 0..heads {
            parallel::check(ctx.cancel)?;
            weights.push(Weights::pack(args, &widths, head)?);
        }
        let mut segments = try_reserved(args.cu_seqlens.map_or(1, <[i64]>::len))?;
        match args.cu_seqlens {
            Some(borders) => segments.extend(borders.windows(2).map(|w| (w[0] as usize, (w[1] - w[0]) as usize))),
            None => segments.push((0, shape.q_len)),
        }
        Ok(Call { args, shape, widths, ops: Ops::of(ctx.isa), weights, segments, ctx: *ctx })
    }

    /// Matrices of directions: one for all heads, or one a head.
    pub fn num_matrices(&self) -> usize {
        self.weights.len()
    }

    /// The lines that are cut into blocks, and those that are not, longest first.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn lines(&self) -> Result<(Vec<Line>, Vec<Line>)> {
        let (batch, heads) = (self.shape.batch, self.shape.heads);
        let mut order = try_reserved(self.segments.len())?;
        order.extend(0..self.segments.len());
        order.sort_unstable_by_key(|&segment| (std::cmp::Reverse(self.segments[segment].1), segment));
        let (mut cut, mut whole) = (Vec::new(), try_reserved(order.len().saturating_mul(batch * heads))?);
        for segment in order {
            for at in 0..batch * heads {
                let line = Line { batch: at / heads, head: at % heads, segment };
                let is_cut = self.query_blocks(&line).count() > 1 || self.key_blocks(&line).count() > 1;
                if is_cut { cut.push(line) } else { whole.push(line) }
            }
        }
        Ok((cut, whole))
    }

    fn blocks(&self, len: usize) -> Blocks {
        Blocks::new(len, self.shape.batch * self.shape.heads, self.args.causal)
    }
    pub fn query_blocks(&self, line: &Line) -> Blocks {
        self.blocks(self.segments[line.segment].1)
    }
    pub fn key_blocks(&self, line: &Line) -> Blocks {
        self.blocks(self.key_range(line.segment).1)
    }

    /// Keys of a query segment: the same rows, or all of them without segments.
    fn key_range(&self, segment: usize) -> (usize, usize) {
        if self.args.cu_seqlens.is_some() { self.segments[segment] } else { (0, self.shape.kv_len) }
    }

    /// Rows of a tensor that has one row a query of the segment.
    pub fn queries(&self, tensor: &'a TensorRef<'a, E>, line: &Line) -> Rows<'a, E> {
        let (start, len) = self.segments[line.segment];
        Rows { tensor, batch: line.batch, head: line.head, start, len, reversed: false }
    }

    /// Keys and values of the segment that the line's head reads.
    pub fn keys(&self, line: &Line) -> Keys<'a, E> {
        let (start, len) = self.key_range(line.segment);
        let head = line.head / self.shape.group();
        let rows = |tensor| Rows { tensor, batch: line.batch, head, start, len, reversed: false };
        Keys { keys: rows(&self.args.k), values: rows(&self.args.v) }
    }

    /// Index of the first row of the line's queries among all rows `[B,H,L]`.
    pub fn first_query(&self, line: &Line) -> usize {
        (line.batch * self.shape.heads + line.head) * self.shape.q_len + self.segments[line.segment].0
    }

    pub fn is_padding(&self, batch: usize, position: usize) -> bool {
        self.args.key_padding_mask.is_some_and(|mask| mask[batch * self.shape.kv_len + position])
    }

    /// # Errors
    /// `Interrupted` where the caller asked for it.
    pub fn stop(&self) -> Result<()> {
        parallel::check(self.ctx.cancel)
    }

    /// Asked at every row of a scan over a whole sequence; looks at the flag now and then.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn stop_at(&self, row: usize) -> Result<()> {
        if row.is_multiple_of(SCAN) { self.stop() } else { Ok(()) }
    }

    /// The ranges of chunks of some rows; stops where the caller asked for it.
    pub fn chunks(&self, len: usize, mut chunk: impl FnMut(usize, usize)) -> Result<()> {
        for low in (0..len).step_by(CHUNK) {
            self.stop()?;
            chunk(low, CHUNK.min(len - low));
        }
        Ok(())
    }

    /// [`parallel::run`] of this call.
    pub fn run(&self, num_tasks: usize, task: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
        parallel::run(num_tasks, self.ctx.num_threads, self.ctx.cancel, task)
    }

    /// [`parallel::fold`] of this call.
    pub fn fold<T: Send>(
        &self,
        num_tasks: usize,
        task: impl Fn(usize) -> Result<T> + Sync,
        fold: impl FnMut(usize, T) -> Result<()> + Send,
    ) -> Result<()> {
        parallel::fold(num_tasks, self.ctx.num_threads, self.ctx.cancel, task, fold)
    }

    /// Runs `body` with a sweep over an empty state.
    pub fn with_sweep<R>(&self, head: usize, body: impl FnOnce(&mut Sweep<'_, E>) -> Result<R>) -> Result<R> {
        with_scratch(self.widths, |buffers: &mut Scratch<E>| {
            buffers.state.clear();
            body(&mut Sweep {
                ops: self.ops,
                weights: &self.weights[if self.num_matrices() == 1 { 0 } else { head }],
                widths: self.widths,
                epsilon: E::from_f64(self.args.kernel_epsilon),
                buffers,
            })
        })
    }

    /// Looks at some of a line's keys and values.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn facts(&self, keys: &Keys<'_, E>, range: Range<usize>) -> Result<Facts<E>> {
        let mut facts = Facts { bad: None, most: E::ZERO };
        for j in range {
            self.stop_at(j)?;
            if self.is_padding(keys.keys.batch, keys.keys.position(j)) {
                continue;
            }
            let (largest, finite) = keys.values.largest(self.ops, j);
            if facts.bad.is_none() && !(finite && keys.keys.largest(self.ops, j).1) {
                facts.bad = Some(j);
            }
            // A row that is not finite is summed by nobody, and must not decide for those before it.
            if largest > facts.most && finite {
                facts.most = largest;
            }
        }
        Ok(facts)
    }

    /// The facts of lines that are cut into blocks.
    pub fn facts_of(&self, lines: &[Line]) -> Result<Vec<Facts<E>>> {
        let mut facts = try_filled(lines.len(), Facts { bad: None, most: E::ZERO })?;
        let tasks = tasks(lines, |line| self.key_blocks(line))?;
        self.fold(
            tasks.len(),
            |at| self.facts(&self.keys(&lines[tasks[at].0]), tasks[at].1.clone()),
            |at, found| {
                facts[tasks[at].0].join(&found);
                Ok(())
            },
        )?;
        Ok(facts)
    }

    /// Loads keys and values of a chunk on one side.
    pub fn load_keys(&self, side: &mut Side<E>, keys: &Keys<'_, E>, low: usize, rows: usize, scale: E) {
        load_inputs(self.ops, side, &self.widths, &keys.keys, low, rows, true);
        for r in 0..rows {
            if self.is_padding(keys.keys.batch, keys.keys.position(low + r)) {
                side.drop_row(&self.widths, r);
            }
        }
        load_values(side, &self.widths, &keys.values, low, rows, scale);
    }

    /// Loads a chunk of queries, or of what has their shape.
    pub fn load_queries(&self, side: &mut Side<E>, queries: &Rows<'_, E>, low: usize, rows: usize) {
        load_inputs(self.ops, side, &self.widths, queries, low, rows, false);
    }

    /// Adds some keys to the running state.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn absorb_keys(&self, sweep: &mut Sweep<'_, E>, keys: &Keys<'_, E>, scale: E) -> Result<()> {
        self.chunks(keys.keys.len, |low, n| {
            self.load_keys(&mut sweep.buffers.writer, keys, low, n, scale);
            sweep.absorb(n, true);
            sweep.commit(n);
        })
    }
}

/// Rows of keys and of their values.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a, E> {
    pub keys: Rows<'a, E>,
    pub values: Rows<'a, E>,
}

impl<E: CpuElement> Keys<'_, E> {
    pub fn part(&self, range: Range<usize>, reversed: bool) -> Self {
        Keys { keys: self.keys.part(range.clone(), reversed), values: self.values.part(range, reversed) }
    }
}

impl<E: CpuElement> Facts<E> {
    /// Adds the facts of later keys.
    fn join(&mut self, later: &Self) {
        self.bad = self.bad.or(later.bad);
        if later.most > self.most {
            self.most = later.most;
        }
    }

    /// How many keys of a range come before the first that is not finite.
    pub fn usable(&self, range: &Range<usize>) -> usize {
        self.bad.map_or(range.len(), |bad| bad.clamp(range.start, range.end) - range.start)
    }

    /// The power of two that values are divided by before they are summed: 0 unless they are so large that sums could
    /// overflow, or so small that products could vanish.
    pub fn power(&self) -> E {
        let half = (E::TOP * E::from_f64(0.5)).round_even();
        if self.most == E::ZERO {
            return E::ZERO;
        }
        let (exponent, _) = self.most.frexp();
        if exponent > half {
            (exponent - half).round_even()
        } else if exponent < -half {
            let power = exponent + half;
            if power < E::FLUSH { E::FLUSH } else { power }
        } else {
            E::ZERO
        }
    }
}

/// Every block of some lines with the index of its line, in order.
///
/// # Errors
/// `OutOfMemory`.
pub(crate) fn tasks(lines: &[Line], blocks: impl Fn(&Line) -> Blocks) -> Result<Vec<(usize, Range<usize>)>> {
    let mut tasks = try_reserved(lines.iter().map(|line| blocks(line).count()).sum())?;
    for (at, line) in lines.iter().enumerate() {
        tasks.extend(blocks(line).ranges().map(|range| (at, range)));
    }
    Ok(tasks)
}

/// A contiguous output that tasks fill in disjoint ranges.
pub(crate) struct SharedOut<E> {
    pointer: *mut E,
    len: usize,
}

// SAFETY: tasks write disjoint ranges (see `range`), and E is plain data.
unsafe impl<E: Send> Sync for SharedOut<E> {}

impl<E> SharedOut<E> {
    pub fn new(out: &mut [E]) -> Self {
        SharedOut { pointer: out.as_mut_ptr(), len: out.len() }
    }

    /// A part of the output.
    ///
    /// # Safety
    /// No two live ranges overlap: each task asks only for the rows of its own line and block.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [E] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: inside the slice this was made of; disjointness is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), len) }
    }
}

pub(crate) fn check_len(argument: &'static str, found: usize, needed: usize) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    Err(Error::ShapeMismatch { argument, detail: format!("has {found} elements, its shape needs {needed}") })
}
