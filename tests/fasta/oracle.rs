//! The scanner's verdict in plain terms, and a naive reader to compare it with, which holds the whole input in memory.

use protperf_core::alphabet::letter_of;
use protperf_core::fasta::{Batch, FastaError, ResiduePolicy, Scanner, flag};

/// What is read from an input: records with their letters and flags, rejections and an error with their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Record { ordinal: u64, header: String, letters: String, flags: u16 },
    Rejected { ordinal: u64, line: u64, column: u64 },
    Error { line: u64, column: u64 },
}

/// What the scanner reads when the input is cut at these places (modulo its length).
pub fn scanned(data: &[u8], policy: ResiduePolicy, cuts: &[usize]) -> Vec<Item> {
    scanned_by(Scanner::new(policy), data, cuts)
}

/// What a given scanner reads when the input is cut at these places.
pub fn scanned_by(mut scanner: Scanner, data: &[u8], cuts: &[usize]) -> Vec<Item> {
    let mut items = Vec::new();
    let outcome = pieces(data, cuts).try_for_each(|piece| {
        let outcome = scanner.push(piece);
        collect(&mut scanner, &mut items);
        outcome
    });
    let outcome = outcome.and_then(|()| scanner.finish());
    collect(&mut scanner, &mut items);
    items.extend(outcome.err().map(|FastaError { line, column, .. }| Item::Error { line, column }));
    items
}

fn pieces<'a>(data: &'a [u8], cuts: &[usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut bounds: Vec<usize> = cuts.iter().map(|&cut| cut % (data.len() + 1)).collect();
    bounds.extend([0, data.len()]);
    bounds.sort_unstable();
    (1..bounds.len()).map(move |index| &data[bounds[index - 1]..bounds[index]])
}

fn collect(scanner: &mut Scanner, items: &mut Vec<Item>) {
    items.extend(items_of(scanner.take()));
}

/// Records and rejections of a batch in the order of the input.
pub fn items_of(batch: Batch) -> impl Iterator<Item = Item> {
    let mut found: Vec<(u64, Item)> = Vec::new();
    for index in 0..batch.len() {
        let start = index.checked_sub(1).map_or(0, |before| batch.header_ends[before]);
        let header = batch.headers[start..batch.header_ends[index]].to_string();
        let letters = batch.tokens_of(index).unwrap().iter().map(|&token| letter_of(token).unwrap() as char).collect();
        let (ordinal, flags) = (batch.ordinals[index], batch.flags[index]);
        found.push((ordinal, Item::Record { ordinal, header, letters, flags }));
    }
    for rejection in batch.rejected {
        let FastaError { line, column, .. } = rejection.error;
        found.push((rejection.ordinal, Item::Rejected { ordinal: rejection.ordinal, line, column }));
    }
    found.sort_by_key(|(ordinal, _)| *ordinal);
    found.into_iter().map(|(_, item)| item)
}

/// Lines with their numbers.
type Lines = Vec<(usize, String)>;

/// The reader that anyone would write with the whole input in memory: lines first, then records, then residues.
pub fn naive(data: &[u8], policy: ResiduePolicy) -> Vec<Item> {
    let content = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let text: String = content.iter().map(|&byte| byte as char).collect();
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut records: Vec<(usize, String, Lines)> = Vec::new();
    let mut has_alignment_line = false;
    for (index, line) in text.split('\n').enumerate().filter(|(_, line)| !line.starts_with(';')) {
        match (line.strip_prefix('>'), records.last_mut()) {
            (Some(header), _) => records.push((index + 1, header.into(), Vec::new())),
            (None, Some((.., lines))) => lines.push((index + 1, line.into())),
            (None, None) if line.starts_with('#') && !has_alignment_line => has_alignment_line = true,
            (None, None) => match line.find(|c| c != ' ' && c != '\t') {
                None => {}
                Some(at) => return vec![Item::Error { line: index as u64 + 1, column: at as u64 + 1 }],
            },
        }
    }
    let mut items = Vec::new();
    let mut is_alignment = has_alignment_line;
    for (line, header, lines) in &records {
        let ordinal = items.len() as u64;
        let bytes: Vec<u8> = header.chars().map(|c| c as u8).collect();
        let header = naive_header(&bytes, policy).map_err(|at| (*line, at + 2));
        let is_top = is_alignment && items.is_empty();
        if header.as_ref().is_ok_and(|(header, _)| is_annotation(header, is_top)) {
            is_alignment = true;
            continue;
        }
        let record = header.and_then(|(header, header_flags)| {
            let (letters, flags) = naive_record(*line, lines, policy)?;
            Ok(Item::Record { ordinal, header, letters, flags: flags | header_flags })
        });
        items.push(match record {
            Ok(record) => record,
            Err((line, column)) if policy == ResiduePolicy::Skip => {
                Item::Rejected { ordinal, line: line as u64, column: column as u64 }
            }
            Err((line, column)) => {
                items.push(Item::Error { line: line as u64, column: column as u64 });
                return items;
            }
        });
    }
    match (records.is_empty(), data.is_empty()) {
        (true, false) => vec![Item::Error { line: 1, column: 1 }],
        _ => items,
    }
}

