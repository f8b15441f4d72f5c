//! The backward pass: queries read the states of keys once more, and keys the states of queries with their cotangents.
//! `docs/algorithm.md`, section 7.
//!
//! Features, scores and states are computed again; a group of batch heads is one submission, as in the forward pass.
//! BH: batch entries times heads, those of one group.

use crate::batch_heads::{BatchHeads, Call, Powers, narrowed, power_of_two};
use crate::context::{Gpu, with_gpu};
use crate::cotangents::Cotangents;
use crate::forward::groups;
use crate::map_gradient::{MapSums, SideGradients};
use crate::recorder::Recorder;
use crate::stages::{Reader, Stages, Values};
use crate::upload::{Uploaded, pass_of, sets_of};
use protperf_core::backend::{Gradients, Saved};
use protperf_core::state::KV_STATE;
use protperf_core::{Element, Error, Execution, FavorArgs, Result, Side, Stored, try_filled};
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
            let mut batch_heads = call.batch_heads(range)?;
            let powers = batch_heads.powers(&call)?;
            let cotangents = Cotangents::new(&call, &batch_heads, &powers, saved)?;
            let powers = seen_alone(&call, &mut batch_heads, &cotangents, powers);
            let factors = Factors::new(&call, &cotangents)?;
            let found =
                stage(gpu, (&call, &batch_heads, &powers, &cotangents, &factors), sums.map.is_some(), run.cancel)?;
            let group =
                Group { call: &call, batch_heads: &batch_heads, cotangents: &cotangents, factors: &factors, found };
            group.store_queries(gradients.dq);
            group.add_keys(&mut sums);
            group.store_states(&mut gradients);
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

/// Leaves out the keys that nothing sees which arrives, for their values may be larger than all others; every other value
/// of a segment is over one power of two.
fn seen_alone<T>(
    call: &Call<'_, T>,
    batch_heads: &mut BatchHeads,
    cotangents: &Cotangents,
    mut powers: Powers,
) -> Powers {
    let (len, num_segments) = (call.shape.kv_len, call.segments[1].len());
    for (of_segment, (&power, &end)) in cotangents.value_powers.iter().zip(&cotangents.seen_ends).enumerate() {
        let (at, keys) = (of_segment / num_segments, &call.segments[1][of_segment % num_segments]);
        batch_heads.leave_out(len, at, end..keys.end);
        powers.keys[at * len + keys.start..at * len + keys.end].fill(power);
        powers.segments[of_segment] = power;
    }
    powers
}

/// Powers of two that gradients have to be multiplied with.
struct Factors {
    /// Those of rows and states, `[BH,segments]`.
    segments: Vec<i32>,
    /// Those of parameters, which all segments of a batch head add to, `[BH]`.
    batch_heads: Vec<i32>,
    /// What the gradients of a row lack to the factor of its batch head, where there are several segments, `[BH,L]`.
    rows: Option<Vec<i32>>,
}

impl Factors {
    fn new<T>(call: &Call<'_, T>, cotangents: &Cotangents) -> Result<Self> {
        let num_segments = call.segments[0].len();
        let mut segments = try_filled(cotangents.powers.len(), 0)?;
        for (at, to) in segments.iter_mut().enumerate() {
            *to = cotangents.powers[at] + cotangents.value_powers[at];
        }
        let num_batch_heads = segments.len() / num_segments.max(1);
        let mut batch_heads = try_filled(num_batch_heads, 0)?;
        let several = num_segments > 1;
        let mut rows = try_filled(if several { num_batch_heads * call.shape.q_len } else { 0 }, 0)?;
        for (at, to) in batch_heads.iter_mut().enumerate() {
            let own = at * num_segments..(at + 1) * num_segments;
            // Where there are several segments, those without a key that is seen add zeros: nothing arrives at their rows.
            let is_seen = |of: &usize| cotangents.seen_ends[*of] > call.segments[1][of % num_segments].start;
            *to = own.clone().filter(|of| !several || is_seen(of)).map(|of| segments[of]).max().unwrap_or(0);
            for of_segment in if several { own } else { 0..0 } {
                let of_rows = &call.segments[0][of_segment % num_segments];
                let of_batch_head = at * call.shape.q_len;
                rows[of_batch_head + of_rows.start..of_batch_head + of_rows.end]
                    .fill((segments[of_segment] - *to).min(0));
            }
        }
        Ok(Factors { segments, batch_heads, rows: several.then_some(rows) })
    }
}

