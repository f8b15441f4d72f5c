//! A trained network: arguments are checked here, once, and a device computes.

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::device::{Device, Layer, Reading, Wanted};
use crate::fault::Result;
use crate::pool::Pool;
use crate::source::TensorSource;
use protperf_core::alphabet::VOCABULARY_SIZE;
use protperf_core::{Element, Error, Execution, check_len, try_filled, try_reserved};
use std::path::Path;
use std::sync::Arc;

/// The order in which a batch is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every token sees all others of its sequence.
    Masked,
    /// Every token sees those before it.
    Causal,
}

/// A network on a device. Clones share its weights.
pub struct Network<T: Element, D: Device<T>> {
    inner: Arc<Inner<T, D>>,
}

impl<T: Element, D: Device<T>> Clone for Network<T, D> {
    fn clone(&self) -> Self {
        Network { inner: self.inner.clone() }
    }
}

struct Inner<T: Element, D: Device<T>> {
    config: Config,
    device: D,
    weights: D::Network,
}

/// What left-to-right reading carries on: one state per sequence.
pub struct State<T: Element, D: Device<T>> {
    network: Network<T, D>,
    /// Tokens read of each sequence.
    positions: Vec<u64>,
    /// `None` while a call changes it, and after one that failed.
    layers: Option<D::State>,
}

impl<T: Element, D: Device<T>> Network<T, D> {
    /// Loads a verified step of a run.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Device::prepare`].
    pub fn load(step: &Path, device: D, run: &Execution<'_>) -> Result<Self> {
        let Checkpoint { config, tensors } = Checkpoint::open(step, run.cancel)?;
        Self::new(config, &tensors, device, run)
    }

    /// A network of given tensors, whose sizes are those that the configuration implies.
    ///
    /// # Errors
    /// As [`Device::prepare`].
    pub fn new(config: Config, source: &dyn TensorSource<T>, device: D, run: &Execution<'_>) -> Result<Self> {
        let weights = device.prepare(&config, source, run)?;
        Ok(Network { inner: Arc::new(Inner { config, device, weights }) })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Reads several sequences and fills what is wanted of them. A row of [`Mode::Causal`] is the prediction of the token
    /// after it.
    ///
    /// # Shapes
    /// tokens `[N]`, borders `[num_sequences + 1]`.
    ///
    /// # Errors
    /// A token, border, row, target, layer or pool out of range; a buffer of another length; `OutOfMemory`;
    /// `Interrupted`.
    pub fn read(
        &self,
        tokens: &[u8],
        borders: &[i64],
        mode: Mode,
        wanted: Wanted<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        check_tokens(tokens, borders)?;
        check_wanted(self.config(), tokens, borders, &wanted)?;
        let starts = try_filled(borders.len() - 1, 0)?;
        let reading = Reading { tokens, borders, starts: &starts, causal: mode == Mode::Causal };
        let Inner { device, weights, .. } = &*self.inner;
        device.read(weights, &reading, wanted, run)
    }

    /// States of sequences of which nothing has been read.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn empty_state(&self, num_sequences: usize) -> Result<State<T, D>> {
        let Inner { device, weights, .. } = &*self.inner;
        let layers = Some(device.empty_state(weights, num_sequences)?);
        Ok(State { network: self.clone(), positions: try_filled(num_sequences, 0)?, layers })
    }
}

impl<T: Element, D: Device<T>> State<T, D> {
    /// The network that it is a state of.
    pub fn network(&self) -> &Network<T, D> {
        &self.network
    }

    /// Tokens that each sequence has read.
    pub fn positions(&self) -> &[u64] {
        &self.positions
    }

    /// Copies of the states of some sequences, in this order; an index may come more than once.
    ///
    /// # Errors
    /// An index out of range; `OutOfMemory`; the state is of no use after a call that failed.
    pub fn select(&self, indices: &[i64]) -> Result<Self> {
        let Inner { device, weights, .. } = &*self.network.inner;
        let layers = self.layers.as_ref().ok_or_else(of_no_use)?;
        let (mut places, mut positions) = (try_reserved(indices.len())?, try_reserved(indices.len())?);
        for &index in indices {
            let Some(place) = usize::try_from(index).ok().filter(|&place| place < self.positions.len()) else {
                let detail = format!("hold {index}; the state is of {} sequences", self.positions.len());
                return Err(Error::InvalidOption { argument: "indices", detail }.into());
            };
            places.push(place);
            positions.push(self.positions[place]);
        }
        let layers = Some(device.select(weights, layers, &places)?);
        Ok(State { network: self.network.clone(), positions, layers })
    }

