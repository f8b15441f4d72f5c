//! Passes from a state to a state against the f64 reference: outputs, final states, and gradients through both.

use crate::harness::{Answer, Case, Map, PARTS, bits, error, first_state, maps, no_keys, run};
use protperf_core::reference::Reference;
use protperf_core::{FeatureMap, Stored};
use protperf_cpu::{Cpu, CpuStored, Isa};

fn truth<S: Stored>(case: &Case, data: &crate::harness::Data, first: Option<&[S::Compute]>) -> Answer {
    run::<S>(&Reference, case, data, first, None, 1)
}

/// How far an answer in f32 may be off: trigonometric sums cancel.
fn bound_f32(case: &Case) -> f64 {
    if case.map == Map::Named(FeatureMap::Trigonometric) { 5e-4 } else { 3e-5 }
}

fn assert_matches<S: CpuStored>(case: &Case, bound: f64) {
    let data = case.data(5);
    let first = case.states.then(|| first_state::<S>(case, 6));
    let truth = truth::<S>(case, &data, first.as_deref());
    let references = case.states.then_some(&truth.references[..]);
    for isa in Isa::available() {
        let one = run::<S>(&Cpu::new(isa), case, &data, first.as_deref(), references, 1);
        for (part, name) in PARTS.iter().enumerate() {
            let off = error(&one.parts[part], &truth.parts[part]);
            assert!(off < bound, "{name} {} {off:.1e} {isa:?} {case:?}", S::NAME);
        }
        let many = run::<S>(&Cpu::new(isa), case, &data, first.as_deref(), references, 3);
        let same = one.parts.iter().zip(&many.parts).all(|(one, many)| bits(one) == bits(many));
        assert!(same, "threads {} {isa:?} {case:?}", S::NAME);
    }
}

fn assert_matches_in_both_types(case: &Case) {
    assert_matches::<f64>(case, 1e-10);
    assert_matches::<f32>(case, bound_f32(case));
}

#[test]
fn passes_match_at_odd_lengths() {
    for map in maps() {
        for causal in [false, true] {
            for len in [0, 1, 15, 17, 63, 65, 130] {
                for masked in [false, true] {
                    assert_matches_in_both_types(&Case { masked, ..Case::new(map, causal, len, [5, 3, 18]) });
                }
            }
            assert_matches_in_both_types(&Case::new(map, causal, 70, [17, 16, 66]));
        }
    }
}

#[test]
fn passes_match_with_groups_heads_and_segments() {
    for map in maps() {
        for causal in [false, true] {
            let case = Case { heads: (4, 2), per_head: true, ..Case::new(map, causal, 67, [6, 5, 9]) };
            assert_matches_in_both_types(&Case { batch: 2, masked: true, ..case.clone() });
            assert_matches_in_both_types(&Case { borders: Some(vec![0, 0, 20, 21, 67, 67]), ..case });
        }
    }
}

#[test]
fn queries_read_a_state_with_keys_of_another_length_or_none() {
    for map in maps() {
        for (q_len, kv_len) in [(9, 0), (130, 0), (0, 9), (1, 80), (70, 3)] {
            let case = Case { q_len, kv_len, heads: (2, 1), ..Case::new(map, false, 0, [5, 4, 10]) };
            assert_matches_in_both_types(&case);
        }
    }
}

#[test]
fn passes_of_long_sequences_match_across_blocks() {
    for map in [Map::Named(FeatureMap::Positive), Map::Named(FeatureMap::Elu1), Map::Record([true; 4])] {
        for causal in [false, true] {
            let case = Case { heads: (2, 1), masked: true, ..Case::new(map, causal, 2060, [2, 1, 3]) };
            assert_matches_in_both_types(&case);
            let borders = Some(vec![0, 7, 2200]);
            assert_matches_in_both_types(&Case { borders, ..Case::new(map, causal, 2200, [2, 1, 3]) });
        }
    }
    let case = Case { q_len: 1300, kv_len: 0, ..Case::new(Map::Named(FeatureMap::Smreg), false, 0, [3, 2, 5]) };
    assert_matches_in_both_types(&case);
}

#[test]
fn references_that_rise_far_are_followed() {
    for map in [Map::Named(FeatureMap::Positive), Map::Named(FeatureMap::Hyperbolic), Map::Record([true; 4])] {
        for causal in [false, true] {
            // From a state that has seen short keys no row looks far ahead; without one, rows are computed again.
            for (rise, states) in [(8.0, true), (3.0, false), (40.0, false)] {
                let case = Case { rise, states, ..Case::new(map, causal, 130, [6, 4, 20]) };
                assert_matches::<f64>(&case, 1e-8);
                // Log-features of thousands of bits have few bits left for their fraction in f32.
                assert_matches::<f32>(&case, 2e-2);
            }
        }
    }
}

