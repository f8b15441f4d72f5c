//! A buffer of rows that tasks share: each tile of rows belongs to one task.

use protperf_core::{Result, try_reserved};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tiles of up to a fixed number of rows, in order.
pub struct Tiles<'a, T>(Vec<Mutex<&'a mut [T]>>);

impl<'a, T> Tiles<'a, T> {
    /// Cuts a buffer whose rows have `width` elements into tiles of `rows` rows.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(buffer: &'a mut [T], width: usize, rows: usize) -> Result<Self> {
        let size = (width * rows).max(1);
        let mut tiles = try_reserved(buffer.len().div_ceil(size))?;
        tiles.extend(buffer.chunks_mut(size).map(Mutex::new));
        Ok(Tiles(tiles))
    }

    /// One tile; only one task ever asks for it, so nobody waits.
    pub fn take(&self, at: usize) -> MutexGuard<'_, &'a mut [T]> {
        self.0[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Tiles<'_, T> {
    /// Whether there is no tile.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
