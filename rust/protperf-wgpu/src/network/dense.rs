//! Operations that work on each row by itself.

use super::arrays::{Activations, Forward, Matrix};
use super::extents::Extents;
use crate::error::GpuError;
use crate::kernels::Kernel;
use crate::memory::OnDevice;

impl Forward<'_> {
    /// The residual stream at its start: rows of an embedding, and the row of a mode added.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn embed(
        &mut self,
        tokens: &[u8],
        embedding: &Activations,
        modes: &Activations,
        mode: usize,
    ) -> Result<Activations, GpuError> {
        let tokens: Vec<u32> = tokens.iter().map(|&token| token.into()).collect();
        let on_device = self.recorder.upload("tokens", &tokens)?;
        let x = self.scratch("residual stream", tokens.len(), embedding.width)?;
        let extents = Extents { outputs: x.fours(), mode: mode as u32, ..Extents::default() };
        let bindings = [&on_device, &embedding.memory, &modes.memory, &x.memory];
        self.recorder.dispatch(Kernel::Embed, extents.over(&[x.fours(), tokens.len() as u32]), &bindings);
        Ok(x)
    }

    /// Rows over their root mean square, times a gain.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn norm(&mut self, x: &Activations, gain: &Activations, epsilon: f64) -> Result<Activations, GpuError> {
        let y = self.scratch("normalized rows", x.rows, x.width)?;
        let factor = epsilon as f32;
        let extents = Extents { inputs: x.fours(), width: x.width as u32, factor, ..Extents::default() };
        let bindings = [&x.memory, &gain.memory, &y.memory];
        self.recorder.dispatch(Kernel::Norm, extents.over(&[x.rows as u32]), &bindings);
        Ok(y)
    }

    /// Products with a matrix, its groups padded.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn linear(&mut self, x: &Activations, matrix: &Matrix) -> Result<Activations, GpuError> {
        let out = self.scratch("products", x.rows, matrix.outputs)?;
        self.multiply(x, matrix, &out, 0);
        Ok(out)
    }

    /// Adds products with a matrix to rows.
    pub fn add_linear(&mut self, x: &Activations, matrix: &Matrix, to: &Activations) {
        self.multiply(x, matrix, to, 1);
    }

    fn multiply(&mut self, x: &Activations, matrix: &Matrix, out: &Activations, mode: u32) {
        debug_assert!(x.width.next_multiple_of(4) == matrix.inputs.next_multiple_of(4));
        debug_assert!(out.width.next_multiple_of(4) == matrix.outputs && out.rows == x.rows);
        let (rows, inputs, outputs) = (x.rows as u32, x.fours(), out.fours());
        let extents = Extents { rows, inputs, outputs, mode, ..Extents::default() };
        let bindings = [&x.memory, &matrix.memory, &out.memory];
        self.recorder.dispatch(Kernel::Linear, extents.over(&[outputs, rows.div_ceil(4)]), &bindings);
    }

    /// silu(gate) up of gates and what they let through side by side.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn gate(&mut self, gate_up: &Activations) -> Result<Activations, GpuError> {
        let out = self.scratch("gated", gate_up.rows, gate_up.width / 2)?;
        let extents = Extents { inputs: gate_up.fours(), outputs: out.fours(), ..Extents::default() };
        let bindings = [&gate_up.memory, &out.memory];
        self.recorder.dispatch(Kernel::Gate, extents.over(&[out.fours(), out.rows as u32]), &bindings);
        Ok(out)
    }

    /// Some rows, in this order.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub fn some_rows(&mut self, x: &Activations, rows: &[u32]) -> Result<Activations, GpuError> {
        let out = self.scratch("some rows", rows.len(), x.width)?;
        let width = x.width.next_multiple_of(4);
        self.gather([(&x.memory, x.rows), (&x.memory, 0)], rows, [1, width], &out.memory)?;
        Ok(out)
    }

    /// Log-probabilities in place of the first logits of each row.
    pub fn log_softmax(&mut self, logits: Activations, classes: usize) -> Activations {
        let extents = Extents { inputs: logits.fours(), width: classes as u32, ..Extents::default() };
        self.recorder.dispatch(Kernel::LogSoftmax, extents.over(&[logits.rows as u32]), &[&logits.memory]);
        Activations { width: classes, ..logits }
    }

    /// Rows of the first array, and after them of the second, of each of some lines; `table` holds their numbers.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`].
    pub(super) fn gather(
        &mut self,
        [(first, of_first), (second, of_second)]: [(&OnDevice, usize); 2],
        table: &[u32],
        [lines, width]: [usize; 2],
        out: &OnDevice,
    ) -> Result<(), GpuError> {
        let rows = self.recorder.upload("numbers of rows", table)?;
        let extents = Extents {
            rows: table.len() as u32,
            inputs: of_first as u32,
            outputs: of_second as u32,
            width: width as u32,
            ..Extents::default()
        };
        let counts = [width as u32, table.len() as u32, lines as u32];
        self.recorder.dispatch(Kernel::Gather, extents.over(&counts), &[first, second, &rows, out]);
        Ok(())
    }
}
