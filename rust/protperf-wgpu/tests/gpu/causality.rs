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

/// Sizes of early values and what later ones are multiplied with: far apart, across the scales at which values are divided
/// by a power of two, and up to both ends of the range of f32.
const SIZES: [(f64, f64); 9] = [
    (1e-20, 1e25),
    (1e-12, 1e27),
    (1e-20, 1e45),
    (1e-38, 1e76),
    (1e-44, 1e44),
    (1.0, 1e-30),
    (1.0, 1e38),
    (1e25, 1e-45),
    (0.0, 1.0),
];

/// Values of data, those before `cut` of one size and the others of another.
fn sized(case: &Case, data: &Data, cut: usize, early: f64, late: f64) -> Data {
    let mut other = data.clone();
    let (first, rest) = other.v.split_at_mut(cut * case.value_dim);
    first.iter_mut().for_each(|v| *v *= early);
    rest.iter_mut().for_each(|v| *v *= late);
    other
}

#[test]
fn later_values_of_any_size_change_no_bit() {
    if !has_gpu() {
        return;
    }
    for map in maps() {
        let case = Case { states: false, ..Case::new(map, true, 150, [6, 5, 14]) };
        for cut in [1, 63, 64, 129] {
            let mut data = case.data(17);
            data.grad[cut * case.value_dim..].fill(0.0);
            for (early, by) in SIZES {
                let alike = sized(&case, &data, cut, early, early);
                let expected = before(&run::<f32>(&Wgpu, &case, &alike, None, None, 1), &case, cut);
                for late in [early * by, 0.0, f64::NAN] {
                    let other = sized(&case, &data, cut, early, late);
                    let found = before(&run::<f32>(&Wgpu, &case, &other, None, None, 1), &case, cut);
                    for (part, name) in ["out", "dq", "dk", "dv"].iter().enumerate() {
                        let of = format!("{name} cut {cut} early {early:e} late {late:e} {case:?}");
                        assert!(found[part] == expected[part], "{of}");
                    }
                }
            }
        }
    }
}

/// Values grow or shrink over the whole range of f32 along the sequence: each row is a mean of those that it sees.
#[test]
fn every_row_is_as_exact_as_the_largest_value_that_it_sees_allows() {
    if !has_gpu() {
        return;
    }
    for map in [Map::Named(FeatureMap::Positive), Map::Named(FeatureMap::Relu)] {
        for sign in [1.0, -1.0] {
            let case = Case { states: false, ..Case::new(map, true, 200, [4, 3, 16]) };
            let mut data = case.data(3);
            let size = |row: usize| 2f64.powf(sign * (row as f64 * 1.2 - 120.0));
            data.v.iter_mut().enumerate().for_each(|(at, v)| *v *= size(at / 3));
            let truth = run::<f32>(&Reference, &case, &data, None, None, 1);
            let found = run::<f32>(&Wgpu, &case, &data, None, None, 1);
            let mut largest = 0f64;
            for row in 0..200 {
                let of_row = row * 3..(row + 1) * 3;
                largest = data.v[of_row.clone()].iter().fold(largest, |most, v| most.max(v.abs()));
                for at in of_row {
                    let off = (found.parts[0][at] - truth.parts[0][at]).abs();
                    assert!(off <= 1e-4 * largest, "row {row} off by {off:e} of {largest:e} {case:?}");
                }
            }
        }
    }
}

#[test]
fn sums_of_a_state_at_the_ends_of_the_range_give_the_bits_of_ordinary_ones() {
    if !has_gpu() {
        return;
    }
    for map in maps() {
        let case = Case { states: false, q_len: 9, kv_len: 0, ..Case::new(map, false, 0, [4, 3, 6]) };
        let (data, first) = (case.data(3), first_state::<f32>(&case, 2));
        let ordinary = run::<f32>(&Wgpu, &case, &data, Some(&first), None, 1);
        for power in [100, -80] {
            let mut sized = first.clone();
            sized.chunks_exact_mut(5).flat_map(|row| &mut row[2..]).for_each(|sum| *sum *= 2f32.powi(power));
            let found = run::<f32>(&Wgpu, &case, &data, Some(&sized), None, 1);
            for part in [0, 2, 5] {
                let expected: Vec<f64> = ordinary.parts[part].iter().map(|x| x * 2f64.powi(power)).collect();
                assert!(bits(&found.parts[part]) == bits(&expected), "{} 2^{power} {case:?}", PARTS[part]);
            }
        }
    }
}

