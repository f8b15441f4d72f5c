//! Why a call on the GPU failed.

use protperf_core::Error;
use std::fmt;

/// Why a call on the GPU failed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum GpuError {
    /// `PROTPERF_GPU=off`.
    SwitchedOff,
    /// No adapter was found, or none that is chosen without being asked for.
    NoAdapter {
        /// Adapters that compute on the processor; they have to be asked for by name.
        on_processor: Vec<String>,
    },
    /// `PROTPERF_GPU` names an adapter that is not there.
    UnknownAdapter {
        /// What was asked for.
        requested: String,
        /// The adapters there are.
        available: Vec<String>,
    },
    /// `PROTPERF_GPU` is an index beyond the adapters.
    UnknownIndex {
        /// What was asked for.
        requested: String,
        /// The adapters there are.
        available: Vec<String>,
    },
    /// An adapter gave no device.
    NoDevice {
        /// The adapter.
        adapter: String,
        /// What its driver said.
        detail: String,
    },
    /// One buffer of a call is larger than the adapter binds.
    TooLarge {
        /// What the buffer holds.
        what: &'static str,
        /// Its size in bytes.
        bytes: u64,
        /// The adapter's limit in bytes.
        limit: u64,
    },
    /// A size is beyond what one invocation of a shader may count to; some drivers stop there without a word.
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there may be.
        limit: usize,
    },
    /// The device has no room, or the budget has none.
    OutOfMemory {
        /// The adapter.
        adapter: String,
        /// What there was no room for, in bytes.
        bytes: u64,
        /// What this process uses of the device's memory, in bytes.
        used: u64,
        /// What `PROTPERF_GPU_MEMORY` allows, in bytes, where it says something.
        budget: Option<u64>,
    },
    /// The host has no room for what is to be carried to the device.
    OutOfHostMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The driver refused an operation, or a shader did not compile: a fault of ours or of the driver.
    Refused {
        /// What the driver said.
        detail: String,
    },
    /// The device was lost; the next call opens it anew.
    Lost {
        /// What the driver said.
        detail: String,
    },
    /// Something was on a device that is not there any more: it was lost, or is that of the process before a fork.
    Gone {
        /// What it was, as the subject of a sentence.
        what: &'static str,
        /// What brings it back.
        remedy: &'static str,
    },
    /// `PROTPERF_GPU_MEMORY` is not a number of bytes.
    UnknownBudget {
        /// What it is.
        found: String,
    },
    /// The caller's wish to stop.
    Interrupted,
    /// The device answered with other data than it was given: its driver loses writes.
    Unreliable,
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuError::SwitchedOff => write!(f, "the GPU is switched off by PROTPERF_GPU=off"),
            GpuError::NoAdapter { on_processor } if on_processor.is_empty() => write!(
                f,
                "no GPU was found; install its Vulkan driver (on Debian and Ubuntu the packages libvulkan1 and \
                 mesa-vulkan-drivers, or the vendor's)"
            ),
            GpuError::NoAdapter { on_processor } => write!(
                f,
                "no GPU was found, only adapters that compute on the processor, slowly: {}; to use one set PROTPERF_GPU \
                 to its name",
                on_processor.join(", ")
            ),
            GpuError::UnknownAdapter { requested, available } => {
                write!(f, "PROTPERF_GPU={requested:?} is none of the adapters: {}", available.join(", "))
            }
            GpuError::UnknownIndex { requested, available } => write!(
                f,
                "PROTPERF_GPU={requested}: no adapter has the index {requested}; choose one of {}",
                available.join(", ")
            ),
            GpuError::NoDevice { adapter, detail } => write!(f, "the GPU {adapter} could not be opened: {detail}"),
            GpuError::TooLarge { what, bytes, limit } => write!(
                f,
                "{what}: {bytes} bytes are needed in one buffer and this GPU binds at most {limit}; take shorter \
                 sequences or fewer features, or compute on the CPU"
            ),
            GpuError::TooMany { what, found, limit } => {
                write!(f, "{what}: {found} are more than the {limit} that shaders count to; compute on the CPU")
            }
            GpuError::OutOfMemory { adapter, bytes, used, budget: Some(budget) } => write!(
                f,
                "the GPU {adapter} has no room for {bytes} bytes: {used} are used of the {budget} that PROTPERF_GPU_MEMORY \
                 allows; allow more, or compute on the CPU"
            ),
            GpuError::OutOfMemory { adapter, bytes, used, budget: None } => write!(
                f,
                "the GPU {adapter} has no room for {bytes} bytes: this process uses {used}, and PROTPERF_GPU_MEMORY sets no \
                 limit; end what else uses this GPU, or compute on the CPU"
            ),
            GpuError::OutOfHostMemory { bytes } => Error::OutOfMemory { bytes: *bytes }.fmt(f),
            GpuError::Refused { detail } => write!(f, "the GPU refused a call, please report it: {detail}"),
            GpuError::Lost { detail } => write!(f, "the GPU was lost: {detail}; the next call opens it anew"),
            GpuError::Gone { what, remedy } => write!(
                f,
                "{what} lies on a GPU that was lost, or that the process opened before it was forked; {remedy}"
            ),
            GpuError::UnknownBudget { found } => {
                write!(f, "PROTPERF_GPU_MEMORY is {found:?}; give bytes, or a number with K, M or G, such as 4G")
            }
            GpuError::Interrupted => Error::Interrupted.fmt(f),
            GpuError::Unreliable => write!(f, "the GPU lost data that it was given: update its driver"),
        }
    }
}

impl std::error::Error for GpuError {}

impl From<GpuError> for Error {
    fn from(error: GpuError) -> Self {
        match error {
            GpuError::OutOfMemory { .. } => Error::DeviceOutOfMemory { detail: error.to_string() },
            GpuError::OutOfHostMemory { bytes } => Error::OutOfMemory { bytes },
            GpuError::Interrupted => Error::Interrupted,
            other => Error::Device { detail: other.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protperf_core::ErrorKind;

    #[test]
    fn a_gpu_without_room_is_named_and_so_is_what_limits_it() {
        let full = |budget| GpuError::OutOfMemory { adapter: "RTX 4060".into(), bytes: 70, used: 50, budget };
        for (budget, limit) in [(Some(100), "50 are used of the 100"), (None, "this process uses 50")] {
            let error = Error::from(full(budget));
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            let message = error.to_string();
            for part in ["the GPU RTX 4060 has no room for 70 bytes", limit, "PROTPERF_GPU_MEMORY", "; "] {
                assert!(message.contains(part), "{message}");
            }
        }
        assert_eq!(Error::from(GpuError::OutOfHostMemory { bytes: 9 }), Error::OutOfMemory { bytes: 9 });
    }
}
