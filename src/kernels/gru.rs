//! `gru`: one step of a GRU with the reset gate after the product, forward and back. Equations in
//! `shaders/gru.wgsl`.
//!
//! K. Cho et al., *Learning phrase representations using RNN encoder–decoder*, 2014, in the form
//! of PyTorch and cuDNN; gate order r, z, n.

use super::gates::{Gates, stores_halves};
use super::pack::Blocks;
use super::sample;
use super::simd::backward::BackwardArgs;
use super::simd::forward::ForwardArgs;
use super::simd::gru as fast;
use super::simd::pack::{Packing, fitting};
use super::step::{self, Rows, StepParams, from_quads, gradient_product, unpacked};
use crate::cell::GRU;
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel, Twin};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/gru.wgsl");
const ALL_STEPS: &str = concat!(include_str!("../../shaders/gru.wgsl"), "#import sequence\n");

const FORWARD_BINDINGS: [Binding; 6] = [
    step::MASK,
    Binding::update("gates").or_f16("GATES_HALF"),
    Binding::read("weight_hh_t"),
    Binding::read("bias_hh"),
    Binding::update("h"),
    Binding::update("y"),
];
const BACKWARD_BINDINGS: [Binding; 7] = [
    step::MASK,
    Binding::read("saved_gates").or_f16("GATES_HALF"),
    Binding::read("saved_h"),
    Binding::read("weight_hh"),
    Binding::read("dy"),
    Binding::update("dgates"),
    Binding::update("dstate"),
];

/// `gru.forward`
pub static FORWARD: Kernel = step::kernel(
    "gru.forward",
    WGSL,
    &FORWARD_BINDINGS,
    twin!(forward),
    |size, rng| sample::forward(&[&GRU], 0, size, rng),
);

/// `gru.backward`
pub static BACKWARD: Kernel = step::kernel(
    "gru.backward",
    WGSL,
    &BACKWARD_BINDINGS,
    twin!(backward),
    |size, rng| sample::backward(&[&GRU], 0, size, rng),
);

/// What its steps forward over quads have in common: see [`super::forms`].
pub(super) const FORWARD_IN_QUADS: Kernel = step::quads_kernel(
    &step::packed(FORWARD_BINDINGS, 2, "weight_quads"),
    twin!(forward_quads),
);

/// And those back.
pub(super) const BACKWARD_IN_QUADS: Kernel = step::quads_kernel(
    &step::packed(BACKWARD_BINDINGS, 3, "weight_quads_back"),
    twin!(backward_quads),
);

/// `gru.sequence_forward`
pub static SEQUENCE_FORWARD: Kernel = step::kernel(
    "gru.sequence_forward",
    ALL_STEPS,
    &step::packed(FORWARD_BINDINGS, 2, "weight_blocks"),
    Twin {
        f32: fast_forward,
        f64: sequence_forward,
    },
    |size, rng| sample::sequence_forward(&[&GRU], size, rng),
);

/// `gru.sequence_backward`
pub static SEQUENCE_BACKWARD: Kernel = step::kernel(
    "gru.sequence_backward",
    ALL_STEPS,
    &step::packed(BACKWARD_BINDINGS, 3, "weight_blocks_back"),
    Twin {
        f32: fast_backward,
        f64: sequence_backward,
    },
    |size, rng| sample::sequence_backward(&[&GRU], size, rng),
);

/// What a unit has before a step back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept<R> {
    /// r, z, n as they were kept, and q.
    pub(crate) slots: [R; 4],
    pub(crate) h_old: R,
    /// The gradient of h.
    pub(crate) dh: R,
}

/// A unit's step from W_ih x + b_ih, W_hh h + b_hh and h before: h, and what is kept.
#[inline]
pub(crate) fn unit_forward<R: Real>(
    act: &Gates<R>,
    input: [R; 3],
    recurrent: [R; 3],
    h_old: R,
) -> (R, [R; 4]) {
    let (pre_r, pre_z) = (input[0] + recurrent[0], input[1] + recurrent[1]);
    let (r, z) = (act.gate(0, pre_r), act.gate(0, pre_z));
    let q = recurrent[2];
    let pre_n = input[2] + r * q;
    let n = act.gate(1, pre_n);
    let kept = [
        act.kept(pre_r, r),
        act.kept(pre_z, z),
        act.kept(pre_n, n),
        q,
    ];
    ((R::ONE - z) * n + z * h_old, kept)
}

