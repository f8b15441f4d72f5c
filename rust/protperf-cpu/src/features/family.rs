//! What a family of feature maps owns: from a row's projections to its features, and back.
//! `docs/algorithm.md`, sections 2 to 4.
//!
//! A chunk knows features only through this trait. They come in panels; each has a reference, an integer exponent that
//! cancels in the quotient of the attention and keeps sums in range.

use crate::ops::CpuElement;
use crate::packed_omega::Head;
use crate::rows::ChunkRows;
use protperf_core::Side;
use std::ops::Range;

/// Where the norm of a key, 1/2 |y|^2 in bits, goes: into a column of the inputs, into the log of the row's own factor,
/// or nowhere. One of the two is the sign it has there, the other 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Times 1/2 |y|^2: column D of the inputs.
    pub column: f64,
    /// Times 1/2 |y|^2: the log of the row's factor.
    pub log: f64,
}

impl Norm {
    /// What 1/2 |y|^2 contributes to a log-feature, per unit; `None` where the family has no norm.
    pub fn slope(self) -> Option<f64> {
        Some(self.column + self.log).filter(|&slope| slope != 0.0)
    }
}

/// Some query rows of one panel: what makes their features.
#[derive(Clone, Copy)]
pub struct QueryPanel<'a, T> {
    /// Index of the panel.
    pub panel: usize,
    /// Rows of the chunk.
    pub queries: &'a ChunkRows<T>,
    /// Which of them.
    pub range: &'a Range<usize>,
    /// References of all panels.
    pub reference: &'a [T],
    /// Exponents that the rows' features lose, one per row of the chunk.
    pub exponent: &'a [T],
}

/// Some key rows of one panel: what makes their features.
#[derive(Clone, Copy)]
pub struct KeyPanel<'a, T> {
    /// Index of the panel.
    pub panel: usize,
    /// Rows of the chunk.
    pub keys: &'a ChunkRows<T>,
    /// How many of them, from the first on.
    pub count: usize,
    /// References of all panels.
    pub reference: &'a [T],
}

/// One family with the parameters of the map, for chunks of every head.
pub trait Family<T: CpuElement>: Send + Sync {
    /// Units of a projection: log2 e where it is a log-feature in bits.
    fn unit(&self) -> f64;

    /// Where a key's norm goes.
    fn norm(&self) -> Norm;

    /// Turns the loaded inputs of some rows into projections.
    fn project(&self, head: &Head<'_, T>, rows: &mut ChunkRows<T>, count: usize, side: Side);

    /// Raises the references of all panels to the first `count` keys.
    fn raise_reference(&self, head: &Head<'_, T>, keys: &ChunkRows<T>, count: usize, reference: &mut [T]);

    /// Features of keys relative to the references, rows of [`crate::layout::PANEL`].
    fn key_features(&self, head: &Head<'_, T>, from: &KeyPanel<'_, T>, to: &mut [T]);

    /// The largest exponent of each query row's terms, an integer, into `tops`; `lanes` is memory for it, [`PAD`]
    /// elements per row.
    ///
    /// [`PAD`]: crate::layout::PAD
    fn row_tops(
        &self,
        head: &Head<'_, T>,
        queries: &ChunkRows<T>,
        range: Range<usize>,
        reference: &[T],
        lanes: &mut [T],
        tops: &mut [T],
    );

    /// Features of queries, rows of [`crate::layout::PANEL`].
    fn query_features(&self, head: &Head<'_, T>, from: &QueryPanel<'_, T>, to: &mut [T]);

    /// From gradients of one panel's features (two panels one after another where a projection has two features) to
    /// gradients of its projections, in the first of them; adds each row's gradient of the norm to its lanes of
    /// `norms`. `features` are those of [`Family::query_features`] in the first panel.
    fn pull_back(
        &self,
        head: &Head<'_, T>,
        from: &QueryPanel<'_, T>,
        features: &[T],
        gradient: &mut [T],
        norms: &mut [T],
    );

    /// Whether the one reference of all features lies so far above `seen`, what a row itself can see, that the row
    /// has to be computed again. A family with a reference per feature cannot tell by the reference alone, see
    /// [`Family::denominator_floor`].
    fn looks_too_far(&self, reference: T, seen: T) -> bool;

    /// A denominator below this has lost terms to references raised by later keys, where each feature has its own.
    fn denominator_floor(&self) -> Option<T>;
}
