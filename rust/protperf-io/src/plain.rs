//! Plain files from untrusted sources, such as those of a checkpoint: no link is followed, no pipe is waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use crate::map::Mapping;

/// A plain file, open for reading.
#[derive(Debug)]
pub struct PlainFile {
    file: File,
    len: u64,
}

/// Why a plain file could not be opened.
#[derive(Debug)]
pub enum PlainFault {
    /// What the system says.
    System(io::Error),
    /// A symbolic link.
    Link(io::Error),
    /// A directory, a pipe, a device or a socket.
    NotPlain,
}

impl PlainFile {
    /// Opens a file, which must be a plain one.
    ///
    /// # Errors
    /// [`PlainFault`].
    pub fn open(path: &Path) -> Result<Self, PlainFault> {
        let file = options().open(path).map_err(|error| match error.raw_os_error() {
            Some(code) if is_link_error(code) => PlainFault::Link(error),
            _ => PlainFault::System(error),
        })?;
        let facts = file.metadata().map_err(PlainFault::System)?;
        if !facts.is_file() {
            return Err(PlainFault::NotPlain);
        }
        Ok(PlainFile { file, len: facts.len() })
    }

    /// Bytes that it had when it was opened.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Its contents; `None` where it has more than `most` bytes.
    ///
    /// # Errors
    /// The system's, [`io::ErrorKind::OutOfMemory`] among them.
    pub fn read(&mut self, most: usize) -> io::Result<Option<Vec<u8>>> {
        let mut data = Vec::new();
        data.try_reserve(most.min(usize::try_from(self.len).unwrap_or(most)).saturating_add(1))?;
        (&self.file).take(most as u64 + 1).read_to_end(&mut data)?;
        Ok(if data.len() > most { None } else { Some(data) })
    }

    /// Its contents in memory that all processes share which map it.
    ///
    /// A process that shortens the file in the meantime ends this one with SIGBUS, so this is for files that are
    /// replaced and removed but never written to again.
    ///
    /// # Errors
    /// The system's.
    pub fn map(&self) -> io::Result<MappedFile> {
        Mapping::of(&self.file).map(MappedFile)
    }
}

/// The contents of a file in shared memory. Another process may change a byte at any time: judge what was copied.
pub struct MappedFile(Mapping);

impl MappedFile {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

#[cfg(unix)]
fn options() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    // Without O_NONBLOCK, opening a pipe would wait until something writes to it.
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
    options
}

#[cfg(unix)]
fn is_link_error(code: i32) -> bool {
    code == libc::ELOOP
}

#[cfg(not(unix))]
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    options
}

#[cfg(not(unix))]
fn is_link_error(_: i32) -> bool {
    false
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_are_opened_and_only_small_ones_are_read() {
        let folder = std::env::temp_dir().join(format!("protperf-plain-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (file, link) = (folder.join("file"), folder.join("link"));
        std::fs::write(&file, b"abc").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut opened = PlainFile::open(&file).unwrap();
        assert_eq!((opened.len(), opened.map().unwrap().bytes()), (3, &b"abc"[..]));
        assert_eq!(opened.read(3).unwrap().as_deref(), Some(&b"abc"[..]));
        assert_eq!(PlainFile::open(&file).unwrap().read(2).unwrap(), None);
        assert!(matches!(PlainFile::open(&link), Err(PlainFault::Link(_))));
        assert!(matches!(PlainFile::open(&folder), Err(PlainFault::NotPlain)));
        assert!(matches!(PlainFile::open(&folder.join("none")), Err(PlainFault::System(_))));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