/// Gradients that several batch heads share.
struct Sums {
    dk: Vec<f64>,
    dv: Vec<f64>,
    map: Option<MapSums>,
}

/// What the device computed for a group of batch heads.
struct Found {
    /// `[BH,L,D]`.
    dq: Vec<f32>,
    /// `[BH,S,D]`.
    dk: Vec<f32>,
    /// `[BH,S,E+1]`, the first column that of the ones.
    dv: Vec<f32>,
    /// The states of everything that read the first ones, `[BH,segments,F,2+E]`.
    readers: Vec<f32>,
    /// Of h of the keys, `[BH,S]`.
    norms: Vec<f32>,
    /// Of the parameters of queries and of keys.
    parameters: [Vec<f32>; 2],
}

fn stage<T: Stored>(
    gpu: &Gpu,
    (call, batch_heads, powers, cotangents, factors): (&Call<'_, T>, &BatchHeads, &Powers, &Cotangents, &Factors),
    wants_map: bool,
    cancel: &AtomicBool,
) -> Result<Found> {
    let scaled = batch_heads.scaled(call, powers)?;
    let mut recorder = Recorder::new(gpu);
    let [queries, keys] = [
        Uploaded::new(&mut recorder, call, batch_heads, Side::Query)?,
        Uploaded::new(&mut recorder, call, batch_heads, Side::Key)?,
    ];
    let (queries, keys) = (queries.rows(), keys.rows());
    let values = recorder.upload("values", &scaled.values)?;
    let arriving = recorder.upload("gradients", &cotangents.rows)?;
    let first = recorder.upload("first states", &scaled.first_states)?;
    let last = recorder.upload("gradients of states", &cotangents.final_states)?;
    let shifts = recorder.upload("shifts", &cotangents.shifts)?;
    let key_shifts = recorder.upload("shifts", &batch_heads.key_shifts)?;
    let row_factors = factors.rows.as_ref().map(|rows| recorder.upload("powers of gradients", rows)).transpose()?;
    let sets = sets_of(&mut recorder, call, batch_heads.range.clone())?;
    let mut stages = Stages::new(&mut recorder, &pass_of(call), batch_heads.range.len(), &sets)?;
    let of_queries = stages.project(&queries, Some(&shifts))?;
    let of_keys = stages.project(&keys, Some(&key_shifts))?;
    // Values of a segment are over one power of two.
    let alike = |rows| Values { rows, powers: None };
    let key_states = stages.states(&keys, &of_keys, alike(&values), Some(&first), false)?;
    let query_states = stages.states(&queries, &of_queries, alike(&arriving), Some(&last), true)?;
    let scores = stages.scores(&queries, &of_queries, &of_keys)?;
    let dscores = stages.score_gradient(&queries, &arriving, &values)?;
    let of_query = Reader { rows: &queries, features: &of_queries, states: &key_states };
    let dqueries = stages.feature_gradient(of_query, &arriving, &of_keys, &dscores)?;
    let of_key = Reader { rows: &keys, features: &of_keys, states: &query_states };
    let dkeys = stages.feature_gradient(of_key, &values, &of_queries, &dscores)?;
    let [dv, _] = stages.read(of_key, &scores, alike(&arriving))?;
    let [dq, dqueries, _] = stages.pull_back(&queries, &of_queries, &dqueries)?;
    let [dk, dkeys, norms] = stages.pull_back(&keys, &of_keys, &dkeys)?;
    let of_map = match wants_map {
        true => Some([
            stages.parameter_gradient(&queries, &dqueries, row_factors.as_ref())?,
            stages.parameter_gradient(&keys, &dkeys, row_factors.as_ref())?,
        ]),
        false => None,
    };
    let mut wanted = vec![&dq, &dk, &dv, &query_states.last, &norms];
    wanted.extend(of_map.iter().flatten());
    let mut read = recorder.read_back(&wanted, cancel)?.into_iter();
    let mut next = || read.next().unwrap_or_default();
    Ok(Found { dq: next(), dk: next(), dv: next(), readers: next(), norms: next(), parameters: [next(), next()] })
}

/// A group of batch heads with everything that is known of them.
struct Group<'a, T> {
    call: &'a Call<'a, T>,
    batch_heads: &'a BatchHeads,
    cotangents: &'a Cotangents,
    factors: &'a Factors,
    found: Found,
}

