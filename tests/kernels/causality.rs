//! Causal means causal: no change of later rows changes a bit of an earlier output, or of the gradients of an earlier
//! loss. Each trial changes some later rows and counts the bits that differ; `--nocapture` shows the counts.
//!
//! The domain: no visible value is below 2^-40 of the largest. One-hot values lie outside of it and have a bound.

use crate::common::kernel::{How, every_isa, kernel};
use crate::common::{Answer, Case, Data, MAPS, PARTS};
use protperf::rng::Stream;
use protperf::{CpuElement, FeatureMap, Isa};

/// What later rows are multiplied by.
const FACTORS: [f64; 3] = [2.0, 1000.0, f64::NAN];

/// Which tensors change.
#[derive(Clone, Copy, Debug)]
enum Changed {
    Queries,
    Keys,
    Values,
    All,
}
const CHANGED: [Changed; 4] = [Changed::Queries, Changed::Keys, Changed::Values, Changed::All];

/// Trials and the bits that changed in them.
#[derive(Default)]
struct Count {
    trials: usize,
    changed: u64,
    first: String,
}

impl Count {
    fn compare(&mut self, found: &[Vec<u64>; 5], expected: &[Vec<u64>; 5], what: impl Fn(&str) -> String) {
        self.trials += 1;
        for (part, name) in PARTS.into_iter().enumerate() {
            assert_eq!(found[part].len(), expected[part].len());
            let pairs = found[part].iter().zip(&expected[part]);
            let bits: u64 = pairs.map(|(a, b)| u64::from((a ^ b).count_ones())).sum();
            if bits > 0 && self.changed == 0 {
                self.first = what(name);
            }
            self.changed += bits;
        }
    }

    fn report(&self, name: &str) {
        println!("{name}: {} trials, {} bits changed", self.trials, self.changed);
        assert_eq!(self.changed, 0, "first in {}", self.first);
    }
}

/// Rows `from..to` of q, k and v times a factor.
fn multiplied(case: &Case, data: &Data, changed: Changed, rows: std::ops::Range<usize>, factor: f64) -> Data {
    let mut other = data.clone();
    let (d, e) = (case.head_dim, case.value_dim);
    let times = |x: &mut Vec<f64>, width: usize| {
        x[rows.start * width..rows.end * width].iter_mut().for_each(|x| *x *= factor);
    };
    if matches!(changed, Changed::Queries | Changed::All) {
        times(&mut other.q, d);
    }
    if matches!(changed, Changed::Keys | Changed::All) {
        times(&mut other.k, d);
    }
    if matches!(changed, Changed::Values | Changed::All) {
        times(&mut other.v, e);
    }
    other
}

/// Bits of the rows before `cut` of out, dq, dk and dv, and all of domega.
fn before(answer: &Answer, case: &Case, cut: usize) -> [Vec<u64>; 5] {
    let (d, e) = (case.head_dim, case.value_dim);
    let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let [out, dq, dk, dv, domega] = answer;
    [bits(&out[..cut * e]), bits(&dq[..cut * d]), bits(&dk[..cut * d]), bits(&dv[..cut * e]), bits(domega)]
}

/// Every change of one sequence at each cut, in T on one instruction set.
fn try_every_change<T: CpuElement>(case: &Case, seed: u64, cuts: &[usize], how: How, kinds: &[Changed]) -> Count {
    let mut count = Count::default();
    let mut data = case.data(seed);
    // Inside of the domain.
    data.v.iter_mut().for_each(|v| *v = v.signum() * v.abs().max(1e-3));
    for &cut in cuts {
        let mut data = data.clone();
        data.grad[cut * case.value_dim..].fill(0.0);
        let expected = before(&kernel::<T>(case, &data, how), case, cut);
        for (&changed, factor) in kinds.iter().flat_map(|kind| FACTORS.map(|factor| (kind, factor))) {
            let far = cut + (case.q_len - cut) / 2;
            for rows in [cut..case.q_len, far..far + 1] {
                let other = multiplied(case, &data, changed, rows.clone(), factor);
                let found = before(&kernel::<T>(case, &other, how), case, cut);
                count.compare(&found, &expected, |part| {
                    let bits = 8 * size_of::<T>();
                    format!("{part}, f{bits}, {how:?}, {changed:?} of rows {rows:?} times {factor}: {}", case.id())
                });
            }
        }
    }
    count
}

