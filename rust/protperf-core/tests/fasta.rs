//! The scanner against a naive reader, over all bytes, policies and ways to cut an input.

use proptest::prelude::*;
use protperf_core::alphabet::{letter_of, token_of};
use protperf_core::fasta::{FastaError, FastaErrorKind, ResiduePolicy, Scanner, flag, split_header};

/// What an input comes to: per record (or rejection) a header or place, the letters, and what the policy did.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Record { ordinal: u64, header: String, letters: String },
    Rejected { ordinal: u64, line: u64, column: u64 },
    Error { line: u64, column: u64 },
}

fn scanned(data: &[u8], policy: ResiduePolicy, cuts: &[usize]) -> Vec<Item> {
    let mut scanner = Scanner::new(policy);
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
    let batch = scanner.take();
    let mut found: Vec<(u64, Item)> = Vec::new();
    for index in 0..batch.len() {
        let start = index.checked_sub(1).map_or(0, |before| batch.header_ends[before]);
        let header = batch.headers[start..batch.header_ends[index]].to_string();
        let letters = batch.tokens_of(index).unwrap().iter().map(|&token| letter_of(token).unwrap() as char).collect();
        let ordinal = batch.ordinals[index];
        found.push((ordinal, Item::Record { ordinal, header, letters }));
    }
    for rejection in batch.rejected {
        let FastaError { line, column, .. } = rejection.error;
        found.push((rejection.ordinal, Item::Rejected { ordinal: rejection.ordinal, line, column }));
    }
    found.sort_by_key(|(ordinal, _)| *ordinal);
    items.extend(found.into_iter().map(|(_, item)| item));
}

