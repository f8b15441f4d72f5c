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
    /// The device ran out of memory.
    OutOfMemory {
        /// Size of the buffers of the call in bytes.
        bytes: u64,
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
            GpuError::NoDevice { adapter, detail } => write!(f, "the GPU {adapter} could not be opened: {detail}"),
            GpuError::TooLarge { what, bytes, limit } => write!(
                f,
                "{what}: {bytes} bytes are needed in one buffer and this GPU binds at most {limit}; take shorter \
                 sequences or fewer features, or compute on the CPU"
            ),
            GpuError::TooMany { what, found, limit } => {
                write!(f, "{what}: {found} are more than the {limit} that shaders count to; compute on the CPU")
            }
            GpuError::OutOfMemory { bytes } => write!(f, "the GPU has no room for {bytes} bytes"),
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
            GpuError::OutOfMemory { bytes } => {
                Error::OutOfMemory { bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }
            }
            GpuError::Interrupted => Error::Interrupted,
            other => Error::Device { detail: other.to_string() },
        }
    }
}
