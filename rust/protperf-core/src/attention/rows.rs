//! From strided tensors to plain rows: a head segment is one query head of one batch entry in one segment.
//!
//! Rows that hold a number that is not finite are set to zero here and flagged, so that the forms never see one;
//! their callers write NaN where such a row was seen.

use super::{FavorShape, check_qkv, check_visibility};
use crate::element::{Element, Stored};
use crate::error::{Error, Result};
use crate::memory::{try_filled, try_reserved};
use crate::tensor::TensorRef;

/// What every form of attention takes, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a, T> {
    pub q: TensorRef<'a, T>,
    pub k: TensorRef<'a, T>,
    pub v: TensorRef<'a, T>,
    pub causal: bool,
    pub cu_seqlens: Option<&'a [i64]>,
    pub key_padding_mask: Option<&'a [bool]>,
}

/// Where a head segment lies in its tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub batch: usize,
    pub segment: usize,
    pub head: usize,
    pub kv_head: usize,
    pub q_start: usize,
    pub q_len: usize,
    pub k_start: usize,
    pub k_len: usize,
}

/// The rows of a head segment.
#[derive(Clone, Debug)]
pub(crate) struct SegmentRows {
    pub place: Place,
    pub causal: bool,
    /// `[L,D]`.
    pub queries: Vec<f64>,
    /// `[S,D]`.
    pub keys: Vec<f64>,
    /// `[S,E]`.
    pub values: Vec<f64>,
    /// Neither padding nor bad, `[S]`.
    pub keep: Vec<bool>,
    /// Padding, `[S]`.
    pub padding: Vec<bool>,
    /// Something that every row sees is not finite: the initial state, or the map's parameters.
    pub all_bad: bool,
    bad_query: Vec<bool>,
    first_bad_key: Option<usize>,
}

impl<'a, T: Stored> Inputs<'a, T> {
    /// The sizes, all checked against each other.
    ///
    /// # Errors
    /// As [`check_qkv`] and [`check_visibility`].
    pub fn validate(&self) -> Result<FavorShape> {
        let shape = check_qkv(&self.q, &self.k, &self.v, self.causal)?;
        check_visibility(&shape, self.cu_seqlens, self.key_padding_mask)?;
        Ok(shape)
    }

    /// Every head segment, in the order of batch, head and segment.
    pub fn places(&self, shape: &FavorShape) -> impl Iterator<Item = Place> + use<'a, T> {
        let (shape, borders) = (*shape, self.cu_seqlens);
        let segments = borders.map_or(1, |borders| borders.len() - 1);
        (0..shape.batch * shape.heads * segments).map(move |task| {
            let (batch_head, segment) = (task / segments, task % segments);
            let (batch, head) = (batch_head / shape.heads, batch_head % shape.heads);
            let kv_head = head / shape.group();
            let (q_len, k_len) = (shape.q_len, shape.kv_len);
            let place = Place { batch, segment, head, kv_head, q_start: 0, q_len, k_start: 0, k_len };
            let Some(borders) = borders else { return place };
            let (start, len) = (borders[segment] as usize, (borders[segment + 1] - borders[segment]) as usize);
            Place { q_start: start, q_len: len, k_start: start, k_len: len, ..place }
        })
    }

    /// The rows of a head segment; `should_stop` is called now and then.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Interrupted`].
    pub fn rows(&self, place: Place, should_stop: &dyn Fn() -> bool) -> Result<SegmentRows> {
        let Place { batch, head, kv_head, q_start, q_len, k_start, k_len, .. } = place;
        let mask = self.key_padding_mask;
        let is_padding = |j: usize| mask.is_some_and(|mask| mask[batch * self.k.shape()[2] + k_start + j]);
        let mut padding = try_reserved(k_len)?;
        padding.extend((0..k_len).map(is_padding));
        let (queries, bad_query) = gather(&self.q, [batch, head, q_start], q_len, should_stop)?;
        let (mut keys, bad_key) = gather(&self.k, [batch, kv_head, k_start], k_len, should_stop)?;
        let (mut values, bad_value) = gather(&self.v, [batch, kv_head, k_start], k_len, should_stop)?;
        let bad = |j: usize| bad_key[j] || bad_value[j];
        let mut keep = try_reserved(k_len)?;
        keep.extend((0..k_len).map(|j| !padding[j] && !bad(j)));
        let (d, e) = (self.k.shape()[3], self.v.shape()[3]);
        for j in (0..k_len).filter(|&j| !keep[j]) {
            keys[j * d..][..d].fill(0.0);
            values[j * e..][..e].fill(0.0);
        }
        let first_bad_key = (0..k_len).find(|&j| !padding[j] && bad(j));
        Ok(SegmentRows {
            place,
            causal: self.causal,
            queries,
            keys,
            values,
            keep,
            padding,
            all_bad: false,
            bad_query,
            first_bad_key,
        })
    }
}

impl SegmentRows {
    /// Whether the output of a query row is NaN.
    pub fn is_bad(&self, query: usize) -> bool {
        self.all_bad || self.bad_query[query] || self.first_bad_key.is_some_and(|key| !self.causal || key <= query)
    }

    /// Whether the state after all keys is NaN.
    pub fn is_state_bad(&self) -> bool {
        self.all_bad || self.first_bad_key.is_some()
    }

