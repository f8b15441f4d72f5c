//! Pairwise models (Potts models, direct couplings) of an alignment, fitted by pseudo-likelihood.
//!
//! Each column is predicted from all others, by a logistic regression of its own:
//!
//! ```text
//! log p(a in column i | the rest of the row) = h_i(a) + sum_{j != i} J_ij(a, x_j) - log(normalization)
//! minimized for each i:  - sum_rows w log p  +  field_penalty |h_i|^2  +  coupling_penalty / 2 sum_j |J_ij|^2
//! ```
//!
//! so that columns can be fitted next to each other, in memory for a few of them. A coupling is found twice, from i and
//! from j; where the two agree, both penalties together are the usual one of a coupling. A gap is missing data: a column
//! is not predicted where it has one, and says nothing of the others there.
//!
//! # Source
//! Ekeberg et al. 2014, doi:10.1016/j.jcp.2014.07.024 (columns on their own); Hopf et al. 2017, doi:10.1038/nbt.3769
//! (gaps, penalties).

mod fit;
mod lbfgs;
mod observed;
mod panel;

pub use fit::fit_columns;
pub use observed::{NUM_STATES, Observed};
pub use panel::Penalties;
