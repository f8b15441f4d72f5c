//! Activation features, `phi_m(x) = f(w_m . x) + epsilon`: `docs/algorithm.md`, section 3.
//!
//! They need no stabiliser but for huge inputs, where sums of products of two features could overflow. Such a row lends
//! its exponent to the one reference of all features, and its features lose that power of two; the reference of ordinary
//! rows is 0, and nothing is scaled.

use super::family::{Family, KeyPanel, Norm, QueryPanel};
use super::projection::project_panels;
use super::shared_reference as shared;
use crate::layout::{CHUNK, PANEL};
use crate::ops::CpuElement;
use crate::packed_omega::Head;
use crate::rows::ChunkRows;
use protperf_core::{Activation, Side};
use std::ops::Range;

/// Features above this lend their exponent to the reference.
const HUGE: f64 = (1u64 << 30) as f64;

/// One map of the family.
pub struct ActivationFeatures<T> {
    pub activation: Activation,
    pub epsilon: T,
}

impl<T: CpuElement> Family<T> for ActivationFeatures<T> {
    fn unit(&self) -> f64 {
        1.0
    }

    fn norm(&self) -> Norm {
        Norm { column: 0.0, log: 0.0 }
    }

    fn project(&self, head: &Head<'_, T>, rows: &mut ChunkRows<T>, count: usize, side: Side) {
        project_panels(head, side, &rows.x, &mut rows.y, count, false);
        let [power, below] = self.activation.growth();
        if power == 0 {
            return;
        }
        let mut tops = [T::ZERO; CHUNK];
        for panel in 0..head.layout.projection_panels() {
            head.ops.raise_tops(rows.panel(panel), head.layout.extent(panel, count), below != 0, &mut tops);
        }
        let huge = T::from_f64(if power == 2 { HUGE.sqrt() } else { HUGE });
        for (log, &top) in rows.log.iter_mut().zip(&tops).take(count).filter(|(_, top)| **top > huge) {
            let (exponent, _) = (if top > T::LIMIT { T::LIMIT } else { top }).frexp();
            let exponent = T::from_f64(f64::from(power)) * exponent;
            *log = if exponent > *log { exponent } else { *log };
        }
    }

    fn raise_reference(&self, _head: &Head<'_, T>, keys: &ChunkRows<T>, count: usize, reference: &mut [T]) {
        shared::raise_reference(keys, count, reference);
    }

    fn key_features(&self, head: &Head<'_, T>, from: &KeyPanel<'_, T>, to: &mut [T]) {
        let factors = shared::key_factors(from.keys, from.count, from.reference[0], |_| (T::ONE, T::ZERO));
        let extent = head.layout.extent(from.panel, from.count);
        head.ops.activate(from.keys.panel(from.panel), extent, self.activation, self.epsilon, &factors, to);
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
        let extent = head.layout.extent(from.panel, from.range.len());
        head.ops.activate(projections(from), extent, self.activation, self.epsilon, &query_factors(from), to);
    }

    fn pull_back(
        &self,
        head: &Head<'_, T>,
        from: &QueryPanel<'_, T>,
        _features: &[T],
        gradient: &mut [T],
        _norms: &mut [T],
    ) {
        let extent = head.layout.extent(from.panel, from.range.len());
        head.ops.activation_gradient(projections(from), extent, self.activation, &query_factors(from), gradient);
    }

    fn looks_too_far(&self, reference: T, seen: T) -> bool {
        shared::looks_too_far(reference, seen)
    }

    fn denominator_floor(&self) -> Option<T> {
        None
    }
}

fn projections<'a, T: CpuElement>(from: &QueryPanel<'a, T>) -> &'a [T] {
    &from.queries.y[(from.panel * CHUNK + from.range.start) * PANEL..][..from.range.len() * PANEL]
}

fn query_factors<T: CpuElement>(from: &QueryPanel<'_, T>) -> [T; CHUNK] {
    shared::query_factors(from.range, from.reference[0], from.exponent, |_| (T::ONE, T::ZERO))
}
