//! One vector for a sequence: hidden states of some of its tokens, pooled in f64.

use protperf_core::{Element, Error, Result, check_len, try_reserved};
use std::ops::Range;

/// A vector that is made of hidden states of a sequence. Of no tokens it is NaN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The sequence.
    pub sequence: usize,
    /// Its tokens that are pooled, among those that are read.
    pub tokens: Range<usize>,
    /// How they are pooled.
    pub kind: PoolKind,
}

/// How hidden states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Their mean; of one token its own state.
    Mean,
    /// The largest number along each axis.
    Max,
    /// Their mean with weights: the softmax over the tokens of `sqrt(C) cos(h_i, h_query)`.
    Attention {
        /// A token of the sequence.
        query: usize,
    },
}

impl Pool {
    /// Refuses pools of tokens that are not read.
    ///
    /// # Errors
    /// `InvalidOption`; `ShapeMismatch` where `out` has not one vector for each pool.
    pub fn check(pools: &[Pool], borders: &[i64], model_dim: usize, out: usize) -> Result<()> {
        for (place, pool) in pools.iter().enumerate() {
            let refused = |detail: String| Err(Error::option("pools", format!("{detail}, at place {place}")));
            let Some([first, end]) = borders.get(pool.sequence..).and_then(<[i64]>::first_chunk) else {
                return refused(format!("name sequence {} of {}", pool.sequence, borders.len() - 1));
            };
            let len = (end - first) as usize;
            let Range { start, end } = pool.tokens;
            if start > end || end > len {
                return refused(format!("hold tokens {start} to {end} of a sequence of {len}"));
            }
            if let PoolKind::Attention { query } = pool.kind
                && query >= len
            {
                return refused(format!("name token {query} of a sequence of {len} as the query"));
            }
        }
        check_len("out", out, pools.len() * model_dim)
    }

    /// The vector `[C]`, from the states `[N,C]` of all tokens that are read and the borders of their sequences.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn fill<T: Element>(&self, hidden: &[T], borders: &[i64], out: &mut [f64]) -> Result<()> {
        let (first, c) = (borders[self.sequence] as usize, out.len());
        let state = |token: usize| &hidden[(first + token) * c..][..c];
        let states = || self.tokens.clone().map(state);
        let count = self.tokens.len() as f64;
        match self.kind {
            _ if self.tokens.is_empty() => out.fill(f64::NAN),
            PoolKind::Mean => {
                add_up(out, states().map(|state| (state, 1.0)));
                out.iter_mut().for_each(|to| *to /= count);
            }
            PoolKind::Max => {
                out.fill(f64::NEG_INFINITY);
                states().for_each(|state| out.iter_mut().zip(state).for_each(|(to, x)| *to = larger(*to, x.to_f64())));
            }
            PoolKind::Attention { query } => {
                let (query, scale) = (state(query), (c as f64).sqrt());
                let of_query = dot(query, query).sqrt();
                let cosine = |x: &[T]| dot(x, query) / (dot(x, x).sqrt() * of_query).max(f64::MIN_POSITIVE);
                // Logits, and then weights in their place.
                let mut weights = try_reserved(self.tokens.len())?;
                weights.extend(states().map(|x| scale * cosine(x)));
                let top = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                weights.iter_mut().for_each(|logit| *logit = (*logit - top).exp());
                let total: f64 = weights.iter().sum();
                add_up(out, states().zip(weights.iter().map(|weight| weight / total)));
            }
        }
        Ok(())
    }
}

/// The sum of states, each times a number.
fn add_up<'a, T: Element + 'a>(out: &mut [f64], terms: impl Iterator<Item = (&'a [T], f64)>) {
    out.fill(0.0);
    for (state, by) in terms {
        out.iter_mut().zip(state).for_each(|(to, x)| *to += x.to_f64() * by);
    }
}

/// The larger of two numbers; NaN where one is.
fn larger(a: f64, b: f64) -> f64 {
    if a > b || a.is_nan() { a } else { b }
}

fn dot<T: Element>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x.to_f64() * y.to_f64()).sum()
}
