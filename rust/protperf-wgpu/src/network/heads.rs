//! Queries, keys and values of a block's tokens as rows of its heads.

use super::arrays::{Activations, Forward, Sequences};
use super::extents::Extents;
use crate::error::GpuError;
use crate::kernels::Kernel;
use crate::memory::OnDevice;
use std::ops::Range;

/// The heads of a block that reads some sequences.
pub struct Heads<'a> {
    /// H.
    pub count: usize,
    /// D.
    pub dim: usize,
    /// Lengths of queries and keys `[H]`.
    pub lengths: &'a OnDevice,
    pub sequences: &'a Sequences,
}

/// Queries and keys `[heads,rows,D]`, and a one with the values `[heads,rows,1+D]`, of a group of heads.
pub fn split(
    forward: &mut Forward<'_>,
    qkv: &Activations,
    heads: &Heads<'_>,
    group: Range<usize>,
) -> Result<[OnDevice; 3], GpuError> {
    let rows = heads.sequences.rows();
    let bytes = |width: usize| group.len() as u64 * rows as u64 * width as u64 * 4;
    let split = [
        forward.recorder.scratch("queries", bytes(heads.dim))?,
        forward.recorder.scratch("keys", bytes(heads.dim))?,
        forward.recorder.scratch("values", bytes(heads.dim + 1))?,
    ];
    let extents = Extents {
        rows: rows as u32,
        inputs: qkv.fours(),
        width: (3 * heads.count * heads.dim) as u32,
        first_head: group.start as u32,
        head_dim: heads.dim as u32,
        ..Extents::default()
    };
    let [queries, keys, values] = &split;
    let bindings = [&qkv.memory, &heads.sequences.angles, heads.lengths, queries, keys, values];
    forward.recorder.dispatch(Kernel::Heads, extents.over(&[extents.rows, group.len() as u32]), &bindings);
    Ok(split)
}

/// Rows that every head writes its part of, `[rows,HD]`.
pub fn merged(forward: &mut Forward<'_>, heads: &Heads<'_>) -> Result<Activations, GpuError> {
    let width = heads.count * heads.dim;
    let merged = forward.scratch("what heads read", heads.sequences.rows(), width)?;
    if !width.is_multiple_of(4) {
        forward.recorder.clear(&merged.memory);
    }
    Ok(merged)
}
