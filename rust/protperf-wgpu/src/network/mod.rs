//! The operations of a network on arrays that stay on the device.
//!
//! What a network is, stands in `protperf-model`, which calls these one after another; nothing is read back in between.
//! Every operation works row by row, or within a sequence and head, and sums in an order that the shape alone decides, so
//! no bit of a sequence depends on what else is in the batch.
//!
//! Imports follow this order, each file importing files to its left alone: extents, arrays,
//! {dense, heads, pool}, {exact, favor}.

mod arrays;
mod dense;
mod exact;
mod extents;
mod favor;
mod heads;
mod pool;

pub use arrays::{Activations, Forward, Matrix, Sequences};
pub use dense::{add_linear, embed, gate, linear, log_softmax, norm, picked, some_rows};
pub use exact::{Keys, exact, select_keys};
pub use favor::{Favor, favor, favor_map, select_states};
pub use heads::Heads;
pub use pool::{Pooling, pool};
