//! The f64 reference against an independent writing, against finite differences, and against itself in other forms.

use crate::common::{
    Answer, Case, Data, Directions, MAPS, PARTS, args, grad, gradient_error, other_maps, plain, reference, relative,
};
use protperf::attention::exact::{SoftmaxArgs, softmax_attention, softmax_attention_backward};
use protperf::attention::features::HeadMap;
use protperf::attention::recurrent::Decoder;
use protperf::rng::Stream;
use protperf::{FeatureMap, TensorRef};

/// Asserts that the reference agrees with sums over pairs.
fn assert_plain(case: &Case) {
    let data = case.data(7);
    let (found, truth) = (reference::<f64>(case, &data), plain(case, &data));
    let off = relative(&found[0], &truth[0]);
    assert!(off < 1e-12, "out {off:.1e} {}", case.id());
    for part in 1..5 {
        let off = gradient_error(&found[part], &truth[part], &data.grad);
        assert!(off < 1e-9, "{} {off:.1e} {}", PARTS[part], case.id());
        if case.scale <= 1.0 {
            assert!(off < 1e-12, "{} {off:.1e} {}", PARTS[part], case.id());
        }
    }
}

#[test]
fn exponential_maps_match_the_log_sum_exp_at_every_scale() {
    for map in [FeatureMap::Positive, FeatureMap::Hyperbolic, FeatureMap::Smreg] {
        for causal in [true, false] {
            for masked in [false, true] {
                for scale in [0.5, 3.0, 30.0] {
                    assert_plain(&Case { masked, scale, ..Case::new(map, causal, 53, 8, 24) });
                }
            }
        }
    }
}

#[test]
fn activation_and_trigonometric_maps_match_the_sums() {
    for map in [FeatureMap::Relu, FeatureMap::Elu1, FeatureMap::Trigonometric] {
        for causal in [true, false] {
            for masked in [false, true] {
                assert_plain(&Case { masked, ..Case::new(map, causal, 53, 8, 24) });
            }
        }
    }
    for map in [FeatureMap::Relu, FeatureMap::Elu1] {
        for (scale, epsilon) in [(30.0, 1e-3), (0.5, 0.7), (1.0, 0.0)] {
            assert_plain(&Case { scale, epsilon, ..Case::new(map, true, 40, 5, 12) });
            let axes = Case { directions: Directions::Axes, num_features: 5, ..Case::new(map, false, 40, 5, 5) };
            assert_plain(&Case { scale, epsilon, ..axes });
        }
    }
}

#[test]
fn other_functions_and_parameters_match_the_sums() {
    for map in other_maps() {
        for causal in [true, false] {
            assert_plain(&Case { scale: 0.5, masked: true, ..Case::new(map, causal, 23, 8, 24) });
        }
    }
}

#[test]
fn grouped_queries_segments_and_unequal_lengths_match_the_sums() {
    for map in MAPS {
        let case = Case::new(map, true, 17, 5, 7);
        let heads = Case { batch: 2, heads: (4, 2), value_dim: 3, directions: Directions::PerHead, ..case.clone() };
        assert_plain(&heads);
        assert_plain(&Case { causal: false, kv_len: 11, masked: true, ..heads.clone() });
        assert_plain(&Case { causal: false, q_len: 1, kv_len: 23, ..case.clone() });
        for causal in [true, false] {
            let borders = Some(vec![0, 0, 3, 4, 4, 16, 17, 17]);
            assert_plain(&Case { causal, borders, heads: (2, 1), ..case.clone() });
        }
        for (len, head_dim, value_dim, num_features) in [(1, 1, 1, 1), (2, 3, 0, 4), (0, 4, 4, 3), (5, 1, 7, 2)] {
            assert_plain(&Case { value_dim, ..Case::new(map, true, len, head_dim, num_features) });
            assert_plain(&Case { value_dim, ..Case::new(map, false, len, head_dim, num_features) });
        }
        assert_plain(&Case { causal: false, kv_len: 0, ..case });
    }
}

