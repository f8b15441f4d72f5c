//! Exponential features, `phi_m(x) = 2^(log-feature in bits)`, one reference per feature: `docs/algorithm.md`,
//! section 2.
//!
//! ```text
//! a_im = wq_m . x_i + cq_m             queries: any factor of a query cancels, so its norm is not computed
//! b_jm = wk_m . y_j + ck_m - h(y_j)    keys: the norm is one more column of the product
//! h(y) = 1/2 sum_l g_l y_l^2           most maps have wq = wk, g = 1 and no constants
//! n_m  = max_j round(b_jm)             the reference of feature m
//! t_i  = max_m round(a_im + n_m)       the exponent of query row i
//! ```

use super::family::{Family, KeyPanel, Norm, QueryPanel};
use super::projection::project_panels;
use crate::layout::{CHUNK, PAD, PANEL};
use crate::ops::{CpuElement, largest_of};
use crate::packed_omega::Head;
use crate::rows::ChunkRows;
use protperf_core::Side;
use std::ops::Range;

/// Maps whose logarithm is linear in the input, up to the norm.
pub struct Exponential;

impl<T: CpuElement> Family<T> for Exponential {
    fn unit(&self) -> f64 {
        std::f64::consts::LOG2_E
    }

    fn norm(&self) -> Norm {
        Norm { column: -1.0, log: 0.0 }
    }

    fn project(&self, head: &Head<'_, T>, rows: &mut ChunkRows<T>, count: usize, side: Side) {
        // The column of the norm is part of the product for keys alone.
        project_panels(head, side, &rows.x, &mut rows.y, count, side == Side::Key);
    }

    fn raise_reference(&self, head: &Head<'_, T>, keys: &ChunkRows<T>, count: usize, reference: &mut [T]) {
        for (panel, reference) in reference.chunks_exact_mut(PANEL).enumerate() {
            let extent = head.layout.extent(panel, count);
            head.ops.raise_reference(keys.panel(panel), extent, &keys.visible, &keys.shift, reference);
        }
    }

    fn key_features(&self, head: &Head<'_, T>, from: &KeyPanel<'_, T>, to: &mut [T]) {
        let (keys, extent) = (from.keys, head.layout.extent(from.panel, from.count));
        let reference = &from.reference[from.panel * PANEL..][..PANEL];
        head.ops.exponential_keys(keys.panel(from.panel), extent, &keys.visible, &keys.shift, reference, to);
    }

    fn row_tops(
        &self,
        head: &Head<'_, T>,
        queries: &ChunkRows<T>,
        range: Range<usize>,
        reference: &[T],
        lanes: &mut [T],
        tops: &mut [T],
    ) {
        let lanes = &mut lanes[..range.len() * PAD];
        // Below every sum of a log-feature and a reference, those of a feature that has seen no key included.
        lanes.fill(T::EMPTY_REFERENCE + T::EMPTY_REFERENCE);
        for panel in 0..head.layout.feature_panels() {
            let y = &queries.y[(panel * CHUNK + range.start) * PANEL..][..range.len() * PANEL];
            head.ops.exponential_tops(y, head.layout.extent(panel, range.len()), &reference[panel * PANEL..], lanes);
        }
        for (top, lanes) in tops[range].iter_mut().zip(lanes.chunks_exact(PAD)) {
            *top = largest_of(lanes).round_even();
        }
    }

    fn query_features(&self, head: &Head<'_, T>, from: &QueryPanel<'_, T>, to: &mut [T]) {
        let (range, extent) = (from.range, head.layout.extent(from.panel, from.range.len()));
        let y = &from.queries.y[(from.panel * CHUNK + range.start) * PANEL..][..range.len() * PANEL];
        let reference = &from.reference[from.panel * PANEL..][..PANEL];
        head.ops.exponential_queries(y, extent, reference, &from.exponent[range.start..], to);
    }

    fn pull_back(
        &self,
        head: &Head<'_, T>,
        from: &QueryPanel<'_, T>,
        features: &[T],
        gradient: &mut [T],
        norms: &mut [T],
    ) {
        // d 2^a / d a = 2^a ln 2, and the unit of a is a bit: the two factors cancel.
        head.ops.times_features(features, head.layout.extent(from.panel, from.range.len()), gradient, norms);
    }

    fn looks_too_far(&self, _reference: T, _seen: T) -> bool {
        false
    }

    fn denominator_floor(&self) -> Option<T> {
        Some(T::exp2_int(-T::MAX_LOOKAHEAD_BITS))
    }
}
