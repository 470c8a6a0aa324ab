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
        }
    }

    /// How many rows or columns there are, if that is few.
    pub fn few(&self) -> Option<usize> {
        let few = self.m.min(self.n);
        (1..=MOST_FEW).contains(&few).then_some(few)
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

/// As in `400x2048x512 NT`: m, n, k, and which of A and B are stored transposed.
impl Display for Shape {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let letter = |transposed| if transposed { 'T' } else { 'N' };
        let (a, b) = (letter(!self.a_along_k), letter(self.b_along_k));
        write!(f, "{}x{}x{} {a}{b}", self.m, self.n, self.k)
    }
}
