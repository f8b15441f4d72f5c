//! Tables against a naive reader: quotes, separators, line ends, policies and ways to cut an input.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use protperf_core::fasta::{Columns, FastaError, FastaErrorKind, ResiduePolicy, Scanner};

use crate::oracle::{Item, scanned_by};
use crate::table_oracle::naive_table;

fn columns(id: Option<&str>) -> Columns {
    Columns { sequence: "seq".into(), id: id.map(Into::into) }
}

fn scanned(data: &[u8], policy: ResiduePolicy, columns: &Columns, cuts: &[usize]) -> Vec<Item> {
    scanned_by(Scanner::of_table(policy, columns.clone()), data, cuts)
}

fn records(data: &[u8]) -> Vec<(String, String)> {
    scanned(data, ResiduePolicy::Map, &columns(None), &[])
        .into_iter()
        .map(|item| match item {
            Item::Record { header, letters, .. } => (header, letters),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn fault(data: &[u8], columns: &Columns) -> String {
    let mut scanner = Scanner::of_table(ResiduePolicy::Map, columns.clone());
    let outcome = scanner.push(data).and_then(|()| scanner.finish());
    outcome.expect_err("a fault").to_string()
}

/// Tables made of what matters: separators, quotes, line ends and residues, in any order.
fn inputs() -> impl Strategy<Value = Vec<u8>> {
    let starts: Vec<&[u8]> = vec![
        b"id,seq\n",
        b"seq\n",
        b"seq\tid\r\n",
        b"x;seq;y\r",
        b"\xef\xbb\xbfseq,id\n",
        b"\n\r\n\"seq\",\"i\"\"d\"\n",
        b"id,seq\n\xc5 \xe9,\"M\tK\"\n",
        b"",
    ];
    let fragments: Vec<&[u8]> = vec![
        b",",
        b"\t",
        b";",
        b"\n",
        b"\r",
        b"\r\n",
        b"\"",
        b"\"\"",
        b"\",\"",
        b" ",
        b"MKTAY",
        b"acd",
        b"MX",
        b"*",
        b"-",
        b"NA",
        b"nan",
        b"a b",
        b"\nid1,MKV\n",
        b"\n\"b\",\"MK\nV\"\n",
        b"\nc\tMK",
        b"\r\n1;MK;2\r\n",
        b"ACGTACGTACGTACGTACGTACGTACGTACGTACGT",
    ];
    let odd: Vec<&[u8]> = vec![b"1", b"\0", b"\x1b", b"\xff", b"\xc3\xa9", b">", b"seq", b"\xef\xbb\xbf"];
    let fragment = prop_oneof![20 => prop::sample::select(fragments), 1 => prop::sample::select(odd)];
    (prop::sample::select(starts), prop::collection::vec(fragment, 0..24))
        .prop_map(|(start, parts)| [start, &parts.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default()
    })]

    #[test]
    fn table_agrees_with_naive_reader_however_it_is_cut(
        data in inputs(), policy in prop::sample::select(ResiduePolicy::ALL.to_vec()),
        id in prop::sample::select(vec![None, Some("id"), Some("y")]), cuts in prop::collection::vec(any::<usize>(), 0..8),
    ) {
        let columns = columns(id);
        let whole = scanned(&data, policy, &columns, &[]);
        prop_assert_eq!(&whole, &naive_table(&data, policy, &columns));
        prop_assert_eq!(&scanned(&data, policy, &columns, &cuts), &whole);
        prop_assert_eq!(&scanned(&data, policy, &columns, &(0..data.len()).collect::<Vec<_>>()), &whole);
    }
}

#[test]
fn rows_are_records_with_any_separator_and_line_end() {
    let expected = [("a x", "MKV"), ("b", "ACD")].map(|(id, letters)| (id.to_string(), letters.to_string()));
    for separator in [",", "\t", ";"] {
        for end in ["\n", "\r\n", "\r"] {
            let rows = [["n", "seq", "id"], ["1", "MKV", "a x"], ["2", "\"acd\"", "b"]].map(|row| row.join(separator));
            assert_eq!(records(rows.join(end).as_bytes()), expected, "{separator:?} {end:?}");
        }
    }
}

#[test]
fn without_a_column_of_ids_a_record_is_named_by_its_ordinal() {
    assert_eq!(records(b"seq\nMKV\nACD\n"), [("0".into(), "MKV".into()), ("1".into(), "ACD".into())]);
    let mut scanner = Scanner::of_table(ResiduePolicy::Map, columns(None)).counted_from(7);
    scanner.push(b"seq\nMKV\n").and_then(|()| scanner.finish()).unwrap();
    let batch = scanner.take();
    assert_eq!((batch.name_of(0), &batch.ordinals[..], &batch.lines[..]), (Some(("7", "")), &[7][..], &[2][..]));
}

#[test]
fn faults_of_a_table_have_a_place_and_a_remedy() {
    let id = columns(Some("name"));
    for (data, columns, expected) in [
        (
            "a,b\nMK,1\n",
            columns(None),
            "1:1: no column 'seq'; the first row must name the columns, and it names 'a', 'b'",
        ),
        (
            "seq,b\nMK,1\n",
            id.clone(),
            "1:1: no column 'name'; the first row must name the columns, and it names 'seq', 'b'",
        ),
        ("\n\n", columns(None), "1:1: no column 'seq': only blank lines; the first row"),
        (">a\nMKV\n", columns(None), "1:1: not a table: this looks like FASTA; leave out seq_col"),
        ("@r1\nACGT\n+\n", columns(None), "1:1: not a table: this looks like FASTQ; convert it"),
        ("<!DOCTYPE html><html>", columns(None), "1:1: not a table: this looks like HTML; fetch the file again"),
        ("\u{1}\0\0", columns(None), "1:1: not a table: this looks like binary data; convert it"),
        ("seq,x,seq\n", columns(None), "1:1: two columns are named 'seq'; rename one"),
        ("seq,x\nMK\n", columns(None), "2:1: 1 fields in a table of 2 columns"),
        ("x,seq\n\n1,MK\n2,M,K\n", columns(None), "4:1: 3 fields in a table of 2 columns"),
        ("x,seq\n\"1,MK\n", columns(None), "2:1: quoted field is not closed"),
        ("x,seq\n1,\"MK\"V\n", columns(None), "2:3: quoted field is not closed, or has text after"),
        ("x,seq\n1,\"MK1\"\n", columns(None), "2:6: digit '1' in the sequence; remove position numbers (record '0')"),
        ("name,seq\nP1 x,MK!\n", id.clone(), "2:8: character '!' in the sequence is not a residue (record 'P1')"),
        ("name,seq\n\"P\n1\",MK\n", id, "2:3: control byte 0x0a in the header; remove it"),
        ("id,seq,id\n", columns(None), "1:1: two columns are named 'id'; rename one"),
        ("seq\nMK\nNA\n", columns(None), "3:1: the sequence is a table's word for a missing value"),
    ] {
        let found = fault(data.as_bytes(), &columns);
        assert!(found.starts_with(expected), "{data:?}: {found}");
    }
}

#[test]
fn a_stray_quote_is_a_fault_and_hides_no_row() {
    // Lenient readers return one record here, and lose the rows between the quotes.
    let data = b"seq\tnote\nMKV\t\"5 prime\nACD\t-\nEFG\t\"3 prime\n";
    assert!(fault(data, &columns(None)).starts_with("2:5: quoted field is not closed, or has text after"));
}

#[test]
fn no_error_repeats_a_sequence_in_the_place_of_a_name() {
    let sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV";
    let found = fault(format!("P1,{sequence}\nP2,{sequence}\n").as_bytes(), &columns(None));
    assert!(found.contains("names 'P1', (70 characters)") && !found.contains("MKTAY"), "{found}");
    let found = fault(b"P1\tGIVEQCCTSICSLYQLENYCN\n", &columns(None));
    assert!(found.ends_with("names 'P1', (21 characters)"), "{found}");
}

#[test]
fn words_for_a_missing_value_are_refused() {
    for word in ["NA", "na", " NA ", "NaN", "-NaN", "None", "none", "NULL", "\"null\n\""] {
        let found = fault(format!("seq\n{word}\n").as_bytes(), &columns(None));
        assert!(found.contains("word for a missing value"), "{word}: {found}");
    }
    assert_eq!(records(b"seq\nNAN-A\nNAA\n").len(), 2);
}

#[test]
fn a_column_of_sequences_called_id_is_not_taken_for_ids() {
    let id = Columns { sequence: "id".into(), id: None };
    let expected = Item::Record { ordinal: 0, header: "0".into(), letters: "MKV".into(), flags: 0 };
    assert_eq!(scanned(b"id,x\nMKV,1\n", ResiduePolicy::Map, &id, &[]), [expected]);
}

#[test]
fn a_first_row_without_end_is_refused_before_it_fills_memory() {
    let no_column = |found: &str| FastaErrorKind::NoColumn { name: "seq".into(), found: found.into() };
    for size in [1 << 16, 1000, 1 << 22] {
        for (start, expected) in [
            ("", no_column("(1048576 characters)")),
            ("\n\r\n", no_column("(1048576 characters)")),
            ("\"", FastaErrorKind::Quote),
        ] {
            let mut scanner = Scanner::of_table(ResiduePolicy::Map, columns(None));
            scanner.push(start.as_bytes()).unwrap();
            let line = if start == "\"" { vec![b'\n'; size] } else { vec![b'M'; size] };
            let failed = (0..=(1 << 20) / size + 1).position(|_| scanner.push(&line).is_err());
            assert!(failed.is_some(), "{size}");
            assert_eq!(scanner.finish().map_err(|FastaError { kind, .. }| kind), Err(expected));
        }
    }
}

#[test]
fn blank_lines_before_a_table_take_no_memory_and_keep_its_lines() {
    let mut scanner = Scanner::of_table(ResiduePolicy::Map, columns(None));
    scanner.push(b"\xef\xbb").and_then(|()| scanner.push(b"\xbf\r")).unwrap();
    for _ in 0..5000 {
        scanner.push(&[b'\n'; 4096]).unwrap();
    }
    scanner.push(b"seq\nMK1\n").expect_err("a digit");
    let error = scanner.finish().unwrap_err();
    assert_eq!((error.line, error.column), (5000 * 4096 + 2, 3));
    assert!(scanner.summary().has_byte_order_mark);
}
