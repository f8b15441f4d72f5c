//! How the rows of a batch head are cut: into tiles that stay inside of their segment. The shape alone decides it.

use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// The most rows of a causal tile, queries and keys alike. Scores of a tile take its square.
const CAUSAL_ROWS: usize = 64;
/// The most rows of a tile where every query sees every key.
const NONCAUSAL_ROWS: usize = 256;

/// Some rows of a batch head: the twin of `Tile` in `shaders/prelude.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Tile {
    pub segment: u32,
    pub first: u32,
    pub count: u32,
    /// The state of the batch head that its rows read: before the tile where the call is causal, else of the segment.
    pub state: u32,
}

/// The tiles of one side of every batch head.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiling {
    pub tiles: Vec<Tile>,
    /// First tile and number of tiles of each segment.
    pub segments: Vec<[u32; 2]>,
    /// The most rows that a tile has.
    pub rows: usize,
}

impl Tiling {
    /// Cuts the rows of each segment.
    pub fn new(segments: &[Range<usize>], causal: bool) -> Self {
        let most = if causal { CAUSAL_ROWS } else { NONCAUSAL_ROWS };
        // Short segments take less room, and are cut as they would be.
        let longest = segments.iter().map(Range::len).max().unwrap_or(0);
        let rows = most.min(longest.next_multiple_of(4).max(4));
        let mut tiling = Tiling { tiles: Vec::new(), segments: Vec::new(), rows };
        for (segment, range) in (0..).zip(segments) {
            let before = tiling.tiles.len() as u32;
            for first in range.clone().step_by(rows) {
                let (at, count) = (tiling.tiles.len() as u32, rows.min(range.end - first) as u32);
                let state = if causal { at } else { segment };
                tiling.tiles.push(Tile { segment, first: first as u32, count, state });
            }
            tiling.segments.push([before, tiling.tiles.len() as u32 - before]);
        }
        tiling
    }

    /// Pairs of rows of the same tile that there is memory for; tiles are all as large as the largest.
    pub fn num_pairs(&self) -> usize {
        self.tiles.len() * self.rows * self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_segment_once_and_never_two() {
        for causal in [false, true] {
            for segments in [[0..0, 0..65, 65..65, 65..700], [0..3, 3..3, 3..10, 10..11]] {
                let tiling = Tiling::new(&segments, causal);
                for (range, [first, count]) in segments.iter().zip(&tiling.segments) {
                    let mut at = range.start as u32;
                    for tile in &tiling.tiles[*first as usize..][..*count as usize] {
                        assert_eq!(tile.first, at);
                        assert!(tile.count > 0 && tile.count as usize <= tiling.rows);
                        at += tile.count;
                    }
                    assert_eq!(at, range.end as u32);
                }
            }
        }
    }
}
