//! The products of one task: in the type that is computed in, or of operands that are rounded to bf16.
//! `docs/algorithm.md`, sections 1 and 10.
//!
//! Rounded operands are packed into tiles ([`crate::bf16`]), and sums are f32. What a feature is computed from may not be
//! rounded: a relative error of 2^-9 of a log-feature of 100 bits would be a factor of 1.15, and a projection of almost 0 could
//! fall on the wrong side of a step. So inputs and directions are split into two numbers of bf16 each ([`Split`]), norms into
//! three, which are all their bits; denominators, whose errors all terms of a row would share, are summed in f32.
//!
//! An operand of several products is packed once: [`Products::left`] and [`Products::right`] return it packed, in memory of
//! which one task has little, a place for each purpose. In f32 there is nothing to pack, and a packed operand is empty.

use crate::bf16::{Matrix, Role, Session, Split, Term, Tile, TileProduct, Unit, round_all};
use crate::layout::{CHUNK, Layout, PANEL};
use crate::ops::{CpuElement, Mode, Ops, Product};
use crate::simd::tile::{COLS, DEPTH};
use protperf_core::{Result, try_filled};
use std::cell::{RefCell, RefMut};

/// Places for packed operands.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Left operands that one or two products use.
    Left,
    /// Scores of a chunk, or inputs: left operands that the products of all panels use.
    Shared,
    /// What queries carry, a left operand of the products of all panels.
    Carried,
    /// Right operands.
    Right,
    /// Keys of exact attention, right operands of the products of many queries.
    Keys,
}

/// Memory for packed operands.
#[derive(Default)]
pub struct TileMemory([RefCell<Vec<Tile>>; 5]);

impl TileMemory {
    /// Makes room for operands of the kernels: a chunk or a panel by one of the widths or by another, split in two, with norms.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn grow(&mut self, head_dim: usize, value_dim: usize) -> Result<()> {
        let (tall, wide) = (CHUNK.max(PANEL), head_dim.max(value_dim).max(1));
        let along = |side: usize, depth: usize| side.div_ceil(COLS) * depth.div_ceil(DEPTH);
        let tiles = along(tall, tall).max(2 * along(tall, wide) + along(tall, 1)).max(along(wide, tall));
        for memory in &mut self.0 {
            if memory.get_mut().len() < tiles {
                *memory.get_mut() = try_filled(tiles, Tile::ZERO)?;
            }
        }
        Ok(())
    }

    /// Fills it with bf16 that are not numbers.
    #[cfg(test)]
    pub fn poison(&mut self) {
        self.0.iter_mut().for_each(|memory| memory.get_mut().fill(Tile([[u32::MAX; COLS]; COLS])));
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|memory| size_of_val(&**memory.borrow())).sum()
    }

    /// Packs a matrix into a place, which is taken while the tiles are used.
    fn pack(&self, place: Place, role: Role, from: &Matrix<'_>) -> RefMut<'_, [Tile]> {
        let mut tiles = self.take(place, role.num_tiles(from.rows, from.cols));
        role.pack(from, &mut tiles);
        tiles
    }

    fn pack_split(&self, place: Place, role: Role, from: &Matrix<'_>) -> RefMut<'_, [Tile]> {
        let mut tiles = self.take(place, 2 * role.num_tiles(from.rows, from.cols));
        role.pack_terms(from, &TERMS, &mut tiles);
        tiles
    }

    fn take(&self, place: Place, len: usize) -> RefMut<'_, [Tile]> {
        RefMut::map(self.0[place as usize].borrow_mut(), |all| &mut all[..len])
    }
}

/// Runs `body` with products in the type itself, or of operands of these widths that are rounded for a unit.
///
/// # Errors
/// `OutOfMemory`, or what `body` returns.
pub fn with_products<T: CpuElement, R>(
    ops: &'static Ops<T>,
    unit: Option<Unit>,
    [head_dim, value_dim]: [usize; 2],
    inputs_are_bf16: bool,
    memory: &mut TileMemory,
    body: impl FnOnce(Products<'_, T>) -> Result<R>,
) -> Result<R> {
    let Some(unit) = unit else { return body(Products::new(ops)) };
    memory.grow(head_dim, value_dim)?;
    body(Products { ops, tiles: Some((&unit.start(), memory)), inputs_are_bf16 })
}

/// An operand that is packed where products are rounded.
pub struct Packed<'a>(Option<RefMut<'a, [Tile]>>);

