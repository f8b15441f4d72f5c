//! The block and the head whose products are rounded to bf16 against those of f32: close, and the same for any threads.

use protperf_core::{Execution, FeatureMap, Result};
use protperf_cpu::Isa;
use protperf_model::block::{Block, BlockBackward, BlockGradients, Trace, TraceMut};
use protperf_model::head::{HeadGradients, HeadWeights, Targets, token_loss};
use protperf_model::weights::{Attention, BlockShape, BlockWeights};
use protperf_model::{Arithmetic, Dropout, Precision, Rotary};
use std::sync::atomic::AtomicBool;

/// Half a unit of bf16, relative.
const HALF_UNIT: f64 = 1.0 / 512.0;
const TOKENS: usize = 300;
const SHAPE: BlockShape = BlockShape { model_dim: 40, num_heads: 3, head_dim: 14, ffn_dim: 90 };
const ATTENTIONS: [Attention; 2] = [Attention::Exact, Attention::Favor { map: FeatureMap::Elu1, num_features: 21 }];

/// Numbers in -1..1 that are a function of a seed, and otherwise independent: sums of them cancel no more than usual.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn bf16(isa: Isa) -> Arithmetic {
    Arithmetic { isa, precision: Precision::Bf16 }
}

/// Output and every gradient of a block.
fn block(arithmetic: Arithmetic, attention: Attention, num_threads: usize) -> Vec<Vec<f32>> {
    let BlockShape { model_dim: c, num_heads: h, head_dim: d, ffn_dim: f } = SHAPE;
    let sizes = [c, 3 * h * d * c, h, c * h * d, c, 2 * f * c, c * f, TOKENS * c];
    let mut tensors: Vec<Vec<f32>> = sizes.iter().enumerate().map(|(i, &len)| numbers(len, i as u64)).collect();
    // Gains near 1 and weights as a training begins with, so that every product is of ordinary size.
    for (at, scale) in [(1, 0.2), (3, 0.2), (5, 0.2), (6, 0.2)] {
        tensors[at].iter_mut().for_each(|x| *x *= scale);
    }
    [0, 4].into_iter().for_each(|at| tensors[at].iter_mut().for_each(|x| *x = 1.0 + 0.1 * *x));
    let omega = numbers(h * 21 * d, 99);
    let [attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down, input] = &tensors[..] else { panic!() };
    let omega = (attention != Attention::Exact).then_some(&*omega);
    let weights = BlockWeights { attention_norm, qkv, log_temperature, omega, out, ffn_norm, gate_up, down };
    let cancel = AtomicBool::new(false);
    let run = Execution { num_threads, cancel: &cancel };
    let rotary = Rotary::<f32>::new((0..TOKENS as u64).map(|at| at % 100), d).unwrap();
    let sight = (&[0i64, 100, 200, 300][..], true);

    let mut trace = SHAPE.trace_lens(TOKENS).map(|len| vec![f32::NAN; len]);
    let [qkv_kept, inverses, attended, denominators, middle, gate_up_kept] = &mut trace;
    let mut kept = TraceMut { qkv: qkv_kept, inverses, attended, denominators, middle, gate_up: gate_up_kept };
    let mut output = input.clone();
    let forward = Block::pack(arithmetic, SHAPE, attention, &weights, &run).unwrap();
    forward.forward_traced(&mut output, &mut kept, &rotary, sight, Dropout::NONE, &run).unwrap();

    let [qkv_kept, inverses, attended, denominators, middle, gate_up_kept] = &trace;
    let kept = Trace { qkv: qkv_kept, inverses, attended, denominators, middle, gate_up: gate_up_kept };
    let mut found: Vec<Vec<f32>> = tensors.iter().map(|tensor| vec![f32::NAN; tensor.len()]).collect();
    found[7] = numbers(TOKENS * c, 1234);
    let [attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down, grad] = &mut found[..] else { panic!() };
    let mut gradients = BlockGradients { attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down };
    let backward = BlockBackward::pack(arithmetic, SHAPE, attention, &weights, &run).unwrap();
    backward.run(input, kept, &rotary, sight, Dropout::NONE, grad, &mut gradients, &run).unwrap();
    found.push(output);
    found
}

