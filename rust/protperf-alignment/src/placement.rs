//! Where the residues of proteins stand in a profile: global alignments with free ends, of many proteins at once.
//!
//! With s(i, j) the score of residue i in column j, columns are taken in turn, and residues within a column:
//!
//! ```text
//! match(i, j)  = best(i - 1, j - 1) + s(i, j)
//! delete(i, j) = max(best(i, j - 1) - open, delete(i, j - 1) - extend)
//! base(i, j)   = max(match, delete)
//! best(i, j)   = max(base(i, j), max over k < i of base(k, j) - open - (i - k - 1) extend)
//! ```
//!
//! The last of them is a running maximum of base(k, j) + k extend. An alignment may begin anywhere on the first row or
//! column and end anywhere on the last ones, so a domain is found in a longer protein and a fragment within a domain.
//!
//! Each cell waits for the one before it, so it is proteins that fill the lanes of a vector: those of about one length
//! go together, each in its lane, and how a cell came about is kept in a byte.
//!
//! Source: Gotoh 1982, J. Mol. Biol. 162:705.

use protperf_core::{Error, Execution, Result, check_len, try_filled};
use protperf_cpu::Workers;

/// Proteins that are placed together.
const LANES: usize = 16;
/// Bytes of the cells of such a group; longer proteins are placed one by one.
const GROUP_BYTES: usize = 1 << 26;
/// The column of a residue that stands in none.
const NOWHERE: i32 = -1;

/// `delete` goes on with the deletion before it.
const EXTENDED: u8 = 1;
/// `base` is `delete`.
const DELETED: u8 = 2;
/// `best` is an insertion that ends here.
const INSERTED: u8 = 4;
/// An insertion right after this residue begins with it, instead of going on with an earlier one.
const BEGINS: u8 = 8;

/// What each letter scores in each column.
#[derive(Clone, Copy, Debug)]
pub struct Profile<'a> {
    scores: &'a [f32],
    num_columns: usize,
    num_letters: usize,
}

impl<'a> Profile<'a> {
    /// The scores of columns, one after another.
    ///
    /// # Shapes
    /// `scores` is `[num_columns, num_letters]`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`]: another number of scores, 2^31 columns or more, or not 1 to 256 letters.
    pub fn new(scores: &'a [f32], num_columns: usize, num_letters: usize) -> Result<Self> {
        check_len("scores", scores.len(), num_columns.saturating_mul(num_letters))?;
        if !(1..=256).contains(&num_letters) || i32::try_from(num_columns).is_err() {
            let detail = format!("has {num_columns} columns of {num_letters} letters; give 1 to 256 letters");
            return Err(Error::shape("scores", detail));
        }
        Ok(Profile { scores, num_columns, num_letters })
    }

    /// The scores of a column by any byte, so that looking one up needs no check.
    fn column(&self, column: usize) -> [f32; 256] {
        let mut by_letter = [0.0; 256];
        by_letter[..self.num_letters].copy_from_slice(&self.scores[column * self.num_letters..][..self.num_letters]);
        by_letter
    }
}

/// What the first residue of a gap costs, and each further one.
#[derive(Clone, Copy, Debug)]
pub struct GapCosts {
    /// Of the first.
    pub open: f32,
    /// Of each further one.
    pub extend: f64,
}

/// Where residues stand.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The column of each residue of all sequences, one after another; -1 where it stands in none.
    pub columns: Vec<i32>,
    /// The score of each sequence's best alignment; 0 where nothing is placed.
    pub scores: Vec<f32>,
}

/// Places sequences in a profile. The answer for one does not depend on the others, nor on the number of threads.
///
/// # Shapes
/// Sequence r is `letters[offsets[r]..offsets[r + 1]]`.
///
/// # Errors
/// [`Error::ShapeMismatch`]: offsets that are not in order from 0 to the number of letters; [`Error::InvalidOption`]: a
/// letter that the profile has no score for; [`Error::OutOfMemory`]: a protein and a profile that are too long together
/// for this machine; [`Error::Interrupted`].
pub fn place(
    letters: &[u8],
    offsets: &[i64],
    profile: &Profile<'_>,
    gaps: GapCosts,
    run: &Execution<'_>,
) -> Result<Placement> {
    check(letters, offsets, profile)?;
    let border = |index: usize| offsets[index] as usize;
    let sequence = |index: usize| &letters[border(index)..border(index + 1)];
    let mut order: Vec<usize> = (0..offsets.len() - 1).collect();
    order.sort_by_key(|&index| sequence(index).len());
    let groups = groups(&order, |index| sequence(index).len(), profile.num_columns);

    let longest = order.last().map_or(0, |&index| sequence(index).len());
    let mut ramp = try_filled(longest + 1, 0.0)?;
    ramp.iter_mut().enumerate().for_each(|(place, value)| *value = (gaps.extend * place as f64) as f32);
    let costs = Costs { open: gaps.open, extend: gaps.extend as f32, ramp: &ramp };

    let mut found = Placement { columns: try_filled(letters.len(), NOWHERE)?, scores: try_filled(order.len(), 0.0)? };
    let workers = Workers::new(run);
    workers.fold(
        groups.len(),
        |group| {
            let group: Vec<&[u8]> = groups[group].iter().map(|&index| sequence(index)).collect();
            match group.len() {
                1 => place_group::<1>(&group, profile, &costs, &workers),
                _ => place_group::<LANES>(&group, profile, &costs, &workers),
            }
        },
        |group, placed| {
            for (&index, (columns, score)) in groups[group].iter().zip(placed) {
                found.columns[border(index)..border(index + 1)].copy_from_slice(&columns);
                found.scores[index] = score;
            }
            Ok(())
        },
    )?;
    Ok(found)
}

