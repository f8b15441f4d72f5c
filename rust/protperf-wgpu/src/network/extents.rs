//! Sizes of one dispatch of a network.

use crate::kernels::Uniform;
use bytemuck::{Pod, Zeroable};

/// The twin of `Extents` in `shaders/network/prelude.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Extents {
    /// Invocations that have something to do.
    pub invocations: u32,
    /// Rows of activations; of queries where there are others.
    pub rows: u32,
    /// Fours of a row that is read.
    pub inputs: u32,
    /// Fours of a row that is written.
    pub outputs: u32,
    /// Numbers of a row without what pads it.
    pub width: u32,
    pub heads: u32,
    pub first_head: u32,
    /// D.
    pub head_dim: u32,
    /// Rows of keys.
    pub keys: u32,
    pub tiles: u32,
    pub tile_rows: u32,
    /// Fours of keys that a row of a tile sees at most.
    pub tile_keys: u32,
    /// Fours of scores of each head.
    pub scores: u32,
    /// Which variant of the stage, as its shader says.
    pub mode: u32,
    /// As the shader says.
    pub factor: f32,
    pub padding: u32,
}

const _: () = assert!(size_of::<Extents>() == 64);

impl Uniform for Extents {
    fn invocations(&self) -> u32 {
        self.invocations
    }
}

impl Extents {
    /// The same for as many invocations as the product of some counts.
    pub fn over(self, counts: &[u32]) -> Self {
        Extents { invocations: counts.iter().product(), ..self }
    }
}
