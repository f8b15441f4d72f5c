//! Tiles of pairs of bf16, and what an instruction set does with them: `docs/algorithm.md`, section 10.
//!
//! ```text
//! left tile   [row][pair]     16 rows of the left operand, 32 columns of it
//! right tile  [pair][column]  32 rows of the right operand in pairs, 16 columns of it
//! ```
//!
//! Both are 16 rows of 16 words, so a matrix that is used transposed takes the tile of the other side with its words
//! transposed.

/// Words of a row of a tile, rows of a tile, and columns of a tile of sums.
pub const COLS: usize = 16;
/// Terms of each sum that one product of tiles adds.
pub const DEPTH: usize = 32;

/// 16 rows of 16 pairs of bf16, the first of each pair in the low half of its word: one kB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Tile(pub [[u32; COLS]; COLS]);

impl Tile {
    /// A tile of zeros.
    pub const ZERO: Tile = Tile([[0; COLS]; COLS]);
}

/// Eight tile registers and what a processor does with them; which register is a constant, as in the instructions.
pub trait Tiles {
    /// Makes a register a tile of zeros.
    fn zero<const REGISTER: usize>(&mut self);
    /// Loads a register.
    fn load<const REGISTER: usize>(&mut self, from: &Tile);
    /// Makes a register the sums that lie in memory as 16 rows of 16, `row` elements apart.
    ///
    /// # Panics
    /// Where `from` is too short.
    fn load_sums<const REGISTER: usize>(&mut self, from: &[f32], row: usize);
    /// Adds the product of two registers to the sums in a third.
    fn multiply<const SUMS: usize, const LEFT: usize, const RIGHT: usize>(&mut self);
    /// Stores the sums of a register as 16 rows of 16, `row` elements apart.
    ///
    /// # Panics
    /// Where `to` is too short.
    fn store<const REGISTER: usize>(&self, to: &mut [f32], row: usize);
}

/// How numbers become the words of a tile.
///
/// # Safety
/// An implementation may assume in every method that the processor has its instruction set and that the rows can be read;
/// whoever calls a method guarantees both.
#[allow(clippy::missing_safety_doc)]
pub unsafe trait Rounding {
    /// 16 rows of 32 numbers, `step` apart: a left tile.
    unsafe fn along_rows(from: *const f32, step: usize, to: &mut Tile);
    /// 32 rows of 16 numbers, `step` apart: a right tile.
    unsafe fn across_rows(from: *const f32, step: usize, to: &mut Tile);
    /// Transposes the words of a tile.
    unsafe fn transpose(tile: &mut Tile);
}
