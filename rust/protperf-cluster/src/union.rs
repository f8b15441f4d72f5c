//! Which sequences are connected, while several threads connect them.

use std::sync::atomic::{AtomicU32, Ordering};

/// Disjoint sets of the numbers below a limit. The smallest member of a set is its root, so the sets that come of some
/// connections do not depend on the order in which they are made.
pub struct Union {
    parents: Vec<AtomicU32>,
}

impl Union {
    /// Each number alone.
    pub fn new(len: usize) -> Self {
        Union { parents: (0..len as u32).map(AtomicU32::new).collect() }
    }

    /// The smallest member of a number's set, as far as connections have been made.
    pub fn root(&self, mut index: u32) -> u32 {
        loop {
            let parent = self.parents[index as usize].load(Ordering::Relaxed);
            if parent == index {
                return index;
            }
            // Halve the path; losing this race to another thread only leaves it longer.
            let above = self.parents[parent as usize].load(Ordering::Relaxed);
            let slot = &self.parents[index as usize];
            let _ = slot.compare_exchange(parent, above, Ordering::Relaxed, Ordering::Relaxed);
            index = above;
        }
    }

    /// Connects two numbers.
    pub fn join(&self, a: u32, b: u32) {
        loop {
            let (a, b) = (self.root(a), self.root(b));
            let (low, high) = (a.min(b), a.max(b));
            // Fails where another thread has given `high` a parent meanwhile.
            let slot = &self.parents[high as usize];
            if low == high || slot.compare_exchange(high, low, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_the_smallest_members_in_any_order() {
        let pairs = [(7, 3), (3, 5), (9, 8), (0, 1), (5, 9)];
        for turn in 0..pairs.len() {
            let union = Union::new(10);
            for at in 0..pairs.len() {
                let (a, b) = pairs[(at + turn) % pairs.len()];
                union.join(a, b);
            }
            assert_eq!((0..10).map(|index| union.root(index)).collect::<Vec<_>>(), [0, 0, 2, 3, 4, 3, 6, 3, 3, 3]);
        }
    }

    #[test]
    fn threads_that_connect_one_chain_agree() {
        let union = Union::new(4000);
        std::thread::scope(|scope| {
            for part in 0..4 {
                let union = &union;
                scope.spawn(move || (part..3999).step_by(4).for_each(|i| union.join(i, i + 1)));
            }
        });
        assert!((0..4000).all(|index| union.root(index) == 0));
    }
}
