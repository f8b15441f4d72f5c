//! The ops: passes over one panel, one row or one product, compiled once for every instruction set and type.
//!
//! An op is written twice: a generic function over the lanes of [`Simd`] in one of the files below, and one line in
//! [`each_op`]. The line makes the entry that enables the instruction set, the field of the table [`Ops`], its value
//! for every instruction set, and the safe method that calls it.

mod activation;
mod chosen;
mod classes;
mod dropout;
mod exponential;
mod formula;
mod gate;
mod heads;
mod norm;
mod pack;
mod panel;
mod product;
mod row;
mod softmax;
mod step;
mod transpose;

use crate::dispatch::Isa;
use crate::layout::Extent;
use crate::simd::{self, Real, Simd};
pub use product::{Mode, Product, Triangle};
use protperf_core::Activation;
pub use row::{StridedRows, largest_of, sum_of};
pub use step::Token;

/// The list of ops: hands `make` what it is given in front, then every op with its arguments over the type `T` and
/// the generic function that implements it.
macro_rules! each_op {
    ($make:ident $($front:tt)*) => { $make! { [$($front)*]
        product(p: &Product<'_, T>, c: &mut [T], c_row: usize) = product::product;
        raise_reference(y: &[T], extent: Extent, visible: &[bool], shift: &[T], reference: &mut [T])
            = exponential::raise_reference;
        exponential_keys(y: &[T], extent: Extent, visible: &[bool], shift: &[T], reference: &[T], features: &mut [T])
            = exponential::keys;
        exponential_tops(y: &[T], extent: Extent, reference: &[T], tops: &mut [T]) = exponential::tops;
        exponential_queries(y: &[T], extent: Extent, reference: &[T], shift: &[T], features: &mut [T])
            = exponential::queries;
        activate(y: &[T], extent: Extent, activation: Activation, epsilon: T, factor: &[T], features: &mut [T])
            = activation::activate;
        activation_gradient(y: &[T], extent: Extent, activation: Activation, factor: &[T], gradient: &mut [T])
            = activation::gradient;
        scale_rows(from: &[T], extent: Extent, factor: &[T], to: &mut [T]) = panel::scale_rows;
        times_features(features: &[T], extent: Extent, gradient: &mut [T], sums: &mut [T]) = panel::times_features;
        raise_tops(y: &[T], extent: Extent, of_magnitudes: bool, tops: &mut [T]) = panel::raise_tops;
        dot_rows(features: &[T], extent: Extent, column: &[T], sums: &mut [T]) = panel::dot_rows;
        add_rows(features: &[T], extent: Extent, factor: &[T], step: usize, totals: &mut [T]) = panel::add_rows;
        outer(factor: &[T], step: usize, row: &[T], rows: usize, to: &mut [T], to_row: usize) = panel::outer;
        rescale_rows(values: &mut [T], step: usize, width: usize, power: &[T]) = panel::rescale_rows;
        transpose(from: &[T], from_row: usize, rows: usize, cols: usize, to: &mut [T], to_row: usize)
            = transpose::transpose;
        pack_directions(directions: &[f64], head_dim: usize, scale: f64, columns: &mut [T]) = pack::directions;
        softmax(scores: &mut [T], extent: Extent, maxima: &mut [T], power: &mut [T], sums: &mut [T])
            = softmax::softmax;
        token(token: &Token<'_, T>, state: &mut [T], numerator: &mut [T]) = step::token;
        weights(scores: &mut [T], extent: Extent, shift: &[T]) = softmax::weights;
        multiply(by: &[T], extent: Extent, to: &mut [T]) = softmax::multiply;
        load_row(from: &[T], limit: T, to: &mut [T]) -> (T, bool) = row::load_row;
        load_rows(from: &StridedRows<'_, T>, scale: T, limit: T, to: &mut [T], to_step: usize) = row::load_rows;
        largest_of_rows(from: &[T], step: usize, width: usize, rows: usize) -> (T, bool) = row::largest_of_rows;
        weighted_squares(row: &[T], weights: &[T]) -> T = row::weighted_squares;
        largest(row: &[T]) -> (T, bool) = row::largest;
        load_cotangent(grad: &[T], out: &[T], out_scale: T, inverse: T, to: &mut [T]) -> T = row::load_cotangent;
        rms_norm(x: &[T], gain: &[T], epsilon: T, to: &mut [T]) -> T = norm::rms_norm;
        rms_norm_gradient(x: &[T], gain: &[T], inverse: T, grad: &[T], dx: &mut [T], dgain: &mut [T])
            = norm::rms_norm_gradient;
        unit_rotate(x: &mut [T], lengths: &[T], cosines: &[T], sines: &[T], inverses: &mut [T]) = heads::unit_rotate;
        unit_rotate_gradient(y: &[T], lengths: &[T], cosines: &[T], sines: &[T], inverses: &[T], grad: &mut [T], dlog: &mut [T])
            = heads::unit_rotate_gradient;
        gate(gate: &[T], up: &[T], to: &mut [T]) = gate::gate;
        gate_gradient(gate: &[T], up: &[T], grad: &[T], dgate: &mut [T], dup: &mut [T], value: &mut [T])
            = gate::gate_gradient;
        dropout(x: &mut [T], key: u64, threshold: u32, scale: T) = dropout::dropout;
        log_softmax(row: &mut [T], classes: usize, scratch: &mut [T]) -> T = classes::log_softmax;
        cross_entropy_gradient(row: &mut [T], classes: usize, target: usize, weight: T)
            = classes::cross_entropy_gradient;
        add(from: &[T], to: &mut [T]) = row::add;
        add_chosen(table: &[T], chosen: &[u32], totals: &mut [T]) = chosen::add_chosen;
    } };
}

/// The table of one type and its safe face.
macro_rules! table {
    ([] $($op:ident($($arg:ident: $arg_type:ty),*) $(-> $result:ty)? = $file:ident::$body:ident;)*) => {
        /// The ops of one instruction set and type.
        pub struct Ops<T: Real> {
            $($op: unsafe fn($($arg_type),*) $(-> $result)?,)*
        }

        impl<T: Real> std::fmt::Debug for Ops<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("Ops").finish_non_exhaustive()
            }
        }

        #[allow(clippy::too_many_arguments)]
        impl<T: CpuElement> Ops<T> {
            $(pub fn $op(&self, $($arg: $arg_type),*) $(-> $result)? {
                // SAFETY: `Ops::of` hands out this table only where the processor has its instruction set, and
                // every op checks the lengths of its slices before it touches them.
                unsafe { (self.$op)($($arg),*) }
            })*
        }
    };
}
each_op!(table);

/// The entries of one instruction set, each with its target features, and the table of them.
macro_rules! entries {
    ([$module:ident $attribute:meta] $($op:ident($($arg:ident: $arg_type:ty),*) $(-> $result:ty)? = $file:ident::$body:ident;)*) => {
        mod $module {
            use super::*;

            /// The table of the entries below.
            pub const fn table<T: Real, S: Simd<T = T>>() -> Ops<T> {
                Ops { $($op: $op::<T, S>,)* }
            }

            $(#[$attribute]
            #[allow(clippy::too_many_arguments)]
            unsafe fn $op<T: Real, S: Simd<T = T>>($($arg: $arg_type),*) $(-> $result)? {
                // SAFETY: the processor must have the instruction set of S; whoever calls an entry guarantees it.
                unsafe { $file::$body::<S>($($arg),*) }
            })*
        }
    };
}
// Lanes of plain arrays need no feature; the attribute only fills its place.
each_op!(entries baseline inline);
#[cfg(target_arch = "x86_64")]
each_op!(entries avx2 target_feature(enable = "avx2,fma"));
#[cfg(target_arch = "x86_64")]
each_op!(entries avx512 target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma"));

/// A type that has a table for every instruction set.
pub trait CpuElement: Real {
    /// The table of an instruction set.
    fn ops(isa: Isa) -> &'static Ops<Self>;
    /// The numbers themselves where they are f32, for what computes in no other type.
    fn as_f32(x: &[Self]) -> Option<&[f32]>;
    /// The same for writing.
    fn as_f32_mut(x: &mut [Self]) -> Option<&mut [f32]>;
}

macro_rules! element {
    ($t:ty, $lanes:ident, $some:expr, $some_mut:expr) => {
        impl CpuElement for $t {
            fn as_f32(x: &[Self]) -> Option<&[f32]> {
                $some(x)
            }

            fn as_f32_mut(x: &mut [Self]) -> Option<&mut [f32]> {
                $some_mut(x)
            }

            fn ops(isa: Isa) -> &'static Ops<Self> {
                static BASELINE: Ops<$t> = baseline::table::<$t, simd::scalar::$lanes>();
                #[cfg(target_arch = "x86_64")]
                {
                    static AVX2: Ops<$t> = avx2::table::<$t, simd::avx2::$lanes>();
                    static AVX512: Ops<$t> = avx512::table::<$t, simd::avx512::$lanes>();
                    #[cfg(feature = "emulate-avx512")]
                    static PAIRS: Ops<$t> = avx2::table::<$t, simd::pair::Pair<simd::avx2::$lanes>>();
                    match isa {
                        #[cfg(feature = "emulate-avx512")]
                        Isa::Avx512 if isa.is_emulated() => return &PAIRS,
                        Isa::Avx512 => return &AVX512,
                        Isa::Avx2 => return &AVX2,
                        Isa::Scalar | Isa::Neon => {}
                    }
                }
                let _ = isa;
                &BASELINE
            }
        }
    };
}
element!(f32, F32, Some, Some);
element!(f64, F64, |_| None, |_| None);

impl<T: CpuElement> Ops<T> {
    /// The table of an instruction set.
    ///
    /// # Panics
    /// Where this processor lacks it: the safe methods rely on this check.
    pub fn of(isa: Isa) -> &'static Ops<T> {
        assert!(isa.can_run(), "this processor has no {}", isa.name());
        T::ops(isa)
    }
}
