//! The types that tensors are stored in, as the CPU loads and stores them: `docs/algorithm.md`, section 1, on 16 bits.

use crate::ops::{CpuElement, Ops};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use protperf_core::Stored;

/// A stored type whose rows the CPU can load: where they lie if it computes in that type, else widened.
pub trait CpuStored: Stored<Compute: CpuElement> {
    /// Whether it is itself the type that is computed in.
    const IS_COMPUTED: bool;
    /// A row as the type that is computed in; `None` where it has to be widened first.
    fn as_computed(row: &[Self]) -> Option<&[Self::Compute]>;
    /// A row in the type that is computed in.
    fn widen_row(row: &[Self], to: &mut [Self::Compute]) {
        to.iter_mut().zip(row).for_each(|(to, x)| *to = x.widen());
    }
    /// The largest magnitude in a row, and whether all of it is finite.
    fn largest(ops: &Ops<Self::Compute>, row: &[Self]) -> (Self::Compute, bool);
}

impl<T: CpuElement> CpuStored for T {
    const IS_COMPUTED: bool = true;
    fn as_computed(row: &[T]) -> Option<&[T]> {
        Some(row)
    }
    fn largest(ops: &Ops<T>, row: &[T]) -> (T, bool) {
        ops.largest(row)
    }
}

macro_rules! stored_in_16_bits {
    ($t:ty, $infinity:literal, $widen_row:expr) => {
        impl CpuStored for $t {
            const IS_COMPUTED: bool = false;
            fn as_computed(_row: &[$t]) -> Option<&[f32]> {
                None
            }
            fn widen_row(row: &[$t], to: &mut [f32]) {
                $widen_row(row, &mut to[..row.len()]);
            }
            fn largest(_ops: &Ops<f32>, row: &[$t]) -> (f32, bool) {
                // Without their sign, bits have the order of the magnitudes; written so that the compiler takes many at a time.
                // What is not a number lies above infinity, and counts as that.
                let top = row.iter().fold(0, |top, x| (x.to_bits() & 0x7fff).max(top));
                (<$t>::from_bits(top.min($infinity)).widen(), top < $infinity)
            }
        }
    };
}
// The first 16 bits of an f32 are a bf16.
stored_in_16_bits!(bf16, 0x7f80, |row: &[bf16], to: &mut [f32]| {
    to.iter_mut().zip(row).for_each(|(to, x)| *to = f32::from_bits(u32::from(x.to_bits()) << 16));
});
stored_in_16_bits!(f16, 0x7c00, |row: &[f16], to: &mut [f32]| row.convert_to_f32_slice(to));

/// NaN of a stored type.
pub fn nan<S: CpuStored>() -> S {
    S::round(protperf_core::Element::from_f64(f64::NAN))
}
