//! Outputs whose rows lie anywhere in a buffer, and which several tasks fill at once.

use protperf_core::{Result, check_len, checked_product};
use std::marker::PhantomData;
use std::ops::Range;

/// Rows `[B,H,L,width]` of an output, each with its elements adjacent, that no other output shares.
///
/// The constructors are the layouts there are: `[B,H,L,width]` as [`Outputs`](protperf_core::backend::Outputs) has it,
/// and the token-major ones, in which the rows of a token follow one another: `[B,L,H,width]`, or a part of wider rows
/// such as the queries of `[B,L,3,H,D]`.
pub struct OutRows<'a, T> {
    pointer: *mut T,
    shape: [usize; 4],
    /// Elements from one batch entry, one head and one position to the next.
    steps: [usize; 3],
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a slice that it borrows exclusively, or for a part of one that it shares with none.
unsafe impl<T: Send> Send for OutRows<'_, T> {}
// SAFETY: a shared reference gives no safe access to the rows; what `rows` asks of its callers keeps tasks apart.
unsafe impl<T: Send> Sync for OutRows<'_, T> {}

impl<'a, T> OutRows<'a, T> {
    /// Rows of a contiguous `[B,H,L,width]`.
    ///
    /// # Errors
    /// [`ShapeMismatch`](protperf_core::Error::ShapeMismatch) where `data` has another length than the shape needs.
    pub fn head_major(argument: &'static str, data: &'a mut [T], shape: [usize; 4]) -> Result<Self> {
        check_len(argument, data.len(), checked_product(argument, &shape)?)?;
        let [_, heads, len, width] = shape;
        Ok(OutRows {
            pointer: data.as_mut_ptr(),
            shape,
            steps: [heads * len * width, len * width, width],
            buffer: PhantomData,
        })
    }

    /// Rows `[B,H,L,width]` that lie as `[B,L,H,width]`.
    ///
    /// # Errors
    /// As [`OutRows::head_major`].
    pub fn token_major(argument: &'static str, data: &'a mut [T], shape: [usize; 4]) -> Result<Self> {
        let [batch, heads, len, width] = shape;
        let [rows] = Self::parts_of_tokens(argument, data, [batch, len], [[heads, width]])?;
        Ok(rows)
    }

    /// The parts of rows `[B,L,width of all parts]`, each part being some heads of some width.
    ///
    /// The gradients of a fused projection to queries, keys and values, `[B,L,3,H,D]` or `[B,L,(H+2Hk)D]`, are
    /// `parts_of_tokens("dqkv", data, [b, l], [[h, d], [hk, d], [hk, d]])`.
    ///
    /// # Errors
    /// As [`OutRows::head_major`].
    pub fn parts_of_tokens<const N: usize>(
        argument: &'static str,
        data: &'a mut [T],
        [batch, len]: [usize; 2],
        parts: [[usize; 2]; N],
    ) -> Result<[Self; N]> {
        let token = parts.iter().map(|[heads, width]| heads.saturating_mul(*width)).fold(0, usize::saturating_add);
        check_len(argument, data.len(), checked_product(argument, &[batch, len, token])?)?;
        let (pointer, mut first) = (data.as_mut_ptr(), 0);
        Ok(parts.map(|[heads, width]| {
            let start = if data.is_empty() { 0 } else { first };
            first += heads * width;
            OutRows {
                // SAFETY: the part begins inside the first token, which lies in `data` unless that is empty.
                pointer: unsafe { pointer.add(start) },
                shape: [batch, heads, len, width],
                steps: [len * token, width, token],
                buffer: PhantomData,
            }
        }))
    }

    /// Refuses rows of another shape than a call needs.
    ///
    /// # Errors
    /// [`ShapeMismatch`](protperf_core::Error::ShapeMismatch).
    pub fn check(&self, argument: &'static str, needed: [usize; 4]) -> Result<()> {
        if self.shape == needed {
            return Ok(());
        }
        let detail = format!("has rows {:?} but the call needs {needed:?}", self.shape);
        Err(protperf_core::Error::ShapeMismatch { argument, detail })
    }

    /// Some rows of a head.
    ///
    /// The invariant that makes this sound: **the tasks of a pass partition the rows of each of its outputs.** A plan
    /// names every (batch entry, head, segment) once, the segments of a batch entry do not overlap, and the blocks of a
    /// segment cover each of its positions once. A task of the forward pass writes the query rows of its own head, segment
    /// and block; a task of the backward pass writes either the query rows of one, or the key rows of one key head, for
    /// all query heads that share it. So two tasks never ask for the same row, and a task never holds a row twice.
    ///
    /// # Safety
    /// No row is asked for again while what this returns is alive.
    pub unsafe fn rows(&self, batch: usize, head: usize, range: Range<usize>) -> RowsMut<'_, T> {
        let [batches, heads, len, width] = self.shape;
        assert!(batch < batches && head < heads && range.start <= range.end && range.end <= len);
        let first = batch * self.steps[0] + head * self.steps[1] + range.start * self.steps[2];
        // An empty range may start after the last row, and a row of no elements anywhere: neither is touched.
        let pointer = self.pointer.wrapping_add(first);
        RowsMut { pointer, len: range.len(), width, step: self.steps[2], rows: PhantomData }
    }
}

/// Rows of one head, which one task fills.
pub struct RowsMut<'a, T> {
    pointer: *mut T,
    len: usize,
    width: usize,
    step: usize,
    rows: PhantomData<&'a mut [T]>,
}

impl<T> RowsMut<'_, T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The i-th row.
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.len);
        // SAFETY: whoever made this vouches that the rows lie in their buffer and are asked for by no one else; `self`
        // is borrowed for as long as the row is.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.wrapping_add(i * self.step), self.width) }
    }

    /// Makes all elements of some rows the same.
    pub fn fill(&mut self, range: Range<usize>, value: T)
    where
        T: Copy,
    {
        range.for_each(|i| self.row(i).fill(value));
    }
}
