//! Linear attention of the heads of a block: the stages of a call, over heads whose rows are on the device already.
//!
//! Heads are worked on in groups whose buffers the adapter can bind.

use super::arrays::{Activations, Forward, Sequences};
use super::dense::gather;
use super::extents::Extents;
use super::heads::{Heads, merged, split};
use crate::error::GpuError;
use crate::kernels::Kernel;
use crate::maps::Map;
use crate::memory::OnDevice;
use crate::stages::{Pass, Reader, SideRows, Stages, Values};
use protperf_core::state::KV_STATE;
use protperf_core::{MapArgs, Result as CoreResult, Side};
use std::ops::Range;

/// The largest buffer that a group of several heads makes, in bytes.
const GROUP_BYTES: u64 = 64 << 20;

/// A feature map on the device, with the parameters of every head.
pub struct Favor {
    pass: Pass,
    /// Of queries and of keys.
    parameters: [OnDevice; 2],
    norm_factor: f32,
}

impl Favor {
    /// The bytes of a state of one sequence and head.
    fn state_bytes(&self) -> u64 {
        (self.pass.features * (KV_STATE - 1 + self.pass.width) * 4) as u64
    }
}

/// The map of the heads of a block, of F features.
///
/// # Errors
/// [`protperf_core::Error::OutOfMemory`], [`protperf_core::Error::Device`].
pub fn favor_map(
    forward: &mut Forward<'_>,
    args: &MapArgs<'_>,
    head_dim: usize,
    feature_dim: usize,
) -> CoreResult<Favor> {
    let projections = feature_dim / args.family().features_per_projection();
    let map = Map::new(args, head_dim, projections)?;
    let pass = Pass {
        head_dim,
        projections,
        features: feature_dim,
        width: head_dim + 1,
        family: map.family_number,
        epsilon: map.epsilon,
        input_limit: map.input_limit(),
        causal: false,
    };
    let norm_factor = map.norm_factor(Side::Key);
    let [queries, keys] = map.packed;
    let parameters = [forward.numbers(&queries)?, forward.numbers(&keys)?];
    Ok(Favor { pass, parameters, norm_factor })
}

/// What the heads of every token read, side by side, `[rows,HD]`. With a state, sequences go on from it, one `[F,2+D]`
/// for each head and sequence, and leave theirs in its place; `None` has seen no key.
///
/// # Errors
/// [`GpuError::TooLarge`], [`GpuError::TooMany`].
pub fn favor(
    forward: &mut Forward<'_>,
    qkv: &Activations,
    heads: &Heads<'_>,
    map: &Favor,
    state: Option<&mut Option<OnDevice>>,
) -> Result<Activations, GpuError> {
    let together = merged(forward, heads)?;
    let after = match &state {
        Some(_) => Some(forward.recorder.lasting("states", bytes_of(heads, map))?),
        None => None,
    };
    let step = heads_at_once(forward, heads.sequences, map);
    for first in (0..heads.count).step_by(step) {
        let group = first..heads.count.min(first + step);
        let before = state.as_ref().and_then(|state| state.as_ref());
        let out = read_group(forward, qkv, heads, map, group.clone(), [before, after.as_ref()])?;
        let extents = Extents {
            rows: heads.sequences.rows() as u32,
            outputs: together.fours(),
            heads: group.len() as u32,
            first_head: first as u32,
            head_dim: heads.dim as u32,
            ..Extents::default()
        };
        let counts = [extents.rows, extents.heads, extents.head_dim];
        forward.recorder.dispatch(Kernel::Merge, extents.over(&counts), &[&out, &together.memory]);
    }
    if let Some(state) = state {
        *state = after;
    }
    Ok(together)
}

/// What a group of heads reads, `[heads,rows,1+D]`; states of all heads are read from the first, and written to the
/// second.
fn read_group(
    forward: &mut Forward<'_>,
    qkv: &Activations,
    heads: &Heads<'_>,
    map: &Favor,
    group: Range<usize>,
    [before, after]: [Option<&OnDevice>; 2],
) -> Result<OnDevice, GpuError> {
    let cut = &heads.sequences.cut;
    let of_head = heads.sequences.ranges.len() as u64 * map.state_bytes();
    let (at, bytes) = (group.start as u64 * of_head, group.len() as u64 * of_head);
    let [queries, keys, values] = split(forward, qkv, heads, group.clone())?;
    let sets: Vec<u32> = group.clone().map(|head| head as u32).collect();
    let sets = forward.recorder.upload("sets of parameters", &sets)?;
    let own = match before {
        Some(before) => {
            let own = forward.recorder.scratch("states", bytes)?;
            forward.recorder.copy((before, at), (&own, 0), bytes);
            Some(own)
        }
        None => None,
    };
    let [of_queries, of_keys] = &map.parameters;
    let side =
        |side, inputs, parameters, norm_factor| SideRows { side, inputs, parameters, cut, norm_factor, norm_sign: 0.0 };
    let queries = side(Side::Query, &queries, of_queries, 0.0);
    let keys = side(Side::Key, &keys, of_keys, map.norm_factor);
    let pass = Pass { causal: heads.sequences.causal, ..map.pass };
    let mut stages = Stages::new(&mut forward.recorder, &pass, group.len(), &sets)?;
    let of_queries = stages.project(&queries, None)?;
    let of_keys = stages.project(&keys, None)?;
    let values = Values { rows: &values, powers: None };
    let states = stages.states(&keys, &of_keys, values, own.as_ref(), false)?;
    let scores = stages.scores(&queries, &of_queries, &of_keys)?;
    let reader = Reader { rows: &queries, features: &of_queries, states: &states };
    let [out, _] = stages.read(reader, &scores, values)?;
    if let Some(after) = after {
        forward.recorder.copy((&states.last, 0), (after, at), bytes);
    }
    Ok(out)
}

