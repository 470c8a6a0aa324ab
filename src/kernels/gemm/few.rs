//! Products of few rows with transposed weights on the CPU: C = α A Wᵀ + β C, where A has up to
//! [`MOST`] rows and a row of W is what an output sums over, as in x · W_ihᵀ of a single step.
//!
//! There is too little to do per weight for packing it to pay, as general products do. So each row of W
//! is read once and in order, and multiplied with all rows of A by dot products in vector registers,
//! several rows of W at a time so that additions need not wait for each other. What is left is the
//! time in which the weights arrive; several threads share it, each with its rows of W.

use pulp::{Arch, Simd, WithSimd};

use crate::kernels::simd::split::share;
use crate::threads;

/// Rows of A at most.
pub(super) const MOST: usize = 4;
/// Rows of W at a time.
const AT_ONCE: usize = 4;
/// Weights that are worth a thread: 256 KiB, which arrive in about ten microseconds.
const ALONE: usize = 1 << 16;
/// Parts for each thread, so that one that comes late leaves some to the others.
const PARTS: usize = 4;

/// The product, all of it or some columns of C.
pub(super) struct Few<'a, const M: usize> {
    /// K numbers each.
    pub(super) a: [&'a [f32]; M],
    /// From the first row on; the others follow at `pitch`.
    pub(super) weights: &'a [f32],
    pub(super) pitch: usize,
    /// The same columns of each row of C.
    pub(super) c: [&'a mut [f32]; M],
    pub(super) alpha: f32,
    pub(super) beta: f32,
}

impl<const M: usize> Few<'_, M> {
    /// Computes it, on several threads where it is worth it.
    pub(super) fn run(self) {
        let (columns, depth) = (self.c[0].len(), self.a[0].len());
        let most = (columns / AT_ONCE).min(columns * depth / ALONE);
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
            let mut c = [(); M].map(|()| Default::default());
            for (row, part) in self.c.iter_mut().zip(&mut c) {
                let columns = columns.min(row.len());
                *part = row.split_off_mut(..columns).unwrap_or_default();
            }
            let weights = self.weights;
            self.weights = weights.get(columns * self.pitch..).unwrap_or_default();
            Self { c, weights, ..self }
        };
        (0..parts).map(part).collect()
    }
}

impl<const M: usize> WithSimd for Few<'_, M> {
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

impl<const M: usize> Few<'_, M> {
    /// W columns of C from one on.
    #[inline(always)]
    fn columns<S: Simd, const W: usize>(&mut self, simd: S, first: usize) {
        let depth = self.a[0].len();
        let mut rows = [(); W].map(|()| -> &[f32] { &[] });
        for (w, row) in rows.iter_mut().enumerate() {
            *row = &self.weights[(first + w) * self.pitch..][..depth];
        }
        let mut sums = [[simd.splat_f32s(0.0); W]; M];
        let (heads, tails) = {
            let split = |row| S::as_simd_f32s(row);
            (rows.map(|r| split(r).0), rows.map(|r| split(r).1))
        };
        let a_heads = self.a.map(|r| S::as_simd_f32s(r).0);
        let vectors = a_heads[0].len();
        // So that the compiler sees that no index leaves its row.
        let (heads, a_heads) = (heads.map(|h| &h[..vectors]), a_heads.map(|h| &h[..vectors]));
        for k in 0..vectors {
            for (sums, a) in sums.iter_mut().zip(&a_heads) {
                for (sum, weights) in sums.iter_mut().zip(&heads) {
                    *sum = simd.mul_add_e_f32s(a[k], weights[k], *sum);
                }
            }
        }
        if !tails[0].is_empty() {
            for (sums, a) in sums.iter_mut().zip(self.a) {
                let x = simd.partial_load_f32s(S::as_simd_f32s(a).1);
                for (sum, tail) in sums.iter_mut().zip(tails) {
                    *sum = simd.mul_add_e_f32s(x, simd.partial_load_f32s(tail), *sum);
                }
            }
        }
        for (row, sums) in self.c.iter_mut().zip(sums) {
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
}
