//! One block: attention, then a gated feed-forward layer, each on the normed residual stream.
//!
//! The work is cut into tiles of tokens. A tile goes through all that one token needs alone while it lies in cache, so
//! that no intermediate as large as `[N, F]` is formed unless a training keeps it; attention is the one stage that looks
//! across tokens. Row by row the arithmetic does not depend on the tile, so the size of a batch and the number of threads
//! change no bit.
//!
//! ```text
//! forward:   x -> norm -> qkv -> unit, rotate | attend | -> out -> + x = middle -> norm -> gate, up -> down -> + middle
//! backward:  the same stages from right to left, cut at the same two bars
//!
//! state < attend < frame < {forward, backward}; trace < {forward, backward}
//! ```

mod attend;
mod backward;
mod forward;
mod frame;
mod state;
mod trace;

pub use backward::{BlockBackward, BlockGradients};
pub use forward::Block;
pub(crate) use frame::NORM_EPSILON;
pub use state::{KeysAndValues, LayerState};
pub use trace::{Trace, TraceMut};
