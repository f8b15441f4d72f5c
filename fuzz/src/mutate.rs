//! Small changes to inputs: bits, bytes, words of a dictionary, pieces moved, cut, repeated or taken from other inputs.

use crate::random::Random;

/// Change `input` in one to eight places. It stays at most `limit` bytes long.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], limit: usize, random: &mut Random) {
    for _ in 0..1 + random.below(8) {
        let at = random.below(input.len() + 1);
        match random.below(10) {
            0 => change(input, at, |byte| byte ^ 1 << (at % 8)),
            1 => {
                let value = random.next() as u8;
                change(input, at, |_| value);
            }
            2 => change(input, at, |byte| byte.wrapping_add(1)),
            3 | 4 => insert(input, at, random.pick::<&[u8]>(words)),
            5 => overwrite(input, at, random.pick::<&[u8]>(words)),
            6 => {
                let end = (at + 1 + random.below(8)).min(input.len());
                input.drain(at.min(end)..end);
            }
            7 => {
                let piece = input[at..(at + random.below(32)).min(input.len())].to_vec();
                let limit = if random.below(20) == 0 { 64 } else { 2 };
                let times = 1 + random.below(limit);
                insert(input, at, &piece.repeat(times));
            }
            8 if !other.is_empty() => {
                let from = random.below(other.len());
                let piece = &other[from..(from + 1 + random.below(64)).min(other.len())];
                insert(input, at, piece);
            }
            _ if random.below(4) == 0 => input.truncate(at),
            _ => {
                let (low, high) = (at, random.below(input.len() + 1));
                if low < high && high - low <= 64 {
                    input[low..high].reverse();
                }
            }
        }
        input.truncate(limit);
    }
}

fn change(input: &mut [u8], at: usize, how: impl Fn(u8) -> u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = how(*byte);
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}

fn overwrite(input: &mut [u8], at: usize, piece: &[u8]) {
    for (byte, &new) in input[at..].iter_mut().zip(piece) {
        *byte = new;
    }
}
