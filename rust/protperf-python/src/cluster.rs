//! Related sequences for Python: `protperf-cluster` over packed tokens.

use crate::arrays::{buffer, contiguous};
use crate::call::{guarded, run};
use protperf::cluster::{Sequences, cluster, count_relatives, nearest};
use protperf::{Execution, Result};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Add the functions of this file to the module.
///
/// # Errors
/// Python's, where a name cannot be added.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(cluster_sequences, module)?)?;
    module.add_function(wrap_pyfunction!(count_sequence_relatives, module)?)?;
    module.add_function(wrap_pyfunction!(nearest_sequences, module)?)
}

/// Estimated work per token, so that large sets leave the calling thread free for signals.
const WORK: f64 = 1e4;

type Packed<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

fn with_tokens<R>(
    py: Python<'_>,
    (tokens, offsets): &Packed<'_>,
    body: impl FnOnce(&[u8], &[i64]) -> PyResult<R>,
) -> PyResult<R> {
    let (tokens, offsets) = (buffer::<u8>("tokens", tokens)?, buffer::<i64>("offsets", offsets)?);
    let (tokens, offsets) = (contiguous(py, "tokens", &tokens)?, contiguous(py, "offsets", &offsets)?);
    guarded(py, || body(tokens, offsets))
}

/// What `answer` says of each sequence, as uint32 in a bytes object.
fn per_sequence(
    py: Python<'_>,
    sequences: &Packed<'_>,
    num_threads: usize,
    answer: impl Fn(&Sequences, &Execution<'_>) -> Result<Vec<u32>> + Sync,
) -> PyResult<Py<PyBytes>> {
    with_tokens(py, sequences, |tokens, offsets| {
        let found = run(py, WORK * tokens.len() as f64, num_threads, |cancel, num_threads| {
            answer(&Sequences::new(tokens, offsets)?, &Execution { num_threads, cancel })
        })?;
        let bytes: Vec<u8> = found.iter().flat_map(|value| value.to_ne_bytes()).collect();
        Ok(PyBytes::new(py, &bytes).unbind())
    })
}

/// The cluster of each sequence, as uint32 in a bytes object.
#[pyfunction]
fn cluster_sequences(
    py: Python<'_>,
    sequences: Packed<'_>,
    identity: f64,
    num_threads: usize,
) -> PyResult<Py<PyBytes>> {
    per_sequence(py, &sequences, num_threads, |set, run| cluster(set, identity, run))
}

/// The number of relatives of each sequence, as uint32 in a bytes object.
#[pyfunction]
fn count_sequence_relatives(
    py: Python<'_>,
    sequences: Packed<'_>,
    identity: f64,
    num_threads: usize,
) -> PyResult<Py<PyBytes>> {
    per_sequence(py, &sequences, num_threads, |set, run| count_relatives(set, identity, run))
}

/// Index (-1: none) and identity (NaN: none) of the nearest target of each query, as int64 and float64 in bytes objects.
#[pyfunction]
fn nearest_sequences(
    py: Python<'_>,
    queries: Packed<'_>,
    targets: Packed<'_>,
    identity: f64,
    num_threads: usize,
) -> PyResult<(Py<PyBytes>, Py<PyBytes>)> {
    with_tokens(py, &queries, |tokens, offsets| {
        with_tokens(py, &targets, |target_tokens, target_offsets| {
            let work = WORK * (tokens.len() + target_tokens.len()) as f64;
            let found = run(py, work, num_threads, |cancel, num_threads| {
                let (queries, targets) =
                    (Sequences::new(tokens, offsets)?, Sequences::new(target_tokens, target_offsets)?);
                nearest(&queries, &targets, identity, &Execution { num_threads, cancel })
            })?;
            let indices: Vec<u8> =
                found.iter().flat_map(|one| one.map_or(-1, |near| i64::from(near.index)).to_ne_bytes()).collect();
            let identities: Vec<u8> =
                found.iter().flat_map(|one| one.map_or(f64::NAN, |near| near.identity).to_ne_bytes()).collect();
            Ok((PyBytes::new(py, &indices).unbind(), PyBytes::new(py, &identities).unbind()))
        })
    })
}
