//! The samplers against the closed forms of their errors, and what goes wrong without the sign of QR.
//!
//! Every bound is in standard errors of the mean over the draws, from the draws themselves. Seeds are fixed: a test
//! passes or fails for good.

use protperf::projection::{Norm, Sampler, draw_projection};
use protperf::rng::Stream;
use protperf::{Family, FavorArgs, FeatureMap, MapArgs, Omega, TensorRef};

const HEAD_DIM: usize = 8;
const DRAWS: u32 = 20_000;
/// Standard errors that a mean may be off: by chance once in two million.
const NOISE: f64 = 5.0;

/// Mean and its standard error.
fn mean(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let variance = samples.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `phi(x).phi(y)` with its constant factors, whose mean is `exp(x.y)`; directions `[P,D]` as a map makes them.
fn kernel_estimate(family: Family, directions: &[f64], x: &[f64], y: &[f64]) -> f64 {
    let half_norms = 0.5 * (dot(x, x) + dot(y, y));
    let rows = directions.chunks_exact(x.len());
    let count = rows.len() as f64;
    let term = |w: &[f64]| match family {
        Family::Trigonometric => (dot(w, x) - dot(w, y)).cos() * half_norms.exp(),
        _ => (dot(w, x) + dot(w, y) - half_norms).exp(),
    };
    rows.map(term).sum::<f64>() / count
}

/// One block of `head_dim` rows.
fn block(head_dim: usize, sampler: Sampler, draw: u32) -> Vec<f64> {
    draw_projection(head_dim, head_dim, sampler, Norm::Chi, 17, [0, 0, draw]).unwrap()
}

/// Kummer's function 1F1(a; b; x) by its series.
fn kummer(a: f64, b: f64, x: f64) -> f64 {
    let (mut term, mut sum) = (1.0, 1.0);
    for k in 0..400 {
        let k = f64::from(k);
        term *= (a + k) / (b + k) * x / (k + 1.0);
        sum += term;
        if term.abs() < 1e-16 * sum.abs() {
            break;
        }
    }
    sum
}

/// A pair of scaled inputs and what the closed forms need of it.
struct Pair {
    x: Vec<f64>,
    y: Vec<f64>,
    /// |x + y|^2, |x - y|^2, |x|^2 + |y|^2.
    sum: f64,
    difference: f64,
    norms: f64,
}

impl Pair {
    fn new(head_dim: usize, scale: f64) -> Self {
        let mut numbers = Stream::new(3, [9, 9, 9]);
        let mut row = || (0..head_dim).map(|_| scale * numbers.normal()).collect::<Vec<f64>>();
        let (x, y) = (row(), row());
        let norms = dot(&x, &x) + dot(&y, &y);
        let twice = 2.0 * dot(&x, &y);
        Pair { x, y, sum: norms + twice, difference: norms - twice, norms }
    }

    fn truth(&self) -> f64 {
        dot(&self.x, &self.y).exp()
    }

    /// Mean squared error of one block of m = d rows (pairs of rows for the hyperbolic map).
    fn error(&self, map: FeatureMap, sampler: Sampler) -> f64 {
        let d = self.x.len() as f64;
        let coupled = |square: f64| (d - 1.0) * (kummer(d, d / 2.0, square / 2.0) - square.exp());
        let orthogonal = f64::from(u8::from(sampler == Sampler::Orthogonal));
        let (v2, delta2) = (self.sum, self.difference);
        let (outer, own, shared) = match map {
            FeatureMap::Positive => (-self.norms, (2.0 * v2).exp() - v2.exp(), coupled(v2)),
            FeatureMap::Hyperbolic => (-self.norms, 0.5 * (v2.exp() - 1.0).powi(2), coupled(v2)),
            FeatureMap::Trigonometric => (self.norms, 0.5 * (1.0 - (-delta2).exp()).powi(2), coupled(-delta2)),
            other => panic!("no closed form for {other:?}"),
        };
        outer.exp() / d * (own + orthogonal * shared)
    }
}

#[test]
fn errors_of_the_samplers_match_their_closed_forms() {
    let pair = Pair::new(HEAD_DIM, 0.22);
    for sampler in [Sampler::Iid, Sampler::Orthogonal] {
        let blocks: Vec<Vec<f64>> = (0..DRAWS).map(|draw| block(HEAD_DIM, sampler, draw)).collect();
        for map in [FeatureMap::Positive, FeatureMap::Hyperbolic, FeatureMap::Trigonometric] {
            let estimates: Vec<f64> = blocks
                .iter()
                .map(|omega| {
                    kernel_estimate(
                        map.family(),
                        &map.parameters(omega, HEAD_DIM).unwrap().query_directions,
                        &pair.x,
                        &pair.y,
                    )
                })
                .collect();
            let (estimate, noise) = mean(&estimates);
            let off = (estimate - pair.truth()).abs();
            assert!(off < NOISE * noise, "{map:?} {sampler:?} mean {estimate} of {}", pair.truth());

            let squares: Vec<f64> = estimates.iter().map(|x| (x - pair.truth()).powi(2)).collect();
            let (found, noise) = mean(&squares);
            let expected = pair.error(map, sampler);
            assert!((found - expected).abs() < NOISE * noise, "{map:?} {sampler:?} {found} against {expected}");
            // Sharp enough to tell the samplers apart.
            let other = if sampler == Sampler::Iid { Sampler::Orthogonal } else { Sampler::Iid };
            let off = (found - pair.error(map, other)).abs();
            assert!(off > NOISE * noise, "{map:?} {sampler:?} could be {other:?}");
        }
    }
}

/// Random variables of one mean and smaller errors: arXiv:2301.13856, Theorem 2.
#[test]
fn a_simplex_has_smaller_errors_than_orthogonal_rows() {
    let pair = Pair::new(HEAD_DIM, 0.15);
    let [(simplex, noise), (orthogonal, _)] = [Sampler::Simplex, Sampler::Orthogonal].map(|sampler| {
        let square = |draw| {
            let omega = block(HEAD_DIM, sampler, draw);
            (kernel_estimate(Family::Exponential, &omega, &pair.x, &pair.y) - pair.truth()).powi(2)
        };
        mean(&(0..DRAWS).map(square).collect::<Vec<f64>>())
    });
    assert!(simplex + NOISE * noise < orthogonal, "{simplex} against {orthogonal}");
}

/// E exp(omega.z) over the rows of a block, by row, with z along all axes.
fn moments(head_dim: usize, draw_block: impl Fn(u32) -> Vec<f64>) -> (Vec<f64>, f64) {
    let z = vec![0.4; head_dim];
    let of_block =
        |draw| draw_block(draw).chunks(head_dim).map(|row| dot(row, &z).exp()).sum::<f64>() / head_dim as f64;
    ((0..DRAWS).map(of_block).collect(), (0.5 * dot(&z, &z)).exp())
}

#[test]
fn exponential_moment_is_that_of_normal_rows() {
    for head_dim in [1, 2, 5, 16] {
        for sampler in [Sampler::Iid, Sampler::Orthogonal, Sampler::Simplex] {
            let (samples, truth) = moments(head_dim, |draw| block(head_dim, sampler, draw));
            let (found, noise) = mean(&samples);
            assert!((found - truth).abs() < NOISE * noise, "{sampler:?} {found} against {truth} at D={head_dim}");
        }
    }
}

/// A block as plain QR leaves it: the columns of Householder's Q as rows, R's diagonal negative as a rule.
fn without_sign(head_dim: usize, draw: u32) -> Vec<f64> {
    let mut numbers = Stream::new(17, [1, 1, draw]);
    let mut columns: Vec<Vec<f64>> = (0..head_dim).map(|_| (0..head_dim).map(|_| numbers.normal()).collect()).collect();
    let mut rows: Vec<Vec<f64>> =
        (0..head_dim).map(|i| (0..head_dim).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    let mut reflections = Vec::new();
    for k in 0..head_dim - 1 {
        let mut v = columns[k].clone();
        v[..k].fill(0.0);
        v[k] += dot(&v, &v).sqrt().copysign(v[k]);
        columns.iter_mut().for_each(|column| reflect(&v, column));
        reflections.push(v);
    }
    rows.iter_mut().for_each(|row| reflections.iter().rev().for_each(|v| reflect(v, row)));
    for row in &mut rows {
        let chi = (0..head_dim).map(|_| numbers.normal().powi(2)).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x *= chi);
    }
    rows.concat()
}

fn reflect(v: &[f64], x: &mut [f64]) {
    let scale = 2.0 * dot(v, x) / dot(v, v);
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= scale * v);
}

