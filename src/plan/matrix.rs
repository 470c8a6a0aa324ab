//! A matrix inside a buffer: where it starts and how far its rows and columns are apart.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::plan::BufferId;

/// A strided matrix in a plan's buffer; offsets and strides count elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// The buffer that holds it.
    pub buffer: BufferId,
    /// The position of element (0, 0).
    pub offset: usize,
    /// How many rows.
    pub rows: usize,
    /// How many columns.
    pub cols: usize,
    /// From one row to the next.
    pub row_stride: usize,
    /// From one column to the next.
    pub col_stride: usize,
}

impl Matrix {
    /// A dense row-major matrix at the start of a buffer.
    pub fn dense(buffer: BufferId, rows: usize, cols: usize) -> Self {
        Self {
            buffer,
            offset: 0,
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// The transpose, by exchanging strides.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows; a range beyond the matrix is cut to it.
    #[must_use]
    pub fn row_range(self, rows: Range<usize>) -> Self {
        let start = rows.start.min(self.rows);
        let end = rows.end.clamp(start, self.rows);
        Self {
            offset: self.offset + start * self.row_stride,
            rows: end - start,
            ..self
        }
    }

    /// Some of the columns; a range beyond the matrix is cut to it.
    #[must_use]
    pub fn col_range(self, cols: Range<usize>) -> Self {
        self.t().row_range(cols).t()
    }

    /// The number of elements a buffer must have to hold it.
    pub fn reach(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        self.offset + (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }

    /// The sizes and strides as a shader's parameters.
    ///
    /// # Errors
    /// [`Error::Limit`] where an index would not fit 32 bits.
    pub(crate) fn indices(&self, op: &'static str) -> Result<[u32; 3]> {
        if u32::try_from(self.reach()).is_err() {
            return Err(Error::Limit {
                what: format!("{op}: elements of one buffer"),
                needed: self.reach() as u64,
                available: u64::from(u32::MAX),
            });
        }
        Ok([self.offset, self.row_stride, self.col_stride].map(|v| v as u32))
    }
}
