//! A panic on demand, for tests of what one leaves behind. Only with the feature `rehearse-panic`.

use pyo3::prelude::*;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(_rehearse_panic, module)?)
}

/// Make the `checks`-th look at the cancel flag from now panic, once, in whichever thread reaches it; 0 cancels it.
#[pyfunction]
#[pyo3(signature = (checks))]
fn _rehearse_panic(checks: usize) {
    protperf::rehearse_panic(checks);
}
