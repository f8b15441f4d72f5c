//! The CPU kernels against the f64 reference: every map, form, mask and instruction set, forward and backward.
//!
//! The bound of an f32 kernel is twice the error of the plain f32 evaluation of the same formula, plus four units in
//! the last place of the largest value; for gradients, of the same sums with the absolute value of every term. Both
//! are measured, so the bound follows how well each input is conditioned.

mod common;

use common::kernel::{every_isa, kernel};
use common::{Answer, Case, Data, Directions, PARTS, magnitudes, plain_f32, reference, relative};
use protperf::FeatureMap;
use protperf::projection::{Norm, Sampler, draw_projection};

/// Units in the last place that an f32 kernel may be off beside twice the plain evaluation's error.
const UNITS: f64 = 4.0;
/// The same for f64 kernels, whose plain evaluation is the reference itself: the logarithms of features carry
/// rounding of their own on both sides.
const UNITS_F64: f64 = 64.0;

/// Lengths about the lanes of 4, 8 and 16 and off the chunks of 64; head_dim, value_dim and num_features as odd.
const SHAPES: [(usize, usize, usize, usize); 22] = [
    (0, 4, 3, 5),
    (1, 1, 1, 1),
    (2, 1, 3, 1),
    (3, 2, 5, 3),
    (4, 3, 4, 5),
    (5, 5, 2, 7),
    (7, 7, 1, 9),
    (8, 8, 9, 16),
    (9, 9, 8, 15),
    (11, 12, 0, 6),
    (15, 15, 16, 17),
    (16, 16, 17, 31),
    (17, 17, 15, 33),
    (31, 31, 33, 65),
    (33, 32, 31, 64),
    (63, 33, 1, 63),
    (64, 63, 64, 31),
    (65, 64, 65, 33),
    (127, 65, 3, 17),
    (129, 6, 7, 37),
    (200, 12, 3, 21),
    (9, 17, 5, 129),
];

/// A shape with nothing else, with padding, with segments and grouped queries, and with the rest.
fn variants(map: FeatureMap, causal: bool, shape: (usize, usize, usize, usize)) -> [Case; 4] {
    let (len, head_dim, value_dim, num_features) = shape;
    let case = Case { value_dim, ..Case::new(map, causal, len, head_dim, num_features) };
    let third = (len / 3) as i64;
    let borders = vec![0, 0, third, third + i64::from(len > 2), len as i64];
    let kv_len = if causal { len } else { len / 2 + 3 };
    [
        Case { masked: true, batch: 2, ..case.clone() },
        Case { borders: Some(borders), heads: (2, 1), ..case.clone() },
        Case { heads: (4, 2), directions: Directions::PerHead, kv_len, ..case.clone() },
        case,
    ]
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Root of the mean square of the errors.
fn error(found: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let squares: f64 = found.iter().zip(truth).map(|(f, t)| (f - t) * (f - t)).sum();
    (squares / truth.len().max(1) as f64).sqrt()
}

/// What rounding each part of an answer is measured in.
fn scales(case: &Case, data: &Data) -> [f64; 5] {
    let mut scales = magnitudes(case, data).map(|part| largest(&part));
    // Averages with positive weights: no term is larger than the largest value.
    if case.map != FeatureMap::Trigonometric {
        scales[0] = largest(&data.v);
    }
    scales
}

fn assert_within(found: &Answer, truth: &Answer, bound: impl Fn(usize) -> f64, what: &str) {
    for part in 0..5 {
        let (off, bound) = (error(&found[part], &truth[part]), bound(part));
        // False for NaN too.
        assert!(off <= bound, "{} {off:.2e} above {bound:.2e} {what}", PARTS[part]);
    }
}

fn assert_conforms(case: &Case, seed: u64) {
    let data = case.data(seed).rounded::<f32>();
    let truth = reference::<f32>(case, &data);
    let (plain, scales) = (plain_f32(case, &data), scales(case, &data));
    let bound = |part: usize| 2.0 * error(&plain[part], &truth[part]) + UNITS * f64::from(f32::EPSILON) * scales[part];
    for how in every_isa() {
        let what = format!("{how:?} {}", case.id());
        assert_within(&kernel::<f32>(case, &data, how), &truth, bound, &what);
        let wide = |part: usize| UNITS_F64 * f64::EPSILON * scales[part];
        assert_within(&kernel::<f64>(case, &data, how), &truth, wide, &format!("f64 {what}"));
    }
}

fn conforms_at_every_shape(map: FeatureMap) {
    for causal in [false, true] {
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            for case in variants(map, causal, shape) {
                assert_conforms(&case, seed as u64 + 5);
            }
        }
    }
}

#[test]
fn positive_conforms_at_every_shape() {
    conforms_at_every_shape(FeatureMap::Positive);
}

#[test]
fn hyperbolic_conforms_at_every_shape() {
    conforms_at_every_shape(FeatureMap::Hyperbolic);
}

#[test]
fn smreg_conforms_at_every_shape() {
    conforms_at_every_shape(FeatureMap::Smreg);
}

#[test]
fn relu_conforms_at_every_shape() {
    conforms_at_every_shape(FeatureMap::Relu);
}

#[test]
fn elu1_conforms_at_every_shape() {
    conforms_at_every_shape(FeatureMap::Elu1);
}

#[test]
fn trigonometric_conforms_at_every_shape() {
    conforms_at_every_shape(FeatureMap::Trigonometric);
}

