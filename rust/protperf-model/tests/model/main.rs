//! The network as its users call it, in one program: each file of its own would be linked by itself.

mod bf16;
mod block_gradients;
#[cfg(feature = "wgpu")]
mod gpu;
mod head_gradients;
mod network;
