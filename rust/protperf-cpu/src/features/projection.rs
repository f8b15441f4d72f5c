//! The product of inputs and directions that every family starts from.

use crate::layout::{CHUNK, PANEL};
use crate::ops::{CpuElement, Mode, Product, Triangle};
use crate::packed_omega::Head;

/// `y = x . omega^T` in panels, over the first `depth` columns of the inputs `[CHUNK][input_row]`.
pub fn project_panels<T: CpuElement>(head: &Head<'_, T>, x: &[T], y: &mut [T], count: usize, depth: usize) {
    let layout = &head.layout;
    for panel in 0..layout.projection_panels() {
        let product = Product {
            a: x,
            a_row: layout.input_row(),
            a_depth: 1,
            b: &head.omega.columns[panel * (layout.head_dim + 1) * PANEL..],
            b_row: PANEL,
            rows: count,
            cols: layout.extent(panel, count).width(),
            depth,
            mode: Mode::Store,
            triangle: Triangle::Whole,
        };
        head.ops.product(&product, &mut y[panel * CHUNK * PANEL..], PANEL);
    }
}
