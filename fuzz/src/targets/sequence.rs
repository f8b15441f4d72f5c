//! One sequence without header, as strings in memory are read: the letters, the flags or the place of the fault are the
//! naive reader's, however the input is cut, and the same as under a header.

use protperf_core::fasta::{ResiduePolicy, Scanner};

use super::oracle::{naive_sequence, scanned_sequence};
use super::{Target, Verdict, equal, fasta};
use crate::random::{Random, digest};

pub const TARGET: Target =
    Target { name: "sequence", limit: 512, quick: 2000, head: 0, words: &fasta::WORDS, uses_fasta_files: false, run };

fn run(input: &[u8]) -> Result<Verdict, String> {
    let mut random = Random::new(digest(input));
    let policy = *random.pick(&ResiduePolicy::ALL);
    let whole = scanned_sequence(input, policy, &[]);
    equal("scanner and naive reader", &whole, &naive_sequence(input, policy))?;
    let cuts: Vec<usize> = (0..random.below(6)).map(|_| random.next() as usize).collect();
    equal("cut and whole", &scanned_sequence(input, policy, &cuts), &whole)?;
    if random.below(4) == 0 {
        let every: Vec<usize> = (0..input.len()).collect();
        equal("byte by byte and whole", &scanned_sequence(input, policy, &every), &whole)?;
    }
    if let Ok((letters, _)) = &whole {
        let again = scanned_sequence(letters.as_bytes(), policy, &[]).map(|(letters, _)| letters);
        equal("letters read again", &again, &Ok(letters.clone()))?;
    }
    under_header(input)?;
    let kind = match whole {
        Ok((letters, flags)) => [u64::from(flags), letters.len().min(2) as u64],
        Err((line, column)) => [1 << 32 | line.min(3) as u64, column.min(2) as u64],
    };
    Ok(Verdict { traits: vec![digest(&[policy as u64, kind[0], kind[1]].map(u64::to_le_bytes).concat())] })
}

/// The same residues are read under a header, if no line starts with a mark.
fn under_header(input: &[u8]) -> Result<(), String> {
    let begins_line =
        |byte: u8| input.split(|byte| matches!(byte, b'\n' | b'\r')).any(|line| line.first() == Some(&byte));
    if begins_line(b'>') || begins_line(b';') {
        return Ok(());
    }
    let mut scanner = Scanner::of_sequence(ResiduePolicy::Map);
    let outcome = scanner.push(input).and_then(|()| scanner.finish());
    let mut under_header = Scanner::new(ResiduePolicy::Map);
    let same = under_header.push(b">a\n").and_then(|()| under_header.push(input)).and_then(|()| under_header.finish());
    equal("bare and under a header", &outcome.is_ok(), &same.is_ok())?;
    equal("tokens bare and under a header", &scanner.take().tokens, &under_header.take().tokens)
}
