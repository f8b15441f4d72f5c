//! Recognises a compression by the first bytes, and decodes it: every member is read and every checksum verified.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, FrameHeaderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::CompressionFault;

/// Largest window that a decoder may allocate, in bytes: the limit of the zstd tool without further flags, and twice
/// the window of xz at its highest level.
pub const WINDOW_LIMIT: u64 = 128 << 20;

/// How many of the first bytes decide on the compression.
pub(crate) const MAGIC_LEN: usize = 8;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// RFC 1952, one member or several.
    Gzip,
    /// RFC 8878, one frame or several, skippable ones included.
    Zstd,
    /// xz, one stream or several.
    Xz,
    /// bzip2, one stream or several.
    Bzip2,
}

impl Compression {
    /// Name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }

    /// The compression whose files start with these bytes; plain where none does.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => Self::Bzip2,
            _ => Self::Plain,
        }
    }
}

/// Name of an archive or compression that starts with these bytes and is not supported.
pub(crate) fn unsupported(head: &[u8]) -> Option<&'static str> {
    match head {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some("a zip archive or Office document"),
        [b'7', b'z', 0xbc, 0xaf, ..] => Some("a 7z archive"),
        [0x1f, 0x9d, ..] => Some("compress (.Z) data"),
        [0x5d, 0, 0, _, _, ..] => Some("lzma (not xz) data"),
        [4, 0x22, 0x4d, 0x18, ..] => Some("lz4 data"),
        [b'L', b'Z', b'I', b'P', ..] => Some("lzip data"),
        [b'R', b'a', b'r', b'!', ..] => Some("a rar archive"),
        _ => None,
    }
}

/// A reader of the decompressed bytes of `source`, which starts at the first compressed byte.
///
/// # Errors
/// The reader's errors are [`io::Error`]s, which [`fault_of`] translates.
pub fn decompress<'a>(source: impl Read + Send + 'a, compression: Compression) -> Box<dyn Read + Send + 'a> {
    let buffered = |source| BufReader::with_capacity(1 << 17, source);
    match compression {
        Compression::Plain => Box::new(source),
        Compression::Gzip => Box::new(Members::new(GzDecoder::new(buffered(source)))),
        Compression::Bzip2 => Box::new(Members::new(BzDecoder::new(buffered(source)))),
        Compression::Zstd => Box::new(Frames::new(buffered(source))),
        Compression::Xz => {
            let limit = (WINDOW_LIMIT >> 10) as u32 + 1024;
            Box::new(XzReader::new_mem_limit(buffered(source), true, limit))
        }
    }
}

/// What a decoder's error means for the data.
pub(crate) fn fault_of(error: &io::Error) -> CompressionFault {
    if let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) {
        return fault.0.clone();
    }
    if error.kind() == io::ErrorKind::OutOfMemory {
        return CompressionFault::Window;
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(link) = cause {
        if link.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            return CompressionFault::Truncated;
        }
        // `source` of an I/O error skips the error that it wraps.
        cause = match link.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => link.source(),
        };
    }
    CompressionFault::Corrupt(error.to_string())
}

/// A fault found in this file, wrapped in an [`io::Error`].
#[derive(Debug)]
struct Fault(CompressionFault);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Fault {}

fn fault(fault: CompressionFault) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Fault(fault))
}

/// A decoder of one member that can return its source.
trait Member: Read {
    type Source: BufRead;
    /// First byte of a member.
    const FIRST: u8;
    /// Whether zeros may follow the last member, as tapes and block devices leave them.
    const PADDED: bool;
    fn begin(source: Self::Source) -> Self;
    fn into_source(self) -> Self::Source;
}

impl<R: BufRead> Member for GzDecoder<R> {
    type Source = R;
    const FIRST: u8 = 0x1f;
    const PADDED: bool = true;
    fn begin(source: R) -> Self {
        Self::new(source)
    }
    fn into_source(self) -> R {
        self.into_inner()
    }
}

impl<R: BufRead> Member for BzDecoder<R> {
    type Source = R;
    const FIRST: u8 = b'B';
    const PADDED: bool = false;
    fn begin(source: R) -> Self {
        Self::new(source)
    }
    fn into_source(self) -> R {
        self.into_inner()
    }
}

/// All members one after another; `None` after the last.
struct Members<D>(Option<D>);

impl<D: Member> Members<D> {
    fn new(first: D) -> Self {
        Self(Some(first))
    }

    fn next_member(mut source: D::Source) -> io::Result<Option<D>> {
        let mut is_padding = false;
        loop {
            let bytes = source.fill_buf()?;
            match bytes.first() {
                None => return Ok(None),
                Some(0) if D::PADDED => {
                    is_padding = true;
                    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                    source.consume(zeros);
                }
                Some(&byte) if byte == D::FIRST && !is_padding => return Ok(Some(D::begin(source))),
                Some(_) => return Err(fault(CompressionFault::TrailingData)),
            }
        }
    }
}

impl<D: Member> Read for Members<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if let Some(ended) = self.0.take() {
                self.0 = Self::next_member(ended.into_source())?;
            }
        }
        Ok(0)
    }
}

/// All frames of a zstd file one after another.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
    /// Decompressed bytes of the current frame so far.
    given: u64,
}

impl<R: BufRead> Frames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW_LIMIT);
        Self { source, decoder, in_frame: false, given: 0 }
    }

    /// Go to the next frame with content; returns false at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.in_frame = true;
                    self.given = 0;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < length.into() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::BadMagicNumber(_))) => {
                    return Err(fault(CompressionFault::TrailingData));
                }
                Err(
                    FrameDecoderError::WindowSizeTooBig { .. }
                    | FrameDecoderError::FrameHeaderError(FrameHeaderError::WindowTooBig { .. }),
                ) => return Err(fault(CompressionFault::Window)),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }

    /// Compare the size and checksum that the frame states with those of the decoded bytes.
    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        let stored = self.decoder.get_checksum_from_data();
        if stored.is_some() && stored != self.decoder.get_calculated_checksum() {
            return Err(fault(CompressionFault::Corrupt("checksum mismatch".into())));
        }
        let size = self.decoder.content_size();
        if size != 0 && size != self.given {
            return Err(fault(CompressionFault::Corrupt("size mismatch".into())));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            let count = self.decoder.read(buffer)?;
            self.given += count as u64;
            if count > 0 {
                return Ok(count);
            }
            if self.decoder.is_finished() {
                self.end_frame()?;
            } else {
                let strategy = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, strategy).map_err(io::Error::other)?;
            }
        }
    }
}
