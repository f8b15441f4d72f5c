//! Cases that the tests of attention share, and an independent writing of attention as sums over pairs.

#![allow(dead_code)]

use protperf::rng::Stream;
use protperf::{Element, Family, FavorArgs, FeatureMap, Omega, TensorRef};

/// Where omega comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Directions {
    /// None: the axes themselves.
    Axes,
    /// One matrix for all heads.
    Shared,
    /// One matrix a head.
    PerHead,
}

/// One shape with one setting of every option.
#[derive(Clone, Debug)]
pub struct Case {
    pub map: FeatureMap,
    pub causal: bool,
    pub batch: usize,
    pub heads: (usize, usize),
    pub q_len: usize,
    pub kv_len: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub num_features: usize,
    pub directions: Directions,
    pub masked: bool,
    pub borders: Option<Vec<i64>>,
    pub scale: f64,
    pub epsilon: f64,
}

impl Case {
    /// One head and batch entry, nothing masked.
    pub fn new(map: FeatureMap, causal: bool, len: usize, head_dim: usize, num_features: usize) -> Self {
        Case {
            map,
            causal,
            batch: 1,
            heads: (1, 1),
            q_len: len,
            kv_len: len,
            head_dim,
            value_dim: head_dim,
            num_features,
            directions: Directions::Shared,
            masked: false,
            borders: None,
            scale: if map == FeatureMap::Trigonometric { 0.5 } else { 1.0 },
            epsilon: map.default_epsilon(),
        }
    }

    /// The id, as `B1-H2-L63-D8-M16` with what else is set.
    pub fn id(&self) -> String {
        let c = self;
        format!(
            "{}-{}-B{}-H{}x{}-L{}-S{}-D{}-E{}-M{}-{:?}{}{}-x{}",
            c.map.name(),
            if c.causal { "causal" } else { "noncausal" },
            c.batch,
            c.heads.0,
            c.heads.1,
            c.q_len,
            c.kv_len,
            c.head_dim,
            c.value_dim,
            c.num_features,
            c.directions,
            if c.masked { "-masked" } else { "" },
            c.borders.as_ref().map_or(String::new(), |b| format!("-segments{b:?}")),
            c.scale,
        )
    }

    /// Rows of omega, all heads together.
    fn omega_len(&self) -> usize {
        let matrix = self.num_features * self.head_dim;
        match self.directions {
            Directions::Axes => 0,
            Directions::Shared => matrix,
            Directions::PerHead => self.heads.0 * matrix,
        }
    }

    /// Random inputs of this case.
    pub fn data(&self, seed: u64) -> Data {
        let mut stream = Stream::new(seed, [0, 0, 0]);
        let mut normals = |n: usize, scale: f64| (0..n).map(|_| scale * stream.normal()).collect::<Vec<f64>>();
        let (h, hk) = self.heads;
        let (b, l, s, d, e) = (self.batch, self.q_len, self.kv_len, self.head_dim, self.value_dim);
        Data {
            q: normals(b * h * l * d, self.scale),
            k: normals(b * hk * s * d, self.scale),
            v: normals(b * hk * s * e, 1.0),
            grad: normals(b * h * l * e, 1.0),
            omega: normals(self.omega_len(), 1.0),
            // Some keys, more of them in later batch entries; the first key of the first entry stays.
            mask: (0..b * s).map(|at| self.masked && (at * 7 + at / s.max(1)) % 10 > 6).collect(),
        }
    }
}

/// Inputs in f64, contiguous.
#[derive(Clone, Debug)]
pub struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub grad: Vec<f64>,
    pub omega: Vec<f64>,
    pub mask: Vec<bool>,
}

/// Inputs in the type of a computation.
pub struct Typed<T> {
    pub q: Vec<T>,
    pub k: Vec<T>,
    pub v: Vec<T>,
    pub grad: Vec<T>,
}

impl Data {
    /// Inputs rounded to T.
    pub fn typed<T: Element>(&self) -> Typed<T> {
        let cast = |x: &[f64]| x.iter().map(|&x| T::from_f64(x)).collect();
        Typed { q: cast(&self.q), k: cast(&self.k), v: cast(&self.v), grad: cast(&self.grad) }
    }

    /// The same inputs rounded to T and back, so that a reference sees what a kernel in T sees.
    pub fn rounded<T: Element>(&self) -> Data {
        let cast = |x: &[f64]| x.iter().map(|&x| T::from_f64(x).to_f64()).collect();
        Data { q: cast(&self.q), k: cast(&self.k), v: cast(&self.v), grad: cast(&self.grad), ..self.clone() }
    }
}

