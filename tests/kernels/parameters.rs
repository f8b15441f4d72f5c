//! Exponential maps given by their parameters, on every backend: against sums written out, against finite differences,
//! and against named maps that are the same.

use crate::common::passes::{Call, Record};
use crate::common::subjects::subjects;
use crate::common::{Case, Data, relative};
use protperf::rng::Stream;
use protperf::{Backend, FeatureMap, Parameters};

fn on_every_backend(check: impl Fn(&dyn Backend<f64>, &str)) {
    for subject in subjects() {
        check(&*subject.wide, &subject.name);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Every parameter of two heads, small enough that no log-feature dominates.
fn record(case: &Case, per_head: bool, seed: u64) -> Record {
    let mut stream = Stream::new(seed, [9, 0, 0]);
    let (sets, p, d) = (if per_head { case.heads.0 } else { 1 }, case.num_features, case.head_dim);
    let mut normals = |len: usize, scale: f64| (0..len).map(|_| scale * stream.normal()).collect::<Vec<f64>>();
    Record {
        parameters: Parameters {
            query_directions: normals(sets * p * d, 1.0),
            key_directions: Some(normals(sets * p * d, 1.0)),
            // Of any sign: nothing needs it to be positive.
            key_quadratic: Some(normals(sets * d, 1.0)),
            query_constants: Some(normals(sets * p, 2.0)),
            key_constants: Some(normals(sets * p, 2.0)),
        },
        num_heads: per_head.then_some(sets),
        num_projections: p,
    }
}

fn cases() -> Vec<Case> {
    let case = Case { value_dim: 3, heads: (2, 1), ..Case::new(FeatureMap::Positive, true, 9, 4, 6) };
    vec![
        case.clone(),
        Case { causal: false, masked: true, batch: 2, kv_len: 7, ..case.clone() },
        Case { borders: Some(vec![0, 4, 4, 9]), ..case.clone() },
        Case { q_len: 70, kv_len: 70, num_features: 65, head_dim: 5, ..case },
    ]
}

/// One set of the parameters.
fn set(record: &Record, head: usize) -> Parameters<Vec<f64>> {
    let (sets, at) = (record.num_heads.unwrap_or(1), if record.num_heads.is_some() { head } else { 0 });
    record
        .parameters
        .try_map(|field| Ok(field[at * field.len() / sets..(at + 1) * field.len() / sets].to_vec()))
        .unwrap()
}

/// Outputs as sums over pairs and features, by the formulas of a record with the inputs moved by the means.
fn plain(case: &Case, data: &Data, record: &Record, means: [&[f64]; 2]) -> Vec<f64> {
    let (h, hk) = case.heads;
    let (l, s, d, e) = (case.q_len, case.kv_len, case.head_dim, case.value_dim);
    let unit = (d as f64).powf(-0.25);
    let mut out = vec![0.0; data.grad.len()];
    for batch_head in 0..case.batch * h {
        let (kv, own) = (batch_head / h * hk + batch_head % h / (h / hk), set(record, batch_head % h));
        let row = |x: &[f64], at: usize, mean: &[f64]| {
            x[at * d..][..d].iter().zip(mean).map(|(x, mean)| unit * x - mean).collect::<Vec<f64>>()
        };
        let keys = own.key_directions.as_ref().unwrap_or(&own.query_directions);
        let constant = |of: &Option<Vec<f64>>, m: usize| of.as_ref().map_or(0.0, |of| of[m]);
        for i in 0..l {
            let x = row(&data.q, batch_head * l + i, means[0]);
            let log = |j: usize, m: usize| {
                let y = row(&data.k, kv * s + j, means[1]);
                let g = |axis: usize| own.key_quadratic.as_ref().map_or(1.0, |g| g[axis]);
                let h: f64 = (0..d).map(|axis| 0.5 * g(axis) * y[axis] * y[axis]).sum();
                // exp(x.y) = exp((x - mu_q).(y - mu_k)) exp(mu_q.y) times what only the query has.
                let moved = dot(means[0], &y);
                dot(&own.query_directions[m * d..][..d], &x)
                    + constant(&own.query_constants, m)
                    + dot(&keys[m * d..][..d], &y)
                    + constant(&own.key_constants, m)
                    - h
                    + moved
            };
            let seen: Vec<usize> =
                (0..s).filter(|&j| crate::common::sees(case, &data.mask, batch_head / h, i, j)).collect();
            let logs: Vec<Vec<f64>> =
                seen.iter().map(|&j| (0..case.num_features).map(|m| log(j, m)).collect()).collect();
            let top = logs.iter().flatten().fold(f64::NEG_INFINITY, |top: f64, x| top.max(*x));
            let weights: Vec<f64> = logs.iter().map(|row| row.iter().map(|x| (x - top).exp()).sum()).collect();
            let total: f64 = weights.iter().sum();
            for c in (0..e).filter(|_| !seen.is_empty()) {
                let sum: f64 = seen.iter().zip(&weights).map(|(&j, w)| w * data.v[(kv * s + j) * e + c]).sum();
                out[(batch_head * l + i) * e + c] = sum / total;
            }
        }
    }
    out
}

#[test]
fn outputs_are_the_sums_written_out() {
    for case in cases() {
        for per_head in [false, true] {
            let call = Call { record: Some(record(&case, per_head, 3)), ..Call::new(case.clone(), 11) };
            let zero = vec![0.0; case.head_dim];
            let truth = plain(&case, &call.data, call.record.as_ref().unwrap(), [&zero, &zero]);
            on_every_backend(|backend, name| {
                let off = relative(&call.forward(backend).out, &truth);
                assert!(off < 1e-12, "{name} {off:.1e} per_head={per_head} {}", case.id());
            });
        }
    }
}

/// The record of a map whose inputs are moved by the means: w^k + g * mu_k + mu_q, c^q - w^q.mu_q, c^k - w^k.mu_k.
fn shifted(record: &Record, means: [&[f64]; 2], head_dim: usize) -> Record {
    let mut moved = record.clone();
    let own = &mut moved.parameters;
    let keys = own.key_directions.get_or_insert_with(|| own.query_directions.clone());
    let count = own.query_directions.len() / head_dim;
    let (of_queries, of_keys) = (
        own.query_constants.get_or_insert_with(|| vec![0.0; count]),
        own.key_constants.get_or_insert_with(|| vec![0.0; count]),
    );
    for (m, (w_q, w_k)) in own.query_directions.chunks(head_dim).zip(keys.chunks_mut(head_dim)).enumerate() {
        of_queries[m] -= dot(w_q, means[0]);
        of_keys[m] -= dot(w_k, means[1]);
        for (axis, w) in w_k.iter_mut().enumerate() {
            let g = own.key_quadratic.as_ref().map_or(1.0, |g| g[axis]);
            *w += g * means[1][axis] + means[0][axis];
        }
    }
    moved
}

#[test]
fn a_shift_of_the_means_folds_into_directions_and_constants() {
    for case in cases() {
        for only_directions in [false, true] {
            let call = Call::new(case.clone(), 11);
            let mut record = record(&case, false, 3);
            if only_directions {
                record.parameters = Parameters::of_directions(record.parameters.query_directions);
            }
            let mut stream = Stream::new(1, [0, 0, 0]);
            let [of_queries, of_keys] =
                [0, 1].map(|_| (0..case.head_dim).map(|_| stream.normal()).collect::<Vec<f64>>());
            let means = [&of_queries[..], &of_keys[..]];
            let truth = plain(&case, &call.data, &record, means);
            let call = Call { record: Some(shifted(&record, means, case.head_dim)), ..call };
            on_every_backend(|backend, name| {
                let off = relative(&call.forward(backend).out, &truth);
                assert!(off < 1e-12, "{name} {off:.1e} only_directions={only_directions} {}", case.id());
            });
        }
    }
}

#[test]
fn a_record_of_directions_alone_has_the_bits_of_the_positive_map() {
    for case in cases() {
        let named = Call::new(case.clone(), 11);
        let record = Record {
            parameters: Parameters::of_directions(named.data.omega.clone()),
            num_heads: None,
            num_projections: case.num_features,
        };
        let given = Call { record: Some(record), ..named.clone() };
        on_every_backend(|backend, name| {
            let (found, expected) = (given.forward(backend), named.forward(backend));
            assert_eq!(found.out, expected.out, "{name} {}", case.id());
            let (found, expected) = (given.backward(backend, None), named.backward(backend, None));
            assert_eq!(found.dq, expected.dq, "{name} {}", case.id());
            assert_eq!(found.dk, expected.dk, "{name} {}", case.id());
            assert_eq!(found.record.unwrap().query_directions, expected.domega, "{name} {}", case.id());
        });
    }
}

#[test]
fn gradients_of_every_parameter_match_finite_differences() {
    for case in cases() {
        for per_head in [false, true] {
            let call = Call { record: Some(record(&case, per_head, 3)), ..Call::new(case.clone(), 11) };
            on_every_backend(|backend, name| {
                let mut found = call.backward(backend, None);
                let loss = |call: &Call| dot(&call.forward(backend).out, &call.data.grad);
                let gradients: Vec<Vec<f64>> =
                    found.record.as_mut().unwrap().fields_mut().map(|field| field.clone()).collect();
                let names = call.record.as_ref().unwrap().parameters.named().map(|(name, _)| name);
                for (at, (what, gradient)) in names.into_iter().zip(&gradients).enumerate() {
                    let mut stream = Stream::new(at as u64, [4, 0, 0]);
                    let direction: Vec<f64> = gradient.iter().map(|_| stream.normal()).collect();
                    let step = 1e-5;
                    let moved = |step: f64| {
                        let mut moved = call.clone();
                        let field = moved.record.as_mut().unwrap().parameters.fields_mut().nth(at).unwrap();
                        field.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                        loss(&moved)
                    };
                    let (slope, expected) = ((moved(step) - moved(-step)) / (2.0 * step), dot(gradient, &direction));
                    let off = (slope - expected).abs() / (1.0 + expected.abs());
                    assert!(off < 1e-6, "{name} {what}: {slope} against {expected}, {}", case.id());
                }
                for (what, gradient, of_keys) in [("dq", &found.dq, false), ("dk", &found.dk, true)] {
                    let mut stream = Stream::new(17, [4, 0, 0]);
                    let direction: Vec<f64> = gradient.iter().map(|_| stream.normal()).collect();
                    let moved = |step: f64| {
                        let mut moved = call.clone();
                        let field = if of_keys { &mut moved.data.k } else { &mut moved.data.q };
                        field.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                        loss(&moved)
                    };
                    let (slope, expected) = ((moved(1e-5) - moved(-1e-5)) / 2e-5, dot(gradient, &direction));
                    let off = (slope - expected).abs() / (1.0 + expected.abs());
                    assert!(off < 1e-6, "{name} {what}: {slope} against {expected}, {}", case.id());
                }
            });
        }
    }
}

#[test]
fn parameters_that_do_not_fit_are_refused_by_name() {
    use protperf::{FavorArgs, LogLinear, MapArgs, TensorRef};
    let x = [0.0; 8];
    let tensor = TensorRef::contiguous("q", &x, [1, 1, 2, 4]).unwrap();
    let check = |parameters: Parameters<&[f64]>, num_heads, head_dim| {
        let map = MapArgs::LogLinear(LogLinear { parameters, num_heads, num_projections: 2, head_dim });
        let (causal, cu_seqlens, key_padding_mask) = (false, None, None);
        let args = FavorArgs { q: tensor, k: tensor, v: tensor, map, causal, cu_seqlens, key_padding_mask };
        args.validate().map_err(|error| error.to_string())
    };
    let directions = Parameters::of_directions(&x[..]);
    assert!(check(directions, None, 4).is_ok());
    let short = &x[..1];
    for (parameters, message) in [
        (Parameters::of_directions(short), "query_directions has 1 elements"),
        (Parameters { key_directions: Some(short), ..directions }, "key_directions has 1 elements"),
        (Parameters { key_quadratic: Some(short), ..directions }, "key_quadratic has 1 elements"),
        (Parameters { query_constants: Some(short), ..directions }, "query_constants has 1 elements"),
        (Parameters { key_constants: Some(short), ..directions }, "key_constants has 1 elements"),
    ] {
        let found = check(parameters, None, 4).unwrap_err();
        assert!(found.starts_with(message), "{found}");
    }
    assert!(check(directions, Some(3), 4).unwrap_err().contains("has 3 heads but q has 1"));
    assert!(check(directions, None, 5).unwrap_err().contains("has 5 columns but q has head_dim 4"));
}