impl<T: Stored> Group<'_, T> {
    /// What gradients of a segment of a batch head are multiplied with: those that reach values, and all others.
    fn factors(&self, at: usize, segment: usize) -> [f64; 2] {
        let of_segment = at * self.call.segments[0].len() + segment;
        [power_of_two(self.cotangents.powers[of_segment]), power_of_two(self.factors.segments[of_segment])]
    }

    fn store_queries(&self, dq: &mut [T]) {
        let size = self.call.shape.q_len * self.call.shape.head_dim;
        let width = self.call.shape.head_dim;
        for at in 0..self.batch_heads.range.len() {
            let to = &mut dq[(self.batch_heads.range.start + at) * size..][..size];
            for (segment, rows) in self.call.segments[0].iter().enumerate() {
                let [_, by] = self.factors(at, segment);
                for row in rows.clone() {
                    let from = &self.found.dq[at * size + row * width..][..width];
                    let is_bad = self.cotangents.bad_rows[at * self.call.shape.q_len + row];
                    let by = if is_bad { f64::NAN } else { by };
                    let to = to[row * width..][..width].iter_mut().zip(from);
                    to.for_each(|(to, &x)| *to = T::round(T::Compute::from_f64(f64::from(x) * by)));
                }
            }
        }
    }

    fn add_keys(&self, sums: &mut Sums) {
        let (call, found) = (self.call, &self.found);
        let (len, d, e, width) = (call.shape.kv_len, call.shape.head_dim, call.shape.value_dim, call.width());
        for (at, batch_head) in self.batch_heads.range.clone().enumerate() {
            let first = call.key_batch_head(batch_head) * len;
            let segments = call.segments[1].iter().enumerate();
            for (segment, key) in segments.flat_map(|(segment, keys)| keys.clone().map(move |key| (segment, key))) {
                let [of_values, by] = self.factors(at, segment);
                let (from, to) = (at * len + key, first + key);
                let dk = sums.dk[to * d..][..d].iter_mut().zip(&found.dk[from * d..]);
                dk.for_each(|(to, &x)| *to += f64::from(x) * by);
                let dv = sums.dv[to * e..][..e].iter_mut().zip(&found.dv[from * width + 1..]);
                dv.for_each(|(to, &x)| *to += f64::from(x) * of_values);
            }
            if let Some(map) = &mut sums.map {
                let by_segment: Vec<f64> = (0..call.segments[1].len()).map(|of| self.factors(at, of)[1]).collect();
                let (norms, by) = (&found.norms, power_of_two(self.factors.batch_heads[at]));
                for (side, parameters) in [Side::Query, Side::Key].into_iter().zip(&found.parameters) {
                    let found = SideGradients { side, parameters, norms, by, by_segment: &by_segment };
                    map.add(call, self.batch_heads, at, &found);
                }
            }
            self.spoil_keys(sums, at);
        }
    }

    /// Makes NaN of the gradients of the keys that a bad row saw, and of the parameters of its head.
    fn spoil_keys(&self, sums: &mut Sums, at: usize) {
        let (call, batch_head) = (self.call, self.batch_heads.range.start + at);
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
            for key in (keys.start..end).filter(|&key| !call.is_padding(batch_head, key)) {
                let to = call.key_batch_head(batch_head) * len + key;
                sums.dk[to * d..][..d].fill(f64::NAN);
                sums.dv[to * e..][..e].fill(f64::NAN);
            }
            if let Some(map) = sums.map.as_mut().filter(|_| self.cotangents.is_any_bad(call, at, segment)) {
                map.spoil(call, batch_head);
            }
        }
    }

    fn store_states(&self, gradients: &mut Gradients<'_, T>) {
        let Some(all) = &mut gradients.state_in else { return };
        let (call, row) = (self.call, KV_STATE + self.call.shape.value_dim);
        let (size, num_segments) = (call.shape.feature_dim * row, call.segments[0].len());
        for (at, batch_head) in self.batch_heads.range.clone().enumerate() {
            for segment in 0..num_segments {
                let [of_values, of_ones] = self.factors(at, segment);
                let own = (at * num_segments + segment) * size..(at * num_segments + segment + 1) * size;
                let first = self.batch_heads.first_states[own.clone()].chunks_exact(row);
                let readers = self.found.readers[own].chunks_exact(row);
                let is_bad = self.cotangents.is_any_bad(call, at, segment);
                let to = all[call.state_range(batch_head, segment)].chunks_exact_mut(row);
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
