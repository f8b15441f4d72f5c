//! Work for the device: buffers, dispatches in their order, and what is read back.

use crate::context::{Gpu, Sharing};
use crate::error::GpuError;
use crate::kernels::{Kernel, Uniform};
use crate::memory::{Held, OnDevice, Spare};
use bytemuck::{Pod, cast_slice};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use wgpu::{
    BindGroupDescriptor, BindGroupEntry, Buffer, BufferDescriptor, BufferUsages, CommandEncoder,
    CommandEncoderDescriptor, ErrorFilter, MapMode, PollError, PollType,
};

/// Invocations of a workgroup, as every shader has them.
pub const GROUP: u32 = 64;
/// Workgroups along the first axis, the twin of `GROUPS` in `shaders/prelude.wgsl`; adapters have 65,535 per axis.
const GROUPS: u32 = 32_768;
/// The smallest buffer that is bound: an empty one is refused.
const LEAST_BYTES: u64 = 16;

/// How long a wait lasts before it looks whether the call was cancelled.
const SLICE: Duration = Duration::from_millis(20);

/// Work that is being recorded.
///
/// Memory that is let go serves what is recorded after it: the device works in order.
pub struct Recorder<'a> {
    gpu: &'a Gpu,
    encoder: CommandEncoder,
    spare: Spare,
    bytes: u64,
}

impl<'a> Recorder<'a> {
    pub fn new(gpu: &'a Gpu) -> Self {
        Recorder { gpu, encoder: new_encoder(gpu), spare: Spare::default(), bytes: 0 }
    }

    /// A copy of numbers on the device, there before anything that is recorded runs.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn upload<T: Pod>(&mut self, what: &'static str, numbers: &[T]) -> Result<OnDevice, GpuError> {
        let made = self.lasting(what, size_of_val(numbers) as u64)?;
        self.write(&made, 0, cast_slice(numbers));
        Ok(made)
    }

    /// Copies bytes, a multiple of four of them, to memory from a place on.
    pub fn write(&self, memory: &OnDevice, at: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.gpu.queue.write_buffer(memory.buffer(), at, bytes);
            self.gpu.carried.uploaded_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    }

    /// The shaders that take the workgroup memory which the adapter has.
    pub fn sharing(&self) -> Sharing {
        self.gpu.sharing
    }

    /// As [`Gpu::opening`].
    pub fn opening(&self) -> u64 {
        self.gpu.opening()
    }

    /// Memory on the device with any contents.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn scratch(&mut self, what: &'static str, bytes: u64) -> Result<OnDevice, GpuError> {
        match self.spare.take(bytes) {
            Some(found) => Ok(found),
            None => Ok(self.lasting(what, bytes)?.lent_by(&self.spare)),
        }
    }

    /// Memory on the device that may be kept for later calls, zeros at first.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn lasting(&mut self, what: &'static str, bytes: u64) -> Result<OnDevice, GpuError> {
        let limit = self.gpu.max_binding();
        if bytes > limit {
            return Err(GpuError::TooLarge { what, bytes, limit });
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        self.bytes += bytes;
        Ok(OnDevice::new(self.held(what, bytes.max(LEAST_BYTES), usage)?, bytes))
    }

    /// A buffer that counts as used. Where there is no room, what has been let go is waited for once: the device frees it
    /// after the work that reads it.
    fn held(&mut self, what: &'static str, bytes: u64, usage: BufferUsages) -> Result<Held, GpuError> {
        if !self.gpu.memory.has_room(bytes) {
            return Err(self.gpu.out_of_memory(bytes));
        }
        let made = self.try_buffer(what, bytes, usage).or_else(|| {
            self.submit();
            self.gpu.wait();
            self.try_buffer(what, bytes, usage)
        });
        made.map(|buffer| self.gpu.memory.hold(buffer)).ok_or_else(|| self.gpu.out_of_memory(self.bytes))
    }

    /// A buffer, where the driver has room for it.
    fn try_buffer(&self, what: &'static str, bytes: u64, usage: BufferUsages) -> Option<Buffer> {
        let scope = self.gpu.device.push_error_scope(ErrorFilter::OutOfMemory);
        let buffer = self.buffer(what, bytes, usage);
        let fault = pollster::block_on(scope.pop());
        fault.is_none().then_some(buffer)
    }

    /// Copies bytes `[from, from + bytes]` of one memory to another.
    pub fn copy(&mut self, (from, first): (&OnDevice, u64), (to, at): (&OnDevice, u64), bytes: u64) {
        if bytes > 0 {
            self.encoder.copy_buffer_to_buffer(from.buffer(), first, to.buffer(), at, bytes);
        }
    }

    /// Fills memory with zeros.
    pub fn clear(&mut self, memory: &OnDevice) {
        self.encoder.clear_buffer(memory.buffer(), 0, None);
    }

    /// Runs a shader after everything recorded before.
    pub fn dispatch<U: Uniform>(&mut self, kernel: Kernel, sizes: U, bindings: &[&OnDevice]) {
        if sizes.invocations() == 0 {
            return;
        }
        let uniform = self.buffer("sizes", size_of::<U>() as u64, BufferUsages::UNIFORM | BufferUsages::COPY_DST);
        self.gpu.queue.write_buffer(&uniform, 0, bytemuck::bytes_of(&sizes));
        let compiled = self.gpu.kernel(kernel);
        let buffers = std::iter::once(&uniform).chain(bindings.iter().map(|bound| bound.buffer()));
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group = self.gpu.device.create_bind_group(&BindGroupDescriptor {
            label: None,
            layout: &compiled.layout,
            entries: &entries,
        });
        let groups = sizes.invocations().div_ceil(GROUP);
        let mut pass = self.encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&compiled.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(groups.min(GROUPS), groups.div_ceil(GROUPS), 1);
    }

    /// Lets the device start with what was recorded so far; what follows waits for it.
    pub fn submit(&mut self) {
        let recorded = std::mem::replace(&mut self.encoder, new_encoder(self.gpu));
        hand_over(self.gpu, recorded);
    }

    /// Submits everything, waits, and reads numbers back.
    ///
    /// # Errors
    /// [`GpuError::Lost`], [`GpuError::OutOfMemory`], [`GpuError::Refused`], [`GpuError::Unreliable`];
    /// [`GpuError::Interrupted`] where the call was cancelled meanwhile: the device ends its work unheard.
    pub fn read_back(mut self, wanted: &[&OnDevice], cancel: &AtomicBool) -> Result<Vec<Vec<f32>>, GpuError> {
        // A word that the device has to carry through: some drivers answer with zeros instead of an error.
        let word = canary();
        let canary = self.upload("canary", &[word; 4])?;
        let total = wanted.iter().map(|from| from.bytes).sum::<u64>();
        let held = self.held("read back", total + 16, BufferUsages::COPY_DST | BufferUsages::MAP_READ)?;
        let staging = held.buffer();
        let mut at = 0;
        for from in wanted.iter().filter(|from| from.bytes > 0).chain([&&canary]) {
            self.encoder.copy_buffer_to_buffer(from.buffer(), 0, staging, at, from.bytes);
            at += from.bytes;
        }
        let Recorder { gpu, encoder, bytes, .. } = self;
        hand_over(gpu, encoder);
        staging.map_async(MapMode::Read, .., |_| {});
        let waited = loop {
            let wait = PollType::Wait { submission_index: None, timeout: Some(SLICE) };
            match gpu.device.poll(wait) {
                Err(PollError::Timeout) if cancel.load(Ordering::Relaxed) => return Err(GpuError::Interrupted),
                Err(PollError::Timeout) => {}
                waited => break waited,
            }
        };
        if let Some(fault) = gpu.take_faults().into_iter().next() {
            return Err(match fault {
                GpuError::OutOfMemory { .. } => gpu.out_of_memory(bytes),
                other => other,
            });
        }
        let lost = |error: &dyn std::fmt::Display| GpuError::Lost { detail: error.to_string() };
        waited.map_err(|error| lost(&error))?;
        let view = staging.get_mapped_range(..).map_err(|error| lost(&error))?;
        gpu.carried.read_backs.fetch_add(1, Ordering::Relaxed);
        gpu.carried.read_back_bytes.fetch_add(total, Ordering::Relaxed);
        split(&view, wanted.iter().map(|from| from.bytes as usize), word)
    }

    fn buffer(&self, label: &'static str, size: u64, usage: BufferUsages) -> Buffer {
        self.gpu.device.create_buffer(&BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
    }
}