    /// Whether each row's gradient is NaN: something arrives, and it is not finite or meets something that is not.
    ///
    /// # Shapes
    /// grad `[L,E]`.
    pub fn bad_gradients(&self, grad: &[f64], value_dim: usize) -> Vec<bool> {
        let arrives = |i: usize| &grad[i * value_dim..][..value_dim];
        let is_bad = |i: usize| {
            arrives(i).iter().any(|&g| g != 0.0) && (self.is_bad(i) || arrives(i).iter().any(|g| !g.is_finite()))
        };
        (0..self.place.q_len).map(is_bad).collect()
    }

    /// Keys that a query may see, bad ones included.
    pub fn seen(&self, query: usize) -> impl Iterator<Item = usize> + '_ {
        self.not_padding(if self.causal { query + 1 } else { self.place.k_len })
    }

    /// The first `end` keys without padding, bad ones included.
    pub fn not_padding(&self, end: usize) -> impl Iterator<Item = usize> + '_ {
        (0..end).filter(|&key| !self.padding[key])
    }
}

/// Rows `[len, width]` from `[batch, head, start]`, and which of them are bad and therefore zero.
fn gather<T: Stored>(
    tensor: &TensorRef<'_, T>,
    at: [usize; 3],
    len: usize,
    should_stop: &dyn Fn() -> bool,
) -> Result<(Vec<f64>, Vec<bool>)> {
    let [batch, head, start] = at;
    let width = tensor.shape()[3];
    let (mut rows, mut bad) = (try_reserved(len.saturating_mul(width))?, try_reserved(len)?);
    for i in 0..len {
        if i.is_multiple_of(1024) && should_stop() {
            return Err(Error::Interrupted);
        }
        let first = rows.len();
        rows.extend((0..width).map(|j| tensor.get([batch, head, start + i, j]).widen().to_f64()));
        let row = &mut rows[first..];
        bad.push(row.iter().any(|x| !x.is_finite()));
        if bad[i] {
            row.fill(0.0);
        }
    }
    Ok((rows, bad))
}

/// The rows `[L,E]` of a gradient of the output that belong to a head segment, as they are.
pub(crate) fn gradient_rows<T: Stored>(grad: &TensorRef<'_, T>, place: &Place) -> Vec<f64> {
    let value_dim = grad.shape()[3];
    let get = |i: usize, j: usize| grad.get([place.batch, place.head, place.q_start + i, j]).widen().to_f64();
    (0..place.q_len).flat_map(|i| (0..value_dim).map(move |j| (i, j))).map(|(i, j)| get(i, j)).collect()
}

/// Checks the shape of the gradient of the output.
///
/// # Errors
/// [`Error::ShapeMismatch`].
pub(crate) fn check_grad<T: Copy>(grad: &TensorRef<'_, T>, shape: &FavorShape) -> Result<()> {
    if grad.shape() == shape.out() {
        return Ok(());
    }
    Err(Error::shape("grad", format!("has shape {:?} but the output has {:?}", grad.shape(), shape.out())))
}

/// Gradients of q, k and v in f64, contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct InputGradients {
    /// `[B,H,L,D]`.
    pub dq: Vec<f64>,
    /// `[B,Hk,S,D]`.
    pub dk: Vec<f64>,
    /// `[B,Hk,S,E]`.
    pub dv: Vec<f64>,
}

impl InputGradients {
    /// All zeros.
    pub(crate) fn zeros(shape: &FavorShape) -> Result<Self> {
        let s = shape;
        Ok(InputGradients {
            dq: try_filled(s.batch * s.heads * s.q_len * s.head_dim, 0.0)?,
            dk: try_filled(s.batch * s.kv_heads * s.kv_len * s.head_dim, 0.0)?,
            dv: try_filled(s.batch * s.kv_heads * s.kv_len * s.value_dim, 0.0)?,
        })
    }

    /// Adds the gradients of a head segment: `[L,D]`, `[S,D]`, `[S,E]`.
    pub(crate) fn add_segment(&mut self, shape: &FavorShape, place: &Place, [dq, dk, dv]: [&[f64]; 3]) {
        let q_row = (place.batch * shape.heads + place.head) * shape.q_len + place.q_start;
        let k_row = (place.batch * shape.kv_heads + place.kv_head) * shape.kv_len + place.k_start;
        let add = |to: &mut [f64], from: &[f64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        add(&mut self.dq[q_row * shape.head_dim..], dq);
        add(&mut self.dk[k_row * shape.head_dim..], dk);
        add(&mut self.dv[k_row * shape.value_dim..], dv);
    }
}

/// Writes NaN into the gradients `[L,D]`, `[S,D]`, `[S,E]` of a head segment: of each bad row, and of every key it
/// sees.
pub(crate) fn poison(rows: &SegmentRows, bad: &[bool], shape: &FavorShape, [dq, dk, dv]: [&mut [f64]; 3]) {
    for query in (0..bad.len()).filter(|&i| bad[i]) {
        dq[query * shape.head_dim..][..shape.head_dim].fill(f64::NAN);
        poison_keys(rows.seen(query), shape, [&mut *dk, &mut *dv]);
    }
}

/// Writes NaN into the gradients `[S,D]`, `[S,E]` of some keys.
pub(crate) fn poison_keys(keys: impl Iterator<Item = usize>, shape: &FavorShape, [dk, dv]: [&mut [f64]; 2]) {
    for key in keys {
        dk[key * shape.head_dim..][..shape.head_dim].fill(f64::NAN);
        dv[key * shape.value_dim..][..shape.value_dim].fill(f64::NAN);
    }
}
