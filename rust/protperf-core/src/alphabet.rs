//! The alphabet: which token stands for which residue.
//!
//! Only the correspondence lives here; what becomes of bytes that are not residues is the scanner's business
//! ([`crate::fasta`]). Invariant: the ids never change, since checkpoints store them.

/// Begin of sequence.
pub const BOS: u8 = 0;
/// End of sequence.
pub const EOS: u8 = 1;
/// A site hidden from the model.
pub const MASK: u8 = 2;
/// Token of the first residue, alanine.
pub const FIRST_RESIDUE: u8 = 3;
/// The letters that have a token, in token order: the twenty, then U and O, then the ambiguous B, Z, J and X.
pub const RESIDUES: &[u8; 26] = b"ACDEFGHIKLMNPQRSTVWYUOBZJX";
/// Token of the first ambiguous letter, B; all tokens from here on are ambiguous.
pub const FIRST_AMBIGUOUS: u8 = 25;
/// Token of X, any residue.
pub const UNKNOWN: u8 = 28;
/// Number of tokens.
pub const VOCABULARY_SIZE: usize = 29;
/// How each token is written, by id.
pub const VOCABULARY: [&str; VOCABULARY_SIZE] = [
    "<bos>", "<eos>", "<mask>", "A", "C", "D", "E", "F", "G", "H", "I", "K", "L", "M", "N", "P", "Q", "R", "S", "T",
    "V", "W", "Y", "U", "O", "B", "Z", "J", "X",
];

/// Token of an upper-case letter; `None` where the byte is not a residue.
pub const fn token_of(letter: u8) -> Option<u8> {
    let mut index = 0;
    while index < RESIDUES.len() {
        if RESIDUES[index] == letter {
            return Some(FIRST_RESIDUE + index as u8);
        }
        index += 1;
    }
    None
}

/// Letter of a residue token; `None` for the special tokens and for numbers outside of the vocabulary.
pub fn letter_of(token: u8) -> Option<u8> {
    RESIDUES.get(usize::from(token.checked_sub(FIRST_RESIDUE)?)).copied()
}

/// Whether the token is one of B, Z, J and X, which stay as context and are not scored.
pub const fn is_ambiguous(token: u8) -> bool {
    token >= FIRST_AMBIGUOUS && (token as usize) < VOCABULARY_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabulary_and_letters_agree() {
        for (id, name) in VOCABULARY.iter().enumerate() {
            let letter = letter_of(id as u8);
            match name.as_bytes() {
                [byte] => {
                    assert_eq!(letter, Some(*byte));
                    assert_eq!(token_of(*byte), Some(id as u8));
                }
                _ => assert_eq!(letter, None),
            }
        }
        assert_eq!(letter_of(29), None);
        assert_eq!(letter_of(255), None);
    }

    #[test]
    fn ids_are_those_that_checkpoints_store() {
        let stored: Vec<u8> = b"ACDEFGHIKLMNPQRSTVWYUOBZJX".iter().map(|&letter| token_of(letter).unwrap()).collect();
        assert_eq!(stored, (3..29).collect::<Vec<u8>>());
        assert_eq!(token_of(b'X'), Some(UNKNOWN));
        assert_eq!((0..=255).filter(|&token| is_ambiguous(token)).collect::<Vec<u8>>(), [25, 26, 27, 28]);
    }
}