/// The derivative of `sum(out * grad)` along a direction in one input, by the central difference.
fn slope(case: &Case, data: &Data, along: impl Fn(&mut Data, f64)) -> f64 {
    let step = 1e-5;
    let loss = |step: f64| {
        let mut moved = data.clone();
        along(&mut moved, step);
        let typed = moved.typed::<f64>();
        let out = protperf::reference::favor_forward(&args(case, &moved, &typed)).unwrap().out;
        out.iter().zip(&data.grad).map(|(o, g)| o * g).sum::<f64>()
    };
    (loss(step) - loss(-step)) / (2.0 * step)
}

#[test]
fn gradients_match_finite_differences() {
    for map in MAPS {
        for causal in [true, false] {
            let case = Case::new(map, causal, 9, 4, 6);
            let case = Case { heads: (2, 1), value_dim: 3, directions: Directions::PerHead, masked: true, ..case };
            let data = case.data(11);
            let answer = reference::<f64>(&case, &data);
            let fields: [fn(&mut Data) -> &mut Vec<f64>; 4] =
                [|x| &mut x.q, |x| &mut x.k, |x| &mut x.v, |x| &mut x.omega];
            for (part, field) in fields.into_iter().enumerate() {
                let mut numbers = Stream::new(part as u64, [1, 0, 0]);
                let direction: Vec<f64> = answer[part + 1].iter().map(|_| numbers.normal()).collect();
                let expected: f64 = answer[part + 1].iter().zip(&direction).map(|(a, b)| a * b).sum();
                let found = slope(&case, &data, |moved, step| {
                    field(moved).iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                });
                let off = (found - expected).abs() / (1.0 + expected.abs());
                assert!(off < 1e-7, "{} {found} against {expected} {}", PARTS[part + 1], case.id());
            }
        }
    }
}

/// A decoder for the only head of a case.
fn decoder(case: &Case, data: &Data) -> Decoder {
    let typed = data.typed::<f64>();
    let map = HeadMap::of_call(&args(case, data, &typed).map, 0, case.head_dim).unwrap();
    Decoder::new(map, case.value_dim)
}

#[test]
fn one_step_form_equals_causal_form() {
    for map in MAPS {
        let case = Case { value_dim: 5, ..Case::new(map, true, 50, 8, 24) };
        let data = case.data(5);
        let truth = &plain(&case, &data)[0];
        let mut decoder = decoder(&case, &data);
        let rows = data.q.chunks(8).zip(data.k.chunks(8)).zip(data.v.chunks(5));
        let found: Vec<f64> = rows
            .flat_map(|((q, k), v)| {
                decoder.add(k, v);
                decoder.read(q)
            })
            .collect();
        let off = relative(&found, truth);
        assert!(off < 1e-12, "{} {off:.1e}", case.id());
    }
}

#[test]
fn merged_states_equal_noncausal_form() {
    for map in MAPS {
        let case = Case { value_dim: 5, ..Case::new(map, false, 50, 8, 24) };
        let data = case.data(5);
        let truth = &plain(&case, &data)[0];
        for cuts in [[0, 20], [1, 49], [20, 20], [0, 50]] {
            let mut merged = decoder(&case, &data);
            for part in [0..cuts[0], cuts[0]..cuts[1], cuts[1]..50] {
                let mut own = decoder(&case, &data);
                part.for_each(|j| own.add(&data.k[j * 8..][..8], &data.v[j * 5..][..5]));
                merged.merge(&own);
            }
            let found: Vec<f64> = data.q.chunks(8).flat_map(|q| merged.read(q)).collect();
            let off = relative(&found, truth);
            assert!(off < 1e-12, "{} {off:.1e}", case.id());
        }
    }
}

