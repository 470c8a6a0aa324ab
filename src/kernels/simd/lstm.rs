//! All steps of an LSTM: equations in `shaders/lstm.wgsl`, without a projection.

use std::ops::Range;

use pulp::Simd;

use super::apart::Touched;
use super::backward::{Backward, BackwardArgs, BackwardRow};
use super::forward::{Forward, ForwardArgs, ForwardRow, States};
use super::math::{
    Decay, sigmoid, sigmoid_decay, sigmoid_slope, tanh, tanh_decay, tanh_slope, two_values, value,
};
use super::pack::{LANES, Packing};
use super::run::{Job, Manner};
use super::shared::{Shared, prefetch_soon};
use super::split::Split;
use super::tile::{BUFFERS, Cell, Tile, Units};
use crate::activation::Function;
use crate::kernels::lstm::{Kept, Options, peepholes};
use crate::kernels::step::Rows;

const PLAIN: [Function; 3] = [Function::Sigmoid, Function::Tanh, Function::Tanh];

/// The arguments that an LSTM has beside those of every cell.
#[derive(Debug)]
pub(crate) struct LstmArgs<'a> {
    pub(crate) options: Options<f32>,
    /// `[3, H]`, read with peepholes.
    pub(crate) weight_p: &'a [f32],
    pub(crate) c: &'a mut [f32],
}

/// `lstm.forward` for all steps.
pub(crate) fn forward(args: ForwardArgs<'_>, own: LstmArgs<'_>) {
    forward_as(args, own, Manner::default());
}

/// The same in a certain manner; returns how the work was divided.
pub(crate) fn forward_as(args: ForwardArgs<'_>, own: LstmArgs<'_>, manner: Manner) -> Split {
    let Some(p) = args.steps.steps.first() else {
        return Split::ALONE;
    };
    let (hidden, depth) = (p.hidden as usize, args.depth(p));
    let (steps, weight, bias, input) = (args.steps, args.weight, args.bias_hh, args.input);
    let cell = LstmForward {
        plain: args.act.are(&PLAIN) && !own.options.any(),
        options: own.options,
        weight_p: own.weight_p,
        c: Shared::new(own.c),
        shared: Forward::new(args, hidden),
    };
    let job = Job {
        cell: &cell,
        steps,
        packing: Packing::forward(4, hidden, depth),
        weight,
        bias,
        input,
    };
    job.run(manner)
}

struct LstmForward<'a> {
    /// The usual activations and no option.
    plain: bool,
    options: Options<f32>,
    weight_p: &'a [f32],
    c: Shared<'a>,
    shared: Forward<'a>,
}

/// A sequence's rows in a step.
#[derive(Debug, Clone, Copy)]
struct Row {
    shared: ForwardRow,
    c_before: usize,
    c_after: usize,
    /// c starts from zeros.
    reset: bool,
}

