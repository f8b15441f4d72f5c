//! Linear layers: a weight matrix in panels, and products of rows with it.
//!
//! The product is `protperf_cpu`'s, whose every element is one chain of multiply-adds in the order of the depth: a row of
//! the result does not depend on the other rows, and no number of threads changes a bit. A GEMM crate would cut the depth
//! into blocks and choose kernels by the number of rows, which breaks both; on these shapes it is no faster, since a
//! panel of 64 columns stays in the second-level cache anyway.

use crate::buffer::Buffer;
use crate::products::{Form, Products};
use protperf_core::Result;
use protperf_cpu::CpuElement;
use protperf_cpu::bf16::{Matrix, Role, Split, Tile, TileProduct, round_all};
use protperf_cpu::layout::PAD;
use protperf_cpu::ops::{Mode, Ops, Product, Triangle};

/// Columns of a panel: four registers of sixteen floats.
const PANEL: usize = 64;

/// Rows of a weight matrix that stand together, each group padded with zeros to a multiple of [`PAD`] rows.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// Rows of one group.
    pub size: usize,
    /// Number of groups.
    pub count: usize,
}

impl Groups {
    /// One group of `size` rows.
    pub fn one(size: usize) -> Self {
        Groups { size, count: 1 }
    }

    /// Rows of one group with their padding.
    pub fn padded_size(&self) -> usize {
        self.size.next_multiple_of(PAD)
    }

    /// Rows of all groups with their padding.
    pub fn padded(&self) -> usize {
        self.padded_size() * self.count
    }

    /// The padded place of each row, in order.
    fn places(self) -> impl Iterator<Item = usize> {
        (0..self.count).flat_map(move |group| (0..self.size).map(move |row| group * self.padded_size() + row))
    }
}

/// A right operand `[depth, cols]` in panels of 64 columns, `[panel][depth][64]`, or in tiles of bf16.
#[derive(Debug)]
pub struct Panels<T: CpuElement> {
    data: Data<T>,
    depth: usize,
    /// A multiple of [`PAD`].
    cols: usize,
}

#[derive(Debug)]
enum Data<T: CpuElement> {
    Columns(Buffer<T>),
    Tiles(Buffer<Tile>),
}

impl<T: CpuElement> Panels<T> {
    /// For `x w^T`: the columns are the rows of w `[M,K]`, in groups.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn of_columns(products: &Products<T>, w: &[T], depth: usize, groups: Groups) -> Result<Self> {
        let cols = groups.padded();
        if let Form::Tiles(_) = products.form {
            let data = Data::Tiles(tiles_of_weights(w, depth, groups, Role::RightTransposed)?);
            return Ok(Panels { data, depth, cols });
        }
        let mut data = Buffer::zeros(cols.div_ceil(PANEL) * PANEL * depth)?;
        if depth.is_multiple_of(PAD) && groups.size == groups.padded_size() {
            for (panel, rows) in data.chunks_exact_mut(PANEL * depth).zip(w.chunks(PANEL * depth)) {
                products.ops.transpose(rows, depth, rows.len() / depth, depth, panel, PANEL);
            }
        } else {
            for (row, col) in w.chunks_exact(depth).zip(groups.places()) {
                let panel = &mut data[col / PANEL * PANEL * depth..][col % PANEL..];
                panel.iter_mut().step_by(PANEL).zip(row).for_each(|(to, &x)| *to = x);
            }
        }
        Ok(Self::of_panels(products, data, [depth, cols]))
    }

    /// For `y w`: the depth is the rows of w `[M,K]`, in groups; the columns are those of w.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn of_rows(products: &Products<T>, w: &[T], width: usize, groups: Groups) -> Result<Self> {
        let (depth, cols) = (groups.padded(), width.next_multiple_of(PAD));
        if let Form::Tiles(_) = products.form {
            return Ok(Panels { data: Data::Tiles(tiles_of_weights(w, width, groups, Role::Right)?), depth, cols });
        }
        let mut data = Buffer::zeros(cols.div_ceil(PANEL) * PANEL * depth)?;
        for (row, at) in w.chunks_exact(width).zip(groups.places()) {
            for (panel, part) in row.chunks(PANEL).enumerate() {
                data[(panel * depth + at) * PANEL..][..part.len()].copy_from_slice(part);
            }
        }
        Ok(Self::of_panels(products, data, [depth, cols]))
    }

    fn of_panels(products: &Products<T>, mut data: Buffer<T>, [depth, cols]: [usize; 2]) -> Self {
        if products.form == Form::Rounded {
            round_all(singles_mut(&mut data));
        }
        Panels { data: Data::Columns(data), depth, cols }
    }

    /// Columns of the product, padding included.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `out = x times this` for some rows; `*_row` are the distances between rows.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn multiply(
        &self,
        products: &Products<T>,
        (x, x_row): (&[T], usize),
        rows: usize,
        (out, out_row): (&mut [T], usize),
    ) -> Result<()> {
        let &Panels { ref data, depth, cols } = self;
        match (data, products.form) {
            (Data::Tiles(right), Form::Tiles(unit)) => {
                let left = tiles(Role::Left, &Matrix { data: singles(x), row: x_row, rows, cols: depth })?;
                unit.multiply(
                    &TileProduct {
                        left: &left,
                        right,
                        rows,
                        cols,
                        depth,
                        mode: Mode::Store,
                        triangle: Triangle::Whole,
                        split: Split::None,
                        tails: [0, 0],
                    },
                    singles_mut(out),
                    out_row,
                );
            }
            (Data::Columns(panels), Form::Rounded) => {
                self.multiply_panels(products.ops, panels, (&rounded(x)?, x_row), rows, (out, out_row));
            }
            (Data::Columns(panels), Form::Full) => {
                self.multiply_panels(products.ops, panels, (x, x_row), rows, (out, out_row));
            }
            _ => unreachable!("packed for another form of operands"),
        }
        Ok(())
    }

    fn multiply_panels(
        &self,
        ops: &Ops<T>,
        panels: &[T],
        (x, x_row): (&[T], usize),
        rows: usize,
        (out, out_row): (&mut [T], usize),
    ) {
        for (panel, b) in panels.chunks_exact((PANEL * self.depth).max(1)).enumerate() {
            let product = Product {
                a: x,
                a_row: x_row,
                a_depth: 1,
                b,
                b_row: PANEL,
                rows,
                cols: PANEL.min(self.cols - panel * PANEL),
                depth: self.depth,
                mode: Mode::Store,
                triangle: Triangle::Whole,
            };
            ops.product(&product, &mut out[panel * PANEL..], out_row);
        }
    }
}