/// Both types on every instruction set; the same number of trials on every machine.
fn in_every_way(map: FeatureMap, case: &Case, cuts: &[usize], kinds: &[Changed]) -> Count {
    let mut total = Count::default();
    let rounds = 3usize.div_ceil(Isa::available().len());
    for (round, how) in (0..rounds).flat_map(|round| every_isa().into_iter().map(move |how| (round, how))) {
        let seed = 17 + round as u64;
        let narrow = try_every_change::<f32>(case, seed, cuts, how, kinds);
        for count in [narrow, try_every_change::<f64>(case, seed, cuts, how, kinds)] {
            total.trials += count.trials;
            total.changed += count.changed;
            if total.first.is_empty() {
                total.first = count.first;
            }
        }
    }
    assert!(total.trials > 0, "{map:?}");
    total
}

fn later_rows_change_nothing(map: FeatureMap) {
    let small = Case { value_dim: 5, ..Case::new(map, true, 70, 8, 16) };
    let odd = Case { value_dim: 9, heads: (1, 1), ..Case::new(map, true, 150, 17, 33) };
    let padded = Case { masked: true, ..Case::new(map, true, 131, 4, 7) };
    // Longer than any block that the kernels cut a sequence into.
    let long = Case::new(map, true, 2200, 4, 8);
    let mut total = Count::default();
    for (case, cuts, kinds) in [
        (small, &[1, 8, 33, 63, 64, 65, 69][..], &CHANGED[..]),
        (odd, &[1, 64, 100, 128, 149], &CHANGED),
        (padded, &[2, 63, 66, 130], &CHANGED[3..]),
        (long, &[1, 1023, 1024, 1025, 2047, 2049], &CHANGED[3..]),
    ] {
        let count = in_every_way(map, &case, cuts, kinds);
        total.trials += count.trials;
        total.changed += count.changed;
        if total.first.is_empty() {
            total.first = count.first;
        }
    }
    // Six maps: at least 10,000 trials.
    assert!(total.trials >= 1_700, "{}", total.trials);
    total.report(map.name());
}

#[test]
fn later_rows_change_no_bit_with_positive_features() {
    later_rows_change_nothing(FeatureMap::Positive);
}

#[test]
fn later_rows_change_no_bit_with_hyperbolic_features() {
    later_rows_change_nothing(FeatureMap::Hyperbolic);
}

#[test]
fn later_rows_change_no_bit_with_smreg_features() {
    later_rows_change_nothing(FeatureMap::Smreg);
}

#[test]
fn later_rows_change_no_bit_with_relu_features() {
    later_rows_change_nothing(FeatureMap::Relu);
}

#[test]
fn later_rows_change_no_bit_with_elu1_features() {
    later_rows_change_nothing(FeatureMap::Elu1);
}

#[test]
fn later_rows_change_no_bit_with_trigonometric_features() {
    later_rows_change_nothing(FeatureMap::Trigonometric);
}

