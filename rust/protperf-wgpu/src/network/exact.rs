//! Softmax attention over all keys: some queries at once, so that their scores fit.

use super::arrays::{Activations, Forward, fours};
use super::dense::gather;
use super::extents::Extents;
use super::heads::{Heads, merged, split};
use crate::error::GpuError;
use crate::kernels::Kernel;
use crate::memory::OnDevice;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// Bytes of the scores of the queries that are worked on at once.
const GROUP_BYTES: u64 = 64 << 20;
/// The most queries of a tile.
const TILE: u64 = 64;
/// The most keys of a sequence; one driver stops all loops of an invocation at 65,535.
const MAX_KEYS: usize = 65_000;

/// Keys and values of all tokens that some sequences have read.
pub struct Keys {
    /// `[H,rows,D]`.
    keys: OnDevice,
    /// `[H,rows,1+D]`.
    values: OnDevice,
    /// Rows of each sequence.
    ranges: Vec<Range<usize>>,
}

impl Keys {
    fn rows(&self) -> usize {
        self.ranges.last().map_or(0, |last| last.end)
    }
}

/// Some queries, and the keys of their sequence: the twin of `QueryTile` in `shaders/network/prelude.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct QueryTile {
    first: u32,
    count: u32,
    first_key: u32,
    keys: u32,
    before: u32,
    scores: u32,
}

/// What the heads of every token read, side by side, `[rows,HD]`. With a state, sequences see the keys in it first, and
/// leave theirs in its place; `None` has seen no key.
///
/// # Errors
/// [`GpuError::TooLarge`], [`GpuError::TooMany`].
pub fn exact(
    forward: &mut Forward<'_>,
    qkv: &Activations,
    heads: &Heads<'_>,
    state: Option<&mut Option<Keys>>,
) -> Result<Activations, GpuError> {
    let together = merged(forward, heads)?;
    let [queries, keys, values] = split(forward, qkv, heads, 0..heads.count)?;
    let new = Keys { keys, values, ranges: heads.sequences.ranges.clone() };
    match state {
        None => attend(forward, heads, &queries, &new, &together)?,
        Some(state) => {
            let all = joined(forward, state.as_ref(), &new, [heads.count, heads.dim])?;
            attend(forward, heads, &queries, &all, &together)?;
            *state = Some(all);
        }
    }
    Ok(together)
}

/// Keys of some sequences, in this order.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn select_keys(
    forward: &mut Forward<'_>,
    from: &Keys,
    indices: &[u32],
    [heads, dim]: [usize; 2],
) -> Result<Keys, GpuError> {
    let wanted = indices.iter().map(|&index| (from.ranges[index as usize].clone(), 0..0));
    gathered(forward, [from, from], wanted, [heads, dim])
}

/// The keys of each sequence of a state and after them its new ones.
fn joined(forward: &mut Forward<'_>, before: Option<&Keys>, new: &Keys, sizes: [usize; 2]) -> Result<Keys, GpuError> {
    let none = vec![0..0; new.ranges.len()];
    let old = before.map_or(&none, |before| &before.ranges).clone();
    let both = old.into_iter().zip(new.ranges.clone());
    gathered(forward, [before.unwrap_or(new), new], both, sizes)
}

/// For each sequence some rows of a first set of keys, and then some of a second.
fn gathered(
    forward: &mut Forward<'_>,
    [first, second]: [&Keys; 2],
    parts: impl Iterator<Item = (Range<usize>, Range<usize>)>,
    [heads, dim]: [usize; 2],
) -> Result<Keys, GpuError> {
    let (mut table, mut ranges) = (Vec::new(), Vec::new());
    for (of_first, of_second) in parts {
        let start = table.len();
        table.extend(of_first.map(|row| row as u32));
        table.extend(of_second.map(|row| (first.rows() + row) as u32));
        ranges.push(start..table.len());
    }
    let bytes = |width: usize| (heads * table.len()) as u64 * width as u64 * 4;
    let keys = forward.recorder.lasting("keys", bytes(dim))?;
    let values = forward.recorder.lasting("values", bytes(dim + 1))?;
    let sources = [(&first.keys, first.rows()), (&second.keys, second.rows())];
    gather(forward, sources, &table, [heads, dim], &keys)?;
    let sources = [(&first.values, first.rows()), (&second.values, second.rows())];
    gather(forward, sources, &table, [heads, dim + 1], &values)?;
    Ok(Keys { keys, values, ranges })
}

