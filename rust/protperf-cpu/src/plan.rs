//! How one call is split: into heads and segments, and long segments into blocks. Integers only, no data.
//! `docs/algorithm.md`, section 5.

use crate::blocks::SequenceBlocks;
use protperf_core::{FavorShape, Result, try_reserved};
use std::cmp::Reverse;
use std::ops::Range;

/// The unit of work: one query head of one batch entry in one segment.
#[derive(Clone, Copy, Debug)]
pub struct HeadSegment {
    pub batch: usize,
    pub head: usize,
    pub segment: usize,
}

/// One block of a head's segment, by the index of the head segment.
pub type BlockTask = (usize, Range<usize>);

/// Sizes of a call and the borders of its segments.
pub struct Plan {
    pub shape: FavorShape,
    pub causal: bool,
    /// Ranges of queries; one, of all of them, without packing.
    segments: Vec<Range<usize>>,
    is_packed: bool,
}

impl Plan {
    /// The plan of a checked call.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(shape: FavorShape, causal: bool, cu_seqlens: Option<&[i64]>) -> Result<Self> {
        let mut segments = try_reserved(cu_seqlens.map_or(1, <[i64]>::len))?;
        match cu_seqlens {
            Some(borders) => segments.extend(borders.windows(2).map(|w| w[0] as usize..w[1] as usize)),
            None => segments.push(0..shape.q_len),
        }
        Ok(Plan { shape, causal, segments, is_packed: cu_seqlens.is_some() })
    }

    /// The head segments that are cut into blocks, and those that are not, longest first.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn head_segments(&self) -> Result<(Vec<HeadSegment>, Vec<HeadSegment>)> {
        let heads = self.shape.batch * self.shape.heads;
        let mut order = try_reserved(self.segments.len())?;
        order.extend(0..self.segments.len());
        order.sort_unstable_by_key(|&segment| (Reverse(self.segments[segment].len()), segment));
        let (mut cut, mut whole) = (Vec::new(), try_reserved(order.len().saturating_mul(heads))?);
        for segment in order {
            for at in 0..heads {
                let head_segment = HeadSegment { batch: at / self.shape.heads, head: at % self.shape.heads, segment };
                let is_cut = self.query_blocks(&head_segment).count() > 1 || self.key_blocks(&head_segment).count() > 1;
                if is_cut { cut.push(head_segment) } else { whole.push(head_segment) }
            }
        }
        Ok((cut, whole))
    }

    fn blocks(&self, len: usize) -> SequenceBlocks {
        SequenceBlocks::new(len, self.shape.batch * self.shape.heads, self.causal)
    }

    /// Blocks of the queries.
    pub fn query_blocks(&self, head_segment: &HeadSegment) -> SequenceBlocks {
        self.blocks(self.query_range(head_segment).len())
    }

    /// Blocks of the keys.
    pub fn key_blocks(&self, head_segment: &HeadSegment) -> SequenceBlocks {
        self.blocks(self.key_range(head_segment).len())
    }

    /// Every query block of some head segments, in order.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn query_tasks(&self, head_segments: &[HeadSegment]) -> Result<Vec<BlockTask>> {
        block_tasks(head_segments, |head_segment| self.query_blocks(head_segment))
    }

    /// Every key block of some head segments, in order.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn key_tasks(&self, head_segments: &[HeadSegment]) -> Result<Vec<BlockTask>> {
        block_tasks(head_segments, |head_segment| self.key_blocks(head_segment))
    }

    /// Positions of the queries.
    pub fn query_range(&self, head_segment: &HeadSegment) -> Range<usize> {
        self.segments[head_segment.segment].clone()
    }

    /// Positions of the keys: the queries' own in a packed batch, else all.
    pub fn key_range(&self, head_segment: &HeadSegment) -> Range<usize> {
        if self.is_packed { self.query_range(head_segment) } else { 0..self.shape.kv_len }
    }

    /// The key head that a head reads.
    pub fn key_head(&self, head_segment: &HeadSegment) -> usize {
        head_segment.head / self.shape.group()
    }

    /// Index of the first query among all query rows `[B,H,L]`.
    pub fn first_query(&self, head_segment: &HeadSegment) -> usize {
        (head_segment.batch * self.shape.heads + head_segment.head) * self.shape.q_len
            + self.query_range(head_segment).start
    }

    /// Where the state of a head segment lies among all states, `[B,H,F,2+E]` or `[num_segments,H,F,2+E]`.
    pub fn state_range(&self, head_segment: &HeadSegment) -> Range<usize> {
        let [_, heads, features, width] = self.shape.state();
        let state = (head_segment.batch * self.shape.num_segments + head_segment.segment) * heads + head_segment.head;
        state * features * width..(state + 1) * features * width
    }
}

fn block_tasks(
    head_segments: &[HeadSegment],
    blocks: impl Fn(&HeadSegment) -> SequenceBlocks,
) -> Result<Vec<BlockTask>> {
    let mut tasks = try_reserved(head_segments.iter().map(|head_segment| blocks(head_segment).count()).sum())?;
    for (at, head_segment) in head_segments.iter().enumerate() {
        tasks.extend(blocks(head_segment).ranges().map(|range| (at, range)));
    }
    Ok(tasks)
}
