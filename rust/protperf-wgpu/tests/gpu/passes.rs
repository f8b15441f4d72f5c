//! Passes on the GPU against the f64 reference: every map, mask and form, from states to states, forward and backward.

use crate::available::has_gpu;
use crate::harness::{Answer, Case, Data, Map, PARTS, bits, error, first_state, maps, run};
use protperf_core::reference::Reference;
use protperf_core::{FeatureMap, Stored};
use protperf_wgpu::Wgpu;

fn truth(case: &Case, data: &Data, first: Option<&[f32]>) -> Answer {
    run::<f32>(&Reference, case, data, first, None, 1)
}

fn found<S: Stored<Compute = f32>>(case: &Case, data: &Data, first: Option<&[f32]>, truth: &Answer) -> Answer {
    run::<S>(&Wgpu, case, data, first, case.states.then_some(&truth.references[..]), 1)
}

fn assert_matches(case: &Case, bound: f64) {
    if !has_gpu() {
        return;
    }
    let data = case.data(5);
    let first = case.states.then(|| first_state::<f32>(case, 6));
    let truth = truth(case, &data, first.as_deref());
    let found = found::<f32>(case, &data, first.as_deref(), &truth);
    for (part, name) in PARTS.iter().enumerate() {
        let off = error(&found.parts[part], &truth.parts[part]);
        assert!(off < bound, "{name} {off:.1e} {case:?}");
    }
}

/// Trigonometric sums cancel.
fn bound(map: Map) -> f64 {
    if map == Map::Named(FeatureMap::Trigonometric) { 5e-4 } else { 3e-5 }
}

#[test]
fn passes_match_at_odd_lengths() {
    for map in maps() {
        for causal in [false, true] {
            for (len, sizes) in
                [(0, [5, 3, 18]), (1, [1, 0, 1]), (15, [3, 5, 6]), (130, [5, 3, 18]), (70, [17, 16, 66])]
            {
                assert_matches(&Case { masked: len > 15, ..Case::new(map, causal, len, sizes) }, bound(map));
            }
        }
    }
}

#[test]
fn passes_match_with_groups_heads_and_segments() {
    for map in maps() {
        for causal in [false, true] {
            let case = Case { heads: (4, 2), per_head: true, ..Case::new(map, causal, 67, [6, 5, 9]) };
            assert_matches(&Case { batch: 2, masked: true, ..case.clone() }, bound(map));
            assert_matches(&Case { borders: Some(vec![0, 0, 20, 21, 67, 67]), ..case }, bound(map));
        }
    }
}

#[test]
fn queries_read_a_state_with_keys_of_another_length_or_none() {
    for map in maps() {
        for (q_len, kv_len) in [(9, 0), (130, 0), (0, 9), (1, 300), (70, 3)] {
            let case = Case { q_len, kv_len, heads: (2, 1), ..Case::new(map, false, 0, [5, 4, 10]) };
            assert_matches(&case, bound(map));
        }
    }
}

#[test]
fn references_that_rise_far_are_followed() {
    for map in [Map::Named(FeatureMap::Positive), Map::Named(FeatureMap::Hyperbolic), Map::Record([true; 4])] {
        for causal in [false, true] {
            for (rise, states) in [(8.0, true), (3.0, false), (40.0, false)] {
                let case = Case { rise, states, ..Case::new(map, causal, 130, [6, 4, 20]) };
                // Log-features of thousands of bits have few bits left for their fraction in f32.
                assert_matches(&case, 2e-2);
            }
        }
    }
}

#[test]
fn the_same_call_gives_the_same_bits() {
    if !has_gpu() {
        return;
    }
    for causal in [false, true] {
        let case = Case { heads: (3, 1), ..Case::new(Map::Record([true; 4]), causal, 300, [8, 8, 24]) };
        let (data, first) = (case.data(1), first_state::<f32>(&case, 2));
        let truth = truth(&case, &data, Some(&first));
        let once = found::<f32>(&case, &data, Some(&first), &truth);
        let again = found::<f32>(&case, &data, Some(&first), &truth);
        assert!(once.parts.iter().zip(&again.parts).all(|(once, again)| bits(once) == bits(again)), "{case:?}");
    }
}
