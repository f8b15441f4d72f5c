//! The CPU as a backend.

use crate::bf16::Unit;
use crate::decoding::DecodingState;
use crate::dispatch::Isa;
use crate::exact::ExactSaved;
use crate::instructions::Instructions;
use crate::ops::CpuElement;
use crate::out_rows::OutRows;
use crate::outputs::{RowGradients, RowOutputs};
use crate::parallel::Workers;
use crate::prepared::PreparedMap;
use crate::step::StepArgs;
use crate::stored::CpuStored;
use crate::{backward, exact, forward, step};
use protperf_core::attention::exact::SoftmaxArgs;
use protperf_core::backend::{Backend, Gradients, Outputs, Saved};
use protperf_core::state::merge_states;
use protperf_core::{Execution, FavorArgs, MapArgs, Result};

/// The processor's cores, with one instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The instruction set.
    pub isa: Isa,
    /// Operands of products are rounded to bf16 and multiplied by this unit, with sums in f32; `None`: they are as they are.
    /// Tensors have to be computed in f32.
    pub bf16: Option<Unit>,
}

impl Cpu {
    /// An instruction set, with products in the type that is computed in.
    pub fn new(isa: Isa) -> Self {
        Cpu { isa, bf16: None }
    }

    /// The same with products of bf16 where this processor has a unit for them, and else without.
    pub fn with_bf16(isa: Isa) -> Self {
        Cpu { isa, bf16: Unit::of(isa) }
    }

    /// The same with products of bf16 where they are known to be faster: on AMX, whose tiles outweigh the packing of operands.
    pub fn with_fast_bf16(isa: Isa) -> Self {
        Cpu { isa, bf16: Unit::of(isa).filter(|&unit| unit == Unit::Amx) }
    }

    fn instructions(self) -> Instructions {
        Instructions { isa: self.isa, bf16: self.bf16 }
    }
}

/// What a network needs that calls the kernels layer after layer: parameters that are packed once, and outputs whose rows
/// lie where the next product reads them. The numbers are those of [`Backend`], bit for bit.
impl Cpu {
    /// Packs the parameters of a map for `heads` heads of width `head_dim`.
    ///
    /// # Errors
    /// As [`MapArgs::validate`]; `OutOfMemory`.
    pub fn prepare<T: CpuElement>(&self, map: &MapArgs<'_>, heads: usize, head_dim: usize) -> Result<PreparedMap<T>> {
        PreparedMap::new(self.instructions(), map, heads, head_dim, || Ok(()))
    }

    /// [`Backend::forward`] with the rows of the output anywhere. `prepared` is what [`Cpu::prepare`] made of `args.map`;
    /// with `None` the parameters are packed here.
    ///
    /// # Errors
    /// As [`Backend::forward`]; `InvalidOption` where what is prepared is another map.
    pub fn forward_rows<S: CpuStored>(
        &self,
        args: &FavorArgs<'_, S>,
        prepared: Option<&PreparedMap<S::Compute>>,
        outputs: RowOutputs<'_, S>,
        run: &Execution<'_>,
    ) -> Result<()> {
        forward::run(self.instructions(), args, prepared, outputs, run)
    }

    /// Decodes one token per sequence: adds its key to the state, in place, and answers its query into `out`
    /// `[n,H,E]`. Every head of the queries has a state of its own, as everywhere.
    ///
    /// To rounding the numbers of [`Backend::forward`] of one position, causal, with the state in and out. A key that is not finite makes its states NaN and the outputs that
    /// read them. Allocates nothing after a thread's first call of a shape, and runs on the calling thread unless the
    /// states are large (more than 4 million numbers).
    ///
    /// # Errors
    /// `ShapeMismatch` naming the argument; `OutOfMemory`; `Interrupted`, after which states are of no use.
    pub fn step<T: CpuElement>(
        prepared: &PreparedMap<T>,
        args: &StepArgs<'_, T>,
        state: &mut DecodingState<T>,
        out: &mut [T],
        run: &Execution<'_>,
    ) -> Result<()> {
        step::run(prepared, args, state, out, run)
    }

    /// [`Backend::backward`] with the rows of the gradients anywhere.
    ///
    /// # Errors
    /// As [`Cpu::forward_rows`].
    pub fn backward_rows<S: CpuStored>(
        &self,
        args: &FavorArgs<'_, S>,
        prepared: Option<&PreparedMap<S::Compute>>,
        saved: &Saved<'_, S>,
        gradients: RowGradients<'_, S>,
        run: &Execution<'_>,
    ) -> Result<()> {
        backward::run(self.instructions(), args, prepared, saved, gradients, run)
    }
}

/// Exact softmax attention, which a network may have in the place of the linear form.
impl Cpu {
    /// `softmax(q k^T / sqrt(D)) v` into rows `[B,H,L,E]` that lie anywhere; a row that sees no key gives 0.
    ///
    /// As `protperf_core::attention::exact::softmax_attention`, with one more freedom: a causal call may have more keys
    /// than queries, whose i-th then sees the keys up to S - L + i. `den` `[B,H,L,2]` is what the backward pass needs,
    /// see [`ExactSaved::den`]. Time is O(L S (D + E)), memory besides the output constant per thread.
    ///
    /// # Errors
    /// `ShapeMismatch` or `InvalidOption` naming the argument; `OutOfMemory`; `Interrupted`.
    pub fn exact_forward<S: CpuStored>(
        &self,
        args: &SoftmaxArgs<'_, S>,
        out: OutRows<'_, S>,
        den: Option<&mut [S::Compute]>,
        run: &Execution<'_>,
    ) -> Result<()> {
        exact::forward(self.instructions(), args, out, den, run)
    }

    /// Gradients of [`Cpu::exact_forward`]: rows of dq `[B,H,L,D]`, dk `[B,Hk,S,D]` and dv `[B,Hk,S,E]`.
    ///
    /// Special values are those of [`Backend::backward`]. Memory besides the outputs is O(L (D + E)) per thread.
    ///
    /// # Errors
    /// As [`Cpu::exact_forward`].
    pub fn exact_backward<S: CpuStored>(
        &self,
        args: &SoftmaxArgs<'_, S>,
        saved: &ExactSaved<'_, S>,
        gradients: [OutRows<'_, S>; 3],
        run: &Execution<'_>,
    ) -> Result<()> {
        exact::backward(self.instructions(), args, saved, gradients, run)
    }
}

impl<S: CpuStored> Backend<S> for Cpu {
    fn name(&self) -> &'static str {
        if self.bf16.is_some() { "cpu-bf16" } else { "cpu" }
    }

    fn forward(&self, args: &FavorArgs<'_, S>, outputs: Outputs<'_, S>, run: &Execution<'_>) -> Result<()> {
        self.forward_rows(args, None, RowOutputs::new(outputs, &args.validate()?)?, run)
    }

    fn backward(
        &self,
        args: &FavorArgs<'_, S>,
        saved: &Saved<'_, S>,
        gradients: Gradients<'_, S>,
        run: &Execution<'_>,
    ) -> Result<()> {
        self.backward_rows(args, None, saved, RowGradients::new(gradients, &args.validate()?)?, run)
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
