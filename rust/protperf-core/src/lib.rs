//! The mathematics of protperf.
//!
//! Here live the definitions that every backend shares (shapes, feature maps, samplers, alphabet) and the plain
//! f64 reference that judges the fast forms. Nothing here starts a thread, opens a file or is `unsafe`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod alphabet;
pub mod attention;
pub mod backend;
mod element;
mod error;
pub mod fasta;
pub mod feature_map;
mod memory;
pub mod projection;
pub mod reference;
pub mod rng;
mod shape;
pub mod state;
mod tensor;

pub use attention::features::Side;
pub use attention::{FavorArgs, FavorShape, LogLinear, MapArgs, MapGradients, MapSizes, Omega};
pub use backend::{Backend, Execution};
pub use element::{Element, Stored};
pub use error::{Error, ErrorKind, Result};
pub use feature_map::{Activation, Family, FeatureMap, GELU, Parameters};
pub use half::{bf16, f16};
pub use memory::{check_len, try_copied, try_copy_into, try_filled, try_reserved};
pub use tensor::{TensorRef, checked_product};
