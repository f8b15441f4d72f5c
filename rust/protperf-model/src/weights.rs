//! The tensors of one block by name, borrowed from wherever they lie: a mapped file, or a training's parameters.

use protperf_core::FeatureMap;
use protperf_cpu::layout::PAD;

/// The widths of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// C, the width of the residual stream.
    pub model_dim: usize,
    /// H.
    pub num_heads: usize,
    /// D; even.
    pub head_dim: usize,
    /// F, the width of the feed-forward layer.
    pub ffn_dim: usize,
}

impl BlockShape {
    /// H D, the width of all queries of a token.
    pub fn inner(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of a row of queries, keys and values, padding included.
    pub fn qkv_row(&self) -> usize {
        (3 * self.inner()).next_multiple_of(PAD)
    }

    /// Width of a row of gate and up, padding included.
    pub fn gate_up_row(&self) -> usize {
        2 * self.ffn_dim.next_multiple_of(PAD)
    }

    /// Elements of each buffer of a trace of `tokens` tokens, in the order of its fields.
    pub fn trace_lens(&self, tokens: usize) -> [usize; 6] {
        let h = self.num_heads;
        [self.qkv_row(), 2 * h, self.inner(), 2 * h, self.model_dim, self.gate_up_row()].map(|width| tokens * width)
    }
}

/// How the heads of a block attend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// FAVOR+ with a map and a number of random features per head.
    Favor {
        /// The map.
        map: FeatureMap,
        /// M.
        num_features: usize,
    },
    /// Softmax over all keys.
    Exact,
}

/// The tensors of a block, row by row without gaps.
#[derive(Clone, Copy, Debug)]
pub struct BlockWeights<'a, T> {
    /// `[C]`.
    pub attention_norm: &'a [T],
    /// `[3HD,C]`: queries, keys, values.
    pub qkv: &'a [T],
    /// `[H]`.
    pub log_temperature: &'a [T],
    /// `[H,M,D]`; `None` with exact attention.
    pub omega: Option<&'a [T]>,
    /// `[C,HD]`.
    pub out: &'a [T],
    /// `[C]`.
    pub ffn_norm: &'a [T],
    /// `[2F,C]`: gate, up.
    pub gate_up: &'a [T],
    /// `[C,F]`.
    pub down: &'a [T],
}
