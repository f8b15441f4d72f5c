//! What one call costs: linear and exact attention, forward and with its backward pass, over packed short segments.
//!
//!     cargo bench -p protperf-cpu --bench calls
//!
//! One thread, tensors of f32, causal; products in f32, and of bf16 where this processor has a unit for them. Prints the least of several times of each call in milliseconds. Results are judged by the
//! tests; here each is looked at once, so that nothing that failed is timed.

use protperf_core::attention::exact::SoftmaxArgs;
use protperf_core::backend::Saved;
use protperf_core::rng::Stream;
use protperf_core::state::empty_state;
use protperf_core::{Execution, FavorArgs, FeatureMap, MapArgs, Omega, TensorRef};
use protperf_cpu::{Cpu, DecodingState, ExactSaved, Isa, OutRows, PreparedMap, RowGradients, RowOutputs, StepArgs};
use std::cell::LazyCell;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

static GO_ON: AtomicBool = AtomicBool::new(false);
const RUN: Execution<'static> = Execution { num_threads: 1, cancel: &GO_ON };

/// Segments of one length, packed.
struct Problem {
    shape: [usize; 4],
    borders: Vec<i64>,
    tensors: [Vec<f32>; 4],
    omega: Vec<f64>,
    num_features: usize,
}

impl Problem {
    fn new(segments: usize, len: usize, heads: usize, head_dim: usize, num_features: usize) -> Self {
        let mut stream = Stream::new(1, [0, 0, 0]);
        let (rows, inner) = (segments * len, heads * head_dim);
        let mut normals = |n: usize| (0..n).map(|_| stream.normal()).collect::<Vec<f64>>();
        let tensors = [(); 4].map(|()| normals(rows * inner).into_iter().map(|x| x as f32).collect());
        let omega = normals(heads * num_features * head_dim);
        let borders = (0..=segments).map(|at| (at * len) as i64).collect();
        Problem { shape: [1, heads, rows, head_dim], borders, tensors, omega, num_features }
    }

    fn view(&self, at: usize) -> TensorRef<'_, f32> {
        TensorRef::contiguous("x", &self.tensors[at], self.shape).unwrap()
    }

    fn favor(&self, map: FeatureMap) -> FavorArgs<'_, f32> {
        let [_, heads, _, head_dim] = self.shape;
        let omega = Omega { data: &self.omega, num_heads: Some(heads), num_features: self.num_features, head_dim };
        FavorArgs {
            q: self.view(0),
            k: self.view(1),
            v: self.view(2),
            map: MapArgs::Named { map, omega: Some(omega), kernel_epsilon: map.default_epsilon() },
            causal: true,
            cu_seqlens: Some(&self.borders),
            key_padding_mask: None,
        }
    }

    fn exact(&self) -> SoftmaxArgs<'_, f32> {
        let (q, k, v) = (self.view(0), self.view(1), self.view(2));
        SoftmaxArgs { q, k, v, causal: true, cu_seqlens: Some(&self.borders), key_padding_mask: None }
    }
}

/// The least of several times, in milliseconds.
fn least(mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    for round in 0.. {
        let from = Instant::now();
        call();
        best = best.min(from.elapsed().as_secs_f64() * 1e3);
        if round >= 5 && start.elapsed().as_secs_f64() > 0.7 {
            break;
        }
    }
    best
}

/// Times of a forward pass and of a backward pass.
fn favor(cpu: Cpu, problem: &Problem, map: FeatureMap) -> [f64; 2] {
    let args = problem.favor(map);
    let [_, heads, rows, head_dim] = problem.shape;
    let prepared: PreparedMap<f32> = cpu.prepare(&args.map, heads, head_dim).unwrap();
    let (mut out, mut den) = (vec![0.0; problem.tensors[0].len()], vec![0.0; heads * rows * 2]);
    let forward = least(|| {
        let rows = OutRows::head_major("out", &mut out, problem.shape).unwrap();
        let outputs = RowOutputs { state_in: None, out: rows, den: Some(&mut den), state_out: None };
        cpu.forward_rows(&args, Some(&prepared), outputs, &RUN).unwrap();
    });
    assert!(out.iter().all(|x| x.is_finite()));
    let kept = TensorRef::contiguous("out", &out, problem.shape).unwrap();
    let saved = Saved { out: kept, den: &den, grad: problem.view(3), state_in: None, final_state: None };
    let mut gradients = [(); 3].map(|()| vec![0.0; out.len()]);
    let backward = least(|| {
        let [dq, dk, dv] = gradients.each_mut().map(|x| OutRows::head_major("d", x, problem.shape).unwrap());
        let gradients = RowGradients { dq, dk, dv, map: None, state_in: None };
        cpu.backward_rows(&args, Some(&prepared), &saved, gradients, &RUN).unwrap();
    });
    assert!(gradients.iter().flatten().all(|x| x.is_finite()));
    [forward, backward]
}