impl Cell for LstmForward<'_> {
    type Row = Row;

    fn row(&self, rows: &Rows<'_>, n: usize) -> Row {
        Row {
            shared: self.shared.row(rows, n),
            c_before: rows.c_before(n),
            c_after: rows.c_after(n),
            reset: rows.reset(n),
        }
    }

    fn multiplied(&self, rows: &Rows<'_>) -> usize {
        rows.count()
    }

    #[inline(always)]
    fn operand(&self, row: &Row, to: &mut [f32]) {
        self.shared.h.copy_to(row.shared.h_before, to);
    }

    #[inline(always)]
    fn prefetch(&self, row: &Row, units: Range<usize>) {
        self.shared.prefetch(&row.shared, units.clone(), 4);
        for first in units.step_by(LANES) {
            self.c.prefetch(row.c_before + first);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, tile: &mut Tile<'_, Row>) {
        // Each of the three parts waits for results of the one before: in between others can begin.
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                if !row.shared.to.live {
                    self.hold(simd, tile, row, units);
                } else if !self.plain {
                    self.with_options::<S>(tile, row, units);
                } else if let Some(units) = units.full::<S>() {
                    self.decays(simd, tile, row, units);
                } else {
                    self.decays(simd, tile, row, units);
                }
                tile.next(&mut units);
            }
        }
        if !self.plain {
            return;
        }
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                match units.full::<S>() {
                    _ if !row.shared.to.live => {}
                    Some(units) => self.cell_state(simd, tile, row, units),
                    None => self.cell_state(simd, tile, row, units),
                }
                tile.next(&mut units);
            }
        }
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                let [c, o] = tile.sums(simd, units);
                let b = value(simd, tanh(simd, tanh_decay(simd, c)));
                let h = simd.mul_f32s(o, b);
                match units.full::<S>() {
                    _ if !row.shared.to.live => {}
                    Some(units) => self.shared.hand_on(simd, &row.shared, units, h),
                    None => self.shared.hand_on(simd, &row.shared, units, h),
                }
                tile.next(&mut units);
            }
        }
    }

    fn touched(&self, rows: &Rows<'_>, to: &mut [Touched; BUFFERS]) -> bool {
        let p = &rows.p;
        let slots = match (self.shared.save, self.options.peephole) {
            (true, true) => 6,
            _ => 4,
        };
        let states = States {
            from: p.c_from,
            next: p.c_next,
            row: p.c_row,
            state: p.c_state(),
            width: p.hidden,
        };
        states.touched(p, &mut to[3]);
        self.shared.touched(p, slots, to)
    }
}

impl LstmForward<'_> {
    #[inline(always)]
    fn c_old<S: Simd>(&self, simd: S, row: &Row, units: Units) -> S::f32s {
        match row.reset {
            true => simd.splat_f32s(0.0),
            false => self.c.load(simd, row.c_before + units.first, units.count),
        }
    }

    /// The longer half of the gates.
    #[inline(always)]
    fn decays<S: Simd>(&self, simd: S, tile: &mut Tile<'_, Row>, row: &Row, units: Units) {
        let [x_i, x_f, x_g, x_o] = self.shared.gates(simd, &row.shared, units);
        let [i, f, g, o] = tile.sums(simd, units);
        let decays = [
            sigmoid_decay(simd, simd.add_f32s(x_i, i)).0,
            sigmoid_decay(simd, simd.add_f32s(x_f, f)).0,
            tanh_decay(simd, simd.add_f32s(x_g, g)).0,
            sigmoid_decay(simd, simd.add_f32s(x_o, o)).0,
        ];
        tile.put(simd, units, decays);
    }

    /// The gates and c, which the tile takes with o.
    #[inline(always)]
    fn cell_state<S: Simd>(&self, simd: S, tile: &mut Tile<'_, Row>, row: &Row, units: Units) {
        let [i, f, g, o] = tile.sums(simd, units);
        let (i, f) = (sigmoid(simd, Decay(i)), sigmoid(simd, Decay(f)));
        let (g, o) = (tanh(simd, Decay(g)), sigmoid(simd, Decay(o)));
        let [i, f] = two_values(simd, i, f);
        let [g, o] = two_values(simd, g, o);
        let c_old = self.c_old(simd, row, units);
        let c = simd.mul_add_e_f32s(f, c_old, simd.mul_f32s(i, g));
        self.c
            .store(simd, row.c_after + units.first, units.count, c);
        tile.put(simd, units, [c, o]);
        if self.shared.save {
            self.shared.keep(simd, &row.shared, units, 0, [i, f, g, o]);
        }
    }

    /// Past its length a sequence keeps its state.
    #[inline(always)]
    fn hold<S: Simd>(&self, simd: S, tile: &Tile<'_, Row>, row: &Row, units: Units) {
        let c = self.c_old(simd, row, units);
        self.c
            .store(simd, row.c_after + units.first, units.count, c);
        let h = tile.operand(simd, units);
        self.shared.hand_on(simd, &row.shared, units, h);
        // As the step's kernel does for the peepholes' gradients.
        if self.shared.save && self.options.peephole {
            self.shared.keep(simd, &row.shared, units, 4, [c, c]);
        }
    }

    /// Other activations, and what an LSTM may have more.
    fn with_options<S: Simd>(&self, tile: &Tile<'_, Row>, row: &Row, units: Units) {
        let (shared, hidden) = (&self.shared, self.shared.hidden);
        for j in units.all() {
            let c_old = match row.reset {
                true => 0.0,
                false => self.c.get(row.c_before + j),
            };
            let pre = [0, 1, 2, 3]
                .map(|gate| shared.gate(&row.shared, gate, j) + tile.sum::<S>(units, gate, j));
            let p = peepholes(self.weight_p, hidden, j, self.options.peephole);
            let unit = self.options.forward(&shared.act, pre, p, c_old);
            self.c.set(row.c_after + j, unit.c);
            shared.hand_on_one(&row.shared, j, unit.h);
            let [i, f, g, o] = unit.kept;
            let kept = [i, f, g, o, unit.c, c_old];
            let slots = if self.options.peephole { 6 } else { 4 };
            if shared.save {
                shared.keep_one(&row.shared, j, &kept[..slots]);
            }
        }
    }
}

