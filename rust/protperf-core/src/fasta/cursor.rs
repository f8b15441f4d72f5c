//! Where the scanner is in its input, counted as in the messages: lines and columns from 1, columns in bytes.

/// Line and column of a byte, from 1.
pub(super) type Place = (u64, u64);

/// The place of the next byte.
///
/// A byte order mark and the second byte of a CRLF belong to no column, so the cursor does not move for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    line: u64,
    column: u64,
}

impl Cursor {
    pub(super) fn at((line, column): Place) -> Self {
        Self { line, column }
    }

    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The place of the byte that is `offset` bytes after the next one, on the same line.
    pub(super) fn place(&self, offset: usize) -> Place {
        (self.line, self.column + offset as u64)
    }

    /// Move past bytes that contain no line end.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.column += bytes as u64;
    }

    /// Move past a line end.
    pub(super) fn next_line(&mut self) {
        self.line += 1;
        self.column = 1;
    }
}
