//! Where a long sequence is cut into blocks, so that several threads can share one head of it.
//!
//! A block's writers are summed into a state of their own, states are merged in the order of the blocks, and the
//! readers of a block start from the merged state. The cuts change the order of sums, so they depend on the shape
//! alone: the length of the segment, the number of heads, causal or not. Never on threads, caches or the ISA.

use crate::workspace::CHUNK;
use std::ops::Range;

/// Positions of a block: some milliseconds of work against some microseconds for its state.
pub const BLOCK: usize = 1024;
const _: () = assert!(BLOCK.is_multiple_of(CHUNK));
/// Blocks of all heads together that a noncausal call is cut into at most: enough for that many threads, and no more
/// states than that have to be kept.
pub const MOST_BLOCKS: usize = 32;
/// A causal call with fewer heads than this is cut, from a length of two blocks on. The states cost it 1.4 times the
/// work, which pays only where threads would have nothing to do.
const FEW_LINES: usize = 4;

/// One segment's positions, cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    len: usize,
    step: usize,
}

impl Blocks {
    /// The blocks of `len` positions of a call with `lines` heads, all batch entries together.
    pub fn new(len: usize, lines: usize, causal: bool) -> Self {
        let most = match causal {
            true if lines < FEW_LINES && len >= 2 * BLOCK => usize::MAX,
            true => 1,
            false => MOST_BLOCKS / lines.max(1),
        };
        let count = len.div_ceil(BLOCK).min(most).max(1);
        Blocks { len, step: len.div_ceil(count).next_multiple_of(if causal { BLOCK } else { CHUNK }).max(1) }
    }

    /// How many there are: at least one, which may be empty.
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.step).max(1)
    }

    /// Positions of a block but the last.
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
    fn blocks_cover_every_position_once_and_begin_on_chunks() {
        for causal in [false, true] {
            for lines in [1, 2, 3, 4, 8, 31, 32, 33, 1000] {
                for len in [0, 1, 63, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 10_000, 65_537] {
                    let blocks = Blocks::new(len, lines, causal);
                    let mut end = 0;
                    for range in blocks.ranges() {
                        assert_eq!(range.start, end, "{blocks:?}");
                        assert!(range.start.is_multiple_of(CHUNK) && (range.end > range.start || len == 0));
                        end = range.end;
                    }
                    assert_eq!(end, len, "{blocks:?}");
                    assert!(causal || lines * blocks.count() <= MOST_BLOCKS.max(lines));
                }
            }
        }
    }

    #[test]
    fn causal_blocks_of_a_sequence_are_those_of_its_beginning() {
        let long = Blocks::new(10_000, 1, true);
        for len in [2048, 5000, 9999] {
            for (a, b) in Blocks::new(len, 1, true).ranges().zip(long.ranges()) {
                assert_eq!(a.start, b.start);
            }
        }
    }
}