#[test]
fn rows_that_see_no_key_give_zero_and_no_gradient() {
    for map in MAPS {
        for causal in [true, false] {
            let case = Case { masked: true, ..Case::new(map, causal, 12, 4, 6) };
            let mut data = case.data(1);
            data.mask.fill(true);
            for (part, name) in reference::<f64>(&case, &data).iter().zip(PARTS) {
                assert!(part.iter().all(|&x| x == 0.0), "{name} {}", case.id());
            }
        }
    }
}

#[test]
fn a_zero_denominator_gives_zero() {
    let case = Case { directions: Directions::Axes, epsilon: 0.0, ..Case::new(FeatureMap::Relu, true, 6, 3, 3) };
    let mut data = case.data(1);
    data.q.iter_mut().for_each(|x| *x = -x.abs());
    let answer = reference::<f64>(&case, &data);
    assert!(answer.iter().flatten().all(|&x| x == 0.0));
}

#[test]
fn a_later_key_changes_no_bit_of_an_earlier_row() {
    for map in MAPS {
        let case = Case::new(map, true, 40, 8, 16);
        let data = case.data(3);
        let before = reference::<f64>(&case, &data);
        for magnitude in [1.0, 1e3, 1e30, 1e300] {
            let mut changed = data.clone();
            for (i, k) in changed.k[25 * 8..26 * 8].iter_mut().enumerate() {
                // The scaled key lies on a direction: the largest log-feature there can be.
                *k = magnitude * data.omega[5 * 8 + i] * 8f64.powf(0.25);
            }
            changed.v[25 * 8..26 * 8].fill(1e6);
            changed.grad[25 * 8..].fill(0.0);
            let mut unchanged = data.clone();
            unchanged.grad[25 * 8..].fill(0.0);
            let (after, quiet) = (reference::<f64>(&case, &changed), reference::<f64>(&case, &unchanged));
            assert_eq!(after[0][..25 * 8], before[0][..25 * 8], "{}", case.id());
            for part in 1..4 {
                assert_eq!(after[part][..25 * 8], quiet[part][..25 * 8], "{} {}", PARTS[part], case.id());
            }
        }
    }
}

/// Rows of `width` numbers that hold a NaN.
fn nan_rows(x: &[f64], width: usize) -> Vec<usize> {
    let rows = x.chunks(width).enumerate();
    rows.filter(|(_, row)| row.iter().any(|x| x.is_nan())).map(|(at, _)| at).collect()
}

/// The bits of all other rows are those of `other`.
fn assert_same_elsewhere(x: &[f64], other: &[f64], width: usize, what: &str) {
    for (at, (a, b)) in x.chunks(width).zip(other.chunks(width)).enumerate() {
        assert!(a.iter().all(|x| x.is_nan()) || a == b, "{what} row {at}");
    }
}

#[test]
fn what_is_not_finite_reaches_the_outputs_that_see_it_and_no_other() {
    for map in MAPS {
        let case = Case { heads: (2, 1), borders: Some(vec![0, 6, 12]), ..Case::new(map, true, 12, 4, 6) };
        let data = case.data(2);
        let clean = reference::<f64>(&case, &data);
        let check = |case: &Case, data: &Data, expected: &[usize], what: &str| {
            let found = reference::<f64>(case, data);
            assert_eq!(nan_rows(&found[0], 4), expected, "{what} {}", case.id());
            if case.causal {
                assert_same_elsewhere(&found[0], &clean[0], 4, what);
            }
        };
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut query = data.clone();
            query.q[(12 + 3) * 4 + 1] = bad;
            check(&case, &query, &[15], "query");
            let mut key = data.clone();
            key.k[3 * 4] = bad;
            check(&case, &key, &[3, 4, 5, 15, 16, 17], "key");
            let mut value = data.clone();
            value.v[8 * 4 + 3] = bad;
            check(&case, &value, &[8, 9, 10, 11, 20, 21, 22, 23], "value");
            let whole = Case { causal: false, ..case.clone() };
            check(&whole, &key, &[0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17], "noncausal key");
            let padded = Case { masked: true, borders: None, ..case.clone() };
            key.mask[3] = true;
            assert_eq!(nan_rows(&reference::<f64>(&padded, &key)[0], 4), [] as [usize; 0], "padding");
        }
    }
}