/// A header as text and its flags, or the index of the byte at fault.
pub fn naive_header(bytes: &[u8], policy: ResiduePolicy) -> Result<(String, u16), usize> {
    let utf8 = String::from_utf8(bytes.to_vec());
    let flags = if utf8.is_ok() { 0 } else { flag::LATIN1_HEADER };
    let header = match utf8 {
        Ok(text) => text,
        Err(_) if policy != ResiduePolicy::Strict => bytes.iter().map(|&byte| byte as char).collect(),
        Err(error) => return Err(error.utf8_error().valid_up_to()),
    };
    if let Some(at) = bytes.iter().position(|&byte| (byte < 32 && byte != 1 && byte != b'\t') || byte == 127) {
        return Err(at);
    }
    let words = header.trim_matches([' ', '\t']);
    let has_id = !words.is_empty() && !words.starts_with('\x01');
    Ok((header, if has_id { flags } else { flags | flag::NO_ID }))
}

/// Whether HH-suite writes annotation of an alignment under this header; more names count at the top of an alignment.
fn is_annotation(header: &str, is_top: bool) -> bool {
    let id = header.split([' ', '\t', '\x01']).find(|word| !word.is_empty());
    let starts_with_id = id.is_some_and(|id| header.trim_start_matches([' ', '\t']).starts_with(id));
    let known = ["ss_dssp", "ss_pred", "ss_conf", "sa_dssp", "sa_pred", "sa_conf"];
    let is_known = |id: &str| known.contains(&id) || (is_top && ["ss_", "sa_"].contains(&&id[..id.len().min(3)]));
    starts_with_id && is_known(id.unwrap())
}

/// The same for one sequence without header, where no line is a header or a comment: letters and flags, or line and
/// column of the first fault.
pub fn naive_sequence(data: &[u8], policy: ResiduePolicy) -> Result<(String, u16), (usize, usize)> {
    let text: String = data.iter().map(|&byte| byte as char).collect();
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Lines = text.split('\n').enumerate().map(|(index, line)| (index + 1, line.into())).collect();
    naive_record(1, &lines, policy)
}

/// What a scanner reads of one sequence without header that is cut at these places.
pub fn scanned_sequence(data: &[u8], policy: ResiduePolicy, cuts: &[usize]) -> Result<(String, u16), (usize, usize)> {
    let mut scanner = Scanner::of_sequence(policy);
    let outcome = pieces(data, cuts).try_for_each(|piece| scanner.push(piece)).and_then(|()| scanner.finish());
    let place = |error: FastaError| (error.line as usize, error.column as usize);
    outcome.map_err(place)?;
    let mut batch = scanner.take();
    match batch.rejected.pop() {
        Some(rejection) => Err(place(rejection.error)),
        None => {
            let letters = batch.tokens.iter().map(|&token| letter_of(token).unwrap() as char).collect();
            Ok((letters, batch.flags[0]))
        }
    }
}

/// Letters and flags of one record, or line and column of its first fault.
pub(super) fn naive_record(
    line: usize,
    lines: &[(usize, String)],
    policy: ResiduePolicy,
) -> Result<(String, u16), (usize, usize)> {
    let maps = policy == ResiduePolicy::Map;
    let mut letters = String::new();
    let places = lines.iter().flat_map(|(line, text)| text.chars().enumerate().map(move |(at, c)| (*line, at + 1, c)));
    let places: Vec<(usize, usize, char)> = places.collect();
    let is_residue = |c: char| c.is_ascii_alphabetic();
    let last = places.iter().rposition(|&(.., c)| is_residue(c));
    let mut first_stop = None;
    for (index, &(line, column, c)) in places.iter().enumerate() {
        let upper = c.to_ascii_uppercase();
        let refused = match c {
            ' ' | '\t' => continue,
            '*' if last.is_none_or(|last| index > last) => continue,
            '*' => {
                first_stop.get_or_insert((line, column));
                letters.push('X');
                continue;
            }
            '-' | '.' if maps => continue,
            _ if is_residue(c) && !maps && first_stop.is_some() => return Err(first_stop.unwrap()),
            _ => !is_residue(c) || (!maps && "BZJ".contains(upper)),
        };
        if refused {
            return Err((line, column));
        }
        letters.push(upper);
    }
    let is_dna = letters.len() > 50 && letters.chars().all(|c| "ACGTUN".contains(c));
    if !maps && (letters.is_empty() || is_dna) {
        return Err((line, 1));
    }
    let stop_at = |is_internal: bool| {
        let is_before = |index: usize| last.is_some_and(|last| index < last);
        places.iter().enumerate().any(|(index, &(.., c))| c == '*' && is_before(index) == is_internal)
    };
    let has = |what: fn(char) -> bool| places.iter().any(|&(.., c)| what(c));
    let facts = [
        (stop_at(false), flag::TRAILING_STOP),
        (stop_at(true), flag::INTERNAL_STOP),
        (has(|c| matches!(c, '-' | '.')), flag::GAPS),
        (has(|c| c.is_ascii_lowercase()), flag::LOWER_CASE),
        (letters.contains(['B', 'Z', 'J', 'X']), flag::AMBIGUOUS),
        (letters.is_empty(), flag::EMPTY),
        (is_dna, flag::NUCLEOTIDES),
    ];
    let flags = facts.iter().filter(|(holds, _)| *holds).fold(0, |flags, (_, bit)| flags | bit);
    Ok((letters, flags))
}
