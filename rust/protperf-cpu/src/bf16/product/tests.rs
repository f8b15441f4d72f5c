//! Products of tiles against plain sums of the rounded numbers, on every unit that runs here.

use super::*;
use crate::bf16::{Matrix, Role, Term, round};

const WHOLE: TileProduct<'static> = TileProduct {
    left: &[],
    right: &[],
    rows: 0,
    cols: 0,
    depth: 0,
    mode: Mode::Store,
    triangle: Triangle::Whole,
    split: Split::None,
    tails: [0, 0],
};

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
            let p = TileProduct { left: &left, right: &right, rows, cols: padded, depth, ..WHOLE };
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
fn sums_that_start_from_c_and_triangles_are_those_of_the_plain_loop() {
    let rounded = |x: f32| f64::from(f32::from_bits(u32::from(round(x)) << 16));
    for unit in Unit::available() {
        for n in [1usize, 15, 16, 17, 33, 50, 64] {
            let (padded, c_row) = (n.next_multiple_of(COLS), 67);
            let mut a = numbers(n * n, 1);
            (0..n * n).filter(|i| i % n > i / n).for_each(|i| a[i] = 0.0);
            let (b, first) = (numbers(n * n, 2), numbers(n * c_row, 3));
            let left = packed(Role::Left, &a, [n, n], n);
            let right = packed(Role::Right, &b, [n, n], n);
            let forms = [Triangle::Whole, Triangle::LowerDepth, Triangle::LowerColumns]
                .map(|t| [(t, Mode::Add), (t, Mode::Continue)]);
            for (triangle, mode) in forms.into_iter().flatten() {
                let mut c = first.clone();
                let p = TileProduct {
                    left: &left,
                    right: &right,
                    rows: n,
                    cols: padded,
                    depth: n,
                    mode,
                    triangle,
                    ..WHOLE
                };
                unit.multiply(&p, &mut c, c_row);
                for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    if triangle == Triangle::LowerColumns && j > i {
                        continue;
                    }
                    let start = f64::from(first[i * c_row + j]);
                    let needed = (0..=i).map(|k| rounded(a[i * n + k]) * rounded(b[k * n + j])).sum::<f64>() + start;
                    assert!((f64::from(c[i * c_row + j]) - needed).abs() < 1e-4, "{unit:?} {triangle:?} {i} {j}");
                }
                assert!((0..n).all(
                    |i| c[i * c_row + padded..][..c_row - padded] == first[i * c_row + padded..][..c_row - padded]
                ));
            }
        }
    }
}

#[test]
fn instructions_and_emulation_give_the_same_bits() {
    // Exponents that overflow, cancel and vanish.
    let wild = |len: usize, seed: u32| -> Vec<f32> {
        let bits = (0..len as u32).map(|i| i.wrapping_mul(0x9e37_79b1).wrapping_add(seed).wrapping_mul(0x85eb_ca6b));
        bits.map(f32::from_bits).map(|x| if x.is_finite() { x } else { 1.0 }).collect()
    };
    let tame = |len: usize, seed: u32| numbers(len, seed as usize);
    for make in [&tame as &dyn Fn(usize, u32) -> Vec<f32>, &wild] {
        let (a, b) = (make(50 * 70, 1), make(70 * 48, 2));
        let left = packed(Role::Left, &a, [50, 70], 70);
        let right = packed(Role::Right, &b, [70, 48], 48);
        let p = TileProduct { left: &left, right: &right, rows: 50, cols: 48, depth: 70, ..WHOLE };
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

#[test]
fn split_operands_and_tails_give_the_products_of_their_terms() {
    let [m, n, k] = [37, 45, 83];
    let (a, b) = (numbers(m * k, 5), numbers(k * n, 6));
    let bf16 = |x: f32| f32::from_bits(u32::from(round(x)) << 16);
    let whole: Vec<f32> = a.iter().map(|&x| bf16(x)).collect();
    let (ones, norms) = (vec![1.0; n], numbers(m, 7).into_iter().map(bf16).collect::<Vec<f32>>());
    for unit in Unit::available() {
        // The right operand has a tail that is used with one on the left, and left out without.
        for (split, a, tail) in
            [(Split::Both, &a, 0), (Split::Both, &a, 1), (Split::Right, &whole, 0), (Split::Right, &whole, 1)]
        {
            let [left_terms, right_terms] = split.terms();
            let [left_step, right_step] = [left_terms * k.div_ceil(DEPTH) + tail, right_terms * k.div_ceil(DEPTH) + 1];
            let mut left = vec![Tile::ZERO; m.div_ceil(COLS) * left_step];
            let mut right = vec![Tile::ZERO; n.div_ceil(COLS) * right_step];
            let terms = [Term::High, Term::Low];
            Role::Left.pack_terms(&Matrix { data: a, row: k, rows: m, cols: k }, &terms[..left_terms], &mut left);
            Role::Right.pack_terms(&Matrix { data: &b, row: n, rows: k, cols: n }, &terms[..right_terms], &mut right);
            for (outer, tiles) in left.chunks_exact_mut(left_step).enumerate().filter(|_| tail == 1) {
                let rows = COLS.min(m - outer * COLS);
                let matrix = Matrix { data: &norms[outer * COLS..], row: 1, rows, cols: 1 };
                Role::Left.pack(&matrix, &mut tiles[left_step - 1..]);
            }
            for (outer, tiles) in right.chunks_exact_mut(right_step).enumerate() {
                let cols = COLS.min(n - outer * COLS);
                Role::Right.pack(&Matrix { data: &ones, row: n, rows: 1, cols }, &mut tiles[right_step - 1..]);
            }
            let cols = n.next_multiple_of(COLS);
            let p =
                TileProduct { left: &left, right: &right, rows: m, cols, depth: k, split, tails: [tail, 1], ..WHOLE };
            let mut c = vec![f32::NAN; m * cols];
            unit.multiply(&p, &mut c, cols);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let terms = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j]));
                let (needed, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                let needed = needed + if tail == 1 { f64::from(norms[i]) } else { 0.0 };
                let off = (f64::from(c[i * cols + j]) - needed).abs();
                // Two halves of 2^-8 were rounded in each factor, and the product of both low terms is left out.
                assert!(off <= (size + 2.0) * 2f64.powi(-15), "{unit:?} {split:?} tail {tail} {i} {j} {off:e}");
            }
        }
    }
}
