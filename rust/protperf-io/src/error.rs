//! What can go wrong between a path and a record: faults of the system and of the data.

use std::{error, fmt, io};

use protperf_core::fasta::FastaError;

use crate::Compression;

/// Why reading stopped. Every variant but [`Self::Interrupted`] names the input.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// The operating system refused: a missing file, no permission, a directory, a failing disk.
    Io {
        /// The path as given, `<stdin>` for standard input.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The size or the modification time of the file changed between opening it and reaching its end.
    Changed {
        /// The path as given.
        path: String,
    },
    /// Standard input was named more than once.
    RepeatedStdin,
    /// The compressed data cannot be decompressed.
    Compressed {
        /// The path as given.
        path: String,
        /// The compression that its first bytes show.
        compression: Compression,
        /// What is wrong.
        fault: CompressionFault,
    },
    /// An archive or compression that is not supported.
    Unsupported {
        /// The path as given.
        path: String,
        /// Its name.
        name: &'static str,
    },
    /// The content is not FASTA, or a record breaks the residue policy.
    Fasta {
        /// The path as given.
        path: String,
        /// The fault and its position.
        error: FastaError,
    },
    /// The caller's [`crate::Interrupt`] decided to stop.
    Interrupted,
}

/// What is wrong with compressed data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompressionFault {
    /// The data ends before its end mark.
    Truncated,
    /// A checksum or a code is wrong; the text is the decoder's.
    Corrupt(String),
    /// Bytes after the last member that do not start another.
    TrailingData,
    /// Decompression would need a larger window than [`crate::WINDOW_LIMIT`].
    Window,
}

impl ReadError {
    /// The input's path as given; `None` where the fault is not one input's.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Io { path, .. }
            | Self::Changed { path }
            | Self::Compressed { path, .. }
            | Self::Unsupported { path, .. }
            | Self::Fasta { path, .. } => Some(path),
            Self::RepeatedStdin | Self::Interrupted => None,
        }
    }
}

impl fmt::Display for CompressionFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("data ends too early; the file is cut short, fetch it again"),
            Self::Corrupt(detail) => write!(f, "data is corrupt ({detail}); fetch the file again"),
            Self::TrailingData => f.write_str("data is followed by other bytes; fetch the file again"),
            Self::Window => write!(
                f,
                "data needs a window of more than {} MiB; compress it again without --long or --ultra",
                crate::WINDOW_LIMIT >> 20
            ),
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, source } => write!(f, "{path}: {source}"),
            Self::Changed { path } => {
                write!(f, "{path}: changed while it was read; run again when it is complete")
            }
            Self::RepeatedStdin => f.write_str("standard input ('-') can be read only once; name it once"),
            Self::Compressed { path, compression, fault } => write!(f, "{path}: {} {fault}", compression.name()),
            Self::Unsupported { path, name } => write!(f, "{path}: {name} is not supported; unpack it first"),
            Self::Fasta { path, error } => write!(f, "{path}:{error}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl error::Error for ReadError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Fasta { error, .. } => Some(error),
            _ => None,
        }
    }
}
