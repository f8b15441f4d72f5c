//! One token at a time has the numbers of a whole sequence.

use crate::harness::{Case, Map, Typed, args, maps};
use protperf_core::backend::{Backend, Outputs};
use protperf_core::{Execution, FeatureMap, Result, state::empty_state};
use protperf_cpu::{Cpu, CpuElement, DecodingState, Isa, StepArgs};
use std::sync::atomic::AtomicBool;

static GO_ON: AtomicBool = AtomicBool::new(false);
const RUN: Execution<'static> = Execution { num_threads: 2, cancel: &GO_ON };

/// Output `[B,H,L,E]` and final state of a whole sequence.
fn whole<T: CpuElement>(cpu: Cpu, case: &Case, typed: &Typed<T>, data: &crate::harness::Data) -> [Vec<T>; 2]
where
    Cpu: Backend<T>,
{
    let args = args(case, data, typed);
    let shape = args.validate().unwrap();
    let mut out = vec![T::ZERO; shape.out().iter().product()];
    let mut den = vec![T::ZERO; case.batch * case.heads.0 * case.q_len * 2];
    let mut state = empty_state(&shape).unwrap();
    let outputs = Outputs { state_in: None, out: &mut out, den: &mut den, state_out: Some(&mut state) };
    cpu.forward(&args, outputs, &RUN).unwrap();
    [out, state]
}

/// The rows of one position, `[B,H,width]`.
fn position<T: Copy>(x: &[T], len: usize, width: usize, at: usize) -> Vec<T> {
    x.chunks(len * width).flat_map(|head| head[at * width..][..width].to_vec()).collect()
}

fn step_args<'a, T>(case: &Case, [q, k, v]: [&'a [T]; 3]) -> StepArgs<'a, T> {
    let (num_sequences, (heads, kv_heads)) = (case.batch, case.heads);
    StepArgs { first: 0, num_sequences, heads, kv_heads, value_dim: case.value_dim, q, k, v }
}

/// The same, one token at a time.
fn token_by_token<T: CpuElement>(
    cpu: Cpu,
    case: &Case,
    typed: &Typed<T>,
    data: &crate::harness::Data,
) -> Result<[Vec<T>; 2]> {
    let args = args(case, data, typed);
    let prepared = cpu.prepare::<T>(&args.map, case.heads.0, case.head_dim)?;
    let (len, d, e) = (case.q_len, case.head_dim, case.value_dim);
    let mut state = DecodingState::import(&prepared, e, &empty_state(&args.validate()?)?)?;
    let mut out = vec![T::from_f64(f64::NAN); case.batch * case.heads.0 * len * e];
    for at in 0..len {
        let (q, k, v) =
            (position(&typed.q, len, d, at), position(&typed.k, len, d, at), position(&typed.v, len, e, at));
        let mut answer = vec![T::from_f64(f64::NAN); case.batch * case.heads.0 * e];
        Cpu::step(&prepared, &step_args(case, [&q, &k, &v]), &mut state, &mut answer, &RUN)?;
        for (head, row) in answer.chunks(e).enumerate() {
            out[(head * len + at) * e..][..e].copy_from_slice(row);
        }
    }
    Ok([out, state.export()?])
}

/// Sums of states relative to those of another, whose references may differ.
fn assert_near<T: CpuElement>(found: &[Vec<T>; 2], truth: &[Vec<T>; 2], width: usize, bound: f64, what: &str) {
    let wide = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let off = crate::harness::error(&wide(&found[0]), &wide(&truth[0]));
    assert!(off <= bound, "out {off:.1e} {what}");
    for (found, truth) in found[1].chunks(width).zip(truth[1].chunks(width)) {
        assert!(found[0] == truth[0], "reference {:?} for {:?} {what}", found[0], truth[0]);
        let off = crate::harness::error(&wide(&found[1..]), &wide(&truth[1..]));
        assert!(off <= bound, "state {off:.1e} {what}");
    }
}

fn assert_agrees<T: CpuElement>(case: &Case, bound: f64)
where
    Cpu: Backend<T>,
{
    let data = case.data(3);
    let typed = Typed::<T>::new(&data);
    for isa in Isa::available() {
        let (truth, found) =
            (whole(Cpu::new(isa), case, &typed, &data), token_by_token(Cpu::new(isa), case, &typed, &data));
        assert_near(&found.unwrap(), &truth, 2 + case.value_dim, bound, &format!("{isa:?} {case:?}"));
    }
}

#[test]
fn one_token_at_a_time_has_the_numbers_of_the_whole_sequence() {
    for map in maps() {
        for sizes in [[4, 3, 6], [16, 64, 65], [8, 37, 130], [1, 1, 1]] {
            for rise in [0.0, 4.0] {
                let case = Case { rise, ..Case::new(map, true, 40, sizes) };
                let grouped = Case { heads: (4, 2), per_head: true, batch: 2, ..case.clone() };
                for case in [case, grouped] {
                    let trigonometric = map == Map::Named(FeatureMap::Trigonometric);
                    assert_agrees::<f32>(&case, if trigonometric { 1e-3 } else { 2e-5 });
                    assert_agrees::<f64>(&case, if trigonometric { 1e-11 } else { 1e-13 });
                }
            }
        }
    }
}

#[test]
fn values_near_the_largest_number_do_not_overflow() {
    for map in maps() {
        let case = Case::new(map, true, 9, [4, 19, 70]);
        let mut data = case.data(3);
        for isa in Isa::available() {
            let ordinary = token_by_token(Cpu::new(isa), &case, &Typed::<f32>::new(&data), &data).unwrap();
            data.v.iter_mut().for_each(|x| *x *= 2f64.powi(115));
            let found = token_by_token(Cpu::new(isa), &case, &Typed::<f32>::new(&data), &data).unwrap();
            data.v.iter_mut().for_each(|x| *x *= 2f64.powi(-115));
            for (found, ordinary) in found[0].iter().zip(&ordinary[0]) {
                let expected = ordinary * 2f32.powi(115);
                assert!((found - expected).abs() <= 1e-4 * 2f32.powi(115), "{found} {expected} {isa:?} {case:?}");
            }
        }
    }
}

