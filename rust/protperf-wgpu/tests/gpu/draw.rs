//! Orthogonal projections that the device draws, against those of the CPU.

use crate::available::has_gpu;
use protperf_core::projection::{Draw, Norm, Sampler};
use protperf_wgpu::draw_projection;
use std::sync::atomic::AtomicBool;

fn drawn(draw: &Draw) -> Vec<f32> {
    let omega = draw_projection(draw).unwrap();
    assert_eq!(omega.shape(), [draw.num_features, draw.head_dim]);
    let bytes = omega.read(&AtomicBool::new(false)).unwrap();
    bytes.chunks_exact(4).map(|x| f32::from_ne_bytes(x.try_into().unwrap())).collect()
}

/// Reflections of D axes leave errors of some roundings times their number.
#[test]
fn projections_are_those_of_the_cpu_to_rounding() {
    if !has_gpu() {
        return;
    }
    for (num_features, head_dim) in [(1, 1), (7, 3), (40, 17), (100, 64)] {
        for norm in Norm::ALL {
            let (sampler, seed) = (Sampler::Orthogonal, 0x0123_4567_89ab_cdef);
            let draw = Draw { num_features, head_dim, sampler, norm, seed, stream: [1, 2, 3] };
            let mut expected = vec![0.0; num_features * head_dim];
            draw.fill(&mut expected, &|| false).unwrap();
            let found = drawn(&draw);
            let off = found.iter().zip(&expected).map(|(&f, t)| (f64::from(f) - t).abs()).fold(0.0, f64::max);
            assert!(off < f64::from(f32::EPSILON) * 4.0 * head_dim as f64, "{off:.1e} {draw:?}");
            assert!(drawn(&draw) == found);
        }
    }
}

#[test]
fn another_sampler_is_refused_by_name() {
    let sizes = Draw { num_features: 4, head_dim: 4, sampler: Sampler::Iid, norm: Norm::Chi, seed: 1, stream: [0; 3] };
    let error = draw_projection(&sizes).err().unwrap().to_string();
    assert!(error.contains("sampler is iid") && error.contains("orthogonal"), "{error}");
    let error = draw_projection(&Draw { head_dim: 0, ..sizes }).err().unwrap().to_string();
    assert!(error.contains("head_dim must be at least 1"), "{error}");
}
