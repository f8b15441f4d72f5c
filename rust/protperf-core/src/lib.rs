//! The mathematics of protperf.
//!
//! Here live the definitions that every backend shares (shapes, feature maps, samplers, alphabet) and the plain
//! f64 reference that judges the fast forms. Nothing here starts a thread, opens a file or is `unsafe`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod alphabet;
pub mod attention;
mod error;
pub mod fasta;
pub mod feature_map;
pub mod projection;
pub mod reference;
pub mod rng;
mod tensor;

pub use attention::{FavorArgs, FavorShape, Omega};
pub use error::{Error, ErrorKind, Result};
pub use feature_map::{Family, FeatureMap};
pub use tensor::{Element, TensorRef};
