//! The CPU backend: what protperf-core defines, made fast.
//!
//! Generic loops over [`simd::Simd`] lanes are compiled for every instruction set and chosen at run time; features live
//! in registers and L1 and never reach memory; rayon runs one task for each batch entry, head and segment, or, where
//! those are few and long, for each of their blocks, whose states are merged in order. How work is cut depends on the
//! shape alone, so threads change no bit. `docs/algorithm.md` has the algorithm; a file that computes a part of it opens
//! with its section.
//!
//! Imports follow this order, each file importing files to its left alone:
//!
//! ```text
//! aligned, dispatch, layout < simd < ops < bf16 < {instructions, products} < {packed_omega, exact}
//! ops < {packed_omega, state, rows, stored} < features < chunk < {workspace, load}
//! {features, packed_omega} < prepared < kept_maps < call,    stored < out_rows < outputs < {forward, backward} < exact
//! prepared < decoding,    {decoding, workspace, load} < step
//! blocks < plan < load < scan < call < cotangent < {forward, backward} < backend
//! ```
//!
//! `unsafe` is allowed here: each block states the facts that make it sound.

// Coefficients are written as they were computed, for f64 and f32 alike.
#![allow(clippy::excessive_precision)]

pub mod aligned;
mod backend;
mod backward;
pub mod bf16;
mod blocks;
mod call;
mod chunk;
mod cotangent;
mod decoding;
mod dispatch;
mod exact;
mod features;
mod forward;
mod instructions;
mod kept_maps;
pub mod layout;
mod load;
pub mod ops;
mod out_rows;
mod outputs;
mod packed_omega;
mod parallel;
mod plan;
mod prepared;
mod products;
mod rows;
mod scan;
mod shared_out;
pub mod simd;
mod state;
mod step;
mod stored;
pub mod team;
mod workspace;

pub use backend::Cpu;
pub use decoding::DecodingState;
pub use dispatch::Isa;
pub use exact::ExactSaved;
pub use ops::CpuElement;
pub use out_rows::OutRows;
pub use outputs::{RowGradients, RowOutputs};
#[cfg(feature = "rehearse-panic")]
pub use parallel::rehearse_panic;
pub use parallel::{Workers, default_num_threads};
pub use prepared::PreparedMap;
pub use step::StepArgs;
pub use stored::CpuStored;
