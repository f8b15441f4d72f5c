//! The CPU backend as two functions, for tests that compute in the type they store.

use protperf::backend::{self, Backend, Outputs};
use protperf::{Cpu, CpuElement, Execution, FavorArgs, Isa, MapGradients, Result, TensorRef};
use std::sync::atomic::AtomicBool;

/// How a call runs.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// Threads of the pool; changes no bit of any result.
    pub num_threads: usize,
    /// Raised by the caller to stop the call.
    pub cancel: &'a AtomicBool,
}

/// What the backward pass reads besides the arguments of the forward pass.
pub struct Saved<'a, T> {
    /// Output of the forward pass `[B,H,L,E]`.
    pub out: &'a TensorRef<'a, T>,
    /// Denominators of the forward pass `[B,H,L,2]`.
    pub den: &'a [T],
    /// Gradient of the output `[B,H,L,E]`.
    pub grad: &'a TensorRef<'a, T>,
}

/// Gradients to fill: dq `[B,H,L,D]`, dk `[B,Hk,S,D]`, dv `[B,Hk,S,E]`, domega as omega.
pub struct Gradients<'a, T> {
    pub dq: &'a mut [T],
    pub dk: &'a mut [T],
    pub dv: &'a mut [T],
    pub domega: Option<&'a mut [f64]>,
}

/// [`Backend::forward`] of [`Cpu`].
pub fn favor_forward<T: CpuElement>(
    args: &FavorArgs<'_, T>,
    state_in: Option<&[T]>,
    out: &mut [T],
    den: &mut [T],
    state_out: Option<&mut [T]>,
    ctx: &Context<'_>,
) -> Result<()> {
    let run = Execution { num_threads: ctx.num_threads, cancel: ctx.cancel };
    Cpu::new(ctx.isa).forward(args, Outputs { state_in, out, den, state_out }, &run)
}

/// [`Backend::backward`] of [`Cpu`].
pub fn favor_backward<T: CpuElement>(
    args: &FavorArgs<'_, T>,
    saved: &Saved<'_, T>,
    gradients: Gradients<'_, T>,
    ctx: &Context<'_>,
) -> Result<()> {
    let run = Execution { num_threads: ctx.num_threads, cancel: ctx.cancel };
    let saved =
        backend::Saved { out: *saved.out, den: saved.den, grad: *saved.grad, state_in: None, final_state: None };
    let Gradients { dq, dk, dv, domega } = gradients;
    let gradients = backend::Gradients { dq, dk, dv, map: domega.map(MapGradients::Omega), state_in: None };
    Cpu::new(ctx.isa).backward(args, &saved, gradients, &run)
}
