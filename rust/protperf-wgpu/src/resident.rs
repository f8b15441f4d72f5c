//! Attention from tensors on the device to tensors on the device: nothing is read back, and nothing is waited for.
//!
//! `shaders/tensor/` does there what [`crate::batch_heads`] does for tensors of the host; between the two run the same
//! stages. BH: batch entries times heads, those of one group.

use crate::batch_heads::Call;
use crate::context::{Gpu, with_gpu};
use crate::error::GpuError;
use crate::forward::groups;
use crate::kernels::{Kernel, Uniform};
use crate::memory::OnDevice;
use crate::recorder::Recorder;
use crate::stages::{Cut, Reader, Stages, Values};
use crate::tensor::{DeviceTensor, StoredAs};
use crate::upload::{Uploaded, pass_of, sets_of};
use bytemuck::{Pod, Zeroable};
use protperf_core::state::KV_STATE;
use protperf_core::{Error, Execution, FavorArgs, Result, Side};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// The tensors of a call: q `[B,H,L,D]`, k `[B,Hk,S,D]`, v `[B,Hk,S,E]`, all stored alike, and the state before the first
/// key, of `FavorShape::state` in f32.
#[derive(Clone, Copy)]
pub struct Resident<'a> {
    pub q: &'a DeviceTensor,
    pub k: &'a DeviceTensor,
    pub v: &'a DeviceTensor,
    pub state: Option<&'a DeviceTensor>,
}

/// Linear attention; returns out `[B,H,L,E]`, stored as q is, and the state after the last key where it is wanted. Of
/// `args` the shapes are read, the map and what a query sees, and no element of q, k and v.
///
/// # Errors
/// As [`FavorArgs::validate`]; [`Error::ShapeMismatch`] where a tensor has another shape; [`Error::Device`];
/// [`Error::OutOfMemory`]; [`Error::Interrupted`].
pub fn attention(
    args: &FavorArgs<'_, f32>,
    tensors: Resident<'_>,
    wants_state: bool,
    run: &Execution<'_>,
) -> Result<(DeviceTensor, Option<DeviceTensor>)> {
    let call = Call::new(args, None)?;
    let Resident { q, k, v, state } = tensors;
    for (name, tensor, view) in [("q", q, &args.q), ("k", k, &args.k), ("v", v, &args.v)] {
        check(name, tensor, view.shape(), q.stored())?;
    }
    if let Some(state) = state {
        check("state", state, call.shape.state(), StoredAs::Float32)?;
    }
    with_gpu(|gpu| {
        [q, k, v].into_iter().chain(state).try_for_each(|tensor| tensor.check(gpu))?;
        let mut recorder = Recorder::new(gpu);
        let out = DeviceTensor::scratch(&mut recorder, &call.shape.out(), q.stored())?;
        let last = wants_state
            .then(|| DeviceTensor::scratch(&mut recorder, &call.shape.state(), StoredAs::Float32))
            .transpose()?;
        groups(gpu, &call, |range| {
            if run.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            Ok(Group { call: &call, tensors, range }.record(gpu, &out, last.as_ref())?)
        })?;
        Ok((out, last))
    })
}

