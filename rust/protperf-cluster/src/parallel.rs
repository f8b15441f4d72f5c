//! The same task for every index, on several threads, with the results in the order of the indices.

use protperf_core::{Error, Execution, Result};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Indices that a thread takes at once.
const TAKEN: usize = 16;

/// The results of `task` for every index below `len`. Each thread has a scratch of its own, made by `scratch`.
///
/// # Errors
/// [`Error::Interrupted`] where the flag of `run` is raised.
pub fn map<S, R: Send>(
    len: usize,
    run: &Execution<'_>,
    scratch: impl Fn() -> S + Sync,
    task: impl Fn(usize, &mut S) -> R + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut scratch, mut found) = (scratch(), Vec::new());
        loop {
            let start = next.fetch_add(TAKEN, Ordering::Relaxed);
            if start >= len || run.cancel.load(Ordering::Relaxed) {
                return found;
            }
            let end = len.min(start + TAKEN);
            found.push((start, (start..end).map(|index| task(index, &mut scratch)).collect::<Vec<R>>()));
        }
    };
    let mut found = std::thread::scope(|scope| {
        let others: Vec<_> = (1..run.num_threads.min(len.div_ceil(TAKEN))).map(|_| scope.spawn(work)).collect();
        let mut found = work();
        for other in others {
            match other.join() {
                Ok(more) => found.extend(more),
                Err(payload) => std::panic::resume_unwind(payload),
            }
        }
        found
    });
    if run.cancel.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    found.sort_unstable_by_key(|&(start, _)| start);
    Ok(found.into_iter().flat_map(|(_, results)| results).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn results_come_in_order_from_any_number_of_threads() {
        let cancel = AtomicBool::new(false);
        for (len, num_threads) in [(0, 3), (1, 4), (15, 2), (1000, 1), (1000, 3)] {
            let run = Execution { num_threads, cancel: &cancel };
            let found = map(len, &run, || 0, |index, _| index * index).unwrap();
            assert_eq!(found, (0..len).map(|index| index * index).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_raised_flag_stops_the_work() {
        let cancel = AtomicBool::new(false);
        let run = Execution { num_threads: 2, cancel: &cancel };
        let found = map(1 << 20, &run, || (), |_, ()| cancel.store(true, Ordering::Relaxed));
        assert_eq!(found, Err(Error::Interrupted));
    }
}
