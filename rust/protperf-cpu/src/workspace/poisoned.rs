//! Scratch that a thread keeps is never read before it is written: a call over scratch full of NaN has the bits of
//! a call over fresh scratch.

use super::{KEPT, Scratch, Side};
use crate::ops::CpuElement;
use crate::state::State;
use crate::{Context, Gradients, Isa, Saved, empty_state, favor_backward, favor_forward};
use protperf_core::rng::Stream;
use protperf_core::{FavorArgs, FeatureMap, Omega, TensorRef};
use std::sync::atomic::AtomicBool;

/// Fills with NaN whatever a task may leave behind. A field that is added must be named here.
fn poison<E: CpuElement>(scratch: &mut Scratch<E>) {
    let Scratch {
        widths: _,
        writer,
        reader,
        written,
        read,
        turned,
        scores,
        score_gradient,
        payload_turned,
        numerator,
        denominator,
        exponent,
        lanes,
        norms,
        tops,
        gradient,
        input_gradient,
        stash,
        stashed_norms,
        factor,
        state,
        before,
        other,
        far,
        spare,
        reference,
        power,
        direction_gradient,
    } = scratch;
    let nan = E::from_f64(f64::NAN);
    for side in [writer, reader] {
        let Side { x, y, log, shift, live, payload, finite, gathered } = side;
        [live, finite].into_iter().for_each(|flags| flags.fill(true));
        [x, y, log, shift, payload, gathered].into_iter().for_each(|buffer| buffer.fill(nan));
    }
    for state in [state, before, other] {
        let State { reference, sums, values } = state;
        [reference, sums, values].into_iter().for_each(|buffer| buffer.fill(nan));
    }
    *far = true;
    let buffers = [written, read, turned, scores, score_gradient, payload_turned, numerator, denominator, exponent];
    buffers.into_iter().for_each(|buffer| buffer.fill(nan));
    let buffers = [lanes, norms, tops, gradient, input_gradient, factor, spare, reference, power, direction_gradient];
    buffers.into_iter().for_each(|buffer| buffer.fill(nan));
    [stash, stashed_norms].into_iter().for_each(|buffer| buffer.fill(nan));
}

/// Poisons what this thread keeps; returns how many scratches that were.
fn poison_kept<E: CpuElement>() -> usize {
    KEPT.with_borrow_mut(|all| {
        let found = all.iter_mut().filter_map(|(_, any)| any.downcast_mut::<Scratch<E>>());
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
fn answer<E: CpuElement>(case: &Case) -> Vec<u64> {
    let (l, d, e, m) = (case.len, case.head_dim, case.value_dim, case.num_features);
    let mut stream = Stream::new(1, [0, 0, 0]);
    let mut normals = |n: usize| (0..n).map(|_| stream.normal()).collect::<Vec<f64>>();
    let (q, mut k, v, g, omega) = (normals(l * d), normals(l * d), normals(l * e), normals(l * e), normals(m * d));
    k.iter_mut().enumerate().for_each(|(at, k)| *k *= 1.0 + case.rise * (at / d) as f64 / l as f64);
    let typed = [&q, &k, &v, &g].map(|x| x.iter().map(|&x| E::from_f64(x)).collect::<Vec<E>>());
    let tensor = |at: usize, width| TensorRef::contiguous("x", &typed[at], [1, 1, l, width]).unwrap();
    let mask: Vec<bool> = (0..l).map(|j| j % 3 == 1).collect();
    let args = FavorArgs {
        q: tensor(0, d),
        k: tensor(1, d),
        v: tensor(2, e),
        omega: Some(Omega { data: &omega, num_heads: None, num_features: m, head_dim: d }),
        feature_map: case.map,
        kernel_epsilon: case.map.default_epsilon(),
        causal: case.causal,
        cu_seqlens: None,
        key_padding_mask: case.masked.then_some(&mask),
    };
    let cancel = AtomicBool::new(false);
    let ctx = Context { isa: case.isa, num_threads: 1, cancel: &cancel };
    let (mut out, mut den) = (vec![E::ONE; l * e], vec![E::ONE; l * 2]);
    let before: Vec<E> = empty_state(&args.validate().unwrap()).unwrap();
    let mut after = before.clone();
    let (from, to) = if case.causal { (Some(&before[..]), Some(&mut after[..])) } else { (None, None) };
    favor_forward(&args, from, &mut out, &mut den, to, &ctx).unwrap();
    let (mut dq, mut dk, mut dv) = (vec![E::ONE; l * d], vec![E::ONE; l * d], vec![E::ONE; l * e]);
    let mut domega = vec![1.0; m * d];
    let kept = TensorRef::contiguous("out", &out, [1, 1, l, e]).unwrap();
    let saved = Saved { out: &kept, den: &den, grad: &tensor(3, e) };
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, domega: Some(&mut domega) };
    favor_backward(&args, &saved, gradients, &ctx).unwrap();
    let narrow = [out, den, after, dq, dk, dv].concat();
    narrow.iter().map(|x| x.to_f64()).chain(domega).map(f64::to_bits).collect()
}

fn assert_poison_changes_no_bit<E: CpuElement>(case: &Case) {
    let expected = answer::<E>(case);
    assert!(expected.iter().all(|&bits| f64::from_bits(bits).is_finite()), "{case:?}");
    assert!(poison_kept::<E>() > 0, "no scratch was kept: {case:?}");
    assert!(answer::<E>(case) == expected, "{case:?}");
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
