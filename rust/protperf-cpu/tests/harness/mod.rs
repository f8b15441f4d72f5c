//! Runs any backend on one problem, forward and backward, from a state to a state, and compares two of them.

#![allow(dead_code)]

use protperf_core::backend::{Backend, FinalState, Gradients, Outputs, Saved};
use protperf_core::reference::Reference;
use protperf_core::rng::Stream;
use protperf_core::state::{KV_STATE, empty_state};
use protperf_core::{
    Element, Execution, FavorArgs, FeatureMap, LogLinear, MapArgs, MapGradients, Omega, Parameters, Stored, TensorRef,
};
use std::sync::atomic::AtomicBool;

/// Which map a case computes with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Map {
    Named(FeatureMap),
    /// A log-linear record; which of key directions, quadratic, query constants and key constants it has.
    Record([bool; 4]),
}

/// Named maps of every way to be computed.
pub const MAPS: [FeatureMap; 6] = [
    FeatureMap::Positive,
    FeatureMap::Hyperbolic,
    FeatureMap::Smreg,
    FeatureMap::Relu,
    FeatureMap::Elu1,
    FeatureMap::Trigonometric,
];

/// These maps and a record with every field.
pub fn maps() -> impl Iterator<Item = Map> {
    MAPS.into_iter().map(Map::Named).chain([Map::Record([true; 4])])
}

/// One shape with one setting of every option.
#[derive(Clone, Debug)]
pub struct Case {
    pub map: Map,
    pub per_head: bool,
    pub causal: bool,
    pub masked: bool,
    pub borders: Option<Vec<i64>>,
    pub batch: usize,
    pub heads: (usize, usize),
    pub q_len: usize,
    pub kv_len: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub num_features: usize,
    pub scale: f64,
    /// How much longer the first keys are than the last: beyond 1 references rise far along the sequence, for a long key
    /// has small features, and rows are computed again.
    pub rise: f64,
    /// Whether the pass starts from a state that has seen keys, and a gradient arrives at its final state.
    pub states: bool,
}

impl Case {
    /// One head and batch entry, nothing masked, with states.
    pub fn new(map: Map, causal: bool, len: usize, [head_dim, value_dim, num_features]: [usize; 3]) -> Self {
        Case {
            map,
            per_head: false,
            causal,
            masked: false,
            borders: None,
            batch: 1,
            heads: (1, 1),
            q_len: len,
            kv_len: len,
            head_dim,
            value_dim,
            num_features,
            scale: if map == Map::Named(FeatureMap::Trigonometric) { 0.5 } else { 1.0 },
            rise: 0.0,
            states: true,
        }
    }

    fn num_sets(&self) -> usize {
        if self.per_head { self.heads.0 } else { 1 }
    }

    fn num_states(&self) -> usize {
        self.borders.as_ref().map_or(self.batch, |borders| borders.len() - 1) * self.heads.0
    }
}

/// Inputs in f64, contiguous; `fields` are omega, or a record's fields in their order.
#[derive(Clone, Debug)]
pub struct Data {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub grad: Vec<f64>,
    pub fields: [Vec<f64>; 5],
    pub mask: Vec<bool>,
    /// Gradient of the final state, per feature in units of the reference's own state.
    pub grad_state: Vec<f64>,
}

impl Case {
    /// Random inputs.
    pub fn data(&self, seed: u64) -> Data {
        let mut stream = Stream::new(seed, [0, 0, 0]);
        let mut normals = |n: usize, scale: f64| (0..n).map(|_| scale * stream.normal()).collect::<Vec<f64>>();
        let (b, (h, hk), (d, e, m)) = (self.batch, self.heads, (self.head_dim, self.value_dim, self.num_features));
        let sets = self.num_sets();
        let mut k = normals(b * hk * self.kv_len * d, self.scale);
        for (at, k) in k.iter_mut().enumerate() {
            *k *= 1.0 + self.rise * (1.0 - (at / d % self.kv_len) as f64 / self.kv_len as f64);
        }
        let mut fields = [
            normals(sets * m * d, 1.0),
            normals(sets * m * d, 1.0),
            normals(sets * d, 1.0),
            normals(sets * m, 1.0),
            normals(sets * m, 1.0),
        ];
        fields[2].iter_mut().for_each(|g| *g = 0.5 + g.abs());
        let row = KV_STATE + e;
        Data {
            q: normals(b * h * self.q_len * d, self.scale),
            v: normals(b * hk * self.kv_len * e, 1.0),
            grad: normals(b * h * self.q_len * e, 1.0),
            mask: (0..b * self.kv_len).map(|at| self.masked && (at * 7 + at / self.kv_len.max(1)) % 10 > 6).collect(),
            grad_state: normals(self.num_states() * 2 * m * row, 1.0),
            k,
            fields,
        }
    }
}

