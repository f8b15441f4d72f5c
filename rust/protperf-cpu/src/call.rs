//! One checked call: its plan, its tensors, its packed parameters and its threads.

use crate::bf16::Unit;
use crate::chunk::Chunk;
use crate::instructions::Instructions;
use crate::kept_maps;
use crate::layout::{CHUNK, Layout};
use crate::load::{KeyView, Loader, RowView};
use crate::ops::Ops;
use crate::packed_omega::{Head, PackedOmega};
use crate::parallel::Workers;
use crate::plan::{HeadSegment, Plan};
use crate::prepared::PreparedMap;
use crate::products::with_products;
use crate::scan::KeyScan;
use crate::state::State;
use crate::stored::CpuStored;
use crate::workspace::{Workspace, with_scratch};
use half::bf16;
use protperf_core::{Execution, FavorArgs, Result, Stored, TensorRef, try_filled};

/// A checked call.
pub struct Call<'a, S: CpuStored> {
    pub args: &'a FavorArgs<'a, S>,
    pub plan: Plan,
    pub layout: Layout,
    pub loader: Loader<'a, S>,
    pub workers: Workers<'a>,
    bf16: Option<Unit>,
    /// The initial states, `[B,H,F,2+E]` or `[num_segments,H,F,2+E]`; `None`: empty ones.
    state_in: Option<&'a [S::Compute]>,
    map: PreparedMap<S::Compute>,
}

impl<'a, S: CpuStored> Call<'a, S> {
    /// Checks the arguments, and packs the parameters of the map unless they are `prepared`, or kept from a recent call.
    ///
    /// # Errors
    /// As [`FavorArgs::validate`]; `InvalidOption` where what is prepared is another map; `OutOfMemory`; `Interrupted`.
    pub fn new(
        args: &'a FavorArgs<'a, S>,
        prepared: Option<&PreparedMap<S::Compute>>,
        state_in: Option<&'a [S::Compute]>,
        instructions: Instructions,
        run: &Execution<'a>,
    ) -> Result<Self> {
        let shape = args.validate()?;
        let workers = Workers::new(run);
        let map = match prepared {
            Some(prepared) => {
                prepared.check(instructions, &args.map, shape.heads, shape.head_dim)?;
                prepared.clone()
            }
            None => {
                workers.check()?;
                let prepare =
                    || PreparedMap::new(instructions, &args.map, shape.heads, shape.head_dim, || workers.check());
                kept_maps::prepared(instructions, &args.map, shape.heads, prepare)?
            }
        };
        let layout = map.layout(shape.value_dim);
        let plan = Plan::new(shape, args.causal, args.cu_seqlens)?;
        let loader = Loader { args, ops: Ops::of(instructions.isa), layout, family: map.family().clone() };
        Ok(Call { args, plan, layout, loader, workers, bf16: instructions.bf16, state_in, map })
    }

    /// The packed parameters of a head.
    pub fn omega(&self, head: usize) -> &PackedOmega<S::Compute> {
        &self.map.of_head(head).0
    }