/// NaN of what sees it, and nothing else changes.
#[test]
fn a_number_that_is_not_finite_reaches_what_sees_it() {
    for map in maps() {
        let case = Case { heads: (4, 2), batch: 2, ..Case::new(map, true, 1, [4, 3, 6]) };
        let (data, before) = (case.data(3), crate::harness::first_state::<f32>(&case, 4));
        let typed = Typed::<f32>::new(&data);
        let args = args(&case, &data, &typed);
        for isa in Isa::available() {
            let prepared = Cpu::new(isa).prepare::<f32>(&args.map, 4, 4).unwrap();
            let run = |tensors: [&[f32]; 3], before: &[f32]| {
                let (mut state, mut out) = (DecodingState::import(&prepared, 3, before).unwrap(), vec![7.0; 8 * 3]);
                Cpu::step(&prepared, &step_args(&case, tensors), &mut state, &mut out, &RUN).unwrap();
                [out, state.export().unwrap()]
            };
            let good = run([&typed.q, &typed.k, &typed.v], &before);
            assert!(good.iter().flatten().all(|x| x.is_finite()));
            let size = before.len() / 8;
            for (which, batch_heads) in [(0, 1..2), (1, 2..4), (2, 2..4), (3, 5..6), (4, 5..6), (5, 5..6)] {
                let (mut q, mut k, mut v, mut first) =
                    (typed.q.clone(), typed.k.clone(), typed.v.clone(), before.clone());
                match which {
                    0 => q[4] = f32::NAN,
                    1 => k[7] = f32::INFINITY,
                    2 => v[5] = f32::NAN,
                    at => first[5 * size + at - 3] = f32::NEG_INFINITY,
                }
                let [out, state] = run([&q, &k, &v], &first);
                for batch_head in 0..8 {
                    let is_bad = batch_heads.contains(&batch_head);
                    let (own, own_state) =
                        (batch_head * 3..(batch_head + 1) * 3, batch_head * size..(batch_head + 1) * size);
                    let good_out = out[own.clone()] == good[0][own.clone()];
                    assert!(
                        if is_bad { out[own].iter().all(|x| x.is_nan()) } else { good_out },
                        "{which} {batch_head} {map:?}"
                    );
                    let good_state = state[own_state.clone()] == good[1][own_state.clone()];
                    let is_state_bad = is_bad && which > 0;
                    let all_nan = state[own_state].iter().all(|x| x.is_nan());
                    assert!(if is_state_bad { all_nan } else { good_state }, "state {which} {batch_head} {map:?}");
                }
            }
        }
    }
}

#[test]
fn buffers_of_another_length_are_refused_by_name() {
    let case = Case::new(Map::Named(FeatureMap::Relu), true, 1, [4, 3, 6]);
    let data = case.data(3);
    let typed = Typed::<f32>::new(&data);
    let prepared = Cpu::new(Isa::available()[0]).prepare::<f32>(&args(&case, &data, &typed).map, 1, 4).unwrap();
    let good = step_args(&case, [&typed.q[..], &typed.k, &typed.v]);
    let of = |value_dim, len| DecodingState::import(&prepared, value_dim, &vec![0.0; len]);
    let refuse = |args: StepArgs<'_, f32>, state: Result<DecodingState<f32>>, out: usize| {
        Cpu::step(&prepared, &args, &mut state.unwrap(), &mut vec![0.0; out], &RUN).unwrap_err().to_string()
    };
    assert!(refuse(StepArgs { q: &typed.q[1..], ..good }, of(3, 30), 3).starts_with("q has"));
    assert!(refuse(StepArgs { heads: 2, kv_heads: 2, ..good }, of(3, 30), 3).starts_with("q has"));
    assert!(refuse(StepArgs { kv_heads: 0, ..good }, of(3, 30), 3).starts_with("q has"));
    assert!(refuse(StepArgs { k: &typed.k[1..], ..good }, of(3, 30), 3).starts_with("k has"));
    assert!(refuse(StepArgs { v: &typed.v[1..], ..good }, of(3, 30), 3).starts_with("v has"));
    assert!(refuse(StepArgs { first: 1, ..good }, of(3, 30), 3).starts_with("state has 1 heads"));
    assert!(refuse(good, of(3, 30), 4).starts_with("out has"));
    assert!(refuse(good, of(4, 36), 3).starts_with("state is one of another map"));
    assert!(of(3, 29).unwrap_err().to_string().starts_with("states has"));
}

#[test]
fn selected_states_are_those_of_the_sequences_in_any_order() {
    let case = Case { heads: (2, 2), batch: 3, ..Case::new(Map::Named(FeatureMap::Positive), true, 1, [4, 3, 70]) };
    let (data, states) = (case.data(3), crate::harness::first_state::<f32>(&case, 4));
    let typed = Typed::<f32>::new(&data);
    let prepared = Cpu::new(Isa::available()[0]).prepare::<f32>(&args(&case, &data, &typed).map, 2, 4).unwrap();
    let decoding = DecodingState::import(&prepared, 3, &states).unwrap();
    let size = states.len() / 3;
    for indices in [vec![], vec![2, 0, 2]] {
        let wanted: Vec<f32> = indices.iter().flat_map(|&at| states[at * size..][..size].to_vec()).collect();
        assert_eq!(decoding.select(3, &indices).unwrap().export().unwrap(), wanted);
    }
}
