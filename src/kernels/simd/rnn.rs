//! All steps of a plain recurrent network: equations in `shaders/rnn.wgsl`.

use std::ops::Range;

use pulp::Simd;

use super::apart::Touched;
use super::backward::{Backward, BackwardArgs, BackwardRow};
use super::forward::{Forward, ForwardArgs, ForwardRow};
use super::math::{relu, tanh, tanh_decay, tanh_slope, value};
use super::pack::Packing;
use super::run::{Job, Manner};
use super::split::Split;
use super::tile::{BUFFERS, Cell, Tile, Units};
use crate::activation::Function;
use crate::kernels::gates::Gates;
use crate::kernels::step::Rows;

/// The activations that vectors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tanh,
    Relu,
    Other,
}

impl Kind {
    fn of(act: &Gates<f32>) -> Self {
        match () {
            () if act.are(&[Function::Tanh]) => Self::Tanh,
            () if act.are(&[Function::Relu]) => Self::Relu,
            () => Self::Other,
        }
    }
}

/// `rnn.forward` for all steps.
pub(crate) fn forward(args: ForwardArgs<'_>) {
    forward_as(args, Manner::default());
}

/// The same in a certain manner; returns how the work was divided.
pub(crate) fn forward_as(args: ForwardArgs<'_>, manner: Manner) -> Split {
    let Some(p) = args.steps.steps.first() else {
        return Split::ALONE;
    };
    let (hidden, depth) = (p.hidden as usize, args.depth(p));
    let (steps, weight, bias, input) = (args.steps, args.weight, args.bias_hh, args.input);
    let cell = RnnForward {
        kind: Kind::of(&args.act),
        shared: Forward::new(args, hidden),
    };
    let job = Job {
        cell: &cell,
        steps,
        packing: Packing::forward(1, hidden, depth),
        weight,
        bias,
        input,
    };
    job.run(manner)
}

struct RnnForward<'a> {
    kind: Kind,
    shared: Forward<'a>,
}

impl Cell for RnnForward<'_> {
    type Row = ForwardRow;

    fn row(&self, rows: &Rows<'_>, n: usize) -> ForwardRow {
        self.shared.row(rows, n)
    }

    fn multiplied(&self, rows: &Rows<'_>) -> usize {
        rows.count()
    }

    #[inline(always)]
    fn operand(&self, row: &ForwardRow, to: &mut [f32]) {
        self.shared.h.copy_to(row.h_before, to);
    }

    #[inline(always)]
    fn prefetch(&self, row: &ForwardRow, units: Range<usize>) {
        self.shared.prefetch(row, units, 1);
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, tile: &mut Tile<'_, ForwardRow>) {
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                if !row.to.live {
                    let h = tile.operand(simd, units);
                    self.shared.hand_on(simd, row, units, h);
                } else if self.kind == Kind::Other {
                    self.with_options::<S>(tile, row, units);
                } else if let Some(units) = units.full::<S>() {
                    self.plain(simd, tile, row, units);
                } else {
                    self.plain(simd, tile, row, units);
                }
                tile.next(&mut units);
            }
        }
    }

    fn touched(&self, rows: &Rows<'_>, to: &mut [Touched; BUFFERS]) -> bool {
        self.shared.touched(&rows.p, 1, to)
    }
}

impl RnnForward<'_> {
    #[inline(always)]
    fn plain<S: Simd>(&self, simd: S, tile: &Tile<'_, ForwardRow>, row: &ForwardRow, units: Units) {
        let [x] = self.shared.gates(simd, row, units);
        let [sum] = tile.sums(simd, units);
        let pre = simd.add_f32s(x, sum);
        let h = match self.kind {
            Kind::Relu => relu(simd, pre),
            _ => value(simd, tanh(simd, tanh_decay(simd, pre))),
        };
        self.shared.hand_on(simd, row, units, h);
        if self.shared.save {
            self.shared.keep(simd, row, units, 0, [h]);
        }
    }

    /// Other activations.
    fn with_options<S: Simd>(&self, tile: &Tile<'_, ForwardRow>, row: &ForwardRow, units: Units) {
        let shared = &self.shared;
        for j in units.all() {
            let pre = shared.gate(row, 0, j) + tile.sum::<S>(units, 0, j);
            let h = shared.act.gate(0, pre);
            shared.hand_on_one(row, j, h);
            if shared.save {
                shared.keep_one(row, j, &[shared.act.kept(pre, h)]);
            }
        }
    }
}

