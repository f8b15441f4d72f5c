//! Every backend against the f64 reference: every map, form, mask and instruction set, forward and backward, on one
//! thread and on three. The bound is that of `common::judge`; the backends are those of `common::subjects`.

use crate::common::judge::{Judge, error};
use crate::common::kernel::{every_isa, kernel};
use crate::common::shapes::{SHAPES, variants};
use crate::common::subjects::{answer, subjects};
use crate::common::{Answer, Case, Data, Directions, MAPS, PARTS, other_maps, reference, relative};
use protperf::projection::{Norm, Sampler, draw_projection};
use protperf::{Family, FeatureMap};

/// The worst of some ratios, and where it was.
#[derive(Default)]
struct Worst(f64, String);

impl Worst {
    fn note(&mut self, ratio: f64, what: impl FnOnce() -> String) {
        if ratio > self.0 {
            *self = Worst(ratio, what());
        }
    }
}

/// How near the kernels came to their bound, and how far an instruction set was from the truth against the scalar one.
#[derive(Default)]
struct Record {
    cases: usize,
    of_bound: Worst,
    of_plain: Worst,
    of_scalar: Worst,
}

impl Record {
    /// Asserts that every backend conforms, with the same bits on one thread and on three.
    fn assert_conforms(&mut self, case: &Case, data: &Data) {
        let judge = Judge::new(case, data);
        let mut scalar = None;
        for subject in subjects() {
            let what = |kind: &str| format!("{kind} {} {}", subject.name, case.id());
            let narrow = answer(&*subject.narrow, case, data, 1);
            let wide = answer(&*subject.wide, case, data, 1);
            // The reference, slow as it is, has no threads.
            if subject.name != "reference" {
                let (other, wider) = (answer(&*subject.narrow, case, data, 3), answer(&*subject.wide, case, data, 3));
                assert_eq!(bits(&narrow), bits(&other), "threads change bits: {}", what("f32"));
                assert_eq!(bits(&wide), bits(&wider), "threads change bits: {}", what("f64"));
            }
            judge.check::<f32>(&narrow).unwrap_or_else(|fault| panic!("{fault} {}", what("f32")));
            judge.check::<f64>(&wide).unwrap_or_else(|fault| panic!("{fault} {}", what("f64")));
            let errors = [0, 1, 2, 3, 4].map(|part| error(&narrow[part], &judge.truth[part]));
            // What the reference rounds to f32 does not measure a kernel.
            if subject.name != "reference" {
                self.note(&judge, errors, *scalar.get_or_insert(errors), what);
            }
        }
        self.cases += 1;
    }

    /// A unit in the last place is added below: an error of less is luck, and no measure of another.
    fn note(&mut self, judge: &Judge, errors: [f64; 5], scalar: [f64; 5], what: impl Fn(&str) -> String) {
        for (part, name) in PARTS.into_iter().enumerate() {
            let (off, unit) = (errors[part], f64::from(f32::EPSILON) * judge.scales[part]);
            if let Some(bound) = judge.bound::<f32>(part) {
                self.of_bound.note(off / bound, || what(name));
            }
            self.of_plain.note(off / (judge.plain[part] + unit), || what(name));
            self.of_scalar.note(off / (scalar[part] + unit), || what(name));
        }
    }

    /// What `--nocapture` shows.
    fn print(&self, name: &str) {
        let Record { cases, of_bound, of_plain, of_scalar } = self;
        println!("{name}: {cases} cases; worst error of f32");
        println!("  {:.3} of its bound ({})", of_bound.0, of_bound.1);
        println!("  {:.3} of the plain f32 evaluation's and one unit ({})", of_plain.0, of_plain.1);
        println!("  {:.3} of the scalar instruction set's and one unit ({})", of_scalar.0, of_scalar.1);
    }
}

fn bits(answer: &Answer) -> Vec<u64> {
    answer.iter().flatten().map(|x| x.to_bits()).collect()
}

fn conforms_at_every_shape(map: FeatureMap) {
    let mut record = Record::default();
    for causal in [false, true] {
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            for case in variants(map, causal, shape) {
                record.assert_conforms(&case, &case.data(seed as u64 + 5).rounded::<f32>());
            }
        }
    }
    record.print(map.name());
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
fn sequences_that_are_cut_into_blocks_conform() {
    let mut record = Record::default();
    for map in MAPS {
        let causal = Case { value_dim: 1, masked: true, ..Case::new(map, true, 2060, 2, 3) };
        let noncausal = Case { causal: false, q_len: 1030, kv_len: 1100, ..causal.clone() };
        for case in [causal, noncausal] {
            record.assert_conforms(&case, &case.data(3).rounded::<f32>());
        }
    }
    record.print("blocks");
}

