//! Which sequences share words, and where: an index of every word of k residues of a set, and the candidates for a query.
//!
//! From [`GROUPED_BELOW`] of identity on words are of residues as they are; below, of groups of similar residues, which
//! distant relatives still share, and a residue longer in a large set, where short ones are common by chance. A word is
//! found by a hash of its letters; words that collide make a candidate that the alignment turns down. What a query may
//! cost is bounded: it looks at its rarest words first, up to [`MAX_HITS`] places, so that in a large family it is the
//! words of its closest relatives that count, and it keeps the candidates with most words. Of more than [`MAX_PLACES`]
//! residues a fixed share of the words is kept, chosen by their hash, so that relatives keep the same ones.
//!
//! ```text
//! for each word of the query, rarest first:  for each place of the word:  note (sequence, diagonal)
//! a sequence with two words within BAND diagonals is a candidate, on the diagonal in the middle of most
//! ```

use crate::alphabet::{GROUP_OF, NUM_GROUPS, NUM_RESIDUES, UNKNOWN};
use crate::sequences::Sequences;
use protperf_core::{Execution, Result, try_filled};
use protperf_cpu::Workers;

/// Residues of a word.
const WORD: usize = 6;
/// Residues of a set from which words of groups are one residue longer.
const LARGE: usize = 1 << 22;
/// Identity below which words are of groups of residues.
pub const GROUPED_BELOW: f64 = 0.7;
/// Places of words in other sequences that a query looks at.
const MAX_HITS: usize = 4096;
/// Places that an index holds.
const MAX_PLACES: usize = 1 << 26;
/// Diagonals within which words support the same alignment.
const BAND: u32 = 16;
/// Residues of a sequence that has too few words to ask for two.
const SHORT: usize = 60;

/// A sequence that may be a relative of the query, and the diagonal (its place minus the query's) to align them on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub sequence: u32,
    pub diagonal: i64,
    /// Words in common on that diagonal, or near it.
    pub words: u32,
}

/// Memory that a thread uses again for each query.
#[derive(Default)]
pub struct Scratch {
    words: Vec<(u32, u32, u32)>,
    hits: Vec<u64>,
    candidates: Vec<Candidate>,
}

/// The places of all words of a set; of equal sequences the first stands for all.
pub struct Index<'a> {
    sequences: &'a Sequences,
    is_grouped: bool,
    /// Residues of a word.
    word: usize,
    /// Words are kept whose hash is at most this.
    largest_hash: u32,
    /// Bits of the hash that choose a list.
    bits: u32,
    /// Where the list of each hash begins in `places` [2^bits + 1].
    starts: Vec<u32>,
    /// Sequence in the upper half, place in it in the lower; ascending in each list.
    places: Vec<u64>,
}

impl<'a> Index<'a> {
    /// Index a set for relatives of at least this identity.
    ///
    /// # Errors
    /// [`protperf_core::Error::OutOfMemory`], [`protperf_core::Error::Interrupted`].
    pub fn new(sequences: &'a Sequences, identity: f64, run: &Execution<'_>) -> Result<Self> {
        let codes = sequences.packed();
        let bits = codes.len().max(2).ilog2().clamp(10, 24);
        let kept = (MAX_PLACES as f64 / codes.len().max(1) as f64).min(1.0);
        let is_grouped = identity < GROUPED_BELOW;
        let mut index = Index {
            sequences,
            is_grouped,
            word: WORD + usize::from(is_grouped && codes.len() >= LARGE),
            largest_hash: (kept * f64::from(u32::MAX)) as u32,
            bits,
            starts: try_filled((1 << bits) + 1, 0)?,
            places: Vec::new(),
        };
        index.fill(&Workers::new(run))?;
        Ok(index)
    }

    /// Count the words of each list, then put their places there.
    fn fill(&mut self, workers: &Workers<'_>) -> Result<()> {
        let mut ends = try_filled(self.starts.len(), 0u32)?;
        self.for_each_word(workers, |list, _| ends[list + 1] += 1)?;
        for list in 1..ends.len() {
            ends[list] += ends[list - 1];
        }
        self.starts.copy_from_slice(&ends);
        let mut places = try_filled(ends.last().map_or(0, |&end| end as usize), 0)?;
        self.for_each_word(workers, |list, place| {
            places[ends[list] as usize] = place;
            ends[list] += 1;
        })?;
        self.places = places;
        Ok(())
    }

    fn for_each_word(&self, workers: &Workers<'_>, mut visit: impl FnMut(usize, u64)) -> Result<()> {
        for index in 0..self.sequences.len() {
            workers.check_at(index)?;
            if self.sequences.first_equal(index) == index as u32 {
                self.for_each_word_of(self.sequences.get(index), |list, at| {
                    visit(list, (index as u64) << 32 | u64::from(at));
                });
            }
        }
        Ok(())
    }