fn attend(
    forward: &mut Forward<'_>,
    heads: &Heads<'_>,
    queries: &OnDevice,
    keys: &Keys,
    together: &Activations,
) -> Result<(), GpuError> {
    let longest = keys.ranges.iter().map(Range::len).max().unwrap_or(0);
    if longest > MAX_KEYS {
        return Err(GpuError::TooMany { what: "tokens of a sequence", found: longest, limit: MAX_KEYS });
    }
    let budget = GROUP_BYTES.min(forward.gpu.max_binding()) / (16 * heads.count as u64);
    for group in groups(&heads.sequences.ranges, &keys.ranges, budget) {
        let on_device = forward.recorder.upload("tiles", &group)?;
        let (mut scores, mut tile_rows, mut tile_keys) = (0, 0, 0);
        for tile in &group {
            let of_row = fours(tile.keys as usize);
            scores += tile.count * of_row;
            (tile_rows, tile_keys) = (tile_rows.max(tile.count), tile_keys.max(of_row));
        }
        let extents = Extents {
            rows: heads.sequences.rows() as u32,
            outputs: together.fours(),
            heads: heads.count as u32,
            head_dim: heads.dim as u32,
            keys: keys.rows() as u32,
            tiles: group.len() as u32,
            tile_rows,
            tile_keys,
            scores,
            mode: u32::from(heads.sequences.causal),
            factor: 1.0 / (heads.dim as f32).sqrt(),
            ..Extents::default()
        };
        let weights = forward.recorder.scratch("scores", u64::from(scores) * heads.count as u64 * 16)?;
        let (tiles, blocks) = (extents.tiles * extents.heads, tile_rows.div_ceil(4));
        let bindings = [queries, &keys.keys, &on_device, &weights];
        forward.recorder.dispatch(Kernel::ExactScores, extents.over(&[tile_keys, blocks, tiles]), &bindings);
        let bindings = [&on_device, &weights];
        forward.recorder.dispatch(Kernel::ExactWeights, extents.over(&[tile_rows, tiles]), &bindings);
        let bindings = [&weights, &keys.values, &on_device, &together.memory];
        let columns = extents.head_dim.div_ceil(4);
        forward.recorder.dispatch(Kernel::ExactRead, extents.over(&[columns, blocks, tiles]), &bindings);
    }
    Ok(())
}

/// Tiles of the queries of every sequence, in groups of at most so many fours of scores; the last queries are those of
/// the last keys.
fn groups(queries: &[Range<usize>], keys: &[Range<usize>], most: u64) -> Vec<Vec<QueryTile>> {
    let (mut groups, mut used) = (vec![Vec::new()], 0);
    for (rows, keys) in queries.iter().zip(keys) {
        let of_row = u64::from(fours(keys.len()));
        let step = (most / of_row.max(1)).clamp(1, TILE) as usize;
        for first in rows.clone().step_by(step) {
            let count = step.min(rows.end - first);
            let size = count as u64 * of_row;
            if used + size > most && used > 0 {
                groups.push(Vec::new());
                used = 0;
            }
            let tile = QueryTile {
                first: first as u32,
                count: count as u32,
                first_key: keys.start as u32,
                keys: keys.len() as u32,
                before: (keys.len() - (rows.end - first)) as u32,
                scores: used as u32,
            };
            used += size;
            if let Some(last) = groups.last_mut() {
                last.push(tile);
            }
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_every_query_once_and_no_more_scores_than_there_is_room_for() {
        let (queries, keys) = ([0..3, 3..3, 3..200, 200..201], [0..10, 10..10, 10..300, 300..301]);
        for most in [1, 80, 1000, 1 << 20] {
            let groups = groups(&queries, &keys, most);
            let rows: Vec<u32> = groups.iter().flatten().flat_map(|tile| tile.first..tile.first + tile.count).collect();
            assert_eq!(rows, (0..201).collect::<Vec<_>>());
            for group in &groups {
                let mut at = 0;
                for tile in group {
                    assert_eq!(tile.scores, at);
                    at += tile.count * tile.keys.div_ceil(4);
                }
                assert!(u64::from(at) <= most || group.len() == 1 && group[0].count == 1, "{at} {group:?}");
            }
            let before = |at: usize| {
                groups
                    .iter()
                    .flatten()
                    .find(|tile| tile.first as usize <= at && at < (tile.first + tile.count) as usize)
                    .map(|tile| tile.before as usize + at - tile.first as usize)
            };
            assert_eq!(
                [before(0), before(2), before(3), before(199), before(200)].map(Option::unwrap),
                [7, 9, 93, 289, 0]
            );
        }
    }
}
