//! The processor as a device: packed blocks, one after another over the residual stream of a whole batch.

use crate::block::{Block, LayerState, NORM_EPSILON};
use crate::buffer::Buffer;
use crate::config::Config;
use crate::device::{Device, Layer, Reading, Wanted};
use crate::fault::Result;
use crate::linear::{Groups, Panels};
use crate::pool::Pool;
use crate::products::Products;
use crate::rotary::Rotary;
use crate::source::{OwnedBlock, TensorSource};
use crate::tiles::Tiles;
use crate::weights::{Attention, BlockShape};
use protperf_core::alphabet::VOCABULARY_SIZE;
use protperf_core::{Execution, try_reserved};
use protperf_cpu::layout::PAD;
use protperf_cpu::{CpuElement, Isa, Workers};

/// Rows of a task of the head.
const TILE: usize = 256;

/// The processor's cores, with one instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuDevice {
    /// The instruction set.
    pub isa: Isa,
}

/// A network whose weights are packed for the products of an instruction set.
#[derive(Debug)]
pub struct CpuNetwork<T: CpuElement> {
    products: Products<T>,
    shape: BlockShape,
    attention: Attention,
    /// `[V,C]`.
    embedding: Vec<T>,
    /// `[2,C]`: masked, causal.
    mode: Vec<T>,
    blocks: Vec<Block<T>>,
    /// Gain of the final norm `[C]`.
    norm: Vec<T>,
    /// The embedding once more, for the logits, which are tied to it.
    logits: Panels<T>,
}

/// What every layer remembers of some sequences.
#[derive(Clone, Debug)]
pub struct CpuState<T> {
    num_sequences: usize,
    layers: Vec<LayerState<T>>,
}

impl<T: CpuElement> Device<T> for CpuDevice {
    type Network = CpuNetwork<T>;
    type State = CpuState<T>;

    fn prepare(&self, config: &Config, source: &dyn TensorSource<T>, run: &Execution<'_>) -> Result<CpuNetwork<T>> {
        let (products, shape, attention) = (Products::new(self.isa.into())?, config.shape, config.attention);
        let embedding = source.tensor("embedding.weight")?;
        let logits = Panels::of_columns(&products, &embedding, shape.model_dim, Groups::one(VOCABULARY_SIZE))?;
        let mut blocks = try_reserved(config.num_layers)?;
        for layer in 0..config.num_layers {
            // Read and packed one by one, so that no more than one block is held twice.
            let tensors = OwnedBlock::read(source, config, layer)?;
            blocks.push(Block::pack(self.isa, shape, attention, &tensors.weights(), run)?);
        }
        let (mode, norm) = (source.tensor("mode.weight")?, source.tensor("norm.weight")?);
        Ok(CpuNetwork { products, shape, attention, embedding, mode, blocks, norm, logits })
    }

    fn empty_state(&self, network: &CpuNetwork<T>, num_sequences: usize) -> Result<CpuState<T>> {
        let mut layers = try_reserved(network.blocks.len())?;
        for _ in &network.blocks {
            layers.push(LayerState::empty(network.attention, num_sequences)?);
        }
        Ok(CpuState { num_sequences, layers })
    }

    fn select(&self, _: &CpuNetwork<T>, state: &CpuState<T>, indices: &[usize]) -> Result<CpuState<T>> {
        let mut layers = try_reserved(state.layers.len())?;
        for layer in &state.layers {
            layers.push(layer.select(state.num_sequences, indices)?);
        }
        Ok(CpuState { num_sequences: indices.len(), layers })
    }

    fn read(
        &self,
        network: &CpuNetwork<T>,
        reading: &Reading<'_>,
        wanted: Wanted<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        network.read(reading, None, wanted, run)
    }

    fn advance(
        &self,
        network: &CpuNetwork<T>,
        state: &mut CpuState<T>,
        reading: &Reading<'_>,
        wanted: Wanted<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        network.read(reading, Some(&mut state.layers), wanted, run)
    }
}

