//! Where a long sequence is cut into blocks, so that several threads can share one head of it.
//! `docs/algorithm.md`, section 5.
//!
//! A block's keys are summed into a state of their own, states are merged in the order of the blocks, and the
//! queries of a block start from the merged state. The cuts change the order of sums, so they depend on the shape
//! alone: the length of the segment, the number of heads, causal or not. Never on threads, caches or the ISA.

use crate::layout::{BLOCK, CHUNK};
use std::ops::Range;

/// A noncausal call is cut into at most this many blocks, those of all heads together: enough for as many threads, and
/// no more states than that have to be kept.
pub const MAX_BLOCKS: usize = 32;
/// A causal call with fewer heads than this is cut from a length of two blocks on. The states make it 1.4 times the
/// work, which pays only where threads would have nothing to do.
const FEW_HEADS: usize = 4;

/// One segment's positions, cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceBlocks {
    len: usize,
    step: usize,
}

impl SequenceBlocks {
    /// The blocks of `len` positions of a call with `heads` heads, all batch entries together.
    pub fn new(len: usize, heads: usize, causal: bool) -> Self {
        let max_count = match causal {
            true if heads < FEW_HEADS && len >= 2 * BLOCK => usize::MAX,
            true => 1,
            false => MAX_BLOCKS / heads.max(1),
        };
        let count = len.div_ceil(BLOCK).min(max_count).max(1);
        SequenceBlocks { len, step: len.div_ceil(count).next_multiple_of(if causal { BLOCK } else { CHUNK }).max(1) }
    }

    /// How many there are: at least one, which may be empty.
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.step).max(1)
    }

    /// Positions of every block except the last.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Positions of all blocks together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Positions of a block.
    pub fn range(&self, block: usize) -> Range<usize> {
        block * self.step..((block + 1) * self.step).min(self.len)
    }

    /// Positions of all blocks, in order.
    pub fn ranges(self) -> impl DoubleEndedIterator<Item = Range<usize>> {
        (0..self.count()).map(move |block| self.range(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_position_once_and_start_on_chunks() {
        for causal in [false, true] {
            for heads in [1, 2, 3, 4, 8, 31, 32, 33, 1000] {
                for len in [0, 1, 63, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 10_000, 65_537] {
                    let blocks = SequenceBlocks::new(len, heads, causal);
                    let mut end = 0;
                    for range in blocks.ranges() {
                        assert_eq!(range.start, end, "{blocks:?}");
                        assert!(range.start.is_multiple_of(CHUNK) && (range.end > range.start || len == 0));
                        end = range.end;
                    }
                    assert_eq!(end, len, "{blocks:?}");
                    assert!(causal || heads * blocks.count() <= MAX_BLOCKS.max(heads));
                }
            }
        }
    }

    #[test]
    fn causal_blocks_of_a_sequence_are_those_of_its_beginning() {
        let long = SequenceBlocks::new(10_000, 1, true);
        for len in [2048, 5000, 9999] {
            for (a, b) in SequenceBlocks::new(len, 1, true).ranges().zip(long.ranges()) {
                assert_eq!(a.start, b.start);
            }
        }
    }
}
