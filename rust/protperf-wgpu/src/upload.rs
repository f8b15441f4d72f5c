//! The rows of some lines of a call on the device, and what the stages have to know of the call.

use crate::error::GpuError;
use crate::lines::{Call, Lines};
use crate::maps::Side;
use crate::memory::OnDevice;
use crate::recorder::Recorder;
use crate::stages::{Cut, Pass, Rows};
use protperf_core::Stored;
use std::ops::Range;

/// One side of some lines on the device.
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
        lines: &Lines,
        side: Side,
    ) -> Result<Self, GpuError> {
        let inputs = match side {
            Side::Queries => &lines.queries,
            Side::Keys => &lines.keys,
        };
        let inputs = recorder.upload("rows of queries or keys", inputs)?;
        Self::of_rows(recorder, call, inputs, side)
    }

    /// The same of rows that are on the device, `[lines,rows,D]`.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::TooMany`], [`GpuError::OutOfMemory`].
    pub fn of_rows<T: Stored>(
        recorder: &mut Recorder<'_>,
        call: &Call<'_, T>,
        inputs: OnDevice,
        side: Side,
    ) -> Result<Self, GpuError> {
        let at = usize::from(side == Side::Keys);
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
    pub fn rows(&self) -> Rows<'_> {
        Rows {
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

/// The set of parameters of each line.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn sets_of<T: Stored>(
    recorder: &mut Recorder<'_>,
    call: &Call<'_, T>,
    lines: Range<usize>,
) -> Result<OnDevice, GpuError> {
    let sets: Vec<u32> = lines.map(|line| call.set_of(line) as u32).collect();
    recorder.upload("sets of parameters", &sets)
}
