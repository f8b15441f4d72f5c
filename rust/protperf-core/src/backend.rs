//! What a backend is: the operations of linear attention, as every implementation of them offers them.
//!
//! A backend makes these fast and decides nothing: what is computed stands in [`crate::attention`], the format of
//! states in [`crate::state`], and [`crate::reference`] is the plain implementation that judges the others.

use crate::attention::{FavorArgs, FavorShape, MapGradients};
use crate::element::Stored;
use crate::error::{Error, Result};
use crate::memory::check_len;
use crate::state;
use crate::tensor::TensorRef;
use std::sync::atomic::AtomicBool;

/// How a call runs; changes no bit of any result.
#[derive(Clone, Copy, Debug)]
pub struct Execution<'a> {
    /// Threads that the call may use.
    pub num_threads: usize,
    /// Raised by the caller to stop the call.
    pub cancel: &'a AtomicBool,
}

/// What the forward pass reads besides its arguments, and what it fills.
#[derive(Debug)]
pub struct Outputs<'a, T: Stored> {
    /// The state that queries read in addition to their keys; `None`: the empty one.
    pub state_in: Option<&'a [T::Compute]>,
    /// `[B,H,L,E]`.
    pub out: &'a mut [T],
    /// `[B,H,L,2]`: for each row T and p with the denominator `p 2^T` and p in [1/2, 1); 0 where the row sees no key.
    pub den: &'a mut [T::Compute],
    /// The state after all keys; may be left out.
    pub state_out: Option<&'a mut [T::Compute]>,
}

/// What the backward pass reads besides the arguments of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a, T: Stored> {
    /// Output of the forward pass `[B,H,L,E]`.
    pub out: TensorRef<'a, T>,
    /// Denominators of the forward pass `[B,H,L,2]`.
    pub den: &'a [T::Compute],
    /// Gradient of the output `[B,H,L,E]`.
    pub grad: TensorRef<'a, T>,
    /// The state that the forward pass began with.
    pub state_in: Option<&'a [T::Compute]>,
    /// What arrives at the final state; `None`: nothing.
    pub final_state: Option<FinalState<'a, T>>,
}

/// The state that the forward pass ended with, and the gradient that arrives at it.
#[derive(Clone, Copy, Debug)]
pub struct FinalState<'a, T: Stored> {
    /// The state, for its references.
    pub state: &'a [T::Compute],
    /// Its gradient, of the same shape; the column of references counts as 0.
    pub grad: &'a [T::Compute],
}

/// Gradients to fill, contiguous.
#[derive(Debug)]
pub struct Gradients<'a, T: Stored> {
    /// `[B,H,L,D]`.
    pub dq: &'a mut [T],
    /// `[B,Hk,S,D]`.
    pub dk: &'a mut [T],
    /// `[B,Hk,S,E]`.
    pub dv: &'a mut [T],
    /// Of the map's parameters; may be left out.
    pub map: Option<MapGradients<'a>>,
    /// Of the initial state; may be left out. 0 in the column of references.
    pub state_in: Option<&'a mut [T::Compute]>,
}

/// An implementation of linear attention on tensors stored as `T`.
///
/// Special values: a zero denominator gives 0. A row of q, k or v that is not finite makes NaN of every output and
/// of every state that sees it; a state or a set of parameters that is not finite, of every output of its heads. A
/// row of an incoming gradient that is all zeros contributes nothing, even where its output is NaN; one that is not,
/// and saw something that is not finite, makes NaN of every gradient that it reaches.
pub trait Backend<T: Stored>: Send + Sync {
    /// The name that chooses it.
    fn name(&self) -> &'static str;

    /// `sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j)` over the state and the keys that row i sees.
    ///
    /// With a state this continues a sequence: causal or not, packed or padded; S may be 0, so that queries read a
    /// state alone.
    ///
    /// # Errors
    /// As [`FavorArgs::validate`]; [`Error::ShapeMismatch`]; [`Error::OutOfMemory`]; [`Error::Interrupted`].
    fn forward(&self, args: &FavorArgs<'_, T>, outputs: Outputs<'_, T>, run: &Execution<'_>) -> Result<()>;

    /// Gradients of [`Backend::forward`].
    ///
    /// # Errors
    /// As [`Backend::forward`].
    fn backward(
        &self,
        args: &FavorArgs<'_, T>,
        saved: &Saved<'_, T>,
        gradients: Gradients<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()>;

    /// The state of both sets of keys; all `[.., 2 + value_dim]`.
    ///
    /// # Errors
    /// As [`state::merge_states`].
    fn merge_states(
        &self,
        a: &[T::Compute],
        b: &[T::Compute],
        value_dim: usize,
        out: &mut [T::Compute],
        run: &Execution<'_>,
    ) -> Result<()> {
        state::merge_states(a, b, value_dim, out, run.cancel)
    }
}

impl<T: Stored> Outputs<'_, T> {
    /// Refuses buffers of other lengths than a call needs.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`].
    pub fn check(&self, shape: &FavorShape) -> Result<()> {
        let rows = shape.batch * shape.heads * shape.q_len;
        let state = shape.state().iter().product();
        check_len("out", self.out.len(), rows * shape.value_dim)?;
        check_len("den", self.den.len(), rows * 2)?;
        check_len("state_in", self.state_in.map_or(state, |state| state.len()), state)?;
        check_len("state_out", self.state_out.as_ref().map_or(state, |state| state.len()), state)
    }
}

impl<T: Stored> Saved<'_, T> {
    /// Refuses tensors of other shapes than a call needs.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`].
    pub fn check(&self, shape: &FavorShape) -> Result<()> {
        for (argument, found) in [("out", self.out.shape()), ("grad", self.grad.shape())] {
            if found != shape.out() {
                let detail = format!("has shape {found:?} but the output has {:?}", shape.out());
                return Err(Error::shape(argument, detail));
            }
        }
        let state = shape.state().iter().product();
        check_len("den", self.den.len(), shape.batch * shape.heads * shape.q_len * 2)?;
        check_len("state_in", self.state_in.map_or(state, |state| state.len()), state)?;
        check_len("state_out", self.final_state.map_or(state, |last| last.state.len()), state)?;
        check_len("grad_state", self.final_state.map_or(state, |last| last.grad.len()), state)
    }
}

impl<T: Stored> Gradients<'_, T> {
    /// Refuses buffers of other lengths than a call needs.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], or as [`crate::MapArgs::check_gradients`].
    pub fn check(&self, args: &FavorArgs<'_, T>, shape: &FavorShape) -> Result<()> {
        let s = shape;
        check_len("dq", self.dq.len(), s.batch * s.heads * s.q_len * s.head_dim)?;
        check_len("dk", self.dk.len(), s.batch * s.kv_heads * s.kv_len * s.head_dim)?;
        check_len("dv", self.dv.len(), s.batch * s.kv_heads * s.kv_len * s.value_dim)?;
        let state = shape.state().iter().product();
        check_len("dstate_in", self.state_in.as_ref().map_or(state, |state| state.len()), state)?;
        self.map.as_ref().map_or(Ok(()), |map| args.map.check_gradients(map))
    }
}
