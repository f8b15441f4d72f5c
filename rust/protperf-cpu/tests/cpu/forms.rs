//! The fused forms against sums written out in f64 with plain exponentials: small inputs, every map and mask.

use protperf_core::backend::{Backend, Gradients, Outputs, Saved};
use protperf_core::{Execution, FavorArgs, FeatureMap, MapArgs, MapGradients, Omega, Parameters, TensorRef};
use protperf_cpu::{Cpu, CpuElement, Isa};
use std::sync::atomic::AtomicBool;

struct Stream(u64);

impl Stream {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
    fn normals(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n)
            .map(|_| {
                let (u, w) = (self.next().max(1e-300), self.next());
                scale * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * w).cos()
            })
            .collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    map: FeatureMap,
    causal: bool,
    masked: bool,
    packed: bool,
    heads: (usize, usize),
    len: usize,
    head_dim: usize,
    value_dim: usize,
    num_features: usize,
    scale: f64,
}

/// Everything a case computes: out, dq, dk, dv, domega.
type Answer = [Vec<f64>; 5];

struct Inputs {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    g: Vec<f64>,
    omega: Vec<f64>,
    mask: Vec<bool>,
    borders: Vec<i64>,
}

fn inputs(case: &Case) -> Inputs {
    let mut s = Stream(7);
    let (h, hk) = case.heads;
    let batch = if case.packed { 1 } else { 2 };
    let l = case.len;
    Inputs {
        q: s.normals(batch * h * l * case.head_dim, case.scale),
        k: s.normals(batch * hk * l * case.head_dim, case.scale),
        v: s.normals(batch * hk * l * case.value_dim, 1.0),
        g: s.normals(batch * h * l * case.value_dim, 1.0),
        omega: s.normals(case.num_features * case.head_dim, 1.0),
        mask: (0..batch * l).map(|i| case.masked && i % 3 == 1).collect(),
        borders: vec![0, (l / 3) as i64, (l / 3) as i64, l as i64],
    }
}

/// Features and their derivative: `phi(x)` and the pull-back of a cotangent to x and to the directions.
fn features(case: &Case, w: &[f64], x: &[f64], key: bool) -> (Vec<f64>, Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let d = case.head_dim;
    let s = (d as f64).powf(-0.25);
    let y: Vec<f64> = x.iter().map(|x| x * s).collect();
    let h = if key { 0.5 * y.iter().map(|y| y * y).sum::<f64>() } else { 0.0 };
    let eps = case.map.default_epsilon();
    let (mut phi, mut dx, mut dw) = (vec![], vec![], vec![]);
    let mut push = |value: f64, slope_u: f64, slope_h: f64, row: &[f64]| {
        phi.push(value);
        let norm = if key { slope_h } else { 0.0 };
        dx.push(row.iter().zip(&y).map(|(w, y)| s * (slope_u * w + norm * y)).collect::<Vec<_>>());
        dw.push(y.iter().map(|y| slope_u * y).collect::<Vec<_>>());
    };
    for row in w.chunks(d) {
        let u: f64 = row.iter().zip(&y).map(|(w, y)| w * y).sum();
        match case.map {
            FeatureMap::Relu => push(u.max(0.0) + eps, f64::from(u > 0.0), 0.0, row),
            FeatureMap::Elu1 => {
                push(if u > 0.0 { u + 1.0 } else { u.exp() }, if u > 0.0 { 1.0 } else { u.exp() }, 0.0, row)
            }
            FeatureMap::Trigonometric => push(u.cos() * h.exp(), -u.sin() * h.exp(), u.cos() * h.exp(), row),
            _ => push((u - h).exp(), (u - h).exp(), -(u - h).exp(), row),
        }
    }
    if case.map == FeatureMap::Trigonometric {
        for row in w.chunks(d) {
            let u: f64 = row.iter().zip(&y).map(|(w, y)| w * y).sum();
            push(u.sin() * h.exp(), u.cos() * h.exp(), u.sin() * h.exp(), row);
        }
    }
    (phi, dx, dw)
}

