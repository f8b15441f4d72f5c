//! A counter-based stream of random numbers: the same on every machine.
//!
//! Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by the seed, counted by
//! stream and index. Normals by Box and Muller over the `libm` crate, never the system's mathematics library, so
//! that a seed gives the same bits everywhere.

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four words of Philox 4x32-10.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [MULTIPLIERS[0] * u64::from(counter[0]), MULTIPLIERS[1] * u64::from(counter[2])];
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A place in the numbers of one seed and one stream.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    stream: [u32; 3],
    index: u32,
    spare: Option<f64>,
}

impl Stream {
    /// The stream `(layer, head, draw)` of a seed, at its beginning.
    pub fn new(seed: u64, stream: [u32; 3]) -> Self {
        Stream { key: [seed as u32, (seed >> 32) as u32], stream, index: 0, spare: None }
    }

    /// Two uniforms of 53 bits in (0, 1]: never 0, so that their logarithm is finite.
    fn uniforms(&mut self) -> [f64; 2] {
        let [layer, head, draw] = self.stream;
        let w = philox([self.index, layer, head, draw], self.key);
        self.index = self.index.checked_add(1).expect("a projection has fewer than 2^32 pairs of normals");
        let uniform = |high: u32, low: u32| {
            let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
            (bits as f64 + 0.5) * (1.0 / 9_007_199_254_740_992.0)
        };
        [uniform(w[0], w[1]), uniform(w[2], w[3])]
    }

    /// The next standard normal.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let [u, w] = self.uniforms();
        let (radius, angle) = (libm::sqrt(-2.0 * libm::log(u)), std::f64::consts::TAU * w);
        self.spare = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Also computed in another language.
    const GOLDEN: [u64; 6] = [
        0x3ff5_49eb_fbea_6028,
        0x3fee_82b8_531a_ec0f,
        0x3ffd_b0d2_993f_4104,
        0xbfc5_bd84_6d93_ad65,
        0xbfe0_a10f_2817_2574,
        0xbf56_0e43_c7d6_321c,
    ];

    #[test]
    fn philox_gives_the_published_words() {
        // The known-answer vectors of the Random123 library.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normals_have_mean_0_variance_1_and_kurtosis_3() {
        let mut stream = Stream::new(1, [0, 0, 0]);
        let n = 200_000;
        let (mut sum, mut squares, mut fourths) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let x = stream.normal();
            (sum, squares, fourths) = (sum + x, squares + x * x, fourths + x * x * x * x);
        }
        let n = f64::from(n);
        // Five standard errors: 1, sqrt(2) and sqrt(96) over sqrt(n).
        assert!((sum / n).abs() < 5.0 / n.sqrt());
        assert!((squares / n - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!((fourths / n - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
    }

    #[test]
    fn normals_have_the_same_bits_on_every_machine() {
        let mut stream = Stream::new(0x0123_4567_89ab_cdef, [7, 11, 13]);
        let bits: Vec<u64> = (0..6).map(|_| stream.normal().to_bits()).collect();
        assert_eq!(bits, GOLDEN, "{bits:#x?}");
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = |seed, stream| Stream::new(seed, stream).normal();
        let all =
            [first(0, [0, 0, 0]), first(1, [0, 0, 0]), first(0, [1, 0, 0]), first(0, [0, 1, 0]), first(0, [0, 0, 1])];
        for i in 0..all.len() {
            for j in 0..i {
                assert_ne!(all[i], all[j]);
            }
        }
    }
}
