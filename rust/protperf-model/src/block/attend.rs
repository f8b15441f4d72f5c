//! Attention of a block: the one stage that looks across tokens.

use super::state::{LayerState, NewRows, continue_exact};
use crate::buffer::Buffer;
use crate::weights::{Attention, BlockShape};
use protperf_core::attention::exact::SoftmaxArgs;
use protperf_core::backend::Saved;
use protperf_core::{Execution, FavorArgs, FeatureMap, MapArgs, Omega, Result, TensorRef, try_copy_into, try_reserved};
use protperf_cpu::{
    Cpu, CpuElement, DecodingState, ExactSaved, OutRows, PreparedMap, RowGradients, RowOutputs, StepArgs,
};
use std::ops::Range;

/// How the heads of a block attend, with what that needs.
#[derive(Debug)]
pub(super) enum Attend<T: CpuElement> {
    Favor { cpu: Cpu, map: FeatureMap, num_features: usize, omega: Vec<f64>, prepared: PreparedMap<T> },
    Exact { cpu: Cpu },
}

/// Queries, keys and values of some tokens, `[N, 3HD padded]`.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, T> {
    pub shape: &'a BlockShape,
    pub qkv: &'a [T],
}

/// Who sees whom, and how it is computed.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub borders: &'a [i64],
    pub causal: bool,
    pub run: &'a Execution<'a>,
}

impl Scope<'_> {
    /// Whether no sequence has more than one new token.
    fn is_step(&self) -> bool {
        self.borders.windows(2).all(|ends| ends[1] - ends[0] <= 1)
    }

    /// Runs of sequences that follow one another and have one new token each.
    fn runs_of_steps(&self) -> impl Iterator<Item = Range<usize>> {
        let has_token = |&sequence: &usize| self.borders[sequence + 1] > self.borders[sequence];
        let (count, mut next) = (self.borders.len().saturating_sub(1), 0);
        std::iter::from_fn(move || {
            let start = (next..count).find(has_token)?;
            next = (start..count).find(|sequence| !has_token(sequence)).unwrap_or(count);
            Some(start..next)
        })
    }
}

impl<'a, T: CpuElement> Heads<'a, T> {
    fn tokens(&self) -> usize {
        self.qkv.len() / self.shape.qkv_row()
    }

    /// `[1,H,N,D]`.
    fn shape_of_rows(&self) -> [usize; 4] {
        [1, self.shape.num_heads, self.tokens(), self.shape.head_dim]
    }

    /// Queries (0), keys (1) or values (2).
    fn side(&self, side: usize) -> Result<TensorRef<'a, T>> {
        let strides = [0, self.shape.head_dim as isize, self.shape.qkv_row() as isize, 1];
        TensorRef::new("qkv", self.qkv, side * self.shape.inner(), self.shape_of_rows(), strides)
    }

    fn softmax_args(&self, scope: &Scope<'a>) -> Result<SoftmaxArgs<'a, T>> {
        let [q, k, v] = [self.side(0)?, self.side(1)?, self.side(2)?];
        Ok(SoftmaxArgs { q, k, v, causal: scope.causal, cu_seqlens: Some(scope.borders), key_padding_mask: None })
    }
}

/// A call of linear attention: on what, with what, packed how.
type Call<'a, T> = (Cpu, FavorArgs<'a, T>, &'a PreparedMap<T>);

impl<T: CpuElement> Attend<T> {
    pub fn new(cpu: Cpu, shape: &BlockShape, attention: Attention, omega: Option<&[T]>) -> Result<Self> {
        let Attention::Favor { map, num_features } = attention else { return Ok(Attend::Exact { cpu }) };
        let mut widened = try_reserved(shape.inner() * num_features)?;
        widened.extend(omega.unwrap_or_default().iter().map(|w| w.to_f64()));
        let args = map_args(map, num_features, shape, &widened);
        let prepared = cpu.prepare(&args, shape.num_heads, shape.head_dim)?;
        Ok(Attend::Favor { cpu, map, num_features, omega: widened, prepared })
    }

