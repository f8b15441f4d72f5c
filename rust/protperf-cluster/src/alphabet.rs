//! Residues as this crate counts them: the twenty in alphabetical order and one code for all that is unknown, their
//! BLOSUM62 scores, and the groups of similar residues that words of distant relatives are made of.

use protperf_core::alphabet::letter_of;

/// Number of residues that can be identical to another.
pub const NUM_RESIDUES: usize = 20;
/// The code of a residue that is identical to none, itself included.
pub const UNKNOWN: u8 = NUM_RESIDUES as u8;
/// Number of groups in [`GROUP_OF`].
pub const NUM_GROUPS: usize = 13;

/// The group of each residue: DN, EQ, FY, IV, KR, LM and ST are one each, the others stand alone.
pub const GROUP_OF: [u8; NUM_RESIDUES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 2, 10, 3, 8, 11, 11, 7, 12, 4];

/// The code of a token: selenocysteine and pyrrolysine count as the residues that they stand in for, the ambiguous B, Z
/// and J as one of the two that they may be, X as unknown.
pub fn code_of(token: u8) -> u8 {
    let letter = match letter_of(token) {
        Some(b'U') => b'C',
        Some(b'O') => b'K',
        Some(b'B') => b'D',
        Some(b'Z') => b'E',
        Some(b'J') => b'L',
        Some(letter) => letter,
        None => return UNKNOWN,
    };
    b"ACDEFGHIKLMNPQRSTVWY".iter().position(|&known| known == letter).map_or(UNKNOWN, |index| index as u8)
}

/// [`BLOSUM62`] with rows and columns of 32, so that no index is out of it; -1 for what is unknown.
const SCORES: [i8; 1024] = {
    let (mut padded, mut at) = ([-1; 1024], 0);
    while at < NUM_RESIDUES * NUM_RESIDUES {
        padded[at / NUM_RESIDUES * 32 + at % NUM_RESIDUES] = BLOSUM62[at / NUM_RESIDUES][at % NUM_RESIDUES];
        at += 1;
    }
    padded
};

/// The BLOSUM62 score of two codes; -1 where one is unknown.
#[inline]
pub fn score(a: u8, b: u8) -> i32 {
    i32::from(SCORES[usize::from(a & 31) << 5 | usize::from(b & 31)])
}

/// Henikoff and Henikoff 1992, in half bits, in the order of the codes.
#[rustfmt::skip]
const BLOSUM62: [[i8; NUM_RESIDUES]; NUM_RESIDUES] = [
    [ 4,  0, -2, -1, -2,  0, -2, -1, -1, -1, -1, -2, -1, -1, -1,  1,  0,  0, -3, -2],
    [ 0,  9, -3, -4, -2, -3, -3, -1, -3, -1, -1, -3, -3, -3, -3, -1, -1, -1, -2, -2],
    [-2, -3,  6,  2, -3, -1, -1, -3, -1, -4, -3,  1, -1,  0, -2,  0, -1, -3, -4, -3],
    [-1, -4,  2,  5, -3, -2,  0, -3,  1, -3, -2,  0, -1,  2,  0,  0, -1, -2, -3, -2],
    [-2, -2, -3, -3,  6, -3, -1,  0, -3,  0,  0, -3, -4, -3, -3, -2, -2, -1,  1,  3],
    [ 0, -3, -1, -2, -3,  6, -2, -4, -2, -4, -3,  0, -2, -2, -2,  0, -2, -3, -2, -3],
    [-2, -3, -1,  0, -1, -2,  8, -3, -1, -3, -2,  1, -2,  0,  0, -1, -2, -3, -2,  2],
    [-1, -1, -3, -3,  0, -4, -3,  4, -3,  2,  1, -3, -3, -3, -3, -2, -1,  3, -3, -1],
    [-1, -3, -1,  1, -3, -2, -1, -3,  5, -2, -1,  0, -1,  1,  2,  0, -1, -2, -3, -2],
    [-1, -1, -4, -3,  0, -4, -3,  2, -2,  4,  2, -3, -3, -2, -2, -2, -1,  1, -2, -1],
    [-1, -1, -3, -2,  0, -3, -2,  1, -1,  2,  5, -2, -2,  0, -1, -1, -1,  1, -1, -1],
    [-2, -3,  1,  0, -3,  0,  1, -3,  0, -3, -2,  6, -2,  0,  0,  1,  0, -3, -4, -2],
    [-1, -3, -1, -1, -4, -2, -2, -3, -1, -3, -2, -2,  7, -1, -2, -1, -1, -2, -4, -3],
    [-1, -3,  0,  2, -3, -2,  0, -3,  1, -2,  0,  0, -1,  5,  1,  0, -1, -2, -2, -1],
    [-1, -3, -2,  0, -3, -2,  0, -3,  2, -2, -1,  0, -2,  1,  5, -1, -1, -3, -3, -2],
    [ 1, -1,  0,  0, -2,  0, -1, -2,  0, -2, -1,  1, -1,  0, -1,  4,  1, -2, -3, -2],
    [ 0, -1, -1, -1, -2, -2, -2, -1, -1, -1, -1,  0, -1, -1, -1,  1,  5,  0, -2, -2],
    [ 0, -1, -3, -2, -1, -3, -3,  3, -2,  1,  1, -3, -2, -2, -3, -2,  0,  4, -3, -1],
    [-3, -2, -4, -3,  1, -2, -2, -3, -3, -2, -1, -4, -4, -2, -3, -3, -2, -3, 11,  2],
    [-2, -2, -3, -2,  3, -3,  2, -1, -2, -1, -1, -2, -3, -1, -2, -2, -2, -1,  2,  7],
];

#[cfg(test)]
mod tests {
    use super::*;
    use protperf_core::alphabet::token_of;

    #[test]
    fn letters_have_the_codes_of_the_residues_that_they_stand_for() {
        let code = |letter| code_of(token_of(letter).unwrap());
        let twenty: Vec<u8> = b"ACDEFGHIKLMNPQRSTVWY".iter().map(|&letter| code(letter)).collect();
        assert_eq!(twenty, (0..20).collect::<Vec<u8>>());
        for (letter, stand_in) in [(b'U', b'C'), (b'O', b'K'), (b'B', b'D'), (b'Z', b'E'), (b'J', b'L')] {
            assert_eq!(code(letter), code(stand_in));
        }
        assert_eq!((code(b'X'), code_of(2), code_of(200)), (UNKNOWN, UNKNOWN, UNKNOWN));
    }

    #[test]
    fn the_matrix_is_symmetric_and_groups_hold_similar_residues() {
        for a in 0..20 {
            for b in 0..20 {
                assert_eq!(score(a, b), score(b, a));
                if a != b && GROUP_OF[usize::from(a)] == GROUP_OF[usize::from(b)] {
                    assert!(score(a, b) > 0, "{a} and {b}");
                }
            }
            assert!(score(a, a) >= 4 && score(a, UNKNOWN) == -1);
        }
        assert_eq!(GROUP_OF.iter().max(), Some(&(NUM_GROUPS as u8 - 1)));
    }
}