/// A unit's step back: what goes to the slots of `dgates`, and the gradient of h before the step
/// that does not come through the gates.
#[inline]
pub(crate) fn unit_backward<R: Real>(act: &Gates<R>, kept: Kept<R>) -> ([R; 4], R) {
    let ([kept_r, kept_z, kept_n, q], dh) = (kept.slots, kept.dh);
    let (r, z) = (act.value(0, kept_r), act.value(0, kept_z));
    let n = act.value(1, kept_n);
    let dn = dh * (R::ONE - z) * act.gate_slope(1, kept_n, n);
    let dz = dh * (kept.h_old - n) * act.gate_slope(0, kept_z, z);
    let dr = dn * q * act.gate_slope(0, kept_r, r);
    ([dr, dz, dn, dn * r], dh * z)
}

/// What a forward kernel binds.
struct Forward<'a, R> {
    act: Gates<R>,
    save: bool,
    gates: &'a mut [R],
    weight: &'a [R],
    bias_hh: &'a [R],
    h: &'a mut [R],
    y: &'a mut [R],
}

impl<'a, R: Real> Forward<'a, R> {
    fn new(args: &mut Args<'a, R>, p: &StepParams) -> Result<Self> {
        Ok(Self {
            act: Gates::new(args, p)?,
            save: args.constant("SAVE")? != 0,
            gates: args.write(1)?,
            weight: args.read(2)?,
            bias_hh: args.read(3)?,
            h: args.write(4)?,
            y: args.write(5)?,
        })
    }

    /// One step, with W_hh transposed.
    fn step(&mut self, rows: &Rows<'_>, weight_hh_t: &[R]) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let products = step::Forward {
            gates: self.gates,
            weight_hh_t,
            operand: self.h,
            size: hidden,
            of_gates: 3,
            wanted: 0..3,
        }
        .products(rows, |n| rows.h_before(n))?;
        let Self {
            act,
            save,
            gates,
            bias_hh,
            h,
            y,
            ..
        } = self;
        let save = *save;
        let bias_hh = rows.own(bias_hh, rows.p.lane_bias)?;
        for row in 0..rows.count() {
            if !rows.live(row) {
                rows.hold_state(h, y, row);
                continue;
            }
            let (at, before) = (rows.gates(row), rows.h_before(row));
            let to = rows.hand_on(row);
            for j in 0..hidden {
                let input = [0, 1, 2]
                    .map(|gate| products.input(row, gate, j, || gates[at + gate * hidden + j]));
                let recurrent = [0, 1, 2]
                    .map(|gate| products.recurrent(row, gate, j) + bias_hh[gate * hidden + j]);
                let (value, kept) = unit_forward(act, input, recurrent, h[before + j]);
                to.store(h, y, j, value);
                if save {
                    for (slot, value) in kept.into_iter().enumerate() {
                        gates[at + slot * hidden + j] = act.stored(value);
                    }
                }
            }
        }
        Ok(())
    }
}

fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Forward::new(args, &rows.p)?;
    call.step(&rows, call.weight)
}

fn forward_quads<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Forward::new(args, &rows.p)?;
    rows.lanes_of_step()?.iter().try_for_each(|rows| {
        let packed = rows.own(call.weight, rows.p.lane_weights)?;
        call.step(rows, &from_quads(packed, 3, rows))
    })
}

fn sequence_forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Forward::new(args, &rows.p)?;
    let hidden = rows.p.hidden as usize;
    let block = args.constant("UNITS")? as usize;
    let blocks = Blocks::forward([3, hidden, rows.terms()], block);
    rows.lanes().try_for_each(|rows| {
        let weight = unpacked(rows.own(call.weight, rows.p.lane_weights)?, &blocks);
        if rows.stream() {
            return call.step(&rows, &weight);
        }
        let mut steps = rows.steps()?.into_iter();
        steps.try_for_each(|rows| call.step(&rows, &weight))
    })
}

/// The same in single precision with vectors and threads.
fn fast_forward(args: &mut Args<'_, f32>) -> Result<()> {
    if stores_halves(args) {
        return sequence_forward(args);
    }
    let rows = Rows::new(args)?;
    let (hidden, terms) = (rows.p.hidden as usize, rows.terms());
    let blocks = Blocks::forward([3, hidden, terms], args.constant("UNITS")? as usize);
    let call = Forward::new(args, &rows.p)?;
    let packing = Packing::forward(3, hidden, terms);
    let mut sums = Vec::new();
    rows.lanes().try_for_each(|rows| {
        let steps = rows.all_params(3)?;
        let (gates, input) = rows.gates_and_input(&mut *call.gates, 3, &mut sums);
        let weight = rows.own(call.weight, rows.p.lane_weights)?;
        let shared = ForwardArgs {
            steps: rows.all(&steps),
            save: call.save,
            act: call.act,
            weight: &fitting(&packing, weight, &blocks),
            bias_hh: rows.own(call.bias_hh, rows.p.lane_bias)?,
            gates,
            h: &mut *call.h,
            y: &mut *call.y,
            input,
        };
        fast::forward(shared);
        Ok(())
    })
}

