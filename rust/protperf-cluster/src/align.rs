//! Whether two sequences are relatives, and how identical they are: an alignment near one diagonal.
//!
//! Four steps, the cheap ones first: the diagonal itself without gaps, which settles close relatives; its best stretch,
//! which turns down what only shares words by chance; a bound from above on the identical residues of any alignment; a
//! local alignment by BLOSUM62 with affine gaps in a band around the diagonal.

use crate::alphabet::{UNKNOWN, score};

/// Share of the shorter sequence that an alignment of relatives covers.
pub const COVERAGE: f64 = 0.8;
/// Score of the first column of a gap, and of each further one.
const OPEN: i32 = -11;
const EXTEND: i32 = -1;
/// Diagonals to each side of the one in the middle, at the least and at the most; in between a tenth of the length.
const MIN_BAND: usize = 16;
const MAX_BAND: usize = 64;
/// Diagonals to each side on which the best stretch is looked for: the middle of a band of words need not have one.
const NEAR: i64 = 2;
/// Share of the score of relatives that one stretch without gaps has at the least.
const STRETCH: f64 = 0.125;
/// Score of a stretch that proteins have by chance, so that shorter relatives must have half of theirs in one piece.
const BY_CHANCE: f64 = 40.0;
/// Mean scores of a column with the same residue and with two others, in relatives.
const SAME: f64 = 5.0;
const OTHER: f64 = -0.8;
/// Below every score of an alignment, and far from the lowest number.
const NEVER: i32 = i32::MIN / 2;

/// How a cell of the alignment was reached, as bits: the state before it, and whether its gaps go on from before.
const FROM_START: u8 = 0;
const FROM_PAIR: u8 = 1;
const FROM_INSERT: u8 = 2;
const FROM_DELETE: u8 = 3;
const INSERT_EXTENDS: u8 = 4;
const DELETE_EXTENDS: u8 = 8;

/// Memory that a thread uses again for each alignment.
#[derive(Default)]
pub struct Scratch {
    steps: Vec<u8>,
    best: Vec<i32>,
    delete: Vec<i32>,
    matches: Vec<u64>,
}

/// Columns of an alignment, identical ones among them, residues of each sequence between its ends, and the score of one
/// that was found by it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Alignment {
    columns: usize,
    identical: usize,
    spans: [usize; 2],
    score: i32,
}

impl Alignment {
    fn identity(&self) -> f64 {
        self.identical as f64 / self.columns.max(1) as f64
    }
}

/// Whether two sequences are relatives at `least`.
///
/// `diagonal` is the place in `b` minus the place in `a` of residues that are about aligned.
pub fn are_relatives(a: &[u8], b: &[u8], diagonal: i64, least: f64, scratch: &mut Scratch) -> bool {
    passes(a, b, &on_diagonal(a, b, diagonal), least) || gapped(a, b, diagonal, least, scratch).is_some()
}

/// The identity of two sequences if they are relatives at `least`: identical columns per column of their alignment.
pub fn identity(a: &[u8], b: &[u8], diagonal: i64, least: f64, scratch: &mut Scratch) -> Option<f64> {
    let ungapped = Some(on_diagonal(a, b, diagonal)).filter(|found| passes(a, b, found, least));
    let identities = [ungapped, gapped(a, b, diagonal, least, scratch)].map(|found| found.map(|one| one.identity()));
    identities.into_iter().flatten().reduce(f64::max)
}

fn passes(a: &[u8], b: &[u8], found: &Alignment, least: f64) -> bool {
    let (shorter, span) = if a.len() <= b.len() { (a.len(), found.spans[0]) } else { (b.len(), found.spans[1]) };
    found.identity() >= least && span as f64 >= COVERAGE * shorter as f64
}

/// The local alignment of relatives; `None` where the bounds or the alignment turn them down.
fn gapped(a: &[u8], b: &[u8], diagonal: i64, least: f64, scratch: &mut Scratch) -> Option<Alignment> {
    let columns = COVERAGE * a.len().min(b.len()) as f64;
    let whole = columns * (SAME * least + OTHER * (1.0 - least));
    let stretch = (STRETCH * whole).max(BY_CHANCE.min(whole / 2.0));
    if !(-NEAR..=NEAR).any(|shift| f64::from(best_stretch(a, b, diagonal + shift)) >= stretch) {
        return None;
    }
    if common_subsequence(a, b, &mut scratch.matches) < (least * columns).ceil() as usize {
        return None;
    }
    Some(in_band(a, b, diagonal, scratch)).filter(|found| passes(a, b, found, least))
}

/// The columns on a diagonal where both sequences have a residue.
fn columns_on<'a>(a: &'a [u8], b: &'a [u8], diagonal: i64) -> impl ExactSizeIterator<Item = (u8, u8)> {
    let (from_a, from_b) = ((-diagonal).max(0) as usize, diagonal.max(0) as usize);
    let (a, b) = (a.get(from_a..).unwrap_or_default(), b.get(from_b..).unwrap_or_default());
    a.iter().copied().zip(b.iter().copied())
}

