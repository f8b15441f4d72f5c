//! Which numbers of a block are dropped in a step.

use protperf_core::{Error, Result};
use protperf_cpu::CpuElement;
use protperf_cpu::ops::Ops;

/// Where in a block numbers are dropped.
#[derive(Clone, Copy, Debug)]
pub enum Site {
    /// What attention adds to the residual stream.
    Attention = 0,
    /// What the feed-forward layer adds.
    FeedForward = 1,
}

/// Dropout with a probability, drawn by a key: the same key drops the same numbers again.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    probability: f64,
    key: u64,
}

impl Dropout {
    /// No number is dropped.
    pub const NONE: Dropout = Dropout { probability: 0.0, key: 0 };

    /// Dropout of a block; `key` differs from block to block and from step to step.
    ///
    /// # Errors
    /// `InvalidOption` unless the probability is at least 0 and below 1.
    pub fn new(probability: f64, key: u64) -> Result<Self> {
        if (0.0..1.0).contains(&probability) {
            return Ok(Dropout { probability, key });
        }
        Err(Error::option("dropout", format!("is {probability}; it must be at least 0 and below 1")))
    }

    /// Drops numbers of one token's row, or what arrives there in the backward pass.
    pub fn apply<T: CpuElement>(&self, ops: &Ops<T>, site: Site, token: usize, row: &mut [T]) {
        if self.probability > 0.0 {
            let threshold = (self.probability * 2f64.powi(32)) as u32;
            let key = mixed(mixed(self.key ^ (site as u64) << 63) ^ token as u64);
            ops.dropout(row, key, threshold, T::from_f64(1.0 / (1.0 - self.probability)));
        }
    }
}

/// A bijection of 64 bits in which every bit moves half of the others: the finalizer of SplitMix64 (Steele et al. 2014).
fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protperf_cpu::Isa;

    #[test]
    fn the_share_of_dropped_numbers_and_their_scale() {
        let ops = Ops::<f32>::of(Isa::available()[0]);
        for probability in [0.1, 0.5, 0.9] {
            let dropout = Dropout::new(probability, 42).unwrap();
            let (mut dropped, mut total) = (0, 0);
            for token in 0..500 {
                let mut row = vec![1.0; 400];
                dropout.apply(ops, Site::Attention, token, &mut row);
                dropped += row.iter().filter(|&&x| x == 0.0).count();
                total += row.len();
                assert!(row.iter().all(|&x| x == 0.0 || (f64::from(x) * (1.0 - probability) - 1.0).abs() < 1e-6));
            }
            let deviation = (probability * (1.0 - probability) / f64::from(total as u32)).sqrt();
            assert!((f64::from(dropped as u32) / f64::from(total as u32) - probability).abs() < 4.0 * deviation);
        }
    }

    #[test]
    fn neighbours_tokens_sites_and_keys_are_dropped_independently() {
        let ops = Ops::<f32>::of(Isa::available()[0]);
        let draw = |key, site, token| {
            let mut row = vec![1.0f32; 20_000];
            Dropout::new(0.5, key).unwrap().apply(ops, site, token, &mut row);
            row.into_iter().map(|x| x == 0.0).collect::<Vec<_>>()
        };
        let first = draw(1, Site::Attention, 0);
        assert_eq!(first, draw(1, Site::Attention, 0));
        let shifted = [&first[1..], &first[..1]].concat();
        for other in [shifted, draw(2, Site::Attention, 0), draw(1, Site::FeedForward, 0), draw(1, Site::Attention, 1)]
        {
            let equal = first.iter().zip(&other).filter(|(a, b)| a == b).count() as f64;
            assert!((equal / 20_000.0 - 0.5).abs() < 4.0 * 0.5 / 20_000f64.sqrt());
        }
    }

    #[test]
    fn a_probability_that_is_none_is_refused() {
        assert!(Dropout::new(1.0, 0).is_err());
        assert!(Dropout::new(-0.1, 0).is_err());
        assert!(Dropout::new(f64::NAN, 0).is_err());
    }
}
