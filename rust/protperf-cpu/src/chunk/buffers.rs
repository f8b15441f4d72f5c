//! The buffers of a chunk, grouped by what they serve, and the values that its stages pass on.
//! `docs/algorithm.md`, section 1, and section 7 for the gradients.
//!
//! A stage takes what the stage before it returned, so the compiler keeps their order:
//!
//! ```text
//! Loaded -> project_keys -> Keys -> read -> update_state
//! Loaded -> project_queries -> Queries -> read
//! ```
//!
//! The roles of keys and queries are those of the attention in the forward pass: keys add to the state, queries read
//! it. The backward pass exchanges them: what arrived at the queries adds to a state that the keys read.

use crate::aligned::Aligned;
use crate::layout::{CHUNK, Layout, PAD, PANEL};
use crate::ops::CpuElement;
use crate::packed_omega::ParameterGradient;
use crate::rows::ChunkRows;
use crate::state::State;
use protperf_core::{Result, Side};

/// What the queries of a chunk ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// Sums over the keys that a query sees: numerators and denominators.
    pub sums: bool,
    /// Gradients of the queries' inputs, with what the queries carry as the cotangents of their sums.
    pub gradient: bool,
    /// Gradients of the map's parameters too.
    pub parameters: bool,
    /// The row's exponent is that of its largest term instead of the row's `shift`.
    pub normalize: bool,
}

/// Rows that were loaded and not yet projected.
pub struct Loaded<'b, T> {
    pub rows: &'b mut ChunkRows<T>,
    pub count: usize,
    pub side: Side,
}

/// Projected keys with their features relative to the references of the state.
pub struct Keys<'b, T> {
    pub rows: &'b ChunkRows<T>,
    /// `[panel][CHUNK][PANEL]`, zero up to the next multiple of [`PAD`] rows.
    pub features: &'b [T],
    pub count: usize,
    /// Whether a query sees those up to its own position alone, and not all of them.
    pub is_causal: bool,
}

/// Projected queries.
pub struct Queries<'b, T> {
    pub rows: &'b ChunkRows<T>,
    pub count: usize,
    pub side: Side,
}

/// What a chunk's queries read.
pub struct Answers<'c, T> {
    /// The queries themselves.
    pub rows: &'c ChunkRows<T>,
    /// Numerators `[CHUNK][value_row]`, relative to the row's exponent.
    pub numerator: &'c [T],
    /// Denominators, relative to the row's exponent.
    pub denominator: &'c [T],
    /// Exponents of the rows.
    pub exponent: &'c [T],
    /// Gradients of the inputs `[CHUNK][padded_head]`.
    pub input_gradient: &'c [T],
}

/// References, and what changing them takes.
pub struct References<T> {
    /// The state's references before the chunk and, where `is_far`, a copy of its sums too.
    pub before: State<T>,
    /// Whether the chunk raised a reference so far that the state's own sums may have been flushed to zero.
    pub is_far: bool,
    /// References of the chunk, or of one row that is computed again.
    pub reference: Aligned<T>,
    /// Differences between two references, or powers of two of such differences.
    pub power: Aligned<T>,
}

/// Scores of a chunk: queries against keys of the same chunk.
pub struct Scores<T> {
    /// `[CHUNK][CHUNK]`.
    pub values: Aligned<T>,
    /// Their cotangents `[CHUNK][CHUNK]`.
    pub gradient: Aligned<T>,
    /// A transposed panel of keys, or of the state.
    pub transposed: Aligned<T>,
    /// Values and ones of the keys, transposed, `[value_row][CHUNK]`.
    pub transposed_values: Aligned<T>,
    /// Features of keys of one panel, for a row that is computed again.
    pub own_keys: Aligned<T>,
}

/// What queries sum up.
pub struct Sums<T> {
    /// Features of the queries, one panel `[CHUNK][PANEL]`.
    pub features: Aligned<T>,
    /// `[CHUNK][value_row]`.
    pub numerator: Aligned<T>,
    /// `[CHUNK]`.
    pub denominator: Aligned<T>,
    /// Exponents of the rows `[CHUNK]`.
    pub exponent: Aligned<T>,
    /// Largest exponents of the rows' terms `[CHUNK]`.
    pub tops: Aligned<T>,
    /// Lanes of running sums or maxima of the rows `[CHUNK][PAD]`.
    pub lanes: Aligned<T>,
}

/// Gradients of a chunk.
pub struct GradientBuffers<T> {
    /// Of features, then of projections: one panel, or two where a projection has two features.
    pub features: Aligned<T>,
    /// Of inputs `[CHUNK][padded_head]`.
    pub inputs: Aligned<T>,
    /// Lanes of the gradient of each row's norm `[CHUNK][PAD]`.
    pub norms: Aligned<T>,
    /// Gradients of the projections of rows that are computed again, `[panel][CHUNK][PANEL]`, and their norms.
    pub recomputed: Aligned<T>,
    pub recomputed_norms: Aligned<T>,
    /// Gradients of the map's parameters; `None` until they are wanted.
    pub parameters: Option<ParameterGradient<T>>,
}

/// Everything a chunk needs besides its rows and the state.
pub struct Buffers<T> {
    pub references: References<T>,
    pub scores: Scores<T>,
    pub sums: Sums<T>,
    pub gradients: GradientBuffers<T>,
}

impl<T: CpuElement> Buffers<T> {
    /// Room for one chunk.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(layout: &Layout) -> Result<Self> {
        let features = layout.feature_panels() * PANEL;
        let value_row = layout.value_row();
        let zeros = |len| Aligned::filled(len, T::ZERO);
        Ok(Buffers {
            references: References {
                before: State::new(layout)?,
                is_far: false,
                reference: zeros(features)?,
                power: zeros(features)?,
            },
            scores: Scores {
                values: zeros(CHUNK * CHUNK)?,
                gradient: zeros(CHUNK * CHUNK)?,
                transposed: zeros(CHUNK.max(value_row) * PANEL)?,
                transposed_values: zeros(CHUNK * value_row)?,
                own_keys: zeros(CHUNK * PANEL)?,
            },
            sums: Sums {
                features: zeros(CHUNK * PANEL)?,
                numerator: zeros(CHUNK * value_row)?,
                denominator: zeros(CHUNK)?,
                exponent: zeros(CHUNK)?,
                tops: zeros(CHUNK)?,
                lanes: zeros(CHUNK * PAD)?,
            },
            gradients: GradientBuffers {
                features: zeros(2 * CHUNK * PANEL)?,
                inputs: zeros(CHUNK * layout.padded_head())?,
                norms: zeros(CHUNK * PAD)?,
                recomputed: zeros(layout.projection_panels() * CHUNK * PANEL)?,
                recomputed_norms: zeros(CHUNK * PAD)?,
                parameters: None,
            },
        })
    }
}
