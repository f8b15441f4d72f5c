//! The CPU backend: what protperf-core defines, made fast.
//!
//! Generic loops over [`simd::Simd`] lanes are compiled for every ISA and chosen at run time; features live in
//! registers and L1 and never reach memory; rayon runs one task for each batch entry, head and segment, or, where those
//! are few and long, for each of their blocks, whose states are merged in order. How work is cut depends on the shape
//! alone, so threads change no bit. `unsafe` is allowed here, each block with the facts that make it sound.

// Coefficients are written as they were computed, for f64 and f32 alike.
#![allow(clippy::excessive_precision)]

mod backward;
mod blocks;
mod call;
mod cotangent;
mod dispatch;
mod forward;
mod gradient;
mod load;
pub mod ops;
mod parallel;
mod redo;
pub mod simd;
mod state;
mod sweep;
mod weights;
mod workspace;

pub use backward::{Gradients, favor_backward};
pub use call::Context;
pub use cotangent::Saved;
pub use dispatch::Isa;
pub use forward::favor_forward;
pub use ops::CpuElement;
pub use parallel::{default_num_threads, rehearse_panic};
pub use state::{empty_state, merge_states};
