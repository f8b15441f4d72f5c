//! Why a model cannot be loaded or run: a file is at fault, or what the core says.

use protperf_core::Error;
use protperf_io::PlainFault;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What every fallible function here returns.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

/// Why a model cannot be loaded or run.
#[derive(Debug)]
pub enum Fault {
    /// A file of a checkpoint is missing, damaged, incomplete or hostile.
    File {
        /// The file.
        path: PathBuf,
        /// The system's number, where the system refused.
        code: Option<i32>,
        /// What is wrong, in one short line of printable ASCII.
        what: String,
    },
    /// An argument, the memory, the processor, or the caller's wish to stop.
    Core(Error),
}

impl Fault {
    /// The fault of a file that exists and is wrong.
    pub(crate) fn broken(path: &Path, what: impl Into<String>) -> Self {
        Fault::File { path: path.into(), code: None, what: what.into() }
    }

    /// The fault of a file that the system cannot read.
    pub(crate) fn system(path: &Path, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::OutOfMemory && error.raw_os_error().is_none() {
            return Fault::Core(Error::OutOfMemory { bytes: 0 });
        }
        let text = error.to_string();
        // `code` has the number.
        let what = text.split(" (os error").next().unwrap_or_default();
        Fault::File { path: path.into(), code: error.raw_os_error(), what: what.into() }
    }

    /// The fault of a file that could not be opened.
    pub(crate) fn unopened(path: &Path, fault: PlainFault) -> Self {
        match fault {
            PlainFault::System(error) => Fault::system(path, &error),
            PlainFault::Link(error) => {
                Fault::File { path: path.into(), code: error.raw_os_error(), what: "is a symbolic link".into() }
            }
            PlainFault::NotPlain => Fault::broken(path, "is not a plain file"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::File { path, what, .. } => write!(f, "{}: {what}", path.display()),
            Fault::Core(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Fault {}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Core(error)
    }
}

#[cfg(feature = "wgpu")]
impl From<protperf_wgpu::GpuError> for Fault {
    fn from(error: protperf_wgpu::GpuError) -> Self {
        Fault::Core(error.into())
    }
}
