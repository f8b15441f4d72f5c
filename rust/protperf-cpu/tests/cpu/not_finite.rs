//! A number that is not finite is never swallowed: wherever it stands, what sees it is NaN, and nothing else.

use crate::harness::{Case, Data, Map, PARTS, bits, first_state, maps, run};
use protperf_core::reference::Reference;
use protperf_cpu::{Cpu, Isa};

const BAD: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// NaN exactly where the reference has it; elsewhere the bits of a call without what is bad.
fn assert_reaches(case: &Case, data: &Data, first: &[f32], what: &str) {
    let truth = run::<f32>(&Reference, case, data, Some(first), None, 1);
    for isa in Isa::available() {
        for num_threads in [1, 3] {
            let found = run::<f32>(&Cpu::new(isa), case, data, Some(first), None, num_threads);
            for (part, name) in PARTS.iter().enumerate() {
                let is_nan = |x: &[f64]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
                let (found, truth) = (is_nan(&found.parts[part]), is_nan(&truth.parts[part]));
                assert!(found == truth, "{name} after {what} {isa:?} {case:?}");
            }
        }
    }
}

fn shapes(map: Map) -> impl Iterator<Item = Case> {
    [false, true].into_iter().flat_map(move |causal| {
        let case = Case { heads: (2, 1), per_head: true, ..Case::new(map, causal, 40, [4, 3, 6]) };
        let packed = Case { borders: Some(vec![0, 10, 10, 40]), per_head: false, ..case.clone() };
        let long = Case { q_len: 2100, kv_len: 2100, ..case.clone() };
        [case.clone(), Case { masked: true, ..case }, packed, long]
    })
}

#[test]
fn a_bad_number_among_the_parameters_reaches_its_heads_and_no_others() {
    for map in maps() {
        for case in shapes(map) {
            let (data, first) = (case.data(1), first_state::<f32>(&case, 2));
            let num_fields = if let Map::Record(_) = map { 5 } else { 1 };
            for field in 0..num_fields {
                for (at, bad) in [0, data.fields[field].len() - 1].into_iter().zip(BAD) {
                    let mut data = data.clone();
                    data.fields[field][at] = bad;
                    let found = run::<f32>(&Cpu::new(Isa::Scalar), &case, &data, Some(&first), None, 1);
                    assert!(found.parts[0].iter().any(|x| x.is_nan()), "field {field} {bad} {case:?}");
                    assert_reaches(&case, &data, &first, &format!("{bad} in field {field}"));
                }
            }
        }
    }
}

#[test]
fn parameters_of_nothing_but_nan_give_nothing_but_nan() {
    for map in maps() {
        let case = Case { states: false, ..Case::new(map, true, 30, [4, 3, 6]) };
        let mut data = case.data(1);
        data.fields.iter_mut().for_each(|field| field.fill(f64::NAN));
        for isa in Isa::available() {
            let found = run::<f32>(&Cpu::new(isa), &case, &data, None, None, 1);
            for part in [0, 2, 3, 4, 5] {
                assert!(found.parts[part].iter().all(|x| x.is_nan()), "{} {isa:?} {case:?}", PARTS[part]);
            }
        }
    }
}

/// Finite as it was given, infinite in the type that is computed in.
#[test]
fn a_parameter_beyond_the_range_of_the_computation_is_not_swallowed() {
    for map in maps() {
        let case = Case { states: false, ..Case::new(map, false, 20, [4, 3, 6]) };
        let mut data = case.data(1);
        data.fields[0][5] = 1e200;
        if map == Map::Named(protperf_core::FeatureMap::Smreg) {
            // Only the direction of a row counts there.
            continue;
        }
        for isa in Isa::available() {
            let found = run::<f32>(&Cpu::new(isa), &case, &data, None, None, 1);
            assert!(found.parts[0].iter().all(|x| x.is_nan()), "{isa:?} {case:?}");
        }
    }
}

#[test]
fn a_bad_state_reaches_its_own_head_and_segment() {
    for map in maps() {
        for case in shapes(map) {
            let data = case.data(1);
            for (column, bad) in BAD.into_iter().enumerate() {
                let mut first = first_state::<f32>(&case, 2);
                let row = 2 + case.value_dim;
                first[row + column] = bad as f32;
                assert_reaches(&case, &data, &first, &format!("{bad} in column {column} of the state"));
            }
        }
    }
}

#[test]
fn what_arrives_at_the_final_state_and_is_bad_reaches_keys_and_first_state() {
    for map in maps() {
        for case in shapes(map) {
            let first = first_state::<f32>(&case, 2);
            for (at, bad) in [1, 2, 4].into_iter().zip(BAD) {
                let mut data = case.data(1);
                data.grad_state[at] = bad;
                assert_reaches(&case, &data, &first, &format!("{bad} in the gradient of the state"));
            }
            // Nothing arrives at a state that saw a bad key: its gradient of zeros reaches nothing.
            let mut data = case.data(1);
            data.grad_state.fill(0.0);
            data.grad.fill(0.0);
            data.k[3] = f64::NAN;
            assert_reaches(&case, &data, &first, "no gradient and a bad key");
            data.grad_state.fill(1.0);
            assert_reaches(&case, &data, &first, "a gradient of the state and a bad key");
        }
    }
}

#[test]
fn other_heads_keep_every_bit() {
    for map in maps() {
        for causal in [false, true] {
            let case = Case { heads: (3, 3), per_head: true, ..Case::new(map, causal, 70, [4, 3, 6]) };
            let (data, first) = (case.data(1), first_state::<f32>(&case, 2));
            let mut poisoned = data.clone();
            poisoned.fields[0][6 * 4 + 2] = f64::NAN;
            for isa in Isa::available() {
                let expected = run::<f32>(&Cpu::new(isa), &case, &data, Some(&first), None, 1);
                let found = run::<f32>(&Cpu::new(isa), &case, &poisoned, Some(&first), None, 1);
                for (part, name) in PARTS.iter().enumerate() {
                    let kept = found.parts[part].iter().zip(&expected.parts[part]);
                    let kept = kept.filter(|(found, _)| !found.is_nan());
                    let (found, expected): (Vec<f64>, Vec<f64>) = kept.map(|(a, b)| (*a, *b)).unzip();
                    assert!(bits(&found) == bits(&expected), "{name} {isa:?} {case:?}");
                    assert!(!found.is_empty(), "{name} {isa:?} {case:?}");
                }
            }
        }
    }
}
