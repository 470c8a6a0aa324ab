//! Products of few rows with transposed weights on the CPU: C = α A Wᵀ + β C, where A has up to
//! [`most`] rows and a row of W is what an output sums over, as in x · W_ihᵀ of some steps.
//!
//! There is too little to do per weight for packing it to pay, as general products do. So some rows of W
//! are read at a time, in order, and multiplied with all rows of A by dot products in vector registers, as
//! many sums at a time as there are registers for; again for more rows of A, from the first cache. With one row of A what
//! is left is the time in which the weights arrive; several threads share it, each with its rows of W.
//!
//! On two cores of an AMD EPYC with AVX-512, GFLOP/s beside those of the crate `gemm`, for M x N x K:
//! 8 x 2048 x 512 175 and 15, 75 x 2048 x 512 187 and 91, 50 x 4096 x 1024 181 and 49, 50 x 4096 x 240 160 and 165.

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::simd::split::share;
use crate::threads;

/// Rows of A at most, where a row of W has `depth` numbers and the next follows at `pitch`: with more, general products
/// make up for their packing.
///
/// That reads down the columns of Wᵀ, and rows of W that are a multiple of 2 KiB apart share a few places of the first
/// cache. Where both took about the same time on an AMD EPYC with AVX-512, of dense rows: K 240 35 rows, 320 50, 400 70,
/// 640 100, 1000 200, 2000 105; but 512 500, 1024 and 2048 600. More than these all of A would no longer be near. With
/// AVX2 general products pack better, and half of the registers hold fewer sums to a weight: K 240 50 rows, 320 62, 400
/// 75, 512 80, 640 90, 1000 75, 1024 120, but 2000 25 and 2048 50.
pub(super) fn most(depth: usize, pitch: usize, columns: usize) -> usize {
    limit(depth, pitch, columns, Arch::new().dispatch(Registers))
}

fn limit(depth: usize, pitch: usize, columns: usize, registers: usize) -> usize {
    match (depth, columns) {
        (0, _) | (_, 0) => 0,
        (_, ..WIDE) => FEWEST,
        (DEEP.., _) if registers < 32 => 25,
        _ if registers < 32 => (depth / 5).clamp(FEWEST, 75),
        _ if pitch.is_multiple_of(512) => (NEAR / depth).clamp(FEWEST, 512),
        _ => (depth / 7).clamp(FEWEST, 100),
    }
}

/// How many vector registers there are.
struct Registers;

impl WithSimd for Registers {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::REGISTER_COUNT
    }
}

/// Rows of A for which no general product is faster.
const FEWEST: usize = 4;
/// Columns of C from which more rows are worth it.
const WIDE: usize = 64;
/// Numbers of A that a cache shared by all cores has room for.
const NEAR: usize = 1 << 20;
/// Numbers of a row of W from which general products are as fast with 25 rows where there are few registers.
const DEEP: usize = 1500;
/// Rows of W at a time, and of A at most.
const AT_ONCE: usize = 4;
/// Weights that are worth a thread: 256 KiB, which arrive in about ten microseconds.
const ALONE: usize = 1 << 16;
/// Rows of A that take no longer than one.
const CHEAP: usize = 8;
/// Parts for each thread, so that one that comes late leaves some to the others.
const PARTS: usize = 4;

/// The product, all of it or some columns of C.
pub(super) struct Few<'a> {
    /// From the first row on; the others follow at `a_row`.
    pub(super) a: &'a [f32],
    pub(super) a_row: usize,
    /// K
    pub(super) depth: usize,
    /// From the first row on; the others follow at `pitch`.
    pub(super) weights: &'a [f32],
    pub(super) pitch: usize,
    /// The same columns of each row of C.
    pub(super) c: Vec<&'a mut [f32]>,
    pub(super) alpha: f32,
    pub(super) beta: f32,
}

impl Few<'_> {
    /// Computes it, on several threads where it is worth it.
    pub(super) fn run(self) {
        let columns = self.c[0].len();
        // As long as it is the weights that take the time, it does not matter how many rows there are.
        let work = (columns * self.depth).saturating_mul(self.c.len().div_ceil(CHEAP));
        let most = (columns / AT_ONCE).min(work / ALONE);
        let workers = most.min(rayon::current_num_threads());
        if workers < 2 {
            Arch::new().dispatch(self);
            return;
        }
        threads::share_out(workers, self.split(PARTS * workers), |part| {
            Arch::new().dispatch(part);
        });
    }

    /// Columns of C from the first on, in nearly equal parts.
    fn split(mut self, parts: usize) -> Vec<Self> {
        let fours = self.c[0].len().div_ceil(AT_ONCE);
        let part = |nth| {
            let columns = AT_ONCE * share(fours, nth, parts).len();
            let mut c = Vec::with_capacity(self.c.len());
            for row in &mut self.c {
                let columns = columns.min(row.len());
                c.push(row.split_off_mut(..columns).unwrap_or_default());
            }
            let weights = self.weights;
            self.weights = weights.get(columns * self.pitch..).unwrap_or_default();
            Self { c, weights, ..self }
        };
        (0..parts).map(part).collect()
    }
}

