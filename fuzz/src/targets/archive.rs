//! Decompression: any bytes give content or an error, in bounded time and memory, in pieces of any size.

use std::io::{self, Read};

use protperf_io::{Compression, decompress};

use super::{Target, Verdict, equal};
use crate::random::digest;

pub const TARGET: Target =
    Target { name: "archive", limit: 8192, quick: 2000, head: 6, words: &WORDS, uses_fasta_files: true, run };

/// Only this much content is compared: a few bytes can stand for gigabytes.
const LOOK: u64 = 1 << 20;

const WORDS: [&[u8]; 22] = [
    b"\x1f\x8b",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff",
    b"\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    b"\x28\xb5\x2f\xfd",
    b"\x28\xb5\x2f\xfd\x00\x58",
    b"\x50\x2a\x4d\x18\x00\x00\x00\x00",
    b"\x01\x00\x00",
    b"\xfd7zXZ\x00",
    b"\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46",
    b"\x00\x00\x00\x00\x04YZ",
    b"\x02\x00\x21\x01\x16\x00",
    b"BZh9",
    b"1AY&SY",
    b"\x17rE8P\x90",
    b"\x00",
    b"\xff",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x80",
    b"\x7f",
    b">a\nMK\n",
    b"\x01\x00\x00\xff\xff",
];

/// Gives at most one byte at a time.
struct Drops<'a>(&'a [u8]);

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(1);
        self.0.read(&mut buffer[..count])
    }
}

fn run(input: &[u8]) -> Result<Verdict, String> {
    let compression = Compression::of(input);
    let (content, fault) = content_of(input, compression);
    // The decoder's words show the place in its code; the numbers in them, in any base, do not.
    let words = |fault: &str| fault.chars().filter(char::is_ascii_lowercase).collect::<String>();
    let kind = fault.as_deref().map_or(0, |fault| digest(words(fault).as_bytes()));
    let traits = vec![digest(&[compression as u64, kind, content.is_empty().into()].map(u64::to_le_bytes).concat())];
    if digest(input).is_multiple_of(8) {
        let (dropwise, dropwise_fault) = content_of(Drops(input), compression);
        equal("fault by single bytes and whole", &dropwise_fault.is_some(), &fault.is_some())?;
        let shorter = dropwise.len().min(content.len());
        equal("content by single bytes and whole", &dropwise[..shorter].to_vec(), &content[..shorter].to_vec())?;
        if fault.is_none() {
            equal("length by single bytes and whole", &dropwise.len(), &content.len())?;
        }
    }
    Ok(Verdict { traits })
}

fn content_of(source: impl Read + Send, compression: Compression) -> (Vec<u8>, Option<String>) {
    let mut content = Vec::new();
    let outcome = decompress(source, compression).take(LOOK).read_to_end(&mut content);
    (content, outcome.err().map(|error| error.to_string()))
}
