//! All steps of a GRU with the reset gate after the product: equations in `shaders/gru.wgsl`.

use std::ops::Range;

use pulp::Simd;

use super::apart::Touched;
use super::backward::{Backward, BackwardArgs, BackwardRow};
use super::forward::{Forward, ForwardArgs, ForwardRow};
use super::math::{
    Decay, sigmoid, sigmoid_decay, sigmoid_slope, tanh, tanh_decay, tanh_slope, two_values, value,
};
use super::pack::Packing;
use super::run::{Job, Manner};
use super::split::Split;
use super::tile::{BUFFERS, Cell, Tile, Units};
use crate::activation::Function;
use crate::kernels::gru::{Kept, unit_backward, unit_forward};
use crate::kernels::step::Rows;

const PLAIN: [Function; 2] = [Function::Sigmoid, Function::Tanh];

/// `gru.forward` for all steps.
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
    let cell = GruForward {
        plain: args.act.are(&PLAIN),
        shared: Forward::new(args, hidden),
    };
    let job = Job {
        cell: &cell,
        steps,
        packing: Packing::forward(3, hidden, depth),
        weight,
        bias,
        input,
    };
    job.run(manner)
}

struct GruForward<'a> {
    /// The usual activations.
    plain: bool,
    shared: Forward<'a>,
}

impl Cell for GruForward<'_> {
    type Row = ForwardRow;

    // The reset gate is applied to those over h alone.
    const INPUT_APART: bool = true;

    fn put(&self, row: &ForwardRow, gate: usize, units: Range<usize>, sums: &[f32]) {
        for (unit, &sum) in units.zip(sums) {
            let at = row.gates + gate * self.shared.hidden + unit;
            self.shared.gates.set(at, sum);
        }
    }

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
        self.shared.prefetch(row, units, 3);
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, tile: &mut Tile<'_, ForwardRow>) {
        // Each of the three parts waits for results of the one before: in between others can begin.
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                if !row.to.live {
                    let h = tile.operand(simd, units);
                    self.shared.hand_on(simd, row, units, h);
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
                    _ if !row.to.live => {}
                    Some(units) => self.candidate(simd, tile, row, units),
                    None => self.candidate(simd, tile, row, units),
                }
                tile.next(&mut units);
            }
        }
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                match units.full::<S>() {
                    _ if !row.to.live => {}
                    Some(units) => self.state(simd, tile, row, units),
                    None => self.state(simd, tile, row, units),
                }
                tile.next(&mut units);
            }
        }
    }

    fn touched(&self, rows: &Rows<'_>, to: &mut [Touched; BUFFERS]) -> bool {
        let slots = if self.shared.save { 4 } else { 3 };
        self.shared.touched(&rows.p, slots, to)
    }
}

impl GruForward<'_> {
    /// The longer half of r and z.
    #[inline(always)]
    fn decays<S: Simd>(
        &self,
        simd: S,
        tile: &mut Tile<'_, ForwardRow>,
        row: &ForwardRow,
        units: Units,
    ) {
        let [x_r, x_z] = self.shared.gates(simd, row, units);
        let [r, z] = tile.sums(simd, units);
        let r = sigmoid_decay(simd, simd.add_f32s(x_r, r));
        let z = sigmoid_decay(simd, simd.add_f32s(x_z, z));
        tile.put(simd, units, [r.0, z.0]);
    }

    /// r and z, and the longer half of n.
    #[inline(always)]
    fn candidate<S: Simd>(
        &self,
        simd: S,
        tile: &mut Tile<'_, ForwardRow>,
        row: &ForwardRow,
        units: Units,
    ) {
        let [_, _, x_n] = self.shared.gates(simd, row, units);
        let [r, z, q] = tile.sums(simd, units);
        let (r, z) = (sigmoid(simd, Decay(r)), sigmoid(simd, Decay(z)));
        let [r, z] = two_values(simd, r, z);
        let n = tanh_decay(simd, simd.mul_add_e_f32s(r, q, x_n));
        if self.shared.save {
            self.shared.keep(simd, row, units, 0, [r, z]);
            self.shared.keep(simd, row, units, 3, [q]);
        }
        tile.put(simd, units, [n.0, z]);
    }

    /// n and h.
    #[inline(always)]
    fn state<S: Simd>(&self, simd: S, tile: &Tile<'_, ForwardRow>, row: &ForwardRow, units: Units) {
        let [n, z] = tile.sums(simd, units);
        let n = value(simd, tanh(simd, Decay(n)));
        let h = tile.operand(simd, units);
        let new = simd.mul_f32s(simd.sub_f32s(simd.splat_f32s(1.0), z), n);
        let h = simd.mul_add_e_f32s(z, h, new);
        self.shared.hand_on(simd, row, units, h);
        if self.shared.save {
            self.shared.keep(simd, row, units, 2, [n]);
        }
    }

    /// Other activations.
    fn with_options<S: Simd>(&self, tile: &Tile<'_, ForwardRow>, row: &ForwardRow, units: Units) {
        let shared = &self.shared;
        for j in units.all() {
            let input = [0, 1, 2].map(|gate| shared.gate(row, gate, j));
            let recurrent = [0, 1, 2].map(|gate| tile.sum::<S>(units, gate, j));
            let h_old = shared.h.get(row.h_before + j);
            let (h, kept) = unit_forward(&shared.act, input, recurrent, h_old);
            shared.hand_on_one(row, j, h);
            if shared.save {
                shared.keep_one(row, j, &kept);
            }
        }
    }
}