fn check(letters: &[u8], offsets: &[i64], profile: &Profile<'_>) -> Result<()> {
    let in_order = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    if !in_order || offsets.first() != Some(&0) || offsets.last() != Some(&(letters.len() as i64)) {
        return Err(Error::shape("offsets", format!("must rise from 0 to the number of letters, {}", letters.len())));
    }
    match letters.iter().find(|&&letter| usize::from(letter) >= profile.num_letters) {
        Some(letter) => Err(Error::option("letters", format!("hold {letter}; scores know {}", profile.num_letters))),
        None => Ok(()),
    }
}

/// Sequences, in order of their lengths, that are placed together.
fn groups(order: &[usize], len: impl Fn(usize) -> usize, num_columns: usize) -> Vec<&[usize]> {
    let fits = |index: usize| (len(index) + 1).saturating_mul(num_columns).saturating_mul(LANES) <= GROUP_BYTES;
    let (short, long) = order.split_at(order.partition_point(|&index| fits(index)));
    short.chunks(LANES).chain(long.chunks(1)).collect()
}

/// Costs of gaps; `ramp[i]` is that of i residues at `extend` each.
struct Costs<'a> {
    open: f32,
    extend: f32,
    ramp: &'a [f32],
}

/// The cells of a group, a byte each: `[num_columns, width + 1, N]`, `width` the length of its longest sequence.
struct Trace {
    cells: Vec<u8>,
    row: usize,
    num_lanes: usize,
}

/// Where the best alignment of a sequence ends: after so many residues and columns.
#[derive(Clone, Copy, Default)]
struct End {
    score: f32,
    residue: usize,
    column: usize,
}

/// The columns and the score of each sequence of a group of at most `N`.
fn place_group<const N: usize>(
    group: &[&[u8]],
    profile: &Profile<'_>,
    costs: &Costs<'_>,
    workers: &Workers<'_>,
) -> Result<Vec<(Vec<i32>, f32)>> {
    let (trace, ends) = fill::<N>(group, profile, costs, workers)?;
    let place =
        |(lane, sequence): (usize, &&[u8])| Ok((trace.follow(lane, ends[lane], sequence.len())?, ends[lane].score));
    group.iter().enumerate().map(place).collect()
}

fn fill<const N: usize>(
    group: &[&[u8]],
    profile: &Profile<'_>,
    costs: &Costs<'_>,
    workers: &Workers<'_>,
) -> Result<(Trace, [End; N])> {
    let width = group.iter().map(|sequence| sequence.len()).max().unwrap_or(0);
    let mut letters = try_filled(width, [0u8; N])?;
    for (lane, sequence) in group.iter().enumerate() {
        letters.iter_mut().zip(*sequence).for_each(|(lanes, &letter)| lanes[lane] = letter);
    }
    let row = (width + 1) * N;
    let mut trace = Trace { cells: try_filled(row.saturating_mul(profile.num_columns), 0)?, row, num_lanes: N };
    let mut best = try_filled(width + 1, [0f32; N])?;
    let mut deletion = try_filled(width + 1, [f32::NEG_INFINITY; N])?;
    // The alignment that ends before the first column is empty.
    let mut ends = [End::default(); N];
    group.iter().zip(&mut ends).for_each(|(sequence, end)| end.residue = sequence.len());
    for column in 0..profile.num_columns {
        workers.check()?;
        let cells = &mut trace.cells[column * row..][..row];
        fill_column(&profile.column(column), &letters, costs, &mut best, &mut deletion, cells);
        for (lane, sequence) in group.iter().enumerate() {
            let score = best[sequence.len()][lane];
            if score > ends[lane].score {
                ends[lane] = End { score, residue: sequence.len(), column: column + 1 };
            }
        }
    }
    // After the last column, an alignment may end at any residue of its sequence.
    for (lane, sequence) in group.iter().enumerate() {
        for (residue, scores) in best[..=sequence.len()].iter().enumerate() {
            if scores[lane] > ends[lane].score {
                ends[lane] = End { score: scores[lane], residue, column: profile.num_columns };
            }
        }
    }
    Ok((trace, ends))
}

