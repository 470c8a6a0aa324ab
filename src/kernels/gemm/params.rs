//! What the kernels of a product are told: `Product` in `shaders/shared/gemm.wgsl`, and how its
//! matrices are bound.

use bytemuck::{Pod, Zeroable};

use crate::plan::Matrix;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct Product {
    pub(super) m: u32,
    pub(super) n: u32,
    pub(super) k: u32,
    /// The start and the row and column strides; the same below.
    pub(super) a: [u32; 3],
    pub(super) b: [u32; 3],
    pub(super) c: [u32; 3],
    pub(super) alpha: f32,
    pub(super) beta: f32,
    /// Values of k in a part.
    pub(super) chunk: u32,
    /// From one part's C to the next.
    pub(super) c_part: u32,
    /// Invocations along the columns, for [`Form::Blocks`](super::Form::Blocks).
    pub(super) width: u32,
}

/// How a matrix is bound: the constants `A_VEC4` and `B_VEC4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vec4 {
    /// As numbers.
    None = 0,
    /// As vec4s along k.
    AlongK = 1,
    /// As vec4s across k.
    AcrossK = 2,
}

impl Vec4 {
    /// How `matrix`, whose columns stand for k, can be bound. Then its last element ends a vec4, so
    /// that none of them lies outside the buffer or holds what is not the matrix's.
    pub(super) fn of(matrix: &Matrix) -> Self {
        match Self::along_k(matrix) {
            Self::None => Self::across_k(matrix),
            along => along,
        }
    }

    /// The same for a kernel that reads along k.
    pub(super) fn along_k(matrix: &Matrix) -> Self {
        if is_vec4(matrix) {
            Self::AlongK
        } else {
            Self::None
        }
    }

    /// And for one that reads across k.
    pub(super) fn across_k(matrix: &Matrix) -> Self {
        if is_vec4(&matrix.t()) {
            Self::AcrossK
        } else {
            Self::None
        }
    }
}

/// True if the rows of a matrix that is not empty are whole vec4s of its buffer.
pub(super) fn is_vec4(matrix: &Matrix) -> bool {
    let fours = |v: usize| v.is_multiple_of(4);
    matrix.rows > 0
        && matrix.cols > 0
        && matrix.col_stride == 1
        && fours(matrix.offset)
        && fours(matrix.cols)
        && (matrix.rows == 1 || fours(matrix.row_stride))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::BufferId;

    #[test]
    fn vec4s_need_whole_fours() {
        let dense = Matrix::dense(BufferId::loose(), 8, 12);
        assert_eq!(Vec4::of(&dense), Vec4::AlongK);
        assert_eq!(Vec4::of(&dense.t()), Vec4::AcrossK);
        for other in [
            Matrix::dense(BufferId::loose(), 8, 11),
            Matrix { offset: 2, ..dense },
            Matrix {
                row_stride: 13,
                ..dense
            },
            Matrix { cols: 10, ..dense },
            Matrix {
                col_stride: 2,
                ..dense
            },
            Matrix { rows: 0, ..dense },
        ] {
            assert_eq!(Vec4::of(&other), Vec4::None, "{other:?}");
            assert_eq!(Vec4::of(&other.t()), Vec4::None, "{other:?}");
        }
        // The stride of a single row is never taken.
        let row = Matrix {
            rows: 1,
            row_stride: 13,
            ..dense
        };
        assert_eq!(Vec4::of(&row), Vec4::AlongK);
    }
}
