//! What a cell works on: the products of a tile of sequences and units, a vector of units at a time.

use std::ops::Range;

use pulp::Simd;

use super::apart::Touched;
use super::pack::LANES;
use crate::kernels::step::Rows;

/// The buffers that a cell writes at most.
pub(crate) const BUFFERS: usize = 4;

/// A cell's equations in one direction, with the buffers that its steps read and write.
pub(crate) trait Cell: Sync {
    /// Where a sequence's rows stand in a step, and what its mask says.
    type Row: Copy;

    /// Those of a sequence.
    fn row(&self, rows: &Rows<'_>, n: usize) -> Self::Row;

    /// How many of a step's sequences have a product; for the others it is 0.
    fn multiplied(&self, rows: &Rows<'_>) -> usize;

    /// Copies what the weights multiply for a sequence.
    fn operand(&self, row: &Self::Row, to: &mut [f32]);

    /// Asks for what [`Self::finish`] will read of some units.
    fn prefetch(&self, row: &Self::Row, units: Range<usize>);

    /// Whether the sums over x, where it has those, are to stay apart from those over h, and are taken by
    /// [`Self::put`].
    const INPUT_APART: bool = false;

    /// Takes sums over x: those of a gate of some units.
    fn put(&self, _row: &Self::Row, _gate: usize, _units: Range<usize>, _sums: &[f32]) {}

    /// Does what follows the products of a tile.
    fn finish<S: Simd>(&self, simd: S, tile: &mut Tile<'_, Self::Row>);

    /// Lists the rows of every buffer that a step writes; false if it writes any that it multiplies.
    fn touched(&self, rows: &Rows<'_>, to: &mut [Touched; BUFFERS]) -> bool;
}

/// The products of some sequences and of neighbouring units.
pub(crate) struct Tile<'a, Row> {
    /// One for each sequence.
    pub(super) rows: &'a [Row],
    /// The first unit.
    pub(super) first: usize,
    /// The unit behind the last.
    pub(super) end: usize,
    /// G
    pub(super) gates: usize,
    /// Panels for each block and sequence: those of the gates, or those of the block's units.
    pub(super) panels: usize,
    /// `[blocks, sequences, panels]`
    pub(super) sums: &'a mut [[f32; LANES]],
    /// What was multiplied: `depth` numbers for each sequence, if they have a product.
    pub(super) operand: &'a [f32],
    pub(super) depth: usize,
    /// How many of them come before h.
    pub(super) before: usize,
}

/// As many units of a sequence as a vector has lanes, or fewer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Units {
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// The sequence in its tile.
    row: usize,
    /// Their panel, or that of the first gate.
    panel: usize,
    /// Which vector of the panel.
    nth: usize,
}

impl<'a, Row: Copy> Tile<'a, Row> {
    pub(crate) fn rows(&self) -> &'a [Row] {
        self.rows
    }

    /// Vectors that the units of a sequence fill, the last one perhaps in part.
    #[inline(always)]
    pub(crate) fn vectors<S: Simd>(&self) -> usize {
        (self.end - self.first).div_ceil(S::F32_LANES)
    }

    /// The units of a vector, of the tile's first sequence.
    #[inline(always)]
    pub(crate) fn units<S: Simd>(&self, vector: usize) -> Units {
        let first = vector * S::F32_LANES;
        let (panel, nth) = (first / LANES, vector % (LANES / S::F32_LANES));
        // Panels of a block: one for each gate of the same units, or one for each of its units.
        let of_block = if self.gates > 1 { 1 } else { self.panels };
        let (block, panel) = (panel / of_block, panel % of_block);
        Units {
            first: self.first + first,
            count: (self.end - self.first - first).min(S::F32_LANES),
            row: 0,
            panel: block * self.rows.len() * self.panels + panel,
            nth,
        }
    }

    /// The same units of the next sequence.
    #[inline(always)]
    pub(crate) fn next(&self, units: &mut Units) {
        units.row += 1;
        units.panel += self.panels;
    }

    /// The products of some units, for G gates.
    #[inline(always)]
    pub(crate) fn sums<S: Simd, const G: usize>(&self, simd: S, units: Units) -> [S::f32s; G] {
        let mut values = [simd.splat_f32s(0.0); G];
        for (value, panel) in values.iter_mut().zip(&self.sums[units.panel..][..G]) {
            *value = S::as_simd_f32s(panel).0[units.nth];
        }
        values
    }

    /// Puts something else in place of the first G.
    #[inline(always)]
    pub(crate) fn put<S: Simd, const G: usize>(
        &mut self,
        _: S,
        units: Units,
        values: [S::f32s; G],
    ) {
        for (value, panel) in values.into_iter().zip(&mut self.sums[units.panel..][..G]) {
            S::as_mut_simd_f32s(panel).0[units.nth] = value;
        }
    }

    /// The product of a gate and one of the units.
    pub(crate) fn sum<S: Simd>(&self, units: Units, gate: usize, unit: usize) -> f32 {
        self.sums[units.panel + gate][units.nth * S::F32_LANES + unit - units.first]
    }

    /// What was multiplied for the units, where that is h.
    #[inline(always)]
    pub(crate) fn operand<S: Simd>(&self, simd: S, units: Units) -> S::f32s {
        units.of(simd, self.operand, units.row * self.depth + self.before)
    }
}

impl Units {
    /// The same with a number of lanes that the compiler knows, if it is that of a vector.
    #[inline(always)]
    pub(crate) fn full<S: Simd>(self) -> Option<Self> {
        let count = S::F32_LANES;
        (self.count == count).then_some(Self { count, ..self })
    }

    /// Their numbers in a slice.
    #[inline(always)]
    pub(crate) fn of<S: Simd>(&self, simd: S, from: &[f32], start: usize) -> S::f32s {
        let from = &from[start + self.first..][..self.count];
        match S::as_simd_f32s(from).0.first() {
            Some(vector) => *vector,
            None => simd.partial_load_f32s(from),
        }
    }

    pub(crate) fn all(&self) -> Range<usize> {
        self.first..self.first + self.count
    }
}