/// Arguments of a call over contiguous inputs.
pub fn args<'a, T: Element>(case: &'a Case, data: &'a Data, typed: &'a Typed<T>) -> FavorArgs<'a, T> {
    let (h, hk) = case.heads;
    let (b, l, s, d, e) = (case.batch, case.q_len, case.kv_len, case.head_dim, case.value_dim);
    let omega = Omega {
        data: &data.omega,
        num_heads: (case.directions == Directions::PerHead).then_some(h),
        num_features: case.num_features,
        head_dim: d,
    };
    FavorArgs {
        q: TensorRef::contiguous("q", &typed.q, [b, h, l, d]).unwrap(),
        k: TensorRef::contiguous("k", &typed.k, [b, hk, s, d]).unwrap(),
        v: TensorRef::contiguous("v", &typed.v, [b, hk, s, e]).unwrap(),
        omega: (case.directions != Directions::Axes).then_some(omega),
        feature_map: case.map,
        kernel_epsilon: case.epsilon,
        causal: case.causal,
        cu_seqlens: case.borders.as_deref(),
        key_padding_mask: case.masked.then_some(&data.mask),
    }
}

/// The gradient of the output as a tensor.
pub fn grad<'a, T: Element>(case: &Case, typed: &'a Typed<T>) -> TensorRef<'a, T> {
    let shape = [case.batch, case.heads.0, case.q_len, case.value_dim];
    TensorRef::contiguous("grad", &typed.grad, shape).unwrap()
}

/// out, dq, dk, dv, domega.
pub type Answer = [Vec<f64>; 5];

/// Names of the parts of an [`Answer`].
pub const PARTS: [&str; 5] = ["out", "dq", "dk", "dv", "domega"];

/// The reference's answer.
pub fn reference<T: Element>(case: &Case, data: &Data) -> Answer {
    let typed = data.typed::<T>();
    let args = args(case, data, &typed);
    let forward = protperf::reference::favor_forward(&args).unwrap();
    let g = protperf::reference::favor_backward(&args, &grad(case, &typed)).unwrap();
    [forward.out, g.dq, g.dk, g.dv, g.domega.unwrap_or_default()]
}

/// Attention as sums over all pairs and features, each term relative to the largest of its row.
///
/// One batch entry and query head after another; a term is `s exp(l)` with s and l of pair and feature.
pub fn plain(case: &Case, data: &Data) -> Answer {
    let (h, hk) = case.heads;
    let (l, s, d, e) = (case.q_len, case.kv_len, case.head_dim, case.value_dim);
    let zeros = |x: &[f64]| vec![0.0; x.len()];
    let mut answer = [zeros(&data.grad), zeros(&data.q), zeros(&data.k), zeros(&data.v), zeros(&data.omega)];
    for line in 0..case.batch * h {
        let kv = line / h * hk + line % h / (h / hk);
        let matrix = case.num_features * d;
        let start = if case.directions == Directions::PerHead { line % h * matrix } else { 0 };
        let axes: Vec<f64> = (0..d * d).map(|i| f64::from(u8::from(i / d == i % d))).collect();
        let weights = match case.directions {
            Directions::Axes => axes,
            _ => case.map.weights(&data.omega[start..start + matrix], d),
        };
        let head = Head { case, weights: &weights };
        let queries: Vec<Row> = data.q[line * l * d..][..l * d].chunks(d).map(|x| head.row(x)).collect();
        let keys: Vec<Row> = data.k[kv * s * d..][..s * d].chunks(d).map(|x| head.row(x)).collect();
        let mut dweights = vec![0.0; weights.len()];
        for (i, query) in queries.iter().enumerate() {
            let seen: Vec<usize> = (0..s).filter(|&j| sees(case, &data.mask, line / h, i, j)).collect();
            let top = seen
                .iter()
                .flat_map(|&j| (0..query.projected.len()).map(move |m| (j, m)))
                .map(|(j, m)| head.term(query, &keys[j], m).log)
                .fold(f64::NEG_INFINITY, f64::max);
            let score = |j: usize| -> f64 {
                (0..query.projected.len())
                    .map(|m| head.term(query, &keys[j], m))
                    .map(|t| t.value * (t.log - top).exp())
                    .sum()
            };
            let scores: Vec<f64> = seen.iter().map(|&j| score(j)).collect();
            let total: f64 = scores.iter().sum();
            if total == 0.0 {
                continue;
            }
            let value = |j: usize| &data.v[(kv * s + j) * e..][..e];
            let out: Vec<f64> =
                (0..e).map(|c| seen.iter().zip(&scores).map(|(&j, p)| p * value(j)[c]).sum::<f64>() / total).collect();
            let g = &data.grad[(line * l + i) * e..][..e];
            answer[0][(line * l + i) * e..][..e].copy_from_slice(&out);
            for (&j, p) in seen.iter().zip(&scores) {
                (0..e).for_each(|c| answer[3][(kv * s + j) * e + c] += p / total * g[c]);
                let dscore: f64 = (0..e).map(|c| g[c] * (value(j)[c] - out[c])).sum::<f64>() / total;
                for m in 0..query.projected.len() {
                    let t = head.term(query, &keys[j], m);
                    let weight = dscore * (t.log - top).exp();
                    for c in 0..d {
                        let w = weights[m * d + c];
                        answer[1][(line * l + i) * d + c] += head.unit() * weight * t.by_query * w;
                        let along_norm = t.by_norm * keys[j].scaled[c];
                        answer[2][(kv * s + j) * d + c] += head.unit() * weight * (t.by_key * w + along_norm);
                        dweights[m * d + c] += weight * (t.by_query * query.scaled[c] + t.by_key * keys[j].scaled[c]);
                    }
                }
            }
        }
        if case.directions != Directions::Axes {
            let omega = &data.omega[start..start + matrix];
            case.map.add_omega_gradient(omega, d, &dweights, &mut answer[4][start..start + matrix]);
        }
    }
    answer
}

