//! The scanner: the same verdict however the input is cut, the naive reader's verdict, and written records read back.

use protperf_core::fasta::{FastaError, FastaErrorKind, ResiduePolicy, Scanner, flag};

use super::oracle::{Item, naive, scanned};
use super::{Target, Verdict, equal};
use crate::random::{Random, digest};

pub const TARGET: Target =
    Target { name: "fasta", limit: 1024, quick: 2000, head: 0, words: &WORDS, uses_fasta_files: true, run };

pub(super) const WORDS: [&[u8]; 45] = [
    b">",
    b"\n>",
    b"\r\n>",
    b"\r>",
    b">a b\n",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b";",
    b"\n;",
    b" ",
    b"\t",
    b"*",
    b"**",
    b"-",
    b"...",
    b"MKTAYIAKQR",
    b"acdefghik",
    b"U",
    b"O",
    b"X",
    b"BZJ",
    b"ACGTACGTACGTACGTACGT",
    b"\x00",
    b"\x01",
    b"\x1b",
    b"\x7f",
    b"\xff",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"@",
    b"# STOCKHOLM",
    b"#A3M#\n",
    b"#101,98\t1,2\n",
    b"\n>ss_pred x\n",
    b"\n>ss_dssp\n",
    b"\n>sa_x\n",
    b"ss_conf",
    b"\xe9",
    b"\xc3\xa9",
    b"\t\n",
    b">P1;",
    b"0123456789",
];

fn run(input: &[u8]) -> Result<Verdict, String> {
    let mut verdict = Verdict::default();
    let mut random = Random::new(digest(input));
    let policy = *random.pick(&ResiduePolicy::ALL);
    let whole = scanned(input, policy, &[]);
    let cuts: Vec<usize> = (0..random.below(6)).map(|_| random.next() as usize).collect();
    equal("cut and whole", &scanned(input, policy, &cuts), &whole)?;
    if random.below(8) == 0 {
        let every: Vec<usize> = (0..input.len()).collect();
        equal("byte by byte and whole", &scanned(input, policy, &every), &whole)?;
    }
    let is_named = behaviour(input, policy, &mut verdict);
    if !is_named {
        equal("scanner and naive reader", &whole, &naive(input, policy))?;
    }
    read_back(&whole, policy)?;
    Ok(verdict)
}

/// Note the traits; returns whether the input is refused by the name of its format, which the naive reader lacks.
fn behaviour(input: &[u8], policy: ResiduePolicy, verdict: &mut Verdict) -> bool {
    let mut scanner = Scanner::new(policy);
    let outcome = scanner.push(input).and_then(|()| scanner.finish());
    let batch = scanner.take();
    let mut note = |parts: [u64; 3]| verdict.traits.push(digest(&parts.map(u64::to_le_bytes).concat()));
    for &flags in &batch.flags {
        note([1, policy as u64, flags.into()]);
    }
    for rejection in &batch.rejected {
        note([2, policy as u64, kind_number(&rejection.error.kind)]);
    }
    let end = outcome.as_ref().map_or_else(|error| kind_number(&error.kind), |()| 0);
    note([3, policy as u64, end]);
    let summary = scanner.summary();
    let dropped = [summary.comment_lines, summary.has_alignment_line.into(), summary.annotation_records];
    let dropped = dropped.iter().fold(0, |bits, &count| 2 * bits + count.min(1));
    note([4, (batch.len().min(3) * 4 + batch.rejected.len().min(3)) as u64, dropped]);
    matches!(outcome, Err(FastaError { kind: FastaErrorKind::OtherFormat { .. }, .. }))
}

/// The kind as a number, without the byte and the length in it.
fn kind_number(kind: &FastaErrorKind) -> u64 {
    match kind {
        FastaErrorKind::OtherFormat { name } => digest(name.as_bytes()),
        other => {
            let text = format!("{other:?}");
            digest(text.split(' ').next().unwrap_or_default().as_bytes())
        }
    }
}

/// Records written as FASTA are read as the same records.
fn read_back(items: &[Item], policy: ResiduePolicy) -> Result<(), String> {
    let mut text = String::new();
    let mut expected = Vec::new();
    for item in items {
        if let Item::Record { header, letters, flags, .. } = item {
            text += &format!(">{header}\n{letters}\n");
            let (ordinal, header, letters) = (expected.len() as u64, header.clone(), letters.clone());
            // The other flags mark what is mended in the written text.
            let flags = flags & (flag::AMBIGUOUS | flag::EMPTY | flag::NO_ID | flag::NUCLEOTIDES);
            expected.push(Item::Record { ordinal, header, letters, flags });
        }
    }
    // Stops that became X are letters that the other policies accept as well.
    equal("written and read back", &scanned(text.as_bytes(), policy, &[]), &expected)
}
