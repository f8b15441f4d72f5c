//! The network without Python: pre-norm blocks over packed sequences, as `apps/lm/model/network.py` composes them in torch.
//!
//! A checkpoint is verified and mapped, a [`device::Device`] takes its weights over, and a [`network::Network`] answers:
//! log-probabilities, hidden states, and states to continue left to right. A training uses the block and the head alone.
//!
//! Imports follow this order, each file importing files to its left alone:
//!
//! ```text
//! {buffer, products} < linear,    {tiles, rotary, dropout, linear, weights} < {block, head}
//! {json, fault, weights} < config < tensor_file < {checkpoint, source, pool} < device < {cpu, gpu, reference, network}
//! ```

#![forbid(unsafe_code)]

pub mod block;
mod buffer;
pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod device;
mod dropout;
pub mod fault;
#[cfg(feature = "wgpu")]
pub mod gpu;
pub mod head;
pub mod json;
mod linear;
pub mod network;
pub mod pool;
mod products;
pub mod reference;
mod rotary;
pub mod source;
pub mod tensor_file;
mod tiles;
pub mod weights;

pub use block::{Block, LayerState};
pub use dropout::Dropout;
pub use products::{Arithmetic, Precision};
pub use rotary::Rotary;
