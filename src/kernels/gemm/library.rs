//! Products in CPU memory by the crate `gemm`: what twins compute with.

use super::GEMM;
use super::few::{Few, most};
use crate::error::{Error, Result};
use crate::kernels::simd::split::share;
use crate::plan::injective;
use crate::real::Real;
use crate::threads;

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

/// Computes a product of few rows in single precision, if it is one: true if so.
fn few_rows<R: Real>(
    a: &Strided<'_, R>,
    b: &Strided<'_, R>,
    c: &mut StridedMut<'_, R>,
    alpha: R,
    beta: R,
) -> bool {
    let ([m, k], n) = (a.size, b.size[1]);
    let neighbours = a.strides[1] == 1 && b.strides[0] == 1 && c.strides[1] == 1;
    let single = size_of::<R>() == size_of::<f32>();
    let rows_apart = m < 2 || c.strides[0] >= n;
    if !(single && neighbours && rows_apart && (1..=most(k, b.strides[1], n)).contains(&m)) {
        return false;
    }
    let c_row = c.strides[0].max(n);
    let c = bytemuck::cast_slice_mut(c.cells).chunks_mut(c_row);
    Few {
        a: bytemuck::cast_slice(a.cells),
        a_row: a.strides[0],
        depth: k,
        weights: bytemuck::cast_slice(b.cells),
        pitch: b.strides[1],
        c: c.take(m).map(|row| &mut row[..n]).collect(),
        alpha: alpha.to_f32(),
        beta: beta.to_f32(),
    }
    .run();
    true
}

/// C = α A B + β C, by the crate `gemm`, on several threads where it is worth it; few rows by
/// [`few`](super::few).
///
/// # Errors
/// If the sizes do not agree or a matrix leaves its slice.
#[allow(unsafe_code, reason = "the crate gemm takes pointers")]
pub(crate) fn product<R: Real>(
    a: Strided<'_, R>,
    b: Strided<'_, R>,
    mut c: StridedMut<'_, R>,
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
    if few_rows(&a, &b, &mut c, alpha, beta) {
        return Ok(());
    }
    let workers = match m.saturating_mul(n).saturating_mul(k) < ALONE {
        true => 1,
        false => rayon::current_num_threads(),
    };
    let whole = Piece {
        c: c.cells.as_mut_ptr(),
        a: a.cells.as_ptr(),
        b: b.cells.as_ptr(),
        size: [m, n, k],
    };
    let strides = [c.strides, a.strides, b.strides].map(|all| all.map(|s| s as isize));
    threads::share_out(workers, whole.split(strides, workers), |piece| {
        // SAFETY: every (row, column) of the three matrices lies inside its slice (`inside`, which
        // `place_in` computed from the same sizes and strides), and no two elements of C share a place;
        // the pieces divide the rows or the columns of C. `R` is f32 or f64, whose result the crate writes
        // only at the elements of C, which is borrowed mutably and not aliased.
        unsafe { piece.multiply(strides, alpha, beta) };
    });
    Ok(())
}

/// Multiplications that are not worth another thread: some microseconds.
const ALONE: usize = 1 << 20;
/// Rows or columns of a piece at least: with fewer the library packs more than it multiplies.
const SHORTEST: usize = 128;
/// Pieces for each thread, so that one that comes late leaves some to the others.
const PIECES: usize = 2;

/// Some rows or columns of a product.
struct Piece<R> {
    c: *mut R,
    a: *const R,
    b: *const R,
    size: [usize; 3],
}

// SAFETY: its numbers are `Send` and `Sync`, and it is used under the conditions of `multiply`.
#[allow(unsafe_code, reason = "the crate gemm takes pointers")]
unsafe impl<R: Real> Send for Piece<R> {}

