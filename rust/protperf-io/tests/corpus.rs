//! The corpus of `tests/fasta`: every file, policy and way of reading must have the outcome that its table states.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
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

/// Scan bytes in memory, in pieces that end at the given places and at the end.
fn scan(data: &[u8], policy: ResiduePolicy, ends: impl Iterator<Item = usize>) -> Vec<Row> {
    let mut scanner = Scanner::new(policy);
    let mut done = 0;
    let outcome = ends.chain([data.len()]).try_for_each(|end| {
        let piece = &data[done..end];
        done = end;
        scanner.push(piece)
    });
    let outcome = outcome.and_then(|()| scanner.finish());
    let mut rows = record_rows(&scanner.take());
    rows.push(match outcome {
        Ok(()) => vec!["end".into()],
        Err(error) => error_row(&error),
    });
    rows
}

/// Read the file by path.
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

/// Files of megabytes are read under one policy only by unoptimized code.
fn is_spared(file: &str, policy: &str) -> bool {
    cfg!(debug_assertions) && policy != "map" && (file.starts_with("long_") || file.starts_with("many_"))
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

/// What all readings came to.
#[derive(Default)]
struct Tally {
    readings: usize,
    /// Wrong and without an error: what a user would never learn.
    silent: Vec<String>,
    /// Wrong with an error, or another error than the right one.
    loud: Vec<String>,
}

impl Tally {
    fn judge(&mut self, how: &str, (file, policy): &(String, String), found: &[Row], expected: &[Row]) {
        self.readings += 1;
        if agrees(found, expected) {
            return;
        }
        let shown = |rows: &[Row]| rows.iter().take(8).map(|row| format!("\n    {row:?}")).collect::<String>();
        let text = format!("{file} under {policy}, {how}:{}\n  expected{}", shown(found), shown(expected));
        let is_silent = found.last().is_some_and(|end| end[0] == "end");
        if is_silent { &mut self.silent } else { &mut self.loud }.push(text);
    }

    /// Print the counts past the test's captured output, then require that nothing was wrong.
    fn report(&self, name: &str) {
        let (silent, loud) = (self.silent.len(), self.loud.len());
        let line = format!("{name}: {silent} silent changes and {loud} wrong errors in {} readings\n", self.readings);
        std::io::stdout().write_all(line.as_bytes()).unwrap();
        let wrong: Vec<&String> = self.silent.iter().chain(&self.loud).take(5).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

/// Places to cut, in order, the same for each name: a few and many.
fn random_cuts(name: &str, length: usize, count: usize) -> Vec<usize> {
    let mut state =
        name.bytes().fold(count as u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let mut cuts: Vec<usize> = (0..count).map(|_| next() % (length + 1)).collect();
    cuts.sort_unstable();
    cuts
}

/// Gives at most one byte at a time.
struct Drops<'a>(&'a [u8]);

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(1);
        self.0.read(&mut buffer[..count])
    }
}

/// The content after decompression, `None` where that fails.
fn content_of(raw: &[u8], dropwise: bool) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let compression = Compression::of(raw);
    let outcome = match dropwise {
        true => decompress(Drops(raw), compression).read_to_end(&mut content),
        false => decompress(raw, compression).read_to_end(&mut content),
    };
    outcome.ok().map(|_| content)
}

#[test]
fn corpus_has_at_least_300_files_and_all_are_in_the_table() {
    let cases = cases();
    let files: Vec<_> = fs::read_dir(corpus().join("files")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.len() >= 300);
    assert_eq!(cases.len(), files.len() * ResiduePolicy::ALL.len());
    for file in files {
        for policy in ResiduePolicy::ALL {
            let key = (file.to_string_lossy().into_owned(), policy.name().to_string());
            assert!(cases.contains_key(&key), "{key:?}");
        }
    }
}

#[test]
fn files_read_as_written_in_the_table_by_path_and_by_memory_map() {
    let mut tally = Tally::default();
    for (case, expected) in cases() {
        let (file, policy) = &case;
        if is_spared(file, policy) {
            continue;
        }
        let path = corpus().join("files").join(file);
        let residues = ResiduePolicy::from_name(policy).unwrap();
        for (memory_map, batch_bytes) in [(false, 1 << 22), (true, 1 << 22), (true, 1), (false, 1)] {
            let how = format!("memory map {memory_map}, batches of {batch_bytes}");
            tally.judge(&how, &case, &read(&path, residues, memory_map, batch_bytes), &expected);
        }
    }
    tally.report("corpus by path");
}

/// What is compressed in the corpus is unpacked first, so that the map holds records and not an archive.
#[test]
fn unpacked_content_reads_as_written_by_path_and_by_memory_map() {
    let folder = std::env::temp_dir().join(format!("protperf-corpus-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut tally = Tally::default();
    for (case, expected) in cases() {
        let (file, policy) = &case;
        let raw = fs::read(corpus().join("files").join(file)).unwrap();
        let inner_is_packed =
            |content: &[u8]| Compression::of(content) != Compression::Plain || content.starts_with(b"PK");
        if Compression::of(&raw) == Compression::Plain || is_spared(file, policy) {
            continue;
        }
        let Some(content) = content_of(&raw, false).filter(|content| !inner_is_packed(content)) else { continue };
        let path = folder.join(file);
        fs::write(&path, &content).unwrap();
        let residues = ResiduePolicy::from_name(policy).unwrap();
        for memory_map in [false, true] {
            let how = format!("unpacked, memory map {memory_map}");
            tally.judge(&how, &case, &read(&path, residues, memory_map, 1 << 20), &expected);
        }
        fs::remove_file(&path).unwrap();
    }
    fs::remove_dir_all(&folder).unwrap();
    tally.report("corpus unpacked");
}

#[test]
fn bytes_scan_as_written_in_the_table_whole_byte_by_byte_and_at_random_cuts() {
    let mut tally = Tally::default();
    for (case, expected) in cases() {
        let (file, policy) = &case;
        if is_spared(file, policy) || expected.last().unwrap().get(2).is_some_and(|place| place == "-") {
            continue;
        }
        let raw = fs::read(corpus().join("files").join(file)).unwrap();
        let data = content_of(&raw, false).unwrap_or_else(|| panic!("{file} cannot be unpacked"));
        assert!(content_of(&raw, true).as_ref() == Some(&data), "{file} unpacks otherwise byte by byte");
        let residues = ResiduePolicy::from_name(policy).unwrap();
        tally.judge("whole", &case, &scan(&data, residues, std::iter::empty()), &expected);
        let is_large = data.len() > 200_000;
        for step in [1, 4093, 7].into_iter().take(if is_large { 2 } else { 3 }) {
            let ends = (step..data.len().max(step)).step_by(step);
            tally.judge(&format!("pieces of {step}"), &case, &scan(&data, residues, ends), &expected);
        }
        for count in [8, 1, 2, 3, 5, data.len() / 3].into_iter().take(if is_large { 1 } else { 6 }) {
            let cuts = random_cuts(file, data.len(), count);
            let found = scan(&data, residues, cuts.iter().copied());
            tally.judge(&format!("cuts at {:?}", &cuts[..count.min(8)]), &case, &found, &expected);
        }
    }
    tally.report("corpus by bytes");
}
