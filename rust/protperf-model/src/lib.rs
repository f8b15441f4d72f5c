//! The network without Python: pre-norm blocks over packed sequences, as `apps/lm/model/network.py` composes them in torch.
//!
//! ```text
//! weights < block < network
//! ```

#![forbid(unsafe_code)]

pub mod block;
pub mod weights;
