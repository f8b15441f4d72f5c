//! What spans crates, in one program: each file of its own would be linked, and wait for the others, by itself.

mod blocks;
mod causality;
#[path = "../common/mod.rs"]
mod common;
mod conformance;
#[cfg(feature = "wgpu")]
mod gpu;
mod gradients;
#[cfg(unix)]
#[path = "../common/guard.rs"]
mod guard;
#[cfg(unix)]
mod guarded_block;
mod invariance;
#[cfg(unix)]
mod memory;
mod parameters;
mod properties;
mod rounded;
mod states;
mod statistics;
