//! One input: it opens the file, recognises the compression and returns the bytes in pieces.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ReadError;
use crate::decompress::{Compression, MAGIC_LEN, decompress, fault_of, unsupported};
use crate::map::Mapping;

/// Bytes returned at once: large enough that the cost of a call vanishes, small enough for the cache.
pub(crate) const PIECE: usize = 1 << 17;

/// Where the bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file, a named pipe or a device.
    Path(PathBuf),
    /// Standard input.
    Stdin,
}

impl From<OsString> for Input {
    /// `-` is standard input.
    fn from(path: OsString) -> Self {
        if path == "-" { Self::Stdin } else { Self::Path(path.into()) }
    }
}

impl From<&str> for Input {
    fn from(path: &str) -> Self {
        OsString::from(path).into()
    }
}

impl Input {
    /// How messages name the input.
    pub fn label(&self) -> String {
        match self {
            Self::Path(path) => path.to_string_lossy().into_owned(),
            Self::Stdin => "<stdin>".into(),
        }
    }

    /// Fail early if the path is missing or a directory.
    pub(crate) fn check(&self) -> Result<(), ReadError> {
        let Self::Path(path) = self else { return Ok(()) };
        let refused = |source| ReadError::Io { path: self.label(), source };
        // The system's own error, so that it has the number that callers look at.
        const EISDIR: i32 = 21;
        match std::fs::metadata(path) {
            Err(error) => Err(refused(error)),
            Ok(metadata) if metadata.is_dir() => Err(refused(io::Error::from_raw_os_error(EISDIR))),
            Ok(_) => Ok(()),
        }
    }
}

/// Called when a signal interrupts a read that waits; returns whether to stop.
pub type Interrupt = Arc<dyn Fn() -> bool + Send + Sync>;

/// The system's error that caused an error of a decoder, since decoders may wrap or lose it.
type Slot = Arc<Mutex<Option<io::Error>>>;

/// An opened input, and its bytes after decompression.
pub struct Source {
    label: Arc<str>,
    compression: Compression,
    bytes: Bytes,
    slot: Slot,
    /// The file and its metadata when it was opened; `None` for what is not a regular file.
    opened: Option<(File, Metadata)>,
}

enum Bytes {
    Stream { reader: Box<dyn Read + Send>, buffer: Vec<u8> },
    Mapped { mapping: Mapping, position: usize },
}

impl Source {
    /// Open an input and recognise its compression.
    ///
    /// # Errors
    /// It cannot be opened or read, or is compressed in a way that is not supported.
    pub fn open(input: &Input, memory_map: bool, interrupt: Interrupt) -> Result<Self, ReadError> {
        let label: Arc<str> = input.label().into();
        let slot = Slot::default();
        let refused = |source| ReadError::Io { path: label.to_string(), source };
        let (file, opened) = open_file(input).map_err(refused)?;
        let mapped = match &opened {
            Some((file, metadata)) if memory_map && metadata.len() > 0 => Some(Mapping::of(file).map_err(refused)?),
            _ => None,
        };
        let mut raw = Raw { file, slot: slot.clone(), interrupt };
        let head = read_head(&mut raw).map_err(|source| take_system_error(&slot, &label).unwrap_or(refused(source)))?;
        if let Some(name) = unsupported(&head) {
            return Err(ReadError::Unsupported { path: label.to_string(), name });
        }
        let compression = Compression::of(&head);
        let bytes = match mapped {
            Some(mapping) if compression == Compression::Plain => Bytes::Mapped { mapping, position: 0 },
            _ => {
                let reader = decompress(io::Cursor::new(head).chain(raw), compression);
                Bytes::Stream { reader, buffer: vec![0; PIECE] }
            }
        };
        Ok(Self { label, compression, bytes, slot, opened })
    }

    /// How messages name the input.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// The next bytes after decompression, at most 128 KiB; empty at the end of the input.
    ///
    /// # Errors
    /// It cannot be read, was changed meanwhile, or its compressed data is cut short or corrupt.
    pub fn next_piece(&mut self) -> Result<&[u8], ReadError> {
        let Self { label, compression, bytes, slot, opened } = self;
        let piece = match bytes {
            Bytes::Mapped { mapping, position } => {
                let rest = mapping.bytes().get(*position..).unwrap_or_default();
                let piece = rest.get(..PIECE).unwrap_or(rest);
                *position += piece.len();
                piece
            }
            Bytes::Stream { reader, buffer } => {
                let count = reader.read(buffer).map_err(|error| {
                    let system = take_system_error(slot, label);
                    system.unwrap_or_else(|| refused(label, *compression, error))
                })?;
                buffer.get(..count).unwrap_or_default()
            }
        };
        if piece.is_empty() {
            check_unchanged(label, opened.as_ref())?;
        }
        Ok(piece)
    }
}

fn open_file(input: &Input) -> io::Result<(File, Option<(File, Metadata)>)> {
    let file = match input {
        Input::Path(path) => File::open(path)?,
        // A descriptor of our own, since std's handle would add a buffer.
        Input::Stdin => File::from(io::stdin().as_fd().try_clone_to_owned()?),
    };
    let metadata = file.metadata()?;
    let opened = match input {
        Input::Path(_) if metadata.is_file() => Some((file.try_clone()?, metadata)),
        _ => None,
    };
    Ok((file, opened))
}

/// Refuse a file that grew, shrank or was rewritten while it was read: the records may be a mixture.
fn check_unchanged(label: &str, opened: Option<&(File, Metadata)>) -> Result<(), ReadError> {
    let Some((file, before)) = opened else { return Ok(()) };
    // Files in /proc have content but size 0, and their times mean nothing.
    if before.len() == 0 {
        return Ok(());
    }
    let now = file.metadata().map_err(|source| ReadError::Io { path: label.into(), source })?;
    let is_same = now.len() == before.len() && now.modified().ok() == before.modified().ok();
    if is_same { Ok(()) } else { Err(ReadError::Changed { path: label.into() }) }
}

fn refused(label: &str, compression: Compression, error: io::Error) -> ReadError {
    let path = label.to_string();
    match compression {
        Compression::Plain => ReadError::Io { path, source: error },
        _ => ReadError::Compressed { path, compression, fault: fault_of(&error) },
    }
}

fn take_system_error(slot: &Slot, label: &str) -> Option<ReadError> {
    let source = slot.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    Some(match source.kind() {
        io::ErrorKind::Interrupted => ReadError::Interrupted,
        _ => ReadError::Io { path: label.into(), source },
    })
}

/// The first bytes, even if a pipe gives one at a time.
fn read_head(raw: &mut Raw) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(MAGIC_LEN);
    raw.take(MAGIC_LEN as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// The file itself. It stores the system's errors in the slot, and handles signals, which decoders would not.
struct Raw {
    file: File,
    slot: Slot,
    interrupt: Interrupt,
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let error = match self.file.read(buffer) {
                Ok(count) => return Ok(count),
                Err(error) => error,
            };
            if error.kind() == io::ErrorKind::Interrupted && !(self.interrupt)() {
                continue;
            }
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return Err(io::Error::other("the system refused"));
        }
    }
}
