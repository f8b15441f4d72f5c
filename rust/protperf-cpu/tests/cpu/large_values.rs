//! Values near the ends of the range of f32 lose nothing: scaled by a power of two, forward and backward, they give the
//! bits of ordinary ones.

use crate::harness::{Answer, Case, Map, PARTS, bits, first_state, maps, run};
use protperf_core::state::KV_STATE;
use protperf_cpu::{Cpu, Isa};

/// Powers of two that values are multiplied with, and the gradients that arrive, and whether the case has states. Sums
/// of 200 of the first values overflow, and so would their state; products of the last with features vanish.
const POWERS: [(i32, i32, bool); 3] = [(124, -20, false), (110, -20, true), (-100, 60, true)];

/// The answer to inputs whose values are larger by `2^of_values` and whose arriving gradients are by `2^of_gradients`.
fn scaled(case: &Case, isa: Isa, of_values: i32, of_gradients: i32) -> Answer {
    let (mut data, width) = (case.data(3), KV_STATE + case.value_dim);
    let (values, gradients) = (2f64.powi(of_values), 2f64.powi(of_gradients));
    data.v.iter_mut().for_each(|x| *x *= values);
    data.grad.iter_mut().for_each(|x| *x *= gradients);
    for row in data.grad_state.chunks_exact_mut(width) {
        row[1] *= values * gradients;
        row[KV_STATE..].iter_mut().for_each(|x| *x *= gradients);
    }
    let mut first = first_state::<f32>(case, 4);
    for row in first.chunks_exact_mut(width) {
        row[KV_STATE..].iter_mut().for_each(|x| *x *= values as f32);
    }
    run::<f32>(&Cpu::new(isa), case, &data, case.states.then_some(&first[..]), None, 2)
}

/// The answer to ordinary inputs, each number multiplied as that to scaled ones should be.
fn expected(case: &Case, isa: Isa, of_values: i32, of_gradients: i32) -> Answer {
    let mut found = scaled(case, isa, 0, 0);
    let (values, gradients) = (2f64.powi(of_values), 2f64.powi(of_gradients));
    let by_part = [values, 1.0, values * gradients, values * gradients, gradients, values * gradients, 1.0];
    for (part, by) in found.parts.iter_mut().zip(by_part) {
        part.iter_mut().for_each(|x| *x *= by);
    }
    // The sums of a state without their reference, and gradients of a state with that of the reference, which is 0.
    for row in found.parts[1].chunks_exact_mut(1 + case.value_dim) {
        row[1..].iter_mut().for_each(|x| *x *= values);
    }
    for row in found.parts[6].chunks_exact_mut(KV_STATE + case.value_dim) {
        row[1] *= values * gradients;
        row[KV_STATE..].iter_mut().for_each(|x| *x *= gradients);
    }
    found
}

fn shapes(map: Map) -> impl Iterator<Item = Case> {
    [false, true].into_iter().flat_map(move |causal| {
        let case = Case::new(map, causal, 200, [4, 3, 6]);
        let packed = Case { borders: Some(vec![0, 10, 10, 200]), heads: (4, 2), ..case.clone() };
        let cut = Case { q_len: 2100, kv_len: 2100, masked: true, heads: (2, 1), ..case.clone() };
        [case, packed, cut]
    })
}

#[test]
fn values_at_the_ends_of_the_range_give_the_bits_of_ordinary_ones() {
    for map in maps() {
        for case in shapes(map) {
            for isa in Isa::available() {
                for (of_values, of_gradients, states) in POWERS {
                    let case = Case { states, ..case.clone() };
                    let found = scaled(&case, isa, of_values, of_gradients);
                    let expected = expected(&case, isa, of_values, of_gradients);
                    for (part, name) in PARTS.iter().enumerate() {
                        assert!(
                            found.parts[part].iter().all(|x| x.is_finite()),
                            "{name} 2^{of_values} {isa:?} {case:?}"
                        );
                        let same = bits(&found.parts[part]) == bits(&expected.parts[part]);
                        assert!(same, "{name} 2^{of_values} {isa:?} {case:?}");
                    }
                }
            }
        }
    }
}
