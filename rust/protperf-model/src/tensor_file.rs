//! Tensor files (safetensors) from untrusted sources, with the rules of `apps/lm/storage/tensor_file.py`.
//!
//! The whole header is checked, also against the tensors that are expected, before any of their memory is allocated:
//! names, types, shapes, and offsets that fill the file exactly.

use crate::fault::{Fault, Result};
use crate::json::{Json, Table, shortened};
use protperf_core::{Element, try_reserved};
use protperf_io::MappedFile;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAX_HEADER_BYTES: usize = 8 << 20;
const MAX_TENSORS: usize = 20_000;
const MAX_AXES: usize = 8;
const MAX_NAME: usize = 256;
/// Sizes and offsets are below this.
const MAX_SIZE: i64 = 1 << 62;

/// The type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F32,
    F64,
    I64,
}

impl Kind {
    const ALL: [(&'static str, Kind, u128); 3] = [("F64", Kind::F64, 8), ("F32", Kind::F32, 4), ("I64", Kind::I64, 8)];

    fn name(self) -> &'static str {
        Kind::ALL.iter().find(|row| row.1 == self).map_or("", |row| row.0)
    }
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    shape: Vec<u64>,
    range: Range<usize>,
}

/// A file whose header is sound.
pub struct TensorFile {
    path: PathBuf,
    contents: MappedFile,
    entries: BTreeMap<String, Entry>,
    /// Where the data starts.
    start: usize,
}

impl TensorFile {
    /// Checks the header of a file.
    ///
    /// # Errors
    /// It is too large, malformed, or does not account for every byte.
    pub fn new(path: &Path, contents: MappedFile) -> Result<Self> {
        let (entries, start) = read_header(contents.bytes()).map_err(|what| Fault::broken(path, what))?;
        Ok(TensorFile { path: path.into(), contents, entries, start })
    }

    /// Checks that the file holds exactly the tensors that are expected, all of them float32.
    ///
    /// # Errors
    /// A tensor is missing, has another type or shape, or is not expected.
    pub fn expect(&self, tensors: &[(String, Vec<usize>)]) -> Result<()> {
        let expected: BTreeMap<&str, &[usize]> = tensors.iter().map(|(name, shape)| (&**name, &**shape)).collect();
        let missing = expected.keys().filter(|name| !self.entries.contains_key(**name)).map(|name| (*name, "missing"));
        let more = self.entries.keys().filter(|name| !expected.contains_key(name.as_str()));
        if let Some((name, what)) = missing.chain(more.map(|name| (name.as_str(), "not expected"))).min() {
            return Err(Fault::broken(&self.path, format!("tensor {name} is {what}")));
        }
        for (name, shape) in expected {
            let Some(found) = self.entries.get(name) else { continue };
            let same = found.shape.len() == shape.len() && found.shape.iter().zip(shape).all(|(&a, &b)| a == b as u64);
            if found.kind != Kind::F32 || !same {
                let found = format!("{} {:?}", found.kind.name(), found.shape);
                let what = format!("tensor {name} is {found}, the configuration needs F32 {shape:?}");
                return Err(Fault::broken(&self.path, what));
            }
        }
        Ok(())
    }

