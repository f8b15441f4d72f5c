//! The rows of some batch heads of a call, contiguous and finite. A batch head is one query head of one batch entry,
//! with all its segments. BH: batch entries times heads, those of one group.
//!
//! Keys and values are repeated for every query head that shares them, so the shaders know nothing of heads. Rows that
//! hold a number that is not finite are set to zero here and remembered; see [`BatchHeads::is_bad`].

use crate::maps::Map;
use protperf_core::state::KV_STATE;
use protperf_core::{Element, FavorArgs, FavorShape, Result, Stored, TensorRef, try_filled, try_reserved};
use std::ops::Range;

/// The shift of a row that makes no features: the twin of `LEFT_OUT` in `shaders/project.wgsl`.
pub const LEFT_OUT: i32 = -i32::MAX;
/// Values are divided by a power of two where the largest is beyond these bits, so that their sums are finite.
const EXTREME_BITS: i32 = 60;
/// The power of zeros, below the exponent of every number: the twin of `OF_ZEROS` in `shaders/tensor/prelude.wgsl`.
pub const OF_ZEROS: i32 = -150;

/// The values of some batch heads, and sums of them, over powers of two.
pub struct Scaled {
    /// `[1, v]`, zeros where a key is left out, `[BH,S,E+1]`.
    pub values: Vec<f32>,
    /// States before the first keys, their sums of values over the power of the first key `[BH,segments,F,2+E]`.
    pub first_states: Vec<f32>,
}

/// Powers of two that values are divided by. In the causal form the power of a key is that of the largest value up to its
/// own, the first state included, so that no later value has a part in what an earlier row reads; else it is that of all
/// keys of its segment.
pub struct Powers {
    /// `[BH,S]`.
    pub keys: Vec<i32>,
    /// Those of all keys, `[BH,segments]`.
    pub segments: Vec<i32>,
}

/// One call, checked.
pub struct Call<'a, T> {
    pub args: &'a FavorArgs<'a, T>,
    pub shape: FavorShape,
    pub map: Map,
    /// Rows of queries, and of keys, of each segment.
    pub segments: [Vec<Range<usize>>; 2],
    pub state_in: Option<&'a [f32]>,
}

/// The rows of some batch heads.
pub struct BatchHeads {
    pub range: Range<usize>,
    /// `[BH,L,D]`.
    pub queries: Vec<f32>,
    /// `[BH,S,D]`.
    pub keys: Vec<f32>,
    /// `[BH,S,E]`.
    values: Vec<f32>,
    /// 0, or [`LEFT_OUT`] where a key is padding or bad, `[BH,S]`.
    pub key_shifts: Vec<i32>,
    /// States before the first key `[BH,segments,F,2+E]`.
    pub first_states: Vec<f32>,
    bad_queries: Vec<bool>,
    /// Of each batch head and segment: the first key that is not finite, as a row of the batch head.
    first_bad_keys: Vec<Option<usize>>,
    /// Of each batch head and segment: every row sees something that is not finite.
    all_bad: Vec<bool>,
}

impl<'a, T: Stored> Call<'a, T> {
    /// # Errors
    /// As [`FavorArgs::validate`]; `OutOfMemory`.
    pub fn new(args: &'a FavorArgs<'a, T>, state_in: Option<&'a [f32]>) -> Result<Self> {
        let shape = args.validate()?;
        let map = Map::new(&args.map, shape.head_dim, shape.num_projections)?;
        let segments = match args.cu_seqlens {
            Some(borders) => {
                let packed: Vec<_> = borders.windows(2).map(|at| at[0] as usize..at[1] as usize).collect();
                [packed.clone(), packed]
            }
            #[allow(clippy::single_range_in_vec_init)]
            None => [vec![0..shape.q_len], vec![0..shape.kv_len]],
        };
        Ok(Call { args, shape, map, segments, state_in })
    }

    /// E + 1.
    pub fn width(&self) -> usize {
        self.shape.value_dim + 1
    }

    /// The set of parameters that a batch head uses.
    pub fn set_of(&self, batch_head: usize) -> usize {
        self.args.map.set_of(batch_head % self.shape.heads)
    }

    /// The key head of a batch head, counted over all batch entries.
    pub fn key_batch_head(&self, batch_head: usize) -> usize {
        let s = &self.shape;
        batch_head / s.heads * s.kv_heads + batch_head % s.heads / s.group()
    }

    /// Where the state of a batch head's segment lies among all states as callers hold them.
    pub fn state_range(&self, batch_head: usize, segment: usize) -> Range<usize> {
        let [_, heads, features, width] = self.shape.state();
        let state = (batch_head / heads * self.shape.num_segments + segment) * heads + batch_head % heads;
        state * features * width..(state + 1) * features * width
    }

    /// Whether a key of a batch head is padding.
    pub fn is_padding(&self, batch_head: usize, key: usize) -> bool {
        self.args.key_padding_mask.is_some_and(|mask| mask[batch_head / self.shape.heads * self.shape.kv_len + key])
    }

