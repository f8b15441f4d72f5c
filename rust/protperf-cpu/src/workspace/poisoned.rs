//! Scratch that a thread keeps is never read before it is written: a call over scratch full of NaN has the bits of
//! a call over fresh scratch.

use super::{KEPT, Scratch};
use crate::chunk::{Buffers, GradientBuffers, References, Scores, Sums};
use crate::ops::CpuElement;
use crate::rows::ChunkRows;
use crate::state::State;
use crate::{Context, Gradients, Isa, Saved, favor_backward, favor_forward};
use protperf_core::rng::Stream;
use protperf_core::state::empty_state;
use protperf_core::{FavorArgs, FeatureMap, MapArgs, Omega, TensorRef};
use std::sync::atomic::AtomicBool;

/// Fills with NaN everything that a task may leave behind. Every field is named here, so that a new one cannot be
/// forgotten.
fn poison<T: CpuElement>(scratch: &mut Scratch<T>) {
    let Scratch { layout: _, keys, queries, features, state, other, buffers } = scratch;
    let Buffers { references, scores, sums, gradients } = buffers;
    [keys, queries].into_iter().for_each(poison_rows);
    let References { before, is_far, reference, power } = references;
    *is_far = true;
    [state, before, other].into_iter().for_each(poison_state);
    let Scores { values, gradient, transposed, transposed_values, own_keys } = scores;
    fill([features, reference, power, values, gradient, transposed, transposed_values, own_keys]);
    let Sums { features, numerator, denominator, exponent, tops, lanes } = sums;
    fill([features, numerator, denominator, exponent, tops, lanes]);
    let GradientBuffers { features, inputs, norms, recomputed, recomputed_norms, directions } = gradients;
    fill([features, inputs, norms, recomputed, recomputed_norms, directions]);
}

fn poison_rows<T: CpuElement>(rows: &mut ChunkRows<T>) {
    let ChunkRows { x, y, log, mantissa, shift, visible, values_and_one, finite, gathered } = rows;
    [visible, finite].into_iter().for_each(|flags| flags.fill(true));
    fill([x, y, log, mantissa, shift, values_and_one, gathered]);
}

fn poison_state<T: CpuElement>(state: &mut State<T>) {
    let State { reference, sums, values } = state;
    fill([reference, sums, values]);
}

fn fill<T: CpuElement, const N: usize>(buffers: [&mut Vec<T>; N]) {
    buffers.into_iter().for_each(|buffer| buffer.fill(T::from_f64(f64::NAN)));
}

/// Poisons what this thread keeps; returns how many scratches that were.
fn poison_kept<T: CpuElement>() -> usize {
    KEPT.with_borrow_mut(|all| {
        let found = all.iter_mut().filter_map(|(_, any)| any.downcast_mut::<Scratch<T>>());
        found.map(poison).count()
    })
}

#[derive(Clone, Copy, Debug)]
struct Case {
    map: FeatureMap,
    causal: bool,
    masked: bool,
    isa: Isa,
    len: usize,
    head_dim: usize,
    value_dim: usize,
    num_features: usize,
    /// How keys grow along the sequence: beyond 1, references are raised far and rows are computed again.
    rise: f64,
}

/// Bits of out, den, the state after, dq, dk, dv, domega; on the calling thread alone.
fn answer<T: CpuElement>(case: &Case) -> Vec<u64> {
    let (l, d, e, m) = (case.len, case.head_dim, case.value_dim, case.num_features);
    let mut stream = Stream::new(1, [0, 0, 0]);
    let mut normals = |n: usize| (0..n).map(|_| stream.normal()).collect::<Vec<f64>>();
    let (q, mut k, v, g, omega) = (normals(l * d), normals(l * d), normals(l * e), normals(l * e), normals(m * d));
    k.iter_mut().enumerate().for_each(|(at, k)| *k *= 1.0 + case.rise * (at / d) as f64 / l as f64);
    let typed = [&q, &k, &v, &g].map(|x| x.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>());
    let tensor = |at: usize, width| TensorRef::contiguous("x", &typed[at], [1, 1, l, width]).unwrap();
    let mask: Vec<bool> = (0..l).map(|j| j % 3 == 1).collect();
    let args = FavorArgs {
        q: tensor(0, d),
        k: tensor(1, d),
        v: tensor(2, e),
        map: MapArgs::Named {
            map: case.map,
            omega: Some(Omega { data: &omega, num_heads: None, num_features: m, head_dim: d }),
            kernel_epsilon: case.map.default_epsilon(),
        },
        causal: case.causal,
        cu_seqlens: None,
        key_padding_mask: case.masked.then_some(&mask),
    };
    let cancel = AtomicBool::new(false);
    let ctx = Context { isa: case.isa, num_threads: 1, cancel: &cancel };
    let (mut out, mut den) = (vec![T::ONE; l * e], vec![T::ONE; l * 2]);
    let before: Vec<T> = empty_state(&args.validate().unwrap()).unwrap();
    let mut after = before.clone();
    let (from, to) = if case.causal { (Some(&before[..]), Some(&mut after[..])) } else { (None, None) };
    favor_forward(&args, from, &mut out, &mut den, to, &ctx).unwrap();
    let (mut dq, mut dk, mut dv) = (vec![T::ONE; l * d], vec![T::ONE; l * d], vec![T::ONE; l * e]);
    let mut domega = vec![1.0; m * d];
    let kept = TensorRef::contiguous("out", &out, [1, 1, l, e]).unwrap();
    let saved = Saved { out: &kept, den: &den, grad: &tensor(3, e) };
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, domega: Some(&mut domega) };
    favor_backward(&args, &saved, gradients, &ctx).unwrap();
    let narrow = [out, den, after, dq, dk, dv].concat();
    narrow.iter().map(|x| x.to_f64()).chain(domega).map(f64::to_bits).collect()
}

fn assert_poison_changes_no_bit<T: CpuElement>(case: &Case) {
    let expected = answer::<T>(case);
    assert!(expected.iter().all(|&bits| f64::from_bits(bits).is_finite()), "{case:?}");
    assert!(poison_kept::<T>() > 0, "no scratch was kept: {case:?}");
    assert!(answer::<T>(case) == expected, "{case:?}");
}

#[test]
fn scratch_full_of_nan_changes_no_bit() {
    for map in FeatureMap::ALL {
        for (len, head_dim, value_dim, num_features) in
            [(1, 1, 1, 1), (7, 17, 5, 9), (33, 8, 16, 64), (64, 5, 3, 65), (130, 15, 33, 130)]
        {
            for at in 0..8 {
                let (causal, masked, rise) = (at & 1 == 1, at & 2 == 2, f64::from(at & 4) * 2.0);
                let rise = if map == FeatureMap::Trigonometric { 0.0 } else { rise };
                for isa in Isa::available() {
                    let case = Case { map, causal, masked, isa, len, head_dim, value_dim, num_features, rise };
                    assert_poison_changes_no_bit::<f32>(&case);
                    assert_poison_changes_no_bit::<f64>(&case);
                }
            }
        }
    }
}
