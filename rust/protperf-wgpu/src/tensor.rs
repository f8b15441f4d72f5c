//! Tensors that stay on the device between calls.

use crate::context::{Gpu, with_gpu};
use crate::error::GpuError;
use crate::memory::OnDevice;
use crate::recorder::Recorder;
use bytemuck::cast_slice;
use std::sync::atomic::AtomicBool;

/// How numbers of a tensor are stored; all are computed with in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    /// 32 bits.
    Float32,
    /// IEEE's half precision, two numbers in a word.
    Float16,
    /// The upper half of an f32, two numbers in a word.
    BFloat16,
}

impl StoredAs {
    /// Every type.
    pub const ALL: [StoredAs; 3] = [StoredAs::Float32, StoredAs::Float16, StoredAs::BFloat16];

    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            StoredAs::Float32 => "float32",
            StoredAs::Float16 => "float16",
            StoredAs::BFloat16 => "bfloat16",
        }
    }

    /// Bytes of a number.
    pub fn size(self) -> usize {
        if self == StoredAs::Float32 { 4 } else { 2 }
    }

    /// The number by which the shaders know the type: the twin of the constants in `shaders/tensor/prelude.wgsl`.
    pub(crate) fn number(self) -> u32 {
        match self {
            StoredAs::Float32 => 0,
            StoredAs::Float16 => 1,
            StoredAs::BFloat16 => 2,
        }
    }
}

/// A tensor on the device, contiguous. Its memory is given back when it is dropped.
pub struct DeviceTensor {
    pub(crate) memory: OnDevice,
    shape: Vec<usize>,
    stored: StoredAs,
    /// Which opening of the device it lies on.
    opening: u64,
}

impl DeviceTensor {
    /// Carries numbers to the device; `bytes` are those of the elements, row by row.
    ///
    /// # Errors
    /// As [`with_gpu`]; [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    ///
    /// # Panics
    /// Where the bytes are not those of the shape.
    pub fn upload(bytes: &[u8], shape: &[usize], stored: StoredAs) -> Result<Self, GpuError> {
        assert!(bytes.len() == shape.iter().product::<usize>() * stored.size(), "bytes of another shape");
        with_gpu(|gpu| {
            let mut recorder = Recorder::new(gpu);
            let whole = bytes.len() / 4 * 4;
            let memory = recorder.lasting("tensor", (bytes.len() as u64).next_multiple_of(4))?;
            recorder.write(&memory, 0, &bytes[..whole]);
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            recorder.write(&memory, whole as u64, if whole < bytes.len() { &last } else { &[] });
            // What is carried over waits in memory of the host until something is submitted.
            recorder.submit();
            Ok(DeviceTensor { memory, shape: shape.to_vec(), stored, opening: gpu.opening() })
        })
    }

    /// The bytes of the elements, row by row.
    ///
    /// # Errors
    /// [`GpuError::Gone`]; as [`with_gpu`]; where the device failed or the caller cancelled.
    pub fn read(&self, cancel: &AtomicBool) -> Result<Vec<u8>, GpuError> {
        with_gpu(|gpu| {
            self.check(gpu)?;
            let words = Recorder::new(gpu).read_back(&[&self.memory], cancel)?;
            let mut bytes = words.first().map_or_else(Vec::new, |words| cast_slice(words).to_vec());
            bytes.truncate(self.len() * self.stored.size());
            Ok(bytes)
        })
    }

    /// Sizes of its axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How its numbers are stored.
    pub fn stored(&self) -> StoredAs {
        self.stored
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses a device that it does not lie on.
    pub(crate) fn check(&self, gpu: &Gpu) -> Result<(), GpuError> {
        gpu.check_opening(self.opening, "the tensor", "upload it again")
    }

    /// A tensor with any contents.
    pub(crate) fn scratch(recorder: &mut Recorder<'_>, shape: &[usize], stored: StoredAs) -> Result<Self, GpuError> {
        let bytes = (shape.iter().product::<usize>() * stored.size()) as u64;
        let memory = recorder.lasting("tensor", bytes.next_multiple_of(4))?;
        Ok(DeviceTensor { memory, shape: shape.to_vec(), stored, opening: recorder.opening() })
    }
}
