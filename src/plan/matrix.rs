//! A matrix inside a buffer: where it starts and how far its rows and columns are apart.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::index;
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
            // Where this does not fit, the matrix reaches beyond any buffer and is refused with it.
            offset: self
                .offset
                .saturating_add(start.saturating_mul(self.row_stride)),
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
        let last = |count: usize, stride: usize| (count - 1).saturating_mul(stride);
        self.offset
            .saturating_add(last(self.rows, self.row_stride))
            .saturating_add(last(self.cols, self.col_stride))
            .saturating_add(1)
    }

    /// True if no two elements have the same place, so that it can be written.
    pub fn is_injective(&self) -> bool {
        injective([self.rows, self.cols], [self.row_stride, self.col_stride])
    }

    /// The sizes and strides as a shader's parameters.
    ///
    /// # Errors
    /// [`Error::Limit`] where an index would not fit 32 bits.
    pub(crate) fn indices(&self, op: &'static str) -> Result<[u32; 3]> {
        index(op, self.reach())?;
        Ok([
            index(op, self.offset)?,
            index(op, self.row_stride)?,
            index(op, self.col_stride)?,
        ])
    }
}

/// See [`Matrix::is_injective`]: along one axis the elements must be further apart than the other
/// axis is long.
pub(crate) fn injective([rows, cols]: [usize; 2], [row, col]: [usize; 2]) -> bool {
    let longer =
        |stride: usize, count: usize, other: usize| stride > (count - 1).saturating_mul(other);
    match (rows, cols) {
        (0, _) | (_, 0) | (1, 1) => true,
        (1, _) => col > 0,
        (_, 1) => row > 0,
        _ => (row > 0 && col > 0) && (longer(row, cols, col) || longer(col, rows, row)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_matrices_are_seen() {
        for (size, strides, want) in [
            ([2, 3], [3, 1], true),
            ([2, 3], [1, 2], true),
            ([2, 3], [2, 1], false),
            ([2, 3], [0, 1], false),
            ([2, 3], [1, 0], false),
            ([1, 3], [0, 1], true),
            ([1, 3], [5, 0], false),
            ([3, 1], [1, 0], true),
            ([0, 3], [0, 0], true),
            ([2, 3], [2, 3], true),
        ] {
            // Counted by hand where it is small.
            let [rows, cols] = size;
            let [row, col] = strides;
            let places: Vec<usize> = (0..rows)
                .flat_map(|r| (0..cols).map(move |c| r * row + c * col))
                .collect();
            let distinct: std::collections::BTreeSet<_> = places.iter().collect();
            let truly = distinct.len() == places.len();
            assert_eq!(injective(size, strides), want, "{size:?} {strides:?}");
            // It may refuse what does not overlap, but never allow what does.
            assert!(truly || !want, "{size:?} {strides:?}");
        }
    }

    #[test]
    fn huge_strides_do_not_wrap() {
        let matrix = Matrix {
            buffer: BufferId::loose(),
            offset: 1,
            rows: 1 << 40,
            cols: 2,
            row_stride: 1 << 40,
            col_stride: 1,
        };
        assert_eq!(matrix.reach(), usize::MAX);
        assert!(matrix.indices("test").is_err());
        let one_row = Matrix {
            rows: 1,
            cols: 1,
            ..matrix
        };
        assert!(one_row.indices("test").is_err());
    }
}
