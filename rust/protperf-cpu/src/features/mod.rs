//! The families of feature maps, and the one place that asks which family a map belongs to.

mod activation;
mod exponential;
mod family;
mod projection;
mod shared_reference;
mod trigonometric;

use crate::layout::Layout;
use crate::ops::CpuElement;
pub use family::{Family, KeyPanel, QueryPanel};
use protperf_core::{FavorArgs, FavorShape};
use std::sync::Arc;

/// The family that computes the map of a call, and the widths that it needs.
pub fn of<T: CpuElement>(args: &FavorArgs<'_, T>, shape: &FavorShape) -> (Arc<dyn Family<T>>, Layout) {
    let (family, features_per_projection): (Arc<dyn Family<T>>, usize) = match args.map.family() {
        protperf_core::Family::Exponential => (Arc::new(exponential::Exponential), 1),
        protperf_core::Family::Activation(map) => {
            let epsilon = T::from_f64(args.map.kernel_epsilon());
            (Arc::new(activation::Activation { map, epsilon }), 1)
        }
        protperf_core::Family::Trigonometric => (Arc::new(trigonometric::Trigonometric), 2),
    };
    let layout = Layout {
        head_dim: shape.head_dim,
        value_dim: shape.value_dim,
        projections: shape.feature_dim / features_per_projection,
        features_per_projection,
    };
    (family, layout)
}
