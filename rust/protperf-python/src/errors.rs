//! The one table from errors of the core to exception classes, which are defined in `protperf.errors`.

use protperf::model::fault::Fault;
use protperf::{Error, ErrorKind};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

/// The class in `protperf.errors` for a kind of error.
fn class_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Shape => "ShapeError",
        ErrorKind::Config => "ConfigError",
        ErrorKind::Dtype => "DtypeError",
        ErrorKind::Device => "DeviceError",
        ErrorKind::OutOfMemory => "OutOfMemory",
        ErrorKind::Interrupted => "Error",
    }
}

/// An exception of a class in `protperf.errors`.
pub fn raise(py: Python<'_>, class: &str, message: String) -> PyErr {
    let made =
        py.import("protperf.errors").and_then(|module| module.getattr(class)).and_then(|class| class.call1((message,)));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// An exception of a class in `protperf.errors` that takes more than a message.
pub fn raise_with<'py>(py: Python<'py>, class: &str, arguments: impl pyo3::call::PyCallArgs<'py>) -> PyErr {
    let made = py.import("protperf.errors").and_then(|module| module.getattr(class)?.call1(arguments));
    made.map_or_else(|error| error, PyErr::from_value)
}

/// The exception for an error of the core.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    if error.kind() == ErrorKind::Interrupted {
        return PyKeyboardInterrupt::new_err(());
    }
    raise(py, class_name(error.kind()), error.to_string())
}

/// The exception for a fault of a model: a `CheckpointError` that names the file, or what the core says.
pub fn fault_to_python(py: Python<'_>, fault: &Fault) -> PyErr {
    match fault {
        Fault::File { path, code, what } => raise_with(py, "CheckpointError", (*code, what.as_str(), path.as_os_str())),
        Fault::Core(error) => to_python(py, error),
    }
}

/// The exception for a panic: a fault of ours, raised as a `RuntimeError` so that callers can handle it.
pub fn panicked(py: Python<'_>, payload: &(dyn std::any::Any + Send)) -> PyErr {
    let what = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("unknown cause");
    raise(py, "InternalError", format!("internal error, please report it: {what}"))
}
