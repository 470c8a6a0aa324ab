//! `gemm`: C = activation(α A B + β C + bias), with strides for every matrix.
//!
//! Serves the input projection X · W_ihᵀ, the output layer and every gradient that is a product
//! over all T·N rows. α, β as in the BLAS: with β = 0 the old C is not read, so it may hold NaN.
//!
//! A product has one of several [`Form`]s, each with a kernel: [`choose`] picks one by plain rules
//! over the [`Shape`] and the device, and the plan lists what was chosen. All of them read blocks of
//! 4 × 4 numbers, as vec4s where a matrix is made of whole ones, and take any strides.

mod choose;
mod few;
mod form;
mod kernels;
mod library;
mod params;
mod push;
mod rounds;
mod sample;
mod shape;
mod split;
mod twins;

use crate::error::{Error, Result};
use crate::kernels::index;
use crate::plan::{BufferId, Builder, Matrix};
use crate::real::Real;

pub use choose::choose;
pub use form::Form;
pub use kernels::{
    ACROSS_K, ALONG_K, ALONG_K_SUBGROUPS, BLOCKS, COOPERATIVE, GEMM, SUM, TILE32, TILE64, TILE128,
};
pub(crate) use library::{Strided, StridedMut, product};
pub(crate) use sample::like;
pub use shape::Shape;

/// What is applied to every element of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
    /// max(x, 0), and NaN for NaN
    Relu,
}

impl Activation {
    /// Every activation, in the order of the shader's numbers.
    pub const ALL: [Self; 4] = [Self::None, Self::Sigmoid, Self::Tanh, Self::Relu];

    /// The value at `x`.
    pub fn apply<R: Real>(self, x: R) -> R {
        match self {
            Self::None => x,
            Self::Sigmoid => x.sigmoid(),
            Self::Tanh => x.tanh(),
            Self::Relu if x < R::ZERO => R::ZERO,
            Self::Relu => x,
        }
    }
}

/// The arguments of one product.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// m × k
    pub a: Matrix,
    /// k × n; its buffer may also hold 16-bit floats.
    pub b: Matrix,
    /// m × n
    pub c: Matrix,
    /// n values, added to every row.
    pub bias: Option<BufferId>,
    /// The factor of the product.
    pub alpha: f32,
    /// The factor of the old C.
    pub beta: f32,
    /// Applied last.
    pub activation: Activation,
}

impl Gemm {
    /// C = A B.
    pub fn new(a: Matrix, b: Matrix, c: Matrix) -> Self {
        Self {
            a,
            b,
            c,
            bias: None,
            alpha: 1.0,
            beta: 0.0,
            activation: Activation::None,
        }
    }

    /// Adds the product to a plan.
    ///
    /// # Errors
    /// If the sizes do not agree, a matrix leaves its buffer, or C shares a buffer with another.
    pub fn push(self, builder: &mut Builder) -> Result<()> {
        let name = GEMM.name;
        let Self { a, b, c, .. } = self;
        let (m, n, k) = (a.rows, b.cols, a.cols);
        if b.rows != k || c.rows != m || c.cols != n {
            let expected = format!("[{m}, {k}] x [{k}, {n}] -> [{m}, {n}]");
            let got = format!("[{m}, {k}] x [{}, {n}] -> [{}, {}]", b.rows, c.rows, c.cols);
            return Err(Error::value(name, "shapes", expected, got));
        }
        for size in [m, n, k] {
            index(name, size)?;
        }
        for (arg, matrix) in [("a", a), ("b", b), ("c", c)] {
            let have = builder.buffer(matrix.buffer)?.len();
            if matrix.reach() > have {
                let expected = format!("a buffer of at least {} elements", matrix.reach());
                return Err(Error::value(name, arg, expected, have));
            }
        }
        if !c.is_injective() {
            let got = format!("strides {} and {}", c.row_stride, c.col_stride);
            return Err(Error::value(name, "c", library::OVERLAP, got));
        }
        if let Some(bias) = self.bias
            && builder.buffer(bias)?.len() < n
        {
            return Err(Error::shape(
                name,
                "bias",
                [n],
                &builder.buffer(bias)?.shape,
            ));
        }
        push::push(builder, &self)
    }
}
