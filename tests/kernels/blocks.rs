//! Sequences so long, of heads so few, that the kernels cut them into blocks: what must not change a bit there.

use crate::common::direct::{Context, favor_forward};
use crate::common::kernel::{How, every_isa, kernel};
use crate::common::{Answer, Case, Data, MAPS, PARTS, Typed, args, reference, relative};
use protperf::{CpuElement, FeatureMap, Isa, empty_state};
use std::sync::atomic::AtomicBool;

/// Three blocks of 1024, the last one short and ending off a chunk.
const LEN: usize = 2200;
const DIM: usize = 4;

fn long(map: FeatureMap, causal: bool) -> Case {
    Case::new(map, causal, LEN, DIM, 6)
}

fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn assert_same(found: &Answer, other: &Answer, what: &str) {
    for part in 0..5 {
        assert!(bits(&found[part]) == bits(&other[part]), "{} {what}", PARTS[part]);
    }
}

#[test]
fn threads_change_no_bit_of_blocks() {
    for map in MAPS {
        for causal in [false, true] {
            let cases = [
                Case { heads: (3, 1), masked: true, ..long(map, causal) },
                Case { heads: (3, 3), borders: Some(vec![0, 50, 50, LEN as i64]), ..long(map, causal) },
            ];
            for case in cases {
                let data = case.data(4);
                for isa in Isa::available() {
                    let one = kernel::<f32>(&case, &data, How { isa, num_threads: 1 });
                    for num_threads in [2, 5] {
                        let many = kernel::<f32>(&case, &data, How { isa, num_threads });
                        assert_same(&many, &one, &format!("{num_threads} threads {isa:?} {}", case.id()));
                    }
                }
            }
        }
    }
}

/// Rows from `start` on drawn anew at a scale, and no gradient arriving there.
fn changed_after(case: &Case, data: &Data, start: usize, scale: f64) -> Data {
    let (other, mut changed, from) = (case.data(99), data.clone(), start * DIM);
    for (to, new, scale) in [(&mut changed.q, &other.q, scale), (&mut changed.k, &other.k, scale)] {
        to[from..].iter_mut().zip(&new[from..]).for_each(|(to, x)| *to = scale * x);
    }
    changed.v[from..].iter_mut().zip(&other.v[from..]).for_each(|(to, x)| *to = 1e3 * x);
    changed.grad[from..].fill(0.0);
    changed
}

