//! Cosines and sines of rotary positions. Source: Su et al. 2021, arXiv:2104.09864.

use protperf_core::{Result, check_len, try_reserved};
use protperf_cpu::CpuElement;
use std::borrow::Cow;

/// The angles of some tokens.
#[derive(Clone, Debug)]
pub struct Rotary<'a, T: CpuElement> {
    half: usize,
    /// `[.., D/2]`.
    cosines: Cow<'a, [T]>,
    sines: Cow<'a, [T]>,
    /// The row of each token; `None`: rows are tokens.
    places: Option<Vec<usize>>,
}

impl<'a, T: CpuElement> Rotary<'a, T> {
    /// The angles of tokens at some positions. Positions that occur again are computed once where they are dense.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(positions: impl Iterator<Item = u64> + Clone, head_dim: usize) -> Result<Self> {
        let (mut low, mut high, mut count) = (u64::MAX, 0, 0);
        for position in positions.clone() {
            (low, high, count) = (low.min(position), high.max(position), count + 1);
        }
        let is_dense = count > 0 && high - low < count as u64;
        let (mut places, mut rows) = (try_reserved(count)?, try_reserved(count)?);
        if is_dense {
            rows.extend(low..=high);
            places.extend(positions.map(|position| (position - low) as usize));
        } else {
            rows.extend(positions);
            places.extend(0..count);
        }
        let half = head_dim / 2;
        let (mut cosines, mut sines) = (try_reserved(rows.len() * half)?, try_reserved(rows.len() * half)?);
        let mut rates = try_reserved(half)?;
        rates.extend((0..half).map(|i| 10000f64.powf(-2.0 * i as f64 / head_dim as f64)));
        for position in rows {
            for rate in &rates {
                // In f64: an angle at position 34,000 has no correct digits in f32.
                let (sine, cosine) = (position as f64 * rate).sin_cos();
                cosines.push(T::from_f64(cosine));
                sines.push(T::from_f64(sine));
            }
        }
        Ok(Rotary { half, cosines: Cow::Owned(cosines), sines: Cow::Owned(sines), places: Some(places) })
    }

    /// Angles that the caller computed, `[N, D/2]` each.
    ///
    /// # Errors
    /// `ShapeMismatch` where the two differ in length, or have no whole number of rows.
    pub fn from_tables(cosines: &'a [T], sines: &'a [T], head_dim: usize) -> Result<Self> {
        let half = head_dim / 2;
        check_len("sines", sines.len(), cosines.len())?;
        check_len("cosines", cosines.len(), cosines.len() / half.max(1) * half)?;
        Ok(Rotary { half, cosines: Cow::Borrowed(cosines), sines: Cow::Borrowed(sines), places: None })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.places.as_ref().map_or(self.cosines.len() / self.half.max(1), Vec::len)
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cosines and sines of a token, `[D/2]` each.
    pub fn row(&self, token: usize) -> (&[T], &[T]) {
        let start = self.places.as_ref().map_or(token, |places| places[token]) * self.half;
        (&self.cosines[start..][..self.half], &self.sines[start..][..self.half])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_positions_times_rates() {
        for positions in [vec![0, 1, 2, 0, 1], vec![7], vec![1_000_000, 3], vec![]] {
            let rotary = Rotary::<f64>::new(positions.iter().copied(), 8).unwrap();
            assert_eq!(rotary.len(), positions.len());
            for (token, &position) in positions.iter().enumerate() {
                for i in 0..4 {
                    let angle = position as f64 * 10000f64.powf(-(i as f64) / 4.0);
                    assert_eq!((rotary.row(token).0[i], rotary.row(token).1[i]), (angle.cos(), angle.sin()));
                }
            }
        }
    }
}
