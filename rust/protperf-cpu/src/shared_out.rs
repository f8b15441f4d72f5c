//! An output that several tasks fill at once.

/// A contiguous output, rows after rows, that tasks fill in disjoint ranges: the invariant of
/// [`OutRows::rows`](crate::out_rows::OutRows::rows) keeps them apart.
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
