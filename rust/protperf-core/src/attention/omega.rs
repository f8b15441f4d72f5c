//! The projection matrix as attention takes it.

/// The projection matrix, shared by all heads `[M,D]` or one per head `[H,M,D]`.
#[derive(Clone, Copy, Debug)]
pub struct Omega<'a> {
    /// Rows one after another.
    pub data: &'a [f64],
    /// `None`: one matrix for all heads.
    pub num_heads: Option<usize>,
    /// M.
    pub num_features: usize,
    /// D.
    pub head_dim: usize,
}

impl<'a> Omega<'a> {
    /// The matrix of one head, `[M,D]`.
    pub fn head(&self, head: usize) -> &'a [f64] {
        let size = self.num_features * self.head_dim;
        let start = if self.num_heads.is_some() { head * size } else { 0 };
        &self.data[start..start + size]
    }
}
