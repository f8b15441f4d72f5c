//! The kernels as a backend.

use crate::ops::CpuElement;
use crate::parallel::Workers;
use crate::{Context, Isa, favor_backward, favor_forward};
use protperf_core::backend::{Backend, Execution, Gradients, Outputs, Saved};
use protperf_core::{Error, FavorArgs, MapGradients, Result, state};

/// The CPU backend on one instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The instruction set.
    pub isa: Isa,
}

impl<E: CpuElement> Backend<E> for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn forward(&self, args: &FavorArgs<'_, E>, outputs: Outputs<'_, E>, run: &Execution<'_>) -> Result<()> {
        let ctx = Context { isa: self.isa, num_threads: run.num_threads, cancel: run.cancel };
        favor_forward(args, outputs.state_in, outputs.out, outputs.den, outputs.state_out, &ctx)
    }

    fn backward(
        &self,
        args: &FavorArgs<'_, E>,
        saved: &Saved<'_, E>,
        gradients: Gradients<'_, E>,
        run: &Execution<'_>,
    ) -> Result<()> {
        if saved.state_in.is_some() || saved.final_state.is_some() || gradients.state_in.is_some() {
            return Err(unsupported("state", "has no gradient in this backend"));
        }
        let domega = match gradients.map {
            None => None,
            Some(MapGradients::Omega(domega)) => Some(domega),
            Some(MapGradients::LogLinear(_)) => return Err(unsupported("map", "has no gradient in this backend")),
        };
        let ctx = Context { isa: self.isa, num_threads: run.num_threads, cancel: run.cancel };
        let saved = crate::Saved { out: &saved.out, den: saved.den, grad: &saved.grad };
        let gradients = crate::Gradients { dq: gradients.dq, dk: gradients.dk, dv: gradients.dv, domega };
        favor_backward(args, &saved, gradients, &ctx)
    }

    fn merge_states(&self, a: &[E], b: &[E], value_dim: usize, out: &mut [E], run: &Execution<'_>) -> Result<()> {
        Workers { num_threads: run.num_threads, cancel: run.cancel }.check()?;
        state::merge_states(a, b, value_dim, out, run.cancel)
    }
}

fn unsupported(argument: &'static str, detail: &str) -> Error {
    Error::InvalidOption { argument, detail: detail.into() }
}
