//! The product of two packed operands, in blocks of two by two tiles of sums: each tile that is loaded is used twice.
//! `docs/algorithm.md`, section 10.

use crate::dispatch::Isa;
use crate::ops::{Mode, Triangle};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::simd::amx;
#[cfg(target_arch = "x86_64")]
use crate::simd::avx512bf16;
use crate::simd::plain_tiles::Emulated;
use crate::simd::tile::{COLS, DEPTH, Tile, Tiles};
use std::cell::RefCell;

/// What multiplies tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The AMX instructions.
    Amx,
    /// `vdpbf16ps` of AVX-512, whose sums have another order: one chain, the second of each pair first.
    Dot,
    /// Plain Rust with the same bits, hundreds of times slower: for tests.
    Emulated,
}

impl Unit {
    /// The unit that this processor has; `None` without one, and where `isa` forbids instructions of its age.
    pub fn of(isa: Isa) -> Option<Unit> {
        match isa {
            Isa::Avx512 if has_amx() => Some(Unit::Amx),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if avx512bf16::is_fast() => Some(Unit::Dot),
            _ => None,
        }
    }

    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Amx => "amx",
            Unit::Dot => "avx512_bf16",
            Unit::Emulated => "emulated",
        }
    }

    /// Every unit that runs here.
    pub fn available() -> Vec<Unit> {
        let all = [(Unit::Emulated, true), (Unit::Dot, has_dot()), (Unit::Amx, has_amx())];
        all.into_iter().filter(|&(_, runs)| runs).map(|(unit, _)| unit).collect()
    }

    /// Computes `p` into c, whose rows are `c_row` apart.
    ///
    /// # Panics
    /// Where a slice is too short for the sizes, this processor lacks the unit, or this thread has a [`Session`].
    pub fn multiply(self, p: &TileProduct<'_>, c: &mut [f32], c_row: usize) {
        self.start().multiply(p, c, c_row);
    }

    /// Takes the unit into use on this thread.
    ///
    /// # Panics
    /// Where this processor lacks the unit, or this thread has it in use.
    pub fn start(self) -> Session {
        match self {
            Unit::Emulated => Session::Emulated,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: this processor has AMX. A thread that has it in use is refused there.
            Unit::Amx if has_amx() => Session::Amx(RefCell::new(unsafe { amx::Amx::start() })),
            #[cfg(target_arch = "x86_64")]
            Unit::Dot if has_dot() => Session::Dot,
            Unit::Amx | Unit::Dot => panic!("this processor has no {}", self.name()),
        }
    }
}

/// A unit that this thread has in use.
#[derive(Debug)]
pub enum Session {
    /// The tile registers.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(RefCell<amx::Amx>),
    /// Ordinary registers.
    #[cfg(target_arch = "x86_64")]
    Dot,
    /// Registers in memory, made for each product.
    Emulated,
}

impl Session {
    /// As [`Unit::multiply`].
    ///
    /// # Panics
    /// Where a slice is too short for the sizes.
    pub fn multiply(&self, p: &TileProduct<'_>, c: &mut [f32], c_row: usize) {
        p.check(c.len(), c_row);
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Session::Amx(unit) => p.run(&mut *unit.borrow_mut(), c, c_row),
            #[cfg(target_arch = "x86_64")]
            Session::Dot => p.run_dot(c, c_row),
            Session::Emulated => p.run(&mut Emulated::zeroed(), c, c_row),
        }
    }
}

fn has_amx() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return amx::is_available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

fn has_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    return avx512bf16::is_available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `C [rows, cols] (op)= A B` of packed operands.
#[derive(Clone, Copy, Debug)]
pub struct TileProduct<'a> {
    /// A as a left operand.
    pub left: &'a [Tile],
    /// B as a right operand.
    pub right: &'a [Tile],
    /// Rows of A and C.
    pub rows: usize,
    /// Columns of B and C: a multiple of 16.
    pub cols: usize,
    /// Columns of A and rows of B.
    pub depth: usize,
    /// Whether the sums start from 0, or from C; to add a sum that started from 0 is not among the forms of tiles.
    pub mode: Mode,
    /// Which triangle is computed, up to the end of a block of 32 rows.
    pub triangle: Triangle,
    /// Which operands are split.
    pub split: Split,
    /// Tiles behind those along the depth, on the left and on the right. The products of those on the left and of as many on the
    /// right are added.
    pub tails: [usize; 2],
}

/// Which operands are two numbers of bf16, the second of which is what rounding left of the first: their tiles follow those of
/// the first. The product of both low terms is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// None.
    None,
    /// The right one; numbers on the left are bf16 already.
    Right,
    /// Both.
    Both,
}

