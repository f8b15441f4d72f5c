//! The CPU as a backend.

use crate::dispatch::Isa;
use crate::parallel::Workers;
use crate::stored::CpuStored;
use crate::{backward, forward};
use protperf_core::backend::{Backend, Gradients, Outputs, Saved};
use protperf_core::state::merge_states;
use protperf_core::{Execution, FavorArgs, Result};

/// The processor's cores, with one instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The instruction set.
    pub isa: Isa,
}

impl<S: CpuStored> Backend<S> for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn forward(&self, args: &FavorArgs<'_, S>, outputs: Outputs<'_, S>, run: &Execution<'_>) -> Result<()> {
        forward::run(self.isa, args, outputs, run)
    }

    fn backward(
        &self,
        args: &FavorArgs<'_, S>,
        saved: &Saved<'_, S>,
        gradients: Gradients<'_, S>,
        run: &Execution<'_>,
    ) -> Result<()> {
        backward::run(self.isa, args, saved, gradients, run)
    }

    fn merge_states(
        &self,
        a: &[S::Compute],
        b: &[S::Compute],
        value_dim: usize,
        out: &mut [S::Compute],
        run: &Execution<'_>,
    ) -> Result<()> {
        Workers::new(run).check()?;
        merge_states(a, b, value_dim, out, run.cancel)
    }
}