    fn favor_call<'a>(&'a self, heads: &Heads<'a, T>, scope: &Scope<'a>) -> Result<Option<Call<'a, T>>> {
        let Attend::Favor { cpu, map, num_features, omega, prepared } = self else { return Ok(None) };
        let [q, k, v] = [heads.side(0)?, heads.side(1)?, heads.side(2)?];
        let map = map_args(*map, *num_features, heads.shape, omega);
        let args =
            FavorArgs { q, k, v, map, causal: scope.causal, cu_seqlens: Some(scope.borders), key_padding_mask: None };
        Ok(Some((*cpu, args, prepared)))
    }

    /// Fills `attended` `[N,HD]` and, where a backward pass follows, `denominators` `[H,N,2]`; reads on from a state and
    /// updates it.
    pub fn forward<'a>(
        &'a self,
        heads: &Heads<'a, T>,
        scope: &Scope<'a>,
        state: Option<&mut LayerState<T>>,
        attended: &mut [T],
        denominators: Option<&mut [T]>,
    ) -> Result<()> {
        let shape = heads.shape_of_rows();
        match (self.favor_call(heads, scope)?, state) {
            (Some((cpu, args, prepared)), None) => {
                let out = OutRows::token_major("attended", attended, shape)?;
                let outputs = RowOutputs { state_in: None, out, den: denominators, state_out: None };
                cpu.forward_rows(&args, Some(prepared), outputs, scope.run)
            }
            (Some((_, _, prepared)), Some(state)) if state.has_read() && scope.is_step() => {
                step(prepared, heads, scope, state.for_tokens(prepared, heads.shape.head_dim)?, attended)
            }
            (Some((cpu, args, prepared)), Some(state)) => {
                let state = state.for_pieces()?;
                let mut after = Buffer::new(args.validate()?.state().iter().product())?;
                let state_in = (!state.is_empty()).then_some(&**state);
                let out = OutRows::token_major("attended", attended, shape)?;
                let outputs = RowOutputs { state_in, out, den: denominators, state_out: Some(&mut after) };
                cpu.forward_rows(&args, Some(prepared), outputs, scope.run)?;
                try_copy_into(&after, state)
            }
            (None, None) => {
                let out = OutRows::token_major("attended", attended, shape)?;
                self.exact().exact_forward(&heads.softmax_args(scope)?, out, denominators, scope.run)
            }
            (None, Some(state)) => {
                let new = NewRows { qkv: heads.qkv, shape: heads.shape, borders: scope.borders };
                continue_exact(self.exact(), &new, state.of_exact()?, attended, scope.run)
            }
        }
    }

    /// Fills gradients `[N,3HD]` of queries, keys and values, where `grad` `[N, HD]` with rows `grad_row` apart arrived
    /// at the outputs.
    pub fn backward<'a>(
        &'a self,
        heads: &Heads<'a, T>,
        scope: &Scope<'a>,
        (attended, denominators): (&'a [T], &'a [T]),
        (grad, grad_row): (&'a [T], usize),
        gradients: &mut [T],
    ) -> Result<()> {
        let (shape, tokens) = (heads.shape_of_rows(), heads.tokens());
        let [_, h, _, d] = shape;
        let rows = |name, data, row: usize| TensorRef::new(name, data, 0, shape, [0, d as isize, row as isize, 1]);
        let (grad, out) = (rows("grad", grad, grad_row)?, rows("attended", attended, h * d)?);
        match self.favor_call(heads, scope)? {
            Some((cpu, args, prepared)) => {
                let saved = Saved { out, den: denominators, grad, state_in: None, final_state: None };
                let [dq, dk, dv] = OutRows::parts_of_tokens("gradients", gradients, [1, tokens], [[h, d]; 3])?;
                let gradients = RowGradients { dq, dk, dv, map: None, state_in: None };
                cpu.backward_rows(&args, Some(prepared), &saved, gradients, scope.run)
            }
            None => {
                let saved = ExactSaved { out, den: denominators, grad };
                let gradients = OutRows::parts_of_tokens("gradients", gradients, [1, tokens], [[h, d]; 3])?;
                self.exact().exact_backward(&heads.softmax_args(scope)?, &saved, gradients, scope.run)
            }
        }
    }

    /// The processor, for exact attention.
    fn exact(&self) -> Cpu {
        match self {
            Attend::Favor { cpu, .. } | Attend::Exact { cpu } => *cpu,
        }
    }
}

/// At most one token of every sequence: the states are read and written once, where they lie.
fn step<T: CpuElement>(
    prepared: &PreparedMap<T>,
    heads: &Heads<'_, T>,
    scope: &Scope<'_>,
    state: &mut DecodingState<T>,
    attended: &mut [T],
) -> Result<()> {
    let (h, d, inner, row) = (heads.shape.num_heads, heads.shape.head_dim, heads.shape.inner(), heads.shape.qkv_row());
    for sequences in scope.runs_of_steps() {
        let (first, count) = (scope.borders[sequences.start] as usize, sequences.len());
        let mut sides = Buffer::new(3 * count * inner)?;
        for (side, to) in sides.chunks_exact_mut(count * inner).enumerate() {
            for (row, to) in heads.qkv[first * row..].chunks_exact(row).zip(to.chunks_exact_mut(inner)) {
                to.copy_from_slice(&row[side * inner..][..inner]);
            }
        }
        let (q, rest) = sides.split_at(count * inner);
        let (k, v) = rest.split_at(count * inner);
        let args =
            StepArgs { first: sequences.start, num_sequences: count, heads: h, kv_heads: h, value_dim: d, q, k, v };
        Cpu::step(prepared, &args, state, &mut attended[first * inner..][..count * inner], scope.run)?;
    }
    Ok(())
}

fn map_args<'a>(map: FeatureMap, num_features: usize, shape: &BlockShape, omega: &'a [f64]) -> MapArgs<'a> {
    let omega = Omega { data: omega, num_heads: Some(shape.num_heads), num_features, head_dim: shape.head_dim };
    MapArgs::Named { map, omega: Some(omega), kernel_epsilon: map.default_epsilon() }
}
