//! Running the CPU kernels on a case.

use super::{Answer, Case, Data, args, grad};
use protperf::{Context, CpuElement, Gradients, Isa, Saved, TensorRef, favor_backward, favor_forward};
use std::sync::atomic::AtomicBool;

/// How a kernel runs.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub isa: Isa,
    pub num_threads: usize,
}

/// Every instruction set of this machine, on two threads.
pub fn every_isa() -> Vec<How> {
    Isa::available().into_iter().map(|isa| How { isa, num_threads: 2 }).collect()
}

/// One instruction set on so many threads.
pub fn on_threads<const N: usize>(numbers: [usize; N], isa: Isa) -> [How; N] {
    numbers.map(|num_threads| How { isa, num_threads })
}

/// The kernels' answer in T; what they should fill is NaN before.
pub fn kernel<T: CpuElement>(case: &Case, data: &Data, how: How) -> Answer {
    let typed = data.typed::<T>();
    let args = args(case, data, &typed);
    let cancel = AtomicBool::new(false);
    let ctx = Context { isa: how.isa, num_threads: how.num_threads, cancel: &cancel };
    let poisoned = |len: usize| vec![T::from_f64(f64::NAN); len];
    let rows = case.batch * case.heads.0 * case.q_len;
    let (mut out, mut den) = (poisoned(data.grad.len()), poisoned(rows * 2));
    favor_forward(&args, None, &mut out, &mut den, None, &ctx).unwrap();
    let (mut dq, mut dk, mut dv) = (poisoned(data.q.len()), poisoned(data.k.len()), poisoned(data.v.len()));
    let mut domega = vec![f64::NAN; data.omega.len()];
    let shape = [case.batch, case.heads.0, case.q_len, case.value_dim];
    let out_tensor = TensorRef::contiguous("out", &out, shape).unwrap();
    let saved = Saved { out: &out_tensor, den: &den, grad: &grad(case, &typed) };
    let wants_omega = case.directions != super::Directions::Axes;
    let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, domega: wants_omega.then_some(&mut domega[..]) };
    favor_backward(&args, &saved, gradients, &ctx).unwrap();
    let wide = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    [wide(&out), wide(&dq), wide(&dk), wide(&dv), domega]
}
