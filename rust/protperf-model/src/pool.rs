//! One vector for a sequence: hidden states of some of its tokens, pooled in f64.

use protperf_core::{Element, Error, Result, check_len};
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
        let lengths: Vec<usize> = borders.windows(2).map(|ends| (ends[1] - ends[0]) as usize).collect();
        for (place, pool) in pools.iter().enumerate() {
            let refused = |detail: String| Err(Error::option("pools", format!("{detail}, at place {place}")));
            let Some(&len) = lengths.get(pool.sequence) else {
                return refused(format!("name sequence {} of {}", pool.sequence, lengths.len()));
            };
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
    pub fn fill<T: Element>(&self, hidden: &[T], borders: &[i64], out: &mut [f64]) {
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
                let scale = (c as f64).sqrt();
                let logits: Vec<f64> = states().map(|state_of| scale * cosine(state_of, state(query))).collect();
                let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = logits.iter().map(|logit| (logit - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                add_up(out, states().zip(weights.iter().map(|weight| weight / total)));
            }
        }
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

fn cosine<T: Element>(a: &[T], b: &[T]) -> f64 {
    let dot = |a: &[T], b: &[T]| a.iter().zip(b).map(|(x, y)| x.to_f64() * y.to_f64()).sum::<f64>();
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()).max(f64::MIN_POSITIVE)
}
