//! A GPU as a device: weights are carried to it once, activations stay there from the tokens to what is wanted of them.
//!
//! A batch is one submission and one read-back. Where it is large, or the device has no room for it, it is cut between
//! sequences; no bit of a sequence depends on what else is in the batch. One long sequence may take several submissions,
//! cut between blocks.

mod network;

use crate::config::Config;
use crate::device::{Device, Reading, Wanted};
use crate::fault::{Fault, Result};
use crate::pool::{Pool, PoolKind};
use crate::source::TensorSource;
use network::{Answer, Tokens};
pub use network::{GpuNetwork, GpuState};
use protperf_core::{Error, ErrorKind, Execution, try_reserved};
use protperf_wgpu::network::{Forward, Pooling};
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
        let mut out = Out(wanted);
        with_gpu(|gpu| {
            network.check(gpu)?;
            let is_full = |fault: &Fault| matches!(fault, Fault::Core(error) if error.kind() == ErrorKind::OutOfMemory);
            let group = |first, most| group(reading, first, most, |len| network.share_of_batch(gpu, len));
            in_groups(gpu, reading.starts.len(), is_full, group, |sequences| {
                if run.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted.into());
                }
                let tokens = Tokens::new(reading, sequences)?;
                let (answer, places) = out.asked(&tokens)?;
                let found = network.read(Forward::new(gpu), &tokens, None, &answer, run.cancel)?;
                out.store(&places, &found);
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
        let mut out = Out(wanted);
        with_gpu(|gpu| {
            network.check(gpu)?;
            let tokens = Tokens::new(reading, 0..reading.starts.len())?;
            let (answer, places) = out.asked(&tokens)?;
            let found = network.read(Forward::new(gpu), &tokens, Some(state), &answer, run.cancel)?;
            out.store(&places, &found);
            Ok(())
        })
    }
}

/// The sequences from the first on that are read together: at most a full batch, or one sequence that is more, and at most
/// so many sequences. `share` says how much of a batch a sequence of some length takes up.
fn group(reading: &Reading<'_>, first: usize, most: usize, share: impl Fn(usize) -> f64) -> Range<usize> {
    let mut taken = 0.0;
    let lengths = reading.sequences().skip(first).map(|range| range.len()).take(most);
    let fitting = lengths.take_while(|&len| {
        let is_first = taken == 0.0;
        taken += share(len);
        is_first || taken <= 1.0
    });
    first..first + fitting.count().max(1)
}

/// What is wanted of a reading, of which the device answers for some sequences at a time.
struct Out<'a>(Wanted<'a, f32>);

impl Out<'_> {
    /// What is wanted of some tokens, and the places among all answers where its rows go.
    fn asked(&self, tokens: &Tokens<'_>) -> Result<(Answer, Vec<usize>)> {
        let Tokens { range, sequences, .. } = tokens;
        let every = || collected(range.len(), range.clone());
        match &self.0 {
            Wanted::Hidden { layer, .. } => Ok((Answer::Hidden(*layer), every()?)),
            Wanted::Pooled { layer, pools, .. } => {
                let is_own = |place: &usize| sequences.contains(&pools[*place].sequence);
                let places = collected(pools.len(), (0..pools.len()).filter(is_own))?;
                let sequence = |pool: &Pool| &tokens.ranges[pool.sequence - sequences.start];
                let pooled = places.iter().map(|&place| on_device(&pools[place], sequence(&pools[place])));
                Ok((Answer::Pooled(*layer, collected(places.len(), pooled)?), places))
            }
            Wanted::LogProbs { rows, targets, .. } => {
                let own_of = |rows: &[i64]| {
                    let is_own = |place: &usize| range.contains(&(rows[*place] as usize));
                    collected(rows.len(), (0..rows.len()).filter(is_own))
                };
                let places = rows.map_or_else(every, own_of)?;
                let of_places =
                    |number: &dyn Fn(usize) -> u32| collected(places.len(), places.iter().map(|&at| number(at)));
                let rows = rows.map(|rows| of_places(&|at| (rows[at] as usize - range.start) as u32)).transpose()?;
                let targets = targets.map(|targets| of_places(&|at| targets[at].into())).transpose()?;
                Ok((Answer::LogProbs { rows, targets }, places))
            }
        }
    }

    /// Puts the rows that the device found into their places.
    fn store(&mut self, places: &[usize], found: &[f32]) {
        let width = found.len() / places.len().max(1);
        let rows = places.iter().map(|place| place * width..(place + 1) * width).zip(found.chunks_exact(width.max(1)));
        match &mut self.0 {
            Wanted::Hidden { out, .. } | Wanted::LogProbs { out, .. } => {
                rows.for_each(|(to, row)| out[to].copy_from_slice(row));
            }
            Wanted::Pooled { pools, out, .. } => {
                for ((to, row), &place) in rows.zip(places) {
                    let is_empty = pools[place].tokens.is_empty();
                    let number = |&x: &f32| if is_empty { f64::NAN } else { x.into() };
                    out[to].iter_mut().zip(row).for_each(|(to, x)| *to = number(x));
                }
            }
        }
    }
}

/// A pool among the tokens that are read, as its sequence lies there.
fn on_device(pool: &Pool, sequence: &Range<usize>) -> (Range<usize>, Pooling) {
    let first = sequence.start;
    let kind = match pool.kind {
        PoolKind::Mean => Pooling::Mean,
        PoolKind::Max => Pooling::Max,
        PoolKind::Attention { query } => Pooling::Attention { query: first + query },
    };
    (first + pool.tokens.start..first + pool.tokens.end, kind)
}

/// At most so many items, where there is memory for them.
fn collected<T>(most: usize, items: impl Iterator<Item = T>) -> Result<Vec<T>> {
    let mut all = try_reserved(most)?;
    all.extend(items);
    Ok(all)
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
                groups.push(group(&reading, next, most, |len| len as f64 / most_tokens));
                next = groups.last().unwrap().end;
            }
            groups
        };
        assert_eq!(group(&reading, 0, 9, |len| len as f64 / 100.0), 0..6);
        assert_eq!(groups(10.0, 9), [0..3, 3..5, 5..6]);
        assert_eq!(groups(10.0, 2), [0..2, 2..4, 4..6]);
        assert_eq!(groups(1.0, 9), [0..1, 1..3, 3..4, 4..6]);
    }

    #[test]
    fn rows_come_back_to_their_places_from_any_part() {
        let reading = Reading { tokens: &[0; 10], borders: &[0, 3, 10], starts: &[0; 2], causal: false };
        let (rows, targets, mut out) = ([9, 2, 0, 9], [5, 6, 7, 8], [0.0; 4]);
        let mut to = Out(Wanted::LogProbs { rows: Some(&rows), targets: Some(&targets), out: &mut out });
        for sequences in [0..1, 1..2] {
            let tokens = Tokens::new(&reading, sequences).unwrap();
            let (answer, places) = to.asked(&tokens).unwrap();
            let Answer::LogProbs { rows: Some(rows), targets: Some(targets) } = answer else { panic!() };
            let found =
                rows.iter().zip(&targets).map(|(row, target)| (row * 10 + target) as f32 + tokens.range.start as f32);
            to.store(&places, &found.collect::<Vec<_>>());
        }
        assert_eq!(out, [68.0, 26.0, 7.0, 71.0]);
    }
}