/// `out [M, K padded] = y^T x` over some rows: the gradient of a weight matrix `[M,K]`, where x was multiplied with it
/// and `y` arrived. The columns of y from `from` on count, M of them.
///
/// # Errors
/// `OutOfMemory`.
pub fn outer<T: CpuElement>(
    products: &Products<T>,
    (y, y_row, from): (&[T], usize, usize),
    (x, x_row): (&[T], usize),
    rows: usize,
    out: &mut [T],
    [m, k]: [usize; 2],
) -> Result<()> {
    let (y, cols) = (&y[from..], k.next_multiple_of(PAD));
    match products.form {
        Form::Tiles(unit) => {
            let left = tiles(Role::LeftTransposed, &Matrix { data: singles(y), row: y_row, rows, cols: m })?;
            let right = tiles(Role::Right, &Matrix { data: singles(x), row: x_row, rows, cols: k })?;
            let product = TileProduct {
                left: &left,
                right: &right,
                rows: m,
                cols,
                depth: rows,
                mode: Mode::Store,
                triangle: Triangle::Whole,
                split: Split::None,
                tails: [0, 0],
            };
            unit.multiply(&product, singles_mut(out), cols);
        }
        Form::Rounded => {
            outer_product(products.ops, (&rounded(y)?, y_row), (&rounded(x)?, x_row), rows, out, [m, cols])
        }
        Form::Full => outer_product(products.ops, (y, y_row), (x, x_row), rows, out, [m, cols]),
    }
    Ok(())
}

fn outer_product<T: CpuElement>(
    ops: &Ops<T>,
    (y, y_row): (&[T], usize),
    (x, x_row): (&[T], usize),
    rows: usize,
    out: &mut [T],
    [m, cols]: [usize; 2],
) {
    let product = Product {
        a: y,
        a_row: 1,
        a_depth: y_row,
        b: x,
        b_row: x_row,
        rows: m,
        cols,
        depth: rows,
        mode: Mode::Store,
        triangle: Triangle::Whole,
    };
    ops.product(&product, out, cols);
}

fn singles<T: CpuElement>(x: &[T]) -> &[f32] {
    T::as_f32(x).expect("`Products` rounds f32 alone")
}

fn singles_mut<T: CpuElement>(x: &mut [T]) -> &mut [f32] {
    T::as_f32_mut(x).expect("`Products` rounds f32 alone")
}

/// A copy, each number rounded to bf16.
fn rounded<T: CpuElement>(x: &[T]) -> Result<Buffer<T>> {
    let mut copy = Buffer::new(x.len())?;
    copy.copy_from_slice(x);
    round_all(singles_mut(&mut copy));
    Ok(copy)
}

fn tiles(role: Role, from: &Matrix<'_>) -> Result<Buffer<Tile>> {
    let mut tiles = Buffer::tiles(role.num_tiles(from.rows, from.cols))?;
    role.pack(from, &mut tiles);
    Ok(tiles)
}

