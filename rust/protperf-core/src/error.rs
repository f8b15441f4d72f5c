//! One error type for the whole core: fields, not strings. The bindings map [`ErrorKind`] to exception classes.

use std::fmt;

/// What every fallible function here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which exception an [`Error`] becomes outside of Rust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Two arguments disagree on an axis, or a size is impossible.
    Shape,
    /// A value is outside of its range, or two options contradict each other.
    Config,
    /// A type that the operation does not take.
    Dtype,
    /// A backend or instruction set that this machine lacks.
    Device,
    /// An allocation failed.
    OutOfMemory,
    /// The caller asked to stop.
    Interrupted,
}

/// Why an operation was refused or stopped.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// Two arguments disagree on an axis.
    ShapeMismatch {
        /// The argument at fault.
        argument: &'static str,
        /// What was found and what was needed.
        detail: String,
    },
    /// A product of sizes does not fit in memory addresses.
    SizeOverflow {
        /// The argument or buffer whose size overflows.
        argument: &'static str,
    },
    /// An option has a value that the operation does not take.
    InvalidOption {
        /// The option at fault.
        argument: &'static str,
        /// What was found and what would mend it.
        detail: String,
    },
    /// An instruction set was forced that this processor lacks.
    UnsupportedIsa {
        /// The name asked for.
        requested: String,
        /// The names this processor has.
        available: String,
    },
    /// A device that was asked for is missing, was lost, or failed.
    Device {
        /// What happened and what would mend it.
        detail: String,
    },
    /// Tensors are stored in a type that a backend does not take.
    UnsupportedType {
        /// The backend asked for.
        backend: &'static str,
        /// The type of the tensors.
        found: &'static str,
        /// The types that it takes.
        taken: &'static str,
    },
    /// An allocation failed.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A device has no room.
    DeviceOutOfMemory {
        /// Which device, what there was no room for, and what would mend it.
        detail: String,
    },
    /// The caller's cancel flag was raised.
    Interrupted,
}

impl Error {
    /// The kind that decides the exception class.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::ShapeMismatch { .. } | Error::SizeOverflow { .. } => ErrorKind::Shape,
            Error::InvalidOption { .. } => ErrorKind::Config,
            Error::UnsupportedIsa { .. } | Error::Device { .. } => ErrorKind::Device,
            Error::UnsupportedType { .. } => ErrorKind::Dtype,
            Error::OutOfMemory { .. } | Error::DeviceOutOfMemory { .. } => ErrorKind::OutOfMemory,
            Error::Interrupted => ErrorKind::Interrupted,
        }
    }

    /// An argument whose sizes are wrong.
    pub fn shape(argument: &'static str, detail: impl Into<String>) -> Self {
        Error::ShapeMismatch { argument, detail: detail.into() }
    }

    /// An argument with a value that it cannot have.
    pub fn option(argument: &'static str, detail: impl Into<String>) -> Self {
        Error::InvalidOption { argument, detail: detail.into() }
    }

    /// An argument that names nothing there is.
    pub fn unknown_name(argument: &'static str, name: &str, known: &[&str]) -> Self {
        Self::option(argument, format!("{name:?} is unknown; choose one of {}", known.join(", ")))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::ShapeMismatch { argument, detail } | Error::InvalidOption { argument, detail } => {
                write!(f, "{argument} {detail}")
            }
            Error::SizeOverflow { argument } => write!(f, "{argument} has more elements than memory has addresses"),
            Error::UnsupportedIsa { requested, available } => {
                write!(f, "this processor has no {requested}; it has {available}")
            }
            Error::Device { detail } | Error::DeviceOutOfMemory { detail } => write!(f, "{detail}"),
            Error::UnsupportedType { backend, found, taken } => {
                write!(
                    f,
                    "backend {backend:?} computes on {taken}, not on {found}; convert the tensors or take backend=\"cpu\""
                )
            }
            Error::OutOfMemory { bytes } => write!(f, "could not allocate {bytes} bytes"),
            Error::Interrupted => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for Error {}
