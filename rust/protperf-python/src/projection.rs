//! Drawing omega.

use crate::arrays::{buffer, writable};
use crate::call::{Once, guarded, run};
use crate::errors::to_python;
use protperf::projection::{Draw, Norm, Sampler};
use pyo3::prelude::*;
use std::sync::atomic::Ordering;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(draw_projection, module)?)
}

/// Fill omega `[num_features, head_dim]`, float64.
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
    guarded(py, || {
        let fail = |error| to_python(py, &error);
        let (sampler, norm) = (Sampler::from_name(sampler).map_err(fail)?, Norm::from_name(norm).map_err(fail)?);
        let draw = Draw { num_features, head_dim, sampler, norm, seed, stream: [stream.0, stream.1, stream.2] };
        let out = buffer::<f64>("omega", omega)?;
        let out = Once::new(writable(py, "omega", &out)?);
        let work = 2.0 * num_features as f64 * (head_dim as f64 + 50.0) * head_dim as f64;
        run(py, work, 1, |cancel, _| draw.fill(out.take()?, &|| cancel.load(Ordering::Relaxed)))
    })
}
