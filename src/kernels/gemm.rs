//! `gemm`: C = activation(α A B + β C + bias), with strides for every matrix.
//!
//! Serves the input projection X · W_ihᵀ, the output layer and every gradient that is a product
//! over all T·N rows. α, β as in the BLAS: with β = 0 the old C is not read, so it may hold NaN.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Matrix, Role, injective};
use crate::real::Real;
use crate::rng::Rng;
use crate::twin;

/// The side of a workgroup's tile of C.
const TILE: usize = 64;

/// `gemm`: see the [module](self).
pub static GEMM: Kernel = Kernel {
    name: "gemm",
    wgsl: include_str!("../../shaders/gemm.wgsl"),
    entry: "gemm",
    bindings: &[
        Binding::read("a_buffer"),
        Binding::read("b_buffer"),
        Binding::read("bias"),
        Binding::update("c_buffer"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: 256,
    workgroup_memory: 2 * 128 * 16,
    twin: twin!(twin),
    sample,
};

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Tiles of 64 × 64 in workgroup memory.
    Tile64,
}

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

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    m: u32,
    n: u32,
    k: u32,
    a: [u32; 3],
    b: [u32; 3],
    c: [u32; 3],
    alpha: f32,
    beta: f32,
}

/// The arguments of one product.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// m × k
    pub a: Matrix,
    /// k × n
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
        for (arg, matrix) in [("a", a), ("b", b), ("c", c)] {
            let have = builder.buffer(matrix.buffer).len();
            if matrix.reach() > have {
                let expected = format!("a buffer of at least {} elements", matrix.reach());
                return Err(Error::value(name, arg, expected, have));
            }
        }
        if !c.is_injective() {
            let got = format!("strides {} and {}", c.row_stride, c.col_stride);
            return Err(Error::value(name, "c", OVERLAP, got));
        }
        if let Some(bias) = self.bias
            && builder.buffer(bias).len() < n
        {
            return Err(Error::shape(name, "bias", [n], &builder.buffer(bias).shape));
        }
        let read_c = if self.beta == 0.0 { 0 } else { m * n };
        builder.push(Dispatch {
            kernel: &GEMM,
            constants: &[
                ("HAS_BIAS", u32::from(self.bias.is_some())),
                ("ACTIVATION", self.activation as u32),
            ],
            // Without a bias the binding is not read; A stands in.
            bindings: &[a.buffer, b.buffer, self.bias.unwrap_or(a.buffer), c.buffer],
            params: Params {
                m: index(name, m)?,
                n: index(name, n)?,
                k: index(name, k)?,
                a: a.indices(name)?,
                b: b.indices(name)?,
                c: c.indices(name)?,
                alpha: self.alpha,
                beta: self.beta,
            },
            grid: Grid::Groups([n.div_ceil(TILE), m.div_ceil(TILE), 1]),
            cost: Cost {
                flops: 2 * (m * n * k) as u64,
                bytes: 4 * (m * k + k * n + m * n + read_c) as u64,
                length: k,
            },
        })
    }
}

/// Three kinds of product in turn (NN, NT, TN), with and without bias, β and activation, in
/// buffers that are larger than the matrices.
fn sample([m, n, k]: [usize; 3], rng: &mut Rng) -> Result<Sample> {
    // Not the generator, whose draws could miss a combination; the tests see that none is missed.
    let variant = m + n + 3 * k;
    let mut b = Builder::new("gemm");
    let (pad, extra) = (rng.below(3) as usize, rng.below(2) as usize);
    let mut matrix = |name, rows: usize, cols: usize, transposed: bool, role| {
        let (r, c) = if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let buffer = b.float(name, &[r * (c + pad) + extra], role);
        let dense = Matrix {
            offset: extra,
            row_stride: c + pad,
            ..Matrix::dense(buffer, r, c)
        };
        if transposed { dense.t() } else { dense }
    };
    let a = matrix("a", m, k, variant % 3 == 2, Role::Input);
    let w = matrix("b", k, n, variant % 3 == 1, Role::Input);
    let c = matrix("c", m, n, false, Role::Output);
    let bias = ((variant / 3) % 2 == 1).then(|| b.float("bias", &[n], Role::Input));
    let beta = if variant.is_multiple_of(5) { -0.5 } else { 0.0 };
    Gemm {
        a,
        b: w,
        c,
        bias,
        alpha: if variant % 7 == 3 { 2.0 } else { 1.0 },
        beta,
        activation: Activation::ALL[(variant / 6) % 4],
    }
    .push(&mut b)?;
    // What lies between the rows is not to be read: NaN would show.
    let mut data: Vec<_> = [a, w]
        .into_iter()
        .map(|matrix| {
            let mut values = vec![f32::NAN; b.buffer(matrix.buffer).len()];
            for i in 0..matrix.rows {
                for j in 0..matrix.cols {
                    let at = matrix.offset + i * matrix.row_stride + j * matrix.col_stride;
                    values[at] = rng.uniform(-1.0, 1.0);
                }
            }
            (matrix.buffer, Data::Float(values))
        })
        .collect();
    // Where C is larger than the product, what lies between must stay; NaN could not show it.
    let old_c = (beta != 0.0 || pad + extra > 0).then_some(c.buffer);
    for id in [bias, old_c].into_iter().flatten() {
        let len = b.buffer(id).len();
        data.push((id, Data::Float(rng.uniforms(len, -1.0, 1.0))));
    }
    Ok(Sample {
        plan: b.finish(),
        data,
    })
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let has_bias = args.constant("HAS_BIAS")? != 0;
    let activation = Activation::ALL[args.constant("ACTIVATION")? as usize];
    let (a, b, bias, c) = (args.read(0)?, args.read(1)?, args.read(2)?, args.write(3)?);
    let [m, n, k] = [p.m, p.n, p.k].map(|v| v as usize);
    product(
        Strided::new(a, p.a, [m, k]),
        Strided::new(b, p.b, [k, n]),
        StridedMut::new(c, p.c, [m, n]),
        R::from_f32(p.alpha),
        R::from_f32(p.beta),
    )?;
    if !has_bias && activation == Activation::None {
        return Ok(());
    }
    let [start, row, col] = p.c.map(|v| v as usize);
    for i in 0..m {
        for j in 0..n {
            let value = &mut c[start + i * row + j * col];
            if has_bias {
                *value += bias[j];
            }
            *value = activation.apply(*value);
        }
    }
    Ok(())
}

