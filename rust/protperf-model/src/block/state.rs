//! What a layer carries from one piece of its sequences to the next, and exact attention over what it carries.

use crate::weights::{Attention, BlockShape};
use protperf_core::attention::exact::SoftmaxArgs;
use protperf_core::{Error, Execution, Result, TensorRef, try_copied, try_reserved};
use protperf_cpu::{Cpu, CpuElement, DecodingState, OutRows, PreparedMap};

/// What a layer carries from one piece of its sequences to the next.
#[derive(Clone, Debug)]
pub enum LayerState<T> {
    /// States of every sequence and head `[num_sequences,H,F,2+D]`; empty before anything was read.
    Favor(Vec<T>),
    /// The same once sequences have gone on by single tokens.
    Decoding(DecodingState<T>),
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
            LayerState::Decoding(all) => Ok(LayerState::Decoding(all.select(num_sequences, indices)?)),
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

impl<T: CpuElement> LayerState<T> {
    /// Whether states of linear attention are there to be read.
    pub(super) fn has_read(&self) -> bool {
        matches!(self, LayerState::Favor(all) if !all.is_empty()) || matches!(self, LayerState::Decoding(_))
    }

    /// The states of linear attention in the form for pieces of any length.
    pub(super) fn for_pieces(&mut self) -> Result<&mut Vec<T>> {
        if let LayerState::Decoding(all) = self {
            *self = LayerState::Favor(all.export()?);
        }
        match self {
            LayerState::Favor(all) => Ok(all),
            _ => Err(of_another_kind()),
        }
    }

    /// The states of linear attention in the form for single tokens.
    pub(super) fn for_tokens(&mut self, map: &PreparedMap<T>, head_dim: usize) -> Result<&mut DecodingState<T>> {
        if let LayerState::Favor(all) = self {
            *self = LayerState::Decoding(DecodingState::import(map, head_dim, all)?);
        }
        match self {
            LayerState::Decoding(all) => Ok(all),
            _ => Err(of_another_kind()),
        }
    }

    /// The keys and values of exact attention.
    pub(super) fn of_exact(&mut self) -> Result<&mut Vec<KeysAndValues<T>>> {
        match self {
            LayerState::Exact(all) => Ok(all),
            _ => Err(of_another_kind()),
        }
    }
}

fn of_another_kind() -> Error {
    Error::option("state", "is one of another kind of attention")
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
    pub shape: &'a BlockShape,
    pub borders: &'a [i64],
}

/// Softmax attention of new tokens over all before them and themselves, which join the state. Fills `attended`
/// `[N,HD]`.
pub(super) fn continue_exact<T: CpuElement>(
    cpu: Cpu,
    new: &NewRows<'_, T>,
    state: &mut [KeysAndValues<T>],
    attended: &mut [T],
    run: &Execution<'_>,
) -> Result<()> {
    let BlockShape { num_heads: h, head_dim: d, .. } = *new.shape;
    let (row, inner) = (new.shape.qkv_row(), new.shape.inner());
    for (state, ends) in state.iter_mut().zip(new.borders.windows(2)) {
        let (first, end) = (ends[0] as usize, ends[1] as usize);
        let rows = &new.qkv[first * row..end * row];
        state.append(rows, row, inner)?;
        let args = SoftmaxArgs {
            q: heads("q", rows, row, new.shape)?,
            k: heads("k", &state.keys, inner, new.shape)?,
            v: heads("v", &state.values, inner, new.shape)?,
            causal: true,
            cu_seqlens: None,
            key_padding_mask: None,
        };
        let out = &mut attended[first * inner..end * inner];
        cpu.exact_forward(&args, OutRows::token_major("attended", out, [1, h, end - first, d])?, None, run)?;
    }
    Ok(())
}

/// The heads of rows that are `row` elements apart, `[1,H,L,D]`.
fn heads<'a, T: Copy>(name: &'static str, rows: &'a [T], row: usize, shape: &BlockShape) -> Result<TensorRef<'a, T>> {
    let d = shape.head_dim;
    TensorRef::new(name, rows, 0, [1, shape.num_heads, rows.len() / row, d], [0, d as isize, row as isize, 1])
}