/// The reader that anyone would write with all of the input in memory: lines first, then records, then residues.
fn naive(data: &[u8], policy: ResiduePolicy) -> Vec<Item> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let text: String = data.iter().map(|&byte| byte as char).collect();
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut records: Vec<(usize, String, Vec<(usize, String)>)> = Vec::new();
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
            Ok(letters) => {
                let header = String::from_utf8(header.chars().map(|c| c as u8).collect()).unwrap();
                Item::Record { ordinal, header, letters }
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

/// Letters of one record, or line and column of its first fault.
fn naive_record(
    line: usize,
    header: &str,
    lines: &[(usize, String)],
    policy: ResiduePolicy,
) -> Result<String, (usize, usize)> {
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
    if !maps && (letters.is_empty() || is_dna) { Err((line, 1)) } else { Ok(letters) }
}

fn policies() -> impl Strategy<Value = ResiduePolicy> {
    prop::sample::select(ResiduePolicy::ALL.to_vec())
}

/// Inputs made of what matters to a FASTA reader, so that rare meetings (CR before LF, a stop before a comment) happen.
fn inputs() -> impl Strategy<Value = Vec<u8>> {
    let fragments: Vec<&[u8]> = vec![
        b">", b"\n>", b"\r>", b"\n>a b\n", b"\n", b"\r", b"\r\n", b";", b"\n;", b" ", b"  ", b"MKTAY", b"acd", b"U", b"O",
        b"X", b"B", b"z", b"J", b"*", b"**", b"-", b".", b"ACGTACGTACGTACGTACGTACGTACGT",
    ];
    let odd: Vec<&[u8]> = vec![b"1", b"\t", b"\0", b"\x1b", b"\x01", b"\x7f", b"\xff", b"\xc3\xa9", b"(", b"@", b"<"];
    let fragment = prop_oneof![30 => prop::sample::select(fragments), 1 => prop::sample::select(odd)];
    let starts = prop::sample::select(vec![&b">a\n"[..], b">", b"", b"\xef\xbb\xbf>", b"\n", b";x\n>b c\n"]);
    (starts, prop::collection::vec(fragment, 0..40)).prop_map(|(start, parts)| [start, &parts.concat()].concat())
}

/// Cases that only the scanner knows by name: their place is the same, yet the naive reader would read on.
fn is_named(data: &[u8], policy: ResiduePolicy) -> bool {
    let mut scanner = Scanner::new(policy);
    let outcome = scanner.push(data).and_then(|()| scanner.finish());
    matches!(outcome, Err(FastaError { kind: FastaErrorKind::OtherFormat { .. }, .. }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn verdict_does_not_depend_on_how_the_input_is_cut(
        data in inputs(), policy in policies(), cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let whole = scanned(&data, policy, &[]);
        prop_assert_eq!(&scanned(&data, policy, &cuts), &whole);
        prop_assert_eq!(&scanned(&data, policy, &(0..data.len()).collect::<Vec<_>>()), &whole);
    }

    #[test]
    fn scanner_agrees_with_naive_reader(data in inputs(), policy in policies()) {
        prop_assume!(!is_named(&data, policy));
        prop_assert_eq!(scanned(&data, policy, &[]), naive(&data, policy));
    }

    #[test]
    fn any_bytes_are_read_or_refused(data in prop::collection::vec(any::<u8>(), 0..200), policy in policies()) {
        scanned(&data, policy, &[1, 2, 3, 50]);
    }

    #[test]
    fn what_is_written_is_read_back(
        records in prop::collection::vec(("[!-:<-~]{1,8}( [ -~]{0,8}[!-~])?", "[ACDEFGHIKLMNPQRSTVWYUOX]{1,49}"), 1..6),
        width in 1_usize..12, line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]), policy in policies(),
    ) {
        let mut text = String::new();
        for (header, letters) in &records {
            text += &format!(">{header}{line_end}");
            for line in letters.as_bytes().chunks(width) {
                text += &format!("{}{line_end}", str::from_utf8(line).unwrap());
            }
        }
        let expected: Vec<Item> = records.into_iter().zip(0..)
            .map(|((header, letters), ordinal)| Item::Record { ordinal, header, letters }).collect();
        prop_assert_eq!(scanned(text.as_bytes(), policy, &[]), expected);
    }
}

/// Outcome of one byte between residues, by policy, as the residue table of the documentation has it.
fn expected_outcome(byte: u8, policy: ResiduePolicy) -> Option<(String, u16)> {
    let maps = policy == ResiduePolicy::Map;
    let upper = byte.to_ascii_uppercase();
    match byte {
        b'\n' | b'\r' | b' ' => Some(("MK".into(), 0)),
        b'*' if maps => Some(("MXK".into(), flag::INTERNAL_STOP | flag::AMBIGUOUS)),
        b'-' | b'.' if maps => Some(("MK".into(), flag::GAPS)),
        b'B' | b'Z' | b'J' | b'b' | b'z' | b'j' if !maps => None,
        _ if token_of(upper).is_some() => {
            let lower = if byte == upper { 0 } else { flag::LOWER_CASE };
            let ambiguous = if b"BZJX".contains(&upper) { flag::AMBIGUOUS } else { 0 };
            Some((format!("M{}K", upper as char), lower | ambiguous))
        }
        _ => None,
    }
}

#[test]
fn every_byte_meets_its_row_of_the_residue_table() {
    for policy in ResiduePolicy::ALL {
        for byte in 0..=255 {
            let mut scanner = Scanner::new(policy);
            let outcome = scanner.push(&[b'>', b'a', b'\n', b'M', byte, b'K', b'\n']).and_then(|()| scanner.finish());
            let batch = scanner.take();
            match expected_outcome(byte, policy) {
                Some((letters, flags)) => {
                    assert_eq!(outcome, Ok(()), "byte {byte} under {policy:?}");
                    let tokens: Vec<u8> = letters.bytes().map(|letter| token_of(letter).unwrap()).collect();
                    assert_eq!((batch.tokens, batch.flags), (tokens, vec![flags]), "byte {byte} under {policy:?}");
                }
                None => {
                    let error = match policy {
                        ResiduePolicy::Skip => batch.rejected[0].error.clone(),
                        _ => outcome.unwrap_err(),
                    };
                    assert_eq!((error.line, error.column, error.record), (2, 2, Some("a".into())), "byte {byte}");
                    assert!(batch.flags.is_empty());
                }
            }
        }
    }
}

#[test]
fn every_byte_of_a_header_is_kept_or_refused() {
    for byte in 0..=255_u8 {
        let items = scanned(&[b'>', b'i', b'd', b' ', byte, b'\n', b'M'], ResiduePolicy::Map, &[]);
        let kept = match byte {
            b'\n' | b'\r' => Some("id ".to_string()),
            1 | b'\t' | b' '..=b'~' => Some(format!("id {}", byte as char)),
            _ => None,
        };
        assert_eq!(items[0], match kept {
            Some(header) => Item::Record { ordinal: 0, header, letters: "M".into() },
            None => Item::Error { line: 1, column: 5 },
        });
    }
}

#[test]
fn failure_is_repeated_and_records_before_it_are_kept() {
    let mut scanner = Scanner::new(ResiduePolicy::Map);
    let error = scanner.push(b">a\nMK\n>b\nM1\n>c\nMK\n").unwrap_err();
    assert_eq!(scanner.push(b">d\nMK\n"), Err(error.clone()));
    assert_eq!(scanner.finish(), Err(error));
    assert_eq!(scanner.take().name_of(0), Some(("a", "")));
}

#[test]
fn finishing_twice_changes_nothing() {
    let mut scanner = Scanner::new(ResiduePolicy::Map);
    scanner.push(b">a\nMK").unwrap();
    scanner.finish().unwrap();
    scanner.push(b"L\n>b\n").unwrap();
    scanner.finish().unwrap();
    let batch = scanner.take();
    assert_eq!((batch.len(), batch.tokens.len()), (1, 2));
    assert_eq!(scanner.summary().records, 1);
}

#[test]
fn bare_sequence_takes_the_policy_and_no_header() {
    let bare = |text: &[u8], policy| {
        let mut scanner = Scanner::of_sequence(policy);
        let outcome = text.chunks(1).try_for_each(|piece| scanner.push(piece)).and_then(|()| scanner.finish());
        let batch = scanner.take();
        outcome.map(|()| (batch.tokens, batch.flags, batch.rejected.len())).map_err(|error| (error.line, error.column))
    };
    let flags = flag::LOWER_CASE | flag::TRAILING_STOP;
    assert_eq!(bare(b"mk\nL*", ResiduePolicy::Map), Ok((vec![13, 11, 12], vec![flags], 0)));
    assert_eq!(bare(b"", ResiduePolicy::Map), Ok((vec![], vec![flag::EMPTY], 0)));
    assert_eq!(bare(b">a\nMK", ResiduePolicy::Map), Err((1, 1)));
    assert_eq!(bare(b"MK\n;L", ResiduePolicy::Strict), Err((2, 1)));
    assert_eq!(bare(b"M1K\n>b\nML", ResiduePolicy::Skip), Ok((vec![], vec![], 1)));
}

#[test]
fn headers_split_at_the_first_blank_or_control_a() {
    assert_eq!(split_header("a b  c "), ("a", "b  c"));
    assert_eq!(split_header("  a\tb"), ("a", "b"));
    assert_eq!(split_header("a\u{1}b c"), ("a", "\u{1}b c"));
    assert_eq!(split_header(" \t "), ("", ""));
}

#[test]
fn error_texts_show_no_sequence_and_no_control_bytes() {
    let secret = "WWWWHHHHCCCC";
    let tail = ["1", "\u{1b}", ">", "é", "*M", "-", "B"];
    for text in tail.map(|odd| format!(">id\u{1b}[2J\n{secret}{odd}")).into_iter().chain(
        tail.map(|odd| format!(">id\n{secret}{odd}{secret}")),
    ).chain([format!("{secret}\n>a\nMK"), format!(">{}\n{secret}1", "x".repeat(500))]) {
        let mut scanner = Scanner::new(ResiduePolicy::Strict);
        let outcome = scanner.push(text.as_bytes()).and_then(|()| scanner.finish());
        let message = outcome.expect_err(&text).to_string();
        assert!(!message.contains(&secret[..4]) && !message.chars().any(char::is_control), "{message}");
        assert!(message.len() < 300, "{message}");
    }
}
