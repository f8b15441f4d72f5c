//! Sums of chosen rows of a table: a product with a matrix that has a single 1 per row, without its zeros.
//!
//! ```text
//! totals[c] += sum_k table[chosen[k]][c]
//! ```
//!
//! A chain of additions waits for each of them, so the even k and the odd k have a chain of their own.

use crate::layout::PAD;
use crate::simd::{Real, Simd};

/// Adds the chosen rows of a table, each as wide as `totals`, to `totals`.
///
/// # Panics
/// Unless the width is a multiple of [`PAD`] and each chosen row is in the table.
///
/// # Safety
/// The processor must have the instruction set of S.
#[inline(always)]
pub unsafe fn add_chosen<S: Simd>(table: &[S::T], chosen: &[u32], totals: &mut [S::T]) {
    let width = totals.len();
    assert!(width.is_multiple_of(PAD) && chosen.iter().all(|&row| (row as usize + 1) * width <= table.len()));
    let mut col = 0;
    while col < width {
        let registers = (width - col) / S::LANES;
        // SAFETY: the caller guarantees the instruction set. A chosen row begins at a multiple of the width and ends
        // inside the table, as the assertion says; the columns that are read end at the width, which LANES divides.
        unsafe {
            let (from, to) = (table.as_ptr().add(col), totals.as_mut_ptr().add(col));
            match registers {
                4.. => columns::<S, 4>(from, width, chosen, to),
                3 => columns::<S, 3>(from, width, chosen, to),
                2 => columns::<S, 2>(from, width, chosen, to),
                _ => columns::<S, 1>(from, width, chosen, to),
            }
        }
        col += registers.min(4) * S::LANES;
    }
}

/// N registers of the columns of each chosen row.
///
/// # Safety
/// The processor must have the instruction set of S; N registers at `to`, and at each chosen row from `from` on, must
/// lie in their slices.
#[inline(always)]
unsafe fn columns<S: Simd, const N: usize>(from: *const S::T, width: usize, chosen: &[u32], to: *mut S::T) {
    // SAFETY: passed on from the caller.
    unsafe {
        let mut sums = [[S::splat(S::T::ZERO); N]; 2];
        for (n, sum) in sums[0].iter_mut().enumerate() {
            *sum = S::load(to.add(n * S::LANES));
        }
        let add = |sums: &mut [S::Register; N], row: u32| {
            let at = from.add(row as usize * width);
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(at.add(n * S::LANES)));
            }
        };
        let pairs = chosen.chunks_exact(2);
        let last = pairs.remainder();
        for pair in pairs {
            add(&mut sums[0], pair[0]);
            add(&mut sums[1], pair[1]);
        }
        last.iter().for_each(|&row| add(&mut sums[0], row));
        let [even, odd] = sums;
        for (n, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            S::store(to.add(n * S::LANES), S::add(even, odd));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::dispatch::Isa;
    use crate::ops::{CpuElement, Ops};

    fn check<T: CpuElement>(isa: Isa) {
        for width in [16, 32, 48, 64, 80] {
            let table: Vec<T> = (0..7 * width).map(|i| T::from_f64(((i * 37) % 101) as f64)).collect();
            for chosen in [&[][..], &[6], &[0, 6], &[3, 3, 3], &[5, 1, 0, 2, 6]] {
                let mut totals = vec![T::ONE; width];
                Ops::<T>::of(isa).add_chosen(&table, chosen, &mut totals);
                for (col, &total) in totals.iter().enumerate() {
                    // Sums of small integers are exact in any order.
                    let wanted: f64 = chosen.iter().map(|&row| table[row as usize * width + col].to_f64()).sum();
                    assert_eq!(total.to_f64(), 1.0 + wanted, "{isa:?} width {width} column {col}");
                }
            }
        }
    }

    #[test]
    fn sums_are_exact_on_every_instruction_set() {
        for isa in Isa::available() {
            check::<f32>(isa);
            check::<f64>(isa);
        }
    }

    #[test]
    #[should_panic(expected = "chosen")]
    fn a_row_outside_of_the_table_is_refused() {
        Ops::<f32>::of(Isa::available()[0]).add_chosen(&[0.0; 32], &[2], &mut [0.0; 16]);
    }
}
