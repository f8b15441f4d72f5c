//! The product of two packed operands, in blocks of two by two tiles of sums: each tile that is loaded is used twice.

use crate::dispatch::Isa;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::simd::amx;
#[cfg(target_arch = "x86_64")]
use crate::simd::avx512bf16;
use crate::simd::plain_tiles::Emulated;
use crate::simd::tile::{COLS, DEPTH, Tile, Tiles};

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
    /// Where a slice is too short for the sizes, or this processor lacks the unit.
    pub fn multiply(self, p: &TileProduct<'_>, c: &mut [f32], c_row: usize) {
        p.check(c.len(), c_row);
        match self {
            Unit::Emulated => p.run(&mut Emulated::zeroed(), c, c_row),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Unit::Amx if has_amx() => {
                // SAFETY: this processor has AMX. Nothing that `run` calls starts another one.
                p.run(&mut unsafe { amx::Amx::start() }, c, c_row);
            }
            #[cfg(target_arch = "x86_64")]
            Unit::Dot if has_dot() => p.run_dot(c, c_row),
            Unit::Amx | Unit::Dot => panic!("this processor has no {}", self.name()),
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

/// `C [rows, cols] = A B` of packed operands.
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
}

impl TileProduct<'_> {
    /// Panics unless every element that will be touched lies inside its slice.
    fn check(&self, c_len: usize, c_row: usize) {
        let depth = self.depth.div_ceil(DEPTH);
        assert!(self.cols.is_multiple_of(COLS) && self.cols <= c_row);
        assert!(self.left.len() >= self.rows.div_ceil(COLS) * depth, "A is too small");
        assert!(self.right.len() >= self.cols / COLS * depth, "B is too small");
        assert!(self.rows == 0 || (self.rows - 1) * c_row + self.cols <= c_len, "C is too small");
    }

    fn run<U: Tiles>(&self, unit: &mut U, c: &mut [f32], c_row: usize) {
        let depth = self.depth.div_ceil(DEPTH);
        for col in (0..self.cols).step_by(2 * COLS) {
            let right = &self.right[col / COLS * depth..];
            for row in (0..self.rows).step_by(2 * COLS) {
                let block = Block {
                    left: &self.left[row / COLS * depth..],
                    right,
                    depth,
                    c: &mut c[row * c_row + col..],
                    c_row,
                    rows: self.rows - row,
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
            for row in (0..self.rows).step_by(COLS) {
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
        let depth = self.depth.div_ceil(DEPTH);
        let right = std::array::from_fn(|n| &self.right[(col / COLS + n) * depth..][..depth]);
        let mut sums = [[[0.0; COLS]; N]; COLS];
        // SAFETY: `multiply` has asked for the instructions.
        unsafe { avx512bf16::product::<N>(&self.left[row / COLS * depth..][..depth], right, &mut sums) };
        for (sums, to) in sums.iter().zip(c.chunks_mut(c_row)).take(self.rows - row) {
            to[..N * COLS].copy_from_slice(sums.as_flattened());
        }
    }
}

/// Up to two by two tiles of sums, in registers 0 to 3; 4 and 5 hold tiles of the left operand, 6 and 7 of the right.
struct Block<'a> {
    left: &'a [Tile],
    right: &'a [Tile],
    depth: usize,
    c: &'a mut [f32],
    c_row: usize,
    rows: usize,
}

impl Block<'_> {
    /// The sums of one tile of rows or two (`TALL`), and one tile of columns or two (`WIDE`).
    #[inline(always)]
    fn run<U: Tiles, const TALL: bool, const WIDE: bool>(mut self, unit: &mut U) {
        let (left, below) = self.left.split_at(self.depth);
        let (right, beyond) = self.right.split_at(self.depth);
        unit.zero::<0>();
        unit.zero::<1>();
        unit.zero::<2>();
        unit.zero::<3>();
        for k in 0..self.depth {
            unit.load::<6>(&right[k]);
            unit.load::<4>(&left[k]);
            unit.multiply::<0, 4, 6>();
            if WIDE {
                unit.load::<7>(&beyond[k]);
                unit.multiply::<1, 4, 7>();
            }
            if TALL {
                unit.load::<5>(&below[k]);
                unit.multiply::<2, 5, 6>();
                if WIDE {
                    unit.multiply::<3, 5, 7>();
                }
            }
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

    /// Stores the rows of a tile of sums that C has.
    #[inline(always)]
    fn store<U: Tiles, const REGISTER: usize>(&mut self, unit: &U, row: usize, col: usize) {
        let (rows, to) = (self.rows - row, &mut self.c[row * self.c_row + col..]);
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
mod tests {
    use super::super::{Matrix, Role, round};
    use super::*;

    /// Numbers around 1 of both signs that are a function of a seed.
    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.618).sin() * 2.0).collect()
    }

    fn packed(role: Role, data: &[f32], [rows, cols]: [usize; 2], row: usize) -> Vec<Tile> {
        let mut tiles = vec![Tile::ZERO; role.num_tiles(rows, cols)];
        role.pack(&Matrix { data, row, rows, cols }, &mut tiles);
        tiles
    }

    #[test]
    fn products_are_those_of_the_rounded_matrices_at_every_odd_size() {
        let rounded = |x: f32| f64::from(f32::from_bits(u32::from(round(x)) << 16));
        let sizes = [0usize, 1, 15, 16, 17, 31, 32, 33, 49];
        for unit in Unit::available() {
            for (rows, cols, depth) in sizes.iter().flat_map(|&r| sizes.map(|c| (r, c, (r * 7 + c * 5) % 100))) {
                // Views: rows of A, B and C are farther apart than they are wide.
                let (a_row, b_row, padded) = (depth + 3, cols + 5, cols.next_multiple_of(COLS));
                let (a, b, c_row) = (numbers(rows * a_row, 1), numbers(depth * b_row, 2), padded + 1);
                let left = packed(Role::Left, &a, [rows, depth], a_row);
                let right = packed(Role::Right, &b, [depth, cols], b_row);
                let mut c = vec![f32::NAN; rows * c_row];
                let p = TileProduct { left: &left, right: &right, rows, cols: padded, depth };
                unit.multiply(&p, &mut c, c_row);
                for (i, j) in (0..rows).flat_map(|i| (0..padded).map(move |j| (i, j))) {
                    let terms = (0..if j < cols { depth } else { 0 })
                        .map(|k| rounded(a[i * a_row + k]) * rounded(b[k * b_row + j]));
                    let (needed, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let off = (f64::from(c[i * c_row + j]) - needed).abs();
                    // A sum of n terms in f32 is off by n half units of the sum of magnitudes, at the most.
                    assert!(off <= (depth as f64 + 2.0) * size * f64::from(f32::EPSILON) / 2.0, "{unit:?} {i} {j}");
                }
                assert!(c.chunks(c_row).all(|row| row[padded..].iter().all(|x| x.is_nan())));
            }
        }
    }

    #[test]
    fn instructions_and_emulation_give_the_same_bits() {
        // Exponents that overflow, cancel and vanish.
        let wild = |len: usize, seed: u32| -> Vec<f32> {
            let bits =
                (0..len as u32).map(|i| i.wrapping_mul(0x9e37_79b1).wrapping_add(seed).wrapping_mul(0x85eb_ca6b));
            bits.map(f32::from_bits).map(|x| if x.is_finite() { x } else { 1.0 }).collect()
        };
        let tame = |len: usize, seed: u32| numbers(len, seed as usize);
        for make in [&tame as &dyn Fn(usize, u32) -> Vec<f32>, &wild] {
            let (a, b) = (make(50 * 70, 1), make(70 * 48, 2));
            let left = packed(Role::Left, &a, [50, 70], 70);
            let right = packed(Role::Right, &b, [70, 48], 48);
            let p = TileProduct { left: &left, right: &right, rows: 50, cols: 48, depth: 70 };
            let same = Unit::available().into_iter().filter(|&unit| unit != Unit::Dot);
            let found = same.map(|unit| {
                let mut c = vec![0.0; 50 * 48];
                unit.multiply(&p, &mut c, 48);
                c.into_iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect::<Vec<_>>()
            });
            let found: Vec<_> = found.collect();
            for pair in found.windows(2) {
                assert_eq!(pair[0], pair[1]);
            }
        }
    }

    #[test]
    fn transposed_operands_are_those_of_the_transposed_matrices() {
        let [m, n, k] = [37, 45, 83];
        let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
        let transposed = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
            (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
        };
        let left = packed(Role::Left, &a, [m, k], k);
        assert_eq!(left, packed(Role::LeftTransposed, &transposed(&a, m, k), [k, m], m));
        let right = packed(Role::Right, &b, [k, n], n);
        assert_eq!(right, packed(Role::RightTransposed, &transposed(&b, k, n), [n, k], k));
    }
}