/// `gru.backward` for all steps, in the order in which it runs them; `saved_h` is what the forward
/// pass left in `h`.
pub(crate) fn backward(args: BackwardArgs<'_>, saved_h: &[f32]) {
    backward_as(args, saved_h, Manner::default());
}

/// The same in a certain manner; returns how the work was divided.
pub(crate) fn backward_as(args: BackwardArgs<'_>, saved_h: &[f32], manner: Manner) -> Split {
    let Some(p) = args.steps.steps.first() else {
        return Split::ALONE;
    };
    let (hidden, output) = (p.hidden as usize, p.output as usize);
    let (steps, weight) = (args.steps, args.weight);
    let cell = GruBackward {
        plain: args.act.are(&PLAIN),
        saved_h,
        shared: Backward::new(args, hidden),
    };
    let job = Job {
        cell: &cell,
        steps,
        packing: Packing::backward(3, hidden, output),
        weight,
        bias: &[],
        input: None,
    };
    job.run(manner)
}

struct GruBackward<'a> {
    plain: bool,
    saved_h: &'a [f32],
    shared: Backward<'a>,
}

/// A sequence's rows in a step back.
#[derive(Debug, Clone, Copy)]
struct Row {
    shared: BackwardRow,
    h_before: usize,
}

impl Cell for GruBackward<'_> {
    type Row = Row;

    fn row(&self, rows: &Rows<'_>, n: usize) -> Row {
        Row {
            shared: self.shared.row(rows, n),
            h_before: rows.h_before(n),
        }
    }

    fn multiplied(&self, rows: &Rows<'_>) -> usize {
        self.shared.multiplied(rows)
    }

    #[inline(always)]
    fn operand(&self, row: &Row, to: &mut [f32]) {
        // The third of four blocks is not a gradient of a product with h.
        let hidden = self.shared.hidden;
        let (r_and_z, n) = to.split_at_mut(2 * hidden);
        self.shared.dgates.copy_to(row.shared.next, r_and_z);
        self.shared.dgates.copy_to(row.shared.next + 3 * hidden, n);
    }

    #[inline(always)]
    fn prefetch(&self, row: &Row, units: Range<usize>) {
        self.shared.prefetch(&row.shared, units, 4);
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, tile: &mut Tile<'_, Row>) {
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                let shared = &row.shared;
                if !shared.gradient.live {
                    let dh = self.shared.dh(simd, tile, shared, units);
                    let zero = simd.splat_f32s(0.0);
                    self.shared.put(simd, shared, units, [zero; 4]);
                    self.shared.put_dh(simd, shared, units, dh);
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
        self.shared.touched(&rows.p, 4, false, to)
    }
}

impl GruBackward<'_> {
    #[inline(always)]
    fn plain<S: Simd>(&self, simd: S, tile: &Tile<'_, Row>, row: &Row, units: Units) {
        let (shared, one) = (&self.shared, simd.splat_f32s(1.0));
        let dh = shared.dh(simd, tile, &row.shared, units);
        let [r, z, n, q] = shared.kept(simd, &row.shared, units);
        let h = units.of(simd, self.saved_h, row.h_before);
        let rest = simd.mul_f32s(dh, simd.sub_f32s(one, z));
        let dn = simd.mul_f32s(rest, tanh_slope(simd, n));
        let dz = simd.mul_f32s(
            simd.mul_f32s(dh, simd.sub_f32s(h, n)),
            sigmoid_slope(simd, z),
        );
        let dr = simd.mul_f32s(simd.mul_f32s(dn, q), sigmoid_slope(simd, r));
        shared.put(simd, &row.shared, units, [dr, dz, dn, simd.mul_f32s(dn, r)]);
        shared.put_dh(simd, &row.shared, units, simd.mul_f32s(dh, z));
    }

    /// Other activations.
    fn with_options<S: Simd>(&self, tile: &Tile<'_, Row>, row: &Row, units: Units) {
        let shared = &self.shared;
        for j in units.all() {
            let kept = Kept {
                slots: shared.kept_one(&row.shared, j),
                h_old: self.saved_h[row.h_before + j],
                dh: shared.dh_one(&row.shared, j, tile.sum::<S>(units, 0, j)),
            };
            let (gradients, past) = unit_backward(&shared.act, kept);
            shared.put_one(&row.shared, j, &gradients, past);
        }
    }
}