/// Everything that a pass computes, in f64.
#[derive(Clone, Debug)]
pub struct Answer {
    /// out, the sums of the final state, dq, dk, dv, the gradients of the parameters, the gradient of the first state.
    pub parts: [Vec<f64>; 7],
    /// References of the final state.
    pub references: Vec<f64>,
}

/// Names of the parts of an answer.
pub const PARTS: [&str; 7] = ["out", "state", "dq", "dk", "dv", "parameters", "dstate"];

/// A record's fields, those that are left out empty.
fn record(fields: &[Vec<f64>; 5], has: [bool; 4]) -> Parameters<&[f64]> {
    let [directions, optional @ ..] = fields;
    let [keys, quadratic, of_queries, of_keys] =
        std::array::from_fn(|at: usize| has[at].then_some(optional[at].as_slice()));
    Parameters {
        query_directions: directions,
        key_directions: keys,
        key_quadratic: quadratic,
        query_constants: of_queries,
        key_constants: of_keys,
    }
}

fn record_mut(fields: &mut [Vec<f64>; 5], has: [bool; 4]) -> Parameters<&mut [f64]> {
    let [directions, keys, quadratic, of_queries, of_keys] = fields;
    Parameters {
        query_directions: directions,
        key_directions: has[0].then_some(keys),
        key_quadratic: has[1].then_some(quadratic),
        query_constants: has[2].then_some(of_queries),
        key_constants: has[3].then_some(of_keys),
    }
}

/// The map of a case over its data.
pub fn map_args<'a>(case: &Case, data: &'a Data) -> MapArgs<'a> {
    let (num_heads, m, d) = (case.per_head.then_some(case.heads.0), case.num_features, case.head_dim);
    match case.map {
        Map::Named(map) => MapArgs::Named {
            map,
            omega: Some(Omega { data: &data.fields[0], num_heads, num_features: m, head_dim: d }),
            kernel_epsilon: map.default_epsilon(),
        },
        Map::Record(has) => MapArgs::LogLinear(LogLinear {
            parameters: record(&data.fields, has),
            num_heads,
            num_projections: m,
            head_dim: d,
        }),
    }
}

/// A case's tensors as a type stores them.
pub struct Typed<S> {
    pub q: Vec<S>,
    pub k: Vec<S>,
    pub v: Vec<S>,
    pub grad: Vec<S>,
}

/// Numbers as a type stores them.
pub fn stored<S: Stored>(x: &[f64]) -> Vec<S> {
    x.iter().map(|&x| S::round(S::Compute::from_f64(x))).collect()
}

impl<S: Stored> Typed<S> {
    pub fn new(data: &Data) -> Self {
        Typed { q: stored(&data.q), k: stored(&data.k), v: stored(&data.v), grad: stored(&data.grad) }
    }
}

/// The arguments of a case.
pub fn args<'a, S: Stored>(case: &'a Case, data: &'a Data, typed: &'a Typed<S>) -> FavorArgs<'a, S> {
    let (b, (h, hk), d) = (case.batch, case.heads, case.head_dim);
    FavorArgs {
        q: TensorRef::contiguous("q", &typed.q, [b, h, case.q_len, d]).unwrap(),
        k: TensorRef::contiguous("k", &typed.k, [b, hk, case.kv_len, d]).unwrap(),
        v: TensorRef::contiguous("v", &typed.v, [b, hk, case.kv_len, case.value_dim]).unwrap(),
        map: map_args(case, data),
        causal: case.causal,
        cu_seqlens: case.borders.as_deref(),
        key_padding_mask: case.masked.then_some(&data.mask),
    }
}

/// A state that has seen keys: what the reference leaves after other inputs of the same shape.
pub fn first_state<S: Stored>(case: &Case, seed: u64) -> Vec<S::Compute> {
    let len = case.q_len.max(case.kv_len).max(3);
    let borders = case.borders.as_ref().map(|borders| {
        let step = len as i64 / (borders.len() as i64 - 1);
        (0..borders.len() as i64 - 1).map(|at| at * step).chain([len as i64]).collect()
    });
    let before = Case { q_len: len, kv_len: len, causal: true, masked: false, rise: 0.0, borders, ..case.clone() };
    let data = before.data(seed);
    let typed = Typed::<f64>::new(&data);
    let args = args(&before, &data, &typed);
    let shape = args.validate().unwrap();
    let (mut out, mut den) = (vec![0.0; before.batch * before.heads.0 * len * before.value_dim], vec![0.0; 0]);
    den.resize(before.batch * before.heads.0 * len * 2, 0.0);
    let mut state = vec![0.0; shape.state().iter().product()];
    let cancel = AtomicBool::new(false);
    let outputs = Outputs { state_in: None, out: &mut out, den: &mut den, state_out: Some(&mut state) };
    Backend::<f64>::forward(&Reference, &args, outputs, &Execution { num_threads: 1, cancel: &cancel }).unwrap();
    state.iter().map(|&x| S::Compute::from_f64(x)).collect()
}

