//! What a forward pass leaves for the backward pass of a training.

use crate::weights::BlockShape;
use protperf_core::{Result, check_len};

/// Buffers that the forward pass fills, row by row without gaps.
#[derive(Debug)]
pub struct TraceMut<'a, T> {
    /// Queries and keys as attention takes them, and values, `[N, 3HD padded]`.
    pub qkv: &'a mut [T],
    /// One over the length of each query and key before it was scaled, `[N, 2H]`.
    pub inverses: &'a mut [T],
    /// Outputs of attention `[N,HD]`.
    pub attended: &'a mut [T],
    /// Of each query the denominator, or the logarithm of the sum of exponentials with exact attention, `[H,N,2]`.
    pub denominators: &'a mut [T],
    /// The residual stream between attention and the feed-forward layer `[N,C]`.
    pub middle: &'a mut [T],
    /// Gate and up before the activation, each padded, `[N, 2F padded]`.
    pub gate_up: &'a mut [T],
}

/// The same buffers as the backward pass reads them.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Trace<'a, T> {
    pub qkv: &'a [T],
    pub inverses: &'a [T],
    pub attended: &'a [T],
    pub denominators: &'a [T],
    pub middle: &'a [T],
    pub gate_up: &'a [T],
}

impl<T> Trace<'_, T> {
    /// Refuses buffers of other lengths than `tokens` tokens need.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn check(&self, shape: &BlockShape, tokens: usize) -> Result<()> {
        let found = [self.qkv, self.inverses, self.attended, self.denominators, self.middle, self.gate_up];
        let names = ["qkv", "inverses", "attended", "denominators", "middle", "gate_up"];
        let all = names.into_iter().zip(found).zip(shape.trace_lens(tokens));
        all.into_iter().try_for_each(|((name, buffer), needed)| check_len(name, buffer.len(), needed))
    }
}

impl<'a, T> TraceMut<'a, T> {
    /// The buffers as they are read.
    pub fn view(&'a self) -> Trace<'a, T> {
        let TraceMut { qkv, inverses, attended, denominators, middle, gate_up } = self;
        Trace { qkv, inverses, attended, denominators, middle, gate_up }
    }
}