/// The cells of a column from those of the column before it, which `best` and `deletion` hold.
fn fill_column<const N: usize>(
    scores: &[f32; 256],
    letters: &[[u8; N]],
    costs: &Costs<'_>,
    best: &mut [[f32; N]],
    deletion: &mut [[f32; N]],
    cells: &mut [u8],
) {
    let (first, cells) = cells.split_at_mut(N);
    first.fill(BEGINS);
    // Before the first residue, `best` is 0 in every column.
    let (mut diagonal, mut highest) = ([0f32; N], [0f32; N]);
    let residues = best[1..].iter_mut().zip(&mut deletion[1..]).zip(letters).zip(cells.chunks_exact_mut(N));
    for ((((best, deletion), letters), cells), ramp) in residues.zip(costs.ramp.windows(2)) {
        let scores: [f32; N] = std::array::from_fn(|lane| scores[usize::from(letters[lane])]);
        for lane in 0..N {
            let (opened, extended) = (best[lane] - costs.open, deletion[lane] - costs.extend);
            let deleted = larger(opened, extended);
            let matched = diagonal[lane] + scores[lane];
            let base = larger(matched, deleted);
            let inserted = highest[lane] - ramp[0] - costs.open;
            let raised = base + ramp[1];
            cells[lane] = EXTENDED * u8::from(extended > opened)
                + DELETED * u8::from(deleted > matched)
                + INSERTED * u8::from(inserted > base)
                + BEGINS * u8::from(raised >= highest[lane]);
            diagonal[lane] = best[lane];
            best[lane] = larger(base, inserted);
            deletion[lane] = deleted;
            highest[lane] = larger(highest[lane], raised);
        }
    }
}

