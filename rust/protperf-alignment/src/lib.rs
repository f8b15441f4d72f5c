//! Alignments of a family: where proteins stand in its columns, how many rows each row stands for, and which columns
//! depend on each other.
//!
//! Rows are codes, one byte per column; what a code means is the caller's business. Answers depend on the alignment
//! alone, never on the number of threads.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod codes;
mod neighbours;
pub mod pairwise;
mod placement;

pub use codes::Codes;
pub use neighbours::count_neighbours;
pub use placement::{GapCosts, Placement, Profile, place};