/// Whether query i of a batch entry sees key j.
pub fn sees(case: &Case, mask: &[bool], batch: usize, i: usize, j: usize) -> bool {
    let segment = |at: usize| case.borders.iter().flatten().filter(|&&border| border as usize <= at).count();
    (j <= i || !case.causal) && !mask[batch * case.kv_len + j] && segment(i) == segment(j)
}

struct Head<'a> {
    case: &'a Case,
    weights: &'a [f64],
}

struct Row {
    scaled: Vec<f64>,
    projected: Vec<f64>,
    half_norm: f64,
}

/// `value exp(log)` and what its derivatives are times `exp(log)`, by the projections of query and key and by half
/// the squared norm of the key.
struct Term {
    value: f64,
    log: f64,
    by_query: f64,
    by_key: f64,
    by_norm: f64,
}

impl Head<'_> {
    fn unit(&self) -> f64 {
        (self.case.head_dim as f64).powf(-0.25)
    }

    fn row(&self, x: &[f64]) -> Row {
        let scaled: Vec<f64> = x.iter().map(|x| x * self.unit()).collect();
        let dot = |w: &[f64]| w.iter().zip(&scaled).map(|(w, x)| w * x).sum::<f64>();
        let projected = self.weights.chunks(x.len()).map(dot).collect();
        let half_norm = 0.5 * scaled.iter().map(|x| x * x).sum::<f64>();
        Row { scaled, projected, half_norm }
    }

    fn term(&self, query: &Row, key: &Row, m: usize) -> Term {
        let (u, w, norm) = (query.projected[m], key.projected[m], key.half_norm);
        match self.case.map.family() {
            Family::Exponential => Term { value: 1.0, log: u + w - norm, by_query: 1.0, by_key: 1.0, by_norm: -1.0 },
            Family::Trigonometric => {
                let (sine, cosine) = (u - w).sin_cos();
                Term { value: cosine, log: norm, by_query: -sine, by_key: sine, by_norm: cosine }
            }
            Family::Activation => {
                let relu = self.case.map == FeatureMap::Relu;
                let phi = |x: f64| self.case.epsilon + if relu { x.max(0.0) } else { x.max(0.0) + x.min(0.0).exp() };
                let slope = |x: f64| {
                    if x > 0.0 {
                        1.0
                    } else if relu {
                        0.0
                    } else {
                        x.exp()
                    }
                };
                let (by_query, by_key) = (slope(u) * phi(w), phi(u) * slope(w));
                Term { value: phi(u) * phi(w), log: 0.0, by_query, by_key, by_norm: 0.0 }
            }
        }
    }
}

/// Euclidean norm.
pub fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Error relative to the truth.
pub fn relative(found: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let off: Vec<f64> = found.iter().zip(truth).map(|(f, t)| f - t).collect();
    norm(&off) / norm(truth).max(1e-300)
}

/// Error of a gradient, relative to the truth or to a thousandth of the gradient of the output: where softmax is
/// saturated the true gradient is exponentially small and what remains is cancellation.
pub fn gradient_error(found: &[f64], truth: &[f64], grad: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let off: Vec<f64> = found.iter().zip(truth).map(|(f, t)| f - t).collect();
    norm(&off) / (norm(truth) + 1e-3 * norm(grad)).max(1e-300)
}
