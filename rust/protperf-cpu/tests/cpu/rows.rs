//! Outputs whose rows lie anywhere and parameters that were packed beforehand: the bits of the contiguous call that
//! packs them itself, and not an element touched that is none of the output's.

use crate::harness::{Case, Data, Map, Typed, args, first_state, maps};
use protperf_core::backend::{Backend, FinalState, Gradients, Outputs, Saved};
use protperf_core::{Execution, FavorArgs, FavorShape, FeatureMap, MapArgs, Stored, TensorRef, bf16};
use protperf_cpu::{Cpu, CpuStored, Isa, OutRows, PreparedMap, RowGradients, RowOutputs};
use std::sync::atomic::AtomicBool;

static GO_ON: AtomicBool = AtomicBool::new(false);
const RUN: Execution<'static> = Execution { num_threads: 2, cancel: &GO_ON };

/// Number of elements at the front of every token that belong to no output.
const ASIDE: usize = 5;

fn nan<S: Stored>(len: usize) -> Vec<S> {
    vec![S::round(protperf_core::Element::from_f64(f64::NAN)); len]
}

/// Everything that a pass fills, contiguous: out, denominators, final state, and dq, dk, dv.
type Filled<S> = (Vec<S>, Vec<<S as Stored>::Compute>, Vec<<S as Stored>::Compute>, [Vec<S>; 3]);

fn sizes(s: &FavorShape) -> [[usize; 4]; 4] {
    [
        s.out(),
        [s.batch, s.heads, s.q_len, s.head_dim],
        [s.batch, s.kv_heads, s.kv_len, s.head_dim],
        [s.batch, s.kv_heads, s.kv_len, s.value_dim],
    ]
}

fn numel(shape: [usize; 4]) -> usize {
    shape.iter().product()
}

/// The call of the trait.
fn contiguous<S: CpuStored>(cpu: Cpu, args: &FavorArgs<'_, S>, grad: &[S], first: &[S::Compute]) -> Filled<S> {
    let shape = args.validate().unwrap();
    let [of_out, of_q, of_k, of_v] = sizes(&shape);
    let (mut out, mut den) = (nan(numel(of_out)), nan(numel(of_out) / shape.value_dim * 2));
    let mut last = nan::<S::Compute>(first.len());
    let outputs = Outputs { state_in: Some(first), out: &mut out, den: &mut den, state_out: Some(&mut last) };
    cpu.forward(args, outputs, &RUN).unwrap();
    let saved = Saved {
        out: TensorRef::contiguous("out", &out, of_out).unwrap(),
        den: &den,
        grad: TensorRef::contiguous("grad", grad, of_out).unwrap(),
        state_in: Some(first),
        final_state: Some(FinalState { state: &last, grad: &last }),
    };
    let (mut dq, mut dk, mut dv) = (nan(numel(of_q)), nan(numel(of_k)), nan(numel(of_v)));
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, map: None, state_in: None };
    cpu.backward(args, &saved, gradients, &RUN).unwrap();
    (out, den, last, [dq, dk, dv])
}

/// From token-major rows that begin at `first` of tokens of `width` elements to contiguous ones.
fn gathered<S: Stored>(data: &[S], shape: [usize; 4], first: usize, width: usize) -> Vec<S> {
    let [batch, heads, len, row] = shape;
    let mut all = Vec::new();
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        for token in b * len..(b + 1) * len {
            all.extend_from_slice(&data[token * width + first + h * row..][..row]);
        }
    }
    all
}

/// The same pass over prepared parameters into token-major rows: the output apart, the gradients in one buffer.
fn token_major<S: CpuStored>(
    cpu: Cpu,
    args: &FavorArgs<'_, S>,
    prepared: &PreparedMap<S::Compute>,
    grad: &[S],
    first: &[S::Compute],
) -> Filled<S> {
    let s = args.validate().unwrap();
    let [of_out, of_q, of_k, of_v] = sizes(&s);
    let (mut out, mut den) = (nan::<S>(numel(of_out)), nan(numel(of_out) / s.value_dim * 2));
    let mut last = nan::<S::Compute>(first.len());
    let outputs = RowOutputs {
        state_in: Some(first),
        out: OutRows::token_major("out", &mut out, of_out).unwrap(),
        den: Some(&mut den),
        state_out: Some(&mut last),
    };
    cpu.forward_rows(args, Some(prepared), outputs, &RUN).unwrap();
    let [_, h, l, e] = of_out;
    let steps = [h * l * e, e, h * e, 1].map(|step| step as isize);
    let saved = Saved {
        out: TensorRef::new("out", &out, 0, of_out, steps).unwrap(),
        den: &den,
        grad: TensorRef::contiguous("grad", grad, of_out).unwrap(),
        state_in: Some(first),
        final_state: Some(FinalState { state: &last, grad: &last }),
    };
    let parts = [[1, ASIDE], [s.heads, s.head_dim], [s.kv_heads, s.head_dim], [s.kv_heads, s.value_dim]];
    let width = parts.iter().map(|[heads, width]| heads * width).sum();
    let mut all = nan::<S>(s.batch * s.q_len * width);
    let [_, dq, dk, dv] = OutRows::parts_of_tokens("dqkv", &mut all, [s.batch, s.q_len], parts).unwrap();
    cpu.backward_rows(args, Some(prepared), &saved, RowGradients { dq, dk, dv, map: None, state_in: None }, &RUN)
        .unwrap();
    assert!(all.chunks(width).all(|token| token[..ASIDE].iter().all(|x| is_nan(x))), "what lies aside was written");
    let starts = [ASIDE, ASIDE + s.heads * s.head_dim, ASIDE + (s.heads + s.kv_heads) * s.head_dim];
    let gradients = [of_q, of_k, of_v].into_iter().zip(starts).map(|(shape, at)| gathered(&all, shape, at, width));
    let gradients: Vec<_> = gradients.collect();
    (gathered(&out, of_out, 0, h * e), den, last, gradients.try_into().unwrap())
}

