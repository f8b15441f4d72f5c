//! Orthogonal projections drawn on the device: a QR decomposition of each block of normals, one dispatch for each
//! reflection. The numbers are those of the CPU's sampler, counted and not carried from one to the next, in f32.

use crate::context::with_gpu;
use crate::error::GpuError;
use crate::kernels::{Kernel, Uniform};
use crate::recorder::Recorder;
use crate::tensor::{DeviceTensor, StoredAs};
use bytemuck::{Pod, Zeroable};
use protperf_core::projection::{Draw, Norm, Sampler};
use protperf_core::{Error, Result};

/// The widest head whose rotation is drawn: each axis is two dispatches, and a row is walked some times in each.
const MAX_HEAD_DIM: usize = 4096;

/// The twin of `Draw` in `shaders/draw/prelude.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct Drawing {
    invocations: u32,
    rows: u32,
    head_dim: u32,
    step: u32,
    is_chi: u32,
    key: [u32; 2],
    stream: [u32; 3],
    padding: [u32; 6],
}

const _: () = assert!(size_of::<Drawing>() == 64);

impl Uniform for Drawing {
    fn invocations(&self) -> u32 {
        self.invocations
    }
}

/// Draws omega `[M,D]`, which stays on the device: equal to [`Draw::fill`] but for rounding to f32.
///
/// # Errors
/// As [`Draw::numel`]; [`Error::InvalidOption`] for another sampler than the orthogonal one; [`Error::Device`];
/// [`Error::OutOfMemory`].
///
/// # Source
/// As [`Draw::fill`].
pub fn draw_projection(draw: &Draw) -> Result<DeviceTensor> {
    let numel = draw.numel()?;
    if draw.sampler != Sampler::Orthogonal {
        let detail = format!("is {}, which is drawn on the CPU alone; on a GPU use orthogonal", draw.sampler.name());
        return Err(Error::InvalidOption { argument: "sampler", detail });
    }
    if draw.head_dim > MAX_HEAD_DIM {
        return Err(GpuError::TooMany { what: "head_dim", found: draw.head_dim, limit: MAX_HEAD_DIM }.into());
    }
    let (rows, head_dim) = (draw.num_features as u32, draw.head_dim as u32);
    let of_rows = Drawing {
        invocations: rows,
        rows,
        head_dim,
        is_chi: u32::from(draw.norm == Norm::Chi),
        key: [draw.seed as u32, (draw.seed >> 32) as u32],
        stream: draw.stream,
        ..Drawing::default()
    };
    with_gpu(|gpu| {
        let mut recorder = Recorder::new(gpu);
        let omega = DeviceTensor::scratch(&mut recorder, &[draw.num_features, draw.head_dim], StoredAs::Float32)?;
        let matrix = recorder.scratch("normals", numel as u64 * 4)?;
        recorder.dispatch(Kernel::Normals, Drawing { invocations: numel as u32, ..of_rows }, &[&matrix]);
        let steps = head_dim.min(rows);
        for step in 0..steps - 1 {
            recorder.dispatch(Kernel::Reflect, Drawing { step, ..of_rows }, &[&matrix]);
        }
        for step in (0..steps).rev() {
            recorder.dispatch(Kernel::Rotate, Drawing { step, ..of_rows }, &[&matrix, &omega.memory]);
        }
        recorder.dispatch(Kernel::Scale, of_rows, &[&omega.memory]);
        recorder.submit();
        Ok(omega)
    })
}