fn plain(case: &Case, x: &Inputs) -> Answer {
    let (h, hk) = case.heads;
    let (l, d, e) = (case.len, case.head_dim, case.value_dim);
    let batch = if case.packed { 1 } else { 2 };
    let w = case.map.parameters(&x.omega, d).unwrap().query_directions;
    let mut out = vec![0.0; x.g.len()];
    let (mut dq, mut dk, mut dv) = (vec![0.0; x.q.len()], vec![0.0; x.k.len()], vec![0.0; x.v.len()]);
    let mut dweights = vec![0.0; w.len()];
    for batch_head in 0..batch * h {
        let (b, kv) = (batch_head / h, batch_head / h * hk + batch_head % h / (h / hk));
        let queries: Vec<_> =
            (0..l).map(|i| features(case, &w, &x.q[(batch_head * l + i) * d..][..d], false)).collect();
        let keys: Vec<_> = (0..l).map(|j| features(case, &w, &x.k[(kv * l + j) * d..][..d], true)).collect();
        for i in 0..l {
            let segment = |p: usize| x.borders.iter().filter(|&&c| c as usize <= p).count();
            let seen: Vec<usize> = (0..l)
                .filter(|&j| {
                    let hidden = (case.causal && j > i) || (case.packed && segment(i) != segment(j));
                    !(hidden || x.mask[b * l + j])
                })
                .collect();
            let score = |j: usize| queries[i].0.iter().zip(&keys[j].0).map(|(a, b)| a * b).sum::<f64>();
            let den: f64 = seen.iter().map(|&j| score(j)).sum();
            if den == 0.0 {
                continue;
            }
            let o: Vec<f64> =
                (0..e).map(|c| seen.iter().map(|&j| score(j) * x.v[(kv * l + j) * e + c]).sum::<f64>() / den).collect();
            let g = &x.g[(batch_head * l + i) * e..][..e];
            for &j in &seen {
                let v = &x.v[(kv * l + j) * e..][..e];
                let slope = g.iter().zip(v).zip(&o).map(|((g, v), o)| g * (v - o)).sum::<f64>() / den;
                let p = score(j) / den;
                g.iter().enumerate().for_each(|(c, g)| dv[(kv * l + j) * e + c] += p * g);
                for m in 0..queries[i].0.len() {
                    let (a, b) = (queries[i].0[m], keys[j].0[m]);
                    for c in 0..d {
                        dq[(batch_head * l + i) * d + c] += slope * b * queries[i].1[m][c];
                        dk[(kv * l + j) * d + c] += slope * a * keys[j].1[m][c];
                        let row = m % (w.len() / d);
                        dweights[row * d + c] += slope * (b * queries[i].2[m][c] + a * keys[j].2[m][c]);
                    }
                }
            }
            out[(batch_head * l + i) * e..][..e].copy_from_slice(&o);
        }
    }
    let mut domega = vec![0.0; x.omega.len()];
    case.map.add_omega_gradient(&x.omega, d, &Parameters::of_directions(dweights), &mut domega);
    [out, dq, dk, dv, domega]
}

