//! The GPU as a backend.

use crate::{backward, forward};
use protperf_core::backend::{Backend, Gradients, Outputs, Saved};
use protperf_core::{Error, Execution, FavorArgs, Result, Stored};

/// A GPU through Vulkan, Metal or DX12; `PROTPERF_GPU` chooses among several. It is opened at the first call.
///
/// Computes in f32 on tensors of 32 or 16 bits. Tensors are carried to the device and back in every call, so it pays
/// where the work is large.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wgpu;

impl<T: Stored> Backend<T> for Wgpu {
    fn name(&self) -> &'static str {
        "wgpu"
    }

    fn forward(&self, args: &FavorArgs<'_, T>, outputs: Outputs<'_, T>, run: &Execution<'_>) -> Result<()> {
        check_type::<T>()?;
        outputs.check(&args.validate()?)?;
        forward::run(args, outputs, run)
    }

    fn backward(
        &self,
        args: &FavorArgs<'_, T>,
        saved: &Saved<'_, T>,
        gradients: Gradients<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        check_type::<T>()?;
        let shape = args.validate()?;
        saved.check(&shape)?;
        gradients.check(args, &shape)?;
        backward::run(args, saved, gradients, run)
    }
}

fn check_type<T: Stored>() -> Result<()> {
    match T::NAME {
        "float64" => {
            Err(Error::UnsupportedType { backend: "wgpu", found: T::NAME, taken: "float32, bfloat16 and float16" })
        }
        _ => Ok(()),
    }
}
