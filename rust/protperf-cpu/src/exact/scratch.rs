//! The memory of one task of exact attention, kept by each thread for the next: `docs/algorithm.md`, section 8.

use crate::aligned::Aligned;
use crate::layout::{CHUNK, PAD};
use crate::ops::CpuElement;
use crate::products::TileMemory;
use protperf_core::Result;
use std::any::Any;
use std::cell::RefCell;

/// Buffers of a task, each as long as some task needed it to be; a task finds in them what the one before it left.
#[derive(Default)]
pub struct Scratch<T> {
    /// Queries times the scale, `[rows][padded D]`.
    pub queries: Aligned<T>,
    /// Keys of a chunk `[CHUNK][padded D]`, and transposed `[padded D][CHUNK]`.
    pub keys: Aligned<T>,
    pub transposed_keys: Aligned<T>,
    /// Values of a chunk, each followed by a one, `[CHUNK][padded E + PAD]`, and transposed.
    pub values: Aligned<T>,
    pub transposed_values: Aligned<T>,
    /// Scores of a square, then its weights, and their gradients: `[CHUNK][CHUNK]`.
    pub scores: Aligned<T>,
    pub gradients: Aligned<T>,
    /// Numerators of queries `[rows][padded E]`, or gradients of theirs `[rows][padded D]`.
    pub of_queries: Aligned<T>,
    /// Cotangents of queries `[rows][padded E + PAD]`.
    pub cotangents: Aligned<T>,
    /// Gradients of the keys of a chunk, and of their values.
    pub of_keys: Aligned<T>,
    pub of_values: Aligned<T>,
    /// Exponents of queries, and by how much they rose.
    pub maxima: Aligned<T>,
    pub power: Aligned<T>,
    /// Lanes of the sums of their weights `[rows][PAD]`.
    pub sums: Aligned<T>,
    /// One row, or two of the width of the output, gathered or widened.
    pub gathered: Aligned<T>,
    /// Operands that are rounded to bf16.
    pub tiles: TileMemory,
}

impl<T: CpuElement> Scratch<T> {
    /// Makes the buffers long enough for `rows` queries at a time.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn grow(&mut self, rows: usize, head_dim: usize, value_dim: usize, is_backward: bool) -> Result<()> {
        let (d, e) = (head_dim.next_multiple_of(PAD), value_dim.next_multiple_of(PAD));
        let rows = rows.next_multiple_of(CHUNK);
        let width = if is_backward { d } else { e };
        for (buffer, len) in [
            (&mut self.queries, rows * d),
            (&mut self.keys, CHUNK * d),
            (&mut self.transposed_keys, CHUNK * d),
            (&mut self.values, CHUNK * (e + PAD)),
            (&mut self.transposed_values, CHUNK * (e + PAD)),
            (&mut self.scores, CHUNK * CHUNK),
            (&mut self.gradients, CHUNK * CHUNK),
            (&mut self.of_queries, rows * width),
            (&mut self.cotangents, if is_backward { rows * (e + PAD) } else { 0 }),
            (&mut self.of_keys, CHUNK * d),
            (&mut self.of_values, CHUNK * e),
            (&mut self.maxima, rows),
            (&mut self.power, rows),
            (&mut self.sums, rows * PAD),
            (&mut self.gathered, d.max(2 * e)),
        ] {
            if buffer.len() < len {
                *buffer = Aligned::filled(len, T::ZERO)?;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let Scratch { queries, keys, values, of_queries, cotangents, .. } = self;
        [queries, keys, values, of_queries, cotangents].iter().map(|buffer| buffer.len() * size_of::<T>()).sum()
    }
}

/// Bytes that a thread keeps for the next task.
const MAX_KEPT_BYTES: usize = 8 << 20;

thread_local! {
    static KEPT: RefCell<[Option<Box<dyn Any>>; 2]> = const { RefCell::new([None, None]) };
}

/// Runs `body` with what an earlier task of this thread left, where there is something.
///
/// # Errors
/// What `body` returns.
pub fn with_scratch<T: CpuElement, R>(body: impl FnOnce(&mut Scratch<T>) -> Result<R>) -> Result<R> {
    // One place per type: f32 and f64.
    let place = usize::from(size_of::<T>() == size_of::<f64>());
    let kept = KEPT.with_borrow_mut(|kept| kept[place].take()).and_then(|any| any.downcast::<Scratch<T>>().ok());
    let mut scratch = kept.unwrap_or_default();
    let result = body(&mut scratch);
    if scratch.bytes() <= MAX_KEPT_BYTES {
        KEPT.with_borrow_mut(|kept| kept[place] = Some(scratch));
    }
    result
}