    /// Reads the next tokens of each sequence, which may be none, and fills what is wanted, as [`Network::read`] does;
    /// rows and pools are among the new tokens. After an error other than of an argument the state is of no use.
    ///
    /// # Errors
    /// As [`Network::read`]; borders for another number of sequences.
    pub fn advance(
        &mut self,
        tokens: &[u8],
        borders: &[i64],
        wanted: Wanted<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        check_tokens(tokens, borders)?;
        check_wanted(self.network.config(), tokens, borders, &wanted)?;
        if borders.len() - 1 != self.positions.len() {
            let detail = format!("are of {} sequences, the state of {}", borders.len() - 1, self.positions.len());
            return Err(Error::ShapeMismatch { argument: "borders", detail }.into());
        }
        // Taken, so that a call that fails or panics in the middle leaves no half of a state behind.
        let mut layers = self.layers.take().ok_or_else(of_no_use)?;
        let Inner { device, weights, .. } = &*self.network.inner;
        let reading = Reading { tokens, borders, starts: &self.positions, causal: true };
        device.advance(weights, &mut layers, &reading, wanted, run)?;
        self.layers = Some(layers);
        for (position, ends) in self.positions.iter_mut().zip(borders.windows(2)) {
            *position += ends[1].abs_diff(ends[0]);
        }
        Ok(())
    }
}

fn of_no_use() -> Error {
    let detail = "was left in the middle by a call that failed; start again from an empty one".into();
    Error::InvalidOption { argument: "state", detail }
}

fn check_tokens(tokens: &[u8], borders: &[i64]) -> Result<(), Error> {
    let of_borders = |detail: String| Err(Error::ShapeMismatch { argument: "borders", detail });
    if let Some(place) = tokens.iter().position(|&token| usize::from(token) >= VOCABULARY_SIZE) {
        let detail = format!("hold {} at place {place}; ids end at {}", tokens[place], VOCABULARY_SIZE - 1);
        return Err(Error::InvalidOption { argument: "tokens", detail });
    }
    if borders.first() != Some(&0) || borders.last().copied() != i64::try_from(tokens.len()).ok() {
        return of_borders(format!("must run from 0 to {}, the number of tokens", tokens.len()));
    }
    match borders.windows(2).position(|ends| ends[0] > ends[1]) {
        Some(place) => of_borders(format!("decrease after place {place}")),
        None => Ok(()),
    }
}

fn check_wanted<T>(config: &Config, tokens: &[u8], borders: &[i64], wanted: &Wanted<'_, T>) -> Result<(), Error> {
    if let Layer::After(layer) = wanted.layer()
        && layer > config.num_layers
    {
        let detail = format!("is {layer}; it must be from -1 to {}", config.num_layers);
        return Err(Error::InvalidOption { argument: "layer", detail });
    }
    match wanted {
        Wanted::Hidden { out, .. } => check_len("out", out.len(), tokens.len() * config.shape.model_dim),
        Wanted::Pooled { pools, out, .. } => Pool::check(pools, borders, config.shape.model_dim, out.len()),
        Wanted::LogProbs { rows, targets, out } => check_rows(tokens, *rows, *targets, out.len()),
    }
}

fn check_rows(tokens: &[u8], rows: Option<&[i64]>, targets: Option<&[u8]>, out: usize) -> Result<(), Error> {
    let is_row = |&row: &i64| usize::try_from(row).is_ok_and(|row| row < tokens.len());
    if let Some(row) = rows.and_then(|rows| rows.iter().find(|row| !is_row(row))) {
        let detail = format!("hold {row}; there are {} tokens", tokens.len());
        return Err(Error::InvalidOption { argument: "rows", detail });
    }
    let num_rows = rows.map_or(tokens.len(), <[i64]>::len);
    let Some(targets) = targets else { return check_len("out", out, num_rows * VOCABULARY_SIZE) };
    if let Some(target) = targets.iter().find(|&&target| usize::from(target) >= VOCABULARY_SIZE) {
        let detail = format!("hold {target}; ids end at {}", VOCABULARY_SIZE - 1);
        return Err(Error::InvalidOption { argument: "targets", detail });
    }
    check_len("targets", targets.len(), num_rows)?;
    check_len("out", out, num_rows)
}