#[test]
fn activation_maps_conform_without_projection_and_with_other_epsilons() {
    let mut record = Record::default();
    for map in [FeatureMap::Relu, FeatureMap::Elu1] {
        for causal in [false, true] {
            for (head_dim, epsilon) in [(1, 0.5), (17, 0.0), (64, 1e-3), (65, 1e-6)] {
                let case = Case::new(map, causal, 70, head_dim, head_dim);
                let case = Case { directions: Directions::Axes, epsilon, ..case };
                record.assert_conforms(&case, &case.data(3).rounded::<f32>());
            }
        }
    }
}

#[test]
fn other_functions_and_parameters_conform() {
    let mut record = Record::default();
    for map in other_maps() {
        for causal in [false, true] {
            for (len, head_dim, num_features) in [(1, 1, 1), (17, 5, 33), (70, 8, 20)] {
                let case = Case { value_dim: 3, ..Case::new(map, causal, len, head_dim, num_features) };
                record.assert_conforms(&case, &case.data(3).rounded::<f32>());
                let heads = Case { heads: (2, 1), directions: Directions::PerHead, masked: true, ..case };
                record.assert_conforms(&heads, &heads.data(4).rounded::<f32>());
                if matches!(map.family(), Family::Activation(_)) {
                    let axes = Case { directions: Directions::Axes, num_features: head_dim, epsilon: 1.5, ..heads };
                    record.assert_conforms(&axes, &axes.data(5).rounded::<f32>());
                }
            }
        }
    }
    record.print("other maps");
}

