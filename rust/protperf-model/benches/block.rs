//! What one block of a network costs in a training: forward with its trace, and backward.
//!
//!     cargo bench -p protperf-model --bench block [-- PART OF A NAME]
//!
//! Packed sequences of one length, causal; products in f32, and of bf16 where this processor has a unit for them. Prints the
//! least of several times in milliseconds, on one thread and on two, and the rate of multiplications and additions of the
//! linear layers that these make. Results are judged by the tests.

use protperf_core::rng::Stream;
use protperf_core::{Execution, FeatureMap};
use protperf_cpu::Isa;
use protperf_cpu::bf16::Unit;
use protperf_model::block::{Block, BlockBackward, BlockGradients, Trace, TraceMut};
use protperf_model::weights::{Attention, BlockShape, BlockWeights};
use protperf_model::{Arithmetic, Dropout, Precision, Rotary};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

static GO_ON: AtomicBool = AtomicBool::new(false);
const TOKENS: usize = 4096;
const LEN: usize = 256;
const NANO: BlockShape = BlockShape { model_dim: 128, num_heads: 4, head_dim: 32, ffn_dim: 384 };
const TINY: BlockShape = BlockShape { model_dim: 256, num_heads: 8, head_dim: 32, ffn_dim: 768 };
const RELU: Attention = Attention::Favor { map: FeatureMap::Relu, num_features: 64 };

/// Lengths of the tensors of a block, in the order of its fields.
fn tensor_lens(shape: &BlockShape) -> [usize; 7] {
    let BlockShape { model_dim: c, num_heads: h, head_dim: d, ffn_dim: f } = *shape;
    [c, 3 * h * d * c, h, c * h * d, c, 2 * f * c, c * f]
}

/// The least of several times, in milliseconds.
fn least(mut call: impl FnMut()) -> f64 {
    let (mut best, start) = (f64::INFINITY, Instant::now());
    for round in 0.. {
        let from = Instant::now();
        call();
        best = best.min(from.elapsed().as_secs_f64() * 1e3);
        if round >= 5 && start.elapsed().as_secs_f64() > 1.0 {
            break;
        }
    }
    best
}

/// Times of the forward and of the backward pass.
fn times(arithmetic: Arithmetic, shape: BlockShape, attention: Attention, num_threads: usize) -> [f64; 2] {
    let mut stream = Stream::new(1, [0, 0, 0]);
    let mut normals = |len: usize, scale: f64| (0..len).map(|_| (stream.normal() * scale) as f32).collect::<Vec<f32>>();
    let lens = tensor_lens(&shape);
    let scale = 1.0 / (shape.model_dim as f64).sqrt();
    let tensors = lens.map(|len| normals(len, scale));
    let input = normals(TOKENS * shape.model_dim, 1.0);
    let arrived = normals(TOKENS * shape.model_dim, 1.0);
    let omega = normals(shape.num_heads * 64 * shape.head_dim, 1.0);
    let omega = (attention != Attention::Exact).then_some(&*omega);
    let [attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down] = &tensors;
    let weights = BlockWeights { attention_norm, qkv, log_temperature, omega, out, ffn_norm, gate_up, down };
    let run = Execution { num_threads, cancel: &GO_ON };
    let rotary = Rotary::<f32>::new((0..TOKENS as u64).map(|at| at % LEN as u64), shape.head_dim).unwrap();
    let borders: Vec<i64> = (0..=TOKENS / LEN).map(|at| (at * LEN) as i64).collect();

    let mut trace = shape.trace_lens(TOKENS).map(|len| vec![0.0f32; len]);
    let mut output = input.clone();
    let forward = least(|| {
        let [qkv, inverses, attended, denominators, middle, gate_up] = &mut trace;
        let mut kept = TraceMut { qkv, inverses, attended, denominators, middle, gate_up };
        output.copy_from_slice(&input);
        let block = Block::pack(arithmetic, shape, attention, &weights, &run).unwrap();
        block.forward_traced(&mut output, &mut kept, &rotary, (&borders, true), Dropout::NONE, &run).unwrap();
    });
    let [qkv, inverses, attended, denominators, middle, gate_up] = &trace;
    let kept = Trace { qkv, inverses, attended, denominators, middle, gate_up };
    let mut found = lens.map(|len| vec![0.0f32; len]);
    let mut grad = arrived.clone();
    let backward = least(|| {
        let [attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down] = &mut found;
        let mut gradients = BlockGradients { attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down };
        grad.copy_from_slice(&arrived);
        let block = BlockBackward::pack(arithmetic, shape, attention, &weights, &run).unwrap();
        let order = (&*borders, true);
        block.run(&input, kept, &rotary, order, Dropout::NONE, &mut grad, &mut gradients, &run).unwrap();
    });
    [forward, backward]
}

fn main() {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    let isa = *Isa::available().last().expect("there is always one");
    let precisions = [(Precision::F32, "f32"), (Precision::Bf16, "bf16")];
    let has_unit = Unit::of(isa).is_some();
    println!("{:32} {:>9} {:>9} {:>16}", isa.name(), "forward", "backward", "GFLOP/s of both");
    for (size, shape) in [("nano", NANO), ("tiny", TINY)] {
        // Each weight is used in one multiplication and addition forward, and in two backward.
        let matrices: usize = [1, 3, 5, 6].map(|at| tensor_lens(&shape)[at]).iter().sum();
        for (way, attention) in [("exact", Attention::Exact), ("relu", RELU)] {
            for (precision, rounded) in
                precisions.into_iter().filter(|(precision, _)| *precision == Precision::F32 || has_unit)
            {
                for num_threads in [1, 2] {
                    let name = format!("{size} {way} {rounded} {num_threads} threads");
                    if name.contains(&wanted) {
                        let [forward, backward] = times(Arithmetic { isa, precision }, shape, attention, num_threads);
                        let flops = 2 * TOKENS * matrices;
                        let rates = [flops, 2 * flops].map(|flops| flops as f64 * 1e-6);
                        let rates = [rates[0] / forward, rates[1] / backward];
                        println!("{name:32} {forward:9.2} {backward:9.2} {:8.0} {:7.0}", rates[0], rates[1]);
                    }
                }
            }
        }
    }
}
