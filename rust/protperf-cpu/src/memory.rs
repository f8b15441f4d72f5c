//! Memory that is asked for with an error instead of an abort.

use protperf_core::{Error, Result};

/// An empty vector with room for `len`.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn try_reserved<T>(len: usize) -> Result<Vec<T>> {
    let mut reserved = Vec::new();
    reserved.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()) })?;
    Ok(reserved)
}

/// A vector of `len` copies.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn try_filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut filled = try_reserved(len)?;
    filled.resize(len, value);
    Ok(filled)
}

/// A copy of a slice.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn try_copied<T: Copy>(from: &[T]) -> Result<Vec<T>> {
    let mut copy = try_reserved(from.len())?;
    copy.extend_from_slice(from);
    Ok(copy)
}

/// Checks the length of an argument.
///
/// # Errors
/// [`Error::ShapeMismatch`].
pub fn check_len(argument: &'static str, found: usize, needed: usize) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    Err(Error::ShapeMismatch { argument, detail: format!("has {found} elements, its shape needs {needed}") })
}
