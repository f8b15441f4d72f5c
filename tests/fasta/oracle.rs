//! The scanner's verdict in plain terms, and a reader to compare it with: all of the input in memory, nothing fast.

use protperf_core::alphabet::letter_of;
use protperf_core::fasta::{Batch, FastaError, ResiduePolicy, Scanner, flag};

/// What an input comes to: per record (or rejection) a header or place, the letters, and the flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Record { ordinal: u64, header: String, letters: String, flags: u16 },
    Rejected { ordinal: u64, line: u64, column: u64 },
    Error { line: u64, column: u64 },
}

/// What the scanner makes of the input when it is cut at these places (modulo its length).
pub fn scanned(data: &[u8], policy: ResiduePolicy, cuts: &[usize]) -> Vec<Item> {
    scanned_by(Scanner::new(policy), data, cuts)
}

/// What a scanner makes of the input when it is cut at these places.
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

/// The reader that anyone would write with all of the input in memory: lines first, then records, then residues.
pub fn naive(data: &[u8], policy: ResiduePolicy) -> Vec<Item> {
    let content = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let text: String = content.iter().map(|&byte| byte as char).collect();
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut records: Vec<(usize, String, Lines)> = Vec::new();
    for (index, line) in text.split('\n').enumerate().filter(|(_, line)| !line.starts_with(';')) {
        match (line.strip_prefix('>'), records.last_mut()) {
            (Some(header), _) => records.push((index + 1, header.into(), Vec::new())),
            (None, Some((.., lines))) => lines.push((index + 1, line.into())),
            (None, None) => match line.find(|c| c != ' ') {
                None => {}
                Some(at) => return vec![Item::Error { line: index as u64 + 1, column: at as u64 + 1 }],
            },
        }
    }
    let mut items = Vec::new();
    for (ordinal, (line, header, lines)) in records.iter().enumerate() {
        let ordinal = ordinal as u64;
        items.push(match naive_record(*line, header, lines, policy) {
            Ok((letters, flags)) => {
                let header = String::from_utf8(header.chars().map(|c| c as u8).collect()).unwrap();
                let words = header.trim_matches([' ', '\t']);
                let has_id = !words.is_empty() && !words.starts_with('\x01');
                let flags = if has_id { flags } else { flags | flag::NO_ID };
                Item::Record { ordinal, header, letters, flags }
            }
            Err((line, column)) if policy == ResiduePolicy::Skip => {
                Item::Rejected { ordinal, line: line as u64, column: column as u64 }
            }
            Err((line, column)) => {
                items.push(Item::Error { line: line as u64, column: column as u64 });
                return items;
            }
        });
    }
    match (items.is_empty(), data.is_empty()) {
        (true, false) => vec![Item::Error { line: 1, column: 1 }],
        _ => items,
    }
}

/// The same for one sequence without header, where no line is a header or a comment: letters and flags, or line and
/// column of the first fault.
pub fn naive_sequence(data: &[u8], policy: ResiduePolicy) -> Result<(String, u16), (usize, usize)> {
    let text: String = data.iter().map(|&byte| byte as char).collect();
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Lines = text.split('\n').enumerate().map(|(index, line)| (index + 1, line.into())).collect();
    naive_record(1, "", &lines, policy)
}

/// What a scanner makes of one sequence without header that is cut at these places.
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
    header: &str,
    lines: &[(usize, String)],
    policy: ResiduePolicy,
) -> Result<(String, u16), (usize, usize)> {
    let maps = policy == ResiduePolicy::Map;
    let bytes: Vec<u8> = header.chars().map(|c| c as u8).collect();
    if let Err(error) = std::str::from_utf8(&bytes) {
        return Err((line, error.valid_up_to() + 2));
    }
    if let Some(at) = bytes.iter().position(|&b| (b < 32 && b != 1 && b != b'\t') || b == 127) {
        return Err((line, at + 2));
    }
    let mut letters = String::new();
    let places = lines.iter().flat_map(|(line, text)| text.chars().enumerate().map(move |(at, c)| (*line, at + 1, c)));
    let places: Vec<(usize, usize, char)> = places.collect();
    let is_residue = |c: char| c.is_ascii_alphabetic();
    let last = places.iter().rposition(|&(.., c)| is_residue(c));
    let mut first_stop = None;
    for (index, &(line, column, c)) in places.iter().enumerate() {
        let upper = c.to_ascii_uppercase();
        let refused = match c {
            ' ' => continue,
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
