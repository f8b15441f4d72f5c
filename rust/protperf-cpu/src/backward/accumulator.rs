//! Gradient rows that several query heads add to, rounded once.

use crate::stored::{CpuStored, nan};
use protperf_core::{Element, Result, try_filled};

/// Rows `[rows, width]` of an output. Sums of several heads in a type of 16 bits are kept wide until the end, for each
/// rounding would lose what the next head adds.
pub struct Accumulator<'a, S: CpuStored> {
    out: &'a mut [S],
    width: usize,
    wide: Option<Vec<S::Compute>>,
}

impl<'a, S: CpuStored> Accumulator<'a, S> {
    /// Zeros, to which `num_heads` heads will add.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(out: &'a mut [S], width: usize, num_heads: usize) -> Result<Self> {
        out.fill(S::default());
        let is_wide = !S::IS_COMPUTED && num_heads > 1;
        let wide = if is_wide { Some(try_filled(out.len(), S::Compute::default())?) } else { None };
        Ok(Accumulator { out, width, wide })
    }

    /// Adds `from * scale` to a row.
    pub fn add(&mut self, row: usize, from: &[S::Compute], scale: S::Compute) {
        let range = row * self.width..(row + 1) * self.width;
        match &mut self.wide {
            Some(wide) => wide[range].iter_mut().zip(from).for_each(|(to, &x)| *to += x * scale),
            None => self.out[range].iter_mut().zip(from).for_each(|(to, &x)| *to = S::round(to.widen() + x * scale)),
        }
    }

    /// Makes a row NaN.
    pub fn fill_with_nan(&mut self, row: usize) {
        let range = row * self.width..(row + 1) * self.width;
        match &mut self.wide {
            Some(wide) => wide[range].fill(S::Compute::from_f64(f64::NAN)),
            None => self.out[range].fill(nan()),
        }
    }

    /// Rounds what is still wide.
    pub fn finish(self) {
        if let Some(wide) = self.wide {
            self.out.iter_mut().zip(wide).for_each(|(to, x)| *to = S::round(x));
        }
    }
}
