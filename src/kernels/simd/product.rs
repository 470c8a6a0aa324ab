//! The product of some rows with a block of packed weights, a sum for every row and lane held in a
//! register:
//!
//! ```text
//! sums(row, lane) = start(lane) + Σ_k operand(row, k) packed(k, lane)
//! ```
//!
//! The sum over k has one order, whatever the rows beside a row and whatever the vectors' width, so
//! that its bits do not depend on how the work is divided. The weights of a k are read once for all
//! rows of the tile.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::pack::LANES;
use super::shared::prefetch_later;
use super::split::share;

/// Rows of a tile at most.
pub(crate) const ROWS: usize = 8;

/// The lanes of a row of weights, or of sums: V panels.
pub(crate) type Lanes<const V: usize> = [[f32; LANES]; V];

/// So many rows at once with vectors of this kind: as many as have all their sums, a row of weights
/// and a number of the operand in registers.
pub(crate) fn rows_at_once<S: Simd>(panels: usize) -> usize {
    let vectors = vectors_at_once::<S>(panels);
    (S::REGISTER_COUNT.saturating_sub(vectors + 1) / vectors).clamp(1, ROWS)
}

/// How many vectors of a row of weights: all of them if they are panels, else those of a panel. Of few rows
/// there may be more, so that enough sums are under way for none to wait for the one before.
fn vectors_at_once<S: Simd>(panels: usize) -> usize {
    match S::F32_LANES {
        LANES => panels,
        lanes => LANES / lanes,
    }
}

/// A product: up to [`ROWS`] rows of an operand with a block.
pub(crate) struct Product<'a> {
    /// K numbers for each row.
    pub(crate) operand: &'a [f32],
    /// K
    pub(crate) depth: usize,
    pub(crate) rows: usize,
    /// Panels in a row of lanes.
    pub(crate) panels: usize,
    /// Some of the K terms.
    pub(crate) terms: Range<usize>,
    /// Their weights, `[terms, panels]`.
    pub(crate) weights: &'a [[f32; LANES]],
    /// `[panels]`: what the sums start from; `None` if they go on from what they are.
    pub(crate) start: Option<&'a [[f32; LANES]]>,
    /// `[rows, panels]`
    pub(crate) sums: &'a mut [[f32; LANES]],
    /// Weights that come next, which are fetched meanwhile.
    pub(crate) ahead: &'a [[f32; LANES]],
}

/// Rows at most that with vectors of half a panel have the sums of two panels in registers.
const PAIRED: usize = 2;

/// Terms of a sum between which what comes next is asked for.
const STRETCH: usize = 8;

impl Product<'_> {
    #[inline(always)]
    pub(crate) fn multiply<S: Simd>(&mut self, simd: S) {
        match self.panels {
            1 => self.by_rows::<S, 1>(simd),
            2 => self.by_rows::<S, 2>(simd),
            3 => self.by_rows::<S, 3>(simd),
            _ => self.by_rows::<S, 4>(simd),
        }
    }

    #[inline(always)]
    fn by_rows<S: Simd, const V: usize>(&mut self, simd: S) {
        match self.rows {
            1 => tile_of::<S, V, 1>(simd, self),
            2 => tile_of::<S, V, 2>(simd, self),
            3 => tile_of::<S, V, 3>(simd, self),
            4 => tile_of::<S, V, 4>(simd, self),
            5 => tile_of::<S, V, 5>(simd, self),
            6 => tile_of::<S, V, 6>(simd, self),
            7 => tile_of::<S, V, 7>(simd, self),
            _ => tile_of::<S, V, 8>(simd, self),
        }
    }
}

// Not inlined: beside other code the compiler finds no registers for all the sums.
#[inline(never)]
fn tile_of<S: Simd, const V: usize, const R: usize>(simd: S, product: &mut Product<'_>) {
    simd.vectorize(Of::<V, R>(product));
}