/// Rows `from..to` of every tensor of a case with one batch entry and head.
fn piece(data: &crate::harness::Data, case: &Case, from: usize, to: usize) -> (Case, crate::harness::Data) {
    let (d, e) = (case.head_dim, case.value_dim);
    let mut piece = data.clone();
    let rows = |x: &[f64], width: usize| x[from * width..to * width].to_vec();
    (piece.q, piece.k) = (rows(&data.q, d), rows(&data.k, d));
    (piece.v, piece.grad) = (rows(&data.v, e), rows(&data.grad, e));
    piece.mask = data.mask[from..to].to_vec();
    (Case { q_len: to - from, kv_len: to - from, ..case.clone() }, piece)
}

/// The gradients of a sequence that is passed in pieces, each of which hands its gradient to the one before, are those
/// of the whole.
#[test]
fn gradients_flow_from_piece_to_piece() {
    use protperf_core::backend::{Backend, FinalState, Gradients, Outputs, Saved};
    use protperf_core::{Execution, MapGradients, TensorRef};
    let cancel = std::sync::atomic::AtomicBool::new(false);
    let execution = Execution { num_threads: 2, cancel: &cancel };
    for map in crate::harness::MAPS {
        let case = Case { states: false, masked: true, ..Case::new(Map::Named(map), true, 150, [5, 3, 12]) };
        let data = case.data(9);
        for isa in Isa::available() {
            let cpu = Cpu::new(isa);
            let whole = run::<f64>(&cpu, &case, &data, None, None, 1);
            let pieces = [(0, 1), (1, 70), (70, 133), (133, 150)].map(|(from, to)| piece(&data, &case, from, to));
            let mut states = vec![no_keys::<f64>(&case, &data)];
            let mut outs = Vec::new();
            for (case, data) in &pieces {
                let typed = crate::harness::Typed::<f64>::new(data);
                let (mut out, mut den) = (vec![f64::NAN; data.grad.len()], vec![f64::NAN; case.q_len * 2]);
                let mut next = vec![f64::NAN; states[0].len()];
                let state_in = states.last().map(Vec::as_slice);
                let outputs = Outputs { state_in, out: &mut out, den: &mut den, state_out: Some(&mut next) };
                cpu.forward(&crate::harness::args(case, data, &typed), outputs, &execution).unwrap();
                states.push(next);
                outs.push((out, den));
            }
            let mut arriving = vec![0.0; states[0].len()];
            let mut found = [vec![], vec![], vec![]];
            let mut domega = vec![0.0; data.fields[0].len()];
            for at in (0..pieces.len()).rev() {
                let (case, data) = &pieces[at];
                let typed = crate::harness::Typed::<f64>::new(data);
                let shape = [1, 1, case.q_len, case.value_dim];
                let saved = Saved {
                    out: TensorRef::contiguous("out", &outs[at].0, shape).unwrap(),
                    den: &outs[at].1,
                    grad: TensorRef::contiguous("grad", &typed.grad, shape).unwrap(),
                    state_in: Some(&states[at]),
                    final_state: Some(FinalState { state: &states[at + 1], grad: &arriving }),
                };
                let mut grads = [vec![0.0; data.q.len()], vec![0.0; data.k.len()], vec![0.0; data.v.len()]];
                let (mut own, mut before) = (vec![0.0; domega.len()], vec![f64::NAN; arriving.len()]);
                let [dq, dk, dv] = &mut grads;
                let map = Some(MapGradients::Omega(&mut own));
                let gradients = Gradients { dq, dk, dv, map, state_in: Some(&mut before) };
                cpu.backward(&crate::harness::args(case, data, &typed), &saved, gradients, &execution).unwrap();
                arriving = before;
                domega.iter_mut().zip(own).for_each(|(to, x)| *to += x);
                for (found, grads) in found.iter_mut().zip(grads) {
                    found.splice(0..0, grads);
                }
            }
            let [dq, dk, dv] = found;
            for (part, found) in [(2, dq), (3, dk), (4, dv), (5, domega)] {
                let off = error(&found, &whole.parts[part]);
                assert!(off < 1e-11, "{} {off:.1e} {isa:?} {}", PARTS[part], map.name());
            }
        }
    }
}

#[test]
fn the_gradient_of_an_empty_state_is_what_arrives_where_no_key_is_seen_and_else_zero() {
    for map in crate::harness::MAPS {
        for causal in [false, true] {
            for len in [0, 1, 20] {
                let case = Case::new(Map::Named(map), causal, len, [4, 2, 6]);
                let data = case.data(3);
                let empty = no_keys::<f64>(&case, &data);
                let truth = truth::<f64>(&case, &data, Some(&empty));
                for isa in Isa::available() {
                    let found = run::<f64>(&Cpu::new(isa), &case, &data, Some(&empty), Some(&truth.references), 2);
                    for part in [1, 3, 4, 6] {
                        let off = error(&found.parts[part], &truth.parts[part]);
                        assert!(off < 1e-11, "{} {off:.1e} {isa:?} {case:?}", PARTS[part]);
                    }
                    let arrived = found.parts[6].iter().any(|&x| x != 0.0);
                    assert_eq!(arrived, len == 0, "{isa:?} {case:?}");
                }
            }
        }
    }
}
