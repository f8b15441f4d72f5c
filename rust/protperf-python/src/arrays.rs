//! Python buffers as slices and views.
//!
//! # Data races
//! A `PyBuffer` keeps its exporter's memory alive and in place, but not unchanged: while a kernel runs without the
//! GIL, another Python thread may write to an array that the kernel reads, or read one that it writes. That is a data
//! race, and in Rust a data race is undefined behaviour, whoever causes it. It is accepted here, as it is in every
//! NumPy function that releases the GIL: Python has no means to lock an array, and a copy of every input would double
//! memory and cost more than the attention of a short sequence. What keeps the harm small is that elements are plain
//! numbers, that no size, index or branch on memory depends on an element (offsets come from shapes and strides that
//! were copied at the start), and that outputs are arrays which our own Python code has just made. The documentation
//! asks users not to write to an array while a call reads it.

use crate::errors::{raise, to_python};
use protperf::{CpuStored, Stored, TensorRef, bf16, f16, try_reserved};
use pyo3::buffer::{Element as BufferElement, PyBuffer};
use pyo3::prelude::*;

/// A type of elements that crosses as a buffer.
pub trait Number: CpuStored + Stored<Compute: BufferElement> {
    /// The elements of the buffer: the type itself, or the bits of a type that the buffer protocol lacks.
    type Raw: BufferElement;
}

macro_rules! number {
    ($t:ty, $raw:ty) => {
        impl Number for $t {
            type Raw = $raw;
        }
    };
}

number!(f32, f32);
number!(f64, f64);
number!(bf16, u16);
number!(f16, u16);

/// Whether the object exports elements of type T.
pub fn holds<T: BufferElement>(object: &Bound<'_, PyAny>) -> bool {
    PyBuffer::<T>::get(object).is_ok()
}

/// A buffer of T.
pub fn buffer<T: BufferElement>(name: &str, object: &Bound<'_, PyAny>) -> PyResult<PyBuffer<T>> {
    PyBuffer::<T>::get(object).map_err(|error| raise(object.py(), "DtypeError", format!("{name}: {error}")))
}

/// A buffer of T where there is an object.
pub fn optional<T: BufferElement>(name: &str, object: Option<&Bound<'_, PyAny>>) -> PyResult<Option<PyBuffer<T>>> {
    object.map(|object| buffer(name, object)).transpose()
}

/// The elements of a contiguous buffer.
pub fn contiguous<'a, T: BufferElement>(py: Python<'_>, name: &str, buffer: &'a PyBuffer<T>) -> PyResult<&'a [T]> {
    if !buffer.is_c_contiguous() {
        return Err(raise(py, "ShapeError", format!("{name} must be contiguous")));
    }
    if buffer.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: `PyBuffer::get` checked type and alignment; contiguous memory of `item_count` elements lives as long as
    // the buffer. Concurrent writes are the race that the head of the file accepts.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<T>(), buffer.item_count()) })
}

/// The elements of a contiguous buffer where there is one.
pub fn optional_contiguous<'a, T: BufferElement>(
    py: Python<'_>,
    name: &str,
    buffer: Option<&'a PyBuffer<T>>,
) -> PyResult<Option<&'a [T]>> {
    buffer.map(|buffer| contiguous(py, name, buffer)).transpose()
}

/// The elements of a contiguous writable buffer.
#[allow(clippy::mut_from_ref)]
pub fn writable<'a, T: BufferElement>(py: Python<'_>, name: &str, buffer: &'a PyBuffer<T>) -> PyResult<&'a mut [T]> {
    if buffer.readonly() || !buffer.is_c_contiguous() {
        return Err(raise(py, "ShapeError", format!("{name} must be writable and contiguous")));
    }
    if buffer.item_count() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `contiguous`; the callers in Python pass memory that they have just allocated and that nothing
    // else refers to, each array once.
    Ok(unsafe { std::slice::from_raw_parts_mut(buffer.buf_ptr().cast::<T>(), buffer.item_count()) })
}

/// The elements of a contiguous writable buffer where there is one.
pub fn optional_writable<'a, T: BufferElement>(
    py: Python<'_>,
    name: &str,
    buffer: Option<&'a PyBuffer<T>>,
) -> PyResult<Option<&'a mut [T]>> {
    buffer.map(|buffer| writable(py, name, buffer)).transpose()
}

/// The elements of a contiguous writable buffer of the raw elements of T.
#[allow(clippy::mut_from_ref)]
pub fn writable_as<'a, T: Number>(py: Python<'_>, name: &str, raw: &'a PyBuffer<T::Raw>) -> PyResult<&'a mut [T]> {
    const { assert!(size_of::<T>() == size_of::<T::Raw>() && align_of::<T>() == align_of::<T::Raw>()) };
    let raw = writable(py, name, raw)?;
    // SAFETY: T and its raw elements have one size and alignment, and every bit pattern is a value of both.
    Ok(unsafe { std::slice::from_raw_parts_mut(raw.as_mut_ptr().cast::<T>(), raw.len()) })
}

/// Flags of a contiguous buffer of bytes, true where one is not 0.
pub fn flags(py: Python<'_>, name: &str, buffer: &PyBuffer<u8>) -> PyResult<Vec<bool>> {
    let bytes = contiguous(py, name, buffer)?;
    let mut flags = try_reserved(bytes.len()).map_err(|error| to_python(py, &error))?;
    flags.extend(bytes.iter().map(|&byte| byte != 0));
    Ok(flags)
}

/// A strided `[B,H,L,D]` view.
pub fn view<'a, T: Number>(
    py: Python<'_>,
    name: &'static str,
    buffer: &'a PyBuffer<T::Raw>,
) -> PyResult<TensorRef<'a, T>> {
    const { assert!(size_of::<T>() == size_of::<T::Raw>() && align_of::<T>() == align_of::<T::Raw>()) };
    let fail = |message: String| raise(py, "ShapeError", message);
    let (Ok(shape), Ok(bytes)) = (<[usize; 4]>::try_from(buffer.shape()), <[isize; 4]>::try_from(buffer.strides()))
    else {
        return Err(fail(format!("{name} must have 4 axes, not {}", buffer.dimensions())));
    };
    let size = size_of::<T>() as isize;
    if bytes.iter().any(|b| b % size != 0) {
        return Err(fail(format!("{name} has strides that are not multiples of its item size")));
    }
    let strides = bytes.map(|b| b / size);
    if shape.contains(&0) {
        return TensorRef::new(name, &[], 0, shape, [0; 4]).map_err(|error| to_python(py, &error));
    }
    let reach =
        |sign: isize| -> usize { shape.iter().zip(strides).map(|(&n, s)| (n - 1) * (s * sign).max(0) as usize).sum() };
    let (below, above) = (reach(-1), reach(1));
    // SAFETY: the exporter promises that every element of its shape lies in its memory; the slice spans exactly
    // from the lowest to the highest of them. T and its raw elements have one size and alignment, and every bit
    // pattern is a value of both. Concurrent writes are the race that the head of the file accepts.
    let data = unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<T>().sub(below), below + above + 1) };
    TensorRef::new(name, data, below, shape, strides).map_err(|error| to_python(py, &error))
}