/// What a segment holds changes no bit of the others, however large it is.
#[test]
fn segments_change_no_bit_of_each_other() {
    if !has_gpu() {
        return;
    }
    let rows = [0..40, 40..110];
    for map in maps() {
        for causal in [false, true] {
            let case = Case { borders: Some(vec![0, 40, 110]), ..Case::new(map, causal, 110, [4, 3, 6]) };
            let (mut data, mut first) = (case.data(3), first_state::<f32>(&case, 2));
            // Small, but no smaller than what is summed as it is.
            data.v.iter_mut().chain(&mut data.grad).for_each(|x| *x *= 1e-15);
            data.grad_state.fill(0.0);
            first.chunks_exact_mut(5).flat_map(|row| &mut row[2..]).for_each(|sum| *sum *= 1e-15);
            // Out, dq, dk and dv of a segment.
            let parts = |data: &Data, segment: usize| {
                let found = run::<f32>(&Wgpu, &case, data, Some(&first), None, 1);
                [(0, 3), (2, 4), (3, 4), (4, 3)].map(|(part, width)| {
                    bits(&found.parts[part][rows[segment].start * width..rows[segment].end * width])
                })
            };
            for (changed, kept) in [(0, 1), (1, 0)] {
                let expected = parts(&data, kept);
                let of = rows[changed].clone();
                for (of_values, of_gradients) in [(1e50, 1.0), (1.0, 1e50), (1e-15, 1e-15), (f64::NAN, 1.0)] {
                    let mut other = data.clone();
                    other.v[of.start * 3..of.end * 3].iter_mut().for_each(|v| *v *= of_values);
                    other.grad[of.start * 3..of.end * 3].iter_mut().for_each(|g| *g *= of_gradients);
                    let found = parts(&other, kept);
                    for (part, name) in ["out", "dq", "dk", "dv"].iter().enumerate() {
                        let how = format!("{name} of {kept} values {of_values:e} gradients {of_gradients:e} {case:?}");
                        assert!(found[part] == expected[part], "{how}");
                    }
                }
            }
        }
    }
}

/// Segments whose values and gradients have sizes far apart add up to the gradients that each has alone.
#[test]
fn segments_of_any_size_add_to_the_gradients_of_the_map() {
    if !has_gpu() {
        return;
    }
    for map in maps().filter(|&map| map != Map::Named(FeatureMap::Trigonometric)) {
        for (first, second) in [((1e30, 1.0), (1.0, 1.0)), ((1.0, 1e-25), (1e-25, 1.0)), ((1e25, 1e-25), (1.0, 1.0))] {
            let case = Case { states: false, ..Case::new(map, true, 110, [4, 3, 6]) };
            let case = Case { borders: Some(vec![0, 40, 110]), ..case };
            let mut data = case.data(3);
            for (rows, (of_values, of_gradients)) in [(0..40, first), (40..110, second)] {
                data.v[rows.start * 3..rows.end * 3].iter_mut().for_each(|v| *v *= of_values);
                data.grad[rows.start * 3..rows.end * 3].iter_mut().for_each(|g| *g *= of_gradients);
            }
            let truth = run::<f32>(&Reference, &case, &data, None, None, 1);
            let found = run::<f32>(&Wgpu, &case, &data, None, None, 1);
            let largest = truth.parts[5].iter().fold(0f64, |most, x| most.max(x.abs()));
            for (found, truth) in found.parts[5].iter().zip(&truth.parts[5]) {
                assert!((found - truth).abs() <= 1e-4 * largest, "{found:e} {truth:e} {first:?} {second:?} {case:?}");
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
