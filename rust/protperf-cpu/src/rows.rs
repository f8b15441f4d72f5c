//! Rows of one chunk on one side of the attention: what was loaded and, after the projection, what it became.
//! `docs/algorithm.md`, section 1.

use crate::aligned::Aligned;
use crate::layout::{CHUNK, Layout, PANEL};
use crate::ops::CpuElement;
use protperf_core::{Result, try_filled};

/// Up to [`CHUNK`] rows of one side.
pub struct ChunkRows<T> {
    /// Inputs `[CHUNK][input_row]`: the row, then, in column D, minus the term of the norm (exponential keys).
    pub x: Aligned<T>,
    /// Projections in panels, `[panel][CHUNK][PANEL]`: log-features in bits, plain projections, or cosines and sines.
    pub y: Aligned<T>,
    /// The largest exponent of the row in bits where all features share one reference, else 0: of its own factor
    /// (trigonometric keys) or of its largest feature (activation).
    pub log: Aligned<T>,
    /// 2 to the fraction of `log`.
    pub mantissa: Aligned<T>,
    /// Integer exponent that is subtracted from every feature of the row.
    pub shift: Aligned<T>,
    /// False: the row is padding and counts as absent.
    pub visible: Vec<bool>,
    /// What the row carries, `[CHUNK][value_row]`: a value and a one, or the cotangents of both.
    pub values_and_one: Aligned<T>,
    /// False: the row's input holds a number that is not finite.
    pub finite: Vec<bool>,
    /// One row, or two rows of the width of the output, gathered or widened from the caller's memory.
    pub gathered: Aligned<T>,
}

impl<T: CpuElement> ChunkRows<T> {
    /// Room for one chunk.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(layout: &Layout) -> Result<Self> {
        Ok(ChunkRows {
            x: Aligned::filled(CHUNK * layout.input_row(), T::ZERO)?,
            y: Aligned::filled(layout.feature_panels() * CHUNK * PANEL, T::ZERO)?,
            log: Aligned::filled(CHUNK, T::ZERO)?,
            mantissa: Aligned::filled(CHUNK, T::ONE)?,
            shift: Aligned::filled(CHUNK, T::ZERO)?,
            visible: try_filled(CHUNK, true)?,
            values_and_one: Aligned::filled(CHUNK * layout.value_row(), T::ZERO)?,
            finite: try_filled(CHUNK, true)?,
            gathered: Aligned::filled(layout.padded_head().max(2 * layout.padded_value()), T::ZERO)?,
        })
    }

    /// Makes a row count as absent.
    pub fn drop_row(&mut self, layout: &Layout, row: usize) {
        self.visible[row] = false;
        self.x[row * layout.input_row()..][..layout.input_row()].fill(T::ZERO);
        self.values_and_one[row * layout.value_row()..][..layout.value_row()].fill(T::ZERO);
        self.log[row] = T::ZERO;
        self.mantissa[row] = T::ONE;
    }

    /// The projections of one panel, `[CHUNK][PANEL]`.
    pub fn panel(&self, panel: usize) -> &[T] {
        &self.y[panel * CHUNK * PANEL..][..CHUNK * PANEL]
    }
}
