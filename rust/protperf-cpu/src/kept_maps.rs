//! Maps that recent calls prepared, so that calls with the same parameters do not pack them again.
//!
//! A map is found by its content, all of its bits: a buffer that was changed in place, or freed and used again, is
//! another map. Comparing costs a fifth of packing. What is kept is bounded, and a lock that another call holds is not
//! waited for: such a call packs for itself, and so does a child that was forked while the lock was held.

use crate::instructions::Instructions;
use crate::ops::CpuElement;
use crate::prepared::PreparedMap;
use protperf_core::{FeatureMap, MapArgs, Omega, Result, try_copied};
use std::any::Any;
use std::sync::{Mutex, MutexGuard};

/// Maps that are kept: the layers of a few networks.
const MAX_KEPT: usize = 64;
/// Numbers that they are made of, all together: 16 MB.
const MAX_NUMBERS: usize = 2 << 20;

/// What a map was made of, and what was made of it.
struct Kept {
    instructions: Instructions,
    map: FeatureMap,
    kernel_epsilon: u64,
    heads: usize,
    num_heads: Option<usize>,
    sizes: [usize; 2],
    numbers: Vec<f64>,
    prepared: Box<dyn Any + Send>,
}

/// Kept maps, the most recent first.
type Shelf = Mutex<Vec<Kept>>;

static KEPT: Shelf = Mutex::new(Vec::new());

/// A prepared map, kept from an earlier call or prepared by `prepare` and kept.
///
/// # Errors
/// What `prepare` returns.
pub fn prepared<T: CpuElement>(
    instructions: Instructions,
    map: &MapArgs<'_>,
    heads: usize,
    prepare: impl FnOnce() -> Result<PreparedMap<T>>,
) -> Result<PreparedMap<T>> {
    prepared_on(&KEPT, instructions, map, heads, prepare)
}

fn prepared_on<T: CpuElement>(
    shelf: &Shelf,
    instructions: Instructions,
    map: &MapArgs<'_>,
    heads: usize,
    prepare: impl FnOnce() -> Result<PreparedMap<T>>,
) -> Result<PreparedMap<T>> {
    let MapArgs::Named { map, omega: Some(omega), kernel_epsilon } = map else { return prepare() };
    if omega.data.len() > MAX_NUMBERS {
        return prepare();
    }
    let key = Key { instructions, map: *map, kernel_epsilon: kernel_epsilon.to_bits(), heads, omega };
    if let Some(found) = lock(shelf).and_then(|mut kept| key.find(&mut kept)) {
        return Ok(found);
    }
    let made = prepare()?;
    // A copy that does not fit in memory need not be an error: the next call packs again.
    if let (Ok(numbers), Some(mut kept)) = (try_copied(omega.data), lock(shelf)) {
        key.keep(&mut kept, numbers, made.clone());
    }
    Ok(made)
}

/// The maps, unless another call looks at them.
fn lock(shelf: &Shelf) -> Option<MutexGuard<'_, Vec<Kept>>> {
    shelf.try_lock().ok()
}

/// What a map is looked for by.
struct Key<'a> {
    instructions: Instructions,
    map: FeatureMap,
    kernel_epsilon: u64,
    heads: usize,
    omega: &'a Omega<'a>,
}

