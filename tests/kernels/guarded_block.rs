//! A block touches the elements of its arguments and nothing else: weights, inputs, traces, gradients and angles lie
//! against pages that must not be touched, at widths that fill no register, on every instruction set.

use crate::guard::{Against, Guarded};
use protperf::model::block::{Block, BlockBackward, BlockGradients, Trace, TraceMut};
use protperf::model::head::{HeadGradients, HeadWeights, Targets, token_loss};
use protperf::model::weights::{Attention, BlockShape, BlockWeights};
use protperf::model::{Arithmetic, Dropout, Precision, Rotary};
use protperf::{CpuElement, Execution, FeatureMap, Isa};
use std::sync::atomic::AtomicBool;

/// Numbers in -1..1 that are a function of a seed.
fn numbers<T: CpuElement>(len: usize, seed: usize) -> Vec<T> {
    (0..len).map(|i| T::from_f64((((i + 1) * (seed + 3) * 7919) % 2017) as f64 / 1008.5 - 1.0)).collect()
}

fn guarded<T: CpuElement>(len: usize, seed: usize, against: Against) -> Guarded<T> {
    Guarded::new(&numbers::<T>(len, seed), against)
}

fn poisoned<T: CpuElement>(len: usize, against: Against) -> Guarded<T> {
    Guarded::new(&vec![T::from_f64(f64::NAN); len], against)
}

/// Forward and backward of a block, and the loss over its output; all numbers that came out.
fn run<T: CpuElement>(shape: BlockShape, attention: Attention, how: Arithmetic, against: Against) -> Vec<T> {
    let BlockShape { model_dim: c, num_heads: h, head_dim: d, ffn_dim: f } = shape;
    let borders = Guarded::new(&[0i64, 3, 3, 20], against);
    let tokens = 20;
    let sizes = [c, 3 * h * d * c, h, c * h * d, c, 2 * f * c, c * f];
    let weights: Vec<Guarded<T>> = sizes.iter().enumerate().map(|(i, &n)| guarded(n, i, against)).collect();
    let [attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down] = &weights[..] else { panic!() };
    let num_features = if let Attention::Favor { num_features, .. } = attention { num_features } else { 0 };
    let omega: Guarded<T> = guarded(h * num_features * d, 31, against);
    let weights = BlockWeights {
        attention_norm,
        qkv,
        log_temperature,
        omega: (attention != Attention::Exact).then_some(&omega),
        out,
        ffn_norm,
        gate_up,
        down,
    };
    let (cosines, sines) = (guarded::<T>(tokens * d / 2, 41, against), guarded::<T>(tokens * d / 2, 42, against));
    let rotary = Rotary::from_tables(&cosines, &sines, d).unwrap();
    let cancel = AtomicBool::new(false);
    let execution = Execution { num_threads: 2, cancel: &cancel };
    let input: Guarded<T> = guarded(tokens * c, 51, against);
    let mut output: Guarded<T> = guarded(tokens * c, 51, against);
    let mut trace: Vec<Guarded<T>> = shape.trace_lens(tokens).iter().map(|&n| poisoned(n, against)).collect();
    let dropout = Dropout::new(0.3, 5).unwrap();
    {
        let [qkv, inverses, attended, denominators, middle, gate_up] = &mut trace[..] else { panic!() };
        let mut trace = TraceMut { qkv, inverses, attended, denominators, middle, gate_up };
        let block = Block::pack(how, shape, attention, &weights, &execution).unwrap();
        block.forward_traced(&mut output, &mut trace, &rotary, (&borders, true), dropout, &execution).unwrap();
        let mut again: Guarded<T> = guarded(tokens * c, 51, against);
        block.forward_dropped(&mut again, &rotary, (&borders, true), None, dropout, &execution).unwrap();
        assert!(again[..] == output[..], "with a trace and without one");
    }
    let (classes, norm) = (7, guarded::<T>(c, 61, against));
    let embedding: Guarded<T> = guarded(classes * c, 62, against);
    let (positions, targets) = (Guarded::new(&[0i64, 4, 19], against), Guarded::new(&[6i64, 0, 3], against));
    let [mut grad, mut dnorm, mut dembedding] = [tokens * c, c, classes * c].map(|n| poisoned::<T>(n, against));
    let head = HeadWeights { norm: &norm, embedding: &embedding };
    let wanted = Targets { positions: &positions, classes: &targets };
    let gradients = HeadGradients { hidden: &mut grad, norm: &mut dnorm, embedding: &mut dembedding };
    let loss = token_loss(how, &output, head, wanted, 0.5, Some(gradients), &execution).unwrap();
    let mut found: Vec<Guarded<T>> = sizes.iter().map(|&n| poisoned(n, against)).collect();
    {
        let [attention_norm, d_qkv, log_temperature, out, ffn_norm, d_gate_up, down] = &mut found[..] else { panic!() };
        let mut gradients =
            BlockGradients { attention_norm, qkv: d_qkv, log_temperature, out, ffn_norm, gate_up: d_gate_up, down };
        let [qkv, inverses, attended, denominators, middle, gate_up] = &trace[..] else { panic!() };
        let trace = Trace { qkv, inverses, attended, denominators, middle, gate_up };
        let block = BlockBackward::pack(how, shape, attention, &weights, &execution).unwrap();
        let sight = (&borders[..], true);
        block.run(&input, trace, &rotary, sight, dropout, &mut grad, &mut gradients, &execution).unwrap();
    }
    let all = found.iter().flat_map(|x| x.iter()).chain(output.iter()).chain(grad.iter());
    let mut all: Vec<T> = all.chain(dnorm.iter()).chain(dembedding.iter()).copied().collect();
    all.push(T::from_f64(loss));
    all
}

fn check<T: CpuElement>(precision: Precision) {
    let favor = |map, num_features| Attention::Favor { map, num_features };
    let shapes = [[1, 1, 2, 1], [3, 2, 4, 5], [15, 1, 6, 17], [16, 2, 16, 16], [17, 3, 10, 31], [33, 1, 34, 65]];
    for [model_dim, num_heads, head_dim, ffn_dim] in shapes {
        let shape = BlockShape { model_dim, num_heads, head_dim, ffn_dim };
        for attention in [favor(FeatureMap::Relu, 5), favor(FeatureMap::Positive, 17), Attention::Exact] {
            for isa in Isa::available() {
                let [before, after] = [Against::Start, Against::End]
                    .map(|side| run::<T>(shape, attention, Arithmetic { isa, precision }, side));
                assert!(before.iter().all(|x| x.to_f64().is_finite()), "{shape:?} {attention:?} {isa:?}");
                assert!(before == after, "where memory lies changed a bit: {shape:?} {attention:?} {isa:?}");
            }
        }
    }
}

#[test]
fn a_block_in_f32_stays_inside_of_its_arguments() {
    check::<f32>(Precision::F32);
}

#[test]
fn a_block_with_products_of_bf16_stays_inside_of_its_arguments() {
    check::<f32>(Precision::Bf16);
}

#[test]
fn a_block_in_f64_stays_inside_of_its_arguments() {
    check::<f64>(Precision::F32);
}
