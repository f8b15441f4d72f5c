//! Drawing omega.

use crate::arrays::{buffer, writable};
use crate::errors::to_python;
use protperf::projection::{Norm, Sampler, draw_projection as draw};
use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(draw_projection, module)?)
}

/// Fills omega, `[num_features, head_dim]` float64.
#[pyfunction]
#[pyo3(signature = (omega, num_features, head_dim, sampler, norm, seed, stream))]
#[allow(clippy::too_many_arguments)]
fn draw_projection(
    py: Python<'_>,
    omega: &Bound<'_, PyAny>,
    num_features: usize,
    head_dim: usize,
    sampler: &str,
    norm: &str,
    seed: u64,
    stream: (u32, u32, u32),
) -> PyResult<()> {
    let fail = |error| to_python(py, &error);
    let (sampler, norm) = (Sampler::from_name(sampler).map_err(fail)?, Norm::from_name(norm).map_err(fail)?);
    let out = buffer::<f64>("omega", omega)?;
    let out = writable(py, "omega", &out)?;
    let drawn = py
        .detach(|| draw(num_features, head_dim, sampler, norm, seed, [stream.0, stream.1, stream.2]))
        .map_err(|error| to_python(py, &error))?;
    if drawn.len() != out.len() {
        return Err(crate::errors::raise(py, "ShapeError", "omega has the wrong size".into()));
    }
    out.copy_from_slice(&drawn);
    Ok(())
}
