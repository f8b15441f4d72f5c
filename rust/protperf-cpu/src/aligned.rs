//! Memory that begins at a cache line.
//!
//! A register of AVX-512 is as long as a cache line. Memory of the allocator begins at a multiple of 16 bytes, where every load
//! and store of such a register touches two lines.

use protperf_core::{Result, try_filled};
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// A slice of a fixed length that begins at a cache line, except in a clone.
#[derive(Clone, Debug)]
pub struct Aligned<T> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Clone> Aligned<T> {
    /// `len` times a value.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn filled(len: usize, value: T) -> Result<Self> {
        if len == 0 {
            return Ok(Aligned::default());
        }
        let spare = CACHE_LINE / size_of::<T>().clamp(1, CACHE_LINE);
        let memory = try_filled(len.saturating_add(spare), value)?;
        let start = memory.as_ptr().align_offset(CACHE_LINE).min(spare);
        Ok(Aligned { memory, start, len })
    }
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Aligned { memory: Vec::new(), start: 0, len: 0 }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.start..][..self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..][..self.len]
    }
}

impl<'a, T> IntoIterator for &'a Aligned<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_at_a_cache_line_and_has_its_length() {
        for len in [0usize, 1, 15, 16, 17, 1000] {
            let (narrow, mut wide) = (Aligned::filled(len, 1.5f32).unwrap(), Aligned::filled(len, 2.5f64).unwrap());
            wide.iter_mut().for_each(|x| *x += 1.0);
            assert_eq!((narrow.len(), wide.len()), (len, len));
            assert!(narrow.iter().all(|&x| x == 1.5) && wide.iter().all(|&x| x == 3.5));
            assert!(len == 0 || narrow.as_ptr().addr().is_multiple_of(64) && wide.as_ptr().addr().is_multiple_of(64));
            assert_eq!(narrow.clone()[..], narrow[..]);
        }
    }
}
