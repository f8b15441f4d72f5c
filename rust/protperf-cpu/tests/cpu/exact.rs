//! Exact attention against its plain f64 form, forward and backward, on every instruction set.

use crate::harness::{bits, error, stored};
use protperf_core::attention::exact::{SoftmaxArgs, softmax_attention, softmax_attention_backward};
use protperf_core::rng::Stream;
use protperf_core::{Element, Execution, Stored, TensorRef, bf16};
use protperf_cpu::bf16::Unit;
use protperf_cpu::{Cpu, CpuStored, ExactSaved, Isa, OutRows};
use std::sync::atomic::AtomicBool;

/// One shape with one setting of every option.
#[derive(Clone, Debug)]
struct Case {
    causal: bool,
    masked: bool,
    borders: Option<Vec<i64>>,
    batch: usize,
    heads: (usize, usize),
    q_len: usize,
    kv_len: usize,
    head_dim: usize,
    value_dim: usize,
    scale: f64,
}

impl Case {
    fn new(causal: bool, len: usize, head_dim: usize, value_dim: usize) -> Self {
        let (q_len, kv_len) = (len, len);
        Case {
            causal,
            masked: false,
            borders: None,
            batch: 1,
            heads: (1, 1),
            q_len,
            kv_len,
            head_dim,
            value_dim,
            scale: 1.0,
        }
    }

    fn shapes(&self) -> [[usize; 4]; 4] {
        let (b, (h, hk)) = (self.batch, self.heads);
        [
            [b, h, self.q_len, self.head_dim],
            [b, hk, self.kv_len, self.head_dim],
            [b, hk, self.kv_len, self.value_dim],
            [b, h, self.q_len, self.value_dim],
        ]
    }

    /// q, k, v and the gradient of the output, rounded to what a type stores, and the padding mask.
    fn data<S: Stored>(&self, seed: u64) -> ([Vec<S>; 4], Vec<bool>) {
        let mut stream = Stream::new(seed, [0, 0, 0]);
        let mut at = 0;
        let tensors = self.shapes().map(|shape| {
            let scale = if at < 2 { self.scale } else { 1.0 };
            at += 1;
            let normals: Vec<f64> = (0..shape.iter().product()).map(|_| scale * stream.normal()).collect();
            stored::<S>(&normals)
        });
        (tensors, (0..self.batch * self.kv_len).map(|at| at % 5 == 1 || at % 11 > 8).collect())
    }
}

fn args<'a, S: Stored>(case: &'a Case, tensors: &'a [Vec<S>; 4], mask: &'a [bool]) -> SoftmaxArgs<'a, S> {
    let [q, k, v, _] = case.shapes();
    SoftmaxArgs {
        q: TensorRef::contiguous("q", &tensors[0], q).unwrap(),
        k: TensorRef::contiguous("k", &tensors[1], k).unwrap(),
        v: TensorRef::contiguous("v", &tensors[2], v).unwrap(),
        causal: case.causal,
        cu_seqlens: case.borders.as_deref(),
        key_padding_mask: case.masked.then_some(mask),
    }
}

fn wide<S: Stored>(x: &[S]) -> Vec<f64> {
    x.iter().map(|x| x.widen().to_f64()).collect()
}

/// out, dq, dk, dv of the plain form in f64. A causal case with more keys than queries has so many queries in front.
fn plain<S: Stored>(case: &Case, tensors: &[Vec<S>; 4], mask: &[bool]) -> [Vec<f64>; 4] {
    let more = if case.causal { case.kv_len - case.q_len } else { 0 };
    let full = Case { q_len: case.q_len + more, ..case.clone() };
    let in_front = |x: &[S], width: usize| -> Vec<f64> {
        let head = |at: usize| &x[at * case.q_len * width..][..case.q_len * width];
        let heads = 0..case.batch * case.heads.0;
        heads.flat_map(|at| [vec![0.0; more * width], wide(head(at))].concat()).collect()
    };
    let [q, k, v, grad] = tensors;
    let all = [in_front(q, case.head_dim), wide(k), wide(v), in_front(grad, case.value_dim)];
    let args = args(&full, &all, mask);
    let mut out = vec![f64::NAN; all[3].len()];
    softmax_attention(&args, &mut out, &|| false).unwrap();
    let grad = TensorRef::contiguous("grad", &all[3], full.shapes()[3]).unwrap();
    let found = softmax_attention_backward(&args, &grad, &|| false).unwrap();
    let own = |x: Vec<f64>, width: usize| -> Vec<f64> {
        x.chunks((full.q_len * width).max(1)).flat_map(|head| head[more * width..].to_vec()).collect()
    };
    [own(out, case.value_dim), own(found.dq, case.head_dim), found.dk, found.dv]
}

