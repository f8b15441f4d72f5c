//! Tensor files: an input is the number of bytes of data (two bytes) and the text of a header. A file that is accepted
//! holds the tensors of its header, each with its bytes, and together all of them.

use protperf::model::fault::Fault;
use protperf::model::json::{Json, Table};
use protperf::model::tensor_file::TensorFile;
use protperf_io::PlainFile;
use std::fs;
use std::path::Path;

use super::config::short_line;
use super::{Target, Verdict, equal};
use crate::random::{Random, digest};

pub const TARGET: Target =
    Target { name: "tensors", limit: 512, quick: 1000, head: 2, words: &WORDS, uses_fasta_files: false, run };

const WORDS: [&[u8]; 20] = [
    b"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}",
    b"\"b\": {\"dtype\": \"F64\", \"shape\": [], \"data_offsets\": [0, 8]}",
    b"\"dtype\"",
    b"\"shape\"",
    b"\"data_offsets\"",
    b"\"F32\"",
    b"\"I64\"",
    b"\"BF16\"",
    b"\"__metadata__\": {\"a\": \"b\"}",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b": ",
    b"[0, 4611686018427387904]",
    b"4611686018427387903",
    b"-1",
    b"[0,7]",
    b"1e1",
];

fn run(input: &[u8]) -> Result<Verdict, String> {
    let (prefix, header) = input.split_at(input.len().min(2));
    let size = prefix.iter().rev().fold(0, |size, &byte| size << 8 | usize::from(byte));
    let mut random = Random::new(digest(input));
    let data: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
    let path = std::env::temp_dir().join(format!("protperf-fuzz-{}-{:016x}", std::process::id(), digest(input)));
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&path, [&length[..], header, &data].concat()).map_err(|error| format!("{}: {error}", path.display()))?;
    let judged = read(&path).map(|file| judge(file, header, &data));
    // What is mapped stays readable.
    fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    judged?
}

fn read(path: &Path) -> Result<Result<TensorFile, Fault>, String> {
    let opened = PlainFile::open(path).map_err(|_| format!("{} was not opened", path.display()))?;
    Ok(TensorFile::new(path, opened.map().map_err(|error| error.to_string())?))
}

fn judge(file: Result<TensorFile, Fault>, header: &[u8], data: &[u8]) -> Result<Verdict, String> {
    let file = match file {
        Ok(file) => file,
        Err(fault) => return reason(&fault, 0),
    };
    let mut table = Json::parse_table(header).map_err(|what| format!("a header that {what} was accepted"))?;
    table.remove("__metadata__");
    let tensors: Option<Vec<_>> = table.iter().map(|(name, entry)| Some((name, Announced::of(entry)?))).collect();
    let tensors = tensors.ok_or("a malformed entry was accepted")?;
    equal("bytes of all tensors", &tensors.iter().map(|(_, found)| found.end - found.begin).sum(), &data.len())?;
    let expected: Vec<_> = tensors.iter().map(|(name, found)| ((*name).clone(), found.shape.clone())).collect();
    let all_single = tensors.iter().all(|(_, found)| found.is_single);
    equal("float32 tensors as expected", &file.expect(&expected).is_ok(), &all_single)?;
    if let Some(fewer) = expected.get(1..) {
        equal("one tensor less than expected", &file.expect(fewer).is_ok(), &false)?;
    }
    for (name, found) in tensors.iter().filter(|(_, found)| found.is_single) {
        let stored = data[found.begin..found.end].as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        let finite = stored.clone().all(f32::is_finite);
        match file.numbers::<f32>(name) {
            Ok(numbers) => equal("numbers", &(numbers, true), &(stored.collect(), finite))?,
            Err(fault) if finite => return Err(format!("refused: {fault}")),
            Err(fault) => return reason(&fault, 1),
        }
    }
    Ok(Verdict {
        traits: vec![digest(&[2, tensors.len().min(3) as u8, u8::from(all_single), u8::from(data.is_empty())])],
    })
}

/// What a header says of one tensor.
struct Announced {
    is_single: bool,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

impl Announced {
    fn of(entry: &Json) -> Option<Self> {
        let Json::Table(fields) = entry else { return None };
        let shape = sizes(fields, "shape")?;
        let [begin, end] = sizes(fields, "data_offsets")?.try_into().ok()?;
        let is_single = fields.get("dtype") == Some(&Json::Text("F32".into()));
        let size = if is_single { 4 } else { 8 };
        (begin <= end && shape.iter().try_fold(size, |size: usize, &axis| size.checked_mul(axis)) == Some(end - begin))
            .then_some(Announced { is_single, shape, begin, end })
    }
}

fn sizes(fields: &Table, name: &str) -> Option<Vec<usize>> {
    let Json::List(values) = fields.get(name)? else { return None };
    let size = |value: &Json| if let Json::Int(value) = value { usize::try_from(*value).ok() } else { None };
    values.iter().map(size).collect()
}

/// The reason of a fault, without the path.
fn reason(fault: &Fault, kind: u64) -> Result<Verdict, String> {
    match fault {
        Fault::File { what, .. } => short_line(what, kind),
        _ => Err(format!("another fault than the file's: {fault}")),
    }
}
