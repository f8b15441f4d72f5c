//! Alignments for Python: `protperf-alignment` over a matrix of codes.

use crate::arrays::{buffer, contiguous, writable};
use crate::call::{Once, guarded, run};
use crate::errors::{raise, to_python};
use protperf::Execution;
use protperf::alignment::pairwise::{NUM_STATES, Observed, Penalties, fit_columns};
use protperf::alignment::{Codes, GapCosts, Profile, count_neighbours, place};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Add the functions of this file to the module.
///
/// # Errors
/// Python's, where a name cannot be added.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(count_alignment_neighbours, module)?)?;
    module.add_function(wrap_pyfunction!(place_in_profile, module)?)?;
    module.add_function(wrap_pyfunction!(fit_pairwise_columns, module)?)
}

fn codes_of<'a>(py: Python<'_>, buffer: &'a PyBuffer<u8>) -> PyResult<Codes<'a>> {
    let &[num_rows, num_columns] = buffer.shape() else {
        return Err(raise(py, "ShapeError", format!("codes must be [N,L], not {} axes", buffer.dimensions())));
    };
    Codes::new(contiguous(py, "codes", buffer)?, num_rows, num_columns).map_err(|error| to_python(py, &error))
}

/// The number of rows that resemble each row of codes [N,L], as uint32 in a bytes object.
#[pyfunction]
fn count_alignment_neighbours(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    identity: f64,
    num_threads: usize,
) -> PyResult<Py<PyBytes>> {
    let buffer = buffer::<u8>("codes", codes)?;
    guarded(py, || {
        let codes = codes_of(py, &buffer)?;
        let work = (codes.num_rows() as f64).powi(2) * codes.num_columns() as f64;
        let counts = run(py, work, num_threads, |cancel, num_threads| {
            count_neighbours(&codes, identity, &Execution { num_threads, cancel })
        })?;
        let bytes: Vec<u8> = counts.iter().flat_map(|count| count.to_ne_bytes()).collect();
        Ok(PyBytes::new(py, &bytes).unbind())
    })
}

/// The column of each residue (int32, -1: none) and the score of each sequence (float32), in bytes objects.
#[pyfunction]
fn place_in_profile(
    py: Python<'_>,
    sequences: (Bound<'_, PyAny>, Bound<'_, PyAny>),
    scores: &Bound<'_, PyAny>,
    gaps: (f32, f64),
    num_threads: usize,
) -> PyResult<(Py<PyBytes>, Py<PyBytes>)> {
    let (letters, offsets) = (buffer::<u8>("letters", &sequences.0)?, buffer::<i64>("offsets", &sequences.1)?);
    let scores = buffer::<f32>("scores", scores)?;
    guarded(py, || {
        let &[num_columns, num_letters] = scores.shape() else {
            return Err(raise(py, "ShapeError", format!("scores must be [L,K], not {} axes", scores.dimensions())));
        };
        let (letters, offsets) = (contiguous(py, "letters", &letters)?, contiguous(py, "offsets", &offsets)?);
        let scores = contiguous(py, "scores", &scores)?;
        let work = letters.len() as f64 * num_columns as f64;
        let found = run(py, work, num_threads, |cancel, num_threads| {
            let profile = Profile::new(scores, num_columns, num_letters)?;
            let gaps = GapCosts { open: gaps.0, extend: gaps.1 };
            place(letters, offsets, &profile, gaps, &Execution { num_threads, cancel })
        })?;
        let columns: Vec<u8> = found.columns.iter().flat_map(|column| column.to_ne_bytes()).collect();
        let scores: Vec<u8> = found.scores.iter().flat_map(|score| score.to_ne_bytes()).collect();
        Ok((PyBytes::new(py, &columns).unbind(), PyBytes::new(py, &scores).unbind()))
    })
}

/// Steps of a fit, about, for an estimate of its work.
const STEPS: f64 = 30.0;

/// Fills fields [C,20] and couplings [C,L,20,20] of the columns from `first` on, from codes [N,L] and weights [N].
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn fit_pairwise_columns(
    py: Python<'_>,
    codes: &Bound<'_, PyAny>,
    weights: &Bound<'_, PyAny>,
    first: usize,
    fields: &Bound<'_, PyAny>,
    couplings: &Bound<'_, PyAny>,
    penalties: (f64, f64),
    num_threads: usize,
) -> PyResult<()> {
    let (codes, weights) = (buffer::<u8>("codes", codes)?, buffer::<f32>("weights", weights)?);
    let (fields, couplings) = (buffer::<f32>("fields", fields)?, buffer::<f32>("couplings", couplings)?);
    guarded(py, || {
        let (codes, weights) = (codes_of(py, &codes)?, contiguous(py, "weights", &weights)?);
        let (fields, couplings) = (writable(py, "fields", &fields)?, writable(py, "couplings", &couplings)?);
        let columns = first..first.saturating_add(fields.len() / NUM_STATES);
        let penalties = Penalties { field: penalties.0, coupling: penalties.1 };
        let work = STEPS * (codes.num_rows() * codes.num_columns() * fields.len()) as f64;
        let out = Once::new((fields, couplings));
        run(py, work, num_threads, |cancel, num_threads| {
            let (fields, couplings) = out.take()?;
            let execution = Execution { num_threads, cancel };
            let observed = Observed::new(codes, weights, &execution)?;
            fit_columns(&observed, columns.clone(), penalties, fields, couplings, &execution)
        })
    })
}