/// The arguments that an LSTM has in the backward pass.
#[derive(Debug)]
pub(crate) struct LstmBackwardArgs<'a> {
    pub(crate) options: Options<f32>,
    /// `[3, H]`, read with peepholes.
    pub(crate) weight_p: &'a [f32],
    /// What the forward pass left in `c`.
    pub(crate) saved_c: &'a [f32],
}

/// `lstm.backward` for all steps, in the order in which it runs them.
pub(crate) fn backward(args: BackwardArgs<'_>, own: LstmBackwardArgs<'_>) {
    backward_as(args, own, Manner::default());
}

/// The same in a certain manner; returns how the work was divided.
pub(crate) fn backward_as(
    args: BackwardArgs<'_>,
    own: LstmBackwardArgs<'_>,
    manner: Manner,
) -> Split {
    let Some(p) = args.steps.steps.first() else {
        return Split::ALONE;
    };
    let (hidden, output) = (p.hidden as usize, p.output as usize);
    let (steps, weight) = (args.steps, args.weight);
    let cell = LstmBackward {
        plain: args.act.are(&PLAIN) && !own.options.any(),
        own,
        shared: Backward::new(args, hidden),
    };
    let job = Job {
        cell: &cell,
        steps,
        packing: Packing::backward(4, hidden, output),
        weight,
        bias: &[],
        input: None,
    };
    job.run(manner)
}

struct LstmBackward<'a> {
    plain: bool,
    own: LstmBackwardArgs<'a>,
    shared: Backward<'a>,
}

/// A sequence's rows in a step back.
#[derive(Debug, Clone, Copy)]
struct RowBack {
    shared: BackwardRow,
    c_before: usize,
    c_after: usize,
    /// The gradient of c, in `dstate`.
    dc: usize,
    reset: bool,
}

