//! A forward and a backward pass with states, and with parameters given themselves, on any backend in f64.

use super::{Case, Data, Typed, args, grad};
use protperf::backend::{FinalState, Gradients, Outputs, Saved};
use protperf::state::empty_state;
use protperf::{Backend, Execution, FavorArgs, LogLinear, MapArgs, MapGradients, Parameters, TensorRef};
use std::sync::atomic::AtomicBool;

/// Parameters of an exponential map, P directions of D axes for one set or one per head.
#[derive(Clone, Debug)]
pub struct Record {
    pub parameters: Parameters<Vec<f64>>,
    pub num_heads: Option<usize>,
    pub num_projections: usize,
}

/// A call: a case with its data, the state before it, and the record of its map where it is given itself.
#[derive(Clone, Debug)]
pub struct Call {
    pub case: Case,
    pub data: Data,
    pub state_in: Option<Vec<f64>>,
    pub record: Option<Record>,
}

/// What a forward pass left.
#[derive(Clone, Debug)]
pub struct Passed {
    pub out: Vec<f64>,
    pub den: Vec<f64>,
    pub state_out: Vec<f64>,
}

/// Every gradient of a call.
#[derive(Clone, Debug)]
pub struct Pulled {
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
    pub domega: Vec<f64>,
    pub record: Option<Parameters<Vec<f64>>>,
    pub state_in: Vec<f64>,
}

impl Call {
    pub fn new(case: Case, seed: u64) -> Self {
        let data = case.data(seed);
        Call { case, data, state_in: None, record: None }
    }

    fn with_args<R>(&self, body: impl FnOnce(&FavorArgs<'_, f64>, &Typed<f64>) -> R) -> R {
        let typed = self.data.typed::<f64>();
        let mut call = args(&self.case, &self.data, &typed);
        if let Some(record) = &self.record {
            call.map = MapArgs::LogLinear(LogLinear {
                parameters: record.parameters.try_map(|field| Ok(field.as_slice())).unwrap(),
                num_heads: record.num_heads,
                num_projections: record.num_projections,
                head_dim: self.case.head_dim,
            });
        }
        body(&call, &typed)
    }

    /// The state that has seen no key, of this call's shape.
    pub fn empty(&self) -> Vec<f64> {
        self.with_args(|args, _| empty_state(&args.validate().unwrap()).unwrap())
    }

    pub fn forward(&self, backend: &dyn Backend<f64>) -> Passed {
        self.with_args(|args, _| {
            let rows = self.case.batch * self.case.heads.0 * self.case.q_len;
            let unfilled = |len: usize| vec![f64::NAN; len];
            let mut passed = Passed {
                out: unfilled(rows * self.case.value_dim),
                den: unfilled(rows * 2),
                state_out: unfilled(self.empty().len()),
            };
            let outputs = Outputs {
                state_in: self.state_in.as_deref(),
                out: &mut passed.out,
                den: &mut passed.den,
                state_out: Some(&mut passed.state_out),
            };
            backend.forward(args, outputs, &run()).unwrap();
            passed
        })
    }

    /// Gradients of `sum(out * data.grad) + sum(state_out * grad_state)`.
    pub fn backward(&self, backend: &dyn Backend<f64>, grad_state: Option<&[f64]>) -> Pulled {
        let passed = self.forward(backend);
        self.with_args(|args, typed| {
            let shape = [self.case.batch, self.case.heads.0, self.case.q_len, self.case.value_dim];
            let saved = Saved {
                out: TensorRef::contiguous("out", &passed.out, shape).unwrap(),
                den: &passed.den,
                grad: grad(&self.case, typed),
                state_in: self.state_in.as_deref(),
                final_state: grad_state.map(|grad| FinalState { state: &passed.state_out, grad }),
            };
            let unfilled = |like: &[f64]| vec![f64::NAN; like.len()];
            let mut pulled = Pulled {
                dq: unfilled(&self.data.q),
                dk: unfilled(&self.data.k),
                dv: unfilled(&self.data.v),
                domega: unfilled(&self.data.omega),
                record: self.record.as_ref().map(|r| r.parameters.try_map(|field| Ok(unfilled(field))).unwrap()),
                state_in: unfilled(self.state_in.as_deref().unwrap_or_default()),
            };
            let map = match &mut pulled.record {
                Some(Parameters {
                    query_directions,
                    key_directions,
                    key_quadratic,
                    query_constants,
                    key_constants,
                }) => MapGradients::LogLinear(Parameters {
                    query_directions,
                    key_directions: key_directions.as_deref_mut(),
                    key_quadratic: key_quadratic.as_deref_mut(),
                    query_constants: query_constants.as_deref_mut(),
                    key_constants: key_constants.as_deref_mut(),
                }),
                None => MapGradients::Omega(&mut pulled.domega),
            };
            let gradients = Gradients {
                dq: &mut pulled.dq,
                dk: &mut pulled.dk,
                dv: &mut pulled.dv,
                map: Some(map),
                state_in: self.state_in.is_some().then_some(&mut pulled.state_in[..]),
            };
            backend.backward(args, &saved, gradients, &run()).unwrap();
            pulled
        })
    }

    /// The positions `range` of this call of one batch entry without segments; the state before them is left out.
    pub fn part(&self, range: std::ops::Range<usize>) -> Self {
        let (case, data) = (&self.case, &self.data);
        let rows = |x: &[f64], width: usize| {
            let len = self.case.kv_len;
            let heads = x.chunks(len * width.max(1));
            heads.flat_map(|x| x[range.start * width..range.end * width].to_vec()).collect::<Vec<f64>>()
        };
        Call {
            case: Case { q_len: range.len(), kv_len: range.len(), ..case.clone() },
            data: Data {
                q: rows(&data.q, case.head_dim),
                k: rows(&data.k, case.head_dim),
                v: rows(&data.v, case.value_dim),
                grad: rows(&data.grad, case.value_dim),
                omega: data.omega.clone(),
                mask: data.mask[range.clone()].to_vec(),
            },
            state_in: None,
            record: self.record.clone(),
        }
    }
}

fn run() -> Execution<'static> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Execution { num_threads: 2, cancel: &NEVER }
}

/// The sums of a state relative to given references: what a change of references leaves alone.
pub fn sums_at(state: &[f64], references: &[f64], value_dim: usize) -> Vec<f64> {
    let rows = state.chunks(value_dim + 2).zip(references);
    rows.flat_map(|(row, reference)| {
        let power = if row[0] == *reference { 1.0 } else { (row[0] - reference).exp2() };
        row[1..].iter().map(move |x| x * power).collect::<Vec<_>>()
    })
    .collect()
}

/// The references of a state.
pub fn references(state: &[f64], value_dim: usize) -> Vec<f64> {
    state.chunks(value_dim + 2).map(|row| row[0]).collect()
}
