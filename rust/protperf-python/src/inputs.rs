//! The arguments that the attention functions share: buffers held for the length of a call, and their views.

use crate::arrays::{
    Number, buffer, contiguous, flags, optional, optional_contiguous, optional_writable, view, writable,
};
use crate::errors::{raise, to_python};
use protperf::{FavorArgs, FeatureMap, LogLinear, MapArgs, MapGradients, Omega, Parameters, TensorRef};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;

/// Parameters as Python gives them, or buffers for their gradients: query_directions, key_directions, key_quadratic,
/// query_constants, key_constants, each but the first may be None.
pub type ParameterTuple<'py> = (
    Bound<'py, PyAny>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
);

/// What q, k and v are restricted to.
pub struct Visibility {
    pub causal: bool,
    borders: Option<PyBuffer<i64>>,
    padding: Option<Vec<bool>>,
}

impl Visibility {
    pub fn new(
        py: Python<'_>,
        causal: bool,
        cu_seqlens: Option<&Bound<'_, PyAny>>,
        key_padding_mask: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let borders = optional("cu_seqlens", cu_seqlens)?;
        let padding = match optional("key_padding_mask", key_padding_mask)? {
            Some(mask) => Some(flags(py, "key_padding_mask", &mask)?),
            None => None,
        };
        Ok(Visibility { causal, borders, padding })
    }

    pub fn borders(&self, py: Python<'_>) -> PyResult<Option<&[i64]>> {
        optional_contiguous(py, "cu_seqlens", self.borders.as_ref())
    }

    pub fn padding(&self) -> Option<&[bool]> {
        self.padding.as_deref()
    }
}

/// The feature map with the buffers of its parameters.
pub enum MapBuffers {
    Named { map: FeatureMap, omega: Option<PyBuffer<f64>>, kernel_epsilon: f64 },
    LogLinear(Parameters<PyBuffer<f64>>),
}

impl MapBuffers {
    pub fn new(
        py: Python<'_>,
        feature_map: &str,
        omega: Option<&Bound<'_, PyAny>>,
        kernel_epsilon: Option<f64>,
        parameters: Option<&ParameterTuple<'_>>,
    ) -> PyResult<Self> {
        if let Some(parameters) = parameters {
            if omega.is_some() {
                let message = "omega cannot be given together with parameters".to_owned();
                return Err(raise(py, "ConfigError", message));
            }
            return Ok(MapBuffers::LogLinear(parameter_buffers(parameters)?));
        }
        let map = FeatureMap::from_name(feature_map).map_err(|error| to_python(py, &error))?;
        let kernel_epsilon = kernel_epsilon.unwrap_or(map.default_epsilon());
        Ok(MapBuffers::Named { map, omega: optional("omega", omega)?, kernel_epsilon })
    }

    /// The map with views of its buffers.
    pub fn args(&self, py: Python<'_>) -> PyResult<MapArgs<'_>> {
        match self {
            MapBuffers::Named { map, omega, kernel_epsilon } => {
                let omega = match omega {
                    Some(omega) => {
                        let (num_heads, num_features, head_dim) = matrix_shape(py, "omega", omega)?;
                        Some(Omega { data: contiguous(py, "omega", omega)?, num_heads, num_features, head_dim })
                    }
                    None => None,
                };
                Ok(MapArgs::Named { map: *map, omega, kernel_epsilon: *kernel_epsilon })
            }
            MapBuffers::LogLinear(buffers) => {
                let (num_heads, num_projections, head_dim) =
                    matrix_shape(py, "query_directions", &buffers.query_directions)?;
                check_axes(py, buffers)?;
                Ok(MapArgs::LogLinear(LogLinear {
                    parameters: Parameters {
                        query_directions: contiguous(py, "query_directions", &buffers.query_directions)?,
                        key_directions: optional_contiguous(py, "key_directions", buffers.key_directions.as_ref())?,
                        key_quadratic: optional_contiguous(py, "key_quadratic", buffers.key_quadratic.as_ref())?,
                        query_constants: optional_contiguous(py, "query_constants", buffers.query_constants.as_ref())?,
                        key_constants: optional_contiguous(py, "key_constants", buffers.key_constants.as_ref())?,
                    },
                    num_heads,
                    num_projections,
                    head_dim,
                }))
            }
        }
    }
}

/// Buffers of gradients of the map's parameters: of omega, or of the parameters that were given themselves.
pub enum MapGradientBuffers {
    Omega(PyBuffer<f64>),
    LogLinear(Parameters<PyBuffer<f64>>),
}

impl MapGradientBuffers {
    pub fn new(
        py: Python<'_>,
        domega: Option<&Bound<'_, PyAny>>,
        dparameters: Option<&ParameterTuple<'_>>,
    ) -> PyResult<Option<Self>> {
        match (domega, dparameters) {
            (None, None) => Ok(None),
            (Some(domega), None) => Ok(Some(MapGradientBuffers::Omega(buffer("domega", domega)?))),
            (None, Some(parameters)) => Ok(Some(MapGradientBuffers::LogLinear(parameter_buffers(parameters)?))),
            (Some(_), Some(_)) => {
                let message = "domega cannot be given together with dparameters".to_owned();
                Err(raise(py, "ConfigError", message))
            }
        }
    }