impl Cell for LstmBackward<'_> {
    type Row = RowBack;

    fn row(&self, rows: &Rows<'_>, n: usize) -> RowBack {
        RowBack {
            shared: self.shared.row(rows, n),
            c_before: rows.c_before(n),
            c_after: rows.c_after(n),
            dc: rows.p.dc_start as usize + n * self.shared.hidden,
            reset: rows.reset(n),
        }
    }

    fn multiplied(&self, rows: &Rows<'_>) -> usize {
        self.shared.multiplied(rows)
    }

    #[inline(always)]
    fn operand(&self, row: &RowBack, to: &mut [f32]) {
        self.shared.dgates.copy_to(row.shared.next, to);
    }

    #[inline(always)]
    fn prefetch(&self, row: &RowBack, units: Range<usize>) {
        self.shared.prefetch(&row.shared, units.clone(), 4);
        for first in units.step_by(LANES) {
            prefetch_soon(self.own.saved_c, row.c_before + first);
            prefetch_soon(self.own.saved_c, row.c_after + first);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, tile: &mut Tile<'_, RowBack>) {
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                if !row.shared.gradient.live {
                    self.hold(simd, tile, row, units);
                } else if !self.plain {
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
        self.shared.touched(&rows.p, 4, true, to)
    }
}

impl LstmBackward<'_> {
    #[inline(always)]
    fn plain<S: Simd>(&self, simd: S, tile: &Tile<'_, RowBack>, row: &RowBack, units: Units) {
        let (shared, own, zero) = (&self.shared, &self.own, simd.splat_f32s(0.0));
        let c_new = units.of(simd, own.saved_c, row.c_after);
        let b = value(simd, tanh(simd, tanh_decay(simd, c_new)));
        let c_old = match row.reset {
            true => zero,
            false => units.of(simd, own.saved_c, row.c_before),
        };
        let [i, f, g, o] = shared.kept(simd, &row.shared, units);
        let dh = shared.dh(simd, tile, &row.shared, units);
        let past = shared.dstate.load(simd, row.dc + units.first, units.count);
        let dc = simd.mul_add_e_f32s(simd.mul_f32s(dh, o), tanh_slope(simd, b), past);
        let gradients = [
            simd.mul_f32s(simd.mul_f32s(dc, g), sigmoid_slope(simd, i)),
            simd.mul_f32s(simd.mul_f32s(dc, c_old), sigmoid_slope(simd, f)),
            simd.mul_f32s(simd.mul_f32s(dc, i), tanh_slope(simd, g)),
            simd.mul_f32s(simd.mul_f32s(dh, b), sigmoid_slope(simd, o)),
        ];
        shared.put(simd, &row.shared, units, gradients);
        shared.put_dh(simd, &row.shared, units, zero);
        let dc = if row.reset {
            zero
        } else {
            simd.mul_f32s(dc, f)
        };
        shared
            .dstate
            .store(simd, row.dc + units.first, units.count, dc);
    }

    /// Past its length a sequence's gradients wait for its last step.
    #[inline(always)]
    fn hold<S: Simd>(&self, simd: S, tile: &Tile<'_, RowBack>, row: &RowBack, units: Units) {
        let (shared, zero) = (&self.shared, simd.splat_f32s(0.0));
        let dh = shared.dh(simd, tile, &row.shared, units);
        shared.put(simd, &row.shared, units, [zero; 4]);
        shared.put_dh(simd, &row.shared, units, dh);
        if row.reset {
            shared
                .dstate
                .store(simd, row.dc + units.first, units.count, zero);
        }
    }

    /// Other activations, and what an LSTM may have more.
    fn with_options<S: Simd>(&self, tile: &Tile<'_, RowBack>, row: &RowBack, units: Units) {
        let (shared, own) = (&self.shared, &self.own);
        for j in units.all() {
            let kept = Kept {
                gates: shared.kept_one(&row.shared, j),
                c_new: own.saved_c[row.c_after + j],
                c_old: match row.reset {
                    true => 0.0,
                    false => own.saved_c[row.c_before + j],
                },
                dh: shared.dh_one(&row.shared, j, tile.sum::<S>(units, 0, j)),
                dc: shared.dstate.get(row.dc + j),
            };
            let p = peepholes(own.weight_p, shared.hidden, j, own.options.peephole);
            let (gradients, dc) = own.options.backward(&shared.act, p, kept);
            shared.put_one(&row.shared, j, &gradients, 0.0);
            shared
                .dstate
                .set(row.dc + j, if row.reset { 0.0 } else { dc });
        }
    }
}
