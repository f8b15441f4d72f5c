//! Work in groups that become smaller where the device has no room for them.

use crate::context::Gpu;
use std::ops::Range;

/// Does the work of `count` things in their order, some at a time: `group` says which come next, from the first that is
/// not done and how many there may be at most. A group of several for which there is no memory is halved, and so are
/// those after it; `is_full` recognizes that. What `work` did of a group before it failed has to leave no trace.
///
/// # Errors
/// What `work` returns, but for a group of several.
pub fn in_groups<E>(
    gpu: &Gpu,
    count: usize,
    is_full: impl Fn(&E) -> bool,
    group: impl Fn(usize, usize) -> Range<usize>,
    mut work: impl FnMut(Range<usize>) -> Result<(), E>,
) -> Result<(), E> {
    let (mut next, mut most) = (0, usize::MAX);
    while next < count {
        let range = group(next, most);
        let len = range.len();
        match work(range.clone()) {
            Ok(()) => next = range.end,
            Err(error) if len > 1 && is_full(&error) => {
                most = len / 2;
                gpu.wait();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