#[test]
fn qr_without_its_sign_fails_the_exponential_moment() {
    let (samples, truth) = moments(16, |draw| without_sign(16, draw));
    let (found, noise) = mean(&samples);
    assert!((found - truth).abs() > 5.0 * NOISE * noise, "{found} against {truth} ± {noise}");
    // The mean of an entry of the diagonal: about -0.2 without the sign, 0 with it.
    let diagonal = |omega: Vec<f64>| omega[0] / dot(&omega[..16], &omega[..16]).sqrt();
    let (lost, _) = mean(&(0..DRAWS).map(|draw| diagonal(without_sign(16, draw))).collect::<Vec<_>>());
    let kept: Vec<f64> = (0..DRAWS).map(|draw| diagonal(block(16, Sampler::Orthogonal, draw))).collect();
    let (kept, noise) = mean(&kept);
    assert!(lost < -0.15, "{lost}");
    assert!(kept.abs() < NOISE * noise, "{kept}");
}

#[test]
fn every_entry_of_a_rotation_has_mean_0_and_variance_1_over_d() {
    let rotations: Vec<Vec<f64>> = (0..DRAWS)
        .map(|draw| draw_projection(5, 5, Sampler::Orthogonal, Norm::SqrtDim, 23, [0, 0, draw]).unwrap())
        .collect();
    for entry in 0..25 {
        let (first, noise) = mean(&rotations.iter().map(|w| w[entry]).collect::<Vec<_>>());
        assert!(first.abs() < NOISE * noise, "entry {entry} mean {first}");
        // Rows have length sqrt(D), so an entry's square has mean 1.
        let (second, noise) = mean(&rotations.iter().map(|w| w[entry] * w[entry]).collect::<Vec<_>>());
        assert!((second - 1.0).abs() < NOISE * noise, "entry {entry} variance {second}");
    }
}

