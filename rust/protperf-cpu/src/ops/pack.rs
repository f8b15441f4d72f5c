//! How the right operand of a projection lies in memory: the choice of the instruction set, for its tiles read it.

use crate::layout::PANEL;
use crate::simd::{Real, Simd};
use protperf_core::Element;

/// Directions `[P,D]` times `scale` into `columns`, panels of `[D + 1][PANEL]`: transposed, then a row of ones for the
/// norm. The norm comes last because it can be far larger than the products: added first, each product would round to
/// its last place.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn directions<S: Simd>(directions: &[f64], head_dim: usize, scale: f64, columns: &mut [S::T]) {
    for (m, direction) in directions.chunks_exact(head_dim).enumerate() {
        let (panel, lane) = (m / PANEL, m % PANEL);
        let panel = &mut columns[panel * (head_dim + 1) * PANEL..][..(head_dim + 1) * PANEL];
        for (j, &w) in direction.iter().enumerate() {
            panel[j * PANEL + lane] = S::T::from_f64(w * scale);
        }
        panel[head_dim * PANEL + lane] = S::T::ONE;
    }
}