/// Exact zeros among visible values: a term that small may be flushed when a later key raises a reference.
#[test]
fn one_hot_values_move_by_at_most_2_to_the_minus_60() {
    let (mut trials, mut worst) = (0, 0.0f64);
    for map in MAPS {
        for len in [70, 150] {
            let case = Case { value_dim: len, ..Case::new(map, true, len, 8, 16) };
            let mut data = case.data(5);
            data.v = (0..len * len).map(|at| f64::from(u8::from(at / len == at % len))).collect();
            for how in every_isa() {
                let first = [kernel::<f32>(&case, &data, how), kernel::<f64>(&case, &data, how)];
                for (cut, factor) in [1, 33, 64, 69].into_iter().flat_map(|cut| FACTORS.map(|factor| (cut, factor))) {
                    for changed in [Changed::Queries, Changed::Keys, Changed::All] {
                        let other = multiplied(&case, &data, changed, cut..len, factor);
                        let found = [kernel::<f32>(&case, &other, how), kernel::<f64>(&case, &other, how)];
                        for (found, first) in found.iter().zip(&first) {
                            let pairs = found[0][..cut * len].iter().zip(&first[0]);
                            let moved = pairs.map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
                            // NaN, should one reach here, is kept.
                            worst = moved.fold(worst, |m, x| if x <= m { m } else { x });
                            trials += 1;
                        }
                        assert!(worst <= 2f64.powi(-60), "{worst:.1e} {how:?} {changed:?} {factor} {}", case.id());
                    }
                }
            }
        }
    }
    println!("one-hot values: {trials} trials, moved by at most {worst:.1e}");
}

/// Entry `at` of the batch axis.
fn entry(x: &[f64], batch: usize, at: usize) -> Vec<u64> {
    let size = x.len() / batch;
    x[at * size..(at + 1) * size].iter().map(|x| x.to_bits()).collect()
}

/// No output depends on another entry of the batch, or on what padding holds.
#[test]
fn batch_mates_and_the_contents_of_padding_change_no_bit() {
    let mut count = 0;
    for map in MAPS {
        for causal in [false, true] {
            for len in [70, 1100] {
                let case = Case { batch: 3, heads: (2, 1), masked: true, ..Case::new(map, causal, len, 4, 9) };
                let data = case.data(5);
                for how in every_isa() {
                    let expected = kernel::<f32>(&case, &data, how);
                    for filler in [1e30, f64::NAN, f64::INFINITY] {
                        let mut other = data.clone();
                        let mut stream = Stream::new(9, [0, 0, 0]);
                        for x in [&mut other.q, &mut other.k, &mut other.v, &mut other.grad] {
                            let size = x.len() / 3;
                            x[..size].iter_mut().for_each(|x| *x = 100.0 * stream.normal());
                            x[2 * size..].fill(filler);
                        }
                        let padding = (0..len).filter(|&j| case.masked && data.mask[len + j]);
                        for at in padding.flat_map(|j| (len + j) * 4..(len + j + 1) * 4) {
                            other.k[at] = filler;
                            other.v[at] = filler;
                        }
                        let found = kernel::<f32>(&case, &other, how);
                        for part in 0..4 {
                            let same = entry(&found[part], 3, 1) == entry(&expected[part], 3, 1);
                            assert!(same, "{} with {filler} {how:?} {}", PARTS[part], case.id());
                        }
                        count += 1;
                    }
                }
            }
        }
    }
    println!("batch mates and padding: {count} trials, 0 bits changed");
}

/// The power of two that keeps sums of huge values finite must be taken from values that are seen, not from one that
/// is not finite.
#[test]
fn a_later_infinite_value_does_not_let_earlier_sums_overflow() {
    for map in MAPS.into_iter().filter(|&map| map != FeatureMap::Trigonometric) {
        let case = Case::new(map, true, 90, 8, 24);
        let mut data = case.data(5);
        data.v.iter_mut().for_each(|v| *v = 3e38 * v.signum());
        data.grad.fill(0.0);
        for how in every_isa() {
            let expected = before(&kernel::<f32>(&case, &data, how), &case, 80);
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut other = data.clone();
                other.v[80 * 8 + 3] = bad;
                let found = before(&kernel::<f32>(&case, &other, how), &case, 80);
                assert!(found[0] == expected[0], "{bad} {how:?} {}", case.id());
            }
        }
    }
}
