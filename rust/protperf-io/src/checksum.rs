//! Checksums of many sequences at once, for callers that assign sequences to parts by their content.

use zlib_rs::crc32::crc32;

/// CRC-32 (as in zlib, continued from `seed`) of each sequence of a packed array.
///
/// # Shapes
/// Sequence r is `tokens[offsets[r]..offsets[r + 1]]`; `checksums` has one entry per sequence.
///
/// # Errors
/// The index of the first sequence whose offsets do not lie in `tokens`, in order.
pub fn checksums(tokens: &[u8], offsets: &[i64], seed: u32, checksums: &mut [u32]) -> Result<(), usize> {
    let bounds = offsets.iter().zip(offsets.iter().skip(1));
    for (index, (checksum, (&start, &end))) in checksums.iter_mut().zip(bounds).enumerate() {
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let sequence = range.and_then(|(start, end)| tokens.get(start..end)).ok_or(index)?;
        *checksum = crc32(seed, sequence);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::checksums;

    /// The check value of CRC-32/ISO-HDLC, and zlib's rule that a sum may be continued.
    #[test]
    fn sums_are_those_of_zlib_and_continue_from_the_seed() {
        let mut found = [0; 3];
        assert_eq!(checksums(b"123456789", &[0, 9, 9, 9], 0, &mut found), Ok(()));
        assert_eq!(found, [0xcbf4_3926, 0, 0]);
        let [mut first, mut second] = [[0], [0]];
        assert_eq!(checksums(b"123456789", &[0, 4], 0, &mut first), Ok(()));
        assert_eq!(checksums(b"123456789", &[4, 9], first[0], &mut second), Ok(()));
        assert_eq!(second, [0xcbf4_3926]);
    }

    #[test]
    fn offsets_outside_of_the_tokens_are_refused() {
        for (offsets, at) in [([0, 2, 4], 1), ([-1, 2, 3], 0), ([0, 2, 1], 1), ([2, 3, i64::MAX], 1)] {
            assert_eq!(checksums(&[3; 3], &offsets, 0, &mut [0; 2]), Err(at), "{offsets:?}");
        }
    }
}
