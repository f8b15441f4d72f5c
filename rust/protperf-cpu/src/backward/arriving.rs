//! What arrives at the final state of a head segment: `docs/algorithm.md`, section 7, "Through the states".

use crate::layout::Layout;
use crate::ops::{CpuElement, Ops};
use crate::state::State;
use protperf_core::state::KV_STATE;

/// The gradient of a final state `[F,2+E]`.
pub enum Arriving<'a, T> {
    /// None, or zeros.
    Nothing,
    /// The final state and its gradient.
    Gradient { last: &'a [T], grad: &'a [T] },
    /// A gradient that is not finite, or that meets something that is not: every gradient it reaches is NaN.
    NotFinite,
}

impl<'a, T: CpuElement> Arriving<'a, T> {
    /// From the rows of the final state and of its gradient; `is_clean` says that all that the state saw is finite.
    pub fn new(ops: &Ops<T>, rows: Option<(&'a [T], &'a [T])>, value_dim: usize, is_clean: bool) -> Self {
        let Some((last, grad)) = rows else { return Arriving::Nothing };
        let (mut is_zero, mut is_finite) = (true, true);
        for row in grad.chunks_exact(KV_STATE + value_dim) {
            // The column of references has no gradient.
            let (largest, finite) = ops.largest(&row[1..]);
            is_zero &= largest == T::ZERO && finite;
            is_finite &= finite;
        }
        match (is_zero, is_finite && is_clean) {
            (true, _) => Arriving::Nothing,
            (false, true) => Arriving::Gradient { last, grad },
            (false, false) => Arriving::NotFinite,
        }
    }

    /// Whether it makes NaN.
    pub fn is_nan(&self) -> bool {
        matches!(self, Arriving::NotFinite)
    }

    /// The rows of the final state and of its gradient.
    pub fn rows(&self) -> Option<(&'a [T], &'a [T])> {
        match self {
            Arriving::Gradient { last, grad } => Some((last, grad)),
            Arriving::Nothing | Arriving::NotFinite => None,
        }
    }

    /// Makes a state of cotangents the one after the last position, where values are multiplied with `value_scale`.
    pub fn import(&self, layout: &Layout, value_scale: T, to: &mut State<T>) {
        match self.rows() {
            Some((last, grad)) => to.import_gradient(layout, last, grad, value_scale),
            None => to.clear(),
        }
    }
}