fn exact(cpu: Cpu, problem: &Problem) -> [f64; 2] {
    let (args, [_, heads, rows, _]) = (problem.exact(), problem.shape);
    let (mut out, mut den) = (vec![0.0; problem.tensors[0].len()], vec![0.0; heads * rows * 2]);
    let forward = least(|| {
        let rows = OutRows::head_major("out", &mut out, problem.shape).unwrap();
        cpu.exact_forward(&args, rows, Some(&mut den), &RUN).unwrap();
    });
    assert!(out.iter().all(|x| x.is_finite()));
    let kept = TensorRef::contiguous("out", &out, problem.shape).unwrap();
    let saved = ExactSaved { out: kept, den: &den, grad: problem.view(3) };
    let mut gradients = [(); 3].map(|()| vec![0.0; out.len()]);
    let backward = least(|| {
        let gradients = gradients.each_mut().map(|x| OutRows::head_major("d", x, problem.shape).unwrap());
        cpu.exact_backward(&args, &saved, gradients, &RUN).unwrap();
    });
    assert!(gradients.iter().flatten().all(|x| x.is_finite()));
    [forward, backward]
}

/// Microseconds of one token of one sequence.
fn step(cpu: Cpu, heads: usize, head_dim: usize, num_features: usize, map: FeatureMap) -> f64 {
    let problem = Problem::new(1, 1, heads, head_dim, num_features);
    let args = FavorArgs { cu_seqlens: None, ..problem.favor(map) };
    let prepared: PreparedMap<f32> = cpu.prepare(&args.map, heads, head_dim).unwrap();
    let state = empty_state::<f32>(&args.validate().unwrap()).unwrap();
    let mut state = DecodingState::import(&prepared, head_dim, &state).unwrap();
    let mut out = vec![0.0; heads * head_dim];
    let [q, k, v] = [0, 1, 2].map(|at| problem.tensors[at].as_slice());
    let args = StepArgs { first: 0, num_sequences: 1, heads, kv_heads: heads, value_dim: head_dim, q, k, v };
    let best = least(|| Cpu::step(&prepared, &args, &mut state, &mut out, &RUN).unwrap());
    assert!(out.iter().all(|x| x.is_finite()));
    best * 1e3
}

fn main() {
    let cpu = Cpu::new(Isa::from_env().unwrap());
    let wanted = std::env::args().nth(1).filter(|word| !word.starts_with('-')).unwrap_or_default();
    println!("{:24} {:>10} {:>10}", cpu.isa.name(), "forward", "backward");
    for (segments, len, heads, head_dim, num_features) in [
        (64, 32, 4, 32, 64),
        (64, 128, 4, 32, 64),
        (32, 256, 4, 32, 64),
        (8, 512, 4, 32, 64),
        (2, 2048, 4, 32, 64),
        (64, 128, 8, 64, 256),
        (8, 512, 8, 64, 256),
        (2, 2048, 8, 64, 256),
    ] {
        let name = format!("B{segments} L{len} H{heads} D{head_dim} M{num_features}");
        let problem = LazyCell::new(|| Problem::new(segments, len, heads, head_dim, num_features));
        type Times<'a> = &'a dyn Fn(Cpu) -> [f64; 2];
        let ways: [(&str, Times<'_>); 3] = [
            ("exact", &|cpu| exact(cpu, &problem)),
            ("relu", &|cpu| favor(cpu, &problem, FeatureMap::Relu)),
            ("positive", &|cpu| favor(cpu, &problem, FeatureMap::Positive)),
        ];
        let rounded = Some(Cpu::with_bf16(cpu.isa)).filter(|cpu| cpu.bf16.is_some());
        for (way, times) in ways {
            for cpu in [Some(cpu), rounded].into_iter().flatten() {
                let products = cpu.bf16.map_or("f32", |_| "bf16");
                if format!("{name} {way} {products}").contains(&wanted) {
                    let [forward, backward] = times(cpu);
                    println!("{name:24} {forward:10.2} {backward:10.2} {way} {products}");
                }
            }
        }
    }
    for (heads, head_dim, num_features) in [(4, 32, 64), (8, 64, 256)] {
        for map in [FeatureMap::Relu, FeatureMap::Positive] {
            let name = format!("step H{heads} D{head_dim} M{num_features}");
            if name.contains(&wanted) {
                println!("{name:24} {:10.2} us {}", step(cpu, heads, head_dim, num_features, map), map.name());
            }
        }
    }
}
