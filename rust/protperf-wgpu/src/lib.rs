//! The GPU backend: linear attention as compute shaders in WGSL, through Vulkan, Metal or DX12.
//!
//! What is computed stands in `protperf-core`; this crate carries the rows of a call to the device, runs the stages of
//! `shaders/` and reads the results back. One shader file is one stage, and each is written so that the bits of a result
//! depend on the shape alone: no subgroup operations, sums in a fixed order, and atomics for maxima of integers alone,
//! which no order changes.
//!
//! The invariant to carry through: a number that is not finite is never computed with on the device, for shader compilers
//! may assume that neither NaN nor infinity exists. [`batch_heads`] sets rows that hold one to zero and remembers them,
//! and the outputs that saw one are made NaN after they were read back; for tensors that stay on the device
//! `shaders/tensor/` does the same with their bits.

#![forbid(unsafe_code)]

mod adapters;
mod backend;
mod backward;
mod batch_heads;
mod context;
mod cotangents;
mod draw;
mod error;
mod forward;
mod groups;
mod kernels;
mod map_gradient;
mod maps;
mod memory;
pub mod network;
mod recorder;
mod resident;
mod stages;
mod tensor;
mod tiles;
mod upload;

pub use adapters::{AdapterSummary, adapters};
pub use backend::Wgpu;
pub use context::{Gpu, Traffic, traffic, with_gpu};
pub use draw::draw_projection;
pub use error::GpuError;
pub use groups::in_groups;
pub use memory::OnDevice;
pub use resident::{Resident, attention, merge_states};
pub use tensor::{DeviceTensor, StoredAs};
