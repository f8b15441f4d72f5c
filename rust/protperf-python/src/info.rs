//! What this build is and what it runs on.

use crate::errors::to_python;
use protperf::projection::{Norm, Sampler};
use protperf::{BACKENDS, Bf16Unit, FeatureMap, Isa, backend_by_name, bf16, default_num_threads};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<FeatureMapRow>()?;
    module.add_function(wrap_pyfunction!(feature_maps, module)?)?;
    module.add_function(wrap_pyfunction!(samplers, module)?)?;
    module.add_function(wrap_pyfunction!(norms, module)?)?;
    module.add_function(wrap_pyfunction!(backends, module)?)?;
    module.add_function(wrap_pyfunction!(chosen_backend, module)?)?;
    module.add_function(wrap_pyfunction!(build_info, module)?)?;
    module.add_function(wrap_pyfunction!(cores_allowed, module)?)
}

/// Cores that affinity and the control group's quota allow this process.
#[pyfunction]
fn cores_allowed() -> usize {
    default_num_threads()
}

/// A row of the registry of feature maps.
#[pyclass(frozen, get_all, module = "protperf._native", name = "FeatureMap")]
struct FeatureMapRow {
    name: &'static str,
    family: &'static str,
    default_epsilon: f64,
    projections_per_row: usize,
    features_per_row: usize,
}

/// The registry of feature maps, one record per map.
#[pyfunction]
fn feature_maps(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
    let record = |map: FeatureMap| FeatureMapRow {
        name: map.name(),
        family: map.family().name(),
        default_epsilon: map.default_epsilon(),
        projections_per_row: map.num_projections(1),
        features_per_row: map.feature_dim(1),
    };
    let records = FeatureMap::ALL.map(|map| Bound::new(py, record(map)));
    PyTuple::new(py, records.into_iter().collect::<PyResult<Vec<_>>>()?)
}

/// Names of the ways to draw directions, the usual one first.
#[pyfunction]
fn samplers(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
    PyTuple::new(py, Sampler::ALL.map(Sampler::name))
}

/// Names of the kinds of norms that directions have, the usual one first.
#[pyfunction]
fn norms(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
    PyTuple::new(py, Norm::ALL.map(Norm::name))
}

/// Names of the backends, `auto` first.
#[pyfunction]
fn backends(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
    PyTuple::new(py, BACKENDS)
}

/// The name of the backend that a name chooses for tensors that are stored as `stored` (None: float32): that of another one for
/// `auto`, and for `cpu-bf16` where nothing multiplies bf16.
#[pyfunction]
#[pyo3(signature = (name, isa=None, stored=None))]
fn chosen_backend(py: Python<'_>, name: &str, isa: Option<&str>, stored: Option<&str>) -> PyResult<&'static str> {
    let chosen = match stored {
        Some("bfloat16") => backend_by_name::<bf16>(name, isa).map(|backend| backend.name()),
        _ => backend_by_name::<f32>(name, isa).map(|backend| backend.name()),
    };
    chosen.map_err(|error| to_python(py, &error))
}

/// What this build is and what it runs on.
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("profile", env!("PROTPERF_PROFILE"))?;
    let isa = Isa::from_env().map_err(|error| to_python(py, &error))?;
    info.set_item("isa", isa.name())?;
    info.set_item("bf16", Bf16Unit::of(isa).map_or("as float32", Bf16Unit::name))?;
    info.set_item("isas", PyTuple::new(py, Isa::available().iter().map(|isa| isa.name()))?)?;
    info.set_item("num_threads", default_num_threads())?;
    info.set_item("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))?;
    Ok(info)
}
