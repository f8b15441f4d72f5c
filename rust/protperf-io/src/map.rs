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
    /// The system's, such as for a pipe.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private and read-only, and lives no longer than the value that owns it. What no process
        // can rule out is another one that changes the file meanwhile: a change shows as other bytes, which the
        // scanner takes for data and judges one by one, never trusting a byte it has seen to stay; a truncation
        // ends the process with SIGBUS. So mapping is not the default, and its option states this.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