/// The same of the kernels, into memory full of NaN; the denominators follow.
fn kernel<S: CpuStored>(
    case: &Case,
    tensors: &[Vec<S>; 4],
    mask: &[bool],
    cpu: Cpu,
    num_threads: usize,
) -> [Vec<f64>; 5] {
    let (args, cancel) = (args(case, tensors, mask), AtomicBool::new(false));
    let run = Execution { num_threads, cancel: &cancel };
    let nan = S::round(S::Compute::from_f64(f64::NAN));
    let [of_q, of_k, of_v, of_out] = case.shapes();
    let [mut out, mut dq, mut dk, mut dv] = [of_out, of_q, of_k, of_v].map(|shape| vec![nan; shape.iter().product()]);
    let mut den = vec![S::Compute::from_f64(f64::NAN); case.batch * case.heads.0 * case.q_len * 2];
    cpu.exact_forward(&args, OutRows::head_major("out", &mut out, of_out).unwrap(), Some(&mut den), &run).unwrap();
    let saved = ExactSaved {
        out: TensorRef::contiguous("out", &out, of_out).unwrap(),
        den: &den,
        grad: TensorRef::contiguous("grad", &tensors[3], of_out).unwrap(),
    };
    let gradients = [
        OutRows::head_major("dq", &mut dq, of_q).unwrap(),
        OutRows::head_major("dk", &mut dk, of_k).unwrap(),
        OutRows::head_major("dv", &mut dv, of_v).unwrap(),
    ];
    cpu.exact_backward(&args, &saved, gradients, &run).unwrap();
    [wide(&out), wide(&dq), wide(&dk), wide(&dv), den.iter().map(|x| x.to_f64()).collect()]
}

const PARTS: [&str; 4] = ["out", "dq", "dk", "dv"];

