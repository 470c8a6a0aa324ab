//! What the forward passes of all cells share: their arguments, and how h is read and handed on.

use std::ops::Range;

use pulp::Simd;

use super::apart::{RowRun, Touched};
use super::pack::LANES;
use super::run::Steps;
use super::shared::Shared;
use super::tile::Units;
use crate::kernels::gates::Gates;
use crate::kernels::step::{HandOn, Rows, StepParams};

/// The arguments of a forward pass.
#[derive(Debug)]
pub(crate) struct ForwardArgs<'a> {
    pub(crate) steps: Steps<'a>,
    /// Whether `gates` is to have what the backward pass needs.
    pub(crate) save: bool,
    pub(crate) act: Gates<f32>,
    /// W_hh as [`Packing::forward`](super::pack::Packing::forward) says.
    pub(crate) weight: &'a [f32],
    /// `[G, H]`
    pub(crate) bias_hh: &'a [f32],
    pub(crate) gates: &'a mut [f32],
    pub(crate) h: &'a mut [f32],
    pub(crate) y: &'a mut [f32],
    /// See [`Job`](super::run::Job).
    pub(crate) input: Option<&'a [f32]>,
}

impl ForwardArgs<'_> {
    /// What the sums run over.
    pub(crate) fn depth(&self, p: &StepParams) -> usize {
        let before = if self.input.is_some() { p.input + 1 } else { 0 };
        (before + p.output) as usize
    }
}

/// Of those what a cell works with.
pub(crate) struct Forward<'a> {
    pub(crate) hidden: usize,
    pub(crate) save: bool,
    pub(crate) act: Gates<f32>,
    pub(crate) gates: Shared<'a>,
    pub(crate) h: Shared<'a>,
    pub(crate) y: Shared<'a>,
}

/// A sequence's rows in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForwardRow {
    pub(crate) gates: usize,
    pub(crate) h_before: usize,
    pub(crate) to: HandOn,
}

impl<'a> Forward<'a> {
    pub(crate) fn new(args: ForwardArgs<'a>, hidden: usize) -> Self {
        Self {
            hidden,
            save: args.save,
            act: args.act,
            gates: Shared::new(args.gates),
            h: Shared::new(args.h),
            y: Shared::new(args.y),
        }
    }

    pub(crate) fn row(&self, rows: &Rows<'_>, n: usize) -> ForwardRow {
        ForwardRow {
            gates: rows.gates(n),
            h_before: rows.h_before(n),
            to: rows.hand_on(n),
        }
    }

    /// Hands on h of some units.
    #[inline(always)]
    pub(crate) fn hand_on<S: Simd>(&self, simd: S, row: &ForwardRow, units: Units, h: S::f32s) {
        let (to, zero) = (row.to, simd.splat_f32s(0.0));
        let (next, y) = (
            if to.zeroed { zero } else { h },
            if to.live { h } else { zero },
        );
        self.h.store(simd, to.h + units.first, units.count, next);
        self.y.store(simd, to.y + units.first, units.count, y);
    }

    /// The first blocks of some units in a sequence's row of `gates`.
    #[inline(always)]
    pub(crate) fn gates<S: Simd, const B: usize>(
        &self,
        simd: S,
        row: &ForwardRow,
        units: Units,
    ) -> [S::f32s; B] {
        let at = row.gates + units.first;
        self.gates.load_blocks(simd, at, self.hidden, units.count)
    }

    /// Keeps values there, from a block on.
    #[inline(always)]
    pub(crate) fn keep<S: Simd, const B: usize>(
        &self,
        simd: S,
        row: &ForwardRow,
        units: Units,
        slot: usize,
        values: [S::f32s; B],
    ) {
        let at = row.gates + slot * self.hidden + units.first;
        self.gates
            .store_blocks(simd, at, self.hidden, units.count, values);
    }

    /// One number there.
    pub(crate) fn gate(&self, row: &ForwardRow, slot: usize, unit: usize) -> f32 {
        self.gates.get(row.gates + slot * self.hidden + unit)
    }

    /// Keeps values of one unit, from the first block on.
    pub(crate) fn keep_one(&self, row: &ForwardRow, unit: usize, values: &[f32]) {
        for (slot, value) in values.iter().enumerate() {
            self.gates
                .set(row.gates + slot * self.hidden + unit, *value);
        }
    }

    /// Hands on h of one unit of a sequence that has the step.
    pub(crate) fn hand_on_one(&self, row: &ForwardRow, unit: usize, h: f32) {
        self.h
            .set(row.to.h + unit, if row.to.zeroed { 0.0 } else { h });
        self.y.set(row.to.y + unit, h);
    }

    /// Asks for the first `slots` blocks of some units.
    #[inline(always)]
    pub(crate) fn prefetch(&self, row: &ForwardRow, units: Range<usize>, slots: usize) {
        for slot in 0..slots {
            for first in units.clone().step_by(LANES) {
                self.gates.prefetch(row.gates + slot * self.hidden + first);
            }
        }
    }

    /// The rows of `gates`, `h` and `y` that a step touches; false if it writes those of h that it
    /// reads.
    pub(crate) fn touched(&self, p: &StepParams, slots: usize, to: &mut [Touched]) -> bool {
        let [gates, h, y, ..] = to else { return false };
        gates.add(run(
            p.gates_start,
            p.gates_row,
            p.count,
            p.hidden * slots as u32,
        ));
        y.add(run(p.y_start, p.y_row, p.count, p.output));
        let states = States {
            from: p.h_from,
            next: p.h_next,
            row: p.h_row,
            state: p.h_state(),
            width: p.output,
        };
        states.touched(p, h);
        states.moves(p)
    }
}

/// Where a state stands before and after a step.
pub(crate) struct States {
    pub(crate) from: u32,
    pub(crate) next: u32,
    pub(crate) row: u32,
    pub(crate) state: u32,
    pub(crate) width: u32,
}

impl States {
    pub(crate) fn touched(&self, p: &StepParams, to: &mut Touched) {
        to.add(run(self.from, self.row, p.count, self.width));
        let next = p.next_count.min(p.count);
        to.add(run(self.next, self.row, next, self.width));
        if p.next_count < p.count {
            to.add(run(self.state, self.width, p.count, self.width));
        }
    }

    /// True if the state after the step does not stand where that before it does.
    fn moves(&self, p: &StepParams) -> bool {
        (p.next_count == 0 || self.next != self.from)
            && (p.next_count >= p.count || self.state != self.from)
    }
}

pub(crate) fn run(start: u32, pitch: u32, count: u32, width: u32) -> RowRun {
    let [start, pitch, count, width] = [start, pitch, count, width].map(|v| v as usize);
    RowRun {
        start,
        pitch,
        count,
        width,
    }
}
