//! Related sequences in large sets, without an alignment of all against all: clusters, how many relatives each sequence
//! has, and the nearest relative in another set.
//!
//! Two sequences are relatives at an identity when an alignment of them has at least that share of identical residues in
//! its columns and covers [`COVERAGE`] of the shorter one. Candidates share short words ([`index`]); an alignment decides
//! about each ([`align`]). So every pair that is called related is related; relatives without common words are missed, and
//! the more of them, the lower the identity. Answers depend on the sequences alone, never on the number of threads.
//!
//! Imports follow this order, each file importing files to its left alone:
//!
//! ```text
//! {alphabet, union} < sequences < {index, align} < relatives
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod align;
mod alphabet;
mod index;
mod relatives;
mod sequences;
mod union;

pub use align::COVERAGE;
pub use relatives::{MIN_IDENTITY, Nearest, cluster, count_relatives, nearest};
pub use sequences::Sequences;