/// The larger of two numbers, as one instruction; `f32::max` has NaN to think of.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Trace {
    fn cell(&self, column: usize, residue: usize, lane: usize) -> u8 {
        self.cells[column * self.row + residue * self.num_lanes + lane]
    }

    /// The column of each of the `len` residues of a sequence, from the end of its alignment back to the beginning.
    fn follow(&self, lane: usize, end: End, len: usize) -> Result<Vec<i32>> {
        let mut found = try_filled(len, NOWHERE)?;
        let (mut residue, mut in_deletion) = (end.residue, false);
        for column in (0..end.column).rev() {
            if !in_deletion && self.cell(column, residue, lane) & INSERTED != 0 {
                residue -= 1;
                while self.cell(column, residue, lane) & BEGINS == 0 {
                    residue -= 1;
                }
            }
            if residue == 0 {
                break;
            }
            let cell = self.cell(column, residue, lane);
            if in_deletion || cell & DELETED != 0 {
                in_deletion = cell & EXTENDED != 0;
            } else {
                residue -= 1;
                found[residue] = column as i32;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    const GAPS: GapCosts = GapCosts { open: 3.5, extend: 0.25 };

    fn placed(sequences: &[Vec<u8>], profile: &Profile<'_>, num_threads: usize) -> Placement {
        let cancel = AtomicBool::new(false);
        let (letters, offsets) = packed(sequences);
        place(&letters, &offsets, profile, GAPS, &Execution { num_threads, cancel: &cancel }).unwrap()
    }

    fn packed(sequences: &[Vec<u8>]) -> (Vec<u8>, Vec<i64>) {
        let mut offsets = vec![0];
        sequences.iter().for_each(|sequence| offsets.push(offsets.last().unwrap() + sequence.len() as i64));
        (sequences.concat(), offsets)
    }

    /// The score of the best alignment, every cell and every gap tried, in f64.
    fn best_score(sequence: &[u8], profile: &Profile<'_>) -> f64 {
        let gap = |len: usize| f64::from(GAPS.open) + GAPS.extend * (len - 1) as f64;
        let (columns, width) = (profile.num_columns, sequence.len());
        let mut best = vec![vec![0f64; width + 1]; columns + 1];
        for column in 1..=columns {
            let mut base = vec![0f64; width + 1];
            for i in 1..=width {
                let score = f64::from(profile.column(column - 1)[usize::from(sequence[i - 1])]);
                let deleted = (1..=column).map(|k| best[column - k][i] - gap(k));
                base[i] = deleted.fold(best[column - 1][i - 1] + score, f64::max);
            }
            for i in 0..=width {
                best[column][i] = (0..i).map(|k| base[k] - gap(i - k)).fold(base[i], f64::max);
            }
        }
        let last_column = best[columns].iter();
        best.iter().map(|row| &row[width]).chain(last_column).fold(0.0, |a, &b| a.max(b))
    }

    /// The score of a placement; ends that are free cost nothing.
    fn score_of(sequence: &[u8], columns: &[i32], profile: &Profile<'_>) -> f64 {
        let gap = |len: usize| if len == 0 { 0.0 } else { f64::from(GAPS.open) + GAPS.extend * (len - 1) as f64 };
        let at = |(i, &column): (usize, &i32)| (column >= 0).then_some((i, column as usize));
        let pairs: Vec<(usize, usize)> = columns.iter().enumerate().filter_map(at).collect();
        let (Some(first), Some(last)) = (pairs.first(), pairs.last()) else { return 0.0 };
        let matched = pairs.iter().map(|&(i, column)| f64::from(profile.column(column)[usize::from(sequence[i])]));
        let between = pairs.windows(2).map(|w| gap(w[1].0 - w[0].0 - 1) + gap(w[1].1 - w[0].1 - 1));
        let after = (sequence.len() - 1 - last.0).min(profile.num_columns - 1 - last.1);
        matched.sum::<f64>() - between.sum::<f64>() - gap(first.0.min(first.1)) - gap(after)
    }

    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self, below: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % below
        }

        fn scores(&mut self, count: usize) -> Vec<f32> {
            (0..count).map(|_| self.next(1000) as f32 / 100.0 - 5.5).collect()
        }

        fn sequence(&mut self, len: usize, num_letters: usize) -> Vec<u8> {
            (0..len).map(|_| self.next(num_letters) as u8).collect()
        }
    }

    #[test]
    fn placements_have_the_best_score_for_any_company_and_any_number_of_threads() {
        let mut numbers = Numbers(1);
        for num_columns in [0, 1, 2, 7, 20] {
            let scores = numbers.scores(num_columns * 5);
            let profile = Profile::new(&scores, num_columns, 5).unwrap();
            let sequences: Vec<Vec<u8>> = (0..37).map(|len| numbers.sequence(len % 23, 5)).collect();
            let together = placed(&sequences, &profile, 1);
            assert_eq!(placed(&sequences, &profile, 3), together);
            let mut columns = together.columns.as_slice();
            for (sequence, score) in sequences.iter().zip(&together.scores) {
                let (own, rest) = columns.split_at(sequence.len());
                columns = rest;
                let alone = placed(std::slice::from_ref(sequence), &profile, 1);
                assert_eq!((alone.columns.as_slice(), alone.scores[0]), (own, *score));
                let inside: Vec<i32> = own.iter().copied().filter(|&column| column >= 0).collect();
                assert!(inside.is_sorted_by(|a, b| a < b), "{own:?}");
                let wanted = best_score(sequence, &profile);
                assert!((f64::from(*score) - wanted).abs() < 1e-4, "{score} {wanted}");
                assert!((score_of(sequence, own, &profile) - wanted).abs() < 1e-4, "{own:?}");
            }
        }
    }

    #[test]
    fn proteins_too_long_for_a_group_are_placed_one_by_one() {
        let lens = [3, 10, 100, 400_000];
        let order = [0, 1, 2, 3];
        assert_eq!(groups(&order, |index| lens[index], 100), [&[0, 1, 2][..], &[3]]);
        assert_eq!(groups(&order, |index| lens[index], usize::MAX), [[0], [1], [2], [3]]);
        assert!(groups(&[], |index| lens[index], 100).is_empty());
    }

    #[test]
    fn wrong_arguments_are_refused_and_a_raised_flag_stops() {
        let scores = [0.5; 6];
        let profile = Profile::new(&scores, 2, 3).unwrap();
        let cancel = AtomicBool::new(false);
        let run = Execution { num_threads: 1, cancel: &cancel };
        let refused =
            |letters: &[u8], offsets: &[i64]| place(letters, offsets, &profile, GAPS, &run).unwrap_err().to_string();
        assert!(refused(&[0, 3], &[0, 2]).starts_with("letters hold 3"), "{}", refused(&[0, 3], &[0, 2]));
        for offsets in [&[][..], &[0], &[0, 3], &[1, 2], &[0, 2, 1, 2]] {
            assert!(refused(&[0, 1], offsets).starts_with("offsets"), "{offsets:?}");
        }
        assert!(Profile::new(&scores, 2, 2).is_err() && Profile::new(&[], 0, 0).is_err());
        assert!(Profile::new(&[0.0; 257], 1, 257).is_err());
        let cancel = AtomicBool::new(true);
        let run = Execution { num_threads: 1, cancel: &cancel };
        assert_eq!(place(&[0, 1], &[0, 2], &profile, GAPS, &run), Err(Error::Interrupted));
    }
}
