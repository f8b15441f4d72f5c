//! The forward pass: keys make states, queries read them. `docs/algorithm.md`, section 1.
//!
//! Batch heads are worked on in groups whose buffers the adapter can bind. A group is one submission.
//! BH: batch entries times heads, those of one group.

use crate::batch_heads::{BatchHeads, Call, Powers, narrowed, power_of_two};
use crate::context::{Gpu, with_gpu};
use crate::groups::in_groups;
use crate::recorder::Recorder;
use crate::stages::{Reader, Stages, Values};
use crate::tiles::Tiling;
use crate::upload::{Uploaded, pass_of, sets_of};
use protperf_core::backend::Outputs;
use protperf_core::state::KV_STATE;
use protperf_core::{Element, Error, ErrorKind, Execution, FavorArgs, Result, Side, Stored};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// The largest buffer that a group of several batch heads makes, in bytes; a pass holds some ten such buffers.
const GROUP_BYTES: usize = 64 << 20;

/// Linear attention on the GPU.
///
/// # Errors
/// As [`protperf_core::Backend::forward`]; [`Error::Device`].
pub fn run<T: Stored>(args: &FavorArgs<'_, T>, mut outputs: Outputs<'_, T>, run: &Execution<'_>) -> Result<()> {
    let state_in = outputs.state_in.map(narrowed).transpose()?;
    let call = Call::new(args, state_in.as_deref())?;
    with_gpu(|gpu| {
        groups(gpu, &call, |range| {
            if run.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let batch_heads = call.batch_heads(range)?;
            let powers = batch_heads.powers(&call)?;
            let found = stage(gpu, (&call, &batch_heads, &powers), outputs.state_out.is_some(), run.cancel)?;
            found.store(&call, &batch_heads, &powers, &mut outputs);
            Ok(())
        })
    })
}

/// Works on the batch heads of a call in groups, each at least one batch head.
///
/// # Errors
/// What `work` returns, but for a lack of memory for a group of several batch heads.
pub fn groups<T>(gpu: &Gpu, call: &Call<'_, T>, work: impl FnMut(Range<usize>) -> Result<()>) -> Result<()> {
    let shape = &call.shape;
    let num_batch_heads = shape.batch * shape.heads;
    let tiling = Tiling::new(&call.segments[1], call.args.causal);
    let of_features = shape.q_len.max(shape.kv_len).max(1) * shape.feature_dim * 8;
    let states = tiling.tiles.len().max(shape.num_segments);
    let of_states = states * shape.feature_dim * (KV_STATE + shape.value_dim) * 4;
    let of_scores = if call.args.causal { tiling.num_pairs() * 8 } else { 0 };
    let bytes = GROUP_BYTES.min(usize::try_from(gpu.max_binding()).unwrap_or(usize::MAX));
    let step = (bytes / of_features.max(of_states).max(of_scores)).max(1);
    let is_full = |error: &Error| error.kind() == ErrorKind::OutOfMemory;
    in_groups(gpu, num_batch_heads, is_full, |first, most| first..num_batch_heads.min(first + step.min(most)), work)
}

/// What a group of batch heads computed.
struct Found {
    /// `[BH,L,E+1]`, the first column unused.
    out: Vec<f32>,
    /// `[BH,L,2]`.
    den: Vec<f32>,
    /// `[BH,segments,F,2+E]`.
    states: Vec<f32>,
}

