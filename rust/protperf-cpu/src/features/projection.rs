//! The product of inputs and directions that every family starts from: `docs/algorithm.md`, section 1, "project".

use crate::layout::{CHUNK, PANEL};
use crate::ops::{CpuElement, Mode, Product, Triangle};
use crate::packed_omega::Head;
use protperf_core::Side;

/// `y = x . w^T + c` in panels, of inputs `[CHUNK][input_row]`; with `norms`, plus their column D.
pub fn project_panels<T: CpuElement>(head: &Head<'_, T>, side: Side, x: &[T], y: &mut [T], count: usize, norms: bool) {
    let (layout, directions) = (&head.layout, head.omega.directions(side));
    let mut inputs = None;
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
            b: &directions.columns[panel * (layout.head_dim + 1) * PANEL..],
            b_row: PANEL,
            rows: count,
            cols: layout.extent(panel, count).width(),
            depth: layout.head_dim,
            mode: if constants.is_some() { Mode::Continue } else { Mode::Store },
            triangle: Triangle::Whole,
        };
        let tiles = &directions.tiles;
        let inputs = inputs.get_or_insert_with(|| head.products.inputs(&product, norms));
        head.products.projection(inputs, tiles.of_panel(panel), norms, &product, to, PANEL);
    }
}