    /// What is to be filled.
    pub fn writable(&self, py: Python<'_>) -> PyResult<MapGradients<'_>> {
        Ok(match self {
            MapGradientBuffers::Omega(domega) => MapGradients::Omega(writable(py, "domega", domega)?),
            MapGradientBuffers::LogLinear(buffers) => {
                let of = |name, field| optional_writable(py, name, field);
                MapGradients::LogLinear(Parameters {
                    query_directions: writable(py, "query_directions", &buffers.query_directions)?,
                    key_directions: of("key_directions", buffers.key_directions.as_ref())?,
                    key_quadratic: of("key_quadratic", buffers.key_quadratic.as_ref())?,
                    query_constants: of("query_constants", buffers.query_constants.as_ref())?,
                    key_constants: of("key_constants", buffers.key_constants.as_ref())?,
                })
            }
        })
    }
}

/// q, k and v.
pub struct Inputs<T: Number> {
    q: PyBuffer<T::Raw>,
    k: PyBuffer<T::Raw>,
    v: PyBuffer<T::Raw>,
}

impl<T: Number> Inputs<T> {
    pub fn new([q, k, v]: [&Bound<'_, PyAny>; 3]) -> PyResult<Self> {
        Ok(Inputs { q: buffer("q", q)?, k: buffer("k", k)?, v: buffer("v", v)? })
    }

    /// Views of the buffers.
    pub fn views(&self, py: Python<'_>) -> PyResult<[TensorRef<'_, T>; 3]> {
        Ok([view(py, "q", &self.q)?, view(py, "k", &self.k)?, view(py, "v", &self.v)?])
    }

    /// The arguments of a call of linear attention.
    pub fn favor_args<'a>(
        &'a self,
        py: Python<'_>,
        map: &'a MapBuffers,
        visibility: &'a Visibility,
    ) -> PyResult<FavorArgs<'a, T>> {
        let [q, k, v] = self.views(py)?;
        Ok(FavorArgs {
            q,
            k,
            v,
            map: map.args(py)?,
            causal: visibility.causal,
            cu_seqlens: visibility.borders(py)?,
            key_padding_mask: visibility.padding(),
        })
    }
}

fn parameter_buffers(parameters: &ParameterTuple<'_>) -> PyResult<Parameters<PyBuffer<f64>>> {
    let (query_directions, key_directions, key_quadratic, query_constants, key_constants) = parameters;
    Ok(Parameters {
        query_directions: buffer("query_directions", query_directions)?,
        key_directions: optional("key_directions", key_directions.as_ref())?,
        key_quadratic: optional("key_quadratic", key_quadratic.as_ref())?,
        query_constants: optional("query_constants", query_constants.as_ref())?,
        key_constants: optional("key_constants", key_constants.as_ref())?,
    })
}

/// Heads, rows and columns of `[M,D]` or `[H,M,D]`.
fn matrix_shape(py: Python<'_>, name: &str, matrix: &PyBuffer<f64>) -> PyResult<(Option<usize>, usize, usize)> {
    match *matrix.shape() {
        [rows, columns] => Ok((None, rows, columns)),
        [heads, rows, columns] => Ok((Some(heads), rows, columns)),
        ref shape => {
            let message = format!("{name} must be [M,D] or [H,M,D], not {} axes", shape.len());
            Err(raise(py, "ShapeError", message))
        }
    }
}

/// Directions of the keys have the axes of those of the queries; the other parameters have one axis less.
fn check_axes(py: Python<'_>, parameters: &Parameters<PyBuffer<f64>>) -> PyResult<()> {
    let axes = parameters.query_directions.dimensions();
    for (name, field) in parameters.named() {
        let needed = if name.ends_with("directions") { axes } else { axes - 1 };
        if let Some(found) = field.map(|field| field.dimensions()).filter(|&found| found != needed) {
            let message = format!("{name} has {found} axes where query_directions has {axes}; it needs {needed}");
            return Err(raise(py, "ShapeError", message));
        }
    }
    Ok(())
}
