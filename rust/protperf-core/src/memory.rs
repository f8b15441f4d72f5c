//! Memory that is asked for with an error instead of an abort, and lengths that are checked once.

use crate::error::{Error, Result};

/// An empty vector with room for `len` elements.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn try_reserved<T>(len: usize) -> Result<Vec<T>> {
    let mut reserved = Vec::new();
    reserved.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()) })?;
    Ok(reserved)
}

/// A vector of `len` copies of a value.
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
pub fn try_copied<T: Clone>(from: &[T]) -> Result<Vec<T>> {
    let mut copied = try_reserved(from.len())?;
    copied.extend_from_slice(from);
    Ok(copied)
}

/// Makes a vector a copy of a slice, in the memory that it has where that is enough; empty where an error is returned.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn try_copy_into<T: Clone>(from: &[T], to: &mut Vec<T>) -> Result<()> {
    to.clear();
    to.try_reserve_exact(from.len()).map_err(|_| Error::OutOfMemory { bytes: size_of_val(from) })?;
    to.extend_from_slice(from);
    Ok(())
}

/// Refuses a buffer of another length than its shape needs.
///
/// # Errors
/// [`Error::ShapeMismatch`].
pub fn check_len(argument: &'static str, found: usize, needed: usize) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    Err(Error::shape(argument, format!("has {found} elements, its shape needs {needed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_does_not_exist_is_an_error() {
        let len = isize::MAX as usize / 16;
        assert_eq!(try_filled(len, 0.0f64), Err(Error::OutOfMemory { bytes: len * size_of::<f64>() }));
        assert_eq!(try_reserved::<f64>(usize::MAX), Err(Error::OutOfMemory { bytes: usize::MAX }));
        assert_eq!(try_filled(3, 7), Ok(vec![7, 7, 7]));
        assert_eq!(try_copied(&[1, 2]), Ok(vec![1, 2]));
    }

    #[test]
    fn a_vector_becomes_a_copy_in_its_own_memory() {
        let mut to = vec![1, 2, 3];
        let place = to.as_ptr();
        assert_eq!(try_copy_into(&[4, 5], &mut to), Ok(()));
        assert_eq!((to.as_slice(), to.as_ptr()), ([4, 5].as_slice(), place));
    }

    #[test]
    fn a_buffer_of_another_length_is_refused_by_name() {
        assert_eq!(check_len("out", 4, 4), Ok(()));
        assert_eq!(check_len("out", 3, 4).unwrap_err().to_string(), "out has 3 elements, its shape needs 4");
    }
}
