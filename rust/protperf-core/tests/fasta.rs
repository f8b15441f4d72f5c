//! The scanner against a naive reader, over all bytes, policies and ways to cut an input.

#[path = "../../../tests/fasta/oracle.rs"]
mod oracle;
mod table;
#[path = "../../../tests/fasta/table_oracle.rs"]
mod table_oracle;

use oracle::{Item, naive, naive_sequence, scanned, scanned_sequence};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use protperf_core::alphabet::token_of;
use protperf_core::fasta::{FastaError, FastaErrorKind, ResiduePolicy, Scanner, flag, split_header};

fn policies() -> impl Strategy<Value = ResiduePolicy> {
    prop::sample::select(ResiduePolicy::ALL.to_vec())
}

/// Inputs made of what matters to a FASTA reader, so that rare pairs (CR before LF, a stop before a comment) occur.
fn inputs() -> impl Strategy<Value = Vec<u8>> {
    let fragments: Vec<&[u8]> = vec![
        b">",
        b"\n>",
        b"\r>",
        b"\n>a b\n",
        b"\n",
        b"\r",
        b"\r\n",
        b";",
        b"\n;",
        b" ",
        b"\t",
        b"  ",
        b"\n#A3M#\n",
        b"\n>ss_pred x\n",
        b"\n>ss_dssp\n",
        b"\n>sa_x\n",
        b"\n>ss_\n",
        b"MKTAY",
        b"acd",
        b"U",
        b"O",
        b"X",
        b"B",
        b"z",
        b"J",
        b"*",
        b"**",
        b"-",
        b".",
        b"ACGTACGTACGTACGTACGTACGTACGT",
    ];
    let odd: Vec<&[u8]> = vec![b"1", b"#", b"\0", b"\x1b", b"\x01", b"\x7f", b"\xff", b"\xc3\xa9", b"(", b"@", b"<"];
    let fragment = prop_oneof![30 => prop::sample::select(fragments), 1 => prop::sample::select(odd)];
    let starts: Vec<&[u8]> = vec![
        b">a\n",
        b">",
        b"",
        b"\xef\xbb\xbf>",
        b"\n",
        b";x\n>b c\n",
        b"#A3M#\n>a\n",
        b"#101\t1\n",
        b"\t\n>a \xe9\n",
    ];
    let starts = prop::sample::select(starts);
    (starts, prop::collection::vec(fragment, 0..40)).prop_map(|(start, parts)| [start, &parts.concat()].concat())
}

/// Whether the scanner refuses the input by the name of another format, which the naive reader does not know.
fn is_named(data: &[u8], policy: ResiduePolicy) -> bool {
    let mut scanner = Scanner::new(policy);
    let outcome = scanner.push(data).and_then(|()| scanner.finish());
    matches!(outcome, Err(FastaError { kind: FastaErrorKind::OtherFormat { .. }, .. }))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

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
    fn bare_sequence_agrees_with_naive_reader(
        data in inputs(), policy in policies(), cuts in prop::collection::vec(any::<usize>(), 0..8),
    ) {
        prop_assert_eq!(scanned_sequence(&data, policy, &cuts), naive_sequence(&data, policy));
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
            .map(|((header, letters), ordinal)| {
                let flags = if letters.contains('X') { flag::AMBIGUOUS } else { 0 };
                Item::Record { ordinal, header, letters, flags }
            }).collect();
        prop_assert_eq!(scanned(text.as_bytes(), policy, &[]), expected);
    }
}

