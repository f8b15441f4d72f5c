//! Where the tensors of a network come from, and those of one block as they come from there.

use crate::config::{Config, block_tensor};
use crate::fault::Result;
use crate::tensor_file::TensorFile;
use crate::weights::{Attention, BlockWeights};
use protperf_core::Element;

/// Where the tensors of a network come from, by the names of a network file.
pub trait TensorSource<T> {
    /// The numbers of a tensor, row by row.
    ///
    /// # Errors
    /// As [`crate::tensor_file::TensorFile::numbers`].
    fn tensor(&self, name: &str) -> Result<Vec<T>>;
}

impl<T: Element> TensorSource<T> for TensorFile {
    fn tensor(&self, name: &str) -> Result<Vec<T>> {
        self.numbers(name)
    }
}

/// The tensors of one block, read from where they come from.
#[derive(Clone, Debug)]
pub struct OwnedBlock<T> {
    attention_norm: Vec<T>,
    qkv: Vec<T>,
    log_temperature: Vec<T>,
    omega: Option<Vec<T>>,
    out: Vec<T>,
    ffn_norm: Vec<T>,
    gate_up: Vec<T>,
    down: Vec<T>,
}

impl<T> OwnedBlock<T> {
    /// Reads the tensors of a layer.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`].
    pub fn read(source: &dyn TensorSource<T>, config: &Config, layer: usize) -> Result<Self> {
        let tensor = |name| source.tensor(&block_tensor(layer, name));
        Ok(OwnedBlock {
            attention_norm: tensor("attention_norm.weight")?,
            qkv: tensor("attention.qkv.weight")?,
            log_temperature: tensor("attention.log_temperature")?,
            omega: match config.attention {
                Attention::Favor { .. } => Some(tensor("attention.omega")?),
                Attention::Exact => None,
            },
            out: tensor("attention.out.weight")?,
            ffn_norm: tensor("ffn_norm.weight")?,
            gate_up: tensor("gate_up.weight")?,
            down: tensor("down.weight")?,
        })
    }

    /// The tensors, borrowed.
    pub fn weights(&self) -> BlockWeights<'_, T> {
        BlockWeights {
            attention_norm: &self.attention_norm,
            qkv: &self.qkv,
            log_temperature: &self.log_temperature,
            omega: self.omega.as_deref(),
            out: &self.out,
            ffn_norm: &self.ffn_norm,
            gate_up: &self.gate_up,
            down: &self.down,
        }
    }
}