    /// The numbers of a float32 tensor that [`TensorFile::expect`] found, in the type that is computed in.
    ///
    /// # Errors
    /// A number that is not finite; no such tensor; `OutOfMemory`.
    pub fn numbers<T: Element>(&self, name: &str) -> Result<Vec<T>> {
        let entry = self.entries.get(name).filter(|entry| entry.kind == Kind::F32);
        let range = entry.map(|entry| self.start + entry.range.start..self.start + entry.range.end);
        let data = range.and_then(|range| self.contents.bytes().get(range));
        let Some(data) = data else { return Err(Fault::broken(&self.path, format!("tensor {name} is missing"))) };
        let mut numbers = try_reserved(data.len() / size_of::<f32>())?;
        let mut are_finite = true;
        // What is judged is the copy: the file may change in the meantime.
        numbers.extend(data.as_chunks().0.iter().map(|&bytes| {
            let number = f32::from_le_bytes(bytes);
            are_finite &= number.is_finite();
            T::from_f64(f64::from(number))
        }));
        if !are_finite {
            let what = format!("tensor {name} holds a number that is not finite: this training failed; train it again");
            return Err(Fault::broken(&self.path, what));
        }
        Ok(numbers)
    }
}

/// The entries of a file by name, and the position of the data.
fn read_header(file: &[u8]) -> Result<(BTreeMap<String, Entry>, usize), String> {
    let Some((prefix, rest)) = file.split_first_chunk() else { return Err("is too short for a tensor file".into()) };
    let announced = u64::from_le_bytes(*prefix);
    let length = usize::try_from(announced).ok().filter(|&length| length <= MAX_HEADER_BYTES.min(rest.len()));
    let Some((header, data)) = length.and_then(|length| rest.split_at_checked(length)) else {
        return Err(format!("announces a header of {announced} bytes in a file of {}", file.len()));
    };
    let mut entries = BTreeMap::new();
    for (name, entry) in parse(header)? {
        let entry = read_entry(&name, &entry)?;
        entries.insert(name, entry);
    }
    let mut order: Vec<_> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut position = 0;
    for (name, entry) in order {
        if entry.range.start != position {
            return Err(format!("has an overlap or a gap before tensor {name}"));
        }
        position = entry.range.end;
    }
    if position != data.len() {
        return Err(format!("has {} bytes of data, its tensors need {position}", data.len()));
    }
    Ok((entries, 8 + header.len()))
}

fn parse(header: &[u8]) -> Result<Table, String> {
    // Counted before parsing: an empty list takes two bytes in the file and many more in memory.
    let count = |wanted: &[u8]| header.iter().filter(|byte| wanted.contains(byte)).count();
    if !header.is_ascii() || count(b"{") > MAX_TENSORS + 2 || count(b",[") > 16 * (MAX_TENSORS + 2) {
        return Err(format!("has a header that is not one of at most {MAX_TENSORS} tensors"));
    }
    let mut table = Json::parse_table(header)?;
    match table.remove("__metadata__") {
        None => {}
        Some(Json::Table(notes)) if notes.values().all(|note| matches!(note, Json::Text(_))) => {}
        Some(_) => return Err("has malformed metadata".into()),
    }
    if table.len() > MAX_TENSORS {
        return Err(format!("announces {} tensors, more than {MAX_TENSORS}", table.len()));
    }
    Ok(table)
}

fn read_entry(name: &str, entry: &Json) -> Result<Entry, String> {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_';
    if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(is_name_byte) {
        return Err(format!("names a tensor '{}'", shortened(name, 40)));
    }
    let fields = match entry {
        Json::Table(fields) if fields.len() == 3 => Some(fields),
        _ => None,
    };
    let field = |name| fields.and_then(|fields| fields.get(name));
    let (Some(kind), Some(shape), Some(offsets)) = (field("dtype"), field("shape"), field("data_offsets")) else {
        return Err(format!("has a malformed entry of tensor {name}"));
    };
    let known = Kind::ALL.iter().find(|row| matches!(kind, Json::Text(text) if text == row.0));
    let Some(&(_, kind, item_size)) = known else {
        return Err(format!("tensor {name} is of type {}, which checkpoints do not use", kind.shown()));
    };
    let Some(axes) = sizes(shape).filter(|axes| axes.len() <= MAX_AXES) else {
        return Err(format!("tensor {name} has a malformed shape {}", shape.shown()));
    };
    let Some(&[begin, end]) = sizes(offsets).as_deref().filter(|ends| ends.len() == 2 && ends[0] <= ends[1]) else {
        return Err(format!("tensor {name} has malformed offsets {}", offsets.shown()));
    };
    let found = u128::from(end - begin);
    // Saturating: no file has so many bytes.
    let needed = axes.iter().fold(item_size, |size, &axis| size.saturating_mul(u128::from(axis)));
    if found != needed {
        return Err(format!("tensor {name} has {found} bytes, its shape {} needs {needed}", shape.shown()));
    }
    let range = usize::try_from(begin).ok().zip(usize::try_from(end).ok()).map(|(begin, end)| begin..end);
    let Some(range) = range else { return Err(format!("tensor {name} has malformed offsets {}", offsets.shown())) };
    Ok(Entry { kind, shape: axes, range })
}

/// A list of sizes.
fn sizes(value: &Json) -> Option<Vec<u64>> {
    let Json::List(values) = value else { return None };
    let size = |value: &Json| match value {
        Json::Int(value) if (0..MAX_SIZE).contains(value) => Some(*value as u64),
        _ => None,
    };
    values.iter().map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    }

