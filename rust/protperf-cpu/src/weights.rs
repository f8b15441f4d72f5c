//! One head's directions, packed once a call into the panels that the products read.

use crate::ops::{CpuElement, Extent, PAD, PANEL};
use crate::workspace::try_filled;
use protperf_core::{Family, FavorArgs, FavorShape, FeatureMap, Result};

/// Widths of one call, padded as the passes want them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// The map.
    pub map: FeatureMap,
    /// D.
    pub head_dim: usize,
    /// E.
    pub value_dim: usize,
    /// Projections a head computes: rows of the weights.
    pub projections: usize,
    /// F.
    pub features: usize,
}

impl Widths {
    /// The widths of a checked call.
    pub fn new(map: FeatureMap, shape: &FavorShape) -> Self {
        Widths {
            map,
            head_dim: shape.head_dim,
            value_dim: shape.value_dim,
            projections: map.num_projections(shape.num_features),
            features: shape.feature_dim,
        }
    }
    /// D with padding.
    pub fn padded_head(&self) -> usize {
        self.head_dim.next_multiple_of(PAD)
    }
    /// Distance of two rows of inputs: D, then one column for the norm.
    pub fn input_row(&self) -> usize {
        self.padded_head() + PAD
    }
    /// E with padding; the column at this index holds the payload's last entry.
    pub fn padded_value(&self) -> usize {
        self.value_dim.next_multiple_of(PAD)
    }
    /// Distance of two rows of payload: E, padding, then the last entry.
    pub fn payload_row(&self) -> usize {
        self.padded_value() + PAD
    }
    /// Panels of projections.
    pub fn projection_panels(&self) -> usize {
        self.projections.div_ceil(PANEL)
    }
    /// Panels of features: cosines, then sines, for the trigonometric map.
    pub fn panels(&self) -> usize {
        let trigonometric = self.map.family() == Family::Trigonometric;
        self.projection_panels() * if trigonometric { 2 } else { 1 }
    }
    /// Rows and features of a feature panel.
    pub fn extent(&self, panel: usize, rows: usize) -> Extent {
        let start = panel % self.projection_panels() * PANEL;
        Extent { rows, features: PANEL.min(self.projections - start) }
    }
    /// Panel and lane of feature f in `0..features`.
    pub fn place(&self, feature: usize) -> usize {
        let (half, m) = (feature / self.projections, feature % self.projections);
        half * self.projection_panels() * PANEL + m
    }
    /// The sweeps' own scale of a projection: bits for exponentials.
    pub fn projection_scale(&self) -> f64 {
        let unit = if self.map.family() == Family::Exponential { std::f64::consts::LOG2_E } else { 1.0 };
        self.input_scale() * unit
    }
    /// D^-1/4, on queries and keys.
    pub fn input_scale(&self) -> f64 {
        (self.head_dim as f64).powf(-0.25)
    }
}

/// Packed directions of one head.
pub struct Weights<E> {
    /// `[panel][D + 1][PANEL]`: the scaled directions transposed, then a row of ones for the norm. The norm comes last
    /// because it may be far larger than the products, which would round to its last place one after another.
    pub columns: Vec<E>,
    /// `[panel][PANEL][padded D]`: directions times D^-1/4, for gradients of inputs.
    pub rows: Vec<E>,
}

impl<E: CpuElement> Weights<E> {
    /// Packs the directions of a head.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn pack(args: &FavorArgs<'_, E>, widths: &Widths, head: usize) -> Result<Self> {
        let d = widths.head_dim;
        let directions = match &args.omega {
            Some(omega) => {
                let mut directions = try_filled(widths.projections * d, 0.0)?;
                widths.map.write_weights(omega.head(head), d, &mut directions);
                directions
            }
            None => {
                let mut identity = try_filled(d * d, 0.0)?;
                identity.iter_mut().step_by(d + 1).for_each(|x| *x = 1.0);
                identity
            }
        };
        let panels = widths.projection_panels();
        let mut columns = try_filled(panels * (1 + d) * PANEL, E::ZERO)?;
        let mut rows = try_filled(panels * PANEL * widths.padded_head(), E::ZERO)?;
        let (scale, input_scale) = (widths.projection_scale(), widths.input_scale());
        for (m, direction) in directions.chunks_exact(d).enumerate() {
            let (panel, lane) = (m / PANEL, m % PANEL);
            let column = &mut columns[panel * (1 + d) * PANEL..][..(1 + d) * PANEL];
            column[d * PANEL + lane] = E::ONE;
            for (j, &w) in direction.iter().enumerate() {
                column[j * PANEL + lane] = E::from_f64(w * scale);
                rows[m * widths.padded_head() + j] = E::from_f64(w * input_scale);
            }
        }
        Ok(Weights { columns, rows })
    }
}
