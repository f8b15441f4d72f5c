//! Operations that work on each row by itself.

use super::arrays::{Activations, Forward, Matrix};
use super::extents::Extents;
use crate::error::GpuError;
use crate::kernels::Kernel;
use crate::memory::OnDevice;
use crate::recorder::GROUP;

/// Rows and fours of columns that a workgroup makes: the twins of `ROWS` and `COLUMNS` in `shaders/network/linear.wgsl`.
const GROUP_ROWS: u32 = 64;
const GROUP_COLUMNS: u32 = 16;

/// The residual stream at its start: rows of an embedding, and the row of a mode added.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn embed(
    forward: &mut Forward<'_>,
    tokens: &[u8],
    embedding: &Activations,
    modes: &Activations,
    mode: usize,
) -> Result<Activations, GpuError> {
    let tokens: Vec<u32> = tokens.iter().map(|&token| token.into()).collect();
    let on_device = forward.recorder.upload("tokens", &tokens)?;
    let x = forward.scratch("residual stream", tokens.len(), embedding.width)?;
    let extents = Extents { outputs: x.fours(), mode: mode as u32, ..Extents::default() };
    let bindings = [&on_device, &embedding.memory, &modes.memory, &x.memory];
    forward.recorder.dispatch(Kernel::Embed, extents.over(&[x.fours(), tokens.len() as u32]), &bindings);
    Ok(x)
}

/// Rows over their root mean square, times a gain.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn norm(
    forward: &mut Forward<'_>,
    x: &Activations,
    gain: &Activations,
    epsilon: f64,
) -> Result<Activations, GpuError> {
    let y = forward.scratch("normalized rows", x.rows, x.width)?;
    let factor = epsilon as f32;
    let extents = Extents { inputs: x.fours(), width: x.width as u32, factor, ..Extents::default() };
    let bindings = [&x.memory, &gain.memory, &y.memory];
    forward.recorder.dispatch(Kernel::Norm, extents.over(&[x.rows as u32]), &bindings);
    Ok(y)
}

/// Products with a matrix, its groups padded.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn linear(forward: &mut Forward<'_>, x: &Activations, matrix: &Matrix) -> Result<Activations, GpuError> {
    let out = forward.scratch("products", x.rows, matrix.outputs)?;
    multiply(forward, x, matrix, &out, 0);
    Ok(out)
}

/// Adds products with a matrix to rows.
pub fn add_linear(forward: &mut Forward<'_>, x: &Activations, matrix: &Matrix, to: &Activations) {
    multiply(forward, x, matrix, to, 1);
}

fn multiply(forward: &mut Forward<'_>, x: &Activations, matrix: &Matrix, out: &Activations, mode: u32) {
    debug_assert!(x.width.next_multiple_of(4) == matrix.inputs.next_multiple_of(4));
    debug_assert!(out.width.next_multiple_of(4) == matrix.outputs && out.rows == x.rows);
    let (rows, inputs, outputs) = (x.rows as u32, x.fours(), out.fours());
    let extents = Extents { rows, inputs, outputs, mode, ..Extents::default() };
    let bindings = [&x.memory, &matrix.memory, &out.memory];
    let counts = [GROUP, outputs.div_ceil(GROUP_COLUMNS), rows.div_ceil(GROUP_ROWS)];
    forward.recorder.dispatch(forward.gpu.sharing.linear, extents.over(&counts), &bindings);
}

/// silu(gate) up of gates and what they let through side by side.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn gate(forward: &mut Forward<'_>, gate_up: &Activations) -> Result<Activations, GpuError> {
    let out = forward.scratch("gated", gate_up.rows, gate_up.width / 2)?;
    let extents = Extents { inputs: gate_up.fours(), outputs: out.fours(), ..Extents::default() };
    let bindings = [&gate_up.memory, &out.memory];
    forward.recorder.dispatch(Kernel::Gate, extents.over(&[out.fours(), out.rows as u32]), &bindings);
    Ok(out)
}

/// Some rows, in this order.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn some_rows(forward: &mut Forward<'_>, x: &Activations, rows: &[u32]) -> Result<Activations, GpuError> {
    let out = forward.scratch("some rows", rows.len(), x.width)?;
    let width = x.width.next_multiple_of(4);
    gather(forward, [(&x.memory, x.rows), (&x.memory, 0)], rows, [1, width], &out.memory)?;
    Ok(out)
}