impl Split {
    /// Terms of the left and of the right operand.
    pub fn terms(self) -> [usize; 2] {
        match self {
            Split::None => [1, 1],
            Split::Right => [1, 2],
            Split::Both => [2, 2],
        }
    }
}

impl TileProduct<'_> {
    /// Panics unless every element that will be touched lies inside its slice.
    fn check(&self, c_len: usize, c_row: usize) {
        let [left, right] = self.steps();
        assert!(self.cols.is_multiple_of(COLS) && self.cols <= c_row);
        assert!(self.left.len() >= self.rows.div_ceil(COLS) * left, "A is too small");
        assert!(self.right.len() >= self.cols / COLS * right, "B is too small");
        assert!(self.rows == 0 || (self.rows - 1) * c_row + self.cols <= c_len, "C is too small");
    }

    /// Tiles of the left operand from 16 rows to the next, and of the right one from 16 columns to the next.
    fn steps(&self) -> [usize; 2] {
        let [left, right] = self.split.terms().map(|terms| terms * self.depth.div_ceil(DEPTH));
        [left + self.tails[0], right + self.tails[1]]
    }

    /// Whether a block of 32 rows from `row` on has a column `col`.
    fn has(&self, row: usize, col: usize) -> bool {
        self.triangle != Triangle::LowerColumns || col < row + 2 * COLS
    }

    /// Tiles along the depth that a block of 32 rows from `row` on reads: where A is lower triangular, the rest are zeros.
    fn depth_of(&self, row: usize) -> usize {
        let depth = if self.triangle == Triangle::LowerDepth { self.depth.min(row + 2 * COLS) } else { self.depth };
        depth.div_ceil(DEPTH)
    }

    fn run<U: Tiles>(&self, unit: &mut U, c: &mut [f32], c_row: usize) {
        let [left_step, right_step] = self.steps();
        for col in (0..self.cols).step_by(2 * COLS) {
            let right = &self.right[col / COLS * right_step..];
            for row in (0..self.rows).step_by(2 * COLS).filter(|&row| self.has(row, col)) {
                let block = TileBlock {
                    of: self,
                    left: &self.left[row / COLS * left_step..],
                    right,
                    row,
                    c: &mut c[row * c_row + col..],
                    c_row,
                };
                match (self.rows - row > COLS, self.cols - col > COLS) {
                    (true, true) => block.run::<U, true, true>(unit),
                    (true, false) => block.run::<U, true, false>(unit),
                    (false, true) => block.run::<U, false, true>(unit),
                    (false, false) => block.run::<U, false, false>(unit),
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl TileProduct<'_> {
    fn run_dot(&self, c: &mut [f32], c_row: usize) {
        for col in (0..self.cols).step_by(2 * COLS) {
            for row in (0..self.rows).step_by(COLS).filter(|row| self.has(row & !COLS, col)) {
                let c = &mut c[row * c_row + col..];
                if self.cols - col > COLS {
                    self.dot::<2>([row, col], c, c_row);
                } else {
                    self.dot::<1>([row, col], c, c_row);
                }
            }
        }
    }

    /// Up to 16 rows and N tiles of columns of C, of which `c` begins with the first.
    fn dot<const N: usize>(&self, [row, col]: [usize; 2], c: &mut [f32], c_row: usize) {
        let ([left_step, right_step], low, depth) =
            (self.steps(), self.depth.div_ceil(DEPTH), self.depth_of(row & !COLS));
        let left = &self.left[row / COLS * left_step..][..left_step];
        let right: [_; N] = std::array::from_fn(|n| &self.right[(col / COLS + n) * right_step..][..right_step]);
        let mut sums = [[[0.0; COLS]; N]; COLS];
        if self.mode != Mode::Store {
            for (sums, from) in sums.iter_mut().zip(c.chunks(c_row)).take(self.rows - row) {
                sums.as_flattened_mut().copy_from_slice(&from[..N * COLS]);
            }
        }
        let mut add = |left: &[Tile], right: [&[Tile]; N]| {
            // SAFETY: `Unit::start` has asked for the instructions.
            unsafe { avx512bf16::product::<N>(left, right, &mut sums) };
        };
        add(&left[..depth], right.map(|tiles| &tiles[..depth]));
        if self.split != Split::None {
            add(&left[..depth], right.map(|tiles| &tiles[low..][..depth]));
        }
        if self.split == Split::Both {
            add(&left[low..][..depth], right.map(|tiles| &tiles[..depth]));
        }
        let [tail, of_right] = self.tails;
        add(&left[left_step - tail..], right.map(|tiles| &tiles[right_step - of_right..][..tail]));
        for (sums, to) in sums.iter().zip(c.chunks_mut(c_row)).take(self.rows - row) {
            to[..N * COLS].copy_from_slice(sums.as_flattened());
        }
    }
}

/// Up to two by two tiles of sums, in registers 0 to 3; 4 and 5 hold tiles of the left operand, 6 and 7 of the right.
struct TileBlock<'a> {
    of: &'a TileProduct<'a>,
    /// Tiles of both operands from those of the block on.
    left: &'a [Tile],
    right: &'a [Tile],
    /// The first row.
    row: usize,
    c: &'a mut [f32],
    c_row: usize,
}

impl TileBlock<'_> {
    /// The sums of one tile of rows or two (`TALL`), and one tile of columns or two (`WIDE`).
    #[inline(always)]
    fn run<U: Tiles, const TALL: bool, const WIDE: bool>(mut self, unit: &mut U) {
        self.start::<U, 0>(unit, 0, 0);
        if WIDE {
            self.start::<U, 1>(unit, 0, COLS);
        }
        if TALL {
            self.start::<U, 2>(unit, COLS, 0);
            if WIDE {
                self.start::<U, 3>(unit, COLS, COLS);
            }
        }
        let (TileProduct { split, tails, .. }, steps) = (*self.of, self.of.steps());
        // Where the low terms begin.
        let low = self.of.depth.div_ceil(DEPTH);
        for k in 0..self.of.depth_of(self.row) {
            self.add::<U, TALL, WIDE, true>(unit, steps, [k, k]);
            if split != Split::None {
                self.add::<U, TALL, WIDE, false>(unit, steps, [k, low + k]);
            }
            if split == Split::Both {
                self.add::<U, TALL, WIDE, true>(unit, steps, [low + k, k]);
            }
        }
        for at in 0..tails[0] {
            self.add::<U, TALL, WIDE, true>(unit, steps, [steps[0] - tails[0] + at, steps[1] - tails[1] + at]);
        }
        self.store::<U, 0>(unit, 0, 0);
        if WIDE {
            self.store::<U, 1>(unit, 0, COLS);
        }
        if TALL {
            self.store::<U, 2>(unit, COLS, 0);
            if WIDE {
                self.store::<U, 3>(unit, COLS, COLS);
            }
        }
    }

    /// Adds the products of the l-th tiles of the left and the r-th of the right operand; `LOADS`: those of the left one are not
    /// in their registers yet.
    #[inline(always)]
    fn add<U: Tiles, const TALL: bool, const WIDE: bool, const LOADS: bool>(
        &self,
        unit: &mut U,
        [left_step, right_step]: [usize; 2],
        [l, r]: [usize; 2],
    ) {
        let (left, right) = (self.left, self.right);
        unit.load::<6>(&right[r]);
        if LOADS {
            unit.load::<4>(&left[l]);
        }
        unit.multiply::<0, 4, 6>();
        if WIDE {
            unit.load::<7>(&right[right_step + r]);
            unit.multiply::<1, 4, 7>();
        }
        if TALL {
            if LOADS {
                unit.load::<5>(&left[left_step + l]);
            }
            unit.multiply::<2, 5, 6>();
            if WIDE {
                unit.multiply::<3, 5, 7>();
            }
        }
    }

    /// Makes a tile of sums 0, or what C has.
    #[inline(always)]
    fn start<U: Tiles, const REGISTER: usize>(&self, unit: &mut U, row: usize, col: usize) {
        if self.of.mode == Mode::Store {
            return unit.zero::<REGISTER>();
        }
        let (rows, from) = (self.of.rows - self.row - row, &self.c[row * self.c_row + col..]);
        if rows >= COLS {
            return unit.load_sums::<REGISTER>(from, self.c_row);
        }
        let mut sums = [0.0; COLS * COLS];
        for (sums, from) in sums.chunks_exact_mut(COLS).zip(from.chunks(self.c_row)).take(rows) {
            sums.copy_from_slice(&from[..COLS]);
        }
        unit.load_sums::<REGISTER>(&sums, COLS);
    }

    /// Stores the rows of a tile of sums that C has.
    #[inline(always)]
    fn store<U: Tiles, const REGISTER: usize>(&mut self, unit: &U, row: usize, col: usize) {
        let (rows, to) = (self.of.rows - self.row - row, &mut self.c[row * self.c_row + col..]);
        if rows >= COLS {
            return unit.store::<REGISTER>(to, self.c_row);
        }
        let mut sums = [0.0; COLS * COLS];
        unit.store::<REGISTER>(&mut sums, COLS);
        for (sums, to) in sums.chunks_exact(COLS).zip(to.chunks_mut(self.c_row)).take(rows) {
            to[..COLS].copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests;
