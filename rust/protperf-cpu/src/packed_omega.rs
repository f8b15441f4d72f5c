//! The directions of one head, packed once per call into the panels that the products read.

use crate::layout::{Layout, PANEL};
use crate::ops::{CpuElement, Ops};
use protperf_core::{FavorArgs, Result, try_filled};

/// Packed directions.
pub struct PackedOmega<T> {
    /// `[panel][D + 1][PANEL]`: the scaled directions transposed, then a row of ones for the norm. The norm comes last
    /// because it can be far larger than the products: added first, each product would round to its last place.
    pub columns: Vec<T>,
    /// `[panel][PANEL][padded D]`: directions times D^-1/4, for gradients of inputs.
    pub rows: Vec<T>,
}

impl<T: CpuElement> PackedOmega<T> {
    /// Packs the directions of a head; projections come out in units of `unit` (log2 e: in bits).
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn pack(args: &FavorArgs<'_, T>, layout: &Layout, unit: f64, head: usize) -> Result<Self> {
        let d = layout.head_dim;
        let directions = args.map.parameters(head, d)?.query_directions;
        let panels = layout.projection_panels();
        let mut columns = try_filled(panels * (1 + d) * PANEL, T::ZERO)?;
        let mut rows = try_filled(panels * PANEL * layout.padded_head(), T::ZERO)?;
        let (scale, input_scale) = (layout.input_scale() * unit, layout.input_scale());
        for (m, direction) in directions.chunks_exact(d).enumerate() {
            let (panel, lane) = (m / PANEL, m % PANEL);
            let column = &mut columns[panel * (1 + d) * PANEL..][..(1 + d) * PANEL];
            column[d * PANEL + lane] = T::ONE;
            for (j, &w) in direction.iter().enumerate() {
                column[j * PANEL + lane] = T::from_f64(w * scale);
                rows[m * layout.padded_head() + j] = T::from_f64(w * input_scale);
            }
        }
        Ok(PackedOmega { columns, rows })
    }
}

/// What is fixed for every chunk of one head.
#[derive(Clone, Copy)]
pub struct Head<'a, T: CpuElement> {
    /// The ops of the chosen instruction set.
    pub ops: &'static Ops<T>,
    /// Its directions.
    pub omega: &'a PackedOmega<T>,
    /// The widths of the call.
    pub layout: Layout,
}