fn is_nan<S: Stored>(x: &S) -> bool {
    protperf_core::Element::to_f64(x.widen()).is_nan()
}

fn check<S: CpuStored>(case: &Case, data: &Data) {
    let typed = Typed::<S>::new(data);
    let (args, first) = (args(case, data, &typed), first_state::<S>(case, 2));
    for isa in Isa::available() {
        let cpu = Cpu::new(isa);
        let prepared = cpu.prepare::<S::Compute>(&args.map, case.heads.0, case.head_dim).unwrap();
        let expected = contiguous(cpu, &args, &typed.grad, &first);
        for _ in 0..2 {
            let found = token_major(cpu, &args, &prepared, &typed.grad, &first);
            assert!(found == expected, "{isa:?} {case:?}");
        }
    }
}

#[test]
fn rows_anywhere_and_prepared_parameters_have_the_bits_of_the_contiguous_call() {
    for map in maps() {
        for causal in [false, true] {
            let case = Case::new(map, causal, 70, [4, 3, 6]);
            let grouped = Case { heads: (4, 2), per_head: true, batch: 2, masked: true, ..case.clone() };
            let packed = Case { borders: Some(vec![0, 10, 10, 70]), heads: (2, 2), ..case.clone() };
            let cut = Case { q_len: 2100, kv_len: 2100, heads: (2, 1), ..case.clone() };
            for case in [case, grouped, packed, cut] {
                let data = case.data(1);
                check::<f32>(&case, &data);
                check::<f64>(&case, &data);
                check::<bf16>(&case, &data);
            }
        }
    }
}

#[test]
fn a_call_without_denominators_has_the_same_output() {
    let case = Case { states: false, ..Case::new(Map::Named(FeatureMap::Positive), true, 70, [4, 3, 6]) };
    let data = case.data(1);
    let typed = Typed::<f32>::new(&data);
    let args = args(&case, &data, &typed);
    let cpu = Cpu::new(*Isa::available().last().unwrap());
    let (mut out, mut den, mut alone) = (nan::<f32>(70 * 3), nan::<f32>(70 * 2), nan::<f32>(70 * 3));
    let outputs = Outputs { state_in: None, out: &mut out, den: &mut den, state_out: None };
    cpu.forward(&args, outputs, &RUN).unwrap();
    let rows = OutRows::head_major("out", &mut alone, [1, 1, 70, 3]).unwrap();
    let outputs = RowOutputs { state_in: None, out: rows, den: None, state_out: None };
    cpu.forward_rows(&args, None, outputs, &RUN).unwrap();
    assert_eq!(out, alone);
}

#[test]
fn parameters_that_were_prepared_for_another_call_are_refused() {
    let case = Case { states: false, heads: (2, 2), ..Case::new(Map::Named(FeatureMap::Relu), true, 9, [4, 3, 6]) };
    let data = case.data(1);
    let typed = Typed::<f32>::new(&data);
    let args = args(&case, &data, &typed);
    let cpu = Cpu::new(Isa::Scalar);
    let MapArgs::Named { omega, .. } = args.map else { unreachable!() };
    let other_map = MapArgs::Named { map: FeatureMap::Elu1, omega, kernel_epsilon: 0.0 };
    let other_epsilon = MapArgs::Named { map: FeatureMap::Relu, omega, kernel_epsilon: 0.5 };
    let of_other_isa = Isa::available().into_iter().filter(|&isa| isa != cpu.isa).map(|isa| (Cpu::new(isa), args.map));
    for (maker, map) in of_other_isa.chain([(cpu, other_map), (cpu, other_epsilon)]) {
        let prepared = maker.prepare::<f32>(&map, 2, 4).unwrap();
        let mut out = nan::<f32>(2 * 9 * 3);
        let rows = OutRows::head_major("out", &mut out, [1, 2, 9, 3]).unwrap();
        let outputs = RowOutputs { state_in: None, out: rows, den: None, state_out: None };
        let error = cpu.forward_rows(&args, Some(&prepared), outputs, &RUN).unwrap_err().to_string();
        assert!(error.starts_with("prepared was made for"), "{error}");
    }
}

#[test]
fn buffers_of_another_length_are_refused_by_name() {
    let mut data = [0.0f32; 24];
    assert!(OutRows::token_major("out", &mut data, [1, 2, 4, 3]).is_ok());
    let errors = [
        OutRows::head_major("out", &mut data, [1, 2, 4, 4]).err(),
        OutRows::token_major("out", &mut data, [1, 2, 5, 3]).err(),
        OutRows::parts_of_tokens("out", &mut data, [1, 4], [[1, 3], [2, 3]]).err(),
        OutRows::parts_of_tokens("out", &mut data, [1, 4], [[usize::MAX, 3], [2, 3]]).err(),
    ];
    for error in errors {
        assert!(error.unwrap().to_string().starts_with("out has"));
    }
}
