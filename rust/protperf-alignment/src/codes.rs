//! An alignment as a matrix of codes.

use protperf_core::{Error, Result};

/// Rows of an alignment, one byte per column.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    data: &'a [u8],
    num_rows: usize,
    num_columns: usize,
}

impl<'a> Codes<'a> {
    /// The rows of `data`, one after another.
    ///
    /// # Shapes
    /// `data` is `[num_rows, num_columns]`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`]: another number of codes, no column, or 2^32 rows or more.
    pub fn new(data: &'a [u8], num_rows: usize, num_columns: usize) -> Result<Self> {
        if num_rows.checked_mul(num_columns) != Some(data.len()) {
            let detail = format!("has {} elements, not {num_rows} rows of {num_columns} columns", data.len());
            return Err(Error::shape("codes", detail));
        }
        if num_columns == 0 {
            return Err(Error::shape("codes", "has no columns; an alignment has at least one"));
        }
        if u32::try_from(num_rows).is_err() {
            return Err(Error::shape("codes", format!("has {num_rows} rows; give fewer than 2^32")));
        }
        Ok(Codes { data, num_rows, num_columns })
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Number of columns.
    pub fn num_columns(&self) -> usize {
        self.num_columns
    }

    /// The codes of a row.
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        &self.data[row * self.num_columns..(row + 1) * self.num_columns]
    }
}
