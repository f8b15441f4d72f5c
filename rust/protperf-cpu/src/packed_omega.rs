//! The parameters of one head's feature map, packed into the panels that the products read.
//!
//! An exponential map is a log-linear record: directions, a quadratic on the key side and a constant per feature and
//! side (`docs/algorithm.md`, section 2). The maps of the other families are directions alone.

use crate::aligned::Aligned;
use crate::layout::{Layout, PANEL};
use crate::ops::{CpuElement, Ops};
use crate::products::{PackedDirections, Products};
use protperf_core::{Parameters, Result, Side, try_filled};

/// Packed directions of one side.
pub struct Directions<T> {
    /// What a projection multiplies with, as [`Ops::pack_directions`] lays it out.
    pub columns: Aligned<T>,
    /// `[panel][PANEL][padded D]`: directions times D^-1/4, for gradients of inputs.
    pub rows: Aligned<T>,
    /// The columns as products that are rounded read them.
    pub tiles: PackedDirections,
}

/// Packed parameters of one head.
pub struct PackedOmega<T> {
    query_directions: Directions<T>,
    /// `None`: those of the queries.
    key_directions: Option<Directions<T>>,
    query_constants: Option<Vec<T>>,
    key_constants: Option<Vec<T>>,
    /// `[padded D]`, factors of the squares in the norm of a key; `None`: 1.
    pub key_quadratic: Option<Vec<T>>,
}

impl<T: CpuElement> PackedOmega<T> {
    /// Packs the parameters of a head; projections come out in units of `unit` (log2 e: in bits), and are made of rounded factors
    /// where products are.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn pack(
        ops: &Ops<T>,
        parameters: &Parameters<Vec<f64>>,
        layout: &Layout,
        unit: f64,
        is_rounded: bool,
    ) -> Result<Self> {
        let Parameters { query_directions, key_directions, key_quadratic, query_constants, key_constants } = parameters;
        let directions = |from: &Vec<f64>| Directions::pack(ops, from, layout, unit, is_rounded);
        let constants = |from: &Vec<f64>| padded(from, unit, layout.projection_panels() * PANEL);
        Ok(PackedOmega {
            query_directions: directions(query_directions)?,
            key_directions: key_directions.as_ref().map(directions).transpose()?,
            query_constants: query_constants.as_ref().map(constants).transpose()?,
            key_constants: key_constants.as_ref().map(constants).transpose()?,
            key_quadratic: key_quadratic.as_ref().map(|g| padded(g, 1.0, layout.padded_head())).transpose()?,
        })
    }

    /// Directions of a side.
    pub fn directions(&self, side: Side) -> &Directions<T> {
        match (side, &self.key_directions) {
            (Side::Key, Some(directions)) => directions,
            _ => &self.query_directions,
        }
    }

    /// Constants of a side in units of the projections, `[panel][PANEL]`; `None`: 0.
    pub fn constants(&self, side: Side) -> Option<&[T]> {
        match side {
            Side::Query => self.query_constants.as_deref(),
            Side::Key => self.key_constants.as_deref(),
        }
    }

    /// Whether every packed number is finite.
    pub fn is_finite(&self, ops: &Ops<T>) -> bool {
        let directions = [Some(&self.query_directions), self.key_directions.as_ref()].into_iter().flatten();
        let others = [&self.query_constants, &self.key_constants, &self.key_quadratic].into_iter().flatten();
        directions.flat_map(Directions::slices).chain(others.map(Vec::as_slice)).all(|field| ops.largest(field).1)
    }

    /// Whether both sides have the same directions and no constants: what most maps are.
    pub fn is_shared(&self) -> bool {
        self.key_directions.is_none() && self.query_constants.is_none() && self.key_constants.is_none()
    }

    /// How many numbers it holds.
    pub fn num_elements(&self) -> usize {
        let directions = [Some(&self.query_directions), self.key_directions.as_ref()].into_iter().flatten();
        let others = [&self.query_constants, &self.key_constants, &self.key_quadratic].into_iter().flatten();
        directions.flat_map(Directions::slices).chain(others.map(Vec::as_slice)).map(<[T]>::len).sum()
    }

    /// Whether gradients of other parameters have the sizes of these.
    pub fn has_sizes_of(&self, gradient: &ParameterGradient<T>) -> bool {
        let of = |field: &Option<Vec<T>>| field.as_ref().map(Vec::len);
        let keys = self.key_directions.as_ref().map(|keys| keys.rows.len());
        gradient.query_directions.len() == self.query_directions.rows.len()
            && of(&gradient.key_directions) == keys
            && of(&gradient.key_quadratic) == of(&self.key_quadratic)
            && of(&gradient.query_constants) == of(&self.query_constants)
            && of(&gradient.key_constants) == of(&self.key_constants)
    }

    /// Gradients to be summed, all 0; only of the parameters that are there.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn zero_gradient(&self) -> Result<ParameterGradient<T>> {
        let of_rows = |directions: &Directions<T>| try_filled(directions.rows.len(), T::ZERO);
        let zeros = |field: &Vec<T>| try_filled(field.len(), T::ZERO);
        Ok(ParameterGradient {
            query_directions: of_rows(&self.query_directions)?,
            key_directions: self.key_directions.as_ref().map(of_rows).transpose()?,
            key_quadratic: self.key_quadratic.as_ref().map(zeros).transpose()?,
            query_constants: self.query_constants.as_ref().map(zeros).transpose()?,
            key_constants: self.key_constants.as_ref().map(zeros).transpose()?,
        })
    }
}

