//! What a call fills, with rows anywhere: the contiguous outputs of the trait, and those of a fused network.

use crate::out_rows::OutRows;
use crate::stored::CpuStored;
use protperf_core::backend::{Gradients, Outputs};
use protperf_core::{FavorArgs, FavorShape, MapGradients, Result, check_len};

/// What the forward pass reads besides its arguments, and what it fills; as [`Outputs`], with rows anywhere.
pub struct RowOutputs<'a, S: CpuStored> {
    /// The state that queries read in addition to their keys; `None`: the empty one.
    pub state_in: Option<&'a [S::Compute]>,
    /// Rows `[B,H,L,E]`.
    pub out: OutRows<'a, S>,
    /// `[B,H,L,2]`, as in [`Outputs::den`]; `None` where no backward pass follows.
    pub den: Option<&'a mut [S::Compute]>,
    /// The state after all keys; may be left out.
    pub state_out: Option<&'a mut [S::Compute]>,
}

impl<'a, S: CpuStored> RowOutputs<'a, S> {
    /// Contiguous outputs of a call of a shape.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn new(outputs: Outputs<'a, S>, shape: &FavorShape) -> Result<Self> {
        let Outputs { state_in, out, den, state_out } = outputs;
        Ok(RowOutputs { state_in, out: OutRows::head_major("out", out, shape.out())?, den: Some(den), state_out })
    }

    /// Refuses buffers of other sizes than a call needs.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn check(&self, shape: &FavorShape) -> Result<()> {
        let (rows, state) = (shape.batch * shape.heads * shape.q_len, shape.state().iter().product());
        self.out.check("out", shape.out())?;
        check_len("den", self.den.as_ref().map_or(rows * 2, |den| den.len()), rows * 2)?;
        check_len("state_in", self.state_in.map_or(state, |state| state.len()), state)?;
        check_len("state_out", self.state_out.as_ref().map_or(state, |state| state.len()), state)
    }
}

/// Gradients to fill; as [`Gradients`], with rows anywhere.
pub struct RowGradients<'a, S: CpuStored> {
    /// Rows `[B,H,L,D]`.
    pub dq: OutRows<'a, S>,
    /// Rows `[B,Hk,S,D]`.
    pub dk: OutRows<'a, S>,
    /// Rows `[B,Hk,S,E]`.
    pub dv: OutRows<'a, S>,
    /// Of the map's parameters; may be left out.
    pub map: Option<MapGradients<'a>>,
    /// Of the initial state; may be left out. 0 in the column of references.
    pub state_in: Option<&'a mut [S::Compute]>,
}

impl<'a, S: CpuStored> RowGradients<'a, S> {
    /// Contiguous gradients of a call of a shape.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn new(gradients: Gradients<'a, S>, shape: &FavorShape) -> Result<Self> {
        let Gradients { dq, dk, dv, map, state_in } = gradients;
        let [of_queries, of_keys, of_values] = shapes(shape);
        Ok(RowGradients {
            dq: OutRows::head_major("dq", dq, of_queries)?,
            dk: OutRows::head_major("dk", dk, of_keys)?,
            dv: OutRows::head_major("dv", dv, of_values)?,
            map,
            state_in,
        })
    }

    /// Refuses buffers of other sizes than a call needs.
    ///
    /// # Errors
    /// `ShapeMismatch`, or as [`MapArgs::check_gradients`](protperf_core::MapArgs::check_gradients).
    pub fn check(&self, args: &FavorArgs<'_, S>, shape: &FavorShape) -> Result<()> {
        let ([of_queries, of_keys, of_values], state) = (shapes(shape), shape.state().iter().product());
        self.dq.check("dq", of_queries)?;
        self.dk.check("dk", of_keys)?;
        self.dv.check("dv", of_values)?;
        check_len("dstate_in", self.state_in.as_ref().map_or(state, |state| state.len()), state)?;
        self.map.as_ref().map_or(Ok(()), |map| args.map.check_gradients(map))
    }
}

/// Shapes of queries, keys and values.
fn shapes(s: &FavorShape) -> [[usize; 4]; 3] {
    [
        [s.batch, s.heads, s.q_len, s.head_dim],
        [s.batch, s.kv_heads, s.kv_len, s.head_dim],
        [s.batch, s.kv_heads, s.kv_len, s.value_dim],
    ]
}