/// The numbers of each memory in what was read back, which ends with the word that went there and back.
///
/// # Errors
/// [`GpuError::Unreliable`] where it does not.
fn split(view: &[u8], byte_counts: impl Iterator<Item = usize>, word: u32) -> Result<Vec<Vec<f32>>, GpuError> {
    let (mut rest, end) = view.split_at(view.len() - 16);
    if end.chunks_exact(4).any(|found| found != word.to_ne_bytes()) {
        return Err(GpuError::Unreliable);
    }
    let own = byte_counts.map(|bytes| {
        let (own, others) = rest.split_at(bytes);
        rest = others;
        bytemuck::pod_collect_to_vec(own)
    });
    Ok(own.collect())
}

fn hand_over(gpu: &Gpu, recorded: CommandEncoder) {
    gpu.queue.submit([recorded.finish()]);
    gpu.carried.submissions.fetch_add(1, Ordering::Relaxed);
}

fn new_encoder(gpu: &Gpu) -> CommandEncoder {
    gpu.device.create_command_encoder(&CommandEncoderDescriptor { label: Some("protperf") })
}

/// Another word for each submission, never zero.
fn canary() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_in_the_place_of_an_answer_are_an_error() {
        let word = canary();
        let mut view: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|x| x.to_ne_bytes()).collect();
        view.extend([word.to_ne_bytes(); 4].as_flattened());
        assert_eq!(split(&view, [8, 0, 4].into_iter(), word), Ok(vec![vec![1.0, 2.0], vec![], vec![3.0]]));
        // The word of an earlier call, zeros of a driver that lost everything, or only the end.
        assert_eq!(split(&view, [12].into_iter(), canary()), Err(GpuError::Unreliable));
        assert_eq!(split(&[0; 28], [12].into_iter(), word), Err(GpuError::Unreliable));
        *view.last_mut().unwrap() ^= 1;
        assert_eq!(split(&view, [12].into_iter(), word), Err(GpuError::Unreliable));
    }
}
