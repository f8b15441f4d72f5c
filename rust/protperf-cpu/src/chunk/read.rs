//! Sums of a chunk's queries over the state and over the keys of their own chunk: `docs/algorithm.md`, section 1.
//!
//! ```text
//! P  = tril(phi_q . phi_k^T)                       scores, one panel of features after another
//! ND = phi_q . S + P . [v, 1]                      numerators and denominators
//! ```
//!
//! All features of a chunk, of keys and queries alike, are relative to the references that include the chunk's own keys.

use super::buffers::{Keys, Queries, References, Scores, Sums};
use crate::features::Family;
use crate::layout::{CHUNK, Layout, PAD, PANEL};
use crate::ops::{CpuElement, Mode, Product, Triangle, sum_of};
use crate::packed_omega::Head;
use crate::products::Place;
use crate::state::State;

/// Chooses the exponent of each row; returns the rows whose references lie too far above what they see, and which
/// therefore have to be computed again.
///
/// Such a row gets an exponent so large that its features vanish here: [`super::recompute`] adds what it contributes.
pub fn choose_exponents<T: CpuElement>(
    head: &Head<'_, T>,
    family: &dyn Family<T>,
    references: &References<T>,
    keys: Option<&Keys<'_, T>>,
    queries: &Queries<'_, T>,
    normalize: bool,
    sums: &mut Sums<T>,
) -> Vec<usize> {
    if normalize || keys.is_some() {
        let range = 0..queries.count;
        family.row_tops(head, queries.rows, range, &references.reference, &mut sums.lanes, &mut sums.tops);
    }
    let mut again = Vec::new();
    let mut seen = references.before.reference[0];
    for row in 0..queries.count {
        let shift = queries.rows.shift[row];
        sums.exponent[row] = if normalize { sums.tops[row] } else { shift };
        let Some(keys) = keys else { continue };
        let own = keys.rows.log[row].round_even() - keys.rows.shift[row];
        if keys.rows.visible[row] && own > seen {
            seen = own;
        }
        let too_far = match normalize {
            true => family.looks_too_far(references.reference[0], seen),
            // The exponent is given, by the denominator of the forward pass: terms above it belong to later keys.
            false => sums.tops[row] - shift > T::MAX_LOOKAHEAD_BITS,
        };
        if too_far {
            again.push(row);
        }
    }
    hide_rows(&again, sums);
    again
}

/// Makes the features of some rows vanish.
pub fn hide_rows<T: CpuElement>(rows: &[usize], sums: &mut Sums<T>) {
    rows.iter().for_each(|&row| sums.exponent[row] = -T::EMPTY_REFERENCE);
}

/// Adds one panel: scores of the chunk, and sums over the state.
pub fn add_panel<T: CpuElement>(
    head: &Head<'_, T>,
    panel: usize,
    state: &State<T>,
    keys: Option<&Keys<'_, T>>,
    count: usize,
    scores: &mut Scores<T>,
    sums: &mut Sums<T>,
) {
    let layout = &head.layout;
    let (extent, padded_value) = (layout.extent(panel, count), layout.padded_value());
    let base = Product {
        a: &sums.features,
        a_row: PANEL,
        a_depth: 1,
        b: &[],
        b_row: 0,
        rows: count,
        cols: 0,
        depth: extent.features,
        mode: Mode::Continue,
        triangle: Triangle::Whole,
    };
    let left = head.products.left(Place::Left, &base);
    if let Some(keys) = keys {
        let padded = keys.count.next_multiple_of(PAD);
        let features = &keys.features[panel * CHUNK * PANEL..][..CHUNK * PANEL];
        let triangle = if keys.is_causal { Triangle::LowerColumns } else { Triangle::Whole };
        let product = Product { b: features, b_row: PANEL, cols: padded, triangle, ..base };
        head.products.product_of_transposed(
            &left,
            &product,
            (&mut scores.transposed, CHUNK),
            &mut scores.values,
            CHUNK,
        );
    }
    // Zeros would be added: in a sequence of one chunk these are a fifth of all products.
    if !state.has_keys {
        return;
    }
    if padded_value > 0 {
        let values = &state.values[panel * PANEL * padded_value..];
        let product = Product { b: values, b_row: padded_value, cols: padded_value, ..base };
        head.products.product_of(&left, &product, &mut sums.numerator, layout.value_row());
    }
    head.ops.dot_rows(&sums.features, extent, &state.sums[panel * PANEL..], &mut sums.lanes);
}

/// Adds the chunk's own keys to the sums over the state.
///
/// The sum over the chunk starts from 0 and is then added to the state's part, here and where a row is computed again,
/// so that both ways give the same bits.
pub fn finish<T: CpuElement>(
    head: &Head<'_, T>,
    keys: Option<&Keys<'_, T>>,
    count: usize,
    scores: &mut Scores<T>,
    sums: &mut Sums<T>,
) {
    let (value_row, padded_value) = (head.layout.value_row(), head.layout.padded_value());
    if let Some(keys) = keys {
        if keys.is_causal {
            // Masked, not multiplied by 0: what is not finite in a later row must not reach an earlier one.
            keep_lower(&mut scores.values, count);
        }
        let product = own_sums(&scores.values, keys, &head.layout, count);
        head.products.product(&product, &mut sums.numerator, value_row);
    }
    for row in 0..count {
        let own = keys.map_or(T::ZERO, |keys| {
            let seen = if keys.is_causal { row + 1 } else { keys.count };
            weighted_ones(&scores.values[row * CHUNK..][..seen], &keys.rows.values_and_one[padded_value..], value_row)
        });
        sums.denominator[row] = sum_of(&sums.lanes[row * PAD..][..PAD]) + own;
    }
}

/// `scores . v` of the first `count` rows of a chunk, the ones left out.
fn own_sums<'a, T>(scores: &'a [T], keys: &Keys<'a, T>, layout: &Layout, count: usize) -> Product<'a, T> {
    Product {
        a: scores,
        a_row: CHUNK,
        a_depth: 1,
        b: &keys.rows.values_and_one,
        b_row: layout.value_row(),
        rows: count,
        cols: layout.padded_value(),
        depth: keys.count,
        mode: Mode::Add,
        triangle: if keys.is_causal { Triangle::LowerDepth } else { Triangle::Whole },
    }
}

/// Zeroes what lies right of the diagonal in the rows of a chunk.
pub fn keep_lower<T: CpuElement>(square: &mut [T], count: usize) {
    for (row, entries) in square.chunks_exact_mut(CHUNK).take(count).enumerate() {
        entries[row + 1..].fill(T::ZERO);
    }
}

/// `sum_j scores[j] * ones[j * step]`, in order.
pub fn weighted_ones<T: CpuElement>(scores: &[T], ones: &[T], step: usize) -> T {
    scores.iter().enumerate().fold(T::ZERO, |sum, (j, &score)| sum + score * ones[j * step])
}