#[test]
fn gradients_of_rows_before_a_bad_one_keep_their_bits() {
    for map in MAPS {
        let case = Case::new(map, true, 12, 4, 6);
        let mut data = case.data(2);
        data.grad[7 * 4..].fill(0.0);
        let clean = reference::<f64>(&case, &data);
        data.k[7 * 4] = f64::NAN;
        let quiet = reference::<f64>(&case, &data);
        assert_eq!(quiet[1..], clean[1..], "{}", case.id());
        // One later row speaks: it and every key it sees turn NaN, keys after it do not.
        data.grad[9 * 4] = 1.0;
        let loud = reference::<f64>(&case, &data);
        assert_eq!(nan_rows(&loud[1], 4), [9]);
        assert_eq!(nan_rows(&loud[2], 4), (0..10).collect::<Vec<_>>());
        assert_eq!(nan_rows(&loud[3], 4), (0..10).collect::<Vec<_>>());
        assert!(loud[4].iter().all(|x| x.is_nan()));
    }
}

#[test]
fn extreme_inputs_give_finite_outputs_inside_the_hull() {
    for map in MAPS {
        for (q_scale, k_scale) in [(1e300, 1.0), (1.0, 1e300), (1e300, 1e300), (1e-300, 1e-300), (0.0, 0.0)] {
            let case = Case::new(map, true, 30, 8, 16);
            let mut data = case.data(4);
            data.q.iter_mut().for_each(|x| *x *= q_scale);
            data.k.iter_mut().for_each(|x| *x *= k_scale);
            let answer = reference::<f64>(&case, &data);
            assert!(answer[0].iter().all(|x| x.is_finite()), "{} {q_scale} {k_scale}", case.id());
            if map != FeatureMap::Trigonometric {
                let most = data.v.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                assert!(answer[0].iter().all(|x| x.abs() <= most * (1.0 + 1e-12)), "{}", case.id());
            }
        }
    }
}

#[test]
fn values_of_any_magnitude_scale_the_output() {
    let case = Case::new(FeatureMap::Positive, true, 30, 8, 16);
    let data = case.data(4);
    let unit = reference::<f64>(&case, &data);
    for power in [1000, -1000] {
        let mut scaled = data.clone();
        scaled.v.iter_mut().for_each(|v| *v *= 2f64.powi(power));
        let found = reference::<f64>(&case, &scaled);
        let expected: Vec<f64> = unit[0].iter().map(|x| x * 2f64.powi(power)).collect();
        assert_eq!(found[0], expected);
    }
}

/// Softmax attention and its gradients as plain sums.
fn plain_softmax(case: &Case, data: &Data) -> Answer {
    let (h, hk) = case.heads;
    let (l, s, d, e) = (case.q_len, case.kv_len, case.head_dim, case.value_dim);
    let zeros = |x: &[f64]| vec![0.0; x.len()];
    let mut answer = [zeros(&data.grad), zeros(&data.q), zeros(&data.k), zeros(&data.v), Vec::new()];
    let unit = (d as f64).sqrt().recip();
    for batch_head in 0..case.batch * h {
        let kv = batch_head / h * hk + batch_head % h / (h / hk);
        for i in 0..l {
            let q = &data.q[(batch_head * l + i) * d..][..d];
            let key = |j: usize| &data.k[(kv * s + j) * d..][..d];
            let value = |j: usize| &data.v[(kv * s + j) * e..][..e];
            let seen: Vec<usize> =
                (0..s).filter(|&j| crate::common::sees(case, &data.mask, batch_head / h, i, j)).collect();
            let weight = |j: usize| (q.iter().zip(key(j)).map(|(a, b)| a * b).sum::<f64>() * unit).exp();
            let total: f64 = seen.iter().map(|&j| weight(j)).sum();
            let g = &data.grad[(batch_head * l + i) * e..][..e];
            let out: Vec<f64> = (0..e).map(|c| seen.iter().map(|&j| weight(j) / total * value(j)[c]).sum()).collect();
            for &j in &seen {
                let p = weight(j) / total;
                let dlogit: f64 = p * (0..e).map(|c| g[c] * (value(j)[c] - out[c])).sum::<f64>() * unit;
                (0..d).for_each(|c| answer[1][(batch_head * l + i) * d + c] += dlogit * key(j)[c]);
                (0..d).for_each(|c| answer[2][(kv * s + j) * d + c] += dlogit * q[c]);
                (0..e).for_each(|c| answer[3][(kv * s + j) * e + c] += p * g[c]);
            }
            answer[0][(batch_head * l + i) * e..][..e].copy_from_slice(&out);
        }
    }
    answer
}

