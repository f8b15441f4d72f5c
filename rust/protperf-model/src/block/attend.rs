//! Attention of a block: the one stage that looks across tokens.

use crate::buffer::Buffer;
use crate::weights::{Attention, BlockShape};
use protperf_core::attention::exact::{SoftmaxArgs, softmax_attention, softmax_attention_backward};
use protperf_core::backend::{Backend, Gradients, Outputs, Saved};
use protperf_core::{Error, Execution, FavorArgs, FeatureMap, MapArgs, Omega, Result, TensorRef, try_reserved};
use protperf_cpu::{Cpu, CpuElement, Isa};
use std::sync::atomic::Ordering;

/// What a layer carries from one piece of its sequences to the next.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerState<T> {
    /// States of every sequence and head `[num_sequences,H,F,2+D]`; empty before anything was read.
    Favor(Vec<T>),
    /// Keys and values `[positions, HD]` of every sequence.
    Exact(Vec<KeysAndValues<T>>),
}

/// All that exact attention has to look at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeysAndValues<T> {
    /// `[positions, HD]`.
    pub keys: Vec<T>,
    /// `[positions, HD]`.
    pub values: Vec<T>,
}

/// How the heads of a block attend, with what that needs.
#[derive(Debug)]
pub(super) enum Attend {
    Favor { isa: Isa, map: FeatureMap, num_features: usize, omega: Vec<f64> },
    Exact,
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

/// Gradients of queries, keys and values, `[H,N,D]` each.
pub(super) struct HeadGradients<T: CpuElement> {
    pub dq: Buffer<T>,
    pub dk: Buffer<T>,
    pub dv: Buffer<T>,
}

impl<'a, T: CpuElement> Heads<'a, T> {
    fn tokens(&self) -> usize {
        self.qkv.len() / self.shape.qkv_row()
    }

    /// Queries (0), keys (1) or values (2) as `[1,H,N,D]`.
    fn side(&self, side: usize) -> Result<TensorRef<'a, T>> {
        let BlockShape { num_heads, head_dim, .. } = *self.shape;
        let shape = [1, num_heads, self.tokens(), head_dim];
        let strides = [0, head_dim as isize, self.shape.qkv_row() as isize, 1];
        TensorRef::new("qkv", self.qkv, side * self.shape.inner(), shape, strides)
    }

    fn softmax_args(&self, scope: &Scope<'a>) -> Result<SoftmaxArgs<'a, T>> {
        let [q, k, v] = [self.side(0)?, self.side(1)?, self.side(2)?];
        Ok(SoftmaxArgs { q, k, v, causal: scope.causal, cu_seqlens: Some(scope.borders), key_padding_mask: None })
    }
}

impl Attend {
    pub fn new<T: CpuElement>(isa: Isa, shape: &BlockShape, attention: Attention, omega: Option<&[T]>) -> Result<Self> {
        let Attention::Favor { map, num_features } = attention else { return Ok(Attend::Exact) };
        let mut widened = try_reserved(shape.inner() * num_features)?;
        widened.extend(omega.unwrap_or_default().iter().map(|w| w.to_f64()));
        Ok(Attend::Favor { isa, map, num_features, omega: widened })
    }

    fn favor_args<'a, T: CpuElement>(
        &'a self,
        heads: &Heads<'a, T>,
        scope: &Scope<'a>,
    ) -> Result<Option<(Cpu, FavorArgs<'a, T>)>> {
        let Attend::Favor { isa, map, num_features, omega } = self else { return Ok(None) };
        let omega = Omega {
            data: omega,
            num_heads: Some(heads.shape.num_heads),
            num_features: *num_features,
            head_dim: heads.shape.head_dim,
        };
        let map = MapArgs::Named { map: *map, omega: Some(omega), kernel_epsilon: map.default_epsilon() };
        let [q, k, v] = [heads.side(0)?, heads.side(1)?, heads.side(2)?];
        let args =
            FavorArgs { q, k, v, map, causal: scope.causal, cu_seqlens: Some(scope.borders), key_padding_mask: None };
        Ok(Some((Cpu { isa: *isa }, args)))
    }

    /// Fills `attended` `[H,N,D]` and `denominators` `[H,N,2]`; reads on from a state and updates it.
    pub fn forward<'a, T: CpuElement>(
        &'a self,
        heads: &Heads<'a, T>,
        scope: &Scope<'a>,
        state: Option<&mut LayerState<T>>,
        attended: &mut [T],
        denominators: &mut [T],
    ) -> Result<()> {
        match (self.favor_args(heads, scope)?, state) {
            (Some((cpu, args)), None) => {
                let outputs = Outputs { state_in: None, out: attended, den: denominators, state_out: None };
                cpu.forward(&args, outputs, scope.run)
            }
            (Some((cpu, args)), Some(LayerState::Favor(state))) => {
                let mut after = Buffer::new(args.validate()?.state().iter().product())?;
                let state_in = (!state.is_empty()).then_some(&**state);
                let outputs = Outputs { state_in, out: attended, den: denominators, state_out: Some(&mut after) };
                cpu.forward(&args, outputs, scope.run)?;
                state.clear();
                state.try_reserve_exact(after.len()).map_err(|_| Error::OutOfMemory { bytes: size_of_val(&*after) })?;
                state.extend_from_slice(&after);
                Ok(())
            }
            (None, None) => {
                let stop = || scope.run.cancel.load(Ordering::Relaxed);
                softmax_attention(&heads.softmax_args(scope)?, attended, &stop)
            }
            (None, Some(LayerState::Exact(_))) => Err(Error::option("state", "of exact attention comes later")),
            _ => Err(Error::option("state", "is one of another kind of attention")),
        }
    }

    /// Gradients, where `grad` `[N, HD]` with rows `grad_row` apart arrived at the outputs.
    pub fn backward<'a, T: CpuElement>(
        &'a self,
        heads: &Heads<'a, T>,
        scope: &Scope<'a>,
        (attended, denominators): (&'a [T], &'a [T]),
        (grad, grad_row): (&'a [T], usize),
    ) -> Result<HeadGradients<T>> {
        let BlockShape { num_heads, head_dim, .. } = *heads.shape;
        let shape = [1, num_heads, heads.tokens(), head_dim];
        let grad = TensorRef::new("grad", grad, 0, shape, [0, head_dim as isize, grad_row as isize, 1])?;
        let len = shape.iter().product();
        let (mut dq, mut dk, mut dv) = (Buffer::new(len)?, Buffer::new(len)?, Buffer::new(len)?);
        match self.favor_args(heads, scope)? {
            Some((cpu, args)) => {
                let out = TensorRef::contiguous("attended", attended, shape)?;
                let saved = Saved { out, den: denominators, grad, state_in: None, final_state: None };
                let gradients = Gradients { dq: &mut dq, dk: &mut dk, dv: &mut dv, map: None, state_in: None };
                cpu.backward(&args, &saved, gradients, scope.run)?;
            }
            None => {
                let stop = || scope.run.cancel.load(Ordering::Relaxed);
                let found = softmax_attention_backward(&heads.softmax_args(scope)?, &grad, &stop)?;
                for (to, from) in [(&mut dq, found.dq), (&mut dk, found.dk), (&mut dv, found.dv)] {
                    to.iter_mut().zip(from).for_each(|(to, x)| *to = T::from_f64(x));
                }
            }
        }
        Ok(HeadGradients { dq, dk, dv })
    }
}
