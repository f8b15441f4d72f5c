//! The gradients of the map's parameters: sums of what the tasks found, in the order of the tasks.
//! `docs/algorithm.md`, section 7, the gradients of w, c and g.

use crate::call::Call;
use crate::layout::{Layout, PANEL};
use crate::packed_omega::ParameterGradient;
use crate::stored::CpuStored;
use protperf_core::{Element, MapGradients, Parameters, Result};

/// What one task has summed, with the head it belongs to; `None` where it is not wanted.
pub type OfTask<T> = Option<(usize, ParameterGradient<T>)>;

/// Sums over the tasks, in f64, for each set of parameters.
pub struct ParameterSums {
    layout: Layout,
    sets: Vec<Parameters<Vec<f64>>>,
}

impl ParameterSums {
    /// Zeros, or nothing where no gradient of the parameters is wanted.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new<S: CpuStored>(call: &Call<'_, S>, is_wanted: bool) -> Result<Self> {
        let (map, layout) = (&call.args.map, call.layout);
        let sets = 0..if is_wanted { map.num_sets() } else { 0 };
        let sets = sets.map(|set| map.parameters(set, layout.head_dim)?.zeros_like()).collect::<Result<_>>()?;
        Ok(ParameterSums { layout, sets })
    }

    /// Adds what tasks have found.
    pub fn add<S: CpuStored>(
        &mut self,
        call: &Call<'_, S>,
        found: impl IntoIterator<Item = (usize, ParameterGradient<S::Compute>)>,
    ) {
        for (head, gradient) in found {
            let total = &mut self.sets[call.args.map.set_of(head)];
            let fields = gradient.named().into_iter().filter_map(|(name, field)| Some((name, field?)));
            for (total, (name, packed)) in total.fields_mut().zip(fields) {
                let (step, width) = packed_rows(&self.layout, name);
                for (total, packed) in total.chunks_exact_mut(width).zip(packed.chunks_exact(step)) {
                    total.iter_mut().zip(packed).for_each(|(total, x)| *total += x.to_f64());
                }
            }
        }
    }

    /// Carries the gradients on from the parameters, as the chunks use them, to what they are made from.
    ///
    /// # Errors
    /// As [`protperf_core::MapArgs::write_gradients`].
    pub fn store<S: CpuStored>(mut self, call: &Call<'_, S>, to: MapGradients<'_>) -> Result<()> {
        let scale = self.layout.input_scale();
        for set in &mut self.sets {
            let directions = [Some(&mut set.query_directions), set.key_directions.as_mut()];
            directions.into_iter().flatten().flatten().for_each(|x| *x *= scale);
        }
        call.args.map.write_gradients(&self.sets, to)
    }
}

/// Distance and width of the rows of a packed field.
fn packed_rows(layout: &Layout, name: &str) -> (usize, usize) {
    match name {
        "query_constants" | "key_constants" => (layout.projection_panels() * PANEL, layout.projections),
        _ => (layout.padded_head(), layout.head_dim),
    }
}