impl<T: CpuElement> CpuNetwork<T> {
    fn read(
        &self,
        reading: &Reading<'_>,
        mut layers: Option<&mut [LayerState<T>]>,
        wanted: Wanted<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let mut wanted = wanted;
        let mut hidden = Buffer::new(reading.tokens.len() * self.shape.model_dim)?;
        self.embed(reading, &mut hidden);
        self.keep(0, &hidden, reading, &mut wanted, run)?;
        let rotary = Rotary::new(reading.positions(), self.shape.head_dim)?;
        // A state is one of all layers, whichever of them is wanted.
        let last = if layers.is_some() { self.blocks.len() } else { wanted.num_blocks(self.blocks.len()) };
        let last_rows = wanted.last_rows(self.blocks.len());
        for (layer, block) in self.blocks[..last].iter().enumerate() {
            let state = layers.as_deref_mut().map(|layers| &mut layers[layer]);
            let order = (reading.borders, reading.causal);
            match last_rows {
                Some(rows) if layer + 1 == self.blocks.len() => {
                    hidden = block.forward_rows(&hidden, &rotary, order, state, rows, run)?;
                }
                _ => block.forward(&mut hidden, &rotary, order, state, run)?,
            }
            self.keep(layer + 1, &hidden, reading, &mut wanted, run)?;
        }
        match wanted {
            Wanted::Hidden { layer: Layer::Last, out } => self.normalize(&hidden, out, run),
            Wanted::Pooled { layer: Layer::Last, pools, out } => {
                let mut normed = Buffer::new(hidden.len())?;
                self.normalize(&hidden, &mut normed, run)?;
                self.pool(&normed, reading, pools, out, run)
            }
            Wanted::LogProbs { targets, out, .. } => self.log_probs(&hidden, targets, out, run),
            _ => Ok(()),
        }
    }

    /// Takes what is wanted of the residual stream after so many blocks.
    fn keep(
        &self,
        after: usize,
        hidden: &[T],
        reading: &Reading<'_>,
        wanted: &mut Wanted<'_, T>,
        run: &Execution<'_>,
    ) -> Result<()> {
        match wanted {
            Wanted::Hidden { layer: Layer::After(blocks), out } if *blocks == after => out.copy_from_slice(hidden),
            Wanted::Pooled { layer: Layer::After(blocks), pools, out } if *blocks == after => {
                self.pool(hidden, reading, pools, out, run)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn pool(
        &self,
        hidden: &[T],
        reading: &Reading<'_>,
        pools: &[Pool],
        out: &mut [f64],
        run: &Execution<'_>,
    ) -> Result<()> {
        let tiles = Tiles::new(out, self.shape.model_dim, 1)?;
        Workers::new(run).run(pools.len(), |at| pools[at].fill(hidden, reading.borders, &mut tiles.take(at)))?;
        Ok(())
    }

    fn embed(&self, reading: &Reading<'_>, hidden: &mut [T]) {
        let c = self.shape.model_dim;
        let mode = &self.mode[usize::from(reading.causal) * c..][..c];
        for (&token, row) in reading.tokens.iter().zip(hidden.chunks_exact_mut(c)) {
            row.copy_from_slice(&self.embedding[usize::from(token) * c..][..c]);
            self.products.ops.add(mode, row);
        }
    }

    fn normalize(&self, hidden: &[T], out: &mut [T], run: &Execution<'_>) -> Result<()> {
        let c = self.shape.model_dim;
        let tiles = Tiles::new(out, c, TILE)?;
        Workers::new(run).run(hidden.len().div_ceil(c * TILE), |tile| {
            let (mut out, rows) = (tiles.take(tile), hidden[tile * TILE * c..].chunks_exact(c));
            for (row, out) in rows.zip(out.chunks_exact_mut(c)) {
                self.products.ops.rms_norm(row, &self.norm, T::from_f64(NORM_EPSILON), out);
            }
            Ok(())
        })?;
        Ok(())
    }

    fn log_probs(&self, hidden: &[T], targets: Option<&[u8]>, out: &mut [T], run: &Execution<'_>) -> Result<()> {
        let (c, width) = (self.shape.model_dim, self.logits.cols());
        let normed_row = c.next_multiple_of(PAD);
        let classes = if targets.is_some() { 1 } else { VOCABULARY_SIZE };
        let tiles = Tiles::new(out, classes, TILE)?;
        Workers::new(run).run(hidden.len().div_ceil(c * TILE), |tile| {
            let mut out = tiles.take(tile);
            let rows = out.len() / classes;
            let (mut normed, mut logits) = (Buffer::new(rows * normed_row)?, Buffer::new(rows * width)?);
            for (row, normed) in hidden[tile * TILE * c..].chunks_exact(c).zip(normed.chunks_exact_mut(normed_row)) {
                self.products.ops.rms_norm(row, &self.norm, T::from_f64(NORM_EPSILON), normed);
            }
            self.logits.multiply(&self.products, (&normed, normed_row), rows, (&mut logits, width))?;
            let mut scratch = Buffer::new(width)?;
            let rows = logits.chunks_exact_mut(width).zip(out.chunks_exact_mut(classes));
            for (row, (logits, out)) in (tile * TILE..).zip(rows) {
                self.products.ops.log_softmax(logits, VOCABULARY_SIZE, &mut scratch);
                let first = targets.map_or(0, |targets| usize::from(targets[row]));
                out.copy_from_slice(&logits[first..first + classes]);
            }
            Ok(())
        })?;
        Ok(())
    }
}
