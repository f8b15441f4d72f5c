//! Every size that more than one file relies on: the constants of the tiling, and the padded widths of one call.
//! `docs/algorithm.md`, section 1, chunks and panels, and section 5, blocks.
//!
//! The constants decide the order in which sums are added up, so they are the same on every processor and for every
//! number of threads: results depend on the shapes of the inputs alone.

/// Rows of one chunk: the positions that are projected, compared with each other and added to the state together.
pub const CHUNK: usize = 64;
/// Positions of one block of a long sequence that several threads share: some milliseconds of work against some
/// microseconds to merge the state of the block.
pub const BLOCK: usize = 1024;
/// Features of one panel, and the distance between its rows.
pub const PANEL: usize = 64;
/// Every padded width is a multiple of this; the length of every register divides it.
pub const PAD: usize = 16;

const _: () = assert!(BLOCK.is_multiple_of(CHUNK) && PANEL.is_multiple_of(PAD) && CHUNK.is_multiple_of(PAD));

/// Rows and features of a panel that are in use.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Rows in use.
    pub rows: usize,
    /// Features in use; the rest up to the next multiple of [`PAD`] is kept at zero.
    pub features: usize,
}

impl Extent {
    /// Features with their padding.
    pub fn width(self) -> usize {
        self.features.next_multiple_of(PAD)
    }

    /// Panics unless panels of these lengths hold every row in use.
    pub fn check(self, lens: &[usize]) {
        assert!(self.features <= PANEL && lens.iter().all(|&n| n >= self.rows * PANEL));
    }
}

/// The widths of one call, padded for the ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// D.
    pub head_dim: usize,
    /// E.
    pub value_dim: usize,
    /// Projections of one row: the number of directions.
    pub projections: usize,
    /// Features of one projection: 2 for cosine and sine, else 1.
    pub features_per_projection: usize,
}

impl Layout {
    /// D with padding.
    pub fn padded_head(&self) -> usize {
        self.head_dim.next_multiple_of(PAD)
    }

    /// Distance between two rows of inputs: D, then one column for the norm.
    pub fn input_row(&self) -> usize {
        self.padded_head() + PAD
    }

    /// E with padding; the column with this index holds the one that follows the values.
    pub fn padded_value(&self) -> usize {
        self.value_dim.next_multiple_of(PAD)
    }

    /// Distance between two rows of values: E, padding, then the one.
    pub fn value_row(&self) -> usize {
        self.padded_value() + PAD
    }

    /// Panels of projections.
    pub fn projection_panels(&self) -> usize {
        self.projections.div_ceil(PANEL)
    }

    /// Panels of features; with two features per projection all cosines come first, then all sines.
    pub fn feature_panels(&self) -> usize {
        self.projection_panels() * self.features_per_projection
    }

    /// The part of a feature panel that is in use.
    pub fn extent(&self, panel: usize, rows: usize) -> Extent {
        let start = panel % self.projection_panels() * PANEL;
        Extent { rows, features: PANEL.min(self.projections - start) }
    }

    /// The features of `0..F` that a panel holds.
    pub fn features_of(&self, panel: usize) -> std::ops::Range<usize> {
        let (copy, start) = (panel / self.projection_panels(), panel % self.projection_panels() * PANEL);
        let first = copy * self.projections + start;
        first..first + self.extent(panel, 1).features
    }

    /// Where feature f of `0..F` lies among all lanes of all panels.
    pub fn place(&self, feature: usize) -> usize {
        let (copy, projection) = (feature / self.projections, feature % self.projections);
        copy * self.projection_panels() * PANEL + projection
    }

    /// D^-1/4, the scale of queries and of keys.
    pub fn input_scale(&self) -> f64 {
        (self.head_dim as f64).powf(-0.25)
    }
}
