//! The running state of attention as callers hold it: what a prefix leaves for the keys and queries after it.
//!
//! A state is `[B,H,F,2+E]`, or `[num_segments,H,F,2+E]` for packed sequences. Each feature has a row of its own:
//!
//! | column | what |
//! | --- | --- |
//! | 0 | the reference n, an integer: sums are relative to `2^n`; [`Element::EMPTY_REFERENCE`] before the first key |
//! | 1 | `k_state`: the sum of `phi(k) / 2^n` over the keys |
//! | 2 .. 2+E | `kv_state`: the sum of `phi(k) v / 2^n` |
//!
//! References are integers so that changing one rescales its sums exactly. A state that saw something that is not
//! finite is NaN throughout. The derivative with respect to a reference is 0: it is a choice of unit.

use crate::element::Element;
use crate::error::{Error, Result};
use crate::memory::{check_len, try_filled};
use crate::shape::FavorShape;
pub use crate::shape::KV_STATE;
use std::sync::atomic::{AtomicBool, Ordering};

/// Features between two looks at the cancel flag.
const FEATURES_PER_CHECK: usize = 1024;

/// A state that has seen no key.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn empty_state<T: Element>(shape: &FavorShape) -> Result<Vec<T>> {
    let mut state = try_filled(shape.state().iter().product(), T::default())?;
    fill_empty(&mut state, shape.value_dim);
    Ok(state)
}

/// Makes a state one that has seen no key.
pub fn fill_empty<T: Element>(state: &mut [T], value_dim: usize) {
    for row in state.chunks_exact_mut(KV_STATE + value_dim) {
        row.fill(T::default());
        row[0] = T::EMPTY_REFERENCE;
    }
}

/// Adds state b to state a: the state of both sets of keys.
///
/// # Shapes
/// All `[.., 2 + value_dim]`, one row per feature.
///
/// # Errors
/// [`Error::ShapeMismatch`] where the lengths differ or hold no whole number of rows; [`Error::Interrupted`].
pub fn merge_states<T: Element>(a: &[T], b: &[T], value_dim: usize, out: &mut [T], cancel: &AtomicBool) -> Result<()> {
    let width = KV_STATE + value_dim;
    check_len("a", a.len(), a.len() / width * width)?;
    check_len("b", b.len(), a.len())?;
    check_len("out", out.len(), a.len())?;
    let rows = a.chunks_exact(width).zip(b.chunks_exact(width)).zip(out.chunks_exact_mut(width));
    for (feature, ((a, b), out)) in rows.enumerate() {
        if feature.is_multiple_of(FEATURES_PER_CHECK) && cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let top = if a[0] > b[0] { a[0] } else { b[0] };
        let (of_a, of_b) = (T::exp2_int(a[0] - top), T::exp2_int(b[0] - top));
        out[0] = top;
        for ((out, &a), &b) in out[1..].iter_mut().zip(&a[1..]).zip(&b[1..]) {
            *out = a * of_a + b * of_b;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(a: &[f64], b: &[f64]) -> Vec<f64> {
        let mut out = vec![f64::NAN; a.len()];
        merge_states(a, b, 1, &mut out, &AtomicBool::new(false)).unwrap();
        out
    }

    #[test]
    fn the_empty_state_is_neutral_on_both_sides() {
        let mut empty = [7.0; 6];
        fill_empty(&mut empty, 1);
        let state = [3.0, 1.5, -2.0, -40.0, 0.75, 9.0];
        assert_eq!(merged(&empty, &state), state);
        assert_eq!(merged(&state, &empty), state);
        assert_eq!(merged(&empty, &empty), empty);
    }

    #[test]
    fn merging_rescales_exactly_to_the_larger_reference() {
        assert_eq!(merged(&[3.0, 1.5, -2.0], &[1.0, 1.0, 4.0]), [3.0, 1.75, -1.0]);
        assert_eq!(merged(&[1.0, 1.0, 4.0], &[3.0, 1.5, -2.0]), [3.0, 1.75, -1.0]);
    }

    #[test]
    fn a_state_that_is_not_finite_stays_so() {
        let nan = [f64::NAN; 3];
        let state = [3.0, 1.5, -2.0];
        for found in [merged(&nan, &state), merged(&state, &nan)] {
            assert!(found[1..].iter().all(|x| x.is_nan()), "{found:?}");
        }
    }

    #[test]
    fn states_of_other_sizes_and_a_raised_flag_are_refused() {
        let (mut out, flag) = ([0.0; 3], AtomicBool::new(false));
        assert!(merge_states(&[0.0; 3], &[0.0; 6], 1, &mut out, &flag).is_err());
        assert!(merge_states(&[0.0; 4], &[0.0; 4], 1, &mut [0.0; 4], &flag).is_err());
        let raised = AtomicBool::new(true);
        assert_eq!(merge_states(&[0.0; 3], &[0.0; 3], 1, &mut out, &raised), Err(Error::Interrupted));
    }
}