/// All that overlaps on a diagonal, without gaps.
fn on_diagonal(a: &[u8], b: &[u8], diagonal: i64) -> Alignment {
    let columns = columns_on(a, b, diagonal).len();
    let identical = columns_on(a, b, diagonal).filter(|&(x, y)| x == y && x != UNKNOWN).count();
    Alignment { columns, identical, spans: [columns; 2], score: 0 }
}

/// The highest score of consecutive columns on a diagonal.
fn best_stretch(a: &[u8], b: &[u8], diagonal: i64) -> i32 {
    let (mut top, mut here) = (0, 0);
    for (x, y) in columns_on(a, b, diagonal) {
        here = (here + score(x, y)).max(0);
        top = top.max(here);
    }
    top
}

/// Length of the longest common subsequence: no alignment has more identical residues.
///
/// # Source
/// Hyyrö 2004, Bit-parallel LCS-length computation revisited: row i of the table of Hunt and Szymanski as the bits of a
/// number, one addition for 64 of its cells.
fn common_subsequence(a: &[u8], b: &[u8], matches: &mut Vec<u64>) -> usize {
    let words = a.len().div_ceil(64);
    let codes = usize::from(UNKNOWN) + 1;
    matches.clear();
    matches.resize((codes + 1) * words, 0);
    let (matches, row) = matches.split_at_mut(codes * words);
    for (at, &code) in a.iter().enumerate() {
        if code != UNKNOWN {
            matches[usize::from(code) * words + at / 64] |= 1 << (at % 64);
        }
    }
    row.fill(u64::MAX);
    for &code in b {
        let matched = &matches[usize::from(code) * words..][..words];
        let mut carry = false;
        for (cells, &matched) in row.iter_mut().zip(matched) {
            let both = *cells & matched;
            let (sum, first) = cells.overflowing_add(both);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first | second;
            *cells = sum | (*cells - both);
        }
    }
    (0..a.len()).filter(|at| row[at / 64] >> (at % 64) & 1 == 0).count()
}

/// The best local alignment whose cells are within a band around the diagonal.
///
/// Row i of the band holds the columns j = i + diagonal - half .. i + diagonal + half, cell c being column
/// i + diagonal - half + c: so the cell above is c + 1 of the row before, the one before that diagonally is c.
fn in_band(a: &[u8], b: &[u8], diagonal: i64, scratch: &mut Scratch) -> Alignment {
    let half = (a.len().min(b.len()) / 10).clamp(MIN_BAND, MAX_BAND);
    let width = 2 * half + 1;
    let Scratch { steps, best, delete, .. } = scratch;
    steps.clear();
    steps.resize(a.len() * width, FROM_START);
    best.clear();
    best.resize(width + 1, 0);
    delete.clear();
    delete.resize(width + 1, NEVER);
    let (mut top, mut end) = (0, (0, 0));
    for (i, &residue) in a.iter().enumerate() {
        let first = i as i64 + diagonal - half as i64;
        let low = (-first).clamp(0, width as i64) as usize;
        let high = (b.len() as i64 - first).clamp(0, width as i64) as usize;
        let (mut left, mut insert) = (0, NEVER);
        best[..low].fill(0);
        for c in low..high {
            let j = (first + c as i64) as usize;
            let mut step = 0;
            // A column of b alone continues in this row, a column of a alone from the row above.
            let (opened, extended) = (left + OPEN, insert + EXTEND);
            step |= if extended > opened { INSERT_EXTENDS } else { 0 };
            insert = extended.max(opened);
            let (opened, extended) = (best[c + 1] + OPEN, delete[c + 1] + EXTEND);
            step |= if extended > opened { DELETE_EXTENDS } else { 0 };
            delete[c] = extended.max(opened);
            let pair = best[c] + score(residue, b[j]);
            let value = pair.max(insert).max(delete[c]).max(0);
            step |= match value {
                0 => FROM_START,
                _ if value == pair => FROM_PAIR,
                _ if value == insert => FROM_INSERT,
                _ => FROM_DELETE,
            };
            steps[i * width + c] = step;
            (best[c], left) = (value, value);
            if value > top {
                (top, end) = (value, (i, c));
            }
        }
        best[high..].fill(0);
        delete[high..].fill(NEVER);
    }
    if top == 0 {
        return Alignment::default();
    }
    Alignment { score: top, ..traced(a, b, diagonal - half as i64, width, steps, end) }
}

