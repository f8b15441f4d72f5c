//! The types that tensors are stored in, as the CPU loads and stores them.

use crate::ops::CpuElement;
use half::{bf16, f16};
use protperf_core::Stored;

/// A stored type whose rows the CPU can load: where they lie if it computes in that type, else widened.
pub trait CpuStored: Stored<Compute: CpuElement> {
    /// Whether it is itself the type that is computed in.
    const IS_COMPUTED: bool;
    /// A row as the type that is computed in; `None` where it has to be widened first.
    fn as_computed(row: &[Self]) -> Option<&[Self::Compute]>;
}

impl<T: CpuElement> CpuStored for T {
    const IS_COMPUTED: bool = true;
    fn as_computed(row: &[T]) -> Option<&[T]> {
        Some(row)
    }
}

impl CpuStored for bf16 {
    const IS_COMPUTED: bool = false;
    fn as_computed(_row: &[bf16]) -> Option<&[f32]> {
        None
    }
}

impl CpuStored for f16 {
    const IS_COMPUTED: bool = false;
    fn as_computed(_row: &[f16]) -> Option<&[f32]> {
        None
    }
}

/// NaN of a stored type.
pub fn nan<S: CpuStored>() -> S {
    S::round(protperf_core::Element::from_f64(f64::NAN))
}
