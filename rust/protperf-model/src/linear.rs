//! Linear layers: a weight matrix in panels, and products of rows with it.
//!
//! The product is `protperf_cpu`'s, whose every element is one chain of multiply-adds in the order of the depth: a row of
//! the result does not depend on the other rows, and no number of threads changes a bit. A GEMM crate would cut the depth
//! into blocks and choose kernels by the number of rows, which breaks both; on these shapes it is no faster, since a
//! panel of 64 columns stays in the second-level cache anyway.

use crate::buffer::Buffer;
use protperf_core::Result;
use protperf_cpu::CpuElement;
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

/// A right operand `[depth, cols]` in panels of 64 columns, `[panel][depth][64]`.
#[derive(Debug)]
pub struct Panels<T: CpuElement> {
    data: Buffer<T>,
    depth: usize,
    /// A multiple of [`PAD`].
    cols: usize,
}

impl<T: CpuElement> Panels<T> {
    /// For `x w^T`: the columns are the rows of w `[M,K]`, in groups.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn of_columns(ops: &Ops<T>, w: &[T], depth: usize, groups: Groups) -> Result<Self> {
        let cols = groups.padded();
        let mut data = Buffer::zeros(cols.div_ceil(PANEL) * PANEL * depth)?;
        if depth.is_multiple_of(PAD) && groups.size == groups.padded_size() {
            for (panel, rows) in data.chunks_exact_mut(PANEL * depth).zip(w.chunks(PANEL * depth)) {
                ops.transpose(rows, depth, rows.len() / depth, depth, panel, PANEL);
            }
        } else {
            for (row, col) in w.chunks_exact(depth).zip(groups.places()) {
                let panel = &mut data[col / PANEL * PANEL * depth..][col % PANEL..];
                panel.iter_mut().step_by(PANEL).zip(row).for_each(|(to, &x)| *to = x);
            }
        }
        Ok(Panels { data, depth, cols })
    }

    /// For `y w`: the depth is the rows of w `[M,K]`, in groups; the columns are those of w.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn of_rows(w: &[T], width: usize, groups: Groups) -> Result<Self> {
        let (depth, cols) = (groups.padded(), width.next_multiple_of(PAD));
        let mut data = Buffer::zeros(cols.div_ceil(PANEL) * PANEL * depth)?;
        for (row, at) in w.chunks_exact(width).zip(groups.places()) {
            for (panel, part) in row.chunks(PANEL).enumerate() {
                data[(panel * depth + at) * PANEL..][..part.len()].copy_from_slice(part);
            }
        }
        Ok(Panels { data, depth, cols })
    }

    /// Columns of the product, padding included.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `out = x times this` for some rows, or `out += ..` with [`Mode::Add`]; `*_row` are the distances between rows.
    pub fn multiply(
        &self,
        ops: &Ops<T>,
        (x, x_row): (&[T], usize),
        rows: usize,
        (out, out_row): (&mut [T], usize),
        mode: Mode,
    ) {
        for (panel, b) in self.data.chunks_exact((PANEL * self.depth).max(1)).enumerate() {
            let product = Product {
                a: x,
                a_row: x_row,
                a_depth: 1,
                b,
                b_row: PANEL,
                rows,
                cols: PANEL.min(self.cols - panel * PANEL),
                depth: self.depth,
                mode,
                triangle: Triangle::Whole,
            };
            ops.product(&product, &mut out[panel * PANEL..], out_row);
        }
    }
}

/// `out [M, K padded] = y^T x` over some rows: the gradient of a weight matrix `[M,K]`, where x was multiplied with it
/// and `y` arrived. The columns of y from `from` on count, M of them.
pub fn outer<T: CpuElement>(
    ops: &Ops<T>,
    (y, y_row, from): (&[T], usize, usize),
    (x, x_row): (&[T], usize),
    rows: usize,
    out: &mut [T],
    [m, k]: [usize; 2],
) {
    let cols = k.next_multiple_of(PAD);
    let product = Product {
        a: &y[from..],
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

#[cfg(test)]
mod tests {
    use super::*;
    use protperf_cpu::Isa;

    /// Small integers: every sum is exact in any order.
    fn numbers(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 17) as f64 - 8.0).collect()
    }

    #[test]
    fn products_with_panels_are_products_with_the_matrix() {
        for isa in Isa::available() {
            let ops = Ops::<f64>::of(isa);
            for (rows, depth, size, count) in
                [(1, 1, 1, 1), (7, 5, 3, 2), (13, 32, 64, 2), (6, 16, 100, 1), (70, 48, 17, 3)]
            {
                let groups = Groups { size, count };
                let (w, x) = (numbers(size * count * depth, 1), numbers(rows * depth, 2));
                let panels = Panels::of_columns(ops, &w, depth, groups).unwrap();
                let width = panels.cols();
                let mut out = vec![f64::NAN; rows * width];
                panels.multiply(ops, (&x, depth), rows, (&mut out, width), Mode::Store);
                for r in 0..rows {
                    for (m, place) in groups.places().enumerate() {
                        let needed: f64 = (0..depth).map(|k| x[r * depth + k] * w[m * depth + k]).sum();
                        assert_eq!(out[r * width + place], needed, "{isa:?} {rows} {depth} {size} {count}");
                    }
                }
                // The padding of `out` is zero, so that it can be multiplied with the rows again.
                let back = Panels::of_rows(&w, depth, groups).unwrap();
                let mut again = vec![0.0; rows * back.cols()];
                back.multiply(ops, (&out, width), rows, (&mut again, back.cols()), Mode::Add);
                for r in 0..rows {
                    for k in 0..depth {
                        let places = groups.places().enumerate();
                        let needed: f64 = places.map(|(m, place)| out[r * width + place] * w[m * depth + k]).sum();
                        assert_eq!(again[r * back.cols() + k], needed);
                    }
                }
            }
        }
    }

    #[test]
    fn outer_products_sum_over_the_rows() {
        for isa in Isa::available() {
            let ops = Ops::<f64>::of(isa);
            for [rows, m, k] in [[1usize, 1, 1], [5, 7, 3], [70, 33, 40]] {
                let (y_row, x_row) = ((m + 3).next_multiple_of(PAD), k.next_multiple_of(PAD));
                let (y, x) = (numbers(rows * y_row, 3), numbers(rows * x_row, 4));
                let mut out = vec![f64::NAN; m * x_row];
                outer(ops, (&y, y_row, 2), (&x, x_row), rows, &mut out, [m, k]);
                for i in 0..m {
                    for j in 0..k {
                        let needed: f64 = (0..rows).map(|r| y[r * y_row + 2 + i] * x[r * x_row + j]).sum();
                        assert_eq!(out[i * x_row + j], needed);
                    }
                }
            }
        }
    }
}
