//! Large temporary buffers, kept for the next call: touching fresh pages costs as much as the arithmetic on them.

use protperf_core::Result;
use protperf_cpu::CpuElement;
use protperf_cpu::aligned::Aligned;
use protperf_cpu::bf16::Tile;
use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// Bytes that are kept between calls, over all threads.
const MAX_KEPT_BYTES: usize = 192 << 20;
/// Buffers that are kept: those of a block's passes on some threads.
const MAX_KEPT: usize = 64;
/// How often a thread looks whether another has let go of the list, which takes it some dozens of instructions.
const MAX_ATTEMPTS: usize = 1000;

/// Buffers that nobody uses.
static KEPT: Mutex<Kept> = Mutex::new(Kept { bytes: 0, buffers: Vec::new() });

struct Kept {
    bytes: usize,
    /// Each with its size in bytes.
    buffers: Vec<(usize, Box<dyn Any + Send>)>,
}

/// Plain data that a buffer can hold.
pub trait Plain: Copy + Send + 'static {}
impl<T: Copy + Send + 'static> Plain for T {}

/// A buffer of a fixed length whose first contents are arbitrary.
#[derive(Debug)]
pub struct Buffer<T: Plain> {
    /// All that was ever allocated, so that no part of it has to be filled again.
    memory: Aligned<T>,
    len: usize,
}

impl<T: CpuElement> Buffer<T> {
    /// A buffer of `len` elements.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(len: usize) -> Result<Self> {
        let mut buffer = Self::filled(len, T::ZERO)?;
        // So that tests find every element that is read before it was written.
        if cfg!(debug_assertions) {
            buffer.fill(T::from_f64(f64::NAN));
        }
        Ok(buffer)
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn zeros(len: usize) -> Result<Self> {
        let mut buffer = Self::new(len)?;
        buffer.fill(T::ZERO);
        Ok(buffer)
    }
}

impl Buffer<Tile> {
    /// A buffer of tiles.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn tiles(len: usize) -> Result<Self> {
        Self::filled(len, Tile::ZERO)
    }
}

impl<T: Plain> Buffer<T> {
    /// Kept memory, or new memory filled with `value`.
    fn filled(len: usize, value: T) -> Result<Self> {
        let memory = match take(len) {
            Some(found) => found,
            None => Aligned::filled(len, value)?,
        };
        Ok(Buffer { memory, len })
    }
}

/// The list, unless it stays locked: the lock that another thread held while this process was forked is never opened, so
/// nobody waits for it.
fn kept() -> Option<MutexGuard<'static, Kept>> {
    for _ in 0..MAX_ATTEMPTS {
        match KEPT.try_lock() {
            Ok(kept) => return Some(kept),
            Err(TryLockError::Poisoned(kept)) => return Some(kept.into_inner()),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    None
}

/// The smallest kept buffer that has room for `len` elements and is not wastefully large.
fn take<T: Plain>(len: usize) -> Option<Aligned<T>> {
    let mut kept = kept()?;
    let needed = len * size_of::<T>();
    let fits = |&(bytes, ref any): &(usize, Box<dyn Any + Send>)| {
        bytes >= needed && bytes / 4 <= needed && any.is::<Aligned<T>>()
    };
    let (at, _) =
        kept.buffers.iter().enumerate().filter(|(_, kept)| fits(kept)).min_by_key(|(_, (bytes, _))| *bytes)?;
    let (bytes, found) = kept.buffers.swap_remove(at);
    kept.bytes -= bytes;
    found.downcast::<Aligned<T>>().ok().map(|memory| *memory)
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = self.memory.len() * size_of::<T>();
        let Some(mut kept) = kept() else { return };
        if bytes == 0 || bytes > MAX_KEPT_BYTES || kept.buffers.try_reserve(1).is_err() {
            return;
        }
        while kept.bytes + bytes > MAX_KEPT_BYTES || kept.buffers.len() >= MAX_KEPT {
            let (freed, _) = kept.buffers.remove(0);
            kept.bytes -= freed;
        }
        kept.bytes += bytes;
        kept.buffers.push((bytes, Box::new(std::mem::take(&mut self.memory))));
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[..self.len]
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_buffer_serves_again_for_any_type_and_length() {
        for len in [0, 1, 1000, 999, 5000, 17] {
            assert_eq!(Buffer::<f32>::zeros(len).unwrap().iter().filter(|&&x| x == 0.0).count(), len);
            assert_eq!(Buffer::<f64>::zeros(len).unwrap().iter().filter(|&&x| x == 0.0).count(), len);
        }
    }
}