fn fused<T: CpuElement>(case: &Case, x: &Inputs, isa: Isa, num_threads: usize) -> Answer {
    let (h, hk) = case.heads;
    let (l, d, e) = (case.len, case.head_dim, case.value_dim);
    let batch = if case.packed { 1 } else { 2 };
    let cast = |x: &[f64]| x.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>();
    let (q, k, v, g) = (cast(&x.q), cast(&x.k), cast(&x.v), cast(&x.g));
    let tensor = |name, data, h, w| TensorRef::contiguous(name, data, [batch, h, l, w]).unwrap();
    let args = FavorArgs {
        q: tensor("q", &q, h, d),
        k: tensor("k", &k, hk, d),
        v: tensor("v", &v, hk, e),
        map: MapArgs::Named {
            map: case.map,
            omega: Some(Omega { data: &x.omega, num_heads: None, num_features: case.num_features, head_dim: d }),
            kernel_epsilon: case.map.default_epsilon(),
        },
        causal: case.causal,
        cu_seqlens: case.packed.then_some(&x.borders),
        key_padding_mask: case.masked.then_some(&x.mask),
    };
    let cancel = AtomicBool::new(false);
    let (cpu, run) = (Cpu::new(isa), Execution { num_threads, cancel: &cancel });
    let rows = batch * h * l;
    let (mut out, mut den) = (vec![T::ONE; rows * e], vec![T::ONE; rows * 2]);
    cpu.forward(&args, Outputs { state_in: None, out: &mut out, den: &mut den, state_out: None }, &run).unwrap();
    let (mut dq, mut dk, mut dv) = (vec![T::ONE; q.len()], vec![T::ONE; k.len()], vec![T::ONE; v.len()]);
    let mut domega = vec![1.0; x.omega.len()];
    let (kept, grad) = (tensor("out", &out, h, e), tensor("grad", &g, h, e));
    let saved = Saved { out: kept, den: &den, grad, state_in: None, final_state: None };
    let map = Some(MapGradients::Omega(&mut domega));
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, map, state_in: None };
    cpu.backward(&args, &saved, gradients, &run).unwrap();
    let wide = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    [wide(&out), wide(&dq), wide(&dk), wide(&dv), domega]
}

/// Relative to the truth, or to a twentieth of unit-scale entries where the truth vanishes (one visible key).
fn error(found: &[f64], truth: &[f64]) -> f64 {
    let norm = truth.iter().map(|t| t * t).sum::<f64>().sqrt().max(0.05 * (truth.len() as f64).sqrt());
    found.iter().zip(truth).map(|(f, t)| (f - t) * (f - t)).sum::<f64>().sqrt() / norm
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    use FeatureMap::{Elu1, Hyperbolic, Positive, Relu, Smreg, Trigonometric};
    for map in [Positive, Hyperbolic, Smreg, Relu, Elu1, Trigonometric] {
        for causal in [false, true] {
            for (masked, packed) in [(false, false), (true, false), (false, true)] {
                for (len, head_dim, value_dim, num_features, heads) in
                    [(1, 3, 2, 5, (1, 1)), (70, 8, 8, 33, (2, 1)), (131, 17, 5, 70, (2, 2))]
                {
                    let scale = if map == FeatureMap::Trigonometric { 0.5 } else { 1.0 };
                    all.push(Case {
                        map,
                        causal,
                        masked,
                        packed,
                        heads,
                        len,
                        head_dim,
                        value_dim,
                        num_features,
                        scale,
                    });
                }
            }
        }
    }
    // Long enough to be cut into blocks; maps without a kink, which so many rows would come too close to for f32.
    for (map, causal, masked) in [(FeatureMap::Positive, false, true), (FeatureMap::Elu1, true, false)] {
        let (len, head_dim, value_dim, num_features, heads) = (2060, 2, 1, 3, (1, 1));
        all.push(Case {
            map,
            causal,
            masked,
            packed: false,
            heads,
            len,
            head_dim,
            value_dim,
            num_features,
            scale: 1.0,
        });
    }
    all
}

#[test]
fn fused_forms_match_the_sums_written_out() {
    for case in cases() {
        let x = inputs(&case);
        let truth = plain(&case, &x);
        for isa in Isa::available() {
            let narrow = fused::<f32>(&case, &x, isa, 2);
            let wide = fused::<f64>(&case, &x, isa, 1);
            for (at, name) in ["out", "dq", "dk", "dv", "domega"].iter().enumerate() {
                let (off, off32) = (error(&wide[at], &truth[at]), error(&narrow[at], &truth[at]));
                assert!(off < 1e-11, "{name} f64 {off:.1e} {isa:?} {case:?}");
                // With one key the gradients of q and k are 0 and all that is left is rounding over a small denominator.
                let bound = if case.map == FeatureMap::Trigonometric || case.len == 1 { 3e-4 } else { 1e-5 };
                assert!(off32 < bound, "{name} f32 {off32:.1e} {isa:?} {case:?}");
            }
        }
    }
}
