//! The shape of a product: all that the choice of its form depends on.

use std::fmt::{self, Display, Formatter};

use super::Gemm;

/// The most rows that [`Form::Rows`](super::Form::Rows) serves.
const MOST_FEW: usize = 8;

/// The shape of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A and rows of B.
    pub k: usize,
    /// Whether neighbours along k are neighbours in A.
    pub a_along_k: bool,
    /// The same for B.
    pub b_along_k: bool,
    /// Whether B holds 16-bit floats, which the kernels read as B alone.
    pub b_half: bool,
}

impl Shape {
    /// A product of dense row-major matrices, neither of which is transposed.
    pub const fn new(m: usize, n: usize, k: usize) -> Self {
        Self {
            m,
            n,
            k,
            a_along_k: true,
            b_along_k: false,
            b_half: false,
        }
    }

    /// How many rows or columns there are, if that is few. Columns are rows of the transpose, for which
    /// B must be one that can be A.
    pub fn few(&self) -> Option<usize> {
        let few = self.m.min(self.n);
        let possible = self.m <= self.n || !self.b_half;
        ((1..=MOST_FEW).contains(&few) && possible).then_some(few)
    }

    /// That of the product or of its transpose, whichever has no more rows than columns.
    #[must_use]
    pub fn upright(&self) -> Self {
        if self.m <= self.n {
            return *self;
        }
        Self {
            m: self.n,
            n: self.m,
            k: self.k,
            a_along_k: self.b_along_k,
            b_along_k: self.a_along_k,
            b_half: false,
        }
    }

    /// That of a product.
    pub fn of(product: &Gemm) -> Self {
        let Gemm { a, b, .. } = product;
        Self {
            a_along_k: a.col_stride == 1,
            b_along_k: b.row_stride == 1,
            ..Self::new(a.rows, b.cols, a.cols)
        }
    }
}

/// As in `400x2048x512 NT f16`: m, n, k, which of A and B are stored transposed, and whether B is in
/// 16-bit floats.
impl Display for Shape {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let letter = |transposed| if transposed { 'T' } else { 'N' };
        let (a, b) = (letter(!self.a_along_k), letter(self.b_along_k));
        let half = if self.b_half { " f16" } else { "" };
        write!(f, "{}x{}x{} {a}{b}{half}", self.m, self.n, self.k)
    }
}