impl Key<'_> {
    fn sizes(&self) -> [usize; 2] {
        [self.omega.num_features, self.omega.head_dim]
    }

    fn find<T: CpuElement>(&self, kept: &mut Vec<Kept>) -> Option<PreparedMap<T>> {
        let at = kept.iter().position(|one| self.is_of(one) && one.prepared.is::<PreparedMap<T>>())?;
        let found = kept.remove(at);
        let prepared = found.prepared.downcast_ref::<PreparedMap<T>>().cloned();
        kept.insert(0, found);
        prepared
    }

    fn is_of(&self, one: &Kept) -> bool {
        one.instructions == self.instructions
            && one.map == self.map
            && one.kernel_epsilon == self.kernel_epsilon
            && one.heads == self.heads
            && one.num_heads == self.omega.num_heads
            && one.sizes == self.sizes()
            && have_same_bits(&one.numbers, self.omega.data)
    }

    fn keep<T: CpuElement>(&self, kept: &mut Vec<Kept>, numbers: Vec<f64>, prepared: PreparedMap<T>) {
        let total = |kept: &[Kept]| kept.iter().map(|one| one.numbers.len()).sum::<usize>();
        while kept.len() >= MAX_KEPT || !kept.is_empty() && total(kept) + numbers.len() > MAX_NUMBERS {
            kept.pop();
        }
        let Key { instructions, map, kernel_epsilon, heads, .. } = *self;
        let (num_heads, sizes) = (self.omega.num_heads, self.sizes());
        if kept.try_reserve(1).is_ok() {
            let prepared = Box::new(prepared);
            kept.insert(0, Kept { instructions, map, kernel_epsilon, heads, num_heads, sizes, numbers, prepared });
        }
    }
}

/// Whether all bits are the same, those of NaN and of the sign of 0 too; in blocks, each without a branch.
fn have_same_bits(a: &[f64], b: &[f64]) -> bool {
    let differ = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0, |bits, (a, b)| bits | (a.to_bits() ^ b.to_bits())) != 0;
    a.len() == b.len() && !a.chunks(1024).zip(b.chunks(1024)).any(|(a, b)| differ(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Isa;
    use std::cell::Cell;

    #[test]
    fn a_map_is_found_by_all_of_its_bits_and_by_nothing_else() {
        let (shelf, packed) = (Shelf::default(), Cell::new(0));
        let instructions = Instructions { isa: Isa::available()[0], bf16: None };
        let find = |data: &[f64], map, epsilon, heads| {
            let omega = Omega { data, num_heads: None, num_features: 3, head_dim: 2 };
            let args = MapArgs::Named { map, omega: Some(omega), kernel_epsilon: epsilon };
            prepared_on::<f32>(&shelf, instructions, &args, heads, || {
                packed.set(packed.get() + 1);
                PreparedMap::new(instructions, &args, heads, 2, || Ok(()))
            })
            .unwrap();
            packed.get()
        };
        let mut data = [0.125, 1.0, 2.0, -3.0, 0.0, 4.0];
        assert_eq!(find(&data, FeatureMap::Relu, 0.1, 2), 1);
        assert_eq!(find(&data, FeatureMap::Relu, 0.1, 2), 1);
        let elsewhere = data;
        assert_eq!(find(&elsewhere, FeatureMap::Relu, 0.1, 2), 1);
        assert_eq!(find(&data, FeatureMap::Elu1, 0.1, 2), 2);
        assert_eq!(find(&data, FeatureMap::Relu, 0.2, 2), 3);
        assert_eq!(find(&data, FeatureMap::Relu, 0.1, 3), 4);
        // In place: the last bit of one number, the sign of 0, NaN.
        for (at, x) in [(5, 4.0 + 4.0 * f64::EPSILON), (4, -0.0), (0, f64::NAN)] {
            let before = packed.get();
            data[at] = x;
            assert_eq!(find(&data, FeatureMap::Relu, 0.1, 2), before + 1);
            assert_eq!(find(&data, FeatureMap::Relu, 0.1, 2), before + 1);
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (shelf, instructions) = (Shelf::default(), Instructions { isa: Isa::available()[0], bf16: None });
        for at in 0..200 {
            let data = vec![f64::from(at); 1 << 16];
            let omega = Omega { data: &data, num_heads: None, num_features: 1 << 10, head_dim: 64 };
            let args = MapArgs::Named { map: FeatureMap::Relu, omega: Some(omega), kernel_epsilon: 0.0 };
            prepared_on::<f64>(&shelf, instructions, &args, 1, || {
                PreparedMap::new(instructions, &args, 1, 64, || Ok(()))
            })
            .unwrap();
        }
        let kept = shelf.lock().unwrap();
        assert!(kept.len() <= MAX_KEPT && kept.iter().map(|one| one.numbers.len()).sum::<usize>() <= MAX_NUMBERS);
    }
}
