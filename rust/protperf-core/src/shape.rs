//! The sizes of a call, from which those of outputs and states follow.

/// Columns of a state's row before those of `kv_state`.
pub const KV_STATE: usize = 2;

/// Sizes of a checked call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FavorShape {
    /// B.
    pub batch: usize,
    /// H, query heads.
    pub heads: usize,
    /// Hk, key and value heads.
    pub kv_heads: usize,
    /// L.
    pub q_len: usize,
    /// S.
    pub kv_len: usize,
    /// D.
    pub head_dim: usize,
    /// E.
    pub value_dim: usize,
    /// Sequences packed into a batch of one; 1 where nothing is packed.
    pub num_segments: usize,
    /// M: rows of omega, D where there is none.
    pub num_features: usize,
    /// P: projections that a row of queries or keys is multiplied with.
    pub num_projections: usize,
    /// F: width of phi(x).
    pub feature_dim: usize,
}

impl FavorShape {
    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// Shape of the output `[B,H,L,E]`.
    pub fn out(&self) -> [usize; 4] {
        [self.batch, self.heads, self.q_len, self.value_dim]
    }

    /// Shape of the running state, `[B,H,F,2+E]` or `[num_segments,H,F,2+E]`; see [`crate::state`].
    pub fn state(&self) -> [usize; 4] {
        [self.batch * self.num_segments, self.heads, self.feature_dim, KV_STATE + self.value_dim]
    }
}
