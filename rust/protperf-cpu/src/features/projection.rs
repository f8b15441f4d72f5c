//! The product of inputs and directions that every family starts from.

use crate::layout::{CHUNK, PANEL};
use crate::ops::{CpuElement, Mode, Product, Triangle};
use crate::packed_omega::Head;
use crate::rows::Side;

/// `y = x . w^T + c` in panels, over the first `depth` columns of the inputs `[CHUNK][input_row]`.
pub fn project_panels<T: CpuElement>(head: &Head<'_, T>, side: Side, x: &[T], y: &mut [T], count: usize, depth: usize) {
    let (layout, columns) = (&head.layout, &head.omega.directions(side).columns);
    for panel in 0..layout.projection_panels() {
        let to = &mut y[panel * CHUNK * PANEL..][..CHUNK * PANEL];
        let constants = head.omega.constants(side).map(|constants| &constants[panel * PANEL..][..PANEL]);
        if let Some(constants) = constants {
            to.chunks_exact_mut(PANEL).take(count).for_each(|row| row.copy_from_slice(constants));
        }
        let product = Product {
            a: x,
            a_row: layout.input_row(),
            a_depth: 1,
            b: &columns[panel * (layout.head_dim + 1) * PANEL..],
            b_row: PANEL,
            rows: count,
            cols: layout.extent(panel, count).width(),
            depth,
            mode: if constants.is_some() { Mode::Continue } else { Mode::Store },
            triangle: Triangle::Whole,
        };
        head.ops.product(&product, to, PANEL);
    }
}
