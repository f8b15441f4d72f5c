//! The reader of files: the scanner's records and verdict at any batch size, mapped or read, once or twice in a row.

use std::fs;
use std::io::Read;
use std::path::Path;

use protperf_core::fasta::ResiduePolicy;
use protperf_io::{Compression, Input, ReadError, ReadOptions, Reader, decompress};

use super::oracle::{Item, items_of, scanned};
use super::{Target, Verdict, equal, fasta};
use crate::random::{Random, digest};

pub const TARGET: Target =
    Target { name: "reader", limit: 4096, quick: 2000, head: 4, words: &fasta::WORDS, uses_fasta_files: true, run };

/// A few bytes can stand for gigabytes; content beyond this is left to other targets.
const LOOK: u64 = 1 << 20;

/// How a reading ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    Refused { line: u64, column: u64 },
    Damaged,
    Unsupported,
}

fn run(input: &[u8]) -> Result<Verdict, String> {
    let mut random = Random::new(digest(input));
    let policy = *random.pick(&ResiduePolicy::ALL);
    let times = 1 + random.below(2);
    let compression = Compression::of(input);
    let mut content = Vec::new();
    let is_whole = decompress(input, compression).take(LOOK).read_to_end(&mut content).is_ok();
    if content.len() as u64 == LOOK {
        return Ok(Verdict::default());
    }
    let path = std::env::temp_dir().join(format!("protperf-fuzz-{}", std::process::id()));
    fs::write(&path, input).map_err(|error| format!("{}: {error}", path.display()))?;
    let options = ReadOptions {
        policy,
        memory_map: random.below(2) == 0,
        batch_bytes: [0, 1, 30, 1000, 1 << 22][random.below(5)],
        ..ReadOptions::default()
    };
    let (items, end) = read(&path, times, options)?;
    fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;

    let mut once = scanned(&content, policy, &[]);
    let expected_end = match once.last() {
        Some(&Item::Error { line, column }) => End::Refused { line, column },
        _ => End::Whole,
    };
    once.retain(|item| !matches!(item, Item::Error { .. }));
    match end {
        End::Unsupported => equal("records of what is not read", &items, &Vec::new())?,
        End::Damaged if is_whole => return Err("refused as damaged, but decompresses".into()),
        // How far the decoder gets before the fault depends on the size of its pieces.
        End::Damaged => equal("beginning", &items.as_slice(), &once.get(..items.len()).unwrap_or_default())?,
        _ if !is_whole && end == End::Whole => return Err("damage was not noticed".into()),
        _ => {
            equal("end of reader and scanner", &end, &expected_end)?;
            let count = if end == End::Whole { times } else { 1 };
            equal("records of reader and scanner", &items, &repeated(&once, count))?;
        }
    }
    let kind = [compression as u64, items.len().min(3) as u64, digest(format!("{end:?}").as_bytes())];
    Ok(Verdict { traits: vec![digest(&kind.map(u64::to_le_bytes).concat())] })
}

fn read(path: &Path, times: usize, options: ReadOptions) -> Result<(Vec<Item>, End), String> {
    let inputs = (0..times).map(|_| Input::Path(path.into()));
    let mut reader = Reader::new(inputs, options).map_err(|error| error.to_string())?;
    let mut items = Vec::new();
    let end = loop {
        match reader.next_batch() {
            Ok(Some(batch)) if batch.batch.is_empty() => return Err("an empty batch was returned".into()),
            Ok(Some(batch)) => items.extend(items_of(batch.batch)),
            Ok(None) => break End::Whole,
            Err(ReadError::Fasta { error, .. }) => break End::Refused { line: error.line, column: error.column },
            Err(ReadError::Compressed { .. }) => break End::Damaged,
            Err(ReadError::Unsupported { .. }) => break End::Unsupported,
            Err(error) => return Err(error.to_string()),
        }
    };
    if end != End::Whole && !matches!(reader.next_batch(), Ok(None)) {
        return Err("there is something after an error".into());
    }
    if end == End::Whole && reader.summary().records + reader.summary().rejected != items.len() as u64 {
        return Err("the summary counts other records".into());
    }
    Ok((items, end))
}

/// Ordinals count through all inputs.
fn repeated(once: &[Item], times: usize) -> Vec<Item> {
    let moved = |item: &Item, by: u64| match item.clone() {
        Item::Record { ordinal, header, letters, flags } => {
            Item::Record { ordinal: ordinal + by, header, letters, flags }
        }
        Item::Rejected { ordinal, line, column } => Item::Rejected { ordinal: ordinal + by, line, column },
        error => error,
    };
    (0..times).flat_map(|time| once.iter().map(move |item| moved(item, (time * once.len()) as u64))).collect()
}
