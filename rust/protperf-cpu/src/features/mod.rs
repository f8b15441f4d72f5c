//! The families of feature maps, and the one place that asks which family a map belongs to.

mod activation;
mod exponential;
mod family;
mod projection;
mod shared_reference;
mod trigonometric;

use crate::layout::Layout;
use crate::ops::CpuElement;
pub use family::{Family, KeyPanel, Norm, QueryPanel};
use protperf_core::{FavorShape, MapArgs};
use std::sync::Arc;

/// The family that computes the map of a call, and the widths that it needs.
pub fn of<T: CpuElement>(map: &MapArgs<'_>, shape: &FavorShape) -> (Arc<dyn Family<T>>, Layout) {
    let family: Arc<dyn Family<T>> = match map.family() {
        protperf_core::Family::Exponential => Arc::new(exponential::Exponential),
        protperf_core::Family::Activation(activation) => {
            let epsilon = T::from_f64(map.kernel_epsilon());
            Arc::new(activation::ActivationFeatures { activation, epsilon })
        }
        protperf_core::Family::Trigonometric => Arc::new(trigonometric::Trigonometric),
    };
    let layout = Layout {
        head_dim: shape.head_dim,
        value_dim: shape.value_dim,
        projections: shape.num_projections,
        features_per_projection: map.family().features_per_projection(),
    };
    (family, layout)
}