/// How the products of a task are computed.
#[derive(Clone, Copy)]
pub struct Products<'a, T: CpuElement> {
    ops: &'static Ops<T>,
    tiles: Option<(&'a Session, &'a TileMemory)>,
    /// Whether inputs are numbers of bf16, of which rounding leaves nothing.
    inputs_are_bf16: bool,
}

impl<'a, T: CpuElement> Products<'a, T> {
    /// In the type itself.
    pub fn new(ops: &'static Ops<T>) -> Self {
        Products { ops, tiles: None, inputs_are_bf16: false }
    }

    /// Whether operands are packed, so that nothing else needs them transposed.
    pub fn is_packed(&self) -> bool {
        self.tiles.is_some()
    }

    /// The left operand of `p`.
    pub fn left(&self, place: Place, p: &Product<'_, T>) -> Packed<'a> {
        Packed(self.tiles.map(|(_, memory)| {
            let (role, matrix) = left_of(p);
            memory.pack(place, role, &matrix)
        }))
    }

    /// The right operand of `p`.
    pub fn right(&self, p: &Product<'_, T>) -> Packed<'a> {
        Packed(self.tiles.map(|(_, memory)| memory.pack(Place::Right, Role::Right, &right_of(p))))
    }

    /// The left operand of a [`Products::split_product`].
    pub fn split_left(&self, p: &Product<'_, T>) -> Packed<'a> {
        Packed(self.tiles.map(|(_, memory)| {
            let (role, matrix) = left_of(p);
            memory.pack_split(Place::Left, role, &matrix)
        }))
    }

    /// The right operand of a [`Products::split_product`], of B as `[columns][depth]`.
    pub fn split_right(&self, p: &Product<'_, T>) -> Packed<'a> {
        Packed(
            self.tiles
                .map(|(_, memory)| memory.pack_split(Place::Keys, Role::RightTransposed, &transposed_right_of(p))),
        )
    }

    /// Computes `p` of operands that are split, for what stands in an exponent.
    pub fn split_product(&self, left: &Packed<'_>, right: &Packed<'_>, p: &Product<'_, T>, c: &mut [T], c_row: usize) {
        match (self.tiles, &left.0, &right.0) {
            (Some((session, _)), Some(left), Some(right)) => {
                let product = TileProduct { split: Split::Both, ..tile_product(left, right, p) };
                multiply(session, &product, c, c_row);
            }
            _ => self.ops.product(p, c, c_row),
        }
    }

    /// Computes `p` into c, whose rows are `c_row` apart.
    pub fn product(&self, p: &Product<'_, T>, c: &mut [T], c_row: usize) {
        self.product_of(&self.left(Place::Left, p), p, c, c_row);
    }

    /// The same with a left operand that is packed.
    pub fn product_of(&self, left: &Packed<'_>, p: &Product<'_, T>, c: &mut [T], c_row: usize) {
        self.packed_product(left, &self.right(p), p, c, c_row);
    }

    /// The same with a right operand that is packed.
    pub fn product_with(&self, right: &Packed<'_>, p: &Product<'_, T>, c: &mut [T], c_row: usize) {
        self.packed_product(&self.left(Place::Left, p), right, p, c, c_row);
    }

    fn packed_product(&self, left: &Packed<'_>, right: &Packed<'_>, p: &Product<'_, T>, c: &mut [T], c_row: usize) {
        match (self.tiles, &left.0, &right.0) {
            (Some((session, _)), Some(left), Some(right)) => multiply(session, &tile_product(left, right, p), c, c_row),
            _ => self.ops.product(p, c, c_row),
        }
    }

    /// The same with B as `[columns][depth]`; `transposed` is memory for its transpose, rows `transposed_row` apart.
    pub fn product_of_transposed(
        &self,
        left: &Packed<'_>,
        p: &Product<'_, T>,
        (transposed, transposed_row): (&mut [T], usize),
        c: &mut [T],
        c_row: usize,
    ) {
        if let (Some((session, memory)), Some(left)) = (self.tiles, &left.0) {
            let right = memory.pack(Place::Right, Role::RightTransposed, &transposed_right_of(p));
            return multiply(session, &tile_product(left, &right, p), c, c_row);
        }
        let depth = p.depth.next_multiple_of(COLS);
        self.ops.transpose(p.b, p.b_row, p.cols, depth, transposed, transposed_row);
        self.ops.product(&Product { b: transposed, b_row: transposed_row, ..*p }, c, c_row);
    }

    /// `C (op)= A B^T + a last^T`, where `p` has B as `[columns][depth]` and a is the column of A behind its depth. `transposed`
    /// is memory for B, transposed, and a row more.
    pub fn product_with_last(
        &self,
        left: &Packed<'_>,
        p: &Product<'_, T>,
        last: &[T],
        (transposed, transposed_row): (&mut [T], usize),
        c: &mut [T],
        c_row: usize,
    ) {
        let (Some((session, memory)), Some(left)) = (self.tiles, &left.0) else {
            self.ops.transpose(p.b, p.b_row, p.cols, p.depth, transposed, transposed_row);
            transposed[p.depth * transposed_row..][..p.cols].copy_from_slice(&last[..p.cols]);
            let product = Product { b: transposed, b_row: transposed_row, depth: p.depth + 1, ..*p };
            return self.ops.product(&product, c, c_row);
        };
        // The sum starts from 0, also where it is added to C.
        let (to, to_row) = match p.mode {
            Mode::Add => (&mut transposed[..], transposed_row),
            _ => (&mut *c, c_row),
        };
        self.ops.outer(&p.a[p.depth..], p.a_row, &last[..p.cols], p.rows, to, to_row);
        let right = memory.pack(Place::Right, Role::RightTransposed, &transposed_right_of(p));
        multiply(session, &TileProduct { mode: Mode::Continue, ..tile_product(left, &right, p) }, to, to_row);
        if p.mode == Mode::Add {
            let rows = c.chunks_mut(c_row).zip(transposed.chunks(transposed_row)).take(p.rows);
            rows.for_each(|(to, from)| self.ops.add(&from[..p.cols], &mut to[..p.cols]));
        }
    }

    /// Rows of inputs, the left operand of a [`Products::projection`]; with `norms`, the column of A behind its depth too.
    pub fn inputs(&self, p: &Product<'_, T>, norms: bool) -> Packed<'a> {
        Packed(self.tiles.map(|(_, memory)| {
            let from = left_of(p).1;
            let (split, depth) = (self.split_of_inputs(), Role::Left.num_tiles(1, p.depth));
            let step = split.terms()[0] * depth + usize::from(norms);
            let mut tiles = memory.take(Place::Shared, p.rows.div_ceil(COLS) * step);
            Role::Left.pack_terms(&from, &TERMS[..split.terms()[0]], &mut tiles);
            if norms {
                let mut terms = [0.0; CHUNK * NORM_TERMS];
                for (row, terms) in terms.chunks_exact_mut(NORM_TERMS).enumerate().take(p.rows) {
                    in_terms(from.data[row * p.a_row + p.depth], terms);
                }
                for (outer, tiles) in tiles.chunks_exact_mut(step).enumerate() {
                    let rows = COLS.min(p.rows - outer * COLS);
                    let data = &terms[outer * COLS * NORM_TERMS..];
                    let matrix = Matrix { data, row: NORM_TERMS, rows, cols: NORM_TERMS };
                    Role::Left.pack(&matrix, &mut tiles[step - 1..]);
                }
            }
            tiles
        }))
    }

    fn split_of_inputs(&self) -> Split {
        if self.inputs_are_bf16 { Split::Right } else { Split::Both }
    }

    /// Computes `p`, whose B is packed as `right`; with `norms`, the column of A behind its depth times the row of B behind it is
    /// added.
    pub fn projection(
        &self,
        inputs: &Packed<'_>,
        right: &[Tile],
        norms: bool,
        p: &Product<'_, T>,
        c: &mut [T],
        c_row: usize,
    ) {
        let (Some((session, _)), Some(left)) = (self.tiles, &inputs.0) else {
            return self.ops.product(&Product { depth: p.depth + usize::from(norms), ..*p }, c, c_row);
        };
        let product = TileProduct {
            right,
            split: self.split_of_inputs(),
            tails: [usize::from(norms), 1],
            ..tile_product(left, &[], p)
        };
        multiply(session, &product, c, c_row);
    }
}

/// The high and the low term that an operand is split into.
const TERMS: [Term; 2] = [Term::High, Term::Low];
/// Terms of bf16 that a norm is split into: all bits of an f32.
const NORM_TERMS: usize = 3;

/// Splits a number into others of bf16 whose sum it is.
fn in_terms(mut x: f32, terms: &mut [f32]) {
    for term in terms {
        *term = x;
        round_all(std::slice::from_mut(term));
        x -= *term;
    }
}

/// Directions of a head as right operands, where products are rounded: the columns of each panel and, as tails, the factors of
/// the norms, once for each term of them.
pub struct PackedDirections {
    tiles: Vec<Tile>,
    panels: usize,
}

impl PackedDirections {
    /// Packs columns `[panel][1 + D][PANEL]`, or nothing where products are not rounded.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn pack<T: CpuElement>(columns: &[T], layout: &Layout, is_rounded: bool) -> Result<Self> {
        let (d, panels) = (layout.head_dim, layout.projection_panels());
        let Some(columns) = T::as_f32(columns).filter(|_| is_rounded) else {
            return Ok(PackedDirections { tiles: Vec::new(), panels });
        };
        let step = TERMS.len() * Role::Right.num_tiles(d, 1) + 1;
        let mut tiles = try_filled(panels * PANEL / COLS * step, Tile::ZERO)?;
        for (data, to) in columns.chunks_exact((1 + d) * PANEL).zip(tiles.chunks_exact_mut(PANEL / COLS * step)) {
            Role::Right.pack_terms(&Matrix { data, row: PANEL, rows: d, cols: PANEL }, &TERMS, to);
            let factors = data[d * PANEL..].chunks_exact(COLS);
            for (tiles, factors) in to.chunks_exact_mut(step).zip(factors) {
                let mut rows = [0.0; NORM_TERMS * COLS];
                rows.chunks_exact_mut(COLS).for_each(|row| row.copy_from_slice(factors));
                let matrix = Matrix { data: &rows, row: COLS, rows: NORM_TERMS, cols: COLS };
                Role::Right.pack(&matrix, &mut tiles[step - 1..]);
            }
        }
        Ok(PackedDirections { tiles, panels })
    }

    /// The tiles of a panel; none where products are not rounded.
    pub fn of_panel(&self, panel: usize) -> &[Tile] {
        let len = self.tiles.len() / self.panels;
        &self.tiles[panel * len..][..len]
    }
}

fn multiply<T: CpuElement>(session: &Session, p: &TileProduct<'_>, c: &mut [T], c_row: usize) {
    session.multiply(p, T::as_f32_mut(c).expect("only f32 is rounded"), c_row);
}

fn tile_product<'a, T>(left: &'a [Tile], right: &'a [Tile], p: &Product<'_, T>) -> TileProduct<'a> {
    let Product { rows, cols, depth, mode, triangle, .. } = *p;
    TileProduct { left, right, rows, cols, depth, mode, triangle, split: Split::None, tails: [0, 0] }
}

fn left_of<'a, T: CpuElement>(p: &Product<'a, T>) -> (Role, Matrix<'a>) {
    let data = singles(p.a);
    match p.a_depth {
        1 => (Role::Left, Matrix { data, row: p.a_row, rows: p.rows, cols: p.depth }),
        row => (Role::LeftTransposed, Matrix { data, row, rows: p.depth, cols: p.rows }),
    }
}

fn right_of<'a, T: CpuElement>(p: &Product<'a, T>) -> Matrix<'a> {
    Matrix { data: singles(p.b), row: p.b_row, rows: p.depth, cols: p.cols }
}

fn transposed_right_of<'a, T: CpuElement>(p: &Product<'a, T>) -> Matrix<'a> {
    Matrix { data: singles(p.b), row: p.b_row, rows: p.cols, cols: p.depth }
}

fn singles<T: CpuElement>(x: &[T]) -> &[f32] {
    T::as_f32(x).expect("only f32 is rounded: `PreparedMap::new` refuses others")
}
