//! The norms of omega's rows.

use crate::error::{Error, Result};
use crate::rng::Stream;

/// What the rows' norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Those of normal vectors: chi distributed with `head_dim` degrees of freedom.
    Chi,
    /// sqrt(head_dim), exactly.
    SqrtDim,
}

impl Norm {
    /// Every kind of norms, the usual one first.
    pub const ALL: [Norm; 2] = [Norm::Chi, Norm::SqrtDim];

    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Norm::Chi => "chi",
            Norm::SqrtDim => "sqrt_dim",
        }
    }

    /// The norm of the next row of a sampler that draws directions alone.
    pub(super) fn draw(self, head_dim: usize, numbers: &mut Stream) -> f64 {
        match self {
            Norm::SqrtDim => libm::sqrt(head_dim as f64),
            Norm::Chi => chi(head_dim, numbers),
        }
    }

    /// The norm of a public name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] that lists the names there are.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|norm| norm.name() == name);
        found.ok_or_else(|| Error::unknown_name("norm", name, &Self::ALL.map(Self::name)))
    }
}

/// The norm of a normal vector that is independent of the directions.
fn chi(head_dim: usize, numbers: &mut Stream) -> f64 {
    let mut square = || {
        let x = numbers.normal();
        x * x
    };
    libm::sqrt((0..head_dim).map(|_| square()).sum())
}

/// Euclidean norm.
pub(super) fn length(row: &[f64]) -> f64 {
    libm::sqrt(row.iter().map(|x| x * x).sum())
}