    /// The rows of some batch heads.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn batch_heads(&self, range: Range<usize>) -> Result<BatchHeads> {
        let s = &self.shape;
        let (queries, bad_queries) = gather(&self.args.q, range.clone(), s.q_len)?;
        let key_batch_heads = || range.clone().map(|batch_head| self.key_batch_head(batch_head));
        let (mut keys, mut bad_keys) = gather(&self.args.k, key_batch_heads(), s.kv_len)?;
        let (values, bad_values) = gather(&self.args.v, key_batch_heads(), s.kv_len)?;
        bad_keys.iter_mut().zip(bad_values).for_each(|(bad, of_value)| *bad |= of_value);
        let mut batch_heads = BatchHeads {
            queries,
            values,
            key_shifts: try_filled(range.len() * s.kv_len, 0)?,
            first_states: try_reserved(0)?,
            bad_queries,
            first_bad_keys: Vec::new(),
            all_bad: Vec::new(),
            keys: Vec::new(),
            range: range.clone(),
        };
        for (at, batch_head) in range.clone().enumerate() {
            let rows = at * s.kv_len..(at + 1) * s.kv_len;
            for row in rows.clone() {
                if bad_keys[row] || self.is_padding(batch_head, row - rows.start) {
                    batch_heads.key_shifts[row] = LEFT_OUT;
                    keys[row * s.head_dim..][..s.head_dim].fill(0.0);
                }
            }
            for segment in &self.segments[1] {
                let is_bad = |&key: &usize| bad_keys[rows.start + key] && !self.is_padding(batch_head, key);
                batch_heads.first_bad_keys.push(segment.clone().find(is_bad));
            }
        }
        batch_heads.keys = keys;
        self.first_states(&mut batch_heads)?;
        Ok(batch_heads)
    }

    /// States before the first keys: empty ones where none are given, or where one is not finite.
    fn first_states(&self, batch_heads: &mut BatchHeads) -> Result<()> {
        let row = KV_STATE + self.shape.value_dim;
        let num_segments = self.segments[0].len();
        let size = self.shape.feature_dim * row;
        batch_heads.first_states = try_filled(batch_heads.range.len() * num_segments * size, 0.0)?;
        for (at, batch_head) in batch_heads.range.clone().enumerate() {
            for segment in 0..num_segments {
                let to = &mut batch_heads.first_states[(at * num_segments + segment) * size..][..size];
                let given = self.state_in.map(|all| &all[self.state_range(batch_head, segment)]);
                let is_finite = given.is_none_or(|state| state.iter().all(|x| x.is_finite()));
                match given.filter(|_| is_finite) {
                    Some(state) => to.copy_from_slice(state),
                    None => protperf_core::state::fill_empty(to, self.shape.value_dim),
                }
                batch_heads.all_bad.push(!is_finite || self.map.is_bad[self.set_of(batch_head)]);
            }
        }
        Ok(())
    }
}

impl BatchHeads {
    /// The powers of two that values are divided by.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn powers<T>(&self, call: &Call<'_, T>) -> Result<Powers> {
        let (e, len, num_segments) = (call.shape.value_dim, call.shape.kv_len, call.segments[1].len());
        let size = call.shape.feature_dim * (KV_STATE + e);
        let largest_of = |numbers: &[f32]| numbers.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let mut powers =
            Powers { keys: try_filled(self.range.len() * len, 0)?, segments: try_reserved(self.range.len())? };
        for of_segment in 0..self.range.len() * num_segments {
            let (at, keys) = (of_segment / num_segments, call.segments[1][of_segment % num_segments].clone());
            let rows = at * len + keys.start..at * len + keys.end;
            let state = self.first_states[of_segment * size..][..size].chunks_exact(KV_STATE + e);
            let mut largest = state.map(|row| largest_of(&row[KV_STATE..])).fold(0.0, f32::max);
            for row in rows.clone() {
                if self.key_shifts[row] != LEFT_OUT {
                    largest = largest.max(largest_of(&self.values[row * e..][..e]));
                }
                powers.keys[row] = power_of(largest);
            }
            powers.segments.push(power_of(largest));
            if !call.args.causal {
                powers.keys[rows].fill(power_of(largest));
            }
        }
        Ok(powers)
    }

    /// Values over the powers of their keys.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn scaled<T>(&self, call: &Call<'_, T>, powers: &Powers) -> Result<Scaled> {
        let (e, width, len, num_segments) =
            (call.shape.value_dim, call.shape.value_dim + 1, call.shape.kv_len, call.segments[1].len());
        let mut values = try_filled(self.range.len() * len * width, 0.0)?;
        for (row, to) in values.chunks_exact_mut(width).enumerate() {
            if self.key_shifts[row] != LEFT_OUT {
                to[0] = 1.0;
                let values = &self.values[row * e..][..e];
                to[1..].iter_mut().zip(values).for_each(|(to, &v)| *to = over_power(v, powers.keys[row]));
            }
        }
        let mut first_states = try_reserved(self.first_states.len())?;
        first_states.extend_from_slice(&self.first_states);
        let size = call.shape.feature_dim * (1 + width);
        for of_segment in 0..self.range.len() * num_segments {
            let (at, keys) = (of_segment / num_segments, &call.segments[1][of_segment % num_segments]);
            let power = if keys.is_empty() { powers.segments[of_segment] } else { powers.keys[at * len + keys.start] };
            let rows = first_states[of_segment * size..][..size].chunks_exact_mut(1 + width);
            rows.flat_map(|row| &mut row[KV_STATE..]).for_each(|sum| *sum = over_power(*sum, power));
        }
        Ok(Scaled { values, first_states })
    }

    /// Leaves out keys that nothing sees of what a pass is about, those of a segment of the batch head `at` from a row
    /// on.
    pub fn leave_out(&mut self, kv_len: usize, at: usize, keys: Range<usize>) {
        self.key_shifts[at * kv_len + keys.start..at * kv_len + keys.end].fill(LEFT_OUT);
    }

    /// Whether a query saw something that is not finite, or is itself not finite; `query` is a row of the batch head.
    pub fn is_bad<T>(&self, call: &Call<'_, T>, at: usize, segment: usize, query: usize) -> bool {
        let of_segment = at * call.segments[0].len() + segment;
        let sees = |key: usize| !call.args.causal || key <= query;
        self.all_bad[of_segment]
            || self.bad_queries[at * call.shape.q_len + query]
            || self.first_bad_keys[of_segment].is_some_and(sees)
    }

    /// Whether the state after all keys of a segment is not finite.
    pub fn is_state_bad<T>(&self, call: &Call<'_, T>, at: usize, segment: usize) -> bool {
        let of_segment = at * call.segments[0].len() + segment;
        self.all_bad[of_segment] || self.first_bad_keys[of_segment].is_some()
    }
}

