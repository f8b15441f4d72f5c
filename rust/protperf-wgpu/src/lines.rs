//! The rows of some lines of a call, contiguous and finite. A line is a batch entry and a query head.
//!
//! Keys and values are repeated for every query head that shares them, so the shaders know nothing of heads. Rows that
//! hold a number that is not finite are set to zero here and remembered; see [`Lines::is_bad`].

use crate::maps::Map;
use protperf_core::state::KV_STATE;
use protperf_core::{Element, FavorArgs, FavorShape, Result, Stored, TensorRef, try_filled, try_reserved};
use std::ops::Range;

/// The shift of a row that makes no features: the twin of `LEFT_OUT` in `shaders/project.wgsl`.
pub const LEFT_OUT: i32 = -i32::MAX;
/// Values are divided by a power of two where the largest is beyond these bits, so that their sums are finite.
const EXTREME_BITS: i32 = 60;

/// One call, checked.
pub struct Call<'a, T> {
    pub args: &'a FavorArgs<'a, T>,
    pub shape: FavorShape,
    pub map: Map,
    /// Rows of queries, and of keys, of each segment.
    pub segments: [Vec<Range<usize>>; 2],
    pub state_in: Option<&'a [f32]>,
}

/// The rows of some lines.
pub struct Lines {
    pub range: Range<usize>,
    /// `[lines,L,D]`.
    pub queries: Vec<f32>,
    /// `[lines,S,D]`.
    pub keys: Vec<f32>,
    /// `[1, v]` over the power of two of its line, `[lines,S,E+1]`.
    pub values: Vec<f32>,
    /// Powers of two that values are divided by, `[lines]`.
    pub value_powers: Vec<i32>,
    /// 0, or [`LEFT_OUT`] where a key is padding or bad, `[lines,S]`.
    pub key_shifts: Vec<i32>,
    /// States before the first key `[lines,segments,F,2+E]`.
    pub first_states: Vec<f32>,
    bad_queries: Vec<bool>,
    /// Of each line and segment: the first key that is not finite, as a row of the line.
    first_bad_keys: Vec<Option<usize>>,
    /// Of each line and segment: every row sees something that is not finite.
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

    /// The set of parameters that a line uses.
    pub fn set_of(&self, line: usize) -> usize {
        self.args.map.set_of(line % self.shape.heads)
    }

    /// The key head of a line, counted over all batch entries.
    pub fn key_line(&self, line: usize) -> usize {
        let s = &self.shape;
        line / s.heads * s.kv_heads + line % s.heads / s.group()
    }

    /// Where the state of a line's segment lies among all states as callers hold them.
    pub fn state_range(&self, line: usize, segment: usize) -> Range<usize> {
        let [_, heads, features, width] = self.shape.state();
        let state = (line / heads * self.shape.num_segments + segment) * heads + line % heads;
        state * features * width..(state + 1) * features * width
    }

    /// Whether a key of a line is padding.
    pub fn is_padding(&self, line: usize, key: usize) -> bool {
        self.args.key_padding_mask.is_some_and(|mask| mask[line / self.shape.heads * self.shape.kv_len + key])
    }

