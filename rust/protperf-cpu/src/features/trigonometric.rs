//! Trigonometric features, `phi(y) = [cos, sin](w_m . y) e^(|y|^2/2)`: `docs/algorithm.md`, section 4.
//!
//! The cosines and sines of a row share the factor of its norm, so all features share one reference, the largest
//! |y|^2/2 in bits. Sums can vanish or be negative: the map serves the reproduction of published figures.

use super::family::{Family, KeyPanel, Norm, QueryPanel};
use super::projection::project_panels;
use super::shared_reference as shared;
use crate::layout::{CHUNK, PAD, PANEL};
use crate::ops::CpuElement;
use crate::packed_omega::Head;
use crate::rows::ChunkRows;
use protperf_core::Side;
use std::ops::Range;

/// Sine and cosine features.
pub struct Trigonometric;

impl<T: CpuElement> Family<T> for Trigonometric {
    fn unit(&self) -> f64 {
        1.0
    }

    fn norm(&self) -> Norm {
        Norm { column: 0.0, log: 1.0 }
    }

    fn project(&self, head: &Head<'_, T>, rows: &mut ChunkRows<T>, count: usize, side: Side) {
        project_panels(head, side, &rows.x, &mut rows.y, count, false);
        let panels = head.layout.projection_panels();
        let (cosines, sines) = rows.y.split_at_mut(panels * CHUNK * PANEL);
        for panel in 0..panels {
            let extent = head.layout.extent(panel, count);
            for row in 0..count {
                let at = (panel * CHUNK + row) * PANEL;
                for lane in at..at + extent.features {
                    // Through f64: the angle has no bound, and f32 alone would lose its fraction.
                    let (sine, cosine) = cosines[lane].to_f64().sin_cos();
                    (cosines[lane], sines[lane]) = (T::from_f64(cosine), T::from_f64(sine));
                }
                cosines[at + extent.features..at + extent.width()].fill(T::ZERO);
                sines[at + extent.features..at + extent.width()].fill(T::ZERO);
            }
        }
    }

    fn raise_reference(&self, _head: &Head<'_, T>, keys: &ChunkRows<T>, count: usize, reference: &mut [T]) {
        shared::raise_reference(keys, count, reference);
    }

    fn key_features(&self, head: &Head<'_, T>, from: &KeyPanel<'_, T>, to: &mut [T]) {
        let keys = from.keys;
        let factors = shared::key_factors(keys, from.count, from.reference[0], |row| own_factor(keys, row));
        let extent = head.layout.extent(from.panel, from.count);
        head.ops.scale_rows(keys.panel(from.panel), extent, &factors, to);
    }

    fn row_tops(
        &self,
        _head: &Head<'_, T>,
        queries: &ChunkRows<T>,
        range: Range<usize>,
        reference: &[T],
        _lanes: &mut [T],
        tops: &mut [T],
    ) {
        shared::row_tops(queries, range, reference, tops);
    }

    fn query_features(&self, head: &Head<'_, T>, from: &QueryPanel<'_, T>, to: &mut [T]) {
        let range = from.range;
        let y = &from.queries.y[(from.panel * CHUNK + range.start) * PANEL..][..range.len() * PANEL];
        head.ops.scale_rows(y, head.layout.extent(from.panel, range.len()), &query_factors(from), to);
    }

    fn pull_back(
        &self,
        head: &Head<'_, T>,
        from: &QueryPanel<'_, T>,
        _features: &[T],
        gradient: &mut [T],
        norms: &mut [T],
    ) {
        let (range, factors) = (from.range, query_factors(from));
        let at = (from.panel * CHUNK + range.start) * PANEL;
        let cosines = &from.queries.y[at..];
        let sines = &from.queries.y[at + head.layout.projection_panels() * CHUNK * PANEL..];
        let features = head.layout.extent(from.panel, range.len()).features;
        let (of_cosines, of_sines) = gradient.split_at_mut(CHUNK * PANEL);
        for row in 0..range.len() {
            for i in row * PANEL..row * PANEL + features {
                let (by_cosine, by_sine) = (of_cosines[i] * factors[row], of_sines[i] * factors[row]);
                norms[row * PAD] += by_cosine * cosines[i] + by_sine * sines[i];
                of_cosines[i] = by_sine * cosines[i] - by_cosine * sines[i];
            }
        }
    }

    fn looks_too_far(&self, reference: T, seen: T) -> bool {
        shared::looks_too_far(reference, seen)
    }

    fn denominator_floor(&self) -> Option<T> {
        None
    }
}

/// The factor e^(|y|^2/2) of a row as a mantissa and an integer exponent.
fn own_factor<T: CpuElement>(rows: &ChunkRows<T>, row: usize) -> (T, T) {
    (rows.mantissa[row], rows.log[row].round_even())
}

fn query_factors<T: CpuElement>(from: &QueryPanel<'_, T>) -> [T; CHUNK] {
    shared::query_factors(from.range, from.reference[0], from.exponent, |row| own_factor(from.queries, row))
}
