//! Scratch that a thread keeps is never read before it is written: a call over scratch full of NaN has the bits of
//! a call over fresh scratch.

use super::{KEPT, Scratch};
use crate::bf16::Unit;
use crate::chunk::{Buffers, GradientBuffers, References, Scores, Sums};
use crate::ops::CpuElement;
use crate::rows::ChunkRows;
use crate::state::State;
use crate::{Cpu, Isa};
use protperf_core::backend::{Backend, FinalState, Gradients, Outputs, Saved};
use protperf_core::rng::Stream;
use protperf_core::{
    Execution, FavorArgs, FeatureMap, LogLinear, MapArgs, MapGradients, Omega, Parameters, TensorRef, state,
};
use std::sync::atomic::AtomicBool;

/// Fills with NaN everything that a task may leave behind. Every field is named here, so that a new one cannot be
/// forgotten.
fn poison<T: CpuElement>(scratch: &mut Scratch<T>) {
    let Scratch { layout: _, keys, queries, features, state, other, buffers, tiles } = scratch;
    tiles.poison();
    let Buffers { references, scores, sums, gradients } = buffers;
    [keys, queries].into_iter().for_each(poison_rows);
    let References { before, is_far, reference, power } = references;
    *is_far = true;
    [state, before, other].into_iter().for_each(poison_state);
    let Scores { values, gradient, transposed, transposed_values, own_keys } = scores;
    fill([features, reference, power, values, gradient, transposed, transposed_values, own_keys]);
    let Sums { features, numerator, denominator, exponent, tops, lanes } = sums;
    fill([features, numerator, denominator, exponent, tops, lanes]);
    let GradientBuffers { features, inputs, norms, recomputed, recomputed_norms, parameters } = gradients;
    fill([features, inputs, norms, recomputed, recomputed_norms]);
    parameters.iter_mut().flat_map(|all| all.fields_mut()).for_each(|field| fill([field]));
}

fn poison_rows<T: CpuElement>(rows: &mut ChunkRows<T>) {
    let ChunkRows { x, y, log, mantissa, shift, visible, values_and_one, finite, gathered } = rows;
    [visible, finite].into_iter().for_each(|flags| flags.fill(true));
    fill([x, y, log, mantissa, shift, values_and_one, gathered]);
}

fn poison_state<T: CpuElement>(state: &mut State<T>) {
    let State { reference, sums, values, has_keys } = state;
    fill([reference, sums, values]);
    *has_keys = true;
}

fn fill<T: CpuElement, const N: usize>(buffers: [&mut [T]; N]) {
    buffers.into_iter().for_each(|buffer| buffer.fill(T::from_f64(f64::NAN)));
}

/// Poisons what this thread keeps; returns how many scratches that were.
fn poison_kept<T: CpuElement>() -> usize {
    KEPT.with_borrow_mut(|all| {
        let found = all.iter_mut().filter_map(|(_, any)| any.downcast_mut::<Scratch<T>>());
        found.map(poison).count()
    })
}

/// Which map a case computes with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Map {
    Named(FeatureMap),
    /// A log-linear record with every field of its own.
    Record,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    map: Map,
    causal: bool,
    masked: bool,
    cpu: Cpu,
    len: usize,
    head_dim: usize,
    value_dim: usize,
    num_features: usize,
    /// How much longer the first keys are than the last: beyond 1 references rise far along the sequence, for a long key
    /// has small features, and rows are computed again.
    rise: f64,
}

/// Numbers that a record is made from, in the order of its fields.
struct Fields([Vec<f64>; 5]);

impl Fields {
    fn of(&self) -> Parameters<&[f64]> {
        let [a, b, c, d, e] = &self.0;
        Parameters {
            query_directions: a,
            key_directions: Some(b),
            key_quadratic: Some(c),
            query_constants: Some(d),
            key_constants: Some(e),
        }
    }

    fn of_mut(&mut self) -> Parameters<&mut [f64]> {
        let [a, b, c, d, e] = &mut self.0;
        Parameters {
            query_directions: a,
            key_directions: Some(b),
            key_quadratic: Some(c),
            query_constants: Some(d),
            key_constants: Some(e),
        }
    }
}

