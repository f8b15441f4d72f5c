//! What a layer carries from one piece of its sequences to the next, and exact attention over what it carries.

use crate::weights::{Attention, BlockShape};
use protperf_core::{Error, Execution, Result, try_copied, try_filled, try_reserved};
use protperf_cpu::{CpuElement, Workers};
use std::ops::Range;

/// What a layer carries from one piece of its sequences to the next.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerState<T> {
    /// States of every sequence and head `[num_sequences,H,F,2+D]`; empty before anything was read.
    Favor(Vec<T>),
    /// Keys and values of every sequence.
    Exact(Vec<KeysAndValues<T>>),
}

/// All that exact attention has to look at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeysAndValues<T> {
    /// `[positions, HD]`.
    pub keys: Vec<T>,
    /// `[positions, HD]`.
    pub values: Vec<T>,
}

impl<T: CpuElement> LayerState<T> {
    /// The state of sequences of which nothing has been read.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn empty(attention: Attention, num_sequences: usize) -> Result<Self> {
        match attention {
            Attention::Favor { .. } => Ok(LayerState::Favor(Vec::new())),
            Attention::Exact => {
                let mut all = try_reserved(num_sequences)?;
                all.resize_with(num_sequences, Default::default);
                Ok(LayerState::Exact(all))
            }
        }
    }

    /// Copies of the states of some of `num_sequences` sequences.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn select(&self, num_sequences: usize, indices: &[usize]) -> Result<Self> {
        match self {
            LayerState::Favor(all) => {
                let size = all.len() / num_sequences.max(1);
                let mut selected = try_reserved(size * indices.len())?;
                indices.iter().for_each(|&index| selected.extend_from_slice(&all[index * size..][..size]));
                Ok(LayerState::Favor(selected))
            }
            LayerState::Exact(all) => {
                let mut selected = try_reserved(indices.len())?;
                for &index in indices {
                    selected.push(all[index].try_clone()?);
                }
                Ok(LayerState::Exact(selected))
            }
        }
    }
}

impl<T: CpuElement> KeysAndValues<T> {
    fn try_clone(&self) -> Result<Self> {
        Ok(KeysAndValues { keys: try_copied(&self.keys)?, values: try_copied(&self.values)? })
    }

    /// Appends the keys and values of some rows `[queries, keys, values]` of `row` elements each.
    fn append(&mut self, rows: &[T], row: usize, inner: usize) -> Result<()> {
        for (side, to) in [(1, &mut self.keys), (2, &mut self.values)] {
            let added = rows.len() / row * inner;
            // Not exact: sequences that grow by a token would copy all that is there each time.
            to.try_reserve(added).map_err(|_| Error::OutOfMemory { bytes: added * size_of::<T>() })?;
            rows.chunks_exact(row).for_each(|row| to.extend_from_slice(&row[side * inner..][..inner]));
        }
        Ok(())
    }
}

/// New tokens of some sequences that exact attention reads, left to right.
#[derive(Clone, Copy)]
pub(super) struct NewRows<'a, T> {
    /// `[N, 3HD padded]`: queries, keys, values.
    pub qkv: &'a [T],
    /// The padded width.
    pub row: usize,
    pub shape: &'a BlockShape,
    pub borders: &'a [i64],
}

/// Softmax attention of new tokens over all before them and themselves, which join the state. Fills `attended`
/// `[N,HD]`.
pub(super) fn continue_exact<T: CpuElement>(
    new: &NewRows<'_, T>,
    state: &mut [KeysAndValues<T>],
    attended: &mut [T],
    run: &Execution<'_>,
) -> Result<()> {
    let (d, heads) = (new.shape.head_dim, new.shape.num_heads);
    let ranges: Vec<_> = new.borders.windows(2).map(|ends| ends[0] as usize..ends[1] as usize).collect();
    for (state, range) in state.iter_mut().zip(&ranges) {
        state.append(&new.qkv[range.start * new.row..range.end * new.row], new.row, new.shape.inner())?;
    }
    let workers = Workers::new(run);
    let state = &*state;
    let task = |task: usize| {
        let (sequence, head) = (task / heads, task % heads);
        attend_head(new, &state[sequence], (&ranges[sequence], head), &workers)
    };
    workers.fold(ranges.len() * heads, task, |task, rows| {
        let first = ranges[task / heads].start;
        for (at, row) in rows.chunks_exact(d).enumerate() {
            attended[((first + at) * heads + task % heads) * d..][..d].copy_from_slice(row);
        }
        Ok(())
    })
}

/// The outputs `[L,D]` of one head of one sequence, computed in f64.
fn attend_head<T: CpuElement>(
    new: &NewRows<'_, T>,
    state: &KeysAndValues<T>,
    (range, head): (&Range<usize>, usize),
    workers: &Workers<'_>,
) -> Result<Vec<T>> {
    let (d, inner) = (new.shape.head_dim, new.shape.inner());
    let scale = 1.0 / (d as f64).sqrt();
    let before = state.keys.len() / inner - range.len();
    let mut out = try_filled(range.len() * d, T::ZERO)?;
    let (mut weights, mut sums) = (try_reserved(before + range.len())?, try_filled(d, 0.0)?);
    for (at, out) in out.chunks_exact_mut(d).enumerate() {
        workers.check()?;
        let query = &new.qkv[(range.start + at) * new.row + head * d..][..d];
        let seen = (before + at + 1) * inner;
        let dot = |key: &[T]| query.iter().zip(key).map(|(x, y)| x.to_f64() * y.to_f64()).sum::<f64>();
        weights.clear();
        weights.extend(state.keys[..seen].chunks_exact(inner).map(|keys| dot(&keys[head * d..][..d]) * scale));
        let top = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut total = 0.0;
        sums.fill(0.0);
        for (weight, values) in weights.iter().zip(state.values[..seen].chunks_exact(inner)) {
            let weight = (weight - top).exp();
            total += weight;
            sums.iter_mut().zip(&values[head * d..]).for_each(|(sum, x)| *sum += weight * x.to_f64());
        }
        out.iter_mut().zip(&sums).for_each(|(to, sum)| *to = T::from_f64(sum / total));
    }
    Ok(out)
}