impl WithSimd for Few<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let columns = self.c[0].len();
        let mut column = 0;
        while column + AT_ONCE <= columns {
            self.columns::<S, AT_ONCE>(simd, column);
            column += AT_ONCE;
        }
        while column < columns {
            self.columns::<S, 1>(simd, column);
            column += 1;
        }
    }
}

impl Few<'_> {
    /// W columns of C from one on, of all rows.
    #[inline(always)]
    fn columns<S: Simd, const W: usize>(&mut self, simd: S, first: usize) {
        // So many that the sums and what is multiplied have registers.
        let at_once = match S::REGISTER_COUNT {
            32.. => AT_ONCE,
            _ => 2,
        };
        let mut row = 0;
        while row < self.c.len() {
            let rows = at_once.min(self.c.len() - row);
            match rows {
                1 => self.tile::<S, W, 1>(simd, first, row),
                2 => self.tile::<S, W, 2>(simd, first, row),
                3 => self.tile::<S, W, 3>(simd, first, row),
                _ => self.tile::<S, W, AT_ONCE>(simd, first, row),
            }
            row += rows;
        }
    }

    /// The same of R rows from one on.
    #[inline(always)]
    fn tile<S: Simd, const W: usize, const R: usize>(&mut self, simd: S, first: usize, row: usize) {
        let of_w = self.rows::<W>(self.weights, self.pitch, first);
        let of_a = self.rows::<R>(self.a, self.a_row, row);
        let vectors = self.depth / S::F32_LANES;
        // So that the compiler sees that no index leaves its row.
        let w = of_w.map(|row| &S::as_simd_f32s(row).0[..vectors]);
        let a = of_a.map(|row| &S::as_simd_f32s(row).0[..vectors]);
        let mut sums = [[simd.splat_f32s(0.0); W]; R];
        for k in 0..vectors {
            for (sums, a) in sums.iter_mut().zip(&a) {
                for (sum, w) in sums.iter_mut().zip(&w) {
                    *sum = simd.mul_add_e_f32s(a[k], w[k], *sum);
                }
            }
        }
        if !self.depth.is_multiple_of(S::F32_LANES) {
            let tail = |row| simd.partial_load_f32s(S::as_simd_f32s(row).1);
            let w = of_w.map(tail);
            for (sums, a) in sums.iter_mut().zip(of_a.map(tail)) {
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = simd.mul_add_e_f32s(a, w, *sum);
                }
            }
        }
        for (row, sums) in self.c[row..row + R].iter_mut().zip(sums) {
            for (to, sum) in row[first..first + W].iter_mut().zip(sums) {
                let value = self.alpha * simd.reduce_sum_f32s(sum);
                *to = match self.beta {
                    // The old C may hold anything.
                    0.0 => value,
                    beta => value + beta * *to,
                };
            }
        }
    }

    /// Some rows of a matrix, K numbers each.
    #[inline(always)]
    fn rows<'m, const R: usize>(
        &self,
        of: &'m [f32],
        pitch: usize,
        first: usize,
    ) -> [&'m [f32]; R] {
        let mut rows = [of; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = &of[(first + r) * pitch..][..self.depth];
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_rows_as_pay() {
        let dense = |registers| {
            [0, 1, 20, 240, 512, 1000, 2048, 8192].map(|depth| limit(depth, depth, 64, registers))
        };
        assert_eq!(dense(32), [0, 4, 4, 34, 512, 100, 512, 128]);
        assert_eq!(dense(16), [0, 4, 4, 48, 75, 75, 25, 25]);
        let of = |depth, pitch, columns| limit(depth, pitch, columns, 32);
        assert_eq!([of(512, 513, 64), of(500, 512, 64)], [73, 512]);
        assert_eq!([0, 1, 63].map(|columns| of(512, 512, columns)), [0, 4, 4]);
    }
}