/// `rnn.backward` for all steps, in the order in which it runs them.
pub(crate) fn backward(args: BackwardArgs<'_>) {
    backward_as(args, Manner::default());
}

/// The same in a certain manner; returns how the work was divided.
pub(crate) fn backward_as(args: BackwardArgs<'_>, manner: Manner) -> Split {
    let Some(p) = args.steps.steps.first() else {
        return Split::ALONE;
    };
    let (hidden, output) = (p.hidden as usize, p.output as usize);
    let (steps, weight) = (args.steps, args.weight);
    let cell = RnnBackward {
        kind: Kind::of(&args.act),
        shared: Backward::new(args, hidden),
    };
    let job = Job {
        cell: &cell,
        steps,
        packing: Packing::backward(1, hidden, output),
        weight,
        bias: &[],
        input: None,
    };
    job.run(manner)
}

struct RnnBackward<'a> {
    kind: Kind,
    shared: Backward<'a>,
}

impl Cell for RnnBackward<'_> {
    type Row = BackwardRow;

    fn row(&self, rows: &Rows<'_>, n: usize) -> BackwardRow {
        self.shared.row(rows, n)
    }

    fn multiplied(&self, rows: &Rows<'_>) -> usize {
        self.shared.multiplied(rows)
    }

    #[inline(always)]
    fn operand(&self, row: &BackwardRow, to: &mut [f32]) {
        self.shared.dgates.copy_to(row.next, to);
    }

    #[inline(always)]
    fn prefetch(&self, row: &BackwardRow, units: Range<usize>) {
        self.shared.prefetch(row, units, 1);
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, tile: &mut Tile<'_, BackwardRow>) {
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                if !row.gradient.live {
                    let dh = self.shared.dh(simd, tile, row, units);
                    self.shared.put(simd, row, units, [simd.splat_f32s(0.0)]);
                    self.shared.put_dh(simd, row, units, dh);
                } else if self.kind == Kind::Other {
                    self.with_options::<S>(tile, row, units);
                } else if let Some(units) = units.full::<S>() {
                    self.plain(simd, tile, row, units);
                } else {
                    self.plain(simd, tile, row, units);
                }
                tile.next(&mut units);
            }
        }
    }

    fn touched(&self, rows: &Rows<'_>, to: &mut [Touched; BUFFERS]) -> bool {
        self.shared.touched(&rows.p, 1, false, to)
    }
}

impl RnnBackward<'_> {
    #[inline(always)]
    fn plain<S: Simd>(
        &self,
        simd: S,
        tile: &Tile<'_, BackwardRow>,
        row: &BackwardRow,
        units: Units,
    ) {
        let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
        let dh = self.shared.dh(simd, tile, row, units);
        let [h] = self.shared.kept(simd, row, units);
        let slope = match self.kind {
            Kind::Relu => {
                let flat = simd.less_than_or_equal_f32s(h, zero);
                simd.select_f32s(flat, zero, one)
            }
            _ => tanh_slope(simd, h),
        };
        self.shared
            .put(simd, row, units, [simd.mul_f32s(dh, slope)]);
        self.shared.put_dh(simd, row, units, zero);
    }

    /// Other activations.
    fn with_options<S: Simd>(&self, tile: &Tile<'_, BackwardRow>, row: &BackwardRow, units: Units) {
        let (shared, act) = (&self.shared, &self.shared.act);
        for j in units.all() {
            let [kept] = shared.kept_one(row, j);
            let dh = shared.dh_one(row, j, tile.sum::<S>(units, 0, j));
            let slope = act.gate_slope(0, kept, act.value(0, kept));
            shared.put_one(row, j, &[dh * slope], 0.0);
        }
    }
}