/// Softmax attention and its gradients by the library.
fn exact_softmax(case: &Case, data: &Data) -> Answer {
    let typed = data.typed::<f64>();
    let favor = args(case, data, &typed);
    let args = SoftmaxArgs {
        q: favor.q,
        k: favor.k,
        v: favor.v,
        causal: favor.causal,
        cu_seqlens: favor.cu_seqlens,
        key_padding_mask: favor.key_padding_mask,
    };
    let mut out = vec![f64::NAN; data.grad.len()];
    softmax_attention(&args, &mut out, &|| false).unwrap();
    let g = softmax_attention_backward(&args, &grad(case, &typed), &|| false).unwrap();
    [out, g.dq, g.dk, g.dv, Vec::new()]
}

#[test]
fn exact_softmax_matches_the_sums() {
    for causal in [true, false] {
        let case = Case::new(FeatureMap::Positive, causal, 19, 8, 1);
        let cases = [
            Case { scale: 3.0, ..case.clone() },
            Case { batch: 2, heads: (4, 2), masked: true, value_dim: 3, ..case.clone() },
            Case { borders: Some(vec![0, 5, 5, 19]), ..case.clone() },
            Case { kv_len: if causal { 19 } else { 7 }, ..case },
        ];
        for case in cases {
            let data = case.data(9);
            let (found, truth) = (exact_softmax(&case, &data), plain_softmax(&case, &data));
            for part in 0..4 {
                let off = relative(&found[part], &truth[part]);
                assert!(off < 1e-12, "{} {off:.1e} {}", PARTS[part], case.id());
            }
        }
    }
}

#[test]
fn exact_softmax_keeps_what_is_not_finite_to_the_rows_that_see_it() {
    let case = Case { heads: (2, 1), masked: true, ..Case::new(FeatureMap::Positive, true, 8, 4, 1) };
    let mut data = case.data(9);
    data.mask = vec![true, false, false, false, true, false, false, false];
    data.k[4 * 4] = f64::NAN;
    data.v[6 * 4] = f64::INFINITY;
    data.grad[7 * 4..8 * 4].fill(0.0);
    data.grad[15 * 4..].fill(0.0);
    let found = exact_softmax(&case, &data);
    assert_eq!(nan_rows(&found[0], 4), [6, 7, 14, 15]);
    assert!(found[0][..4].iter().all(|&x| x == 0.0), "a row that sees no key");
    assert_eq!(nan_rows(&found[1], 4), [6, 14]);
    assert_eq!(nan_rows(&found[2], 4), [1, 2, 3, 5, 6]);
    let refused = softmax_attention::<f64>(
        &SoftmaxArgs {
            q: TensorRef::contiguous("q", &data.q, [1, 2, 8, 4]).unwrap(),
            k: TensorRef::contiguous("k", &data.k, [1, 1, 8, 4]).unwrap(),
            v: TensorRef::contiguous("v", &data.v, [1, 1, 8, 4]).unwrap(),
            causal: true,
            cu_seqlens: None,
            key_padding_mask: None,
        },
        &mut vec![0.0; 64],
        &|| true,
    );
    assert_eq!(refused, Err(protperf::Error::Interrupted));
}