    /// The rows of some lines.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn lines(&self, range: Range<usize>) -> Result<Lines> {
        let s = &self.shape;
        let (queries, bad_queries) = gather(&self.args.q, range.clone(), s.q_len)?;
        let key_lines = || range.clone().map(|line| self.key_line(line));
        let (mut keys, mut bad_keys) = gather(&self.args.k, key_lines(), s.kv_len)?;
        let (values, bad_values) = gather(&self.args.v, key_lines(), s.kv_len)?;
        bad_keys.iter_mut().zip(bad_values).for_each(|(bad, of_value)| *bad |= of_value);
        let mut lines = Lines {
            queries,
            values: try_filled(range.len() * s.kv_len * self.width(), 0.0)?,
            value_powers: try_filled(range.len(), 0)?,
            key_shifts: try_filled(range.len() * s.kv_len, 0)?,
            first_states: try_reserved(0)?,
            bad_queries,
            first_bad_keys: Vec::new(),
            all_bad: Vec::new(),
            keys: Vec::new(),
            range: range.clone(),
        };
        for (at, line) in range.clone().enumerate() {
            let rows = at * s.kv_len..(at + 1) * s.kv_len;
            for row in rows.clone() {
                if bad_keys[row] || self.is_padding(line, row - rows.start) {
                    lines.key_shifts[row] = LEFT_OUT;
                    keys[row * s.head_dim..][..s.head_dim].fill(0.0);
                }
            }
            for segment in &self.segments[1] {
                let is_bad = |&key: &usize| bad_keys[rows.start + key] && !self.is_padding(line, key);
                lines.first_bad_keys.push(segment.clone().find(is_bad));
            }
        }
        lines.keys = keys;
        self.first_states(&mut lines)?;
        self.scale_values(&mut lines, &values);
        Ok(lines)
    }

    /// States before the first keys: empty ones where none are given, or where one is not finite.
    fn first_states(&self, lines: &mut Lines) -> Result<()> {
        let row = KV_STATE + self.shape.value_dim;
        let num_segments = self.segments[0].len();
        let size = self.shape.feature_dim * row;
        lines.first_states = try_filled(lines.range.len() * num_segments * size, 0.0)?;
        for (at, line) in lines.range.clone().enumerate() {
            for segment in 0..num_segments {
                let to = &mut lines.first_states[(at * num_segments + segment) * size..][..size];
                let given = self.state_in.map(|all| &all[self.state_range(line, segment)]);
                let is_finite = given.is_none_or(|state| state.iter().all(|x| x.is_finite()));
                match given.filter(|_| is_finite) {
                    Some(state) => to.copy_from_slice(state),
                    None => protperf_core::state::fill_empty(to, self.shape.value_dim),
                }
                lines.all_bad.push(!is_finite || self.map.is_bad[self.set_of(line)]);
            }
        }
        Ok(())
    }

    /// Divides values, and those in first states, by the power of two of their line; rows that are left out stay zero.
    fn scale_values(&self, lines: &mut Lines, values: &[f32]) {
        let (e, width, len) = (self.shape.value_dim, self.width(), self.shape.kv_len);
        let size = self.segments[0].len() * self.shape.feature_dim * (1 + width);
        for at in 0..lines.range.len() {
            let shifts = &lines.key_shifts[at * len..][..len];
            let own = (0..len).filter(|&key| shifts[key] != LEFT_OUT).map(|key| &values[(at * len + key) * e..][..e]);
            let states = &mut lines.first_states[at * size..][..size];
            let seen = own.clone().flatten().chain(states.chunks_exact(1 + width).flat_map(|row| &row[KV_STATE..]));
            let power = extreme_power(seen);
            lines.value_powers[at] = power;
            let by = power_of_two(-power);
            for key in (0..len).filter(|&key| shifts[key] != LEFT_OUT) {
                let row = at * len + key;
                let to = &mut lines.values[row * width..][..width];
                to[0] = 1.0;
                to[1..].iter_mut().zip(&values[row * e..]).for_each(|(to, v)| *to = (f64::from(*v) * by) as f32);
            }
            if power != 0 {
                let sums = states.chunks_exact_mut(1 + width).flat_map(|row| &mut row[KV_STATE..]);
                sums.for_each(|sum| *sum = (f64::from(*sum) * by) as f32);
            }
        }
    }
}

impl Lines {
    /// Whether a query saw something that is not finite, or is itself not finite; `query` is a row of the line.
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

/// Rows `[lines,len,width]` of the lines `batch * heads + head` of a tensor, and which of them are bad and therefore 0.
///
/// # Errors
/// `OutOfMemory`.
pub fn gather<T: Stored>(
    tensor: &TensorRef<'_, T>,
    lines: impl ExactSizeIterator<Item = usize>,
    len: usize,
) -> Result<(Vec<f32>, Vec<bool>)> {
    let [_, heads, _, width] = tensor.shape();
    let (mut rows, mut bad) = (try_reserved(lines.len() * len * width)?, try_reserved(lines.len() * len)?);
    for line in lines {
        for row in 0..len {
            let first = rows.len();
            let at = tensor.position([line / heads, line % heads, row, 0]);
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
    let power = if largest > 0.0 { f64::from(largest).log2().floor() as i32 } else { 0 };
    if power.abs() > EXTREME_BITS { power } else { 0 }
}

/// 2^power, exact for every power that a number of f32 has.
pub fn power_of_two(power: i32) -> f64 {
    f64::exp2_int(f64::from(power))
}
