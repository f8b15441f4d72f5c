//! A set of sequences as codes of residues, and which of them are equal.

use crate::alphabet::code_of;
use protperf_core::{Error, Result, try_filled};
use std::collections::HashMap;

/// Sequences one after another; equal ones are found once, when the set is made.
pub struct Sequences {
    codes: Vec<u8>,
    borders: Vec<u32>,
    /// The first sequence that is equal to each.
    first_equal: Vec<u32>,
}

impl Sequences {
    /// The sequences of packed tokens.
    ///
    /// # Shapes
    /// Sequence r is `tokens[offsets[r]..offsets[r + 1]]`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`]: offsets that are not in order from 0 to the number of tokens; [`Error::InvalidOption`]:
    /// 2^32 tokens or more; [`Error::OutOfMemory`].
    pub fn new(tokens: &[u8], offsets: &[i64]) -> Result<Self> {
        if tokens.len() >= u32::MAX as usize {
            let detail = format!("holds {} tokens and at most {} can be compared; give fewer", tokens.len(), u32::MAX);
            return Err(Error::option("tokens", detail));
        }
        let in_order = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if !in_order || offsets.first() != Some(&0) || offsets.last() != Some(&(tokens.len() as i64)) {
            let detail = format!("must ascend from 0 to the {} tokens", tokens.len());
            return Err(Error::shape("offsets", detail));
        }
        let table: [u8; 256] = std::array::from_fn(|token| code_of(token as u8));
        let mut codes = try_filled(tokens.len(), 0)?;
        codes.iter_mut().zip(tokens).for_each(|(code, &token)| *code = table[usize::from(token)]);
        let mut borders = try_filled(offsets.len(), 0)?;
        borders.iter_mut().zip(offsets).for_each(|(border, &offset)| *border = offset as u32);
        let mut found = Sequences { codes, borders, first_equal: try_filled(offsets.len() - 1, 0)? };
        found.first_equal = found.equal();
        Ok(found)
    }

    fn equal(&self) -> Vec<u32> {
        let mut first = HashMap::with_capacity(self.len());
        (0..self.len()).map(|index| *first.entry(self.get(index)).or_insert(index as u32)).collect()
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.borders.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The codes of one sequence.
    pub(crate) fn get(&self, index: usize) -> &[u8] {
        &self.codes[self.borders[index] as usize..self.borders[index + 1] as usize]
    }

    /// All codes, one sequence after another.
    pub(crate) fn packed(&self) -> &[u8] {
        &self.codes
    }

    /// The first sequence that is equal to this one.
    pub(crate) fn first_equal(&self, index: usize) -> u32 {
        self.first_equal[index]
    }
}