#[test]
fn norms_are_independent_of_directions() {
    // Norms taken from the very rows that were orthogonalised would make some coordinates larger than others.
    for row in 0..2 {
        let squares: Vec<f64> = (0..DRAWS).map(|draw| block(2, Sampler::Orthogonal, draw)[2 * row].powi(2)).collect();
        let (found, noise) = mean(&squares);
        assert!((found - 1.0).abs() < NOISE * noise, "row {row} {found}");
    }
}

#[test]
fn blocks_heads_and_draws_are_independent() {
    let draw = |stream: [u32; 3]| draw_projection(16, 8, Sampler::Orthogonal, Norm::SqrtDim, 5, stream).unwrap();
    let products: Vec<[f64; 3]> = (0..DRAWS)
        .map(|i| {
            let (a, b, c) = (draw([0, 0, i]), draw([0, 1, i]), draw([1, 0, i]));
            [dot(&a[..8], &a[64..72]), dot(&a[..8], &b[..8]), dot(&a[..8], &c[..8])]
        })
        .collect();
    for pair in 0..3 {
        let (found, noise) = mean(&products.iter().map(|p| p[pair]).collect::<Vec<_>>());
        assert!(found.abs() < NOISE * noise, "pair {pair} {found}");
    }
}

/// Attention of one head, every query and key `[len, 8]`, with omega of `num_features` rows.
fn attention(map: FeatureMap, qkv: [&[f64]; 3], omega: &[f64]) -> Vec<f64> {
    let len = qkv[0].len() / HEAD_DIM;
    let tensor = |name, data| TensorRef::contiguous(name, data, [1, 1, len, HEAD_DIM]).unwrap();
    let omega = Omega { data: omega, num_heads: None, num_features: omega.len() / HEAD_DIM, head_dim: HEAD_DIM };
    let args = FavorArgs {
        q: tensor("q", qkv[0]),
        k: tensor("k", qkv[1]),
        v: tensor("v", qkv[2]),
        map: MapArgs::Named { map, omega: Some(omega), kernel_epsilon: 0.0 },
        causal: false,
        cu_seqlens: None,
        key_padding_mask: None,
    };
    protperf::reference::favor_forward(&args).unwrap().out
}