/// Bits of out, den, the state after, dq, dk, dv, dstate and the parameters' gradients; on the calling thread alone.
fn answer<T: CpuElement>(case: &Case) -> Vec<u64> {
    let (l, d, e, m) = (case.len, case.head_dim, case.value_dim, case.num_features);
    let mut stream = Stream::new(1, [0, 0, 0]);
    let mut normals = |n: usize| (0..n).map(|_| stream.normal()).collect::<Vec<f64>>();
    let (q, mut k, v, g) = (normals(l * d), normals(l * d), normals(l * e), normals(l * e));
    k.iter_mut().enumerate().for_each(|(at, k)| *k *= 1.0 + case.rise * (1.0 - (at / d) as f64 / l as f64));
    let mut fields = Fields([normals(m * d), normals(m * d), normals(d), normals(m), normals(m)]);
    fields.0[2].iter_mut().for_each(|g| *g = g.abs());
    let (fields, omega) = (fields, normals(m * d));
    let typed = [&q, &k, &v, &g].map(|x| x.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>());
    let tensor = |at: usize, width| TensorRef::contiguous("x", &typed[at], [1, 1, l, width]).unwrap();
    let mask: Vec<bool> = (0..l).map(|j| j % 3 == 1).collect();
    let map = match case.map {
        Map::Named(map) => MapArgs::Named {
            map,
            omega: Some(Omega { data: &omega, num_heads: None, num_features: m, head_dim: d }),
            kernel_epsilon: map.default_epsilon(),
        },
        Map::Record => {
            let parameters = fields.of();
            MapArgs::LogLinear(LogLinear { parameters, num_heads: None, num_projections: m, head_dim: d })
        }
    };
    let args = FavorArgs {
        q: tensor(0, d),
        k: tensor(1, d),
        v: tensor(2, e),
        map,
        causal: case.causal,
        cu_seqlens: None,
        key_padding_mask: case.masked.then_some(&mask),
    };
    let cancel = AtomicBool::new(false);
    let (cpu, run) = (case.cpu, Execution { num_threads: 1, cancel: &cancel });
    let nan = T::from_f64(f64::NAN);
    let (mut out, mut den) = (vec![nan; l * e], vec![nan; l * 2]);
    let mut before: Vec<T> = state::empty_state(&args.validate().unwrap()).unwrap();
    if case.rise == 0.0 {
        // A state that has seen keys; without one, rows look far ahead where references rise.
        before.chunks_exact_mut(2 + e).for_each(|row| {
            row.fill(T::from_f64(0.5));
            row[0] = T::ZERO;
        });
    }
    let mut after = vec![nan; before.len()];
    let outputs = Outputs { state_in: Some(&before), out: &mut out, den: &mut den, state_out: Some(&mut after) };
    cpu.forward(&args, outputs, &run).unwrap();
    let (mut dq, mut dk, mut dv) = (vec![nan; l * d], vec![nan; l * d], vec![nan; l * e]);
    let mut dstate = vec![nan; before.len()];
    let (mut domega, mut dfields) = (vec![f64::NAN; m * d], Fields(fields.0.clone().map(|x| vec![f64::NAN; x.len()])));
    let grad_state = vec![T::from_f64(0.25); before.len()];
    let saved = Saved {
        out: TensorRef::contiguous("out", &out, [1, 1, l, e]).unwrap(),
        den: &den,
        grad: tensor(3, e),
        state_in: Some(&before),
        final_state: Some(FinalState { state: &after, grad: &grad_state }),
    };
    let map = match case.map {
        Map::Named(_) => MapGradients::Omega(&mut domega),
        Map::Record => MapGradients::LogLinear(dfields.of_mut()),
    };
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, map: Some(map), state_in: Some(&mut dstate) };
    cpu.backward(&args, &saved, gradients, &run).unwrap();
    let wide: Vec<f64> = match case.map {
        Map::Named(_) => domega,
        Map::Record => dfields.0.concat(),
    };
    let narrow = [out, den, after, dq, dk, dv, dstate].concat();
    narrow.iter().map(|x| x.to_f64()).chain(wide).map(f64::to_bits).collect()
}

fn assert_poison_changes_no_bit<T: CpuElement>(case: &Case) {
    let expected = answer::<T>(case);
    assert!(expected.iter().all(|&bits| f64::from_bits(bits).is_finite()), "{case:?}");
    assert!(poison_kept::<T>() > 0, "no scratch was kept: {case:?}");
    assert!(answer::<T>(case) == expected, "{case:?}");
}

#[test]
fn scratch_full_of_nan_changes_no_bit() {
    use FeatureMap::{Cos, Elu1, Hyperbolic, Relu, Smreg, Square, Trigonometric};
    // Maps of every way to be computed.
    let named = [Hyperbolic, Smreg, Relu, Elu1, Square, Cos, Trigonometric].map(Map::Named);
    for map in named.into_iter().chain([Map::Record]) {
        for (len, head_dim, value_dim, num_features) in
            [(1, 1, 1, 1), (7, 17, 5, 9), (33, 8, 16, 64), (64, 5, 3, 65), (130, 15, 33, 130)]
        {
            for at in 0..8 {
                let (causal, masked, rise) = (at & 1 == 1, at & 2 == 2, f64::from(at & 4) * 2.0);
                let rise = if map == Map::Named(FeatureMap::Trigonometric) { 0.0 } else { rise };
                for isa in Isa::available() {
                    let cpu = Cpu::new(isa);
                    let case = Case { map, causal, masked, cpu, len, head_dim, value_dim, num_features, rise };
                    assert_poison_changes_no_bit::<f32>(&case);
                    assert_poison_changes_no_bit::<f64>(&case);
                }
                let unit = Unit::available().into_iter().next_back();
                let cpu = Cpu { isa: *Isa::available().last().unwrap(), bf16: unit };
                let case = Case { map, causal, masked, cpu, len, head_dim, value_dim, num_features, rise };
                assert_poison_changes_no_bit::<f32>(&case);
            }
        }
    }
}