/// Runs a backend forward and backward.
///
/// A gradient of the final state is in units of `references`, the final references of another backend, so that both
/// differentiate the same function of the sums; `None`: the units of this backend.
pub fn run<S: Stored>(
    backend: &dyn Backend<S>,
    case: &Case,
    data: &Data,
    first: Option<&[S::Compute]>,
    references: Option<&[f64]>,
    num_threads: usize,
) -> Answer {
    let typed = Typed::new(data);
    let args = args(case, data, &typed);
    let shape = args.validate().unwrap();
    let (cancel, nan) = (AtomicBool::new(false), S::Compute::from_f64(f64::NAN));
    let execution = Execution { num_threads, cancel: &cancel };
    let (mut out, mut den) =
        (vec![S::round(nan); data.grad.len()], vec![nan; case.batch * case.heads.0 * case.q_len * 2]);
    let mut last = vec![nan; shape.state().iter().product()];
    let state_out = case.states.then_some(&mut last[..]);
    backend.forward(&args, Outputs { state_in: first, out: &mut out, den: &mut den, state_out }, &execution).unwrap();
    let row = KV_STATE + case.value_dim;
    let own: Vec<f64> = last.chunks_exact(row).map(|row| row[0].to_f64()).collect();
    let units = references.unwrap_or(&own);
    // A final state that is not finite has no units.
    let unit = |at: usize| if own[at].is_nan() { 1.0 } else { 2f64.powf(own[at] - units[at]) };
    let grad_state: Vec<S::Compute> = (0..last.len())
        .map(|at| if at % row == 0 { nan } else { S::Compute::from_f64(data.grad_state[at] * unit(at / row)) })
        .collect();
    let kept = TensorRef::contiguous("out", &out, shape.out()).unwrap();
    let saved = Saved {
        out: kept,
        den: &den,
        grad: TensorRef::contiguous("grad", &typed.grad, shape.out()).unwrap(),
        state_in: first,
        final_state: case.states.then_some(FinalState { state: &last, grad: &grad_state }),
    };
    let poisoned = |n: usize| vec![S::round(nan); n];
    let (mut dq, mut dk, mut dv) = (poisoned(data.q.len()), poisoned(data.k.len()), poisoned(data.v.len()));
    let mut dfields = data.fields.clone().map(|field| vec![f64::NAN; field.len()]);
    let mut dstate = vec![nan; first.map_or(0, <[S::Compute]>::len)];
    let map = match case.map {
        Map::Named(_) => MapGradients::Omega(&mut dfields[0]),
        Map::Record(has) => MapGradients::LogLinear(record_mut(&mut dfields, has)),
    };
    let state_in = first.is_some().then_some(&mut dstate[..]);
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, map: Some(map), state_in };
    backend.backward(&args, &saved, gradients, &execution).unwrap();
    let has = if let Map::Record(has) = case.map { has } else { [false; 4] };
    let given = dfields.iter().zip([true, has[0], has[1], has[2], has[3]]).filter(|(_, has)| *has);
    let wide = |x: &[S]| x.iter().map(|x| x.widen().to_f64()).collect::<Vec<f64>>();
    let sums = last.iter().enumerate().filter(|(at, _)| at % row != 0);
    let sums = sums.map(|(at, x)| x.to_f64() * unit(at / row)).collect();
    let (state, references) = if case.states { (sums, own) } else { (Vec::new(), Vec::new()) };
    let parameters = given.flat_map(|(field, _)| field.iter().copied()).collect();
    let dstate = dstate.iter().map(|x| x.to_f64()).collect();
    Answer { parts: [wide(&out), state, wide(&dq), wide(&dk), wide(&dv), parameters, dstate], references }
}

/// The empty state of a case.
pub fn no_keys<S: Stored>(case: &Case, data: &Data) -> Vec<S::Compute> {
    let typed = Typed::<S>::new(data);
    empty_state(&args(case, data, &typed).validate().unwrap()).unwrap()
}

/// Relative to the truth, or to a twentieth of unit-scale entries where the truth vanishes.
pub fn error(found: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let norm = truth.iter().map(|t| t * t).sum::<f64>().sqrt().max(0.05 * (truth.len() as f64).sqrt());
    let off = found.iter().zip(truth).map(|(f, t)| (f - t) * (f - t)).sum::<f64>().sqrt();
    if truth.is_empty() { 0.0 } else { off / norm }
}

/// Bits, NaN all alike.
pub fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| if x.is_nan() { u64::MAX } else { x.to_bits() }).collect()
}
