//! The passes that the sweeps are made of, compiled once for every ISA and type.
//!
//! [`Ops`] is a table of functions; its entries are `unsafe` only because they need their ISA, and [`Ops::of`]
//! hands out a table only where the processor has it.

pub mod feature;
pub mod product;
pub mod row;

use crate::dispatch::Isa;
use crate::simd::{self, Real, Simd};
pub use feature::{Extent, PAD, PANEL};
pub use product::{Mode, Part, Product};
use protperf_core::FeatureMap;
pub use row::sum_of;

/// The passes of one ISA and type.
#[allow(clippy::type_complexity)]
pub struct Ops<E: Real> {
    product: unsafe fn(&Product<'_, E>, &mut [E], usize),
    raise_reference: unsafe fn(&[E], Extent, &[bool], &[E], &mut [E]),
    writer_features: unsafe fn(&[E], Extent, &[bool], &[E], &[E], &mut [E]),
    reader_top: unsafe fn(&[E], Extent, &[E], &mut [E]),
    reader_features: unsafe fn(&[E], Extent, &[E], &[E], &mut [E]),
    scale_rows: unsafe fn(&[E], Extent, &[E], &mut [E]),
    activate: unsafe fn(&[E], Extent, FeatureMap, E, &mut [E]),
    activation_gradient: unsafe fn(&[E], Extent, FeatureMap, &[E], &mut [E]),
    times_features: unsafe fn(&[E], Extent, &mut [E], &mut [E]),
    dot_rows: unsafe fn(&[E], Extent, &[E], &mut [E]),
    add_rows: unsafe fn(&[E], Extent, &[E], usize, &mut [E]),
    rescale_rows: unsafe fn(&mut [E], usize, usize, &[E]),
    transpose: unsafe fn(&[E], usize, usize, usize, &mut [E], usize),
    load_row: unsafe fn(&[E], E, &mut [E]) -> (E, bool),
    largest: unsafe fn(&[E]) -> (E, bool),
    load_cotangent: unsafe fn(&[E], &[E], E, &mut [E]) -> E,
}

macro_rules! entry {
    ($(#[$attribute:meta])* $name:ident($($arg:ident: $t:ty),*) $(-> $result:ty)? = $body:path) => {
        $(#[$attribute])*
        unsafe fn $name<S: Simd>($($arg: $t),*) $(-> $result)? {
            // SAFETY: the table that holds this entry is handed out only where the ISA is present.
            unsafe { $body($($arg),*) }
        }
    };
}

macro_rules! entries {
    ($module:ident, $rows:literal, $cols:literal $(, $attribute:meta)?) => {
        mod $module {
            use super::*;
            entry!($(#[$attribute])? product(p: &Product<'_, S::E>, c: &mut [S::E], c_row: usize)
                = product::product::<S, $rows, $cols>);
            entry!($(#[$attribute])? raise_reference(y: &[S::E], e: Extent, live: &[bool], shift: &[S::E], reference: &mut [S::E])
                = feature::raise_reference::<S>);
            entry!($(#[$attribute])? writer_features(y: &[S::E], e: Extent, live: &[bool], shift: &[S::E], reference: &[S::E], to: &mut [S::E])
                = feature::writer_features::<S>);
            entry!($(#[$attribute])? reader_top(y: &[S::E], e: Extent, reference: &[S::E], top: &mut [S::E])
                = feature::reader_top::<S>);
            entry!($(#[$attribute])? reader_features(y: &[S::E], e: Extent, reference: &[S::E], shift: &[S::E], to: &mut [S::E])
                = feature::reader_features::<S>);
            entry!($(#[$attribute])? scale_rows(y: &[S::E], e: Extent, scale: &[S::E], to: &mut [S::E])
                = feature::scale_rows::<S>);
            entry!($(#[$attribute])? activate(y: &[S::E], e: Extent, map: FeatureMap, epsilon: S::E, to: &mut [S::E])
                = feature::activate::<S>);
            entry!($(#[$attribute])? activation_gradient(y: &[S::E], e: Extent, map: FeatureMap, scale: &[S::E], gradient: &mut [S::E])
                = feature::activation_gradient::<S>);
            entry!($(#[$attribute])? times_features(features: &[S::E], e: Extent, gradient: &mut [S::E], sums: &mut [S::E])
                = feature::times_features::<S>);
            entry!($(#[$attribute])? dot_rows(features: &[S::E], e: Extent, weights: &[S::E], sums: &mut [S::E])
                = feature::dot_rows::<S>);
            entry!($(#[$attribute])? add_rows(features: &[S::E], e: Extent, weight: &[S::E], step: usize, totals: &mut [S::E])
                = feature::add_rows::<S>);
            entry!($(#[$attribute])? rescale_rows(values: &mut [S::E], step: usize, width: usize, power: &[S::E])
                = feature::rescale_rows::<S>);
            entry!($(#[$attribute])? transpose(from: &[S::E], from_row: usize, rows: usize, cols: usize, to: &mut [S::E], to_row: usize)
                = feature::transpose::<S>);
            entry!($(#[$attribute])? load_row(from: &[S::E], limit: S::E, to: &mut [S::E]) -> (S::E, bool)
                = row::load_row::<S>);
            entry!($(#[$attribute])? largest(row: &[S::E]) -> (S::E, bool)
                = row::largest::<S>);
            entry!($(#[$attribute])? load_cotangent(grad: &[S::E], out: &[S::E], inverse: S::E, to: &mut [S::E]) -> S::E
                = row::load_cotangent::<S>);

            pub const fn table<S: Simd>() -> Ops<S::E> {
                Ops {
                    product: product::<S>,
                    raise_reference: raise_reference::<S>,
                    writer_features: writer_features::<S>,
                    reader_top: reader_top::<S>,
                    reader_features: reader_features::<S>,
                    scale_rows: scale_rows::<S>,
                    activate: activate::<S>,
                    activation_gradient: activation_gradient::<S>,
                    times_features: times_features::<S>,
                    dot_rows: dot_rows::<S>,
                    add_rows: add_rows::<S>,
                    rescale_rows: rescale_rows::<S>,
                    transpose: transpose::<S>,
                    load_row: load_row::<S>,
                    largest: largest::<S>,
                    load_cotangent: load_cotangent::<S>,
                }
            }
        }
    };
}

entries!(plain, 4, 2);
#[cfg(target_arch = "x86_64")]
entries!(wide, 6, 2, target_feature(enable = "avx2,fma"));
#[cfg(target_arch = "x86_64")]
entries!(widest, 6, 4, target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma"));

/// A type that has a table for every ISA.
pub trait CpuElement: Real {
    /// The table of an ISA.
    fn ops(isa: Isa) -> &'static Ops<Self>;
}

macro_rules! element {
    ($t:ty, $lanes:ident) => {
        impl CpuElement for $t {
            fn ops(isa: Isa) -> &'static Ops<Self> {
                static PLAIN: Ops<$t> = plain::table::<simd::scalar::$lanes>();
                #[cfg(target_arch = "x86_64")]
                {
                    static WIDE: Ops<$t> = wide::table::<simd::avx2::$lanes>();
                    static WIDEST: Ops<$t> = widest::table::<simd::avx512::$lanes>();
                    match isa {
                        Isa::Avx512 => return &WIDEST,
                        Isa::Avx2 => return &WIDE,
                        Isa::Scalar | Isa::Neon => {}
                    }
                }
                let _ = isa;
                &PLAIN
            }
        }
    };
}
element!(f32, F32);
element!(f64, F64);

/// Safe faces of the table's entries; each checks its slices.
#[allow(clippy::too_many_arguments)]
impl<E: CpuElement> Ops<E> {
    /// The table of an ISA.
    ///
    /// # Panics
    /// Where this processor lacks it.
    pub fn of(isa: Isa) -> &'static Ops<E> {
        assert!(Isa::available().contains(&isa), "this processor has no {}", isa.name());
        E::ops(isa)
    }

    pub fn product(&self, p: &Product<'_, E>, c: &mut [E], c_row: usize) {
        p.check(c.len(), c_row);
        // SAFETY: `of` checked the ISA, `check` the slices.
        unsafe { (self.product)(p, c, c_row) }
    }
    pub fn raise_reference(&self, y: &[E], e: Extent, live: &[bool], shift: &[E], reference: &mut [E]) {
        // SAFETY: `of` checked the ISA; so for all below.
        unsafe { (self.raise_reference)(y, e, live, shift, reference) }
    }
    pub fn writer_features(&self, y: &[E], e: Extent, live: &[bool], shift: &[E], reference: &[E], to: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.writer_features)(y, e, live, shift, reference, to) }
    }
    pub fn reader_top(&self, y: &[E], e: Extent, reference: &[E], top: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.reader_top)(y, e, reference, top) }
    }
    pub fn reader_features(&self, y: &[E], e: Extent, reference: &[E], shift: &[E], to: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.reader_features)(y, e, reference, shift, to) }
    }
    pub fn scale_rows(&self, y: &[E], e: Extent, scale: &[E], to: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.scale_rows)(y, e, scale, to) }
    }
    pub fn activate(&self, y: &[E], e: Extent, map: FeatureMap, epsilon: E, to: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.activate)(y, e, map, epsilon, to) }
    }
    pub fn activation_gradient(&self, y: &[E], e: Extent, map: FeatureMap, scale: &[E], gradient: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.activation_gradient)(y, e, map, scale, gradient) }
    }
    pub fn times_features(&self, features: &[E], e: Extent, gradient: &mut [E], sums: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.times_features)(features, e, gradient, sums) }
    }
    pub fn dot_rows(&self, features: &[E], e: Extent, weights: &[E], sums: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.dot_rows)(features, e, weights, sums) }
    }
    pub fn add_rows(&self, features: &[E], e: Extent, weight: &[E], step: usize, totals: &mut [E]) {
        // SAFETY: as above.
        unsafe { (self.add_rows)(features, e, weight, step, totals) }
    }
    pub fn rescale_rows(&self, values: &mut [E], step: usize, width: usize, power: &[E]) {
        // SAFETY: as above.
        unsafe { (self.rescale_rows)(values, step, width, power) }
    }
    pub fn transpose(&self, from: &[E], from_row: usize, rows: usize, cols: usize, to: &mut [E], to_row: usize) {
        // SAFETY: as above.
        unsafe { (self.transpose)(from, from_row, rows, cols, to, to_row) }
    }
    pub fn load_row(&self, from: &[E], limit: E, to: &mut [E]) -> (E, bool) {
        // SAFETY: as above.
        unsafe { (self.load_row)(from, limit, to) }
    }
    pub fn largest(&self, row: &[E]) -> (E, bool) {
        // SAFETY: as above.
        unsafe { (self.largest)(row) }
    }
    pub fn load_cotangent(&self, grad: &[E], out: &[E], inverse: E, to: &mut [E]) -> E {
        // SAFETY: as above.
        unsafe { (self.load_cotangent)(grad, out, inverse, to) }
    }
}
