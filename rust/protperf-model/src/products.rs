//! In which arithmetic matrices are multiplied: that of the numbers, or with both operands rounded to bf16.
//!
//! Only products are rounded, those of attention only where the processor has AMX: weights, sums, the residual stream, norms
//! and exponents stay in f32. Where the processor has tiles they multiply; elsewhere the operands are rounded and the products
//! are those of f32, so that a run that was started on one machine goes on upon another, no faster than in f32 there.

use protperf_core::{Error, Result};
use protperf_cpu::bf16::Unit;
use protperf_cpu::ops::Ops;
use protperf_cpu::{Cpu, CpuElement, Isa};

/// What operands of products are rounded to; sums are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Not rounded.
    #[default]
    F32,
    /// 8 bits of mantissa, the range of f32.
    Bf16,
}

impl Precision {
    /// The names, the default first.
    pub const NAMES: [&str; 2] = ["f32", "bf16"];

    /// The precision of a name.
    ///
    /// # Errors
    /// `InvalidOption` where there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            _ => Err(Error::option("precision", format!("is {name:?}; choose one of {}", Self::NAMES.join(", ")))),
        }
    }
}

/// With which instructions a block is computed, and how precise its products are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// The instruction set.
    pub isa: Isa,
    /// What operands of products are rounded to.
    pub precision: Precision,
}

impl Arithmetic {
    /// The processor as attention is to be computed.
    pub fn cpu(self) -> Cpu {
        match self.precision {
            Precision::F32 => Cpu::new(self.isa),
            Precision::Bf16 => Cpu::with_fast_bf16(self.isa),
        }
    }
}

impl From<Isa> for Arithmetic {
    fn from(isa: Isa) -> Self {
        Arithmetic { isa, precision: Precision::F32 }
    }
}

/// What multiplies matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Products<T: CpuElement> {
    pub ops: &'static Ops<T>,
    pub form: Form,
}

/// The form of operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Full,
    /// Rounded to bf16, but stored and multiplied as f32.
    Rounded,
    /// Tiles of bf16.
    Tiles(Unit),
}

impl<T: CpuElement> Products<T> {
    /// # Errors
    /// `InvalidOption` for bf16 in f64.
    pub fn new(Arithmetic { isa, precision }: Arithmetic) -> Result<Self> {
        let form = match (precision, Unit::of(isa)) {
            (Precision::F32, _) => Form::Full,
            (Precision::Bf16, None) => Form::Rounded,
            (Precision::Bf16, Some(unit)) => Form::Tiles(unit),
        };
        if form != Form::Full && T::as_f32(&[]).is_none() {
            return Err(Error::option("precision", "is bf16, which rounds float32; tensors of float64 need f32"));
        }
        Ok(Products { ops: Ops::of(isa), form })
    }
}
