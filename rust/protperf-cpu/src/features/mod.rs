//! The families of feature maps, and the one place that asks which family a map belongs to.
//! `docs/algorithm.md`, sections 2 to 4.

mod activation;
mod exponential;
mod family;
mod projection;
mod shared_reference;
mod trigonometric;

use crate::ops::CpuElement;
pub use family::{Family, KeyPanel, Norm, QueryPanel};
use protperf_core::MapArgs;
use std::sync::Arc;

/// The family that computes a map.
pub fn of<T: CpuElement>(map: &MapArgs<'_>) -> Arc<dyn Family<T>> {
    match map.family() {
        protperf_core::Family::Exponential => Arc::new(exponential::Exponential),
        protperf_core::Family::Activation(activation) => {
            let epsilon = T::from_f64(map.kernel_epsilon());
            Arc::new(activation::ActivationFeatures { activation, epsilon })
        }
        protperf_core::Family::Trigonometric => Arc::new(trigonometric::Trigonometric),
    }
}
