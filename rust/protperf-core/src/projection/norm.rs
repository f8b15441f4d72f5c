//! The norms of omega's rows.

use crate::error::{Error, Result};

/// What the rows' norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Those of normal vectors: chi distributed with `head_dim` degrees of freedom.
    Chi,
    /// sqrt(head_dim), exactly.
    SqrtDim,
}

impl Norm {
    /// The norm of a public name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] that lists the names there are.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "chi" => Ok(Norm::Chi),
            "sqrt_dim" => Ok(Norm::SqrtDim),
            _ => Err(Error::option("norm", format!("{name:?} is unknown; choose one of chi, sqrt_dim"))),
        }
    }
}

/// Euclidean norm.
pub(super) fn length(row: &[f64]) -> f64 {
    libm::sqrt(row.iter().map(|x| x * x).sum())
}
