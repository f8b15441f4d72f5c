//! Which instruction set computes, and what multiplies operands that are rounded to bf16.

use crate::bf16::Unit;
use crate::dispatch::Isa;

/// An instruction set, and a unit for products of bf16 where operands are to be rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instructions {
    pub isa: Isa,
    pub bf16: Option<Unit>,
}
