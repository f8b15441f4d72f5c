//! States of sequences that go on token by token, in the form that a step reads and writes: `docs/algorithm.md`, section 9.
//!
//! A head state, the state of one head of one sequence:
//!
//! ```text
//! n [lanes]    k_state [lanes]    kv_state [F][padded_value]            lanes = feature_panels * PANEL
//! ```
//!
//! The public form `[F,2+E]` has the same numbers, but its rows begin anywhere in a cache line, and the two numbers in
//! front of each have to be gathered before they can be computed with.

use crate::aligned::Aligned;
use crate::layout::{Layout, PANEL};
use crate::ops::CpuElement;
use crate::prepared::PreparedMap;
use protperf_core::state::KV_STATE;
use protperf_core::{Error, Result, check_len, try_filled};

/// The states of all heads of some sequences.
#[derive(Clone, Debug)]
pub struct DecodingState<T> {
    layout: Layout,
    num_states: usize,
    memory: Aligned<T>,
}

/// One head state, by what it holds.
pub struct HeadState<'a, T> {
    /// References `[lanes]`.
    pub reference: &'a mut [T],
    /// `k_state`, `[lanes]`.
    pub sums: &'a mut [T],
    /// `kv_state`, `[F][padded_value]`.
    pub values: &'a mut [T],
}

impl<'a, T> HeadState<'a, T> {
    /// The head state that lies in this memory.
    pub fn new(layout: &Layout, memory: &'a mut [T]) -> Self {
        let lanes = layout.feature_panels() * PANEL;
        let (reference, rest) = memory.split_at_mut(lanes);
        let (sums, values) = rest.split_at_mut(lanes);
        HeadState { reference, sums, values }
    }
}

impl<T: CpuElement> DecodingState<T> {
    /// From public states `[n,H,F,2+E]`.
    ///
    /// # Errors
    /// `ShapeMismatch` where they are not states of this map; `OutOfMemory`.
    pub fn import(map: &PreparedMap<T>, value_dim: usize, states: &[T]) -> Result<Self> {
        let (layout, size) = (map.layout(value_dim), map.feature_dim() * (KV_STATE + value_dim));
        let num_states = states.len() / size;
        check_len("states", states.len(), num_states * size)?;
        let mut imported = Self::empty(layout, num_states)?;
        let len = imported.state_len();
        for (state, memory) in states.chunks_exact(size).zip(imported.memory_mut().chunks_exact_mut(len)) {
            let head_state = HeadState::new(&layout, memory);
            head_state.reference.fill(T::EMPTY_REFERENCE);
            for (feature, row) in state.chunks_exact(KV_STATE + value_dim).enumerate() {
                let at = layout.place(feature);
                (head_state.reference[at], head_state.sums[at]) = (row[0], row[1]);
                head_state.values[feature * layout.padded_value()..][..value_dim].copy_from_slice(&row[KV_STATE..]);
            }
        }
        Ok(imported)
    }

    /// To public states `[n,H,F,2+E]`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn export(&mut self) -> Result<Vec<T>> {
        let (layout, len, width) = (self.layout, self.state_len(), KV_STATE + self.layout.value_dim);
        let size = layout.projections * layout.features_per_projection * width;
        let mut states = try_filled(self.num_states * size, T::ZERO)?;
        for (state, memory) in states.chunks_exact_mut(size).zip(self.memory_mut().chunks_exact_mut(len)) {
            let head_state = HeadState::new(&layout, memory);
            for (feature, row) in state.chunks_exact_mut(width).enumerate() {
                let at = layout.place(feature);
                (row[0], row[1]) = (head_state.reference[at], head_state.sums[at]);
                let values = &head_state.values[feature * layout.padded_value()..];
                row[KV_STATE..].copy_from_slice(&values[..layout.value_dim]);
            }
        }
        Ok(states)
    }

    /// Copies of the states of some of `num_sequences` sequences.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn select(&self, num_sequences: usize, indices: &[usize]) -> Result<Self> {
        let heads = self.num_states / num_sequences.max(1);
        let (mut selected, size) = (Self::empty(self.layout, heads * indices.len())?, heads * self.state_len());
        for (&index, to) in indices.iter().zip(selected.memory_mut().chunks_exact_mut(size.max(1))) {
            to.copy_from_slice(&self.memory[index * size..][..size]);
        }
        Ok(selected)
    }

    /// Refuses a state of another kind, or of fewer head states than are needed.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub(crate) fn check(&self, layout: &Layout, num_states: usize) -> Result<()> {
        if self.layout != *layout {
            return Err(Error::shape("state", "is one of another map"));
        }
        if self.num_states < num_states {
            let detail = format!("has {} heads of sequences, the tokens need {num_states}", self.num_states);
            return Err(Error::shape("state", detail));
        }
        Ok(())
    }

    /// Elements of a head state, whole cache lines.
    pub(crate) fn state_len(&self) -> usize {
        state_len(&self.layout)
    }

    /// All head states.
    pub(crate) fn memory_mut(&mut self) -> &mut [T] {
        &mut self.memory
    }

    /// Head states of zeros.
    fn empty(layout: Layout, num_states: usize) -> Result<Self> {
        let memory = Aligned::filled(num_states * state_len(&layout), T::ZERO)?;
        Ok(DecodingState { layout, num_states, memory })
    }
}

fn state_len(layout: &Layout) -> usize {
    let features = layout.projections * layout.features_per_projection;
    2 * layout.feature_panels() * PANEL + features * layout.padded_value()
}
