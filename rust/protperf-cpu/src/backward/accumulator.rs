//! Gradient rows that several query heads add to, rounded once: `docs/algorithm.md`, section 1, on tensors of 16 bits.

use crate::out_rows::RowsMut;
use crate::stored::{CpuStored, nan};
use protperf_core::{Element, Result, try_filled};

/// Rows `[rows, width]` of an output. Sums of several heads in a type of 16 bits are kept wide until the end, for each
/// rounding would lose what the next head adds.
pub struct Accumulator<'a, S: CpuStored> {
    out: RowsMut<'a, S>,
    /// `[rows, width]`.
    wide: Option<Vec<S::Compute>>,
}

impl<'a, S: CpuStored> Accumulator<'a, S> {
    /// Zeros, to which `num_heads` heads will add.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(mut out: RowsMut<'a, S>, num_heads: usize) -> Result<Self> {
        out.fill(0..out.len(), S::default());
        let is_wide = !S::IS_COMPUTED && num_heads > 1;
        let wide = if is_wide { Some(try_filled(out.len() * out.width(), S::Compute::default())?) } else { None };
        Ok(Accumulator { out, wide })
    }

    /// Adds `from * scale` to a row.
    pub fn add(&mut self, row: usize, from: &[S::Compute], scale: S::Compute) {
        let width = self.out.width();
        match &mut self.wide {
            Some(wide) => wide[row * width..][..width].iter_mut().zip(from).for_each(|(to, &x)| *to += x * scale),
            None => self.out.row(row).iter_mut().zip(from).for_each(|(to, &x)| *to = S::round(to.widen() + x * scale)),
        }
    }

    /// Makes a row NaN.
    pub fn fill_with_nan(&mut self, row: usize) {
        let width = self.out.width();
        match &mut self.wide {
            Some(wide) => wide[row * width..][..width].fill(S::Compute::from_f64(f64::NAN)),
            None => self.out.row(row).fill(nan()),
        }
    }

    /// Rounds what is still wide.
    pub fn finish(mut self) {
        let width = self.out.width().max(1);
        for (row, wide) in self.wide.iter().flat_map(|wide| wide.chunks_exact(width)).enumerate() {
            self.out.row(row).iter_mut().zip(wide).for_each(|(to, &x)| *to = S::round(x));
        }
    }
}