    const ONE: &str = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;

    #[test]
    fn a_sound_header_is_read() {
        let two = r#""dtype": "F64", "shape": [2, 0], "data_offsets": [4, 4]"#;
        let bytes = file(&format!(r#"{{"a": {ONE}, "b.c_D": {{{two}}}, "__metadata__": {{"x": "y"}}}}"#), 4);
        let (entries, start) = read_header(&bytes).unwrap();
        assert_eq!(start + 4, bytes.len());
        assert_eq!((entries["a"].kind, entries["a"].range.clone()), (Kind::F32, 0..4));
        assert_eq!((entries["b.c_D"].kind, &entries["b.c_D"].shape[..]), (Kind::F64, &[2, 0][..]));
        assert_eq!(read_header(&file("{}", 0)).unwrap().0.len(), 0);
    }

    #[test]
    fn every_cut_of_a_file_is_found() {
        let whole = file(&format!(r#"{{"a": {ONE}}}"#), 4);
        assert!(read_header(&whole).is_ok());
        for cut in 0..whole.len() {
            assert!(read_header(&whole[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let entry = |kind: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a": {{"dtype": {kind}, "shape": {shape}, "data_offsets": {offsets}}}}}"#)
        };
        let most = u64::MAX;
        for (header, data, what) in [
            (entry("\"F32\"", "[4294967296, 4294967296]", "[0, 0]"), 0, "bytes, its shape"),
            (entry("\"F32\"", "[2305843009213693952, 8]", "[0, 0]"), 0, "bytes, its shape"),
            (entry("\"F32\"", "[4611686018427387903, 4611686018427387903, 4611686018427387903]", "[0, 0]"), 0, "bytes"),
            (entry("\"F32\"", &format!("[{most}]"), "[0, 4]"), 4, "beyond 64 bits"),
            (entry("\"F32\"", "[-1, -1]", "[0, 4]"), 4, "malformed shape"),
            (entry("\"F32\"", "[true]", "[0, 4]"), 4, "malformed shape"),
            (entry("\"F32\"", "[1.0]", "[0, 4]"), 4, "malformed shape"),
            (entry("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0, 4]"), 4, "malformed shape"),
            (entry("\"F16\"", "[2]", "[0, 4]"), 4, "checkpoints do not use"),
            (entry("\"F32\"", "[1]", "[4, 8]"), 8, "gap"),
            (entry("\"F32\"", "[1]", "[4, 0]"), 4, "malformed offsets"),
            (entry("\"F32\"", "[1]", "[0, 4]"), 5, "bytes of data"),
            (entry("\"F32\"", "[1]", "[0, 4]"), 3, "bytes of data"),
            (format!(r#"{{"../a": {ONE}}}"#), 4, "names a tensor"),
            (format!(r#"{{"": {ONE}}}"#), 4, "names a tensor"),
            (format!(r#"{{"a": {ONE}, "b": {ONE}}}"#), 4, "overlap"),
            (format!(r#"{{"a": {ONE}, "a": {ONE}}}"#), 4, "twice"),
            (r#"{"a": null}"#.into(), 0, "malformed entry"),
            (r#"{"__metadata__": {"x": [1]}}"#.into(), 0, "malformed metadata"),
            ("{\"\u{e9}\": 1}".into(), 0, "not one of at most"),
        ] {
            let fault = read_header(&file(&header, data)).unwrap_err();
            assert!(fault.contains(what) && fault.len() < 300 && fault.is_ascii(), "{header}: {fault}");
        }
    }

    #[test]
    fn a_header_of_many_lists_is_refused_before_it_is_parsed() {
        let lists = format!("{{\"a\": [{}[]]}}", "[],".repeat(2_000_000));
        assert!(read_header(&file(&lists, 0)).unwrap_err().contains("not one of at most"));
        let mut announced = file("{}", 0);
        announced[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(read_header(&announced).unwrap_err().contains("announces a header"));
    }
}
