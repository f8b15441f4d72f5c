//! Products of operands that are rounded to bf16, on every unit that runs here: how far they are from the truth, and that
//! everything else that holds of the kernels holds of them.

use crate::common::judge::{Judge, error};
use crate::common::subjects::answer;
use crate::common::{Answer, Case, Data, Directions, MAPS, PARTS, reference};
use protperf::{Bf16Unit, Cpu, FeatureMap, Isa};

/// What rounding to the nearest bf16 changes at most, relatively.
const HALF_UNIT: f64 = 1.0 / 512.0;

/// The processor with each unit; with the slow one only for short sequences, where there is another.
fn processors(len: usize) -> Vec<Cpu> {
    let (isa, units) = (*Isa::available().last().unwrap(), Bf16Unit::available());
    let is_quick = |unit: &Bf16Unit| *unit != Bf16Unit::Emulated || len <= 40 || units.len() == 1;
    units.iter().copied().filter(is_quick).map(|unit| Cpu { isa, bf16: Some(unit) }).collect()
}

fn bits(answer: &Answer) -> Vec<u64> {
    answer.iter().flatten().map(|x| x.to_bits()).collect()
}

/// Cases of odd sizes with every option.
fn cases(map: FeatureMap) -> Vec<Case> {
    let mut cases = Vec::new();
    for causal in [false, true] {
        for (len, head_dim, value_dim, num_features) in
            [(0, 3, 2, 4), (1, 1, 1, 1), (7, 17, 5, 9), (33, 32, 16, 64), (65, 33, 31, 65), (130, 5, 40, 30)]
        {
            let case = Case { value_dim, heads: (2, 1), ..Case::new(map, causal, len, head_dim, num_features) };
            cases.push(case.clone());
            cases.push(Case { masked: true, directions: Directions::PerHead, ..case.clone() });
            if len > 4 {
                cases.push(Case { borders: Some(vec![0, 3, 3, len as i64]), batch: 1, ..case });
            }
        }
    }
    cases
}

#[test]
fn errors_are_those_of_rounded_factors() {
    for map in MAPS {
        let mut worst = [0.0f64; 5];
        for case in cases(map) {
            let data = case.data(3).rounded::<f32>();
            let judge = Judge::new(&case, &data);
            for cpu in processors(case.q_len) {
                let found = answer::<f32>(&cpu, &case, &data, 1);
                for part in 0..5 {
                    // A term has up to four rounded factors on the way to an output; what is small among terms that cancel
                    // is off by as much as they are.
                    let bound = 4.0 * HALF_UNIT * judge.scales[part] + 2.0 * judge.plain[part];
                    let off = error(&found[part], &judge.truth[part]);
                    assert!(off <= bound, "{} is off by {off:e}, {bound:e}: {cpu:?} {}", PARTS[part], case.id());
                    if bound > 0.0 {
                        worst[part] = worst[part].max(off / bound);
                    }
                }
            }
        }
        println!("{}: worst error of its bound {worst:.3?}", map.name());
    }
}

/// Relative root mean square error of each part against f64.
fn relative(map: FeatureMap, causal: bool, scale: f64) -> [f64; 5] {
    let case = Case { scale, ..Case::new(map, causal, 512, 64, 256) };
    let data = case.data(11).rounded::<f32>();
    let truth = reference::<f32>(&case, &data);
    let cpu = Cpu::with_bf16(*Isa::available().last().unwrap());
    let found = answer::<f32>(&cpu, &case, &data, 2);
    let size = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
    [0, 1, 2, 3, 4].map(|part| error(&found[part], &truth[part]) / size(&truth[part]))
}

#[test]
fn outputs_are_within_six_thousandths_and_gradients_within_15_at_any_scale_of_the_inputs() {
    for map in [FeatureMap::Positive, FeatureMap::Relu] {
        for causal in [false, true] {
            for scale in [0.3, 1.0, 5.0] {
                let found = relative(map, causal, scale);
                println!("{} causal {causal} scale {scale}: {found:.5?}", map.name());
                let within = found[0] <= 0.006 && found[1..].iter().all(|&of_gradient| of_gradient <= 0.015);
                assert!(within, "{} causal {causal} scale {scale}: {found:.5?}", map.name());
            }
        }
    }
}

#[test]
fn threads_and_emulation_change_no_bit() {
    for map in MAPS {
        for case in cases(map) {
            let data = case.data(4).rounded::<f32>();
            let mut of_tiles: Vec<Vec<u64>> = Vec::new();
            for cpu in processors(case.q_len) {
                let one = bits(&answer::<f32>(&cpu, &case, &data, 1));
                assert_eq!(one, bits(&answer::<f32>(&cpu, &case, &data, 3)), "{cpu:?} {}", case.id());
                // The order of its sums is another.
                if cpu.bf16 != Some(Bf16Unit::Dot) {
                    of_tiles.push(one);
                }
            }
            assert!(of_tiles.windows(2).all(|pair| pair[0] == pair[1]), "{}", case.id());
        }
    }
}

#[test]
fn later_rows_change_no_bit() {
    for map in MAPS {
        let case = Case { value_dim: 5, ..Case::new(map, true, 150, 8, 70) };
        let mut data = case.data(17);
        data.v.iter_mut().for_each(|v| *v = v.signum() * v.abs().max(1e-3));
        for (cut, factor) in [1, 33, 64, 100, 149].into_iter().flat_map(|cut| [2.0, 1000.0, f64::NAN].map(|f| (cut, f)))
        {
            let mut first = data.clone();
            first.grad[cut * case.value_dim..].fill(0.0);
            let mut other = first.clone();
            for (rows, width) in [(&mut other.q, 8), (&mut other.k, 8), (&mut other.v, 5)] {
                rows[cut * width..].iter_mut().for_each(|x| *x *= factor);
            }
            for cpu in processors(case.q_len) {
                let before = |data: &Data| {
                    let [out, dq, dk, dv, _] = answer::<f32>(&cpu, &case, data, 2);
                    let rows = [(out, 5), (dq, 8), (dk, 8), (dv, 5)];
                    rows.map(|(x, width)| x[..cut * width].iter().map(|x| x.to_bits()).collect::<Vec<_>>())
                };
                assert_eq!(before(&first), before(&other), "{cpu:?} cut {cut} factor {factor} {}", case.id());
            }
        }
    }
}

#[test]
fn tensors_of_f64_are_refused() {
    let case = Case::new(FeatureMap::Positive, false, 5, 4, 8);
    let data = case.data(1);
    let cpu = Cpu { isa: Isa::available()[0], bf16: Some(Bf16Unit::Emulated) };
    let refused = std::panic::catch_unwind(|| answer::<f64>(&cpu, &case, &data, 1)).unwrap_err();
    let message = refused.downcast_ref::<String>().unwrap();
    assert!(message.contains("precision"), "{message}");
}
