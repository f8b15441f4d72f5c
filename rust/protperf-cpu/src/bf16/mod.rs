//! Products of f32 matrices whose operands are rounded to bf16, with sums in f32: the arithmetic of AMX tiles.
//! `docs/algorithm.md`, section 10.
//!
//! An operand is packed into tiles ([`Role::pack`]) and rounded on the way, to nearest, ties to even, denormals to zero.
//! The product ([`Unit::multiply`]) of a left tile `[16, 32]` and a right tile `[32, 16]` adds to a tile of sums, for
//! each element:
//!
//! ```text
//! even = sum of left[2p] right[2p],  odd = sum of left[2p+1] right[2p+1]     p = 0..16, in this order, each from 0
//! sum  = sum + (even + odd)                                                  each + rounded to f32, denormals to zero
//! ```
//!
//! A product of two bf16 is exact in f32. Tiles follow one another along the depth, so the order of a sum depends on the
//! shape alone. [`Unit::Emulated`] computes this in plain Rust, with the bits of the instructions.
//!
//! Source: Intel, Architecture Instruction Set Extensions Programming Reference, TDPBF16PS.

mod operand;
mod product;

pub use crate::simd::plain_tiles::{round, round_all};
pub use crate::simd::tile::{COLS, Tile};
pub use operand::{Matrix, Role, Term};
pub use product::{Session, Split, TileProduct, Unit};
