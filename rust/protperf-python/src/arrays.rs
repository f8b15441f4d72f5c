//! Python buffers as slices and views.
//!
//! # Safety of the whole file
//! A `PyBuffer` keeps its exporter's memory alive. Other Python threads may write to it while a kernel reads, as
//! with any NumPy function that releases the GIL; the values read are then unspecified, but plain numbers.

use crate::errors::raise;
use protperf::{CpuElement, TensorRef};
use pyo3::buffer::{Element as BufferElement, PyBuffer};
use pyo3::prelude::*;

/// A type that crosses as a buffer and that the kernels compute in.
pub trait Number: CpuElement + BufferElement {}
impl Number for f32 {}
impl Number for f64 {}

/// Whether the object exports elements of type T.
pub fn holds<T: BufferElement>(object: &Bound<'_, PyAny>) -> bool {
    PyBuffer::<T>::get(object).is_ok()
}

/// A buffer of T.
pub fn buffer<T: BufferElement>(name: &str, object: &Bound<'_, PyAny>) -> PyResult<PyBuffer<T>> {
    PyBuffer::<T>::get(object).map_err(|error| raise(object.py(), "DtypeError", format!("{name}: {error}")))
}

/// The elements of a contiguous buffer.
pub fn contiguous<'a, T: BufferElement>(py: Python<'_>, name: &str, buffer: &'a PyBuffer<T>) -> PyResult<&'a [T]> {
    if !buffer.is_c_contiguous() {
        return Err(raise(py, "ShapeError", format!("{name} must be contiguous")));
    }
    if buffer.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: contiguous memory of `item_count` elements that lives as long as the buffer; see the head of the file.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<T>(), buffer.item_count()) })
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
    // SAFETY: as in `contiguous`; the callers in Python pass memory that they have just allocated.
    Ok(unsafe { std::slice::from_raw_parts_mut(buffer.buf_ptr().cast::<T>(), buffer.item_count()) })
}

/// A strided `[B,H,L,D]` view.
pub fn view<'a, T: Number>(py: Python<'_>, name: &'static str, buffer: &'a PyBuffer<T>) -> PyResult<TensorRef<'a, T>> {
    let fail = |message: String| raise(py, "ShapeError", message);
    let (Ok(shape), Ok(bytes)) = (<[usize; 4]>::try_from(buffer.shape()), <[isize; 4]>::try_from(buffer.strides()))
    else {
        return Err(fail(format!("{name} must have 4 axes, not {}", buffer.dimensions())));
    };
    let size = size_of::<T>() as isize;
    if bytes.iter().any(|b| b % size != 0) {
        return Err(fail(format!("{name} has strides that are no multiple of its item size")));
    }
    let strides = bytes.map(|b| b / size);
    if shape.contains(&0) {
        return TensorRef::new(name, &[], 0, shape, [0; 4]).map_err(|error| crate::errors::to_python(py, &error));
    }
    let reach =
        |sign: isize| -> usize { shape.iter().zip(strides).map(|(&n, s)| (n - 1) * (s * sign).max(0) as usize).sum() };
    let (below, above) = (reach(-1), reach(1));
    // SAFETY: the exporter promises that every element of its shape lies in its memory; the slice spans exactly
    // from the lowest to the highest of them.
    let data = unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<T>().sub(below), below + above + 1) };
    TensorRef::new(name, data, below, shape, strides).map_err(|error| crate::errors::to_python(py, &error))
}