/// A tile of R rows.
struct Of<'p, 'a, const V: usize, const R: usize>(&'p mut Product<'a>);

impl<const V: usize, const R: usize> WithSimd for Of<'_, '_, V, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Product {
            operand,
            ahead,
            depth,
            ..
        } = *self.0;
        let (terms, start) = (self.0.terms.clone(), self.0.start);
        let weights = self.0.weights.as_chunks::<V>().0;
        let sums = &mut self.0.sums.as_chunks_mut::<V>().0[..R];
        if let Some(start) = start {
            for row in sums.iter_mut() {
                row.copy_from_slice(&start[..V]);
            }
        }
        let mut rows = [operand; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = &operand[r * depth..][terms.clone()];
        }
        match S::F32_LANES {
            LANES => panels::<S, V, R, V>(simd, rows, ahead, weights, sums, 0),
            8 if const { R == 1 } => match V {
                1 => panels::<S, V, R, 2>(simd, rows, ahead, weights, sums, 0),
                2 => panels::<S, V, R, 4>(simd, rows, ahead, weights, sums, 0),
                3 => panels::<S, V, R, 6>(simd, rows, ahead, weights, sums, 0),
                _ => panels::<S, V, R, 8>(simd, rows, ahead, weights, sums, 0),
            },
            8 if const { R <= PAIRED } => {
                for v in (0..V).step_by(2) {
                    let ahead = &ahead[share(ahead.len(), v / 2, V.div_ceil(2))];
                    match V - v {
                        1 => panels::<S, V, R, 2>(simd, rows, ahead, weights, sums, 2 * v),
                        _ => panels::<S, V, R, 4>(simd, rows, ahead, weights, sums, 2 * v),
                    }
                }
            }
            lanes => {
                for v in 0..V {
                    let first = v * LANES / lanes;
                    let ahead = &ahead[share(ahead.len(), v, V)];
                    match lanes {
                        8 => panels::<S, V, R, 2>(simd, rows, ahead, weights, sums, first),
                        4 => panels::<S, V, R, 4>(simd, rows, ahead, weights, sums, first),
                        _ => panels::<S, V, R, 16>(simd, rows, ahead, weights, sums, first),
                    }
                }
            }
        }
    }
}

/// The sums of Q vectors from `first` on.
#[inline(always)]
fn panels<S: Simd, const V: usize, const R: usize, const Q: usize>(
    simd: S,
    operand: [&[f32]; R],
    ahead: &[[f32; LANES]],
    lines: &[Lanes<V>],
    sums: &mut [Lanes<V>],
    first: usize,
) {
    let depth = lines.len();
    // So that the compiler sees that no index leaves its row.
    let mut rows = operand;
    for row in &mut rows {
        *row = &row[..depth];
    }
    let mut weights = [simd.splat_f32s(0.0); Q];
    let mut acc = [weights; R];
    for (acc, sums) in acc.iter_mut().zip(sums.iter()) {
        acc.copy_from_slice(&S::as_simd_f32s(sums.as_flattened()).0[first..first + Q]);
    }
    let at_once = ahead.len().div_ceil(depth.div_ceil(STRETCH).max(1));
    let mut asked = 0;
    let mut from = 0;
    while from < depth {
        let end = (from + STRETCH).min(depth);
        for line in asked..asked + at_once {
            prefetch_later(ahead, line);
        }
        asked += at_once;
        for k in from..end {
            let line = &S::as_simd_f32s(lines[k].as_flattened()).0[first..first + Q];
            weights.copy_from_slice(line);
            for r in 0..R {
                let x = simd.splat_f32s(rows[r][k]);
                for q in 0..Q {
                    acc[r][q] = simd.mul_add_e_f32s(x, weights[q], acc[r][q]);
                }
            }
        }
        from = end;
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        let sums = S::as_mut_simd_f32s(sums.as_flattened_mut()).0;
        sums[first..first + Q].copy_from_slice(&acc);
    }
}