/// Outcome of one byte between residues, by policy, as in the residue table of the documentation.
fn expected_outcome(byte: u8, policy: ResiduePolicy) -> Option<(String, u16)> {
    let maps = policy == ResiduePolicy::Map;
    let upper = byte.to_ascii_uppercase();
    match byte {
        b'\n' | b'\r' | b' ' | b'\t' => Some(("MK".into(), 0)),
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
fn every_byte_of_a_header_is_kept_decoded_or_refused() {
    for byte in 0..=255_u8 {
        let input = [b'>', b'i', b'd', b' ', byte, b'\n', b'M'];
        let record = |header: String, flags| Item::Record { ordinal: 0, header, letters: "M".into(), flags };
        let error = Item::Error { line: 1, column: 5 };
        let latin1 = || record(format!("id {}", byte as char), flag::LATIN1_HEADER);
        let (map, strict) = match byte {
            b'\n' | b'\r' => (record("id ".into(), 0), record("id ".into(), 0)),
            1 | b'\t' | b' '..=b'~' => {
                (record(format!("id {}", byte as char), 0), record(format!("id {}", byte as char), 0))
            }
            0x80.. => (latin1(), error),
            _ => (error.clone(), error),
        };
        assert_eq!(scanned(&input, ResiduePolicy::Map, &[])[0], map, "byte {byte}");
        assert_eq!(scanned(&input, ResiduePolicy::Strict, &[])[0], strict, "byte {byte}");
    }
}

/// What is dropped is counted, so that the reader can say it, and takes no place among the records.
#[test]
fn lines_and_records_that_annotate_an_alignment_are_dropped_and_counted() {
    let text = b"#A3M#\n>ss_dssp\nCHE\n>ss_pred p\nHHC\n>ss_conf\n987\n>a\nMK-v\n>ss_predicted\nMK\n";
    for policy in [ResiduePolicy::Map, ResiduePolicy::Strict] {
        let mut scanner = Scanner::new(policy);
        let outcome = scanner.push(text).and_then(|()| scanner.finish());
        assert_eq!(outcome.is_ok(), policy == ResiduePolicy::Map);
        assert_eq!((scanner.summary().has_alignment_line, scanner.summary().annotation_records), (true, 3));
    }
    let record = |ordinal, header: &str, letters: &str, flags| Item::Record {
        ordinal,
        header: header.into(),
        letters: letters.into(),
        flags,
    };
    let flags = flag::GAPS | flag::LOWER_CASE;
    let expected = vec![record(0, "a", "MKV", flags), record(1, "ss_predicted", "MK", 0)];
    assert_eq!(scanned(text, ResiduePolicy::Map, &[]), expected);
}

#[test]
fn only_one_line_with_a_hash_and_only_at_the_start_is_dropped() {
    let place = |text: &str| match scanned(text.as_bytes(), ResiduePolicy::Map, &[])[..] {
        [Item::Error { line, column }] => Some((line, column)),
        _ => None,
    };
    assert_eq!(place("#101\t1\n>a\nMK\n"), None);
    assert_eq!(place(&format!("\n;x\n#{}\n>a\nMK\n", "x".repeat(100_000))), None);
    assert_eq!(place("#one\n#two\n>a\nMK\n"), Some((2, 1)));
    assert_eq!(place(" #one\n>a\nMK\n"), Some((1, 2)));
    assert_eq!(place("# STOCKHOLM 1.0\n>a\nMK\n"), Some((1, 1)));
    assert_eq!(place(&format!("#{}\0\n>a\nMK\n", "x".repeat(200))), Some((1, 1)));
    assert_eq!(place("#A3M#\n"), Some((1, 1)));
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
    for text in tail
        .map(|odd| format!(">id\u{1b}[2J\n{secret}{odd}"))
        .into_iter()
        .chain(tail.map(|odd| format!(">id\n{secret}{odd}{secret}")))
        .chain([format!("{secret}\n>a\nMK"), format!(">{}\n{secret}1", "x".repeat(500))])
    {
        let mut scanner = Scanner::new(ResiduePolicy::Strict);
        let outcome = scanner.push(text.as_bytes()).and_then(|()| scanner.finish());
        let message = outcome.expect_err(&text).to_string();
        assert!(!message.contains(&secret[..4]) && !message.chars().any(char::is_control), "{message}");
        assert!(message.len() < 300, "{message}");
    }
}