fn softmax(qkv: [&[f64]; 3]) -> Vec<f64> {
    let len = qkv[0].len() / HEAD_DIM;
    let tensor = |name, data| TensorRef::contiguous(name, data, [1, 1, len, HEAD_DIM]).unwrap();
    let args = protperf::attention::exact::SoftmaxArgs {
        q: tensor("q", qkv[0]),
        k: tensor("k", qkv[1]),
        v: tensor("v", qkv[2]),
        causal: false,
        cu_seqlens: None,
        key_padding_mask: None,
    };
    let mut out = vec![0.0; qkv[2].len()];
    protperf::attention::exact::softmax_attention(&args, &mut out, &|| false).unwrap();
    out
}

#[test]
fn attention_tends_to_exact_softmax_as_features_grow() {
    let mut numbers = Stream::new(8, [0, 0, 0]);
    let mut rows = |scale: f64| (0..24 * HEAD_DIM).map(|_| scale * numbers.normal()).collect::<Vec<f64>>();
    let (q, k, v) = (rows(0.6), rows(0.6), rows(1.0));
    let truth = softmax([&q, &k, &v]);
    let size = dot(&truth, &truth).sqrt();
    for map in [FeatureMap::Positive, FeatureMap::Hyperbolic, FeatureMap::Trigonometric] {
        for sampler in [Sampler::Iid, Sampler::Orthogonal] {
            let error = |num_features: usize| {
                let draws = (0..8).map(|draw| {
                    let omega = draw_projection(num_features, HEAD_DIM, sampler, Norm::Chi, 2, [0, 0, draw]).unwrap();
                    let out = attention(map, [&q, &k, &v], &omega);
                    let off: Vec<f64> = out.iter().zip(&truth).map(|(a, b)| a - b).collect();
                    dot(&off, &off)
                });
                (draws.sum::<f64>() / 8.0).sqrt() / size
            };
            // Sixteen times the features: a quarter of the error, within half.
            let (few, many) = (error(256), error(4096));
            assert!(many < 0.1, "{map:?} {sampler:?} {many}");
            assert!((0.125..0.5).contains(&(many / few)), "{map:?} {sampler:?} {few} {many}");
        }
    }
}

#[test]
fn smreg_kernel_lies_just_under_the_softmax_kernel() {
    // Theorem 1 of Choromanski et al. 2021: 1 - 2 d^(-1/3) <= SMREG / SM <= 1, up to smaller terms.
    let d = 64;
    let pair = Pair::new(d, 0.1);
    let estimates: Vec<f64> = (0..2000)
        .map(|draw| {
            let omega = draw_projection(d, d, Sampler::Orthogonal, Norm::Chi, 4, [0, 0, draw]).unwrap();
            kernel_estimate(
                Family::Exponential,
                &FeatureMap::Smreg.parameters(&omega, d).unwrap().query_directions,
                &pair.x,
                &pair.y,
            )
        })
        .collect();
    let (found, noise) = mean(&estimates);
    let ratio = found / pair.truth();
    assert!(ratio < 1.0 + NOISE * noise, "{ratio}");
    assert!(ratio > 1.0 - 2.0 * (d as f64).powf(-1.0 / 3.0), "{ratio}");
}