/// A strided matrix in CPU memory, known to lie inside its slice.
#[derive(Debug)]
pub(crate) struct Strided<'a, R> {
    cells: &'a [R],
    size: [usize; 2],
    strides: [usize; 2],
    inside: bool,
}

impl<'a, R> Strided<'a, R> {
    /// `place` is the start and the row and column strides.
    pub(crate) fn new(cells: &'a [R], place: [u32; 3], size: [usize; 2]) -> Self {
        let (start, strides, inside) = place_in(cells.len(), place, size);
        Self {
            cells: &cells[start..],
            size,
            strides,
            inside,
        }
    }
}

/// The same for the result.
#[derive(Debug)]
pub(crate) struct StridedMut<'a, R> {
    cells: &'a mut [R],
    size: [usize; 2],
    strides: [usize; 2],
    inside: bool,
}

impl<'a, R> StridedMut<'a, R> {
    pub(crate) fn new(cells: &'a mut [R], place: [u32; 3], size: [usize; 2]) -> Self {
        let (start, strides, inside) = place_in(cells.len(), place, size);
        Self {
            cells: &mut cells[start..],
            size,
            strides,
            inside,
        }
    }
}

const OVERLAP: &str = "without overlapping elements";

fn place_in(len: usize, place: [u32; 3], size: [usize; 2]) -> (usize, [usize; 2], bool) {
    let [start, row, col] = place.map(|v| v as usize);
    let reach = if size.contains(&0) {
        0
    } else {
        let last = |count: usize, stride: usize| (count - 1).saturating_mul(stride);
        start
            .saturating_add(last(size[0], row))
            .saturating_add(last(size[1], col))
            .saturating_add(1)
    };
    (start.min(len), [row, col], reach <= len)
}

/// C = α A B + β C, by the crate `gemm`, on several threads where it is worth it.
///
/// # Errors
/// If the sizes do not agree or a matrix leaves its slice.
#[allow(unsafe_code, reason = "the crate gemm takes pointers")]
pub(crate) fn product<R: Real>(
    a: Strided<'_, R>,
    b: Strided<'_, R>,
    c: StridedMut<'_, R>,
    alpha: R,
    beta: R,
) -> Result<()> {
    let ([m, k], [kb, n]) = (a.size, b.size);
    if kb != k || c.size != [m, n] || !(a.inside && b.inside && c.inside) {
        let got = format!("{:?} x {:?} -> {:?}", a.size, b.size, c.size);
        return Err(Error::value(
            GEMM.name,
            "matrices",
            "agreeing and inside their buffers",
            got,
        ));
    }
    if !injective(c.size, c.strides) {
        let got = format!("strides {:?}", c.strides);
        return Err(Error::value(GEMM.name, "c", OVERLAP, got));
    }
    // Below this the threads cost more than they save.
    let parallelism = if m * n * k < 1 << 18 {
        gemm::Parallelism::None
    } else {
        gemm::Parallelism::Rayon(0)
    };
    let stride = |s: usize| s as isize;
    // SAFETY: every (row, column) of the three matrices lies inside its slice (`inside`, which
    // `place_in` computed from the same sizes and strides), and no two elements of C share a place; `R` is f32 or f64, whose result the
    // crate writes only at the elements of C, which is borrowed mutably and not aliased.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.cells.as_mut_ptr(),
            stride(c.strides[1]),
            stride(c.strides[0]),
            beta != R::ZERO,
            a.cells.as_ptr(),
            stride(a.strides[1]),
            stride(a.strides[0]),
            b.cells.as_ptr(),
            stride(b.strides[1]),
            stride(b.strides[0]),
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}
