//! The backward pass: queries read the states of keys once more, and keys the states of queries with their cotangents.
//! `docs/algorithm.md`, section 7.
//!
//! Features, scores and states are computed again; a group of lines is one submission, as in the forward pass.

use crate::context::{Gpu, with_gpu};
use crate::cotangents::Cotangents;
use crate::forward::groups;
use crate::lines::{Call, Lines, narrowed, power_of_two};
use crate::map_gradient::{MapSums, SideGradients};
use crate::maps::Side;
use crate::recorder::Recorder;
use crate::stages::{Reader, Stages};
use crate::upload::{Uploaded, pass_of, sets_of};
use protperf_core::backend::{Gradients, Saved};
use protperf_core::state::KV_STATE;
use protperf_core::{Element, Error, Execution, FavorArgs, Result, Stored, try_filled};
use std::sync::atomic::{AtomicBool, Ordering};

/// Gradients of [`crate::forward::run`].
///
/// # Errors
/// As [`protperf_core::Backend::backward`]; [`Error::Device`].
pub fn run<T: Stored>(
    args: &FavorArgs<'_, T>,
    saved: &Saved<'_, T>,
    mut gradients: Gradients<'_, T>,
    run: &Execution<'_>,
) -> Result<()> {
    let state_in = saved.state_in.map(narrowed).transpose()?;
    let call = Call::new(args, state_in.as_deref())?;
    let mut sums = Sums {
        dk: try_filled(gradients.dk.len(), 0.0)?,
        dv: try_filled(gradients.dv.len(), 0.0)?,
        map: gradients.map.is_some().then(|| MapSums::new(&call)).transpose()?,
    };
    with_gpu(|gpu| {
        groups(gpu, &call, |range| {
            if run.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let lines = call.lines(range)?;
            let cotangents = Cotangents::new(&call, &lines, saved)?;
            let found = stage(gpu, (&call, &lines, &cotangents), sums.map.is_some(), run.cancel)?;
            let part = Part { call: &call, lines: &lines, cotangents: &cotangents, found };
            part.store_queries(gradients.dq);
            part.add_keys(&mut sums);
            part.store_states(&mut gradients);
            Ok(())
        })
    })?;
    store(&sums.dk, gradients.dk);
    store(&sums.dv, gradients.dv);
    match (sums.map, gradients.map) {
        (Some(map), Some(to)) => map.write(&call, to),
        _ => Ok(()),
    }
}

/// Gradients that several lines share.
struct Sums {
    dk: Vec<f64>,
    dv: Vec<f64>,
    map: Option<MapSums>,
}

/// What the device computed for a group of lines.
struct Found {
    /// `[lines,L,D]`.
    dq: Vec<f32>,
    /// `[lines,S,D]`.
    dk: Vec<f32>,
    /// `[lines,S,E+1]`, the first column that of the ones.
    dv: Vec<f32>,
    /// The states of everything that read the first ones, `[lines,segments,F,2+E]`.
    readers: Vec<f32>,
    /// Of h of the keys, `[lines,S]`.
    norms: Vec<f32>,
    /// Of the parameters of queries and of keys.
    parameters: [Vec<f32>; 2],
}

