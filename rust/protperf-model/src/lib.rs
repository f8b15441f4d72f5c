//! The network without Python: pre-norm blocks over packed sequences, as `apps/lm/model/network.py` composes them in torch.
//!
//! ```text
//! buffer, tiles, rotary, dropout, linear, weights < {block, head} < network
//! ```

#![forbid(unsafe_code)]

pub mod block;
mod buffer;
mod dropout;
pub mod head;
mod linear;
mod rotary;
mod tiles;
pub mod weights;

pub use block::{Block, LayerState};
pub use dropout::Dropout;
pub use rotary::Rotary;
