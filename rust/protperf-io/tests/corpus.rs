//! The corpus of `tests/fasta`: every file, policy and way of reading must give the outcome written beside the file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use protperf_core::alphabet::letter_of;
use protperf_core::fasta::{Batch, FastaError, FastaErrorKind, ResiduePolicy, Scanner, flag};
use protperf_io::{Compression, CompressionFault, Input, ReadError, ReadOptions, Reader, decompress};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fasta")
}

/// One line of `cases.tsv` without file and policy; large fields stand as `UNIT*COUNT`.
type Row = Vec<String>;

fn cases() -> BTreeMap<(String, String), Vec<Row>> {
    let table = fs::read_to_string(corpus().join("cases.tsv")).expect("the corpus has a table");
    let mut cases: BTreeMap<_, Vec<Row>> = BTreeMap::new();
    for line in table.lines().skip(1) {
        let mut fields = line.split('\t').map(str::to_string);
        let (file, policy) = (fields.next().unwrap(), fields.next().unwrap());
        cases.entry((file, policy)).or_default().extend(expand(fields.collect()));
    }
    cases
}

/// Spell out `record*COUNT` and `reject*COUNT`.
fn expand(row: Row) -> Vec<Row> {
    let Some((what, count)) = row[0].split_once('*') else { return vec![row] };
    let count: usize = count.parse().unwrap();
    let numbered = |index: usize| {
        let mut row = row.clone();
        row[0] = what.into();
        if what == "reject" {
            let line: usize = row[2].strip_suffix(":1").unwrap().parse().unwrap();
            row[2] = format!("{}:1", line + index);
        }
        row
    };
    (0..count).map(numbered).collect()
}

fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '\\' | '\0'..='\x1f' | '\x7f' => format!("\\x{:02x}", c as u32),
        _ => c.to_string(),
    };
    folded(&text.chars().map(escape).collect::<String>())
}

/// Long repetitions in the table's notation.
fn folded(text: &str) -> String {
    if text.len() < 100_000 {
        return text.into();
    }
    let unit = (1..100).find(|&unit| text.as_bytes().chunks(unit).all(|chunk| chunk == &text.as_bytes()[..unit]));
    let unit = unit.expect("long fields are repetitions");
    format!("{}*{}", &text[..unit], text.len() / unit)
}

