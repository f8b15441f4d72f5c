//! Where the threads are that torch computes with; see `protperf::team`.

use pyo3::prelude::*;

/// Lets short calls of this thread run on the workers of an OpenMP library; the last call counts.
///
/// `parallel` and `max_threads` are the addresses of its functions `GOMP_parallel` and `omp_get_max_threads`.
#[pyfunction]
fn use_team(parallel: usize, max_threads: usize) {
    if parallel != 0 && max_threads != 0 {
        // SAFETY: the package passes what the dynamic linker found under these names, in a library that torch keeps.
        unsafe { protperf::team::register(parallel, max_threads) };
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(use_team, module)?)
}