/// Log-probabilities in place of the first logits of each row.
pub fn log_softmax(forward: &mut Forward<'_>, logits: Activations, classes: usize) -> Activations {
    let extents = Extents { inputs: logits.fours(), width: classes as u32, ..Extents::default() };
    forward.recorder.dispatch(Kernel::LogSoftmax, extents.over(&[logits.rows as u32]), &[&logits.memory]);
    Activations { width: classes, ..logits }
}

/// One number of each row `[rows]`, as a row of so many numbers: those of the columns.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn picked(forward: &mut Forward<'_>, x: &Activations, columns: &[u32]) -> Result<Activations, GpuError> {
    let padded = x.width.next_multiple_of(4);
    let table: Vec<u32> = (0..).step_by(padded).zip(columns).map(|(first, column)| first + column).collect();
    let out = forward.scratch("some numbers", 1, columns.len())?;
    gather(forward, [(&x.memory, x.rows * padded), (&x.memory, 0)], &table, [1, 1], &out.memory)?;
    Ok(out)
}

/// Rows of the first array `[outer,of_first,width]`, and after them of the second `[outer,of_second,width]`, the same
/// for each outer index; `table` holds their numbers.
///
/// # Errors
/// [`GpuError::TooLarge`].
pub fn gather(
    forward: &mut Forward<'_>,
    [(first, of_first), (second, of_second)]: [(&OnDevice, usize); 2],
    table: &[u32],
    [outer, width]: [usize; 2],
    out: &OnDevice,
) -> Result<(), GpuError> {
    let rows = forward.recorder.upload("numbers of rows", table)?;
    let extents = Extents {
        rows: table.len() as u32,
        inputs: of_first as u32,
        outputs: of_second as u32,
        width: width as u32,
        ..Extents::default()
    };
    let counts = [width as u32, table.len() as u32, outer as u32];
    forward.recorder.dispatch(Kernel::Gather, extents.over(&counts), &[first, second, &rows, out]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Gpu, no_gpu_to_test};
    use std::sync::atomic::AtomicBool;

    /// x W^T, and it added to itself.
    fn products(gpu: &Gpu, [rows, inputs, outputs]: [usize; 3]) -> Result<[Vec<f32>; 2], GpuError> {
        let wave = |n: usize, rate: f32| (0..n).map(|at| (at as f32 * rate).sin()).collect::<Vec<f32>>();
        let mut found = [Vec::new(), Vec::new()];
        for (times, found) in found.iter_mut().enumerate() {
            let mut forward = Forward::new(gpu);
            let x = forward.rows(&wave(rows * inputs, 0.7), inputs)?;
            let matrix = forward.matrix(&wave(outputs * inputs, 0.3), inputs, &[outputs])?;
            let out = linear(&mut forward, &x, &matrix)?;
            (0..times).for_each(|_| add_linear(&mut forward, &x, &matrix, &out));
            let all = forward.read_back(&out, &AtomicBool::new(false))?;
            let padded = outputs.next_multiple_of(4);
            *found = all.chunks_exact(padded).flat_map(|row| &row[..outputs]).copied().collect();
        }
        Ok(found)
    }

    #[test]
    fn products_are_right_and_have_the_same_bits_with_any_workgroup_memory() {
        if no_gpu_to_test() {
            return;
        }
        let gpus = [16, 32].map(|kilobytes| Gpu::open_with(u64::MAX, kilobytes << 10).unwrap());
        assert_eq!(gpus.each_ref().map(|gpu| gpu.sharing.linear), [Kernel::Linear16, Kernel::Linear32]);
        for sizes in [[1, 1, 1], [3, 31, 5], [63, 32, 64], [64, 33, 63], [65, 64, 68], [130, 129, 65], [1, 200, 150]] {
            let [found, others] = gpus.each_ref().map(|gpu| products(gpu, sizes).unwrap());
            assert!(found == others, "{sizes:?}");
            let [once, twice] = found;
            let [_, inputs, outputs] = sizes;
            for (at, (&once, &twice)) in once.iter().zip(&twice).enumerate() {
                let terms = (0..inputs).map(|i| {
                    let (x, w) = (at / outputs * inputs + i, at % outputs * inputs + i);
                    f64::from((x as f32 * 0.7).sin()) * f64::from((w as f32 * 0.3).sin())
                });
                let exact = terms.sum::<f64>();
                assert!((f64::from(once) - exact).abs() < 1e-5 * (inputs as f64).sqrt(), "{once} {exact} {sizes:?}");
                assert!((f64::from(twice) - 2.0 * f64::from(once)).abs() < 1e-5, "{once} {twice}");
            }
        }
    }
}
