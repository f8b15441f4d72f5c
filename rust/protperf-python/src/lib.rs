//! `protperf._native`: arrays cross as buffers, errors as exceptions; nothing is computed here.
//!
//! Private to the package: `protperf.functional` and `protperf.torch` check their arguments before they call it, and
//! these functions check again what memory safety rests on.

mod alignment;
mod arrays;
mod attention;
mod block;
mod call;
mod cluster;
mod data;
mod errors;
mod gpu;
#[cfg(feature = "wgpu")]
mod gpu_tensor;
mod info;
mod inputs;
mod network;
mod projection;
#[cfg(feature = "rehearse-panic")]
mod rehearsal;
mod team;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    attention::register(module)?;
    block::register(module)?;
    network::register(module)?;
    projection::register(module)?;
    info::register(module)?;
    gpu::register(module)?;
    #[cfg(feature = "wgpu")]
    gpu_tensor::register(module)?;
    alignment::register(module)?;
    cluster::register(module)?;
    #[cfg(feature = "rehearse-panic")]
    rehearsal::register(module)?;
    team::register(module)?;
    data::register(module)
}
