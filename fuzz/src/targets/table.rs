//! Tables: the naive reader's verdict, however the input is cut.

use protperf_core::fasta::{Columns, ResiduePolicy, Scanner};

use super::oracle::{Item, scanned_by};
use super::table_oracle::naive_table;
use super::{Target, Verdict, equal};
use crate::random::{Random, digest};

pub const TARGET: Target =
    Target { name: "table", limit: 512, quick: 2000, head: 0, words: &WORDS, uses_fasta_files: false, run };

const WORDS: [&[u8]; 28] = [
    b"id,seq\n",
    b"seq\tid\r\n",
    b"x;seq;id\r",
    b"seq\n",
    b"\xef\xbb\xbf",
    b"\"seq\"",
    b",",
    b"\t",
    b";",
    b"\n",
    b"\r",
    b"\r\n",
    b"\"",
    b"\"\"",
    b"\",\"",
    b"a b,MKV\n",
    b"\"c\td\"\tMK\n",
    b"\"MK\nV\"",
    b"\"M\tK\"",
    b"\xe9",
    b"MX*",
    b"ac-d",
    b"NA",
    b"None",
    b"ACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGT",
    b"1",
    b"\xff",
    b"\x01",
];

fn run(input: &[u8]) -> Result<Verdict, String> {
    let mut random = Random::new(digest(input));
    let policy = *random.pick(&ResiduePolicy::ALL);
    let id = *random.pick(&[None, Some("id")]);
    let columns = Columns { sequence: "seq".into(), id: id.map(Into::into) };
    let scanned = |cuts: &[usize]| scanned_by(Scanner::of_table(policy, columns.clone()), input, cuts);
    let whole = scanned(&[]);
    equal("scanner and naive reader", &whole, &naive_table(input, policy, &columns))?;
    let cuts: Vec<usize> = (0..random.below(6)).map(|_| random.next() as usize).collect();
    equal("cut and whole", &scanned(&cuts), &whole)?;
    if random.below(8) == 0 {
        let every: Vec<usize> = (0..input.len()).collect();
        equal("byte by byte and whole", &scanned(&every), &whole)?;
    }
    let traits = whole.iter().map(|item| match item {
        Item::Record { flags, letters, .. } => [0, u64::from(*flags), letters.len().min(2) as u64],
        Item::Rejected { line, column, .. } => [1, (*line).min(3), (*column).min(2)],
        Item::Error { line, column } => [2, (*line).min(3), (*column).min(2)],
    });
    Ok(Verdict { traits: traits.map(|parts| digest(&parts.map(u64::to_le_bytes).concat())).collect() })
}
