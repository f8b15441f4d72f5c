//! Samplers of the projection matrix omega: directions, then norms.

mod hadamard;
mod iid;
mod norm;
mod orthogonal;
mod simplex;

use crate::error::{Error, Result};
use crate::memory::{check_len, try_filled};
use crate::rng::Stream;
use crate::tensor::checked_product;
pub use norm::Norm;

/// How the directions of omega are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// Independent normal rows.
    Iid,
    /// Blocks of `head_dim` rows from a Haar-distributed rotation.
    Orthogonal,
    /// Blocks of `head_dim` rows that are a randomly rotated regular simplex.
    Simplex,
    /// Blocks of rows of Hadamard matrices and random signs.
    Hadamard,
}

impl Sampler {
    /// Every sampler, the usual one first.
    pub const ALL: [Sampler; 4] = [Sampler::Orthogonal, Sampler::Iid, Sampler::Simplex, Sampler::Hadamard];

    /// The public name.
    pub fn name(self) -> &'static str {
        match self {
            Sampler::Iid => "iid",
            Sampler::Orthogonal => "orthogonal",
            Sampler::Simplex => "simplex",
            Sampler::Hadamard => "hadamard",
        }
    }

    /// The sampler of a public name.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] that lists the names there are.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|sampler| sampler.name() == name);
        found.ok_or_else(|| Error::unknown_name("sampler", name, &Self::ALL.map(Self::name)))
    }
}

/// One omega to draw.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// M, at least 1.
    pub num_features: usize,
    /// D, at least 1.
    pub head_dim: usize,
    /// How directions are drawn.
    pub sampler: Sampler,
    /// What their norms are.
    pub norm: Norm,
    /// The key of the numbers.
    pub seed: u64,
    /// `(layer, head, draw)`: numbers independent of those of every other stream.
    pub stream: [u32; 3],
}

/// Pairs of normals that one stream holds.
const MAX_PAIRS: usize = 1 << 32;

impl Draw {
    /// Elements of omega.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where a size is 0; [`Error::SizeOverflow`] also where the stream has too few numbers.
    pub fn numel(&self) -> Result<usize> {
        for (argument, size) in [("num_features", self.num_features), ("head_dim", self.head_dim)] {
            if size == 0 {
                return Err(Error::option(argument, "must be at least 1"));
            }
        }
        // One normal per element, and as many again for norms.
        checked_product("omega", &[self.num_features, self.head_dim])
            .ok()
            .filter(|&numel| numel <= MAX_PAIRS)
            .ok_or(Error::SizeOverflow { argument: "omega" })
    }

    /// Fills omega; `should_stop` is called at every row.
    ///
    /// # Shapes
    /// omega `[num_features, head_dim]`, row by row.
    ///
    /// # Errors
    /// As [`Draw::numel`]; [`Error::ShapeMismatch`]; [`Error::OutOfMemory`]; [`Error::Interrupted`].
    ///
    /// # Source
    /// Choromanski et al. 2021, arXiv:2009.14794, section 2.4; the sign that makes QR Haar: Mezzadri 2007,
    /// arXiv:math-ph/0609050.
    pub fn fill(&self, omega: &mut [f64], should_stop: &dyn Fn() -> bool) -> Result<()> {
        check_len("omega", omega.len(), self.numel()?)?;
        let check = || if should_stop() { Err(Error::Interrupted) } else { Ok(()) };
        let mut numbers = Stream::new(self.seed, self.stream);
        match self.sampler {
            Sampler::Iid => iid::draw(self.head_dim, self.norm, &mut numbers, omega, &check),
            Sampler::Orthogonal => orthogonal::draw(self.head_dim, self.norm, |_, _| {}, &mut numbers, omega, &check),
            Sampler::Simplex => {
                orthogonal::draw(self.head_dim, self.norm, simplex::arrange, &mut numbers, omega, &check)
            }
            Sampler::Hadamard => hadamard::draw(self.head_dim, self.norm, &mut numbers, omega, &check),
        }
    }
}

/// Draws omega into new memory: [`Draw::fill`].
///
/// # Shapes
/// Returns `[num_features, head_dim]`, row by row.
///
/// # Errors
/// As [`Draw::fill`].
pub fn draw_projection(
    num_features: usize,
    head_dim: usize,
    sampler: Sampler,
    norm: Norm,
    seed: u64,
    stream: [u32; 3],
) -> Result<Vec<f64>> {
    let draw = Draw { num_features, head_dim, sampler, norm, seed, stream };
    let numel = draw.numel()?;
    let mut omega = try_filled(numel, 0.0)?;
    draw.fill(&mut omega, &|| false)?;
    Ok(omega)
}

#[cfg(test)]
mod tests {
    use super::norm::length;
    use super::*;