/// Adds state b to state a, both `[..,F,2+E]` in f32: the state of both sets of keys, of the bits that
/// [`protperf_core::state::merge_states`] gives of numbers in the normal range.
///
/// # Errors
/// [`Error::ShapeMismatch`], [`Error::InvalidOption`] where they are not states of one shape; [`Error::Device`];
/// [`Error::OutOfMemory`].
pub fn merge_states(a: &DeviceTensor, b: &DeviceTensor) -> Result<DeviceTensor> {
    let Ok(shape) = <[usize; 4]>::try_from(a.shape()) else {
        let detail = format!("has {:?} where a state [B,H,F,2+E] is needed", a.shape());
        return Err(Error::ShapeMismatch { argument: "a", detail });
    };
    if shape[3] < KV_STATE {
        let detail = format!("has {shape:?} where the last axis of a state is 2 + value_dim");
        return Err(Error::ShapeMismatch { argument: "a", detail });
    }
    check("a", a, shape, StoredAs::Float32)?;
    check("b", b, shape, StoredAs::Float32)?;
    with_gpu(|gpu| {
        [a, b].into_iter().try_for_each(|tensor| tensor.check(gpu))?;
        let mut recorder = Recorder::new(gpu);
        let merged = DeviceTensor::scratch(&mut recorder, &shape, StoredAs::Float32)?;
        let (invocations, value_dim) = (a.len() as u32, (shape[3] - KV_STATE) as u32);
        let shape = Shape { invocations, value_dim, ..Shape::default() };
        recorder.dispatch(Kernel::MergeStates, shape, &[&a.memory, &b.memory, &merged.memory]);
        recorder.submit();
        Ok(merged)
    })
}

fn check(argument: &'static str, tensor: &DeviceTensor, shape: [usize; 4], stored: StoredAs) -> Result<()> {
    if tensor.stored() != stored {
        let detail = format!("is {} where {} is needed", tensor.stored().name(), stored.name());
        return Err(Error::InvalidOption { argument, detail });
    }
    if tensor.shape() != shape {
        return Err(Error::ShapeMismatch {
            argument,
            detail: format!("has {:?} where {shape:?} is needed", tensor.shape()),
        });
    }
    Ok(())
}

/// The twin of `Shape` in `shaders/tensor/prelude.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct Shape {
    invocations: u32,
    batch_heads: u32,
    first_batch_head: u32,
    heads: u32,
    group: u32,
    rows: u32,
    head_dim: u32,
    value_dim: u32,
    features: u32,
    segments: u32,
    stored: u32,
    causal: u32,
    masked: u32,
    tiles: u32,
    step: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Shape>() == 64);

impl Uniform for Shape {
    fn invocations(&self) -> u32 {
        self.invocations
    }
}

/// Some batch heads of a call.
struct Group<'a> {
    call: &'a Call<'a, f32>,
    tensors: Resident<'a>,
    range: Range<usize>,
}

/// What stages of this file hand to each other.
struct Known {
    /// Borders of segments.
    borders: OnDevice,
    /// `[BH,segments,2]`.
    facts: OnDevice,
    /// `[BH,L]`.
    bad_queries: OnDevice,
    /// The powers of two that values are divided by, `[BH,S]`.
    powers: OnDevice,
}

type Outcome<T> = std::result::Result<T, GpuError>;

