//! The rows of some batch heads of a call on the device, and what the stages have to know of the call.
//! BH: batch entries times heads, those of one group.

use crate::batch_heads::{BatchHeads, Call};
use crate::error::GpuError;
use crate::memory::OnDevice;
use crate::recorder::Recorder;
use crate::stages::{Cut, Pass, SideRows};
use protperf_core::Side;
use protperf_core::Stored;
use std::ops::Range;

/// One side of some batch heads on the device.
pub struct Uploaded {
    side: Side,
    inputs: OnDevice,
    parameters: OnDevice,
    cut: Cut,
    norm_factor: f32,
    norm_sign: f32,
}

impl Uploaded {
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::TooMany`].
    pub fn new<T: Stored>(
        recorder: &mut Recorder<'_>,
        call: &Call<'_, T>,
        batch_heads: &BatchHeads,
        side: Side,
    ) -> Result<Self, GpuError> {
        let inputs = match side {
            Side::Query => &batch_heads.queries,
            Side::Key => &batch_heads.keys,
        };
        let inputs = recorder.upload("rows of queries or keys", inputs)?;
        Self::of_rows(recorder, call, inputs, side)
    }

    /// The same of rows that are on the device, `[BH,rows,D]`.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::TooMany`], [`GpuError::OutOfMemory`].
    pub fn of_rows<T: Stored>(
        recorder: &mut Recorder<'_>,
        call: &Call<'_, T>,
        inputs: OnDevice,
        side: Side,
    ) -> Result<Self, GpuError> {
        let at = usize::from(side == Side::Key);
        Ok(Uploaded {
            side,
            inputs,
            parameters: recorder.upload("feature map", &call.map.packed[at])?,
            cut: Cut::new(recorder, &call.segments[at], call.args.causal)?,
            norm_factor: call.map.norm_factor(side),
            norm_sign: call.map.norm_sign(side),
        })
    }

    /// As the stages take it.
    pub fn rows(&self) -> SideRows<'_> {
        SideRows {
            side: self.side,
            inputs: &self.inputs,
            parameters: &self.parameters,
            cut: &self.cut,
            norm_factor: self.norm_factor,
            norm_sign: self.norm_sign,
        }
    }
}

/// The pass of a call.
pub fn pass_of<T: Stored>(call: &Call<'_, T>) -> Pass {
    Pass {
        head_dim: call.shape.head_dim,
        projections: call.shape.num_projections,
        features: call.shape.feature_dim,
        width: call.width(),
        family: call.map.family_number,
        epsilon: call.map.epsilon,
        input_limit: call.map.input_limit(),
        causal: call.args.causal,
    }
}

/// The set of parameters of each batch head.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn sets_of<T: Stored>(
    recorder: &mut Recorder<'_>,
    call: &Call<'_, T>,
    batch_heads: Range<usize>,
) -> Result<OnDevice, GpuError> {
    let sets: Vec<u32> = batch_heads.map(|batch_head| call.set_of(batch_head) as u32).collect();
    recorder.upload("sets of parameters", &sets)
}
