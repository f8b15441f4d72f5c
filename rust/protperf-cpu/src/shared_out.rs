//! An output that several tasks fill at once.

/// A contiguous output, rows after rows, that tasks fill in disjoint ranges.
///
/// The invariant that makes this sound: **the tasks of a pass partition the rows of each of its outputs.** A plan names
/// every (batch entry, head, segment) once, the segments of a batch entry do not overlap, and the blocks of a segment
/// cover each of its positions once. A task of the forward pass writes the query rows of its own head, segment and block;
/// a task of the backward pass writes either the query rows of one, or the key rows of one key head, for all query heads
/// that share it. So two tasks never ask for ranges that overlap, and a task never holds two ranges of the same rows.
pub struct SharedOut<T> {
    pointer: *mut T,
    len: usize,
}

// SAFETY: tasks on several threads write disjoint ranges (the invariant above), and T is plain data that may be sent.
unsafe impl<T: Send> Sync for SharedOut<T> {}

impl<T> SharedOut<T> {
    /// An output over memory that nothing else may touch while it lives.
    pub fn new(out: &mut [T]) -> Self {
        SharedOut { pointer: out.as_mut_ptr(), len: out.len() }
    }

    /// A range of the output.
    ///
    /// # Safety
    /// No two ranges that are alive at the same time overlap: each task asks only for the rows of its own head, segment
    /// and block.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the range lies inside the slice that this was made of; the caller keeps ranges disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), len) }
    }
}
