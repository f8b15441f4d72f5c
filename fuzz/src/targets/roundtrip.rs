//! Compressed data that is damaged: a cut is always noticed, and no flipped bit changes the content unnoticed.

use std::io::{Read, Write};

use bzip2::write::BzEncoder;
use flate2::write::GzEncoder;
use protperf_io::{Compression, decompress};

use super::{Target, Verdict, equal};
use crate::random::{Random, digest};

pub const TARGET: Target = Target {
    name: "roundtrip",
    limit: 1024,
    quick: 2000,
    head: 0,
    words: &[b">a\n", b"MKTAYIAKQR", b"\n", b"\x00\x00\x00\x00", b"ACGTACGTACGTACGT", b"\xff"],
    uses_fasta_files: true,
    run,
};

fn run(input: &[u8]) -> Result<Verdict, String> {
    let mut random = Random::new(digest(input));
    // bzip2 sorts, and is a hundred times slower than the rest.
    let compression = if random.below(50) == 0 { Compression::Bzip2 } else { Compression::Gzip };
    let cut = random.below(input.len() + 1);
    let (first, second) = input.split_at(cut);
    let mut packed = pack(first, compression)?;
    let border = packed.len();
    packed.extend(pack(second, compression)?);
    equal("packed in two members and unpacked", &unpack(&packed).as_deref(), &Ok(input))?;

    let length = random.below(packed.len());
    let is_recognised = Compression::of(&packed[..length]) == compression;
    if length != border && is_recognised && unpack(&packed[..length]).is_ok() {
        return Err(format!("{compression:?} cut to {length} of {} bytes went unnoticed", packed.len()));
    }
    let bit = random.below(packed.len() * 8);
    packed[bit / 8] ^= 1 << (bit % 8);
    if Compression::of(&packed) == compression && unpack(&packed).is_ok_and(|content| content != input) {
        return Err(format!("{compression:?} with bit {bit} flipped reads as other content"));
    }
    let size = u64::from(packed.len().ilog2());
    Ok(Verdict { traits: vec![digest(&[compression as u64, size].map(u64::to_le_bytes).concat())] })
}

fn pack(content: &[u8], compression: Compression) -> Result<Vec<u8>, String> {
    let packed = match compression {
        Compression::Bzip2 => {
            let mut encoder = BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(content).and_then(|()| encoder.finish())
        }
        _ => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(content.len() as u32 % 4));
            encoder.write_all(content).and_then(|()| encoder.finish())
        }
    };
    packed.map_err(|error| format!("the encoder failed: {error}"))
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let outcome = decompress(packed, Compression::of(packed)).read_to_end(&mut content);
    outcome.map(|_| content).map_err(|error| error.to_string())
}
