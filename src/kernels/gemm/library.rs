//! Products in CPU memory by the crate `gemm`: what twins compute with.

use super::GEMM;
use crate::error::{Error, Result};
use crate::plan::injective;
use crate::real::Real;

pub(super) const OVERLAP: &str = "without overlapping elements";

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