    /// Calls `visit` with list and place of each word that is kept. Words of one letter alone say nothing.
    fn for_each_word_of(&self, codes: &[u8], mut visit: impl FnMut(usize, u32)) {
        let base = if self.is_grouped { NUM_GROUPS } else { NUM_RESIDUES } as u64;
        let power = base.pow(self.word as u32 - 1);
        let (mut word, mut known, mut same, mut before) = (0u64, 0, 0, UNKNOWN);
        for (at, &code) in codes.iter().enumerate() {
            if code == UNKNOWN {
                (word, known, same, before) = (0, 0, 0, UNKNOWN);
                continue;
            }
            let letter = if self.is_grouped { GROUP_OF[usize::from(code)] } else { code };
            word = word % power * base + u64::from(letter);
            known += 1;
            same = if letter == before { same + 1 } else { 1 };
            before = letter;
            if known >= self.word && same < self.word {
                let hash = mixed(word);
                if hash <= self.largest_hash {
                    visit((hash.wrapping_mul(0x9E37_79B1) >> (32 - self.bits)) as usize, (at + 1 - self.word) as u32);
                }
            }
        }
    }

    /// The candidates for a query among the sequences below `limit`: the `most` with most words, these first.
    pub fn candidates<'s>(&self, query: &[u8], limit: usize, most: usize, scratch: &'s mut Scratch) -> &'s [Candidate] {
        scratch.words.clear();
        scratch.hits.clear();
        scratch.candidates.clear();
        let end = (limit as u64) << 32;
        self.for_each_word_of(query, |list, at| {
            let (from, to) = (self.starts[list] as usize, self.starts[list + 1] as usize);
            let count = self.places[from..to].partition_point(|&place| place < end);
            if count > 0 {
                scratch.words.push((count as u32, at, from as u32));
            }
        });
        scratch.words.sort_unstable();
        for &(count, at, from) in &scratch.words {
            let left = MAX_HITS - scratch.hits.len();
            let from = from as usize;
            for &place in &self.places[from..from + left.min(count as usize)] {
                // The diagonal is counted from the lowest that there can be.
                scratch.hits.push(place + query.len() as u64 - u64::from(at));
            }
            if left <= count as usize {
                break;
            }
        }
        scratch.hits.sort_unstable();
        self.group(query.len(), scratch);
        scratch.candidates.sort_unstable_by_key(|found| (u32::MAX - found.words, found.sequence));
        scratch.candidates.truncate(most);
        &scratch.candidates
    }

    fn group(&self, query_len: usize, scratch: &mut Scratch) {
        for hits in scratch.hits.chunk_by(|a, b| a >> 32 == b >> 32) {
            let sequence = (hits[0] >> 32) as u32;
            let (words, diagonal) = densest(hits);
            let is_short = query_len.min(self.sequences.get(sequence as usize).len()) < SHORT;
            if words >= 2 || is_short {
                let diagonal = i64::from(diagonal) - query_len as i64;
                scratch.candidates.push(Candidate { sequence, diagonal, words });
            }
        }
    }
}

/// The most hits within [`BAND`] diagonals, and the middle one of these.
fn densest(hits: &[u64]) -> (u32, u32) {
    let (mut first, mut most, mut middle) = (0, 0, 0);
    for (last, &hit) in hits.iter().enumerate() {
        while hits[first] as u32 + BAND < hit as u32 {
            first += 1;
        }
        if last + 1 - first > most {
            most = last + 1 - first;
            middle = hits[first + most / 2] as u32;
        }
    }
    (most as u32, middle)
}

/// The upper half of a multiplicative hash with its lower bits mixed in.
fn mixed(word: u64) -> u32 {
    let product = (word ^ word >> 29).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((product ^ product >> 31).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use protperf_core::Error;
    use protperf_core::alphabet::token_of;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn set(sequences: &[&str]) -> Sequences {
        let tokens: Vec<u8> =
            sequences.iter().flat_map(|x| x.bytes().map(|letter| token_of(letter).unwrap())).collect();
        let mut offsets = vec![0];
        sequences.iter().for_each(|x| offsets.push(offsets.last().unwrap() + x.len() as i64));
        Sequences::new(&tokens, &offsets).unwrap()
    }

    #[test]
    fn candidates_share_words_on_a_diagonal_and_equal_sequences_stand_for_one_another() {
        let protein = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQF";
        let late = &format!("GGGWW{protein}");
        let sequences = set(&[protein, "WWWWWWWWWWWWWW", late, protein]);
        let cancel = AtomicBool::new(false);
        let run = Execution { num_threads: 1, cancel: &cancel };
        let index = Index::new(&sequences, 0.9, &run).unwrap();
        let mut scratch = Scratch::default();
        let found = index.candidates(sequences.get(3), 4, 9, &mut scratch).to_vec();
        assert_eq!(found.iter().map(|c| (c.sequence, c.diagonal)).collect::<Vec<_>>(), [(0, 0), (2, 5)]);
        assert_eq!(index.candidates(sequences.get(2), 2, 9, &mut scratch)[0].diagonal, -5);
        assert!(index.candidates(sequences.get(1), 4, 9, &mut scratch).is_empty());
        assert!(index.candidates(&[UNKNOWN; 40], 4, 9, &mut scratch).is_empty());
        cancel.store(true, Ordering::Relaxed);
        assert_eq!(Index::new(&sequences, 0.9, &run).err(), Some(Error::Interrupted));
    }

    #[test]
    fn the_densest_band_wins() {
        assert_eq!(densest(&[1, 50, 55, 60, 200]), (3, 55));
        assert_eq!(densest(&[9]), (1, 9));
    }
}
