//! Passes from a state to a state, forward and backward, on every backend: against finite differences, against the
//! whole sequence, and with special values.

use crate::common::passes::{Call, references, sums_at};
use crate::common::subjects::subjects;
use crate::common::{Case, Directions, MAPS, relative};
use protperf::rng::Stream;
use protperf::state::merge_states;
use protperf::{Backend, FeatureMap};
use std::sync::atomic::AtomicBool;

/// Runs a check on every backend.
fn on_every_backend(check: impl Fn(&dyn Backend<f64>, &str)) {
    for subject in subjects() {
        check(&*subject.wide, &subject.name);
    }
}

fn normals(seed: u64, len: usize) -> Vec<f64> {
    let mut stream = Stream::new(seed, [7, 0, 0]);
    (0..len).map(|_| stream.normal()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Calls of one map: padded with shared key heads, packed with an empty segment, and queries that read a state alone.
fn calls(map: FeatureMap, causal: bool) -> Vec<Call> {
    let case = Case { value_dim: 3, heads: (2, 1), ..Case::new(map, causal, 9, 4, 6) };
    let mut cases = vec![
        Case { masked: true, batch: 2, directions: Directions::PerHead, ..case.clone() },
        Case { borders: Some(vec![0, 4, 4, 9]), ..case.clone() },
    ];
    if !causal {
        cases.push(Case { kv_len: 5, ..case.clone() });
        cases.push(Case { kv_len: 0, ..case });
    }
    cases.into_iter().map(|case| Call::new(case, 11)).map(with_state).collect()
}

/// The call after a state that other keys left; of packed sequences, one state each.
fn with_state(call: Call) -> Call {
    let states = call.case.borders.as_ref().map_or(call.case.batch, |borders| borders.len() - 1);
    let earlier = Case { batch: states, borders: None, masked: false, q_len: 7, kv_len: 7, ..call.case.clone() };
    let mut earlier = Call::new(earlier, 23);
    earlier.data.omega = call.data.omega.clone();
    let state = earlier.forward(&protperf::reference::Reference).state_out;
    Call { state_in: Some(state), ..call }
}

/// `sum(out * grad) + sum(state * grad_state)` with the state's sums relative to the references of `at`.
fn loss(call: &Call, backend: &dyn Backend<f64>, grad_state: &[f64], at: &[f64]) -> f64 {
    let e = call.case.value_dim;
    let passed = call.forward(backend);
    let of_sums: Vec<f64> = grad_state.chunks(e + 2).flat_map(|row| row[1..].to_vec()).collect();
    dot(&passed.out, &call.data.grad) + dot(&sums_at(&passed.state_out, &references(at, e), e), &of_sums)
}

/// An input of a call.
type Field = fn(&mut Call) -> &mut Vec<f64>;

#[test]
fn gradients_through_states_match_finite_differences() {
    for map in MAPS {
        for call in [true, false].into_iter().flat_map(|causal| calls(map, causal)) {
            on_every_backend(|backend, name| {
                let after = call.forward(backend).state_out;
                let grad_state = normals(5, after.len());
                let found = call.backward(backend, Some(&grad_state));
                let fields: [(&str, &[f64], Field); 5] = [
                    ("dq", &found.dq, |call| &mut call.data.q),
                    ("dk", &found.dk, |call| &mut call.data.k),
                    ("dv", &found.dv, |call| &mut call.data.v),
                    ("domega", &found.domega, |call| &mut call.data.omega),
                    ("dstate_in", &found.state_in, |call| call.state_in.as_mut().unwrap()),
                ];
                for (seed, (what, gradient, field)) in fields.into_iter().enumerate() {
                    let mut direction = normals(seed as u64, gradient.len());
                    if what == "dstate_in" {
                        direction.iter_mut().step_by(call.case.value_dim + 2).for_each(|reference| *reference = 0.0);
                    }
                    let step = 1e-5;
                    let moved = |step: f64| {
                        let mut moved = call.clone();
                        field(&mut moved).iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                        loss(&moved, backend, &grad_state, &after)
                    };
                    let (slope, expected) = ((moved(step) - moved(-step)) / (2.0 * step), dot(gradient, &direction));
                    let off = (slope - expected).abs() / (1.0 + expected.abs());
                    assert!(off < 1e-6, "{name} {what}: {slope} against {expected}, {}", call.case.id());
                }
            });
        }
    }
}

#[test]
fn a_sequence_in_two_parts_has_the_outputs_state_and_gradients_of_the_whole() {
    for map in MAPS {
        let case = Case { heads: (2, 2), value_dim: 3, masked: true, ..Case::new(map, true, 150, 4, 6) };
        let whole = Call::new(case, 3);
        on_every_backend(|backend, name| {
            let passed = whole.forward(backend);
            let grad_state = normals(5, passed.state_out.len());
            let expected = whole.backward(backend, Some(&grad_state));
            for cut in [0, 1, 63, 64, 65, 149, 150] {
                let (mut first, mut second) = (whole.part(0..cut), whole.part(cut..150));
                first.state_in = Some(first.empty());
                let between = first.forward(backend);
                second.state_in = Some(between.state_out.clone());
                let last = second.forward(backend);
                let e = whole.case.value_dim;
                let units = references(&passed.state_out, e);
                let off = relative(&sums_at(&last.state_out, &units, e), &sums_at(&passed.state_out, &units, e));
                assert!(off < 1e-13, "{name} state {off:.1e} cut at {cut} {}", whole.case.id());
                let of_last = rescaled(&grad_state, &passed.state_out, &last.state_out, e);
                let of_second = second.backward(backend, Some(&of_last));
                let of_first = first.backward(backend, Some(&of_second.state_in));
                let pairs = [
                    ("out", joined(&between.out, &last.out, 2), &passed.out),
                    ("dq", joined(&of_first.dq, &of_second.dq, 2), &expected.dq),
                    ("dk", joined(&of_first.dk, &of_second.dk, 2), &expected.dk),
                    ("dv", joined(&of_first.dv, &of_second.dv, 2), &expected.dv),
                ];
                for (what, found, expected) in &pairs {
                    let off = relative(found, expected);
                    assert!(off < 1e-11, "{name} {what} {off:.1e} cut at {cut} {}", whole.case.id());
                }
                let domega: Vec<f64> = of_first.domega.iter().zip(&of_second.domega).map(|(a, b)| a + b).collect();
                let off = relative(&domega, &expected.domega);
                assert!(off < 1e-10, "{name} domega {off:.1e} cut at {cut} {}", whole.case.id());
            }
        });
    }
}

/// Rows of two parts of every head, one after the other.
fn joined(first: &[f64], second: &[f64], heads: usize) -> Vec<f64> {
    let of = |x: &[f64], head: usize| x[head * x.len() / heads..(head + 1) * x.len() / heads].to_vec();
    (0..heads).flat_map(|head| [of(first, head), of(second, head)].concat()).collect()
}

/// A gradient of the sums of `from` as one of the sums of `to`, whose references may differ.
fn rescaled(grad: &[f64], from: &[f64], to: &[f64], value_dim: usize) -> Vec<f64> {
    let width = value_dim + 2;
    let rows = grad.chunks(width).zip(from.chunks(width).zip(to.chunks(width)));
    rows.flat_map(|(grad, (from, to))| grad.iter().map(|g| g * (to[0] - from[0]).exp2()).collect::<Vec<_>>()).collect()
}

#[test]
fn queries_alone_read_a_state_as_they_read_its_keys() {
    for map in MAPS {
        let case = Case { heads: (2, 1), value_dim: 3, q_len: 70, kv_len: 90, ..Case::new(map, false, 70, 4, 6) };
        let with_keys = Call::new(case.clone(), 3);
        let mut alone = Call::new(Case { kv_len: 0, ..case }, 3);
        (alone.data.q, alone.data.grad) = (with_keys.data.q.clone(), with_keys.data.grad.clone());
        alone.data.omega = with_keys.data.omega.clone();
        on_every_backend(|backend, name| {
            let whole = with_keys.forward(backend);
            let reader = Call { state_in: Some(whole.state_out.clone()), ..alone.clone() };
            let off = relative(&reader.forward(backend).out, &whole.out);
            assert!(off < 1e-13, "{name} {off:.1e} {}", with_keys.case.id());
            let (found, expected) = (reader.backward(backend, None), with_keys.backward(backend, None));
            let off = relative(&found.dq, &expected.dq);
            assert!(off < 1e-12, "{name} dq {off:.1e} {}", with_keys.case.id());
        });
    }
}

#[test]
fn states_of_packed_sequences_are_those_of_each_alone() {
    for map in MAPS {
        for causal in [true, false] {
            let case = Case { heads: (2, 1), borders: Some(vec![0, 70, 70, 100]), ..Case::new(map, causal, 100, 4, 6) };
            let packed = with_state(Call::new(case, 3));
            on_every_backend(|backend, name| {
                let together = packed.forward(backend);
                let grad_state = normals(5, together.state_out.len());
                let pulled = packed.backward(backend, Some(&grad_state));
                let size = together.state_out.len() / 3;
                for (segment, range) in [0..70, 70..70, 70..100].into_iter().enumerate() {
                    let own = segment * size..(segment + 1) * size;
                    let mut alone = packed.part(range);
                    alone.case.borders = None;
                    alone.state_in = packed.state_in.as_ref().map(|all| all[own.clone()].to_vec());
                    let found = alone.forward(backend).state_out;
                    let off = relative(&found, &together.state_out[own.clone()]);
                    assert!(off < 1e-13, "{name} state {off:.1e} segment {segment} {}", packed.case.id());
                    let found = alone.backward(backend, Some(&grad_state[own.clone()])).state_in;
                    let off = relative(&found, &pulled.state_in[own]);
                    assert!(off < 1e-12, "{name} gradient {off:.1e} segment {segment} {}", packed.case.id());
                }
            });
        }
    }
}

#[test]
fn a_pass_over_no_keys_returns_its_state_and_its_gradient() {
    for map in MAPS {
        for causal in [true, false] {
            let call = with_state(Call::new(Case::new(map, causal, 0, 4, 6), 3));
            let empty = Call { state_in: Some(call.empty()), ..call.clone() };
            on_every_backend(|backend, name| {
                for call in [&call, &empty] {
                    let state = call.forward(backend).state_out;
                    assert_eq!(Some(&state), call.state_in.as_ref(), "{name} {}", call.case.id());
                    let mut grad = normals(5, state.len());
                    let found = call.backward(backend, Some(&grad)).state_in;
                    grad.iter_mut().step_by(call.case.value_dim + 2).for_each(|reference| *reference = 0.0);
                    assert_eq!(found, grad, "{name} {}", call.case.id());
                }
            });
        }
    }
}

#[test]
fn backends_read_the_states_of_each_other() {
    for map in MAPS {
        let whole = Call::new(Case { heads: (2, 2), value_dim: 3, ..Case::new(map, true, 150, 4, 6) }, 3);
        let all = subjects();
        for writer in &all {
            let state = whole.part(0..80).forward(&*writer.wide).state_out;
            for reader in &all {
                let second = Call { state_in: Some(state.clone()), ..whole.part(80..150) };
                let (found, expected) = (second.forward(&*reader.wide).out, whole.forward(&*reader.wide).out);
                let expected: Vec<f64> = expected.chunks(150 * 3).flat_map(|head| head[80 * 3..].to_vec()).collect();
                let off = relative(&found, &expected);
                assert!(off < 1e-12, "{} after {} {off:.1e} {}", reader.name, writer.name, whole.case.id());
            }
        }
    }
}

#[test]
fn merged_states_answer_as_the_state_of_all_keys() {
    for map in MAPS {
        let whole = Call::new(Case { heads: (2, 2), value_dim: 3, ..Case::new(map, true, 150, 4, 6) }, 3);
        on_every_backend(|backend, name| {
            let expected = whole.forward(backend).state_out;
            let [first, second] = [0..90, 90..150].map(|part| whole.part(part).forward(backend).state_out);
            let mut merged = vec![f64::NAN; expected.len()];
            merge_states(&first, &second, 3, &mut merged, &AtomicBool::new(false)).unwrap();
            let units = references(&expected, 3);
            let off = relative(&sums_at(&merged, &units, 3), &sums_at(&expected, &units, 3));
            assert!(off < 1e-13, "{name} {off:.1e} {}", whole.case.id());
        });
    }
}

/// Which entries are NaN.
fn nans(x: &[f64]) -> Vec<bool> {
    x.iter().map(|x| x.is_nan()).collect()
}

#[test]
fn what_is_not_finite_reaches_states_and_their_gradients_as_in_the_reference() {
    for map in MAPS {
        for call in [true, false].into_iter().flat_map(|causal| calls(map, causal)) {
            for bad in 0..6 {
                let mut call = call.clone();
                let reference = &protperf::reference::Reference;
                let mut grad_state = normals(5, call.empty().len());
                let field = match bad {
                    0 => &mut call.data.q,
                    1 => &mut call.data.k,
                    2 => &mut call.data.v,
                    3 => call.state_in.as_mut().unwrap(),
                    4 => &mut call.data.omega,
                    _ => &mut grad_state,
                };
                let Some(last) = field.len().checked_sub(1) else { continue };
                field[last / 2] = f64::NAN;
                if bad == 5 {
                    field[last] = f64::NAN;
                }
                let (truth, expected) = (call.forward(reference), call.backward(reference, Some(&grad_state)));
                assert!(bad == 5 || bad == 0 || nans(&truth.state_out).contains(&true) || call.case.masked);
                on_every_backend(|backend, name| {
                    let (passed, pulled) = (call.forward(backend), call.backward(backend, Some(&grad_state)));
                    let pairs = [
                        ("out", &passed.out, &truth.out),
                        ("dq", &pulled.dq, &expected.dq),
                        ("dk", &pulled.dk, &expected.dk),
                        ("dv", &pulled.dv, &expected.dv),
                        ("domega", &pulled.domega, &expected.domega),
                        ("dstate_in", &pulled.state_in, &expected.state_in),
                    ];
                    for (what, found, truth) in pairs {
                        assert_eq!(nans(found), nans(truth), "{name} {what} bad {bad} {}", call.case.id());
                    }
                    let width = call.case.value_dim + 2;
                    let of_sums = |state: &[f64]| nans(state).chunks(width).flat_map(|row| row[1..].to_vec()).collect();
                    let (found, truth): (Vec<bool>, Vec<bool>) =
                        (of_sums(&passed.state_out), of_sums(&truth.state_out));
                    assert_eq!(found, truth, "{name} state bad {bad} {}", call.case.id());
                });
            }
        }
    }
}

#[test]
fn a_number_of_omega_that_is_not_finite_is_nan_in_every_output_of_its_heads_and_in_no_other() {
    for map in MAPS {
        for causal in [true, false] {
            for directions in [Directions::Shared, Directions::PerHead] {
                let case = Case { heads: (2, 2), directions, masked: true, ..Case::new(map, causal, 12, 4, 6) };
                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    let mut call = Call::new(case.clone(), 3);
                    // The second head's where heads have matrices of their own.
                    *call.data.omega.last_mut().unwrap() = bad;
                    on_every_backend(|backend, name| {
                        let (passed, pulled) = (call.forward(backend), call.backward(backend, None));
                        let half = passed.out.len() / 2;
                        assert!(passed.out[half..].iter().all(|x| x.is_nan()), "{name} out {}", call.case.id());
                        assert!(pulled.dq[half..].iter().all(|x| x.is_nan()), "{name} dq {}", call.case.id());
                        let visible =
                            |x: &[f64]| (0..12).filter(|j| !call.data.mask[*j]).all(|j| x[48 + j * 4].is_nan());
                        assert!(visible(&pulled.dk) && visible(&pulled.dv), "{name} dk, dv {}", call.case.id());
                        assert!(pulled.domega[pulled.domega.len() - 24..].iter().all(|x| x.is_nan()), "{name} domega");
                        if directions == Directions::PerHead {
                            let others =
                                passed.out[..half].iter().chain(&pulled.dq[..half]).chain(&pulled.domega[..24]);
                            assert!(others.into_iter().all(|x| x.is_finite()), "{name} head 0 {}", call.case.id());
                        }
                    });
                }
            }
        }
    }
}