#[test]
fn later_rows_change_no_bit_of_earlier_blocks() {
    for map in MAPS {
        let case = long(map, true);
        let data = case.data(3);
        for how in every_isa() {
            for start in [700, 1024, 1060, 2100] {
                let before = |data: &Data| {
                    let found = kernel::<f32>(&case, data, how);
                    [0, 1, 2, 3].map(|part| bits(&found[part][..start * DIM]))
                };
                let quiet = before(&changed_after(&case, &data, start, 1.0));
                for scale in [1e-3, 10.0, 1e6] {
                    let found = before(&changed_after(&case, &data, start, scale));
                    assert!(found == quiet, "rows before {start} at scale {scale} {how:?} {}", case.id());
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_what_sees_it_across_blocks() {
    for map in [FeatureMap::Positive, FeatureMap::Elu1, FeatureMap::Trigonometric] {
        for causal in [false, true] {
            let case = Case { heads: (2, 1), ..long(map, causal) };
            let clean = case.data(2);
            for how in every_isa() {
                let untouched = kernel::<f32>(&case, &clean, how);
                for (place, bad) in [(5, f64::INFINITY), (1023, f64::NAN), (1024, f64::NEG_INFINITY), (2100, f64::NAN)]
                {
                    assert_reaches_what_sees_it(&case, &clean, &untouched, (place, bad), how);
                }
            }
        }
    }
}

/// Something not finite in each input in turn; rows far behind it send no gradient, so that some keys stay free of it.
fn assert_reaches_what_sees_it(case: &Case, clean: &Data, untouched: &Answer, (place, bad): (usize, f64), how: How) {
    let mut poisoned = [clean.clone(), clean.clone(), clean.clone(), clean.clone()];
    poisoned[0].q[place * DIM + 1] = bad;
    poisoned[1].k[place * DIM] = bad;
    poisoned[2].v[place * DIM + 3] = bad;
    poisoned[3].grad[place * DIM + 2] = bad;
    for mut data in poisoned {
        data.grad[(place + 20) * DIM..LEN * DIM].fill(0.0);
        let (truth, found) = (reference::<f64>(case, &data), kernel::<f32>(case, &data, how));
        for part in 0..5 {
            let same = |x: &[f64]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
            assert!(same(&found[part]) == same(&truth[part]), "{} {place} {how:?} {}", PARTS[part], case.id());
        }
        let kept = found[0].iter().zip(&untouched[0]).all(|(x, y)| x.is_nan() || x.to_bits() == y.to_bits());
        assert!(kept, "out {place} {how:?} {}", case.id());
    }
}

#[test]
fn contents_of_padding_change_no_bit_of_blocks() {
    for map in MAPS {
        for causal in [false, true] {
            let case = Case { masked: true, ..long(map, causal) };
            let data = case.data(3);
            for how in every_isa() {
                let expected = kernel::<f32>(&case, &data, how);
                for filler in [1e30, f64::NAN] {
                    let mut changed = data.clone();
                    for at in (0..LEN * DIM).filter(|at| data.mask[at / DIM]) {
                        changed.k[at] = filler;
                        changed.v[at] = filler;
                    }
                    assert_same(
                        &kernel::<f32>(&case, &changed, how),
                        &expected,
                        &format!("{filler} {how:?} {}", case.id()),
                    );
                }
            }
        }
    }
}

/// Outputs and the last state of rows `from..to`, continued from a state.
fn continued<T: CpuElement>(
    case: &Case,
    data: &Data,
    (from, to): (usize, usize),
    state: &[T],
    isa: Isa,
) -> (Vec<f64>, Vec<T>) {
    let piece = Case { q_len: to - from, kv_len: to - from, ..case.clone() };
    let rows = |x: &[f64]| x[from * DIM..to * DIM].iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>();
    let typed = Typed { q: rows(&data.q), k: rows(&data.k), v: rows(&data.v), grad: Vec::new() };
    let cancel = AtomicBool::new(false);
    let ctx = Context { isa, num_threads: 2, cancel: &cancel };
    let nan = T::from_f64(f64::NAN);
    let (mut out, mut den) = (vec![nan; (to - from) * DIM], vec![nan; (to - from) * 2]);
    let mut next = vec![nan; state.len()];
    favor_forward(&args(&piece, data, &typed), Some(state), &mut out, &mut den, Some(&mut next), &ctx).unwrap();
    (out.iter().map(|x| x.to_f64()).collect(), next)
}

#[test]
fn a_long_piece_continues_a_state_and_leaves_one() {
    for map in MAPS {
        let case = long(map, true);
        let data = case.data(8);
        let truth = reference::<f64>(&case, &data);
        let typed = data.typed::<f64>();
        let shape = args(&case, &data, &typed).validate().unwrap();
        for isa in Isa::available() {
            let mut state: Vec<f64> = empty_state(&shape).unwrap();
            let mut found = Vec::new();
            for rows in [(0, 30), (30, LEN - 1), (LEN - 1, LEN)] {
                let (out, next) = continued(&case, &data, rows, &state, isa);
                found.extend(out);
                state = next;
            }
            let off = relative(&found, &truth[0]);
            assert!(off < 1e-12, "{off:.1e} {isa:?} {}", case.id());
        }
    }
}

#[test]
fn values_too_large_to_sum_keep_their_scale_in_blocks() {
    for causal in [false, true] {
        let case = long(FeatureMap::Positive, causal);
        let data = case.data(8);
        let mut large = data.clone();
        large.v.iter_mut().for_each(|v| *v *= 2f64.powi(120));
        for how in every_isa() {
            let expected: Vec<f64> = kernel::<f32>(&case, &data, how)[0].iter().map(|x| x * 2f64.powi(120)).collect();
            assert!(bits(&kernel::<f32>(&case, &large, how)[0]) == bits(&expected), "{how:?} {}", case.id());
        }
    }
}