fn stage<T: Stored>(
    gpu: &Gpu,
    (call, lines, cotangents): (&Call<'_, T>, &Lines, &Cotangents),
    wants_map: bool,
    cancel: &AtomicBool,
) -> Result<Found> {
    let mut recorder = Recorder::new(gpu);
    let [queries, keys] = [
        Uploaded::new(&mut recorder, call, lines, Side::Queries)?,
        Uploaded::new(&mut recorder, call, lines, Side::Keys)?,
    ];
    let (queries, keys) = (queries.rows(), keys.rows());
    let values = recorder.upload("values", &lines.values)?;
    let arriving = recorder.upload("gradients", &cotangents.rows)?;
    let first = recorder.upload("first states", &lines.first_states)?;
    let last = recorder.upload("gradients of states", &cotangents.final_states)?;
    let shifts = recorder.upload("shifts", &cotangents.shifts)?;
    let key_shifts = recorder.upload("shifts", &lines.key_shifts)?;
    let sets = sets_of(&mut recorder, call, lines.range.clone())?;
    let mut stages = Stages::new(&mut recorder, &pass_of(call), lines.range.len(), &sets)?;
    let of_queries = stages.project(&queries, Some(&shifts))?;
    let of_keys = stages.project(&keys, Some(&key_shifts))?;
    let key_states = stages.states(&keys, &of_keys, &values, Some(&first), false)?;
    let query_states = stages.states(&queries, &of_queries, &arriving, Some(&last), true)?;
    let scores = stages.scores(&queries, &of_queries, &of_keys)?;
    let dscores = stages.score_gradient(&queries, &arriving, &values)?;
    let of_query = Reader { rows: &queries, features: &of_queries, states: &key_states };
    let dqueries = stages.feature_gradient(of_query, &arriving, &of_keys, &dscores)?;
    let of_key = Reader { rows: &keys, features: &of_keys, states: &query_states };
    let dkeys = stages.feature_gradient(of_key, &values, &of_queries, &dscores)?;
    let [dv, _] = stages.read(of_key, &scores, &arriving)?;
    let [dq, dqueries, _] = stages.pull_back(&queries, &of_queries, &dqueries)?;
    let [dk, dkeys, norms] = stages.pull_back(&keys, &of_keys, &dkeys)?;
    let of_map = match wants_map {
        true => Some([stages.parameter_gradient(&queries, &dqueries)?, stages.parameter_gradient(&keys, &dkeys)?]),
        false => None,
    };
    let mut wanted = vec![&dq, &dk, &dv, &query_states.last, &norms];
    wanted.extend(of_map.iter().flatten());
    let mut read = recorder.read_back(&wanted, cancel)?.into_iter();
    let mut next = || read.next().unwrap_or_default();
    Ok(Found { dq: next(), dk: next(), dv: next(), readers: next(), norms: next(), parameters: [next(), next()] })
}

/// A group of lines with everything that is known of it.
struct Part<'a, T> {
    call: &'a Call<'a, T>,
    lines: &'a Lines,
    cotangents: &'a Cotangents,
    found: Found,
}

