//! A causal output depends, bit for bit, on no later row; what is not finite reaches what sees it and nothing else.

use crate::available::has_gpu;
use crate::harness::{Answer, Case, Data, Map, PARTS, bits, first_state, maps, run};
use protperf_core::FeatureMap;
use protperf_core::reference::Reference;
use protperf_wgpu::Wgpu;

/// Bits of the rows before `cut` of out, dq, dk and dv.
fn before(answer: &Answer, case: &Case, cut: usize) -> [Vec<u64>; 4] {
    let (d, e) = (case.head_dim, case.value_dim);
    [(0, e), (2, d), (3, d), (4, e)].map(|(part, width)| bits(&answer.parts[part][..cut * width]))
}

/// Rows from `cut` on times a factor.
fn changed(case: &Case, data: &Data, cut: usize, factor: f64) -> Data {
    let mut other = data.clone();
    for (x, width) in [(&mut other.q, case.head_dim), (&mut other.k, case.head_dim), (&mut other.v, case.value_dim)] {
        x[cut * width..].iter_mut().for_each(|x| *x *= factor);
    }
    other
}

#[test]
fn later_rows_change_no_bit() {
    if !has_gpu() {
        return;
    }
    for map in maps() {
        let case = Case { states: false, ..Case::new(map, true, 150, [6, 5, 14]) };
        let mut data = case.data(17);
        // Entries that are tiny next to the largest are outside of what is promised.
        data.v.iter_mut().for_each(|v| *v = v.signum() * v.abs().max(1e-3));
        for cut in [1, 63, 64, 129] {
            let mut data = data.clone();
            data.grad[cut * case.value_dim..].fill(0.0);
            let expected = before(&run::<f32>(&Wgpu, &case, &data, None, None, 1), &case, cut);
            for factor in [-1.0, 1e-6, 30.0, 1e6, f64::NAN] {
                let other = changed(&case, &data, cut, factor);
                let found = before(&run::<f32>(&Wgpu, &case, &other, None, None, 1), &case, cut);
                assert!(found == expected, "cut {cut} factor {factor} {case:?}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_what_sees_it_and_nothing_else() {
    if !has_gpu() {
        return;
    }
    for map in maps() {
        for causal in [false, true] {
            let case = Case { heads: (2, 1), per_head: true, ..Case::new(map, causal, 40, [4, 3, 6]) };
            let packed = Case { borders: Some(vec![0, 10, 10, 40]), per_head: false, ..case.clone() };
            for case in [case.clone(), Case { masked: true, ..case }, packed] {
                let (data, first) = (case.data(1), first_state::<f32>(&case, 2));
                let mut poisoned = vec![data.clone(); 6];
                poisoned[0].q[5] = f64::NAN;
                poisoned[1].k[13 * 4] = f64::INFINITY;
                poisoned[2].v[7 * 3 + 1] = f64::NEG_INFINITY;
                poisoned[3].grad[20 * 3] = f64::NAN;
                poisoned[4].fields[0][3] = f64::NAN;
                poisoned[5].grad_state[1] = f64::INFINITY;
                for (at, data) in poisoned.iter().enumerate() {
                    assert_reaches(&case, data, &first, &format!("change {at}"));
                }
                for column in 0..3 {
                    let mut first = first.clone();
                    first[5 + column] = f32::NAN;
                    assert_reaches(&case, &data, &first, &format!("column {column} of the state"));
                }
            }
        }
    }
}

/// NaN exactly where the reference has it.
fn assert_reaches(case: &Case, data: &Data, first: &[f32], what: &str) {
    let truth = run::<f32>(&Reference, case, data, Some(first), None, 1);
    let found = run::<f32>(&Wgpu, case, data, Some(first), None, 1);
    for (part, name) in PARTS.iter().enumerate() {
        let is_nan = |x: &[f64]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
        assert!(is_nan(&found.parts[part]) == is_nan(&truth.parts[part]), "{name} after {what} {case:?}");
    }
}

/// Sums of 200 of the first values overflow, and products of the last with features vanish.
#[test]
fn values_at_the_ends_of_the_range_give_the_bits_of_ordinary_ones() {
    if !has_gpu() {
        return;
    }
    for map in [Map::Named(FeatureMap::Positive), Map::Named(FeatureMap::Relu)] {
        for causal in [false, true] {
            let case = Case { states: false, ..Case::new(map, causal, 200, [4, 3, 6]) };
            let ordinary = run::<f32>(&Wgpu, &case, &case.data(3), None, None, 1);
            for (of_values, of_gradients) in [(124, -20), (-100, 60)] {
                let (values, gradients) = (2f64.powi(of_values), 2f64.powi(of_gradients));
                let mut data = case.data(3);
                data.v.iter_mut().for_each(|x| *x *= values);
                data.grad.iter_mut().for_each(|x| *x *= gradients);
                let found = run::<f32>(&Wgpu, &case, &data, None, None, 1);
                for (part, by) in [(0, values), (2, values * gradients), (3, values * gradients), (4, gradients)] {
                    let expected: Vec<f64> = ordinary.parts[part].iter().map(|x| x * by).collect();
                    assert!(bits(&found.parts[part]) == bits(&expected), "{} 2^{of_values} {case:?}", PARTS[part]);
                }
            }
        }
    }
}