impl<T: CpuElement> Directions<T> {
    fn slices(&self) -> [&[T]; 2] {
        [&self.columns, &self.rows]
    }

    fn pack(ops: &Ops<T>, directions: &[f64], layout: &Layout, unit: f64, is_rounded: bool) -> Result<Self> {
        let (d, panels) = (layout.head_dim, layout.projection_panels());
        let mut columns = Aligned::filled(panels * (1 + d) * PANEL, T::ZERO)?;
        ops.pack_directions(directions, d, layout.input_scale() * unit, &mut columns);
        let mut rows = Aligned::filled(panels * PANEL * layout.padded_head(), T::ZERO)?;
        for (row, direction) in rows.chunks_exact_mut(layout.padded_head()).zip(directions.chunks_exact(d)) {
            row.iter_mut().zip(direction).for_each(|(to, &w)| *to = T::from_f64(w * layout.input_scale()));
        }
        let tiles = PackedDirections::pack(&columns, layout, is_rounded)?;
        Ok(Directions { columns, rows, tiles })
    }
}

/// Numbers times `unit`, followed by zeros.
fn padded<T: CpuElement>(from: &[f64], unit: f64, len: usize) -> Result<Vec<T>> {
    let mut to = try_filled(len, T::ZERO)?;
    to.iter_mut().zip(from).for_each(|(to, &x)| *to = T::from_f64(x * unit));
    Ok(to)
}

/// Gradients of packed parameters, with respect to inputs as they were loaded: before the scale D^-1/4.
pub type ParameterGradient<T> = Parameters<Vec<T>>;

/// Where the gradients of a side's directions are summed.
pub fn directions_of<T>(gradient: &mut ParameterGradient<T>, side: Side) -> &mut [T] {
    match (side, &mut gradient.key_directions) {
        (Side::Key, Some(directions)) => directions,
        _ => &mut gradient.query_directions,
    }
}

/// Where the gradients of a side's constants are summed; `None` where the side has none.
pub fn constants_of<T>(gradient: &mut ParameterGradient<T>, side: Side) -> Option<&mut [T]> {
    match side {
        Side::Query => gradient.query_constants.as_deref_mut(),
        Side::Key => gradient.key_constants.as_deref_mut(),
    }
}

/// What is fixed for every chunk of one head.
#[derive(Clone, Copy)]
pub struct Head<'a, T: CpuElement> {
    /// The ops of the chosen instruction set.
    pub ops: &'static Ops<T>,
    /// How its products are computed.
    pub products: Products<'a, T>,
    /// Its parameters.
    pub omega: &'a PackedOmega<T>,
    /// The widths of the call.
    pub layout: Layout,
}
