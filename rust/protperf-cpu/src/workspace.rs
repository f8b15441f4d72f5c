//! The memory of one task, kept by each thread for the next task.

use crate::aligned::Aligned;
use crate::chunk::{Buffers, Chunk};
use crate::layout::{CHUNK, Layout, PANEL};
use crate::ops::CpuElement;
use crate::products::TileMemory;
use crate::rows::ChunkRows;
use crate::state::State;
use protperf_core::Result;
use std::any::Any;
use std::cell::RefCell;

#[cfg(test)]
mod poisoned;

/// What one task works with: the stages of its chunks, and the rows that they load.
pub struct Workspace<'a, T: CpuElement> {
    pub chunk: Chunk<'a, T>,
    pub keys: &'a mut ChunkRows<T>,
    pub queries: &'a mut ChunkRows<T>,
    /// Memory for the features of the keys.
    pub features: &'a mut [T],
    /// A second state, for sums of another kind than those that are read.
    pub other: &'a mut State<T>,
}

/// Buffers of one task.
pub struct Scratch<T> {
    layout: Layout,
    pub keys: ChunkRows<T>,
    pub queries: ChunkRows<T>,
    pub features: Aligned<T>,
    pub state: State<T>,
    pub other: State<T>,
    pub buffers: Buffers<T>,
    /// Operands that are rounded to bf16.
    pub tiles: TileMemory,
}

impl<T: CpuElement> Scratch<T> {
    fn new(layout: Layout) -> Result<Self> {
        Ok(Scratch {
            layout,
            keys: ChunkRows::new(&layout)?,
            queries: ChunkRows::new(&layout)?,
            features: Aligned::filled(layout.feature_panels() * CHUNK * PANEL, T::ZERO)?,
            state: State::new(&layout)?,
            other: State::new(&layout)?,
            buffers: Buffers::new(&layout)?,
            tiles: TileMemory::default(),
        })
    }

    /// Bytes of the buffers that grow with the widths.
    fn bytes(&self) -> usize {
        let Buffers { references, scores, sums, gradients } = &self.buffers;
        let rows = [&self.keys, &self.queries].into_iter().flat_map(|rows| [&rows.x, &rows.y, &rows.values_and_one]);
        let states = [&self.state, &self.other, &references.before].into_iter().map(|state| &state.values);
        let own = [&self.features, &scores.transposed, &scores.transposed_values, &sums.numerator];
        let parameters = gradients.parameters.iter().flat_map(|all| all.named()).filter_map(|(_, field)| field);
        let all = rows.chain(states).chain(own).chain([&gradients.recomputed]).map(|buffer| buffer.len());
        let numbers = all.chain(parameters.map(Vec::len)).sum::<usize>();
        numbers * size_of::<T>() + self.tiles.bytes()
    }
}

/// Scratch that a thread keeps, with its size in bytes, the oldest first.
type Kept = Vec<(usize, Box<dyn Any>)>;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Vec::new()) };
}

/// Scratches kept per thread: enough for a model whose layers alternate between two shapes in two types.
const MAX_KEPT: usize = 4;
/// Bytes kept per thread; the scratch of the latest task stays even where it alone is larger.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// Runs `body` with scratch for a layout, kept from an earlier task of this thread where there is one.
///
/// # Errors
/// `OutOfMemory`, or what `body` returns.
pub fn with_scratch<T: CpuElement, R>(layout: Layout, body: impl FnOnce(&mut Scratch<T>) -> Result<R>) -> Result<R> {
    let kept = KEPT.with_borrow_mut(|all| {
        let fits = |any: &dyn Any| any.downcast_ref::<Scratch<T>>().is_some_and(|s| s.layout == layout);
        let at = all.iter().position(|(_, any)| fits(any.as_ref()))?;
        all.remove(at).1.downcast::<Scratch<T>>().ok()
    });
    let mut scratch = match kept {
        Some(found) => found,
        None => Box::new(Scratch::new(layout)?),
    };
    let result = body(&mut scratch);
    KEPT.with_borrow_mut(|all| {
        all.push((scratch.bytes(), scratch));
        let is_full = |all: &Kept| all.iter().map(|(bytes, _)| bytes).sum::<usize>() > MAX_KEPT_BYTES;
        while all.len() > MAX_KEPT || all.len() > 1 && is_full(all) {
            all.remove(0);
        }
    });
    result
}
