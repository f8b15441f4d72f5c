//! The GPU backend: linear attention as compute shaders in WGSL, through Vulkan, Metal or DX12.
//!
//! What is computed stands in `protperf-core`; this crate carries the rows of a call to the device, runs the stages of
//! `shaders/` and reads the results back. One shader file is one stage, and each is written so that the bits of a result
//! depend on the shape alone: no atomics, no subgroup operations, no shared memory, sums in a fixed order.
//!
//! The invariant to carry through: a number that is not finite never reaches the device. [`lines`] sets rows that hold
//! one to zero and remembers them, and the outputs that saw one are made NaN after they were read back; shader compilers
//! may assume that neither NaN nor infinity exists.

#![forbid(unsafe_code)]

mod adapters;
mod backend;
mod backward;
mod context;
mod cotangents;
mod error;
mod forward;
mod kernels;
mod lines;
mod map_gradient;
mod maps;
mod memory;
pub mod network;
mod recorder;
mod stages;
mod tiles;
mod upload;

pub use adapters::{AdapterSummary, adapters};
pub use backend::Wgpu;
pub use context::{Gpu, with_gpu};
pub use error::GpuError;
pub use memory::OnDevice;
