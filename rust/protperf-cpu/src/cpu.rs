//! Which instruction set computes, and what products are made of.

use crate::bf16::Unit;
use crate::dispatch::Isa;

/// The processor's cores, with one instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The instruction set.
    pub isa: Isa,
    /// Operands of products are rounded to bf16 and multiplied by this unit, with sums in f32; `None`: they are as they are.
    /// Tensors have to be computed in f32.
    pub bf16: Option<Unit>,
}

impl Cpu {
    /// An instruction set, with products in the type that is computed in.
    pub fn new(isa: Isa) -> Self {
        Cpu { isa, bf16: None }
    }

    /// The same with products of bf16 where this processor has a unit for them, and else without.
    pub fn with_bf16(isa: Isa) -> Self {
        Cpu { isa, bf16: Unit::of(isa) }
    }

    /// The same with products of bf16 where they are known to be faster: on AMX, whose tiles outweigh the packing of operands.
    pub fn with_fast_bf16(isa: Isa) -> Self {
        Cpu { isa, bf16: Unit::of(isa).filter(|&unit| unit == Unit::Amx) }
    }
}
