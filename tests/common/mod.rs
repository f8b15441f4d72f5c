//! Cases that the tests of attention share, and an independent writing of attention as sums over pairs.

#![allow(dead_code, unused_imports)]

pub mod direct;
pub mod judge;
pub mod kernel;
mod pairs;
pub mod passes;
pub mod shapes;
pub mod subjects;

pub use pairs::narrow::plain as plain_f32;
pub use pairs::wide::{magnitudes, plain};

use protperf::rng::Stream;
use protperf::{Element, FavorArgs, FeatureMap, MapArgs, Omega, TensorRef};

/// Maps of every way to be computed, for tests that are the same for all.
pub const MAPS: [FeatureMap; 6] = [
    FeatureMap::Positive,
    FeatureMap::Hyperbolic,
    FeatureMap::Smreg,
    FeatureMap::Relu,
    FeatureMap::Elu1,
    FeatureMap::Trigonometric,
];

/// The other maps of the registry: other functions or parameters of the same code.
pub fn other_maps() -> impl Iterator<Item = FeatureMap> {
    FeatureMap::ALL.into_iter().filter(|map| !MAPS.contains(map))
}

/// Whether features of a map may be negative, so that outputs are not means of values.
pub fn is_signed(map: FeatureMap) -> bool {
    use FeatureMap::{Cos, Fourier, Gelu, Identity, Tanh, Trigonometric};
    matches!(map, Trigonometric | Fourier | Identity | Tanh | Gelu | Cos)
}

/// Where omega comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Directions {
    /// None: the axes themselves.
    Axes,
    /// One matrix for all heads.
    Shared,
    /// One matrix per head.
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
        map: MapArgs::Named {
            map: case.map,
            omega: (case.directions != Directions::Axes).then_some(omega),
            kernel_epsilon: case.epsilon,
        },
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

/// Whether query i of a batch entry sees key j.
pub fn sees(case: &Case, mask: &[bool], batch: usize, i: usize, j: usize) -> bool {
    let segment = |at: usize| case.borders.iter().flatten().filter(|&&border| border as usize <= at).count();
    (j <= i || !case.causal) && !mask[batch * case.kv_len + j] && segment(i) == segment(j)
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
