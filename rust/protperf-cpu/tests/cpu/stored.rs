//! Tensors of 16 bits: widened when a row is loaded, rounded when one is stored, and nothing lost in between.

use crate::harness::{Case, Map, PARTS, bits, error, first_state, maps, run, stored};
use half::{bf16, f16};
use protperf_core::backend::{Backend, Gradients, Outputs, Saved};
use protperf_core::reference::Reference;
use protperf_core::{Element, Execution, FavorArgs, FeatureMap, MapGradients, Stored, TensorRef};
use protperf_cpu::{Cpu, CpuStored, Isa};
use std::sync::atomic::AtomicBool;

fn cases(map: Map) -> impl Iterator<Item = Case> {
    [false, true].into_iter().flat_map(move |causal| {
        let case = Case { states: false, ..Case::new(map, causal, 70, [6, 5, 18]) };
        let grouped = Case { heads: (4, 2), batch: 2, masked: true, ..case.clone() };
        let packed = Case { heads: (3, 1), borders: Some(vec![0, 0, 20, 70]), ..case.clone() };
        let long = Case { heads: (2, 1), q_len: 2100, kv_len: 2100, num_features: 4, ..case.clone() };
        [case, grouped, packed, long]
    })
}

/// Values `[B,L,H,W]` in memory, seen as `[B,H,L,W]` with every second element of a wider row.
fn spread<S: Stored>(x: &[S]) -> Vec<S> {
    x.iter().flat_map(|&x| [x, S::default()]).collect()
}

/// What one backend computes of a call, each part as it is stored.
struct Parts<S: Stored> {
    out: Vec<S>,
    den: Vec<S::Compute>,
    dq: Vec<S>,
    dk: Vec<S>,
    dv: Vec<S>,
    dfields: Vec<f64>,
}

/// Forward, then backward with a given saved output or its own.
fn parts<S: CpuStored>(isa: Isa, case: &Case, args: &FavorArgs<'_, S>, grad: &[S], kept: Option<&[S]>) -> Parts<S> {
    let cancel = AtomicBool::new(false);
    let (cpu, run) = (Cpu::new(isa), Execution { num_threads: 2, cancel: &cancel });
    let shape = args.validate().unwrap();
    let nan = S::Compute::from_f64(f64::NAN);
    let (mut out, mut den) = (vec![S::round(nan); grad.len()], vec![nan; shape.batch * shape.heads * shape.q_len * 2]);
    cpu.forward(args, Outputs { state_in: None, out: &mut out, den: &mut den, state_out: None }, &run).unwrap();
    let saved = Saved {
        out: TensorRef::contiguous("out", kept.unwrap_or(&out), shape.out()).unwrap(),
        den: &den,
        grad: TensorRef::contiguous("grad", grad, shape.out()).unwrap(),
        state_in: None,
        final_state: None,
    };
    let zeros = |[b, h, l, w]: [usize; 4]| vec![S::round(nan); b * h * l * w];
    let (mut dq, mut dk, mut dv) = (zeros(args.q.shape()), zeros(args.k.shape()), zeros(args.v.shape()));
    let mut dfields = vec![f64::NAN; case.num_features * case.head_dim];
    let map = matches!(case.map, Map::Named(_)).then_some(MapGradients::Omega(&mut dfields));
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, map, state_in: None };
    cpu.backward(args, &saved, gradients, &run).unwrap();
    Parts { out, den, dq, dk, dv, dfields }
}

/// A call on 16 bits is the call on the widened numbers, each result rounded once, bit for bit.
fn assert_widened_call_rounded<S: CpuStored<Compute = f32>>(case: &Case) {
    let data = case.data(7);
    let typed = crate::harness::Typed::<S>::new(&data);
    let wide = |x: &[S]| x.iter().map(|x| x.widen()).collect::<Vec<f32>>();
    let widened =
        crate::harness::Typed { q: wide(&typed.q), k: wide(&typed.k), v: wide(&typed.v), grad: wide(&typed.grad) };
    for isa in Isa::available() {
        let found = parts(isa, case, &crate::harness::args(case, &data, &typed), &typed.grad, None);
        let kept = wide(&found.out);
        let expected = parts(isa, case, &crate::harness::args(case, &data, &widened), &widened.grad, Some(&kept));
        let all = [
            ("out", &found.out, &expected.out),
            ("dq", &found.dq, &expected.dq),
            ("dk", &found.dk, &expected.dk),
            ("dv", &found.dv, &expected.dv),
        ];
        for (name, found, expected) in all {
            let rounded: Vec<S> = expected.iter().map(|&x| S::round(x)).collect();
            assert!(*found == rounded, "{name} {} {isa:?} {case:?}", S::NAME);
        }
        assert!(found.den == expected.den, "den {} {isa:?} {case:?}", S::NAME);
        assert!(bits(&found.dfields) == bits(&expected.dfields), "domega {} {isa:?} {case:?}", S::NAME);
    }
}

#[test]
fn a_call_on_16_bits_is_the_widened_call_rounded_once() {
    for map in crate::harness::MAPS {
        for case in cases(Map::Named(map)) {
            assert_widened_call_rounded::<bf16>(&case);
            assert_widened_call_rounded::<f16>(&case);
        }
    }
}

#[test]
fn calls_on_16_bits_match_the_reference_with_states_in_f32() {
    for map in maps() {
        for causal in [false, true] {
            let case = Case { heads: (2, 1), ..Case::new(map, causal, 67, [5, 4, 10]) };
            let data = case.data(5);
            let first = first_state::<bf16>(&case, 6);
            let truth = run::<bf16>(&Reference, &case, &data, Some(&first), None, 1);
            for isa in Isa::available() {
                let found = run::<bf16>(&Cpu::new(isa), &case, &data, Some(&first), Some(&truth.references), 2);
                for (part, name) in PARTS.iter().enumerate() {
                    // Tensors are rounded to 8 bits; states and parameters are not, and the backward pass reads a
                    // rounded output.
                    let bound = if *name == "state" { 5e-4 } else { 2e-2 };
                    let off = error(&found.parts[part], &truth.parts[part]);
                    assert!(off < bound, "{name} {off:.1e} {isa:?} {case:?}");
                }
            }
        }
    }
}

#[test]
fn rows_of_16_bits_with_any_strides_are_gathered() {
    let case = Case { states: false, ..Case::new(Map::Named(FeatureMap::Positive), true, 70, [6, 5, 18]) };
    let data = case.data(1);
    let typed = crate::harness::Typed::<bf16>::new(&data);
    let (q, k, v) = (spread(&typed.q), spread(&typed.k), spread(&typed.v));
    let strided = |name, x, w: usize| TensorRef::new(name, x, 0, [1, 1, 70, w], [0, 0, 2 * w as isize, 2]).unwrap();
    for isa in Isa::available() {
        let contiguous = crate::harness::args(&case, &data, &typed);
        let apart = FavorArgs { q: strided("q", &q, 6), k: strided("k", &k, 6), v: strided("v", &v, 5), ..contiguous };
        let expected = parts(isa, &case, &contiguous, &typed.grad, None);
        let found = parts(isa, &case, &apart, &typed.grad, None);
        assert!(found.out == expected.out && found.dq == expected.dq && found.dk == expected.dk, "{isa:?}");
        assert!(found.dv == expected.dv, "{isa:?}");
    }
    assert_eq!(stored::<bf16>(&[1.0 + 1.0 / 512.0])[0].to_f32(), 1.0);
}