fn record_rows(batch: &Batch) -> Vec<Row> {
    let mut rows: Vec<(u64, Row)> = Vec::new();
    for index in 0..batch.len() {
        let (id, description) = batch.name_of(index).unwrap();
        let letters = batch.tokens_of(index).unwrap().iter().map(|&token| letter_of(token).unwrap() as char);
        let bits = batch.flags[index];
        let names: Vec<&str> = flag::NAMES.iter().filter(|(_, bit)| bits & bit != 0).map(|(name, _)| *name).collect();
        let sequence = folded(&letters.collect::<String>());
        let row = vec!["record".into(), escaped(id), escaped(description), sequence, names.join(",")];
        rows.push((batch.ordinals[index], row));
    }
    for rejection in &batch.rejected {
        let error = &rejection.error;
        let id = escaped(error.record.as_deref().unwrap_or_default());
        let place = format!("{}:{}", error.line, error.column);
        rows.push((rejection.ordinal, vec!["reject".into(), id, place, kind_name(&error.kind)]));
    }
    rows.sort_by_key(|(ordinal, _)| *ordinal);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn error_row(error: &FastaError) -> Row {
    vec!["error".into(), "-".into(), format!("{}:{}", error.line, error.column), kind_name(&error.kind)]
}

fn kind_name(kind: &FastaErrorKind) -> String {
    let name = match kind {
        FastaErrorKind::InvalidByte { .. } => "invalid_byte",
        FastaErrorKind::HeaderInsideLine => "header_inside_line",
        FastaErrorKind::InternalStop => "internal_stop",
        FastaErrorKind::Gap { .. } => "gap",
        FastaErrorKind::AmbiguousResidue { .. } => "ambiguous",
        FastaErrorKind::Nucleotides { .. } => "nucleotides",
        FastaErrorKind::EmptySequence => "empty",
        FastaErrorKind::TextBeforeHeader => "text_before_header",
        FastaErrorKind::OtherFormat { name } => return format!("format:{name}"),
        FastaErrorKind::NoRecord => "no_record",
        FastaErrorKind::HeaderEncoding { .. } => "header_encoding",
        FastaErrorKind::HeaderControl { .. } => "header_control",
        other => panic!("the corpus has no name for {other:?}"),
    };
    name.into()
}

/// Scan bytes that lie in memory, in pieces of the given size.
fn scan(data: &[u8], policy: ResiduePolicy, piece: usize) -> Vec<Row> {
    let mut scanner = Scanner::new(policy);
    let outcome = data.chunks(piece).try_for_each(|piece| scanner.push(piece)).and_then(|()| scanner.finish());
    let mut rows = record_rows(&scanner.take());
    rows.push(match outcome {
        Ok(()) => vec!["end".into()],
        Err(error) => error_row(&error),
    });
    rows
}

/// Read the file by path; batches of one byte so that every step gives what it has.
fn read(path: &Path, policy: ResiduePolicy, memory_map: bool, batch_bytes: usize) -> Vec<Row> {
    let options = ReadOptions { policy, memory_map, batch_bytes, ..ReadOptions::default() };
    let mut reader = Reader::new([Input::Path(path.into())], options).unwrap();
    let mut rows = Vec::new();
    loop {
        match reader.next_batch() {
            Ok(Some(batch)) => rows.extend(record_rows(&batch.batch)),
            Ok(None) => rows.push(vec!["end".into()]),
            Err(ReadError::Fasta { error, .. }) => rows.push(error_row(&error)),
            Err(error) => rows.push(vec!["error".into(), "-".into(), "-".into(), fault_name(&error)]),
        }
        if matches!(rows.last().map(|row| row[0].as_str()), Some("end" | "error")) {
            return rows;
        }
    }
}

fn fault_name(error: &ReadError) -> String {
    let name = match error {
        ReadError::Unsupported { .. } => "unsupported",
        ReadError::Compressed { fault, .. } => match fault {
            CompressionFault::Truncated => "truncated",
            CompressionFault::Corrupt(_) => "corrupt",
            CompressionFault::TrailingData => "trailing_data",
            CompressionFault::Window => "window",
        },
        other => panic!("{other}"),
    };
    name.into()
}

/// Files of megabytes are read in fewer ways by unoptimized code.
fn is_spared(file: &str, policy: &str) -> bool {
    cfg!(debug_assertions) && policy != "map" && file == "long_line.fasta.gz"
}

/// Equal, or before a fault of the compressed data a beginning of the records.
fn agrees(found: &[Row], expected: &[Row]) -> bool {
    match (found.split_last(), expected.split_last()) {
        (Some((found_end, found)), Some((end, records))) if end[0] == "error" && end[2] == "-" => {
            found_end == end && records.starts_with(found)
        }
        _ => found == expected,
    }
}

fn assert_agrees(how: &str, file: &str, policy: &str, found: &[Row], expected: &[Row]) {
    if !agrees(found, expected) {
        let shown = |rows: &[Row]| rows.iter().take(8).map(|row| format!("\n    {row:?}")).collect::<String>();
        panic!("{file} under {policy}, {how}:{}\n  expected{}", shown(found), shown(expected));
    }
}

#[test]
fn corpus_has_at_least_120_files_and_all_are_in_the_table() {
    let cases = cases();
    let files: Vec<_> = fs::read_dir(corpus().join("files")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.len() >= 120);
    for file in files {
        for policy in ResiduePolicy::ALL {
            let key = (file.to_string_lossy().into_owned(), policy.name().to_string());
            assert!(cases.contains_key(&key), "{key:?}");
        }
    }
}

#[test]
fn files_read_as_written_in_the_table() {
    for ((file, policy), expected) in cases() {
        let path = corpus().join("files").join(&file);
        let residues = ResiduePolicy::from_name(&policy).unwrap();
        if is_spared(&file, &policy) {
            continue;
        }
        let is_large = file.starts_with("long_") || file.starts_with("many_");
        let ways = [(false, 1 << 22), (true, 1), (false, 1)];
        for (memory_map, batch_bytes) in ways.into_iter().take(if is_large { 1 } else { 3 }) {
            let how = format!("memory map {memory_map}, batches of {batch_bytes}");
            assert_agrees(&how, &file, &policy, &read(&path, residues, memory_map, batch_bytes), &expected);
        }
    }
}

#[test]
fn bytes_scan_as_written_in_the_table_whole_and_byte_by_byte() {
    for ((file, policy), expected) in cases() {
        if is_spared(&file, &policy) {
            continue;
        }
        let raw = fs::read(corpus().join("files").join(&file)).unwrap();
        let mut data = Vec::new();
        let is_whole = std::io::Read::read_to_end(&mut decompress(&raw[..], Compression::of(&raw)), &mut data).is_ok();
        if !is_whole || expected.last().unwrap().get(2).is_some_and(|place| place == "-") {
            continue;
        }
        let residues = ResiduePolicy::from_name(&policy).unwrap();
        let is_large = data.len() > 200_000;
        let pieces = if is_large { vec![4093] } else { vec![data.len().max(1), 1, 7, 4096] };
        for piece in pieces {
            let how = format!("pieces of {piece}");
            assert_agrees(&how, &file, &policy, &scan(&data, residues, piece), &expected);
        }
    }
}