#[test]
fn functions_that_grow_as_a_square_stay_in_the_hull() {
    for map in [FeatureMap::Square, FeatureMap::Relu2, FeatureMap::Abs] {
        for causal in [false, true] {
            for extreme in EXTREMES.iter().filter(|extreme| extreme.q >= 20.0) {
                let case = Case::new(map, causal, 70, 8, 12);
                let judge = Judge::new(&case, &extreme_data(&case, extreme));
                for how in every_isa() {
                    let found = kernel::<f32>(&case, &extreme_data(&case, extreme), how);
                    assert!(found[0].iter().all(|x| x.is_finite()), "{} {how:?} {}", extreme.name, case.id());
                    judge.check_hull(&found[0]).unwrap_or_else(|fault| panic!("{fault}: {} {how:?}", extreme.name));
                }
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
    for map in MAPS {
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
    resolved: Resolved,
}

/// Which types resolve the logarithms of features; in the others an output is only a mean of values.
#[derive(Clone, Copy, PartialEq)]
enum Resolved {
    InBoth,
    /// A norm of 1e4 puts logarithms at 1e7, where numbers of f32 are a whole bit apart.
    InF64,
    /// The reference, too, saturates logarithms from 2^28 on.
    InNone,
}

use Resolved::{InBoth, InF64, InNone};

/// From unit normals, whose rows have norms of about 6 here, to norms of 1e-4 and 1e4 and to the ends of f32.
const EXTREMES: [Extreme; 16] = [
    Extreme { name: "large queries", q: 50.0, k: 1.0, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "large keys", q: 1.0, k: 20.0, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "both large", q: 20.0, k: 20.0, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "rising keys", q: 3.0, k: 40.0, ramp: [0.05, 1.0], resolved: InBoth },
    Extreme { name: "falling keys", q: 3.0, k: 40.0, ramp: [1.0, 0.05], resolved: InBoth },
    Extreme { name: "norms of 1e-4", q: 1.8e-5, k: 1.8e-5, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "norms of 1e-2", q: 1.8e-3, k: 1.8e-3, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "norms of 1e2", q: 18.0, k: 18.0, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "norms of 1e4", q: 1.8e3, k: 1.8e3, ramp: [1.0, 1.0], resolved: InF64 },
    Extreme { name: "norms of 1e-4 and 1e4", q: 1.8e-5, k: 1.8e3, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "norms of 1e4 and 1e-4", q: 1.8e3, k: 1.8e-5, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "tiny", q: 1e-30, k: 1e-30, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "denormal", q: 1e-39, k: 1e-39, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "zero", q: 0.0, k: 0.0, ramp: [1.0, 1.0], resolved: InBoth },
    Extreme { name: "huge", q: 1e6, k: 1e6, ramp: [1.0, 1.0], resolved: InNone },
    Extreme { name: "largest", q: 1e39, k: 1e39, ramp: [1.0, 1.0], resolved: InNone },
];

fn extreme_data(case: &Case, extreme: &Extreme) -> Data {
    let most = f64::from(f32::MAX);
    let mut data = case.data(1);
    data.q.iter_mut().for_each(|x| *x = (*x * extreme.q).clamp(-most, most));
    let steps = (case.kv_len - 1) as f64;
    for (at, k) in data.k.iter_mut().enumerate() {
        let along = (at / case.head_dim % case.kv_len) as f64 / steps;
        let factor = extreme.ramp[0] + along * (extreme.ramp[1] - extreme.ramp[0]);
        *k = (*k * extreme.k * factor).clamp(-most, most);
    }
    data.rounded::<f32>()
}

#[test]
fn extreme_inputs_conform_and_stay_in_the_hull() {
    let mut record = Record::default();
    for map in MAPS.into_iter().filter(|&map| map != FeatureMap::Trigonometric) {
        for causal in [false, true] {
            for extreme in &EXTREMES {
                // The plain form takes a hundred times as long for a product of denormal numbers.
                let (len, head_dim, num_features) = if extreme.q < 1e-20 { (66, 16, 20) } else { (90, 32, 40) };
                let case = Case::new(map, causal, len, head_dim, num_features);
                let data = extreme_data(&case, extreme);
                if extreme.resolved == InBoth {
                    record.assert_conforms(&case, &data);
                    continue;
                }
                let judge = Judge::new(&case, &data);
                for how in every_isa() {
                    let (narrow, wide) = (kernel::<f32>(&case, &data, how), kernel::<f64>(&case, &data, how));
                    let held = judge.check_hull(&narrow[0]).and_then(|()| match extreme.resolved {
                        InF64 => judge.check::<f64>(&wide),
                        _ => judge.check_hull(&wide[0]),
                    });
                    held.unwrap_or_else(|fault| panic!("{fault}: {} {how:?} {}", extreme.name, case.id()));
                }
            }
        }
    }
    record.print("extreme inputs");
}

#[test]
fn values_from_the_smallest_to_the_largest_keep_their_relative_error() {
    for map in MAPS {
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

/// Values at both ends of f32, and denormal ones: what is summed first must not overflow, nor vanish.
#[test]
fn values_at_the_ends_of_f32_stay_in_the_hull() {
    let most = f64::from(f32::MAX);
    for map in MAPS.into_iter().filter(|&map| map != FeatureMap::Trigonometric) {
        for causal in [false, true] {
            let (case, unit) = promised(map, causal, 70);
            for end in [most, 1e-39, 1e-45] {
                for signs in [[1.0, 1.0], [1.0, -1.0]] {
                    let mut data = unit.clone();
                    data.v.iter_mut().enumerate().for_each(|(at, v)| *v = signs[at % 2] * end);
                    for how in every_isa() {
                        let found = &kernel::<f32>(&case, &data, how)[0];
                        // Each column of v is constant here, and so the output is; values this small round to 1e-45.
                        let off = found.iter().enumerate().map(|(at, x)| (x - signs[at % 2] * end).abs());
                        let worst = off.fold(0.0, f64::max);
                        assert!(worst <= 1e-5 * end + 1.5e-45, "{worst:.1e} at {end:.1e} {how:?} {}", case.id());
                    }
                }
            }
        }
    }
}

/// One row that is not finite among extreme ones: it reaches what sees it, and the rest is right.
#[test]
fn one_bad_row_of_any_scale_leaves_the_rest_right() {
    let mut record = Record::default();
    for map in MAPS {
        for causal in [false, true] {
            for (at, extreme) in EXTREMES.iter().enumerate().filter(|(_, extreme)| extreme.resolved == InBoth) {
                // The trigonometric map is judged at inputs of half a unit.
                if map == FeatureMap::Trigonometric && extreme.q.max(extreme.k) > 1.0 {
                    continue;
                }
                let case = Case::new(map, causal, 70, 12, 20);
                let mut data = extreme_data(&case, extreme);
                let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][at % 3];
                match at % 4 {
                    0 => data.q[37 * 12 + 3] = bad,
                    1 => data.k[37 * 12 + 11] = bad,
                    2 => data.v[66 * 12] = bad,
                    _ => data.grad[5 * 12 + 1] = bad,
                }
                data.grad[50 * 12..].fill(0.0);
                record.assert_conforms(&case, &data);
            }
        }
    }
    record.print("one bad row");
}