/// Rows `[BH,len,width]` of the batch heads `batch * heads + head` of a tensor, and which of them are bad and therefore
/// 0.
///
/// # Errors
/// `OutOfMemory`.
pub fn gather<T: Stored>(
    tensor: &TensorRef<'_, T>,
    batch_heads: impl ExactSizeIterator<Item = usize>,
    len: usize,
) -> Result<(Vec<f32>, Vec<bool>)> {
    let [_, heads, _, width] = tensor.shape();
    let (mut rows, mut bad) = (try_reserved(batch_heads.len() * len * width)?, try_reserved(batch_heads.len() * len)?);
    for batch_head in batch_heads {
        for row in 0..len {
            let first = rows.len();
            let at = tensor.position([batch_head / heads, batch_head % heads, row, 0]);
            let step = tensor.strides()[3];
            let element = |axis: usize| tensor.data()[at.wrapping_add_signed(axis as isize * step)];
            rows.extend((0..width).map(|axis| element(axis).widen().to_f64() as f32));
            let is_bad = rows[first..].iter().any(|x| !x.is_finite());
            bad.push(is_bad);
            if is_bad {
                rows[first..].fill(0.0);
            }
        }
    }
    Ok((rows, bad))
}

/// Numbers of the type that is computed in, as f32: those of a backend that takes no f64 are.
///
/// # Errors
/// `OutOfMemory`.
pub fn narrowed<C: Element>(numbers: &[C]) -> Result<Vec<f32>> {
    let mut narrow = try_reserved(numbers.len())?;
    narrow.extend(numbers.iter().map(|x| x.to_f64() as f32));
    Ok(narrow)
}

/// The exponent of the largest magnitude, or 0 where that is an ordinary one.
pub fn extreme_power<'a>(numbers: impl Iterator<Item = &'a f32>) -> i32 {
    let largest = numbers.fold(0.0f32, |most, x| most.max(x.abs()));
    if largest > 0.0 { power_of(largest) } else { 0 }
}

/// The power of two that values are divided by where their largest magnitude is this: the twin of `power_of` in
/// `shaders/tensor/prelude.wgsl`. It never falls where the magnitude grows.
fn power_of(largest: f32) -> i32 {
    match exponent_of(largest) {
        None => OF_ZEROS,
        Some(exponent) if exponent.abs() > EXTREME_BITS => exponent,
        Some(_) => 0,
    }
}

/// A number over a power of two that is no less than its own, and 0 so far below that a product with it could be denormal:
/// the twin of `over_power` in `shaders/tensor/prelude.wgsl`.
fn over_power(x: f32, power: i32) -> f32 {
    match exponent_of(x.abs()) {
        _ if power == 0 => x,
        Some(exponent) if exponent - power >= -125 => (f64::from(x) * power_of_two(-power)) as f32,
        _ => 0.0f32.copysign(x),
    }
}

/// The exponent of a magnitude, also of one below the normal numbers.
fn exponent_of(magnitude: f32) -> Option<i32> {
    (magnitude > 0.0).then(|| (f64::from(magnitude).to_bits() >> 52) as i32 - 1023)
}

/// 2^power, exact for every power that a number of f32 has.
pub fn power_of_two(power: i32) -> f64 {
    f64::exp2_int(f64::from(power))
}