impl<T: Stored> Part<'_, T> {
    /// What gradients of a line are multiplied with: those that reach values, and all others.
    fn factors(&self, at: usize) -> [f64; 2] {
        let of_values = power_of_two(self.cotangents.powers[at]);
        [of_values, of_values * power_of_two(self.lines.value_powers[at])]
    }

    fn store_queries(&self, dq: &mut [T]) {
        let size = self.call.shape.q_len * self.call.shape.head_dim;
        let width = self.call.shape.head_dim;
        for at in 0..self.lines.range.len() {
            let [_, by] = self.factors(at);
            let to = &mut dq[(self.lines.range.start + at) * size..][..size];
            for (row, to) in to.chunks_exact_mut(width).enumerate() {
                let from = &self.found.dq[at * size + row * width..][..width];
                let is_bad = self.cotangents.bad_rows[at * self.call.shape.q_len + row];
                let by = if is_bad { f64::NAN } else { by };
                to.iter_mut().zip(from).for_each(|(to, &x)| *to = T::round(T::Compute::from_f64(f64::from(x) * by)));
            }
        }
    }

    fn add_keys(&self, sums: &mut Sums) {
        let (call, found) = (self.call, &self.found);
        let (len, d, e, width) = (call.shape.kv_len, call.shape.head_dim, call.shape.value_dim, call.width());
        for (at, line) in self.lines.range.clone().enumerate() {
            let [of_values, by] = self.factors(at);
            let first = call.key_line(line) * len;
            for key in 0..len {
                let (from, to) = (at * len + key, first + key);
                let dk = sums.dk[to * d..][..d].iter_mut().zip(&found.dk[from * d..]);
                dk.for_each(|(to, &x)| *to += f64::from(x) * by);
                let dv = sums.dv[to * e..][..e].iter_mut().zip(&found.dv[from * width + 1..]);
                dv.for_each(|(to, &x)| *to += f64::from(x) * of_values);
            }
            if let Some(map) = &mut sums.map {
                for (side, parameters) in [Side::Queries, Side::Keys].into_iter().zip(&found.parameters) {
                    map.add(call, self.lines, at, &SideGradients { side, parameters, norms: &found.norms }, by);
                }
            }
            self.spoil_keys(sums, at);
        }
    }

    /// Makes NaN of the gradients of the keys that a bad row saw, and of the parameters of its head.
    fn spoil_keys(&self, sums: &mut Sums, at: usize) {
        let (call, line) = (self.call, self.lines.range.start + at);
        let (len, d, e) = (call.shape.kv_len, call.shape.head_dim, call.shape.value_dim);
        for segment in 0..call.segments[0].len() {
            let (rows, keys) = (call.segments[0][segment].clone(), call.segments[1][segment].clone());
            let last_bad = rows.clone().rev().find(|row| self.cotangents.bad_rows[at * call.shape.q_len + row]);
            let is_state_bad = self.cotangents.bad_states[at * call.segments[0].len() + segment];
            let end = match last_bad {
                _ if is_state_bad => keys.end,
                Some(row) if call.args.causal => row + 1,
                Some(_) => keys.end,
                None => keys.start,
            };
            for key in (keys.start..end).filter(|&key| !call.is_padding(line, key)) {
                let to = call.key_line(line) * len + key;
                sums.dk[to * d..][..d].fill(f64::NAN);
                sums.dv[to * e..][..e].fill(f64::NAN);
            }
            if let Some(map) = sums.map.as_mut().filter(|_| self.cotangents.is_any_bad(call, at, segment)) {
                map.spoil(call, line);
            }
        }
    }

    fn store_states(&self, gradients: &mut Gradients<'_, T>) {
        let Some(all) = &mut gradients.state_in else { return };
        let (call, row) = (self.call, KV_STATE + self.call.shape.value_dim);
        let (size, num_segments) = (call.shape.feature_dim * row, call.segments[0].len());
        for (at, line) in self.lines.range.clone().enumerate() {
            let [of_values, of_ones] = self.factors(at);
            for segment in 0..num_segments {
                let own = (at * num_segments + segment) * size..(at * num_segments + segment + 1) * size;
                let first = self.lines.first_states[own.clone()].chunks_exact(row);
                let readers = self.found.readers[own].chunks_exact(row);
                let is_bad = self.cotangents.is_any_bad(call, at, segment);
                let to = all[call.state_range(line, segment)].chunks_exact_mut(row);
                for ((to, first), readers) in to.zip(first).zip(readers) {
                    let references = [f64::from(first[0]), f64::from(readers[0])];
                    let is_untouched = references.iter().all(|&n| n < -1e30);
                    let power = if is_untouched { 0.0 } else { references[0] + references[1] };
                    let by = if is_bad { f64::NAN } else { f64::exp2_int(power) };
                    to[0] = T::Compute::default();
                    to[1] = T::Compute::from_f64(f64::from(readers[1]) * by * of_ones);
                    let values = to[KV_STATE..].iter_mut().zip(&readers[KV_STATE..]);
                    values.for_each(|(to, &x)| *to = T::Compute::from_f64(f64::from(x) * by * of_values));
                }
            }
        }
    }
}

fn store<T: Stored>(from: &[f64], to: &mut [T]) {
    to.iter_mut().zip(from).for_each(|(to, &x)| *to = T::round(T::Compute::from_f64(x)));
}
