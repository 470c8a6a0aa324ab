//! What the backward passes of all cells share: their arguments, and how the gradient of h is made
//! and handed on.

use std::ops::Range;

use pulp::Simd;

use super::apart::Touched;
use super::forward::run;
use super::pack::LANES;
use super::run::Steps;
use super::shared::{Shared, prefetch_soon};
use super::tile::{Tile, Units};
use crate::kernels::gates::Gates;
use crate::kernels::step::{Rows, StateGradient, StepParams};

/// The arguments of a backward pass.
#[derive(Debug)]
pub(crate) struct BackwardArgs<'a> {
    /// In the order in which the backward pass runs them.
    pub(crate) steps: Steps<'a>,
    pub(crate) act: Gates<f32>,
    /// W_hh as [`Packing::backward`](super::pack::Packing::backward) says.
    pub(crate) weight: &'a [f32],
    pub(crate) saved_gates: &'a [f32],
    pub(crate) dy: &'a [f32],
    pub(crate) dgates: &'a mut [f32],
    pub(crate) dstate: &'a mut [f32],
}

/// Of those what a cell works with.
pub(crate) struct Backward<'a> {
    pub(crate) hidden: usize,
    pub(crate) act: Gates<f32>,
    saved_gates: &'a [f32],
    dy: &'a [f32],
    pub(crate) dgates: Shared<'a>,
    pub(crate) dstate: Shared<'a>,
}

/// A sequence's rows in a step back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackwardRow {
    gates: usize,
    dgates: usize,
    /// Its row of `dgates` of the step that ran after this one in the forward pass.
    pub(crate) next: usize,
    pub(crate) gradient: StateGradient,
}

impl<'a> Backward<'a> {
    pub(crate) fn new(args: BackwardArgs<'a>, hidden: usize) -> Self {
        Self {
            hidden,
            act: args.act,
            saved_gates: args.saved_gates,
            dy: args.dy,
            dgates: Shared::new(args.dgates),
            dstate: Shared::new(args.dstate),
        }
    }

    pub(crate) fn row(&self, rows: &Rows<'_>, n: usize) -> BackwardRow {
        let p = &rows.p;
        BackwardRow {
            gates: rows.gates(n),
            dgates: rows.dgates(n),
            next: p.dgates_next as usize + n * p.dgates_row as usize,
            gradient: rows.state_gradient(n),
        }
    }

    /// Sequences that go on have gradients through the gates of the next step.
    pub(crate) fn multiplied(&self, rows: &Rows<'_>) -> usize {
        rows.p.next_count.min(rows.p.count) as usize
    }

    /// Asks for dy and the first `slots` blocks of what was kept of some units.
    #[inline(always)]
    pub(crate) fn prefetch(&self, row: &BackwardRow, units: Range<usize>, slots: usize) {
        for first in units.step_by(LANES) {
            prefetch_soon(self.dy, row.gradient.dy + first);
            for slot in 0..slots {
                prefetch_soon(self.saved_gates, row.gates + slot * self.hidden + first);
            }
        }
    }

    /// The gradient of h of some units.
    #[inline(always)]
    pub(crate) fn dh<S: Simd, Row: Copy>(
        &self,
        simd: S,
        tile: &Tile<'_, Row>,
        row: &BackwardRow,
        units: Units,
    ) -> S::f32s {
        let (from, [product]) = (row.gradient, tile.sums(simd, units));
        let through = match from.zeroed {
            true => simd.splat_f32s(0.0),
            false => {
                let past = self
                    .dstate
                    .load(simd, from.dstate + units.first, units.count);
                simd.add_f32s(past, product)
            }
        };
        match from.live {
            true => simd.add_f32s(through, units.of(simd, self.dy, from.dy)),
            false => through,
        }
    }

    /// That of one.
    pub(crate) fn dh_one(&self, row: &BackwardRow, unit: usize, product: f32) -> f32 {
        let from = row.gradient;
        let past = self.dstate.get(from.dstate + unit);
        let dy = if from.live {
            self.dy[from.dy + unit]
        } else {
            0.0
        };
        from.sum(past, dy, product)
    }

    /// What was kept of some units, in blocks.
    #[inline(always)]
    pub(crate) fn kept<S: Simd, const B: usize>(
        &self,
        simd: S,
        row: &BackwardRow,
        units: Units,
    ) -> [S::f32s; B] {
        let mut values = [simd.splat_f32s(0.0); B];
        for (slot, value) in values.iter_mut().enumerate() {
            *value = units.of(simd, self.saved_gates, row.gates + slot * self.hidden);
        }
        values
    }

    /// What was kept of one.
    pub(crate) fn kept_one<const B: usize>(&self, row: &BackwardRow, unit: usize) -> [f32; B] {
        std::array::from_fn(|slot| self.saved_gates[row.gates + slot * self.hidden + unit])
    }

    /// Puts out the gradients of the gates.
    #[inline(always)]
    pub(crate) fn put<S: Simd, const B: usize>(
        &self,
        simd: S,
        row: &BackwardRow,
        units: Units,
        gradients: [S::f32s; B],
    ) {
        let at = row.dgates + units.first;
        self.dgates
            .store_blocks(simd, at, self.hidden, units.count, gradients);
    }

    /// Leaves the gradient of h that does not come through the gates.
    #[inline(always)]
    pub(crate) fn put_dh<S: Simd>(&self, simd: S, row: &BackwardRow, units: Units, dh: S::f32s) {
        let at = row.gradient.dstate + units.first;
        self.dstate.store(simd, at, units.count, dh);
    }

    /// Both for one unit.
    pub(crate) fn put_one(&self, row: &BackwardRow, unit: usize, gradients: &[f32], dh: f32) {
        for (slot, gradient) in gradients.iter().enumerate() {
            self.dgates
                .set(row.dgates + slot * self.hidden + unit, *gradient);
        }
        self.dstate.set(row.gradient.dstate + unit, dh);
    }

    /// The rows of `dgates` and `dstate` that a step touches; false if it writes gradients that it
    /// multiplies.
    pub(crate) fn touched(
        &self,
        p: &StepParams,
        slots: usize,
        with_c: bool,
        to: &mut [Touched],
    ) -> bool {
        let [dgates, dstate, ..] = to else {
            return false;
        };
        let width = p.hidden * slots as u32;
        let next = p.next_count.min(p.count);
        dgates.add(run(p.dgates_start, p.dgates_row, p.count, width));
        dgates.add(run(p.dgates_next, p.dgates_row, next, width));
        dstate.add(run(0, p.output, p.count, p.output));
        if with_c {
            dstate.add(run(p.dc_start, p.hidden, p.count, p.hidden));
        }
        next == 0 || p.dgates_next != p.dgates_start
    }
}
