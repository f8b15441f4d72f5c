//! Every backend that the suites judge, and how a case runs on one.

use super::{Answer, Case, Data, Directions, args, grad};
use protperf::backend::{Gradients, Outputs, Saved};
use protperf::reference::Reference;
use protperf::{Backend, Cpu, Element, Execution, Isa, MapGradients, TensorRef};
use std::sync::atomic::AtomicBool;

/// One backend as it computes in both types.
pub struct Subject {
    pub name: String,
    pub narrow: Box<dyn Backend<f32>>,
    pub wide: Box<dyn Backend<f64>>,
}

impl Subject {
    fn new<B: Backend<f32> + Backend<f64> + Copy + 'static>(name: String, backend: B) -> Self {
        Subject { name, narrow: Box::new(backend), wide: Box::new(backend) }
    }
}

/// The reference, then the CPU backend on every instruction set of this machine, the slowest first.
pub fn subjects() -> Vec<Subject> {
    let cpu = Isa::available().into_iter().map(|isa| Subject::new(format!("cpu {}", isa.name()), Cpu::new(isa)));
    std::iter::once(Subject::new("reference".into(), Reference)).chain(cpu).collect()
}

/// A backend's answer in T; what it should fill is NaN before.
pub fn answer<T: Element>(backend: &dyn Backend<T>, case: &Case, data: &Data, num_threads: usize) -> Answer {
    let typed = data.typed::<T>();
    let args = args(case, data, &typed);
    let cancel = AtomicBool::new(false);
    let run = Execution { num_threads, cancel: &cancel };
    let unfilled = |len: usize| vec![T::from_f64(f64::NAN); len];
    let rows = case.batch * case.heads.0 * case.q_len;
    let (mut out, mut den) = (unfilled(data.grad.len()), unfilled(rows * 2));
    let outputs = Outputs { state_in: None, out: &mut out, den: &mut den, state_out: None };
    backend.forward(&args, outputs, &run).unwrap();
    let (mut dq, mut dk, mut dv) = (unfilled(data.q.len()), unfilled(data.k.len()), unfilled(data.v.len()));
    let mut domega = vec![f64::NAN; data.omega.len()];
    let shape = [case.batch, case.heads.0, case.q_len, case.value_dim];
    let saved = Saved {
        out: TensorRef::contiguous("out", &out, shape).unwrap(),
        den: &den,
        grad: grad(case, &typed),
        state_in: None,
        final_state: None,
    };
    let map = (case.directions != Directions::Axes).then_some(MapGradients::Omega(&mut domega));
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, map, state_in: None };
    backend.backward(&args, &saved, gradients, &run).unwrap();
    let wide = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    [wide(&out), wide(&dq), wide(&dk), wide(&dv), domega]
}
