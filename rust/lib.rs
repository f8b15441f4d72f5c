//! protperf: linear-attention Performers (FAVOR+), exact and fast.
//!
//! This facade gathers the crates of the workspace: the mathematics and the plain reference of `protperf-core`, and
//! the CPU backend. Shapes are written as in the rest of the project: q `[B,H,L,D]`, k `[B,Hk,S,D]`, v
//! `[B,Hk,S,E]`, omega `[M,D]`, features `[.., F]`.

#![forbid(unsafe_code)]

pub use protperf_core::*;
pub use protperf_cpu::{
    Context, CpuElement, Gradients, Isa, Saved, default_num_threads, empty_state, favor_backward, favor_forward,
    merge_states, rehearse_panic,
};
pub use protperf_io as io;
