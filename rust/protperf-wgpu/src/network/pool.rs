//! Vectors that are made of several rows each.

use super::arrays::{Activations, Forward};
use super::extents::Extents;
use crate::error::GpuError;
use crate::kernels::Kernel;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// The most rows of a block, the twin of `BLOCK` in `shaders/network/pool_prelude.wgsl`.
const BLOCK: usize = 256;

/// How rows become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The largest number along each axis.
    Max,
    /// Their mean with weights: the softmax over the rows of `sqrt(C) cos(x_i, x_query)`.
    Attention {
        /// A row.
        query: usize,
    },
}

impl Pooling {
    /// The number by which the shaders know it, and the query.
    fn numbers(self) -> [u32; 2] {
        match self {
            Pooling::Mean => [0, 0],
            Pooling::Max => [1, 0],
            Pooling::Attention { query } => [2, query as u32],
        }
    }
}

/// The twin of `Block` in `shaders/network/pool_prelude.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PoolBlock {
    kind: u32,
    first: u32,
    count: u32,
    query: u32,
}

/// The twin of `Pool` in `shaders/network/pool.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PoolOnDevice {
    kind: u32,
    first: u32,
    count: u32,
    rows: u32,
}

/// One vector for each range of rows `[pools,C]`; of no rows it holds any numbers.
///
/// # Errors
/// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
pub fn pool(
    forward: &mut Forward<'_>,
    x: &Activations,
    pools: &[(Range<usize>, Pooling)],
) -> Result<Activations, GpuError> {
    let (mut blocks, mut table) = (Vec::new(), Vec::new());
    for (rows, pooling) in pools {
        let [kind, query] = pooling.numbers();
        let first = blocks.len() as u32;
        for start in rows.clone().step_by(BLOCK) {
            let count = BLOCK.min(rows.end - start) as u32;
            blocks.push(PoolBlock { kind, first: start as u32, count, query });
        }
        table.push(PoolOnDevice { kind, first, count: blocks.len() as u32 - first, rows: rows.len() as u32 });
    }
    let out = forward.scratch("pooled rows", pools.len(), x.width)?;
    let sums = forward.scratch("sums of rows", blocks.len(), x.width)?;
    let weights = forward.recorder.scratch("weights of rows", blocks.len() as u64 * 8)?;
    let has_logits = pools.iter().any(|(_, pooling)| matches!(pooling, Pooling::Attention { .. }));
    let num_logits = if has_logits { blocks.len() * BLOCK } else { 0 };
    let logits = forward.recorder.scratch("weights of rows", num_logits as u64 * 4)?;
    let on_device = forward.recorder.upload("rows of pools", &blocks)?;
    let table = forward.recorder.upload("pools", &table)?;
    let extents = Extents { inputs: x.fours(), factor: (x.width as f32).sqrt(), ..Extents::default() };
    let bindings = [&x.memory, &on_device, &logits];
    forward.recorder.dispatch(Kernel::PoolLogits, extents.over(&[num_logits as u32]), &bindings);
    let bindings = [&x.memory, &on_device, &logits, &sums.memory, &weights];
    forward.recorder.dispatch(Kernel::PoolBlocks, extents.over(&[x.fours(), blocks.len() as u32]), &bindings);
    let bindings = [&sums.memory, &weights, &table, &out.memory];
    forward.recorder.dispatch(Kernel::Pool, extents.over(&[x.fours(), pools.len() as u32]), &bindings);
    Ok(out)
}