    /// Rows of a tensor that has one row for each query of the segment.
    pub fn queries(&self, tensor: &'a TensorRef<'a, S>, segment: &HeadSegment) -> RowView<'a, S> {
        self.loader.queries(&self.plan, tensor, segment)
    }

    /// Keys and values of the segment.
    pub fn keys(&self, segment: &HeadSegment) -> KeyView<'a, S> {
        self.loader.keys(&self.plan, segment)
    }

    /// The initial state of a head segment, `[F,2+E]`; `None`: an empty one.
    pub fn state_in(&self, segment: &HeadSegment) -> Option<&'a [S::Compute]> {
        self.state_in.map(|all| &all[self.plan.state_range(segment)])
    }

    /// Makes a state that of a head segment before its first key.
    pub fn import_state(&self, segment: &HeadSegment, to: &mut State<S::Compute>) {
        match self.state_in(segment) {
            Some(state) => to.import(&self.layout, state),
            None => to.clear(),
        }
    }

    /// Runs `body` with the workspace of a head, over an empty state.
    ///
    /// # Errors
    /// `OutOfMemory`, or what `body` returns.
    pub fn with_workspace<R>(
        &self,
        head: usize,
        body: impl FnOnce(&mut Workspace<'_, S::Compute>) -> Result<R>,
    ) -> Result<R> {
        with_scratch(self.layout, |scratch| {
            let mut memory = std::mem::take(&mut scratch.tiles);
            let (ops, widths) = (self.loader.ops, [self.layout.head_dim, self.layout.value_dim]);
            let result = with_products(ops, self.bf16, widths, S::NAME == bf16::NAME, &mut memory, |products| {
                scratch.state.clear();
                let head = Head { ops, products, omega: self.omega(head), layout: self.layout };
                let family = &**self.map.family();
                let chunk = Chunk { head, family, state: &mut scratch.state, buffers: &mut scratch.buffers };
                body(&mut Workspace {
                    chunk,
                    keys: &mut scratch.keys,
                    queries: &mut scratch.queries,
                    features: &mut scratch.features,
                    other: &mut scratch.other,
                })
            });
            scratch.tiles = memory;
            result
        })
    }

    /// Adds some keys, their values times `scale`, to the state.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn add_keys(
        &self,
        workspace: &mut Workspace<'_, S::Compute>,
        keys: &KeyView<'_, S>,
        scale: S::Compute,
    ) -> Result<()> {
        let Workspace { chunk, keys: rows, features, .. } = workspace;
        self.workers.for_each_chunk(keys.len(), |low, count| {
            let loaded = self.loader.load_keys(chunk.head.omega, rows, keys, low, count, scale);
            let keys = chunk.project_keys(loaded, features);
            chunk.update_state(keys);
        })
    }

    /// Whether the queries of a noncausal head segment read its keys themselves and not their state: where that is less
    /// work, in multiply-adds, and the keys are one chunk. The two were compared in f32 alone: with products of bf16 it is
    /// the state.
    pub fn reads_keys(&self, segment: &HeadSegment) -> bool {
        let [queries, keys] = [self.plan.query_range(segment).len(), self.plan.key_range(segment).len()];
        let (features, values) = (self.plan.shape.feature_dim, self.plan.shape.value_dim);
        keys <= CHUNK
            && self.bf16.is_none()
            && self.state_in.is_none()
            && queries * keys * (features + values) < (queries + keys) * features * values
    }

    /// Whether queries and keys of a noncausal head segment read each other for their gradients, and no states: where that is
    /// less work and both are one chunk. With states keys are projected once more.
    pub fn reads_each_other(&self, segment: &HeadSegment) -> bool {
        let [queries, keys] = [self.plan.query_range(segment).len(), self.plan.key_range(segment).len()];
        let (inputs, features, values) =
            (self.plan.shape.head_dim, self.plan.shape.feature_dim, self.plan.shape.value_dim);
        let by_states = (2 * queries + 3 * keys) * features * values + keys * features * inputs;
        queries.min(keys) > 0
            && queries.max(keys) <= CHUNK
            && self.bf16.is_none()
            && self.state_in.is_none()
            && 3 * queries * keys * (features + values) < by_states
    }

    /// Scans all that the rows of one head segment see.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn scan(&self, segment: &HeadSegment) -> Result<KeyScan<S::Compute>> {
        Ok(self.with_shared(segment, self.scan_keys(segment)?))
    }

    /// Scans the keys of one head segment, the same for all heads that share them.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn scan_keys(&self, segment: &HeadSegment) -> Result<KeyScan<S::Compute>> {
        let keys = self.keys(segment);
        KeyScan::new(&self.workers, self.loader.ops, &keys, 0..keys.len())
    }

    /// Scans the keys of head segments that are cut into blocks, block by block.
    ///
    /// # Errors
    /// `OutOfMemory`, `Interrupted`.
    pub fn scan_blocks(&self, segments: &[HeadSegment]) -> Result<Vec<KeyScan<S::Compute>>> {
        let mut scans = try_filled(segments.len(), KeyScan::empty())?;
        let tasks = self.plan.key_tasks(segments)?;
        self.workers.fold(
            tasks.len(),
            |task| {
                let (at, range) = &tasks[task];
                KeyScan::new(&self.workers, self.loader.ops, &self.keys(&segments[*at]), range.clone())
            },
            |task, found| {
                scans[tasks[task].0].join(&found);
                Ok(())
            },
        )?;
        Ok(segments.iter().zip(scans).map(|(segment, of_keys)| self.with_shared(segment, of_keys)).collect())
    }

    /// Adds to a scan of keys what every row of a head segment sees: the initial state and the parameters of the map.
    pub fn with_shared(&self, segment: &HeadSegment, of_keys: KeyScan<S::Compute>) -> KeyScan<S::Compute> {
        let mut scan = of_keys;
        if let Some(state) = self.state_in(segment) {
            scan.join_state(self.loader.ops, state, self.layout.value_dim);
        }
        if !self.map.of_head(segment.head).1 {
            scan.mark_all_bad();
        }
        scan
    }
}
