//! The GPU backend against the f64 reference, by the judge and at the shapes of `conformance.rs`.

use crate::common::judge::Judge;
use crate::common::shapes::{SHAPES, variants};
use crate::common::subjects::answer;
use crate::common::{Case, Directions, MAPS, other_maps};
use protperf::gpu::{Wgpu, adapters};
use protperf::{Family, FeatureMap};

/// Whether there is a GPU to test on; with `PROTPERF_REQUIRE_GPU=1` a missing one is a failure.
fn has_gpu() -> bool {
    let (_, fault) = adapters();
    let Some(fault) = fault else { return true };
    assert!(std::env::var("PROTPERF_REQUIRE_GPU").is_err(), "{fault}");
    println!("skipped: {fault}");
    false
}

fn assert_conforms(case: &Case, seed: u64) {
    let data = case.data(seed).rounded::<f32>();
    let found = answer::<f32>(&Wgpu, case, &data, 1);
    Judge::new(case, &data).check::<f32>(&found).unwrap_or_else(|fault| panic!("{fault} {}", case.id()));
}

/// Every shape with half of the maps and forms, each with one of the four variants in turn.
#[test]
fn the_gpu_conforms_at_every_shape() {
    if !has_gpu() {
        return;
    }
    for (turn, map) in MAPS.into_iter().enumerate() {
        for causal in [false, true] {
            let half = |(seed, _): &(usize, _)| (seed + turn / 2 + usize::from(causal)) % 2 == 0;
            for (seed, shape) in SHAPES.into_iter().enumerate().filter(half) {
                let all = variants(map, causal, shape);
                assert_conforms(&all[(seed / 2 + turn + usize::from(causal)) % all.len()], seed as u64 + 5);
            }
        }
    }
}

#[test]
fn the_gpu_conforms_without_projection_and_with_other_epsilons() {
    if !has_gpu() {
        return;
    }
    for map in [FeatureMap::Relu, FeatureMap::Elu1] {
        for (causal, head_dim, epsilon) in [(false, 17, 0.0), (true, 64, 1e-3)] {
            let case = Case { directions: Directions::Axes, epsilon, ..Case::new(map, causal, 70, head_dim, head_dim) };
            assert_conforms(&case, 3);
        }
    }
}

#[test]
fn the_gpu_conforms_with_other_functions_and_parameters() {
    if !has_gpu() {
        return;
    }
    for map in other_maps() {
        for causal in [false, true] {
            for (len, head_dim, num_features) in [(1, 1, 1), (17, 5, 33), (70, 8, 20)] {
                let case = Case { value_dim: 3, ..Case::new(map, causal, len, head_dim, num_features) };
                assert_conforms(&case, 3);
                let heads = Case { heads: (2, 1), directions: Directions::PerHead, masked: true, ..case };
                assert_conforms(&heads, 4);
                if matches!(map.family(), Family::Activation(_)) {
                    let axes = Case { directions: Directions::Axes, num_features: head_dim, epsilon: 1.5, ..heads };
                    assert_conforms(&axes, 5);
                }
            }
        }
    }
}

/// Features of huge inputs are beyond what a product of two can be.
#[test]
fn functions_that_grow_as_a_square_stay_in_the_hull_on_the_gpu() {
    if !has_gpu() {
        return;
    }
    let most = f64::from(f32::MAX);
    for map in [FeatureMap::Square, FeatureMap::Relu2, FeatureMap::Abs] {
        for (causal, scale) in [(false, 50.0), (true, 1.8e3), (false, 1e6), (true, 1e39)] {
            let case = Case::new(map, causal, 70, 8, 12);
            let mut data = case.data(1);
            data.q.iter_mut().chain(&mut data.k).for_each(|x| *x = (*x * scale).clamp(-most, most));
            let data = data.rounded::<f32>();
            let found = answer::<f32>(&Wgpu, &case, &data, 1);
            assert!(found[0].iter().all(|x| x.is_finite()), "scale {scale} {}", case.id());
            let held = Judge::new(&case, &data).check_hull(&found[0]);
            held.unwrap_or_else(|fault| panic!("{fault} scale {scale} {}", case.id()));
        }
    }
}

/// Large and tiny inputs, up to the ends of f32: as near as the plain evaluation, or inside of the hull of v.
#[test]
fn the_gpu_conforms_at_extreme_inputs() {
    if !has_gpu() {
        return;
    }
    for map in MAPS.into_iter().filter(|&map| map != FeatureMap::Trigonometric) {
        for causal in [false, true] {
            let case = Case::new(map, causal, 90, 16, 20);
            for (q, k) in [(50.0, 1.0), (1.0, 20.0), (20.0, 20.0), (1.8e-5, 1.8e3), (1.8e3, 1.8e-5), (1e-39, 1e-39)] {
                let mut data = case.data(1);
                data.q.iter_mut().for_each(|x| *x *= q);
                data.k.iter_mut().for_each(|x| *x *= k);
                let data = data.rounded::<f32>();
                let found = answer::<f32>(&Wgpu, &case, &data, 1);
                let held = Judge::new(&case, &data).check::<f32>(&found);
                held.unwrap_or_else(|fault| panic!("{fault} q {q} k {k} {}", case.id()));
            }
            let mut data = case.data(1);
            let most = f64::from(f32::MAX);
            data.q.iter_mut().chain(&mut data.k).for_each(|x| *x = (*x * 1e39).clamp(-most, most));
            let data = data.rounded::<f32>();
            let found = answer::<f32>(&Wgpu, &case, &data, 1);
            let held = Judge::new(&case, &data).check_hull(&found[0]);
            held.unwrap_or_else(|fault| panic!("{fault} at the ends of f32 {}", case.id()));
        }
    }
}