#[test]
fn activation_maps_conform_without_projection_and_with_other_epsilons() {
    for map in [FeatureMap::Relu, FeatureMap::Elu1] {
        for causal in [false, true] {
            for (head_dim, epsilon) in [(1, 0.5), (17, 0.0), (64, 1e-3), (65, 1e-6)] {
                let case = Case::new(map, causal, 70, head_dim, head_dim);
                assert_conforms(&Case { directions: Directions::Axes, epsilon, ..case }, 3);
            }
        }
    }
}

/// A case at the shape that accuracy is promised for, with orthogonal directions.
fn promised(map: FeatureMap, causal: bool, len: usize) -> (Case, Data) {
    let case = Case::new(map, causal, len, 64, 256);
    let mut data = case.data(1);
    data.omega = draw_projection(256, 64, Sampler::Orthogonal, Norm::Chi, 2, [0, 0, 0]).unwrap();
    (case, data.rounded::<f32>())
}

#[test]
fn f32_kernels_are_within_1e_5_at_unit_normal_inputs() {
    for map in FeatureMap::ALL {
        for causal in [false, true] {
            for len in [2, 63, 150, 257] {
                let (case, data) = promised(map, causal, len);
                let truth = reference::<f32>(&case, &data);
                for how in every_isa() {
                    let found = kernel::<f32>(&case, &data, how);
                    for part in 0..5 {
                        let off = relative(&found[part], &truth[part]);
                        assert!(off <= 1e-5, "{} {off:.1e} {how:?} {}", PARTS[part], case.id());
                    }
                }
            }
        }
    }
}

/// Scales of queries and keys, and how key lengths run along the sequence: from the first factor to the second.
struct Extreme {
    name: &'static str,
    q: f64,
    k: f64,
    ramp: [f64; 2],
    /// Whether f32 still resolves the logarithms of features; if not, outputs are only finite and in the hull.
    resolved: bool,
}

const EXTREMES: [Extreme; 10] = [
    Extreme { name: "large queries", q: 50.0, k: 1.0, ramp: [1.0, 1.0], resolved: true },
    Extreme { name: "large keys", q: 1.0, k: 20.0, ramp: [1.0, 1.0], resolved: true },
    Extreme { name: "both large", q: 20.0, k: 20.0, ramp: [1.0, 1.0], resolved: true },
    Extreme { name: "rising keys", q: 3.0, k: 40.0, ramp: [0.05, 1.0], resolved: true },
    Extreme { name: "falling keys", q: 3.0, k: 40.0, ramp: [1.0, 0.05], resolved: true },
    Extreme { name: "tiny", q: 1e-30, k: 1e-30, ramp: [1.0, 1.0], resolved: true },
    Extreme { name: "denormal", q: 1e-39, k: 1e-39, ramp: [1.0, 1.0], resolved: true },
    Extreme { name: "zero", q: 0.0, k: 0.0, ramp: [1.0, 1.0], resolved: true },
    Extreme { name: "huge", q: 1e6, k: 1e6, ramp: [1.0, 1.0], resolved: false },
    Extreme { name: "largest", q: 1e38, k: 1e38, ramp: [1.0, 1.0], resolved: false },
];

fn extreme_data(case: &Case, extreme: &Extreme) -> Data {
    let mut data = case.data(1);
    data.q.iter_mut().for_each(|x| *x = (*x * extreme.q).clamp(-3e38, 3e38));
    let steps = (case.kv_len - 1) as f64;
    for (at, k) in data.k.iter_mut().enumerate() {
        let along = (at / case.head_dim % case.kv_len) as f64 / steps;
        let factor = extreme.ramp[0] + along * (extreme.ramp[1] - extreme.ramp[0]);
        *k = (*k * extreme.k * factor).clamp(-3e38, 3e38);
    }
    data.rounded::<f32>()
}

#[test]
fn extreme_inputs_conform_where_f32_resolves_them_and_stay_in_the_hull() {
    for map in FeatureMap::ALL.into_iter().filter(|&map| map != FeatureMap::Trigonometric) {
        for causal in [false, true] {
            for extreme in &EXTREMES {
                let case = Case::new(map, causal, 90, 32, 40);
                let data = extreme_data(&case, extreme);
                let truth = reference::<f32>(&case, &data);
                let (plain, scales) = (plain_f32(&case, &data), scales(&case, &data));
                for how in every_isa() {
                    let found = kernel::<f32>(&case, &data, how);
                    let what = format!("{} {how:?} {}", extreme.name, case.id());
                    let most = largest(&data.v) * (1.0 + 4.0 * f64::from(f32::EPSILON));
                    assert!(found[0].iter().all(|x| x.abs() <= most), "out of the hull: {what}");
                    if !extreme.resolved {
                        continue;
                    }
                    assert_within(
                        &found,
                        &truth,
                        |part| {
                            let twice = 2.0 * error(&plain[part], &truth[part]);
                            twice + UNITS * f64::from(f32::EPSILON) * scales[part]
                        },
                        &what,
                    );
                }
            }
        }
    }
}

#[test]
fn values_from_the_smallest_to_the_largest_keep_their_relative_error() {
    for map in FeatureMap::ALL {
        for causal in [false, true] {
            let (case, unit) = promised(map, causal, 70);
            for power in [-120, -60, 60, 120] {
                let mut data = unit.clone();
                data.v.iter_mut().for_each(|v| *v *= 2f64.powi(power));
                let truth = reference::<f32>(&case, &data);
                for how in every_isa() {
                    let found = kernel::<f32>(&case, &data, how);
                    let off = relative(&found[0], &truth[0]);
                    assert!(off <= 1e-5, "{off:.1e} 2^{power} {how:?} {}", case.id());
                }
            }
        }
    }
}