/// Loss, and the gradients of the head.
fn head(arithmetic: Arithmetic, num_threads: usize) -> (f64, Vec<Vec<f32>>) {
    let (width, classes) = (40, 29);
    let tensors = [numbers(TOKENS * width, 1), numbers(width, 2), numbers(classes * width, 3)];
    let positions: Vec<i64> = (0..TOKENS as i64).filter(|at| at % 3 != 1).collect();
    let chosen: Vec<i64> = positions.iter().map(|at| at * 7 % classes as i64).collect();
    let targets = Targets { positions: &positions, classes: &chosen };
    let weights = HeadWeights { norm: &tensors[1], embedding: &tensors[2] };
    let mut found = tensors.clone().map(|tensor| vec![f32::NAN; tensor.len()]);
    let [hidden, norm, embedding] = &mut found;
    let gradients = Some(HeadGradients { hidden, norm, embedding });
    let cancel = AtomicBool::new(false);
    let run = Execution { num_threads, cancel: &cancel };
    let weight = 1.0 / positions.len() as f64;
    let loss = token_loss(arithmetic, &tensors[0], weights, targets, weight, gradients, &run).unwrap();
    (loss, found.into())
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// The norm of the difference over a size.
fn relative(found: &[f32], needed: &[f32], size: f64) -> f64 {
    norm(found.iter().zip(needed).map(|(a, b)| f64::from(a - b))) / size
}

#[test]
fn block_and_gradients_are_those_of_f32_within_the_rounding_of_bf16() {
    let isa = *Isa::available().last().unwrap();
    for attention in ATTENTIONS {
        let (found, needed) = (block(bf16(isa), attention, 2), block(isa.into(), attention, 2));
        let whole = norm(needed[..7].iter().flatten().map(|&x| f64::from(x)));
        for (at, (found, needed)) in found.iter().zip(&needed).enumerate() {
            // The gradient of a temperature is a sum that nearly cancels, so it is judged by the gradient as a whole.
            let size = if at == 2 { whole } else { norm(needed.iter().map(|&x| f64::from(x))) };
            let off = relative(found, needed, size);
            // Up to eight products follow one another; each rounds two operands, at random.
            assert!(off > 0.0 && off < 4.0 * HALF_UNIT, "tensor {at} of {attention:?} is off by {off:.1e}");
        }
    }
}

#[test]
fn loss_and_gradients_of_the_head_are_those_of_f32_within_the_rounding_of_bf16() {
    let isa = *Isa::available().last().unwrap();
    let ((loss, found), (needed_loss, needed)) = (head(bf16(isa), 2), head(isa.into(), 2));
    assert!((loss / needed_loss - 1.0).abs() < HALF_UNIT);
    for (found, needed) in found.iter().zip(&needed) {
        let off = relative(found, needed, norm(needed.iter().map(|&x| f64::from(x))));
        assert!(off > 0.0 && off < 4.0 * HALF_UNIT, "{off:.1e}");
    }
}

#[test]
fn no_number_of_threads_changes_a_bit() {
    for isa in Isa::available() {
        let first = (ATTENTIONS.map(|attention| block(bf16(isa), attention, 1)), head(bf16(isa), 1));
        for num_threads in [2, 3, 8] {
            let found = ATTENTIONS.map(|attention| block(bf16(isa), attention, num_threads));
            assert_eq!((found, head(bf16(isa), num_threads)), first);
        }
    }
}

#[test]
fn f64_is_refused_and_so_is_a_precision_that_does_not_exist() {
    let (c, cancel) = (4, AtomicBool::new(false));
    let run = Execution { num_threads: 1, cancel: &cancel };
    let ones = vec![1.0f64; 8 * c];
    let weights = HeadWeights { norm: &ones[..c], embedding: &ones };
    let targets = Targets { positions: &[], classes: &[] };
    let refused: Result<f64> = token_loss(bf16(Isa::available()[0]), &ones, weights, targets, 1.0, None, &run);
    assert!(refused.unwrap_err().to_string().contains("float64"));
    for name in Precision::NAMES {
        assert!(Precision::from_name(name).is_ok());
    }
    assert!(Precision::from_name("tf32").unwrap_err().to_string().contains("f32, bf16"));
}