impl<R: Real> Piece<R> {
    /// Nearly equal pieces of rows or columns, whichever are more.
    fn split(self, [c, a, b]: [[isize; 2]; 3], workers: usize) -> Vec<Self> {
        let [m, n, k] = self.size;
        let by_rows = m > n;
        let long = m.max(n);
        let most = if workers > 1 { PIECES * workers } else { 1 };
        let pieces = (long / SHORTEST).clamp(1, most);
        let piece = |nth| {
            let part = share(long, nth, pieces);
            let first = part.start as isize;
            match by_rows {
                true => Self {
                    c: self.c.wrapping_offset(first * c[0]),
                    a: self.a.wrapping_offset(first * a[0]),
                    b: self.b,
                    size: [part.len(), n, k],
                },
                false => Self {
                    c: self.c.wrapping_offset(first * c[1]),
                    a: self.a,
                    b: self.b.wrapping_offset(first * b[1]),
                    size: [m, part.len(), k],
                },
            }
        };
        (0..pieces).map(piece).collect()
    }

    /// Computes it.
    ///
    /// # Safety
    /// Every element of the matrices, which have these strides, may be read, those of C written, and no
    /// other thread does anything with the latter.
    #[allow(unsafe_code, reason = "the crate gemm takes pointers")]
    unsafe fn multiply(self, [c, a, b]: [[isize; 2]; 3], alpha: R, beta: R) {
        let [m, n, k] = self.size;
        // SAFETY: the caller's.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                self.c,
                c[1],
                c[0],
                beta != R::ZERO,
                self.a,
                a[1],
                a[0],
                self.b,
                b[1],
                b[0],
                beta,
                alpha,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Few rows, with and without what divides them among threads and vectors.
    #[test]
    fn few_rows_are_products() {
        let mut rng = Rng::new(1);
        for (m, n, k) in [
            (1, 1, 1),
            (1, 9, 40),
            (2, 4, 17),
            (3, 301, 500),
            (4, 130, 1031),
            (1, 700, 700),
            (5, 20, 20),
            (7, 64, 100),
            (5, 63, 100),
            (71, 301, 500),
            (75, 130, 511),
        ] {
            for (alpha, beta) in [(1.0, 0.0), (-0.5, 2.0)] {
                // The rows stand apart, and what lies between must not be read or written.
                let (a_row, pitch, c_row) = (k + 3, k + 1, n + 2);
                let mut spread = |rows: usize, row: usize, cols: usize| -> Vec<f32> {
                    let mut all = vec![f32::NAN; rows * row];
                    for r in all.chunks_mut(row) {
                        r[..cols].copy_from_slice(&rng.uniforms(cols, -1.0, 1.0));
                    }
                    all
                };
                let (a, w) = (spread(m, a_row, k), spread(n, pitch, k));
                let mut c = spread(m, c_row, n);
                // The last rows end with their last number.
                let (a, w) = (&a[..a.len() - 3], &w[..w.len() - 1]);
                c.truncate(c.len() - 2);
                if beta == 0.0 {
                    c.fill(f32::NAN);
                }
                let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
                let (a64, w64, mut c64) = (wide(a), wide(w), wide(&c));
                let at = |row: usize, col: usize| [0, row as u32, col as u32];
                product(
                    Strided::new(a, at(a_row, 1), [m, k]),
                    Strided::new(w, at(1, pitch), [k, n]),
                    StridedMut::new(&mut c, at(c_row, 1), [m, n]),
                    alpha as f32,
                    beta as f32,
                )
                .unwrap();
                product(
                    Strided::new(&a64, at(a_row, 1), [m, k]),
                    Strided::new(&w64, at(1, pitch), [k, n]),
                    StridedMut::new(&mut c64, at(c_row, 1), [m, n]),
                    alpha,
                    beta,
                )
                .unwrap();
                for (i, (got, want)) in c.iter().zip(&c64).enumerate() {
                    let what = format!("{m} {n} {k}: element {i} is {got}, must be {want}");
                    if i % c_row >= n {
                        assert!(got.is_nan(), "{what}");
                    } else {
                        assert!((f64::from(*got) - want).abs() < 1e-4, "{what}");
                    }
                }
            }
        }
    }
}