/// The tiles of a weight matrix `[M, width]`, its rows in groups.
fn tiles_of_weights<T: CpuElement>(w: &[T], width: usize, groups: Groups, role: Role) -> Result<Buffer<Tile>> {
    let matrix = |data| Matrix { data, row: width, rows: groups.padded(), cols: width };
    if groups.size == groups.padded_size() {
        return tiles(role, &matrix(singles(w)));
    }
    let mut padded = Buffer::zeros(groups.padded() * width)?;
    for (row, at) in w.chunks_exact(width).zip(groups.places()) {
        padded[at * width..][..width].copy_from_slice(row);
    }
    tiles(role, &matrix(singles(&padded)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protperf_cpu::Isa;
    use protperf_cpu::bf16::Unit;

    /// Small integers: every sum is exact in any order and in any form.
    fn numbers<T: CpuElement>(len: usize, seed: usize) -> Vec<T> {
        (0..len).map(|i| T::from_f64(((i * 7919 + seed * 104_729) % 17) as f64 - 8.0)).collect()
    }

    /// Every form of operands that this processor multiplies.
    fn every_form() -> Vec<Products<f32>> {
        let units = Unit::available().into_iter().map(Form::Tiles);
        let forms: Vec<_> = [Form::Full, Form::Rounded].into_iter().chain(units).collect();
        let of = |isa| forms.iter().map(move |&form| Products { ops: Ops::of(isa), form });
        Isa::available().into_iter().flat_map(of).collect()
    }

    fn check_panels<T: CpuElement>(products: &Products<T>) {
        for (rows, depth, size, count) in
            [(1, 1, 1, 1), (7, 5, 3, 2), (13, 32, 64, 2), (6, 16, 100, 1), (70, 48, 17, 3), (33, 48, 48, 2)]
        {
            let groups = Groups { size, count };
            let (w, x) = (numbers::<T>(size * count * depth, 1), numbers::<T>(rows * depth, 2));
            let panels = Panels::of_columns(products, &w, depth, groups).unwrap();
            let width = panels.cols();
            let mut out = vec![T::from_f64(f64::NAN); rows * width];
            panels.multiply(products, (&x, depth), rows, (&mut out, width)).unwrap();
            let term = |a: T, b: T| a.to_f64() * b.to_f64();
            for r in 0..rows {
                for (m, place) in groups.places().enumerate() {
                    let needed: f64 = (0..depth).map(|k| term(x[r * depth + k], w[m * depth + k])).sum();
                    assert_eq!(out[r * width + place].to_f64(), needed, "{products:?} {rows} {depth} {size} {count}");
                }
            }
            // The padding of `out` is zero, so that it can be multiplied with the rows again. Small integers once more.
            out.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() % 8.0));
            let back = Panels::of_rows(products, &w, depth, groups).unwrap();
            let mut again = vec![T::from_f64(f64::NAN); rows * back.cols()];
            back.multiply(products, (&out, width), rows, (&mut again, back.cols())).unwrap();
            for r in 0..rows {
                for k in 0..depth {
                    let places = groups.places().enumerate();
                    let needed: f64 = places.map(|(m, place)| term(out[r * width + place], w[m * depth + k])).sum();
                    assert_eq!(again[r * back.cols() + k].to_f64(), needed);
                }
            }
        }
    }

    fn check_outer<T: CpuElement>(products: &Products<T>) {
        for [rows, m, k] in [[1usize, 1, 1], [5, 7, 3], [70, 33, 40]] {
            let (y_row, x_row) = ((m + 3).next_multiple_of(PAD), k.next_multiple_of(PAD));
            let (y, x) = (numbers::<T>(rows * y_row, 3), numbers::<T>(rows * x_row, 4));
            let mut out = vec![T::from_f64(f64::NAN); m * x_row];
            outer(products, (&y, y_row, 2), (&x, x_row), rows, &mut out, [m, k]).unwrap();
            for i in 0..m {
                for j in 0..k {
                    let terms = (0..rows).map(|r| y[r * y_row + 2 + i].to_f64() * x[r * x_row + j].to_f64());
                    assert_eq!(out[i * x_row + j].to_f64(), terms.sum::<f64>(), "{products:?}");
                }
            }
        }
    }

    #[test]
    fn products_with_panels_are_products_with_the_matrix() {
        Isa::available().into_iter().for_each(|isa| check_panels::<f64>(&Products::new(isa.into()).unwrap()));
        every_form().iter().for_each(check_panels::<f32>);
    }

    #[test]
    fn outer_products_sum_over_the_rows() {
        Isa::available().into_iter().for_each(|isa| check_outer::<f64>(&Products::new(isa.into()).unwrap()));
        every_form().iter().for_each(check_outer::<f32>);
    }
}
