//! The memory map: the only `unsafe` of this crate.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// The bytes of a file as they stand in memory.
pub(crate) struct Mapping(Mmap);

impl Mapping {
    /// Map the whole file for reading.
    ///
    /// # Errors
    /// The system's, for example for a pipe.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private and read-only, and does not outlive the value that owns it. No process can keep
        // another one from changing the file in the meantime. A changed byte is data like any other: the scanner
        // judges each byte when it reads it and never relies on one that it has read before. A file that is shortened
        // ends the process with SIGBUS, so mapping is not the default, and the documentation of its option says this.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