    const GOLDEN: [[u64; 5]; 8] = [
        [
            0x3fe2_da9c_75ff_989f,
            0x3fd4_d62a_ae70_7e41,
            0x3fe8_1b51_dacf_5431,
            0x3fcb_6441_f276_36f7,
            0xbfd2_c5f9_c1a2_ef1e,
        ],
        [
            0x3fe7_4771_c69d_6695,
            0x3fd9_ba20_4d25_b39f,
            0x3ff3_f4d6_dc9d_d2aa,
            0x3fcb_0285_9e51_e21d,
            0xbfe0_c53f_2834_df56,
        ],
        [
            0x3fe1_3c8b_7ef1_142e,
            0x3fd3_0c8e_e4d3_729c,
            0x3fcd_bb38_5178_2f9e,
            0x3fda_cec1_2feb_1ebc,
            0xbfcb_03b1_1102_a7e6,
        ],
        [
            0x3fe7_4771_c69d_6693,
            0x3fd9_ba20_4d25_b3a0,
            0x3fd9_23a2_3336_8cf6,
            0x3fde_d143_a724_ff34,
            0xbfb4_8969_6da7_1251,
        ],
        [
            0x3fed_2a4d_ea98_503c,
            0x3fe4_02b5_68e9_4c33,
            0xbfc0_500e_351b_5c65,
            0xbfdb_30af_06c7_3a0b,
            0x3fbf_9544_dc2e_66a3,
        ],
        [
            0x3ff3_b1e0_c343_b394,
            0x3feb_0691_b9c6_7eb8,
            0xbfcb_9617_399f_9fc6,
            0xbfdf_41d7_5c7d_f1b3,
            0xbfe4_5cf4_7995_1b7b,
        ],
        [
            0xbff3_5edc_786c_2c73,
            0x3fe3_5edc_786c_2c73,
            0xbfe7_6973_a0ce_10ec,
            0xbfea_63bf_0e2e_551d,
            0xbff1_0455_e6a4_6b93,
        ],
        [
            0xbffb_0b80_ef84_4ba1,
            0x3feb_0b80_ef84_4ba1,
            0xbff4_a7e9_cb8a_3492,
            0xbfeb_0b80_ef84_4ba1,
            0xbff4_a7e9_cb8a_3492,
        ],
    ];

    #[test]
    fn rows_of_a_block_are_orthogonal_and_have_their_norms() {
        for (num_features, head_dim) in [(1, 1), (5, 3), (16, 8), (7, 16), (33, 17)] {
            let omega =
                draw_projection(num_features, head_dim, Sampler::Orthogonal, Norm::SqrtDim, 3, [1, 2, 3]).unwrap();
            let rows: Vec<_> = omega.chunks(head_dim).collect();
            for i in 0..num_features {
                assert!((length(rows[i]) - (head_dim as f64).sqrt()).abs() < 1e-12);
                for j in (0..i).filter(|j| j / head_dim == i / head_dim) {
                    let dot: f64 = rows[i].iter().zip(rows[j]).map(|(a, b)| a * b).sum();
                    assert!(dot.abs() < 1e-11 * head_dim as f64, "rows {i} and {j}: {dot:e}");
                }
            }
        }
    }

    /// Cosines between the rows of one draw.
    fn cosines(num_features: usize, head_dim: usize, sampler: Sampler) -> Vec<f64> {
        let omega = draw_projection(num_features, head_dim, sampler, Norm::Chi, 3, [1, 2, 3]).unwrap();
        let rows: Vec<_> = omega.chunks(head_dim).collect();
        let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / length(a) / length(b);
        (0..num_features).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| cosine(rows[i], rows[j])).collect()
    }

    #[test]
    fn rows_of_a_simplex_have_one_cosine() {
        for (num_features, head_dim) in [(2, 5), (4, 4), (7, 16), (17, 17)] {
            let needed = -1.0 / (num_features as f64 - 1.0);
            for found in cosines(num_features, head_dim, Sampler::Simplex) {
                assert!((found - needed).abs() < 1e-12, "{found} for {needed}");
            }
        }
        assert!(draw_projection(1, 1, Sampler::Simplex, Norm::SqrtDim, 3, [0; 3]).unwrap()[0].abs() == 1.0);
    }

    #[test]
    fn rows_of_hadamard_matrices_are_orthogonal_in_powers_of_two() {
        assert!(cosines(16, 16, Sampler::Hadamard).iter().all(|x| x.abs() < 1e-12));
        assert!(cosines(17, 12, Sampler::Hadamard).iter().all(|x| x.abs() < 1.0 - 1e-9));
        for (num_features, head_dim) in [(1, 1), (5, 3), (33, 12)] {
            let omega = draw_projection(num_features, head_dim, Sampler::Hadamard, Norm::SqrtDim, 3, [0; 3]).unwrap();
            for row in omega.chunks(head_dim) {
                assert!((length(row) - (head_dim as f64).sqrt()).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn projections_have_the_same_bits_on_every_machine() {
        let cases = [
            (Sampler::Iid, Norm::Chi),
            (Sampler::Iid, Norm::SqrtDim),
            (Sampler::Orthogonal, Norm::Chi),
            (Sampler::Orthogonal, Norm::SqrtDim),
            (Sampler::Simplex, Norm::Chi),
            (Sampler::Simplex, Norm::SqrtDim),
            (Sampler::Hadamard, Norm::Chi),
            (Sampler::Hadamard, Norm::SqrtDim),
        ];
        for ((sampler, norm), golden) in cases.into_iter().zip(GOLDEN) {
            let omega = draw_projection(7, 5, sampler, norm, 42, [1, 2, 3]).unwrap();
            let found = [omega[0], omega[4], omega[12], omega[24], omega[34]].map(f64::to_bits);
            assert_eq!(found, golden, "{sampler:?} {norm:?} {found:#x?}");
        }
    }

    #[test]
    fn a_rotation_of_one_axis_is_a_fair_sign() {
        let draw = |seed| draw_projection(1, 1, Sampler::Orthogonal, Norm::SqrtDim, seed, [0; 3]).unwrap()[0];
        let positive = (0..1000).filter(|&seed| draw(seed) > 0.0).count();
        assert!((0..1000).all(|seed| draw(seed).abs() == 1.0));
        // Five standard deviations of a fair coin.
        assert!(positive.abs_diff(500) < 80, "{positive}");
    }

    #[test]
    fn sizes_of_zero_are_refused() {
        assert!(draw_projection(0, 4, Sampler::Iid, Norm::Chi, 0, [0; 3]).is_err());
        assert!(draw_projection(4, 0, Sampler::Iid, Norm::Chi, 0, [0; 3]).is_err());
    }
}