/// Follow the steps back from the last cell. `shift` is the column of cell 0 in row 0.
fn traced(a: &[u8], b: &[u8], shift: i64, width: usize, steps: &[u8], end: (usize, usize)) -> Alignment {
    let column = |i: usize, c: usize| (i as i64 + shift + c as i64) as usize;
    let (mut i, mut c) = end;
    let (mut found, mut state) = (Alignment::default(), FROM_PAIR);
    let (mut first_i, mut first_j) = (i, column(i, c));
    loop {
        let step = steps[i * width + c];
        if state == FROM_PAIR {
            state = step & 3;
            if state == FROM_START {
                break;
            }
        }
        found.columns += 1;
        match state {
            FROM_PAIR => {
                let (x, y) = (a[i], b[column(i, c)]);
                found.identical += usize::from(x == y && x != UNKNOWN);
                (first_i, first_j) = (i, column(i, c));
                if i == 0 || column(i, c) == 0 {
                    break;
                }
                i -= 1;
            }
            FROM_INSERT => {
                state = if step & INSERT_EXTENDS == 0 { FROM_PAIR } else { FROM_INSERT };
                c -= 1;
            }
            _ => {
                state = if step & DELETE_EXTENDS == 0 { FROM_PAIR } else { FROM_DELETE };
                (i, c) = (i - 1, c + 1);
            }
        }
    }
    found.spans = [end.0 - first_i + 1, column(end.0, end.1) - first_j + 1];
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alphabet::code_of;
    use protperf_core::alphabet::token_of;

    fn codes(letters: &str) -> Vec<u8> {
        letters.bytes().map(|letter| code_of(token_of(letter).unwrap())).collect()
    }

    /// A sequence of the twenty that a linear congruential generator makes.
    fn random(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let step = |state: &mut u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 33) as usize
        };
        (0..len).map(|_| (step(&mut state) % 20) as u8).collect()
    }

    #[test]
    fn common_subsequences_are_as_long_as_the_table_says() {
        let mut matches = Vec::new();
        for (m, n) in [(0, 5), (1, 1), (63, 70), (64, 64), (65, 200), (200, 31)] {
            let (a, b) = (random(m, 3), random(n, 8));
            let mut row = vec![0; n + 1];
            for &x in &a {
                let mut before = 0;
                for (j, &y) in b.iter().enumerate() {
                    let above = row[j + 1];
                    row[j + 1] = if x == y { before + 1 } else { above.max(row[j]) };
                    before = above;
                }
            }
            assert_eq!(common_subsequence(&a, &b, &mut matches), row[n], "{m} and {n}");
        }
    }

    /// The best local score with affine gaps, by the plain recurrence over the whole table.
    fn plain_score(a: &[u8], b: &[u8]) -> i32 {
        let mut best = vec![vec![0; b.len() + 1]; a.len() + 1];
        let (mut insert, mut delete) = (vec![vec![NEVER; b.len() + 1]; a.len() + 1], best.clone());
        delete.iter_mut().for_each(|row| row.fill(NEVER));
        let mut top = 0;
        for i in 1..=a.len() {
            for j in 1..=b.len() {
                insert[i][j] = (best[i][j - 1] + OPEN).max(insert[i][j - 1] + EXTEND);
                delete[i][j] = (best[i - 1][j] + OPEN).max(delete[i - 1][j] + EXTEND);
                let pair = best[i - 1][j - 1] + score(a[i - 1], b[j - 1]);
                best[i][j] = pair.max(insert[i][j]).max(delete[i][j]).max(0);
                top = top.max(best[i][j]);
            }
        }
        top
    }

    #[test]
    fn the_band_finds_the_alignment_of_the_whole_table_and_traces_it() {
        let a = random(120, 1);
        let mut scratch = Scratch::default();
        // Five residues deleted, three inserted, one in nine replaced.
        let mut b = [&a[..40], &a[45..80], &[0, 1, 2], &a[80..]].concat();
        b.iter_mut().step_by(9).for_each(|residue| *residue = (*residue + 7) % 20);
        let found = in_band(&a, &b, 0, &mut scratch);
        assert!(found.spans[0].abs_diff(120) <= 2 && found.spans[1].abs_diff(118) <= 2, "{found:?}");
        let gaps = 8;
        assert_eq!(2 * (found.columns - gaps) + gaps, found.spans[0] + found.spans[1]);
        let replaced = b.len().div_ceil(9);
        assert!(found.identical.abs_diff(115 - replaced) <= 4, "{found:?}");
        assert_eq!(found.score, plain_score(&a, &b));
    }

    #[test]
    fn identity_needs_the_share_of_the_columns_and_the_length_of_the_shorter() {
        let a = random(200, 5);
        let mut b = a.clone();
        // Both ends are the same, so that a local alignment goes to them.
        b.iter_mut().skip(1).step_by(4).for_each(|residue| *residue = (*residue + 3) % 20);
        let mut scratch = Scratch::default();
        assert_eq!(identity(&a, &b, 0, 0.7, &mut scratch), Some(0.75));
        assert_eq!(identity(&a, &b, 0, 0.8, &mut scratch), None);
        // A fragment is a relative of the whole; two proteins that share a half are not.
        assert_eq!(identity(&a, &a[50..150], -50, 0.9, &mut scratch), Some(1.0));
        assert_eq!(identity(&a[50..150], &a, 50, 0.9, &mut scratch), Some(1.0));
        let other = [&a[..100], &random(100, 77)].concat();
        assert_eq!(identity(&a, &other, 0, 0.9, &mut scratch), None);
        assert!(are_relatives(&a, &b, 0, 0.7, &mut scratch) && !are_relatives(&a, &b, 0, 0.8, &mut scratch));
        assert_eq!(identity(&codes("XXXX"), &codes("XXXX"), 0, 0.3, &mut scratch), None);
        assert_eq!(identity(&[], &[], 0, 0.3, &mut scratch), None);
    }
}