fn stage<T: Stored>(
    gpu: &Gpu,
    (call, batch_heads, powers): (&Call<'_, T>, &BatchHeads, &Powers),
    wants_state: bool,
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
    let first = recorder.upload("first states", &scaled.first_states)?;
    let of_values = recorder.upload("powers of values", &powers.keys)?;
    let shifts = recorder.upload("shifts", &batch_heads.key_shifts)?;
    let sets = sets_of(&mut recorder, call, batch_heads.range.clone())?;
    let mut stages = Stages::new(&mut recorder, &pass_of(call), batch_heads.range.len(), &sets)?;
    let of_queries = stages.project(&queries, None)?;
    let of_keys = stages.project(&keys, Some(&shifts))?;
    // Where every query sees every key there is one power for a segment.
    let values = Values { rows: &values, powers: call.args.causal.then_some(&of_values) };
    let states = stages.states(&keys, &of_keys, values, Some(&first), false)?;
    let scores = stages.scores(&queries, &of_queries, &of_keys)?;
    let reader = Reader { rows: &queries, features: &of_queries, states: &states };
    let [out, den] = stages.read(reader, &scores, values)?;
    let wanted = [&out, &den, &states.last];
    let mut read = recorder.read_back(&wanted[..if wants_state { 3 } else { 2 }], cancel)?.into_iter();
    let mut next = || read.next().unwrap_or_default();
    Ok(Found { out: next(), den: next(), states: next() })
}

impl Found {
    /// Writes what belongs to the batch heads; NaN where something that is not finite was seen.
    fn store<T: Stored>(
        &self,
        call: &Call<'_, T>,
        batch_heads: &BatchHeads,
        powers: &Powers,
        outputs: &mut Outputs<'_, T>,
    ) {
        let (e, width, len) = (call.shape.value_dim, call.width(), call.shape.q_len);
        let (nan, first) = (T::Compute::from_f64(f64::NAN), batch_heads.range.start * len);
        for at in 0..batch_heads.range.len() {
            for (segment, rows) in call.segments[0].iter().enumerate() {
                for row in rows.clone() {
                    let by = power_of_two(match call.args.causal {
                        true => powers.keys[at * len + row],
                        false => powers.segments[at * call.segments[0].len() + segment],
                    });
                    let (from, to) = (at * len + row, first + at * len + row);
                    let is_bad = batch_heads.is_bad(call, at, segment, row);
                    let out = &mut outputs.out[to * e..][..e];
                    for (out, &x) in out.iter_mut().zip(&self.out[from * width + 1..]) {
                        *out = T::round(if is_bad { nan } else { limited(flushed(x) * by) });
                    }
                    let den = &mut outputs.den[to * 2..][..2];
                    den.iter_mut().zip(&self.den[from * 2..]).for_each(|(to, &x)| *to = T::Compute::from_f64(x.into()));
                    if is_bad {
                        den[1] = nan;
                    }
                }
            }
            if let Some(all) = &mut outputs.state_out {
                self.store_states(call, batch_heads, powers, at, all);
            }
        }
    }

    fn store_states<T: Stored>(
        &self,
        call: &Call<'_, T>,
        batch_heads: &BatchHeads,
        powers: &Powers,
        at: usize,
        all: &mut [T::Compute],
    ) {
        let size = call.shape.feature_dim * (1 + call.width());
        for segment in 0..call.segments[0].len() {
            let by = power_of_two(powers.segments[at * call.segments[0].len() + segment]);
            let to = &mut all[call.state_range(batch_heads.range.start + at, segment)];
            let from = &self.states[(at * call.segments[0].len() + segment) * size..][..size];
            for (column, (to, &x)) in to.iter_mut().zip(from).enumerate() {
                let is_value = column % (1 + call.width()) >= KV_STATE;
                *to = T::Compute::from_f64(flushed(x) * if is_value { by } else { 1.0 });
            }
            if batch_heads.is_state_bad(call, at, segment) {
                to.fill(T::Compute::from_f64(f64::NAN));
            }
        }
    }
}

/// A number below the normal ones is 0, as it is in `stored_bits` of `shaders/tensor/prelude.wgsl`: devices may make zeros
/// of such numbers, so what is left of them says nothing.
fn flushed(x: f32) -> f64 {
    if x.is_subnormal() { 0f64.copysign(f64::from(x)) } else { f64::from(x) }
}

/// A mean of finite numbers is finite, though its rounding may not be.
fn limited<C: Element>(x: f64) -> C {
    let most = f64::from(f32::MAX);
    C::from_f64(x.clamp(-most, most))
}
