//! Gradients of a block against differences of its own forward pass, in f64; every width odd somewhere.

use protperf_core::{Execution, FeatureMap};
use protperf_cpu::Isa;
use protperf_model::block::{Block, BlockBackward, BlockGradients, Trace, TraceMut};
use protperf_model::weights::{Attention, BlockShape, BlockWeights};
use protperf_model::{Dropout, Rotary};
use std::sync::atomic::AtomicBool;

/// Numbers in -1..1 that are a function of a seed.
fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// All numbers that a block computes with, and the sizes that they have.
#[derive(Clone)]
struct Case {
    shape: BlockShape,
    attention: Attention,
    /// attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down, input.
    tensors: Vec<Vec<f64>>,
    omega: Vec<f64>,
    borders: Vec<i64>,
    causal: bool,
    dropout: Dropout,
}

impl Case {
    fn new(shape: BlockShape, attention: Attention, borders: &[i64], causal: bool, dropout: f64) -> Self {
        let BlockShape { model_dim: c, num_heads: h, head_dim: d, ffn_dim: f } = shape;
        let tokens = *borders.last().unwrap() as usize;
        let sizes = [c, 3 * h * d * c, h, c * h * d, c, 2 * f * c, c * f, tokens * c];
        let tensors = sizes.iter().enumerate().map(|(i, &len)| numbers(len, i as u64 + 1)).collect();
        let num_features = match attention {
            Attention::Favor { num_features, .. } => num_features,
            Attention::Exact => 0,
        };
        let omega = numbers(h * num_features * d, 99).iter().map(|x| 1.5 * x).collect();
        let dropout = Dropout::new(dropout, 7).unwrap();
        Case { shape, attention, tensors, omega, borders: borders.to_vec(), causal, dropout }
    }

    fn tokens(&self) -> usize {
        *self.borders.last().unwrap() as usize
    }

    fn weights(&self) -> BlockWeights<'_, f64> {
        let [attention_norm, qkv, log_temperature, out, ffn_norm, gate_up, down, _] = &self.tensors[..] else {
            panic!()
        };
        let omega = (self.attention != Attention::Exact).then_some(&*self.omega);
        BlockWeights { attention_norm, qkv, log_temperature, omega, out, ffn_norm, gate_up, down }
    }

    fn rotary(&self) -> Rotary<'static, f64> {
        let borders = self.borders.clone();
        let positions = borders.windows(2).flat_map(|w| 0..(w[1] - w[0]) as u64).collect::<Vec<_>>();
        Rotary::new(positions.into_iter(), self.shape.head_dim).unwrap()
    }

    fn trace(&self) -> Vec<Vec<f64>> {
        self.shape.trace_lens(self.tokens()).iter().map(|&len| vec![f64::NAN; len]).collect()
    }

    fn forward(&self, isa: Isa, num_threads: usize, trace: &mut [Vec<f64>]) -> Vec<f64> {
        let cancel = AtomicBool::new(false);
        let run = Execution { num_threads, cancel: &cancel };
        let block = Block::pack(isa, self.shape, self.attention, &self.weights(), &run).unwrap();
        let mut output = self.tensors[7].clone();
        let [qkv, inverses, attended, denominators, middle, gate_up] = trace else { panic!() };
        let mut trace = TraceMut { qkv, inverses, attended, denominators, middle, gate_up };
        let sight = (&*self.borders, self.causal);
        block.forward_traced(&mut output, &mut trace, &self.rotary(), sight, self.dropout, &run).unwrap();
        output
    }

    /// Gradients of every tensor, where `grad` arrives.
    fn backward(&self, isa: Isa, num_threads: usize, trace: &[Vec<f64>], grad: &[f64]) -> Vec<Vec<f64>> {
        let cancel = AtomicBool::new(false);
        let run = Execution { num_threads, cancel: &cancel };
        let block = BlockBackward::pack(isa, self.shape, self.attention, &self.weights(), &run).unwrap();
        let mut found: Vec<Vec<f64>> = self.tensors.iter().map(|tensor| vec![f64::NAN; tensor.len()]).collect();
        found[7].copy_from_slice(grad);
        let [qkv, inverses, attended, denominators, middle, gate_up] = trace else { panic!() };
        let trace = Trace { qkv, inverses, attended, denominators, middle, gate_up };
        let [attention_norm, d_qkv, log_temperature, out, ffn_norm, d_gate_up, down, input] = &mut found[..] else {
            panic!()
        };
        let mut gradients =
            BlockGradients { attention_norm, qkv: d_qkv, log_temperature, out, ffn_norm, gate_up: d_gate_up, down };
        let sight = (&*self.borders, self.causal);
        let given = &self.tensors[7];
        let rotary = self.rotary();
        block.run(given, trace, &rotary, sight, self.dropout, input, &mut gradients, &run).unwrap();
        found
    }
}

fn cases() -> Vec<Case> {
    let favor = |map, num_features| Attention::Favor { map, num_features };
    let odd = BlockShape { model_dim: 10, num_heads: 3, head_dim: 6, ffn_dim: 19 };
    let even = BlockShape { model_dim: 32, num_heads: 2, head_dim: 16, ffn_dim: 48 };
    let mut cases = Vec::new();
    for shape in [odd, even] {
        for attention in [favor(FeatureMap::Elu1, 7), favor(FeatureMap::Positive, 8), Attention::Exact] {
            for causal in [false, true] {
                cases.push(Case::new(shape, attention, &[0, 5, 5, 18], causal, 0.3));
            }
        }
    }
    // More than one tile of either pass.
    cases.push(Case::new(odd, favor(FeatureMap::Elu1, 5), &[0, 300, 301], true, 0.0));
    cases
}

#[test]
fn gradients_are_limits_of_differences() {
    for case in cases() {
        let probe = numbers(case.tensors[7].len(), 1234);
        for isa in Isa::available() {
            let mut trace = case.trace();
            case.forward(isa, 1, &mut trace);
            let gradients = case.backward(isa, 2, &trace, &probe);
            for (at, gradient) in gradients.iter().enumerate() {
                let direction = numbers(gradient.len(), 77 + at as u64);
                let moved = |by: f64| {
                    let mut moved = case.clone();
                    moved.tensors[at].iter_mut().zip(&direction).for_each(|(x, d)| *x += by * d);
                    let output = moved.forward(isa, 1, &mut case.trace());
                    output.iter().zip(&probe).map(|(x, p)| x * p).sum::<f64>()
                };
                let step = 1e-5;
                let slope = (moved(step) - moved(-step)) / (2.0 * step);
                let found: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let scale = gradient.iter().zip(&direction).map(|(g, d)| (g * d).powi(2)).sum::<f64>().sqrt();
                assert!(
                    (slope - found).abs() <= 1e-6 * scale.max(1.0),
                    "tensor {at}, {:?}, causal {}, {isa:?}: {slope} {found}",
                    case.attention,
                    case.causal
                );
            }
        }
    }
}

#[test]
fn no_number_of_threads_changes_a_bit() {
    for case in cases() {
        let probe = numbers(case.tensors[7].len(), 5);
        let isa = *Isa::available().last().unwrap();
        let mut first = case.trace();
        let output = case.forward(isa, 1, &mut first);
        let gradients = case.backward(isa, 1, &first, &probe);
        for num_threads in [2, 3, 7] {
            let mut trace = case.trace();
            assert_eq!(case.forward(isa, num_threads, &mut trace), output);
            assert_eq!(case.backward(isa, num_threads, &trace, &probe), gradients);
        }
    }
}
