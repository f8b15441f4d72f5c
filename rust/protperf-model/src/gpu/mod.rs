//! A GPU as a device: weights are carried to it once, activations stay there from the tokens to what is wanted of them.
//!
//! A batch is one submission per block and one read-back. Where it is large, or the device has no room for it, it is cut
//! between sequences; no bit of a sequence depends on what else is in the batch.

mod network;

use crate::config::Config;
use crate::device::{Device, Reading, Wanted};
use crate::fault::{Fault, Result};
use crate::source::TensorSource;
use network::{Answer, Layer, Tokens};
pub use network::{GpuNetwork, GpuState};
use protperf_core::alphabet::VOCABULARY_SIZE;
use protperf_core::{Error, ErrorKind, Execution, try_reserved};
use protperf_wgpu::network::Forward;
use protperf_wgpu::{in_groups, with_gpu};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// The GPU that `PROTPERF_GPU` chooses; opened at the first call.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuDevice;

impl Device<f32> for GpuDevice {
    type Network = GpuNetwork;
    type State = GpuState;

    fn prepare(&self, config: &Config, source: &dyn TensorSource<f32>, run: &Execution<'_>) -> Result<GpuNetwork> {
        with_gpu(|gpu| GpuNetwork::prepare(gpu, config, source, run))
    }

    fn empty_state(&self, network: &GpuNetwork, num_sequences: usize) -> Result<GpuState> {
        Ok(network.empty_state(num_sequences)?)
    }

    fn select(&self, network: &GpuNetwork, state: &GpuState, indices: &[usize]) -> Result<GpuState> {
        with_gpu(|gpu| {
            network.check(gpu)?;
            Ok(network.select(Forward::new(gpu), state, indices)?)
        })
    }

    fn read(
        &self,
        network: &GpuNetwork,
        reading: &Reading<'_>,
        wanted: Wanted<'_, f32>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let mut out = Out::new(wanted, network.config.num_layers, network.config.shape.model_dim);
        with_gpu(|gpu| {
            network.check(gpu)?;
            let at_once = network.tokens_at_once(gpu);
            let is_full = |fault: &Fault| matches!(fault, Fault::Core(error) if error.kind() == ErrorKind::OutOfMemory);
            let group = |first, most| group(reading, first, at_once, most);
            in_groups(gpu, reading.starts.len(), is_full, group, |sequences| {
                if run.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted.into());
                }
                let tokens = Tokens::new(reading, sequences)?;
                let answer = out.asked(&tokens.range)?;
                let found = network.read(Forward::new(gpu), &tokens, None, &answer, run.cancel)?;
                out.store(&tokens.range, &found);
                Ok(())
            })
        })
    }

    fn advance(
        &self,
        network: &GpuNetwork,
        state: &mut GpuState,
        reading: &Reading<'_>,
        wanted: Wanted<'_, f32>,
        run: &Execution<'_>,
    ) -> Result<()> {
        let mut out = Out::new(wanted, network.config.num_layers, network.config.shape.model_dim);
        with_gpu(|gpu| {
            network.check(gpu)?;
            let tokens = Tokens::new(reading, 0..reading.starts.len())?;
            let answer = out.asked(&tokens.range)?;
            let found = network.read(Forward::new(gpu), &tokens, Some(state), &answer, run.cancel)?;
            out.store(&tokens.range, &found);
            Ok(())
        })
    }
}

/// The sequences from the first on that are read together: at most so many tokens, or one sequence that is longer, and
/// at most so many sequences.
fn group(reading: &Reading<'_>, first: usize, most_tokens: usize, most: usize) -> Range<usize> {
    let mut tokens = 0;
    let lengths = reading.sequences().skip(first).map(|range| range.len()).take(most);
    let fitting = lengths.take_while(|&len| {
        let is_first = tokens == 0;
        tokens += len;
        is_first || tokens <= most_tokens
    });
    first..first + fitting.count().max(1)
}

/// What is wanted of a reading, and which of its tokens it is wanted of.
struct Out<'a> {
    layer: Layer,
    /// Places among all tokens; `None`: all.
    rows: Option<&'a [i64]>,
    width: usize,
    out: &'a mut [f32],
}

impl<'a> Out<'a> {
    fn new(wanted: Wanted<'a, f32>, num_layers: usize, model_dim: usize) -> Self {
        match wanted {
            Wanted::Hidden { num_blocks, out } => {
                debug_assert!(num_blocks <= num_layers);
                Out { layer: Layer::After(num_blocks), rows: None, width: model_dim, out }
            }
            Wanted::Normalized { out } => Out { layer: Layer::Normalized, rows: None, width: model_dim, out },
            Wanted::LogProbs { rows, out } => Out { layer: Layer::LogProbs, rows, width: VOCABULARY_SIZE, out },
        }
    }

    /// What is wanted of some tokens.
    fn asked(&self, range: &Range<usize>) -> Result<Answer> {
        let Some(rows) = self.rows else { return Ok(Answer { layer: self.layer, rows: None }) };
        let mut own = try_reserved(rows.len())?;
        own.extend(within(rows, range).map(|(_, row)| (row - range.start) as u32));
        Ok(Answer { layer: self.layer, rows: Some(own) })
    }

    fn store(&mut self, range: &Range<usize>, found: &[f32]) {
        let width = self.width;
        match self.rows {
            None => self.out[range.start * width..range.end * width].copy_from_slice(found),
            Some(rows) => {
                for ((at, _), row) in within(rows, range).zip(found.chunks_exact(width)) {
                    self.out[at * width..][..width].copy_from_slice(row);
                }
            }
        }
    }
}

/// Those of some rows that lie in a range, each with its place among all.
fn within<'a>(rows: &'a [i64], range: &'a Range<usize>) -> impl Iterator<Item = (usize, usize)> + 'a {
    rows.iter().map(|&row| row as usize).enumerate().filter(|(_, row)| range.contains(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_between_sequences_where_it_is_large() {
        let borders = [0, 3, 3, 10, 12, 12, 40];
        let reading = Reading { tokens: &[0; 40], borders: &borders, starts: &[0; 6], causal: false };
        let groups = |most_tokens, most| {
            let (mut groups, mut next) = (Vec::new(), 0);
            while next < 6 {
                groups.push(group(&reading, next, most_tokens, most));
                next = groups.last().unwrap().end;
            }
            groups
        };
        assert_eq!(group(&reading, 0, 100, 9), 0..6);
        assert_eq!(groups(10, 9), [0..3, 3..5, 5..6]);
        assert_eq!(groups(10, 2), [0..2, 2..4, 4..6]);
        assert_eq!(groups(1, 9), [0..1, 1..3, 3..4, 4..6]);
    }

    #[test]
    fn rows_come_back_to_their_places_from_any_part() {
        let mut out = vec![0.0; 4 * VOCABULARY_SIZE];
        let rows = [9, 2, 0, 9];
        let mut to = Out::new(Wanted::LogProbs { rows: Some(&rows), out: &mut out }, 1, 8);
        for range in [0..3, 3..10] {
            let own = to.asked(&range).unwrap().rows.unwrap();
            let found: Vec<f32> =
                own.iter().flat_map(|&row| vec![row as f32 + range.start as f32; VOCABULARY_SIZE]).collect();
            to.store(&range, &found);
        }
        let first: Vec<f32> = out.chunks(VOCABULARY_SIZE).map(|row| row[0]).collect();
        assert_eq!(first, [9.0, 2.0, 0.0, 9.0]);
    }
}
