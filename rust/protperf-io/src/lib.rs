//! Opens what the scanner of `protperf-core` reads: files, standard input, compressed or not; and the plain files of a
//! checkpoint.
//!
//! The compression is recognised by content and never by name, all members of a compressed file are read, and a file
//! that is cut short or corrupt is an error that names it. Memory is bounded by the batch size, the longest record and
//! a decompression window of at most [`WINDOW_LIMIT`] bytes. Invariant: the verdict on an input depends on its bytes
//! alone, not on how they arrive.

#![deny(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![warn(missing_docs)]

mod checksum;
mod decompress;
mod error;
mod map;
mod plain;
mod reader;
mod source;

pub use checksum::checksums;
pub use decompress::{Compression, WINDOW_LIMIT, decompress};
pub use error::{CompressionFault, ReadError};
pub use plain::{MappedFile, PlainFault, PlainFile};
pub use reader::{FileBatch, ReadOptions, Reader, Step, Summary};
pub use source::{Input, Interrupt, Source};
