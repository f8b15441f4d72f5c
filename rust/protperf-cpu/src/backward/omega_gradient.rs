//! The gradient of omega: sums of what the tasks found for the directions, in the order of the tasks.

use crate::call::Call;
use crate::ops::CpuElement;
use protperf_core::{MapGradients, Parameters, Result, try_filled, try_reserved};

/// The gradient of the directions that one task has summed, with the head it belongs to.
pub type DirectionGradient<T> = Option<(usize, Vec<T>)>;

/// Sums over the tasks, in f64.
pub struct OmegaGradient {
    head_dim: usize,
    padded_head: usize,
    /// Of each matrix of omega.
    totals: Vec<Vec<f64>>,
}

impl OmegaGradient {
    /// Zeros, or nothing where no gradient of omega is wanted.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new<T: CpuElement>(call: &Call<'_, T>, wanted: bool) -> Result<Self> {
        let (head_dim, padded_head) = (call.layout.head_dim, call.layout.padded_head());
        let count = if wanted { call.num_matrices() } else { 0 };
        let totals = (0..count).map(|_| try_filled(call.layout.projections * head_dim, 0.0));
        Ok(OmegaGradient { head_dim, padded_head, totals: totals.collect::<Result<_>>()? })
    }

    /// Adds what tasks have found.
    pub fn add<T: CpuElement>(&mut self, found: impl IntoIterator<Item = (usize, Vec<T>)>) {
        let is_shared = self.totals.len() == 1;
        for (head, gradient) in found {
            let total = self.totals[if is_shared { 0 } else { head }].chunks_exact_mut(self.head_dim);
            for (total, row) in total.zip(gradient.chunks_exact(self.padded_head)) {
                total.iter_mut().zip(row).for_each(|(total, x)| *total += x.to_f64());
            }
        }
    }

    /// Carries the gradient on from the directions, as the chunks use them, to omega.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn store<T: CpuElement>(mut self, call: &Call<'_, T>, domega: &mut [f64]) -> Result<()> {
        let scale = call.layout.input_scale();
        self.totals.iter_mut().flatten().for_each(|x| *x *= scale);
        let mut sets = try_reserved(self.totals.len())?;
        sets.extend(self.totals.into_iter().map(Parameters::of_directions));
        call.args.map.write_gradients(&sets, MapGradients::Omega(domega))
    }
}
