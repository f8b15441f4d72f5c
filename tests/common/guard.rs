//! Memory whose last or first element borders on a page without access: one step too far ends the process.

use std::ffi::{c_int, c_void};
use std::ops::{Deref, DerefMut};

unsafe extern "C" {
    fn mmap(at: *mut c_void, bytes: usize, protection: c_int, flags: c_int, file: c_int, offset: i64) -> *mut c_void;
    fn mprotect(at: *mut c_void, bytes: usize, protection: c_int) -> c_int;
    fn munmap(at: *mut c_void, bytes: usize) -> c_int;
    fn getpagesize() -> c_int;
}

const NOTHING: c_int = 0;
const READ_WRITE: c_int = 1 | 2;
/// Private and anonymous.
const FLAGS: c_int = 2 | if cfg!(target_os = "macos") { 0x1000 } else { 0x20 };

/// Which end of the elements touches the guard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Against {
    /// The page before the first element is guarded.
    Start,
    /// The page behind the last element is guarded.
    End,
}

/// Elements between two guard pages.
pub struct Guarded<T> {
    base: *mut c_void,
    bytes: usize,
    first: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    /// A copy of `values`.
    pub fn new(values: &[T], against: Against) -> Self {
        // SAFETY: takes no argument and only reads a constant of the system.
        let page = unsafe { getpagesize() } as usize;
        let size = size_of_val(values);
        let body = size.next_multiple_of(page).max(page);
        let bytes = body + 2 * page;
        // SAFETY: a new mapping at an address of the system's choice.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, READ_WRITE, FLAGS, -1, 0) };
        assert!(!base.is_null() && base as isize != -1, "no memory for {bytes} bytes between guard pages");
        let body_start = base.wrapping_byte_add(page);
        for guard in [base, base.wrapping_byte_add(page + body)] {
            // SAFETY: a whole page of the mapping above, which nothing refers to yet.
            assert_eq!(unsafe { mprotect(guard, page, NOTHING) }, 0);
        }
        let offset = if against == Against::End { body - size } else { 0 };
        let first = body_start.wrapping_byte_add(offset).cast::<T>();
        assert!(first.is_aligned());
        // SAFETY: `first` is aligned and has `size` bytes of the mapping before the second guard.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), first, values.len()) };
        Guarded { base, bytes, first, len: values.len() }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements that `new` has written, mapped as long as this lives.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the whole mapping of `new`, which nothing borrows any more.
        unsafe { munmap(self.base, self.bytes) };
    }
}
