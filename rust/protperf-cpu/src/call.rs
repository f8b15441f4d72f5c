//! One checked call: its plan, its tensors, its packed directions and its threads.

use crate::chunk::Chunk;
use crate::dispatch::Isa;
use crate::features::{self, Family};
use crate::layout::Layout;
use crate::load::{KeyView, Loader, RowView};
use crate::ops::{CpuElement, Ops};
use crate::packed_omega::{Head, PackedOmega};
use crate::parallel::Workers;
use crate::plan::{HeadSegment, Plan};
use crate::scan::KeyScan;
use crate::workspace::{Workspace, with_scratch};
use protperf_core::{FavorArgs, Result, TensorRef, try_filled, try_reserved};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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

/// A checked call.
pub struct Call<'a, T: CpuElement> {
    pub args: &'a FavorArgs<'a, T>,
    pub plan: Plan,
    pub layout: Layout,
    pub loader: Loader<'a, T>,
    pub workers: Workers<'a>,
    family: Arc<dyn Family<T>>,
    /// One for all heads, or one per head.
    omegas: Vec<PackedOmega<T>>,
}

impl<'a, T: CpuElement> Call<'a, T> {
    /// Checks the arguments and packs the directions.
    ///
    /// # Errors
    /// As [`FavorArgs::validate`]; `OutOfMemory`; `Interrupted`.
    pub fn new(args: &'a FavorArgs<'a, T>, ctx: &Context<'a>) -> Result<Self> {
        let shape = args.validate()?;
        let workers = Workers { num_threads: ctx.num_threads, cancel: ctx.cancel };
        let (family, layout) = features::of(args, &shape);
        let num_matrices = args.map.num_sets();
        let mut omegas = try_reserved(num_matrices)?;
        for head in 0..num_matrices {
            workers.check()?;
            omegas.push(PackedOmega::pack(args, &layout, family.unit(), head)?);
        }
        let plan = Plan::new(shape, args.causal, args.cu_seqlens)?;
        let loader = Loader { args, ops: Ops::of(ctx.isa), layout, family: family.clone() };
        Ok(Call { args, plan, layout, loader, workers, family, omegas })
    }

    /// Matrices of directions: one for all heads, or one per head.
    pub fn num_matrices(&self) -> usize {
        self.omegas.len()
    }

    /// Rows of a tensor that has one row for each query of the segment.
    pub fn queries(&self, tensor: &'a TensorRef<'a, T>, part: &HeadSegment) -> RowView<'a, T> {
        self.loader.queries(&self.plan, tensor, part)
    }

    /// Keys and values of the segment.
    pub fn keys(&self, part: &HeadSegment) -> KeyView<'a, T> {
        self.loader.keys(&self.plan, part)
    }

    /// Runs `body` with the workspace of a head, over an empty state.
    ///
    /// # Errors
    /// `OutOfMemory`, or what `body` returns.
    pub fn with_workspace<R>(&self, head: usize, body: impl FnOnce(&mut Workspace<'_, T>) -> Result<R>) -> Result<R> {
        let omega = &self.omegas[if self.num_matrices() == 1 { 0 } else { head }];
        let head = Head { ops: self.loader.ops, omega, layout: self.layout };
        with_scratch(self.layout, |scratch| {
            scratch.state.clear();
            let chunk = Chunk { head, family: &*self.family, state: &mut scratch.state, buffers: &mut scratch.buffers };
            body(&mut Workspace {
                chunk,
                keys: &mut scratch.keys,
                queries: &mut scratch.queries,
                features: &mut scratch.features,
                other: &mut scratch.other,
            })
        })
    }

    /// Adds some keys, their values times `scale`, to the state.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn add_keys(&self, workspace: &mut Workspace<'_, T>, keys: &KeyView<'_, T>, scale: T) -> Result<()> {
        let Workspace { chunk, keys: rows, features, .. } = workspace;
        self.workers.for_each_chunk(keys.len(), |low, count| {
            let keys = chunk.project_keys(self.loader.load_keys(rows, keys, low, count, scale), features);
            chunk.update_state(keys);
        })
    }

    /// Scans the keys of one head segment.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn scan(&self, part: &HeadSegment) -> Result<KeyScan<T>> {
        let keys = self.keys(part);
        KeyScan::new(&self.workers, self.loader.ops, &keys, 0..keys.len())
    }

    /// Scans the keys of head segments that are cut into blocks, block by block.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn scan_blocks(&self, parts: &[HeadSegment]) -> Result<Vec<KeyScan<T>>> {
        let mut scans = try_filled(parts.len(), KeyScan::empty())?;
        let tasks = self.plan.key_tasks(parts)?;
        self.workers.fold(
            tasks.len(),
            |task| {
                let (at, range) = &tasks[task];
                KeyScan::new(&self.workers, self.loader.ops, &self.keys(&parts[*at]), range.clone())
            },
            |task, found| {
                scans[tasks[task].0].join(&found);
                Ok(())
            },
        )?;
        Ok(scans)
    }
}