/// What a backward kernel binds.
struct Backward<'a, R> {
    act: Gates<R>,
    saved_gates: &'a [R],
    saved_h: &'a [R],
    weight: &'a [R],
    dy: &'a [R],
    dgates: &'a mut [R],
    dstate: &'a mut [R],
}

impl<'a, R: Real> Backward<'a, R> {
    fn new(args: &mut Args<'a, R>, p: &StepParams) -> Result<Self> {
        Ok(Self {
            act: Gates::new(args, p)?,
            saved_gates: args.read(1)?,
            saved_h: args.read(2)?,
            weight: args.read(3)?,
            dy: args.read(4)?,
            dgates: args.write(5)?,
            dstate: args.write(6)?,
        })
    }

    /// One step, with W_hh as PyTorch has it.
    fn step(&mut self, rows: &Rows<'_>, weight: &[R]) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let product = gradient_product(rows, self.dgates, weight, GRU.recurrent_blocks())?;
        let Self {
            act,
            saved_gates,
            saved_h,
            dy,
            dgates,
            dstate,
            ..
        } = self;
        let dstate = rows.own_mut(dstate, rows.p.lane_dstate)?;
        for row in 0..rows.count() {
            let (at, to) = (rows.gates(row), rows.dgates(row));
            let (live, before) = (rows.live(row), rows.h_before(row));
            let gradient = rows.state_gradient(row);
            for j in 0..hidden {
                let unit = row * hidden + j;
                let dh = gradient.of(dstate, dy, j, product[unit]);
                if !live {
                    for slot in 0..4 {
                        dgates[to + slot * hidden + j] = R::ZERO;
                    }
                    dstate[unit] = dh;
                    continue;
                }
                let kept = Kept {
                    slots: [0, 1, 2, 3].map(|slot| saved_gates[at + slot * hidden + j]),
                    h_old: saved_h[before + j],
                    dh,
                };
                let (gradients, past) = unit_backward(act, kept);
                for (slot, value) in gradients.into_iter().enumerate() {
                    dgates[to + slot * hidden + j] = value;
                }
                dstate[unit] = past;
            }
        }
        Ok(())
    }
}

fn backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Backward::new(args, &rows.p)?;
    call.step(&rows, call.weight)
}

fn backward_quads<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Backward::new(args, &rows.p)?;
    let hidden = rows.p.hidden as usize;
    let blocks = Blocks::quads_back([3, hidden, hidden]);
    rows.lanes_of_step()?.iter().try_for_each(|rows| {
        let packed = rows.own(call.weight, rows.p.lane_weights)?;
        call.step(rows, &unpacked(packed, &blocks))
    })
}

fn sequence_backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Backward::new(args, &rows.p)?;
    let hidden = rows.p.hidden as usize;
    let block = args.constant("UNITS")? as usize;
    let blocks = Blocks::backward([3, hidden, hidden], block);
    rows.lanes().try_for_each(|rows| {
        let weight = unpacked(rows.own(call.weight, rows.p.lane_weights)?, &blocks);
        let mut steps = rows.steps()?.into_iter().rev();
        steps.try_for_each(|rows| call.step(&rows, &weight))
    })
}

/// The same in single precision with vectors and threads.
fn fast_backward(args: &mut Args<'_, f32>) -> Result<()> {
    let rows = Rows::new(args)?;
    let hidden = rows.p.hidden as usize;
    let blocks = Blocks::backward([3, hidden, hidden], args.constant("UNITS")? as usize);
    let call = Backward::new(args, &rows.p)?;
    let packing = Packing::backward(3, hidden, hidden);
    rows.lanes().try_for_each(|rows| {
        let steps: Vec<StepParams> = rows.steps()?.iter().rev().map(|rows| rows.p).collect();
        let weight = rows.own(call.weight, rows.p.lane_weights)?;
        let shared = BackwardArgs {
            steps: rows.all(&steps),
            act: call.act,
            weight: &fitting(&packing, weight, &blocks),
            saved_gates: call.saved_gates,
            dy: call.dy,
            dgates: &mut *call.dgates,
            dstate: rows.own_mut(&mut *call.dstate, rows.p.lane_dstate)?,
        };
        fast::backward(shared, call.saved_h);
        Ok(())
    })
}
