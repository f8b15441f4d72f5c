//! The GPUs of this machine.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<GpuAdapter>()?;
    module.add_function(wrap_pyfunction!(gpu_traffic, module)?)?;
    module.add_function(wrap_pyfunction!(gpu_adapters, module)?)
}

/// An adapter; see `protperf_wgpu::AdapterSummary`.
#[pyclass(frozen, get_all, module = "protperf._native", name = "GpuAdapter")]
struct GpuAdapter {
    index: usize,
    name: String,
    kind: &'static str,
    interface: String,
    driver: String,
    max_binding: u64,
    is_chosen: bool,
}

/// Every adapter, and why none of them would be used, if so. Asks the drivers, which takes from 10 ms to seconds.
#[pyfunction]
fn gpu_adapters(py: Python<'_>) -> PyResult<(Bound<'_, PyTuple>, Option<String>)> {
    let (found, fault) = py.detach(adapters);
    let found = found.into_iter().map(|adapter| Bound::new(py, adapter)).collect::<PyResult<Vec<_>>>()?;
    Ok((PyTuple::new(py, found)?, fault))
}

/// Bytes that were carried to the open GPU, how often work was handed to it, how often numbers were read back and how many
/// bytes, and the bytes that it holds; zeros where none is open.
#[pyfunction]
fn gpu_traffic(py: Python<'_>) -> (u64, u64, u64, u64, u64) {
    py.detach(traffic)
}

#[cfg(feature = "wgpu")]
fn traffic() -> (u64, u64, u64, u64, u64) {
    let found = protperf::gpu::traffic();
    (found.uploaded_bytes, found.submissions, found.read_backs, found.read_back_bytes, found.used_bytes)
}

#[cfg(not(feature = "wgpu"))]
fn traffic() -> (u64, u64, u64, u64, u64) {
    (0, 0, 0, 0, 0)
}

#[cfg(feature = "wgpu")]
fn adapters() -> (Vec<GpuAdapter>, Option<String>) {
    let (found, fault) = protperf::gpu::adapters();
    let adapter = |from: protperf::gpu::AdapterSummary| GpuAdapter {
        index: from.index,
        name: from.name,
        kind: from.kind,
        interface: from.interface,
        driver: from.driver,
        max_binding: from.max_binding,
        is_chosen: from.is_chosen,
    };
    (found.into_iter().map(adapter).collect(), fault.map(|fault| fault.to_string()))
}

#[cfg(not(feature = "wgpu"))]
fn adapters() -> (Vec<GpuAdapter>, Option<String>) {
    (Vec::new(), protperf::backend_by_name::<f32>("wgpu", None).err().map(|error| error.to_string()))
}
