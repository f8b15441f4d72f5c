//! What computes a network: whole-network operations, so that weights and states may lie where a device wants them.
//!
//! [`crate::network::Network`] checks every argument before a device sees it. [`crate::cpu::CpuDevice`] is the fast one,
//! [`crate::reference::Plain`] the plain one that judges it.

use crate::config::Config;
use crate::fault::Result;
use crate::pool::Pool;
use crate::source::TensorSource;
use protperf_core::{Element, Execution};

/// The tokens of several sequences one after another; checked.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// `[N]`, each below the size of the vocabulary.
    pub tokens: &'a [u8],
    /// `[num_sequences + 1]`, from 0 to N, not decreasing.
    pub borders: &'a [i64],
    /// Tokens that each sequence has read before these, `[num_sequences]`.
    pub starts: &'a [u64],
    /// Whether a token sees only those before it, rather than all of its sequence.
    pub causal: bool,
}

impl<'a> Reading<'a> {
    /// The tokens of each sequence, as a range among all tokens.
    pub fn sequences(&self) -> impl Iterator<Item = std::ops::Range<usize>> + Clone + 'a {
        self.borders.windows(2).map(|ends| ends[0] as usize..ends[1] as usize)
    }

    /// The position of each token in its sequence, `[N]`.
    pub fn positions(&self) -> impl Iterator<Item = u64> + Clone + 'a {
        self.sequences().zip(self.starts).flat_map(|(range, &start)| start..start + range.len() as u64)
    }
}

/// Which hidden states are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The residual stream after so many blocks; 0 is the embedding.
    After(usize),
    /// That after the last block, normalized: what predictions are computed from.
    Last,
}

/// What is wanted of a reading, and where it goes.
#[derive(Debug)]
pub enum Wanted<'a, T> {
    /// Hidden states of every token.
    Hidden {
        /// Which of them.
        layer: Layer,
        /// `[N,C]`.
        out: &'a mut [T],
    },
    /// Vectors of sequences.
    Pooled {
        /// The hidden states that they are made of.
        layer: Layer,
        /// What each of them is.
        pools: &'a [Pool],
        /// `[num_pools,C]`.
        out: &'a mut [f64],
    },
    /// Log-probabilities over the vocabulary, nats, of some tokens' predictions.
    LogProbs {
        /// Places among the N tokens; `None`: all, in their order.
        rows: Option<&'a [i64]>,
        /// The only class that is wanted of each of them, `[num_rows]`; `None`: every class.
        targets: Option<&'a [u8]>,
        /// `[num_rows, vocabulary]`, or with targets `[num_rows]`.
        out: &'a mut [T],
    },
}

impl<'a, T> Wanted<'a, T> {
    /// The layer that it is read off.
    pub fn layer(&self) -> Layer {
        match self {
            Wanted::Hidden { layer, .. } | Wanted::Pooled { layer, .. } => *layer,
            Wanted::LogProbs { .. } => Layer::Last,
        }
    }

    /// Blocks that have to be run, of `all`.
    pub fn num_blocks(&self, all: usize) -> usize {
        match self.layer() {
            Layer::After(num_blocks) => num_blocks,
            Layer::Last => all,
        }
    }

    /// The only tokens whose residual stream after the last of `all` blocks is wanted; `None`: every token's.
    pub fn last_rows(&self, all: usize) -> Option<&'a [i64]> {
        match self {
            Wanted::LogProbs { rows, .. } => *rows,
            _ if self.num_blocks(all) < all => Some(&[]),
            _ => None,
        }
    }
}

/// A device for numbers of type `T`.
pub trait Device<T: Element>: Send + Sync {
    /// A network as the device holds it.
    type Network: Send + Sync;
    /// What sequences leave for the tokens after them, one state per sequence in every layer.
    type State: Send;

    /// Takes the weights of a network over.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`]; `OutOfMemory`; `Interrupted`.
    fn prepare(&self, config: &Config, source: &dyn TensorSource<T>, run: &Execution<'_>) -> Result<Self::Network>;

    /// States of sequences of which nothing has been read.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn empty_state(&self, network: &Self::Network, num_sequences: usize) -> Result<Self::State>;

    /// Copies of the states of some sequences, in this order.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn select(&self, network: &Self::Network, state: &Self::State, indices: &[usize]) -> Result<Self::State>;

    /// Reads a batch and fills what is wanted.
    ///
    /// # Errors
    /// `OutOfMemory`; `Interrupted`.
    fn read(
        &self,
        network: &Self::Network,
        reading: &Reading<'_>,
        wanted: Wanted<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()>;

    /// Reads the next tokens of the sequences of a state, left to right, and updates it. After an error the state is of
    /// no use.
    ///
    /// # Errors
    /// As [`Device::read`].
    fn advance(
        &self,
        network: &Self::Network,
        state: &mut Self::State,
        reading: &Reading<'_>,
        wanted: Wanted<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()>;
}
