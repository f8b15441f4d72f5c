//! The questions: clusters of a set, numbers of relatives, and the nearest relative in another set.

use crate::align::{self, are_relatives, identity};
use crate::index::{self, Index};
use crate::sequences::Sequences;
use crate::union::Union;
use protperf_core::{Error, Execution, Result};
use protperf_cpu::Workers;
use std::sync::atomic::{AtomicU32, Ordering};

/// The lowest identity that can be asked for: below, proteins that are not relatives reach it too.
pub const MIN_IDENTITY: f64 = 0.3;

/// Candidates that a sequence is aligned with, those with most words in common, where the relatives of its cluster are
/// looked for, and where the nearest is.
const MAX_IN_CLUSTER: usize = 24;
const MAX_FOR_NEAREST: usize = 512;
/// Sequences that a thread takes at once, and for which it uses the same scratch.
const TAKEN: usize = 16;

/// The closest relative of a sequence in another set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Its place there.
    pub index: u32,
    /// Identical residues per column of the alignment.
    pub identity: f64,
}

/// The cluster of each sequence, as the smallest place of a member: whoever is related to one member belongs to the
/// cluster, so that relatives that were found are never in two clusters.
///
/// # Errors
/// [`Error::InvalidOption`]: an identity outside of [`MIN_IDENTITY`] to 1; [`Error::Interrupted`],
/// [`Error::OutOfMemory`].
pub fn cluster(sequences: &Sequences, least: f64, run: &Execution<'_>) -> Result<Vec<u32>> {
    let union = Union::new(sequences.len());
    for_each_relative(
        sequences,
        least,
        run,
        MAX_IN_CLUSTER,
        |a, b| union.root(a) != union.root(b),
        |a, b| union.join(a, b),
    )?;
    Ok((0..sequences.len()).map(|index| union.root(sequences.first_equal(index))).collect())
}

/// How many relatives each sequence has, itself and its equals counted.
///
/// # Errors
/// As [`cluster`].
pub fn count_relatives(sequences: &Sequences, least: f64, run: &Execution<'_>) -> Result<Vec<u32>> {
    let mut equal = vec![0; sequences.len()];
    (0..sequences.len()).for_each(|index| equal[sequences.first_equal(index) as usize] += 1);
    let counts: Vec<AtomicU32> = equal.iter().map(|&count| AtomicU32::new(count)).collect();
    let count = |a: u32, b: u32| {
        counts[a as usize].fetch_add(equal[b as usize], Ordering::Relaxed);
        counts[b as usize].fetch_add(equal[a as usize], Ordering::Relaxed);
    };
    for_each_relative(sequences, least, run, usize::MAX, |_, _| true, count)?;
    let first = |index| sequences.first_equal(index) as usize;
    Ok((0..sequences.len()).map(|index| counts[first(index)].load(Ordering::Relaxed)).collect())
}

/// The nearest relative of each query among the targets, if it has one; of several equally near the one
/// with most words in common.
///
/// # Errors
/// As [`cluster`].
pub fn nearest(
    queries: &Sequences,
    targets: &Sequences,
    least: f64,
    run: &Execution<'_>,
) -> Result<Vec<Option<Nearest>>> {
    check(least)?;
    let index = Index::new(targets, least, run)?;
    for_each_query(queries.len(), run, |query, Scratch { words, cells }| {
        let query = queries.get(query);
        let mut found: Option<Nearest> = None;
        for candidate in index.candidates(query, targets.len(), MAX_FOR_NEAREST, words) {
            // An equal identity does not replace an earlier one.
            let target = targets.get(candidate.sequence as usize);
            let identity = identity(query, target, candidate.diagonal, least, cells);
            if let Some(identity) = identity.filter(|&new| found.is_none_or(|old| new > old.identity)) {
                found = Some(Nearest { index: candidate.sequence, identity });
            }
        }
        found
    })
}

/// Calls `relate` with each pair of relatives among the first of equal sequences, once, of which the later is aligned
/// with at most `most` others; pairs that are not `wanted` need not be looked at.
fn for_each_relative(
    sequences: &Sequences,
    least: f64,
    run: &Execution<'_>,
    most: usize,
    wanted: impl Fn(u32, u32) -> bool + Sync,
    relate: impl Fn(u32, u32) + Sync,
) -> Result<()> {
    check(least)?;
    let index = Index::new(sequences, least, run)?;
    for_each_query(sequences.len(), run, |query, Scratch { words, cells }| {
        let this = query as u32;
        if sequences.first_equal(query) != this {
            return;
        }
        let query = sequences.get(query);
        for candidate in index.candidates(query, this as usize, most, words) {
            let other = candidate.sequence;
            if !wanted(this, other) {
                continue;
            }
            let target = sequences.get(other as usize);
            if are_relatives(query, target, candidate.diagonal, least, cells) {
                relate(this, other);
            }
        }
    })?;
    Ok(())
}

/// Memory that is used again for each query.
#[derive(Default)]
struct Scratch {
    words: index::Scratch,
    cells: align::Scratch,
}

/// The answers to every query, in their order.
fn for_each_query<R: Send>(
    len: usize,
    run: &Execution<'_>,
    answer: impl Fn(usize, &mut Scratch) -> R + Sync,
) -> Result<Vec<R>> {
    let workers = Workers::new(run);
    let mut answers = Vec::with_capacity(len);
    workers.fold(
        len.div_ceil(TAKEN),
        |part| {
            let mut scratch = Scratch::default();
            let queries = part * TAKEN..len.min((part + 1) * TAKEN);
            queries.map(|query| workers.check().map(|()| answer(query, &mut scratch))).collect::<Result<Vec<R>>>()
        },
        |_, found| {
            answers.extend(found);
            Ok(())
        },
    )?;
    Ok(answers)
}

fn check(least: f64) -> Result<()> {
    if (MIN_IDENTITY..=1.0).contains(&least) {
        return Ok(());
    }
    Err(Error::option("identity", format!("is {least}; it must be from {MIN_IDENTITY} to 1")))
}
