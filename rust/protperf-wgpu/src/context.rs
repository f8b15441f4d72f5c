//! The one open device of this process.
//!
//! It is opened at the first call and kept. Calls take turns: a GPU has one queue, and errors that the driver reports
//! late then belong to the call that is running. A lost device is forgotten and opened anew by the next call. In a forked
//! child the parent's device can be neither used nor closed (its driver hangs), so it is left alone and another is opened.

use crate::adapters::chosen_adapter;
use crate::error::GpuError;
use crate::kernels::{Kernel, Kernels};
use crate::memory::Account;
use std::mem::forget;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu::{Device, DeviceDescriptor, ExperimentalFeatures, Features, Limits, MemoryHints, Queue, Trace};

/// An open device with its compiled shaders.
pub struct Gpu {
    pub device: Device,
    pub queue: Queue,
    kernels: Kernels,
    /// The shaders that take the workgroup memory which the adapter has.
    pub(crate) sharing: Sharing,
    adapter: String,
    /// What of its memory is used.
    pub(crate) memory: Account,
    /// What was carried to it and back.
    pub(crate) carried: Carried,
    faults: Arc<Mutex<Vec<GpuError>>>,
    /// Whether nothing was reported so far but a lack of memory.
    is_whole: AtomicBool,
    process: u32,
    opening: u64,
}

/// What the open device was asked to carry.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    pub uploaded_bytes: AtomicU64,
    pub submissions: AtomicU64,
    pub read_backs: AtomicU64,
    pub read_back_bytes: AtomicU64,
}

/// What the open device of this process has carried and holds; all zeros where none is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that were carried to the device.
    pub uploaded_bytes: u64,
    /// How often recorded work was handed to the device.
    pub submissions: u64,
    /// How often the host waited for numbers of the device.
    pub read_backs: u64,
    /// Bytes that were carried back.
    pub read_back_bytes: u64,
    /// Bytes of the device's memory that are used.
    pub used_bytes: u64,
}

/// The shaders whose invocations share what they read in workgroup memory, and how much of it they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sharing {
    pub bytes: u32,
    pub project: Kernel,
    pub summarize: Kernel,
    pub read: Kernel,
    pub linear: Kernel,
}

impl Sharing {
    /// Those for an adapter that has so much; every one has 16 KB.
    fn within(bytes: u32) -> Self {
        match bytes >> 10 {
            32.. => Sharing {
                bytes: 32 << 10,
                project: Kernel::Project32,
                summarize: Kernel::Summarize32,
                read: Kernel::Read32,
                linear: Kernel::Linear32,
            },
            _ => Sharing {
                bytes: 16 << 10,
                project: Kernel::Project16,
                summarize: Kernel::Summarize16,
                read: Kernel::Read16,
                linear: Kernel::Linear16,
            },
        }
    }
}

static OPENINGS: AtomicU64 = AtomicU64::new(0);

static OPEN: Mutex<Option<Gpu>> = Mutex::new(None);

/// Runs `body` with the device, which is opened where it is not; other threads wait.
///
/// # Errors
/// As [`chosen_adapter`]; [`GpuError::NoDevice`]; what `body` returns; what the driver reported meanwhile.
pub fn with_gpu<R, E: From<GpuError>>(body: impl FnOnce(&Gpu) -> Result<R, E>) -> Result<R, E> {
    let mut open = locked(&OPEN);
    if let Some(inherited) = open.take_if(|gpu| gpu.process != std::process::id()) {
        forget(inherited);
    }
    let gpu = match open.take() {
        Some(gpu) => gpu,
        None => Gpu::open()?,
    };
    let outcome = gpu.memory.read_budget().map_err(E::from).and_then(|()| body(&gpu));
    let fault = gpu.take_faults().into_iter().next();
    // A shader that did not compile stays broken, and what is lost stays lost.
    if gpu.is_whole.load(Ordering::Relaxed) {
        *open = Some(gpu);
    }
    match fault {
        Some(fault) => Err(fault.into()),
        None => outcome,
    }
}

/// What the open device has carried and holds. Waits while a call computes.
pub fn traffic() -> Traffic {
    let open = locked(&OPEN);
    let Some(gpu) = open.as_ref().filter(|gpu| gpu.process == std::process::id()) else { return Traffic::default() };
    Traffic {
        uploaded_bytes: gpu.carried.uploaded_bytes.load(Ordering::Relaxed),
        submissions: gpu.carried.submissions.load(Ordering::Relaxed),
        read_backs: gpu.carried.read_backs.load(Ordering::Relaxed),
        read_back_bytes: gpu.carried.read_back_bytes.load(Ordering::Relaxed),
        used_bytes: gpu.memory.used(),
    }
}

impl Gpu {
    pub(crate) fn open() -> Result<Self, GpuError> {
        Self::open_with(u64::MAX, u32::MAX)
    }