/// Asserts that the kernels conform on every instruction set, with the same bits on one thread and on three.
fn assert_conforms<S: CpuStored>(case: &Case, bound: f64) {
    let (tensors, mask) = case.data::<S>(7);
    let truth = plain(case, &tensors, &mask);
    for isa in Isa::available() {
        let found = kernel(case, &tensors, &mask, Cpu::new(isa), 1);
        let other = kernel(case, &tensors, &mask, Cpu::new(isa), 3);
        for (part, name) in PARTS.iter().enumerate() {
            let off = error(&found[part], &truth[part]);
            assert!(off <= bound, "{name} {off:.1e} {} {isa:?} {case:?}", S::NAME);
            assert!(bits(&found[part]) == bits(&other[part]), "threads change {name} {isa:?} {case:?}");
        }
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for causal in [false, true] {
        for (len, d, e) in
            [(0, 3, 2), (1, 1, 1), (2, 5, 0), (15, 16, 17), (63, 32, 32), (64, 7, 3), (65, 33, 16), (300, 8, 5)]
        {
            let case = Case::new(causal, len, d, e);
            let third = (len / 3) as i64;
            let borders = vec![0, 0, third, third + i64::from(len > 2), len as i64];
            all.push(Case { masked: true, batch: 2, ..case.clone() });
            all.push(Case { borders: Some(borders), heads: (2, 1), ..case.clone() });
            all.push(Case { heads: (4, 2), kv_len: len + 70, ..case.clone() });
            all.push(case);
        }
    }
    all.push(Case { kv_len: 9, ..Case::new(false, 40, 4, 4) });
    all.push(Case { kv_len: 0, ..Case::new(false, 5, 4, 4) });
    all
}

#[test]
fn exact_attention_conforms_at_every_shape() {
    for case in cases() {
        assert_conforms::<f32>(&case, 3e-6);
        assert_conforms::<f64>(&case, 1e-13);
        assert_conforms::<bf16>(&case, 8e-3);
    }
}

/// Products of operands that are rounded to bf16, on every unit that runs here.
#[test]
fn rounded_products_conform_and_later_rows_change_no_bit() {
    let isa = *Isa::available().last().unwrap();
    for unit in Unit::available() {
        let cpu = Cpu { isa, bf16: Some(unit) };
        for case in cases().into_iter().filter(|case| unit != Unit::Emulated || case.q_len < 70) {
            let (tensors, mask) = case.data::<f32>(7);
            let truth = plain(&case, &tensors, &mask);
            let found = kernel(&case, &tensors, &mask, cpu, 1);
            let other = kernel(&case, &tensors, &mask, cpu, 3);
            for (part, name) in PARTS.iter().enumerate() {
                // Relative to the truth, or to the inputs, which are about 1, where terms cancel that were rounded apart.
                let norm = truth[part].iter().map(|t| t * t).sum::<f64>().max(truth[part].len() as f64).sqrt();
                let squares = found[part].iter().zip(&truth[part]).map(|(f, t)| (f - t) * (f - t)).sum::<f64>();
                // Three rounded factors are off by 6e-3 of a term, and a single term may be larger than most.
                let bound = if case.q_len < 4 { 1.6e-2 } else { 6e-3 };
                assert!(squares.sqrt() <= bound * norm, "{name} {:.1e} {cpu:?} {case:?}", squares.sqrt() / norm);
                assert!(bits(&found[part]) == bits(&other[part]), "threads change {name} {cpu:?} {case:?}");
            }
        }
        let case = Case::new(true, 150, 16, 8);
        for cut in [1, 64, 100] {
            let (mut tensors, mask) = case.data::<f32>(5);
            tensors[3][cut * 8..].fill(0.0);
            let first = kernel(&case, &tensors, &mask, cpu, 2);
            for (tensor, width) in [(0, 16), (1, 16), (2, 8)] {
                tensors[tensor][cut * width..].iter_mut().for_each(|x| *x *= 100.0);
            }
            let second = kernel(&case, &tensors, &mask, cpu, 2);
            for (part, width) in [8, 16, 16, 8].into_iter().enumerate() {
                let (first, second) = (&first[part][..cut * width], &second[part][..cut * width]);
                assert!(bits(first) == bits(second), "{} {cpu:?} {cut}", PARTS[part]);
            }
        }
    }
}

#[test]
fn sharp_and_flat_weights_conform() {
    for causal in [false, true] {
        for (scale, bound) in [(0.0, 3e-6), (1e-20, 3e-6), (6.0, 2e-5), (30.0, 3e-4)] {
            let case = Case { scale, ..Case::new(causal, 150, 16, 8) };
            assert_conforms::<f32>(&case, bound);
            assert_conforms::<f64>(&case, bound * 1e-7);
        }
    }
}

#[test]
fn denominators_are_the_log_sum_exp_of_each_row() {
    let case = Case { masked: true, scale: 2.0, ..Case::new(true, 90, 8, 4) };
    let (tensors, mask) = case.data::<f64>(3);
    for isa in Isa::available() {
        let den = &kernel(&case, &tensors, &mask, Cpu::new(isa), 2)[4];
        for row in 0..90 {
            let logit = |key: usize| {
                let pairs = tensors[0][row * 8..][..8].iter().zip(&tensors[1][key * 8..][..8]);
                pairs.map(|(q, k)| q * k).sum::<f64>() / 8f64.sqrt()
            };
            let total: f64 = (0..=row).filter(|&key| !mask[key]).map(|key| logit(key).exp()).sum();
            let [exponent, mantissa] = den[2 * row..][..2] else { unreachable!() };
            assert!((0.5..1.0).contains(&mantissa) && exponent.fract() == 0.0);
            assert!(
                ((exponent + mantissa.log2()) * std::f64::consts::LN_2 - total.ln()).abs() < 1e-12,
                "{row} {isa:?}"
            );
        }
    }
}

/// A number in an input that is not finite: NaN where the plain form has it, and elsewhere the bits of a call without it.
#[test]
fn a_number_that_is_not_finite_reaches_what_sees_it_and_nothing_else() {
    for causal in [false, true] {
        for (masked, borders) in [(false, None), (true, None), (false, Some(vec![0, 40, 40, 150]))] {
            let case = Case { masked, borders, ..Case::new(causal, 150, 8, 4) };
            for (tensor, at, bad) in [
                (0, 9 * 8 + 3, f64::NAN),
                (1, 100 * 8, f64::INFINITY),
                (2, 70 * 4 + 1, f64::NEG_INFINITY),
                (3, 20 * 4, f64::NAN),
                (1, 8, f64::NAN),
            ] {
                let (mut tensors, mask) = case.data::<f32>(5);
                tensors[tensor][at] = bad as f32;
                let truth = plain(&case, &tensors, &mask);
                for isa in Isa::available() {
                    let found = kernel(&case, &tensors, &mask, Cpu::new(isa), 2);
                    for (part, name) in PARTS.iter().enumerate() {
                        let is_nan = |x: &[f64]| x.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
                        let same = is_nan(&found[part]) == is_nan(&truth[part]);
                        assert!(same, "{name} after {bad} in {tensor} {isa:?} {case:?}");
                        let (f, t): (Vec<f64>, Vec<f64>) =
                            found[part].iter().zip(&truth[part]).filter(|(f, _)| !f.is_nan()).unzip();
                        assert!(error(&f, &t) < 3e-6, "{name} after {bad} in {tensor} {isa:?} {case:?}");
                    }
                }
            }
        }
    }
}

/// Values near the largest number, where sums overflow, scale everything by a power of two.
#[test]
fn values_near_the_largest_number_give_the_bits_of_ordinary_ones() {
    for causal in [false, true] {
        let case = Case::new(causal, 200, 8, 4);
        let (mut tensors, mask) = case.data::<f32>(5);
        for isa in Isa::available() {
            let expected = kernel(&case, &tensors, &mask, Cpu::new(isa), 2);
            tensors[2].iter_mut().for_each(|x| *x *= 2f32.powi(124));
            tensors[3].iter_mut().for_each(|x| *x *= 2f32.powi(-20));
            let found = kernel(&case, &tensors, &mask, Cpu::new(isa), 2);
            tensors[2].iter_mut().for_each(|x| *x *= 2f32.powi(-124));
            tensors[3].iter_mut().for_each(|x| *x *= 2f32.powi(20));
            for (part, power) in [(0, 124), (1, 104), (2, 104), (3, -20)] {
                let expected: Vec<f64> = expected[part].iter().map(|x| x * 2f64.powi(power)).collect();
                assert!(bits(&found[part]) == bits(&expected), "{} {isa:?} causal {causal}", PARTS[part]);
            }
        }
    }
}

#[test]
fn rows_may_lie_anywhere() {
    let case = Case { heads: (4, 2), ..Case::new(true, 130, 8, 8) };
    let (tensors, mask) = case.data::<f32>(5);
    let (args, cancel) = (args(&case, &tensors, &mask), AtomicBool::new(false));
    let run = Execution { num_threads: 2, cancel: &cancel };
    let [_, _, _, of_out] = case.shapes();
    for isa in Isa::available() {
        let (cpu, expected) = (Cpu::new(isa), kernel(&case, &tensors, &mask, Cpu::new(isa), 1));
        let (mut out, mut den) = (vec![f32::NAN; 130 * 4 * 8], vec![f32::NAN; 130 * 4 * 2]);
        let rows = OutRows::token_major("out", &mut out, of_out).unwrap();
        cpu.exact_forward(&args, rows, Some(&mut den), &run).unwrap();
        let saved = ExactSaved {
            out: TensorRef::new("out", &out, 0, of_out, [0, 8, 32, 1]).unwrap(),
            den: &den,
            grad: TensorRef::contiguous("grad", &tensors[3], of_out).unwrap(),
        };
        let mut all = vec![f32::NAN; 130 * 64];
        let parts = OutRows::parts_of_tokens("dqkv", &mut all, [1, 130], [[4, 8], [2, 8], [2, 8]]).unwrap();
        cpu.exact_backward(&args, &saved, parts, &run).unwrap();
        for (part, heads, first, data, token) in
            [(0, 4, 0, &out, 32), (1, 4, 0, &all, 64), (2, 2, 32, &all, 64), (3, 2, 48, &all, 64)]
        {
            let rows = (0..heads).flat_map(|head| (0..130).map(move |at| at * token + first + head * 8));
            let found: Vec<f64> = rows.flat_map(|at| wide(&data[at..][..8])).collect();
            assert!(bits(&found) == bits(&expected[part]), "{} {isa:?}", PARTS[part]);
        }
    }
}

#[test]
fn fewer_keys_than_queries_and_a_raised_flag_are_refused() {
    let case = Case { kv_len: 5, ..Case::new(true, 9, 4, 4) };
    let (tensors, mask) = case.data::<f32>(5);
    let cpu = Cpu::new(Isa::available()[0]);
    let mut out = vec![0.0; 9 * 4];
    let cancel = AtomicBool::new(true);
    let run = Execution { num_threads: 1, cancel: &cancel };
    let rows = OutRows::head_major("out", &mut out, [1, 1, 9, 4]).unwrap();
    let error = cpu.exact_forward(&args(&case, &tensors, &mask), rows, None, &run).unwrap_err().to_string();
    assert_eq!(error, "k has length 5 but causal attention needs at least q's 9");
    let case = Case { causal: false, ..case };
    let rows = OutRows::head_major("out", &mut out, [1, 1, 9, 4]).unwrap();
    let found = cpu.exact_forward(&args(&case, &tensors, &mask), rows, None, &run);
    assert_eq!(found, Err(protperf_core::Error::Interrupted));
}