impl Group<'_> {
    fn record(&self, gpu: &Gpu, out: &DeviceTensor, last: Option<&DeviceTensor>) -> Outcome<()> {
        let mut recorder = Recorder::new(gpu);
        let recorder = &mut recorder;
        let (queries, bad_queries) = self.queries(recorder)?;
        let (borders, facts) = (self.borders(recorder)?, self.facts(recorder)?);
        let (keys, shifts, largest) = self.keys(recorder, &borders, &facts)?;
        let queries = Uploaded::of_rows(recorder, self.call, queries, Side::Query)?;
        let keys = Uploaded::of_rows(recorder, self.call, keys, Side::Key)?;
        let (queries, keys) = (queries.rows(), keys.rows());
        let powers = self.powers(recorder, keys.cut, &facts, &largest)?;
        let known = Known { borders, facts, bad_queries, powers };
        let first = self.first_states(recorder, &known)?;
        let values = self.values(recorder, &known, &shifts)?;
        let sets = sets_of(recorder, self.call, self.range.clone())?;
        let mut stages = Stages::new(recorder, &pass_of(self.call), self.range.len(), &sets)?;
        let of_queries = stages.project(&queries, None)?;
        let of_keys = stages.project(&keys, Some(&shifts))?;
        // Where every query sees every key there is one power for a segment.
        let values = Values { rows: &values, powers: self.call.args.causal.then_some(&known.powers) };
        let states = stages.states(&keys, &of_keys, values, first.as_ref(), false)?;
        let scores = stages.scores(&queries, &of_queries, &of_keys)?;
        let reader = Reader { rows: &queries, features: &of_queries, states: &states };
        let [found, _] = stages.read(reader, &scores, values)?;
        self.outputs(recorder, &known, &found, out);
        if let Some(last) = last {
            let shape = self.shape(0, &[self.num_states(), self.call.shape.feature_dim, KV_STATE + self.value_dim()]);
            recorder.dispatch(Kernel::LastStates, shape, &[&states.last, &known.facts, &last.memory]);
        }
        recorder.submit();
        Ok(())
    }

    fn queries(&self, recorder: &mut Recorder<'_>) -> Outcome<(OnDevice, OnDevice)> {
        let rows = self.call.shape.q_len;
        let queries = self.scratch(recorder, "queries", rows * self.call.shape.head_dim)?;
        let is_bad = self.scratch(recorder, "queries", rows)?;
        let bindings = [&self.tensors.q.memory, &queries, &is_bad];
        recorder.dispatch(Kernel::TensorQueries, self.shape(rows, &[rows, self.range.len()]), &bindings);
        Ok((queries, is_bad))
    }

    fn borders(&self, recorder: &mut Recorder<'_>) -> Outcome<OnDevice> {
        let ends = self.call.segments[1].iter().map(|segment| segment.end as u32);
        recorder.upload("segments", &std::iter::once(0).chain(ends).collect::<Vec<u32>>())
    }

    /// Facts before any tensor was looked at: a map with a number that is not finite spoils all that its heads read.
    fn facts(&self, recorder: &mut Recorder<'_>) -> Outcome<OnDevice> {
        let of_batch_head =
            |batch_head| [if self.call.map.is_bad[self.call.set_of(batch_head)] { u32::MAX } else { 0 }, 0];
        let segments = self.call.shape.num_segments;
        let facts = self.range.clone().flat_map(|batch_head| std::iter::repeat_n(of_batch_head(batch_head), segments));
        recorder.upload("segments", &facts.flatten().collect::<Vec<u32>>())
    }

    /// Keys, their shifts, and the largest magnitude of each row of values as its bits.
    fn keys(
        &self,
        recorder: &mut Recorder<'_>,
        borders: &OnDevice,
        facts: &OnDevice,
    ) -> Outcome<(OnDevice, OnDevice, OnDevice)> {
        let rows = self.call.shape.kv_len;
        let keys = self.scratch(recorder, "keys", rows * self.call.shape.head_dim)?;
        let shifts = self.scratch(recorder, "shifts", rows)?;
        let largest = self.scratch(recorder, "sizes of values", rows)?;
        let mask = self.call.args.key_padding_mask.map(|mask| mask.iter().map(|&is| u32::from(is)).collect::<Vec<_>>());
        let padding = recorder.upload("padding", mask.as_deref().unwrap_or(&[]))?;
        let shape = Shape { masked: u32::from(mask.is_some()), ..self.shape(rows, &[rows, self.range.len()]) };
        let tensors = [&self.tensors.k.memory, &self.tensors.v.memory, &padding];
        let bindings = [&[borders], &tensors[..], &[&keys, &shifts, facts, &largest]].concat();
        recorder.dispatch(Kernel::TensorKeys, shape, &bindings);
        Ok((keys, shifts, largest))
    }

    /// The powers of two that values are divided by. Of the states and of all keys of a segment the largest value becomes
    /// one of its facts.
    fn powers(
        &self,
        recorder: &mut Recorder<'_>,
        cut: &Cut,
        facts: &OnDevice,
        largest: &OnDevice,
    ) -> Outcome<OnDevice> {
        if let Some(state) = self.tensors.state {
            let shape = self.shape(0, &[self.num_states(), self.call.shape.feature_dim]);
            recorder.dispatch(Kernel::StateFacts, shape, &[&state.memory, facts]);
        }
        let num_tiles = cut.tiling().tiles.len();
        let of_tiles = self.scratch(recorder, "sizes of values", num_tiles)?;
        let powers = self.scratch(recorder, "powers of values", self.call.shape.kv_len)?;
        let [tiles, segments] = cut.on_device();
        for (step, count) in (0..).zip([num_tiles, self.call.shape.num_segments, num_tiles]) {
            let shape = self.shape(self.call.shape.kv_len, &[count, self.range.len()]);
            let shape = Shape { tiles: num_tiles as u32, step, ..shape };
            let bindings = [tiles, segments, largest, facts, &of_tiles, &powers];
            recorder.dispatch(Kernel::TensorPowers, shape, &bindings);
        }
        Ok(powers)
    }

    fn first_states(&self, recorder: &mut Recorder<'_>, known: &Known) -> Outcome<Option<OnDevice>> {
        let Some(state) = self.tensors.state else { return Ok(None) };
        let features = self.call.shape.feature_dim;
        let of_batch_head = self.call.shape.num_segments * features * (KV_STATE + self.value_dim());
        let first = self.scratch(recorder, "first states", of_batch_head)?;
        let shape = self.shape(self.call.shape.kv_len, &[self.num_states(), features]);
        let bindings = [&state.memory, &known.facts, &known.borders, &known.powers, &first];
        recorder.dispatch(Kernel::FirstStates, shape, &bindings);
        Ok(Some(first))
    }

    fn values(&self, recorder: &mut Recorder<'_>, known: &Known, shifts: &OnDevice) -> Outcome<OnDevice> {
        let (rows, width) = (self.call.shape.kv_len, self.call.width());
        let values = self.scratch(recorder, "values", rows * width)?;
        let bindings = [&self.tensors.v.memory, shifts, &known.powers, &values];
        recorder.dispatch(Kernel::TensorValues, self.shape(rows, &[rows, width, self.range.len()]), &bindings);
        Ok(values)
    }

    fn outputs(&self, recorder: &mut Recorder<'_>, known: &Known, found: &OnDevice, out: &DeviceTensor) {
        let rows = self.call.shape.q_len;
        let of_batch_head = rows * self.value_dim();
        let [first, end] = [self.range.start * of_batch_head, self.range.end * of_batch_head];
        // A word of two numbers may belong to two groups.
        let words = if out.stored() == StoredAs::Float32 { end - first } else { end.div_ceil(2) - first / 2 };
        let bindings = [&known.borders, found, &known.bad_queries, &known.facts, &known.powers, &out.memory];
        recorder.dispatch(Kernel::TensorOutputs, self.shape(rows, &[if end > first { words } else { 0 }]), &bindings);
    }

    /// The shape of as many invocations as the product of some counts.
    fn shape(&self, rows: usize, counts: &[usize]) -> Shape {
        let shape = &self.call.shape;
        Shape {
            invocations: counts.iter().product::<usize>() as u32,
            batch_heads: self.range.len() as u32,
            first_batch_head: self.range.start as u32,
            heads: shape.heads as u32,
            group: shape.group() as u32,
            rows: rows as u32,
            head_dim: shape.head_dim as u32,
            value_dim: shape.value_dim as u32,
            features: shape.feature_dim as u32,
            segments: shape.num_segments as u32,
            stored: self.tensors.q.stored().number(),
            causal: u32::from(self.call.args.causal),
            ..Shape::default()
        }
    }

    fn scratch(&self, recorder: &mut Recorder<'_>, what: &'static str, per_batch_head: usize) -> Outcome<OnDevice> {
        recorder.scratch(what, self.range.len() as u64 * per_batch_head as u64 * 4)
    }

    fn num_states(&self) -> usize {
        self.range.len() * self.call.shape.num_segments
    }

    fn value_dim(&self) -> usize {
        self.call.shape.value_dim
    }
}