    /// A device that binds buffers of at most so many bytes, and has at most so much workgroup memory, as other adapters do.
    pub(crate) fn open_with(most_bound: u64, most_shared: u32) -> Result<Self, GpuError> {
        let adapter = chosen_adapter()?;
        let limits = adapter.limits();
        let sharing = Sharing::within(limits.max_compute_workgroup_storage_size.min(most_shared));
        // No more than is needed: the driver then enforces everywhere what the weakest adapter has.
        let required_limits = Limits {
            max_buffer_size: limits.max_buffer_size,
            max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size.min(most_bound),
            max_compute_workgroup_storage_size: sharing.bytes,
            ..Limits::default()
        };
        let descriptor = DeviceDescriptor {
            label: Some("protperf"),
            required_features: Features::empty(),
            required_limits,
            experimental_features: ExperimentalFeatures::disabled(),
            memory_hints: MemoryHints::MemoryUsage,
            trace: Trace::Off,
        };
        let no_device = |error: wgpu::RequestDeviceError| GpuError::NoDevice {
            adapter: adapter.get_info().name,
            detail: error.to_string(),
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(no_device)?;
        let faults = Arc::new(Mutex::new(Vec::new()));
        let name = adapter.get_info().name;
        let (reported, named) = (Arc::clone(&faults), name.clone());
        device.on_uncaptured_error(Arc::new(move |error| locked(&reported).push(fault(&named, &error))));
        let reported = Arc::clone(&faults);
        device.set_device_lost_callback(move |reason, detail| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                locked(&reported).push(GpuError::Lost { detail });
            }
        });
        let opening = OPENINGS.fetch_add(1, Ordering::Relaxed);
        Ok(Gpu {
            device,
            queue,
            kernels: Kernels::default(),
            sharing,
            adapter: name,
            memory: Account::default(),
            carried: Carried::default(),
            faults,
            is_whole: AtomicBool::new(true),
            process: std::process::id(),
            opening,
        })
    }

    /// A compiled shader.
    pub fn kernel(&self, kernel: Kernel) -> &crate::kernels::Compiled {
        self.kernels.get(&self.device, kernel)
    }

    /// The largest buffer that a shader may bind, in bytes.
    pub fn max_binding(&self) -> u64 {
        let limits = self.device.limits();
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
    }

    /// That there is no room for so many bytes.
    pub(crate) fn out_of_memory(&self, bytes: u64) -> GpuError {
        let (used, budget) = (self.memory.used(), self.memory.budget());
        GpuError::OutOfMemory { adapter: self.adapter.clone(), bytes, used, budget }
    }

    /// Another number for each device that was opened: what lies on one of them is of no use to the others.
    pub fn opening(&self) -> u64 {
        self.opening
    }

    /// Refuses a device that something does not lie on.
    ///
    /// # Errors
    /// [`GpuError::Gone`].
    pub fn check_opening(&self, opening: u64, what: &'static str, remedy: &'static str) -> Result<(), GpuError> {
        if opening == self.opening { Ok(()) } else { Err(GpuError::Gone { what, remedy }) }
    }

    /// Waits until the device has nothing left to do, so that memory which was given back is free.
    pub fn wait(&self) {
        // What goes wrong meanwhile, the next call that reads back reports.
        let _ = self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: None });
    }

    /// What the driver has reported since the last look.
    pub fn take_faults(&self) -> Vec<GpuError> {
        let faults = std::mem::take(&mut *locked(&self.faults));
        // What is refused after a lack of memory is what would have used that memory.
        let is_excused = |fault: &GpuError| matches!(fault, GpuError::OutOfMemory { .. } | GpuError::Refused { .. });
        let lacks_memory = matches!(faults.first(), Some(GpuError::OutOfMemory { .. }));
        if !(faults.is_empty() || lacks_memory && faults.iter().all(is_excused)) {
            self.is_whole.store(false, Ordering::Relaxed);
        }
        faults
    }
}

fn fault(adapter: &str, error: &wgpu::Error) -> GpuError {
    match error {
        wgpu::Error::OutOfMemory { .. } => {
            GpuError::OutOfMemory { adapter: adapter.to_owned(), bytes: 0, used: 0, budget: None }
        }
        other => GpuError::Refused { detail: other.to_string() },
    }
}

/// The lock, also after a panic of another call: what it guards is whole between any two statements.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a test that needs a GPU is skipped, which is a failure where `PROTPERF_REQUIRE_GPU` says so.
#[cfg(test)]
pub(crate) fn no_gpu_to_test() -> bool {
    let (_, fault) = crate::adapters();
    fault.is_some_and(|fault| {
        assert!(std::env::var("PROTPERF_REQUIRE_GPU").is_err(), "{fault}");
        println!("skipped: {fault}");
        true
    })
}

/// Held by tests that make the open device useless, which the others would see.
#[cfg(test)]
pub(crate) static ALONE: Mutex<()> = Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    /// As `read_back` looks at what was reported, and as a call does that ends without reading back.
    #[test]
    fn a_lost_device_is_opened_anew_by_the_next_call_and_one_without_memory_is_kept() {
        if no_gpu_to_test() {
            return;
        }
        let _alone = locked(&ALONE);
        let opening = || with_gpu(|gpu| Ok::<_, GpuError>(gpu.opening())).unwrap();
        let report = |fault: GpuError, is_seen: bool| {
            with_gpu(|gpu| {
                locked(&gpu.faults).push(fault);
                let seen = if is_seen { gpu.take_faults().pop() } else { None };
                seen.map_or(Ok(()), Err)
            })
        };
        for is_seen in [false, true] {
            let first = opening();
            let lost = GpuError::Lost { detail: "its cable was pulled".into() };
            assert_eq!(report(lost.clone(), is_seen), Err(lost));
            let second = opening();
            assert!(second > first);
            let no_memory = with_gpu(|gpu| Ok::<_, GpuError>(gpu.out_of_memory(5))).unwrap();
            assert_eq!(report(no_memory.clone(), is_seen), Err(no_memory));
            assert_eq!(opening(), second);
        }
    }
}
