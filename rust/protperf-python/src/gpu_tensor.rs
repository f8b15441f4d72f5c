//! Tensors that stay on the GPU, and attention from such tensors to such tensors.

use crate::arrays::{buffer, contiguous, writable};
use crate::attention::work;
use crate::call::{guarded, run};
use crate::errors::{raise, to_python};
use crate::inputs::{MapBuffers, ParameterTuple, Visibility};
use protperf::gpu::{self, DeviceTensor, Resident, StoredAs, attention, draw_projection};
use protperf::projection::{Draw, Norm, Sampler};
use protperf::{Error, Execution, FavorArgs, TensorRef};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// More than a call that the calling thread does alone: so it looks for signals while the device works.
const LONG: f64 = 1e12;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<GpuTensor>()?;
    module.add_function(wrap_pyfunction!(gpu_draw_projection, module)?)?;
    module.add_function(wrap_pyfunction!(gpu_merge_states, module)?)?;
    module.add_function(wrap_pyfunction!(gpu_favor, module)?)
}

/// A tensor on the GPU.
#[pyclass(frozen, module = "protperf._native")]
struct GpuTensor(DeviceTensor);

#[pymethods]
impl GpuTensor {
    /// Carries the bytes of elements, row by row, to the GPU.
    #[new]
    fn new(py: Python<'_>, elements: &Bound<'_, PyAny>, shape: Vec<usize>, dtype: &str) -> PyResult<Self> {
        guarded(py, || {
            let elements = buffer::<u8>("elements", elements)?;
            let bytes = contiguous(py, "elements", &elements)?;
            let stored = StoredAs::ALL.into_iter().find(|stored| stored.name() == dtype);
            let Some(stored) = stored.filter(|stored| bytes.len() == shape.iter().product::<usize>() * stored.size())
            else {
                return Err(raise(py, "ShapeError", format!("{} bytes are no {dtype} of {shape:?}", bytes.len())));
            };
            run(py, LONG, 1, |_, _| Ok::<_, Error>(DeviceTensor::upload(bytes, &shape, stored)?)).map(GpuTensor)
        })
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.shape())
    }

    /// Fills the bytes of the elements, row by row.
    fn read(&self, py: Python<'_>, out: &Bound<'_, PyAny>) -> PyResult<()> {
        guarded(py, || {
            let out = buffer::<u8>("out", out)?;
            let out = writable(py, "out", &out)?;
            if out.len() != self.0.len() * self.0.stored().size() {
                return Err(raise(py, "ShapeError", format!("out has {} bytes, not those of the tensor", out.len())));
            }
            out.copy_from_slice(&run(py, LONG, 1, |cancel, _| Ok::<_, Error>(self.0.read(cancel)?))?);
            Ok(())
        })
    }
}

impl GpuTensor {
    /// A tensor of the same shape, of which no element is read.
    fn view(&self, py: Python<'_>, name: &'static str) -> PyResult<TensorRef<'static, f32>> {
        let Ok(shape) = <[usize; 4]>::try_from(self.0.shape()) else {
            return Err(raise(py, "ShapeError", format!("{name} must have 4 axes, not {}", self.0.shape().len())));
        };
        let data: &[f32] = if shape.contains(&0) { &[] } else { &[0.0] };
        TensorRef::new(name, data, 0, shape, [0; 4]).map_err(|error| to_python(py, &error))
    }
}

/// Output and, where it is wanted, final state; see `protperf_wgpu::attention`.
#[pyfunction]
#[pyo3(signature = (
    q, k, v, omega, *, feature_map="positive", kernel_epsilon=None, parameters=None, causal=false, cu_seqlens=None,
    key_padding_mask=None, state=None, with_state=false
))]
#[allow(clippy::too_many_arguments)]
fn gpu_favor(
    py: Python<'_>,
    q: &GpuTensor,
    k: &GpuTensor,
    v: &GpuTensor,
    omega: Option<&Bound<'_, PyAny>>,
    feature_map: &str,
    kernel_epsilon: Option<f64>,
    parameters: Option<ParameterTuple<'_>>,
    causal: bool,
    cu_seqlens: Option<&Bound<'_, PyAny>>,
    key_padding_mask: Option<&Bound<'_, PyAny>>,
    state: Option<&GpuTensor>,
    with_state: bool,
) -> PyResult<(GpuTensor, Option<GpuTensor>)> {
    guarded(py, || {
        let map = MapBuffers::new(py, feature_map, omega, kernel_epsilon, parameters.as_ref())?;
        let visibility = Visibility::new(py, causal, cu_seqlens, key_padding_mask)?;
        let args = FavorArgs {
            q: q.view(py, "q")?,
            k: k.view(py, "k")?,
            v: v.view(py, "v")?,
            map: map.args(py)?,
            causal: visibility.causal,
            cu_seqlens: visibility.borders(py)?,
            key_padding_mask: visibility.padding(),
        };
        let tensors = Resident { q: &q.0, k: &k.0, v: &v.0, state: state.map(|state| &state.0) };
        let (out, last) = run(py, work(&args), 1, |cancel, num_threads| {
            attention(&args, tensors, with_state, &Execution { num_threads, cancel })
        })?;
        Ok((GpuTensor(out), last.map(GpuTensor)))
    })
}

/// The state of the keys of two states; see `protperf_wgpu::merge_states`.
#[pyfunction]
fn gpu_merge_states(py: Python<'_>, a: &GpuTensor, b: &GpuTensor) -> PyResult<GpuTensor> {
    guarded(py, || run(py, LONG, 1, |_, _| gpu::merge_states(&a.0, &b.0)).map(GpuTensor))
}

/// Omega `[num_features, head_dim]`, float32, which stays on the GPU; see `protperf_wgpu::draw_projection`.
#[pyfunction]
#[pyo3(signature = (num_features, head_dim, sampler, norm, seed, stream))]
fn gpu_draw_projection(
    py: Python<'_>,
    num_features: usize,
    head_dim: usize,
    sampler: &str,
    norm: &str,
    seed: u64,
    stream: (u32, u32, u32),
) -> PyResult<GpuTensor> {
    guarded(py, || {
        let fail = |error| to_python(py, &error);
        let (sampler, norm) = (Sampler::from_name(sampler).map_err(fail)?, Norm::from_name(norm).map_err(fail)?);
        let draw = Draw { num_features, head_dim, sampler, norm, seed, stream: [stream.0, stream.1, stream.2] };
        run(py, LONG, 1, |_, _| draw_projection(&draw)).map(GpuTensor)
    })
}