/// States of some sequences, in this order, of `num_sequences` there are.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn select_states(
    forward: &mut Forward<'_>,
    state: &OnDevice,
    num_sequences: usize,
    indices: &[u32],
    heads: usize,
    map: &Favor,
) -> Result<OnDevice, GpuError> {
    let bytes = map.state_bytes();
    let selected = forward.recorder.lasting("states", heads as u64 * indices.len() as u64 * bytes)?;
    gather(forward, [(state, num_sequences), (state, 0)], indices, [heads, bytes as usize / 4], &selected)?;
    Ok(selected)
}

fn bytes_of(heads: &Heads<'_>, map: &Favor) -> u64 {
    (heads.count * heads.sequences.ranges.len()) as u64 * map.state_bytes()
}

fn heads_at_once(forward: &Forward<'_>, sequences: &Sequences, map: &Favor) -> usize {
    let tiling = sequences.cut.tiling();
    let of_features = sequences.rows().max(1) * map.pass.features * 8;
    let of_states = tiling.tiles.len().max(sequences.ranges.len()) as u64 * map.state_bytes();
    let of_scores = if sequences.causal { tiling.num_pairs() * 8 } else { 0 };
    let largest = (of_features.max(of_scores) as u64).max(of_states);
    usize::try_from(GROUP_BYTES.min(forward.gpu.max_binding()) / largest).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Gpu, no_gpu_to_test};
    use protperf_core::{FeatureMap, Omega};
    use std::sync::atomic::AtomicBool;

    /// What four heads read of sequences of some lengths, and how many of them are worked on at once.
    fn read(gpu: &Gpu, lengths: &[usize], causal: bool) -> Result<(Vec<f32>, usize), GpuError> {
        let (count, dim, features) = (4, 3, 8);
        let ends: Vec<usize> =
            lengths.iter().scan(0, |end, len| Some(std::mem::replace(end, *end + len) + len)).collect();
        let ranges: Vec<Range<usize>> = ends.iter().zip(lengths).map(|(&end, len)| end - len..end).collect();
        let rows = ends[ends.len() - 1];
        let wave = |n: usize| (0..n).map(|at| (at as f32 * 0.7).sin()).collect::<Vec<f32>>();
        let mut forward = Forward::new(gpu);
        let qkv = forward.rows(&wave(rows * 3 * count * dim), 3 * count * dim)?;
        let directions: Vec<f64> = wave(count * features * dim).into_iter().map(f64::from).collect();
        let omega = Omega { data: &directions, num_heads: Some(count), num_features: features, head_dim: dim };
        let args = MapArgs::Named { map: FeatureMap::Positive, omega: Some(omega), kernel_epsilon: 0.0 };
        let map = favor_map(&mut forward, &args, dim, features).unwrap();
        let positions = ranges.iter().flat_map(|range| 0..range.len() as u64).collect::<Vec<_>>();
        let sequences = forward.sequences(ranges, positions.into_iter(), dim, causal)?;
        let lengths = forward.numbers(&[1.0; 4])?;
        let heads = Heads { count, dim, lengths: &lengths, sequences: &sequences };
        let at_once = heads_at_once(&forward, &sequences, &map);
        let found = favor(&mut forward, &qkv, &heads, &map, None)?;
        Ok((forward.read_back(&found, &AtomicBool::new(false))?, at_once))
    }

    #[test]
    fn heads_are_cut_into_groups_where_an_adapter_binds_little_and_read_the_same() {
        if no_gpu_to_test() {
            return;
        }
        let (usual, small) = (Gpu::open().unwrap(), Gpu::open_with(1 << 17, u32::MAX).unwrap());
        // Of many short sequences and a longer one the scores take the most memory.
        for (lengths, causal) in [(vec![64, 3, 3], true), (vec![900], false), (vec![700, 100], false)] {
            let (expected, all) = read(&usual, &lengths, causal).unwrap();
            let (found, some) = read(&small, &lengths, causal).unwrap();
            assert!(all >= 4 && some < 4, "{all} {some}");
            assert!(found == expected && found.iter().any(|&x| x != 0.0));
        }
        let error = read(&small, &[4000], false).unwrap_err().to_string();
        assert!(error.contains("this GPU binds at most 131072"), "{error}");
    }
}
