//! Arrays of a network on the device, and a pass over them that is being recorded.

use crate::context::Gpu;
use crate::error::GpuError;
use crate::memory::OnDevice;
use crate::recorder::Recorder;
use crate::stages::Cut;
use protperf_core::{try_filled, try_reserved};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Rows of numbers, each padded with zeros to a multiple of four.
pub struct Activations {
    pub(super) memory: OnDevice,
    /// Number of rows.
    pub rows: usize,
    /// Numbers of a row without what pads it.
    pub width: usize,
}

impl Activations {
    /// Fours of a row.
    pub(super) fn fours(&self) -> u32 {
        fours(self.width)
    }
}

/// A matrix that rows are multiplied with.
pub struct Matrix {
    /// Transposed, `[inputs,outputs]`, both padded with zeros.
    pub(super) memory: OnDevice,
    pub(super) inputs: usize,
    /// Rows of the matrix, with those that pad its groups.
    pub(super) outputs: usize,
}

/// Sequences one after another, with the angles of their tokens' positions.
pub struct Sequences {
    pub(super) ranges: Vec<Range<usize>>,
    /// Cosines and sines `[rows,D]`.
    pub(super) angles: OnDevice,
    pub(super) causal: bool,
    pub(super) cut: Cut,
}

impl Sequences {
    /// Number of tokens.
    pub fn rows(&self) -> usize {
        self.ranges.last().map_or(0, |last| last.end)
    }
}

/// A pass through a network that is being recorded.
pub struct Forward<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) recorder: Recorder<'a>,
}

impl<'a> Forward<'a> {
    /// An empty one.
    pub fn new(gpu: &'a Gpu) -> Self {
        Forward { gpu, recorder: Recorder::new(gpu) }
    }

    /// A matrix `[sum of groups, inputs]` in groups of rows, each of which is padded.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn matrix(&mut self, numbers: &[f32], inputs: usize, groups: &[usize]) -> Result<Matrix, GpuError> {
        let outputs: usize = groups.iter().map(|group| group.next_multiple_of(4)).sum();
        let mut transposed = try_filled(inputs.next_multiple_of(4) * outputs, 0.0).map_err(no_memory)?;
        let (mut column, mut rows) = (0, numbers.chunks_exact(inputs));
        for group in groups {
            for (at, row) in rows.by_ref().take(*group).enumerate() {
                for (input, &x) in row.iter().enumerate() {
                    transposed[input * outputs + column + at] = x;
                }
            }
            column += group.next_multiple_of(4);
        }
        Ok(Matrix { memory: self.recorder.upload("weights", &transposed)?, inputs, outputs })
    }

    /// Rows `[rows,width]`.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn rows(&mut self, numbers: &[f32], width: usize) -> Result<Activations, GpuError> {
        let padded = width.next_multiple_of(4);
        let rows = numbers.len() / width;
        let mut all = try_filled(rows * padded, 0.0).map_err(no_memory)?;
        for (row, to) in numbers.chunks_exact(width).zip(all.chunks_exact_mut(padded)) {
            to[..width].copy_from_slice(row);
        }
        Ok(Activations { memory: self.recorder.upload("weights", &all)?, rows, width })
    }

    /// Any numbers.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn numbers(&mut self, numbers: &[f32]) -> Result<OnDevice, GpuError> {
        self.recorder.upload("weights", numbers)
    }

    /// Sequences whose tokens have some positions, which are rotated by pairs of `head_dim` axes.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::TooMany`], [`GpuError::OutOfMemory`].
    pub fn sequences(
        &mut self,
        ranges: Vec<Range<usize>>,
        positions: impl Iterator<Item = u64>,
        head_dim: usize,
        causal: bool,
    ) -> Result<Sequences, GpuError> {
        let rates: Vec<_> = (0..head_dim / 2).map(|i| 10000f64.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let count = ranges.last().map_or(0, |last| last.end);
        let mut angles: Vec<f32> = try_reserved(count * head_dim).map_err(no_memory)?;
        for position in positions {
            // In f64: an angle at position 34,000 has no correct digits in f32.
            angles.extend(rates.iter().map(|rate| (position as f64 * rate).cos() as f32));
            angles.extend(rates.iter().map(|rate| (position as f64 * rate).sin() as f32));
        }
        let cut = Cut::new(&mut self.recorder, &ranges, causal)?;
        Ok(Sequences { angles: self.recorder.upload("angles", &angles)?, ranges, causal, cut })
    }

    /// Lets the device start with what was recorded so far.
    pub fn submit(&mut self) {
        self.recorder.submit();
    }

    /// Waits for everything, and reads rows `[rows,width]` back.
    ///
    /// # Errors
    /// As [`Recorder::read_back`].
    pub fn read_back(self, wanted: &Activations, cancel: &AtomicBool) -> Result<Vec<f32>, GpuError> {
        let mut read = self.recorder.read_back(&[&wanted.memory], cancel)?.into_iter();
        let mut rows = read.next().unwrap_or_default();
        let padded = wanted.width.next_multiple_of(4);
        if padded > wanted.width {
            for row in 0..wanted.rows {
                rows.copy_within(row * padded..row * padded + wanted.width, row * wanted.width);
            }
            rows.truncate(wanted.rows * wanted.width);
        }
        Ok(rows)
    }

    /// Waits for everything.
    ///
    /// # Errors
    /// As [`Recorder::read_back`].
    pub fn finish(self, cancel: &AtomicBool) -> Result<(), GpuError> {
        self.recorder.read_back(&[], cancel).map(drop)
    }

    pub(super) fn scratch(&mut self, what: &'static str, rows: usize, width: usize) -> Result<Activations, GpuError> {
        let bytes = rows as u64 * width.next_multiple_of(4) as u64 * 4;
        Ok(Activations { memory: self.recorder.scratch(what, bytes)?, rows, width })
    }
}

/// Fours that hold so many numbers.
pub(super) fn fours(width: usize) -> u32 {
    width.div_ceil(4) as u32
}

pub(super) fn no_memory(error: protperf_core::Error) -> GpuError {
    GpuError::OutOfHostMemory { bytes: if let protperf_core::Error::OutOfMemory { bytes } = error { bytes } else { 0 } }
}
