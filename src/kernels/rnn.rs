//! `rnn`: one step of a plain recurrent network, forward and back. Equations in `shaders/rnn.wgsl`.
//!
//! J. Elman, *Finding structure in time*, 1990; with tanh, max(x, 0) or another activation.

use super::gates::{Gates, stores_halves};
use super::pack::Blocks;
use super::sample;
use super::simd::backward::BackwardArgs;
use super::simd::forward::ForwardArgs;
use super::simd::pack::{Packing, fitting};
use super::simd::rnn as fast;
use super::step::{self, Rows, StepParams, from_quads, gradient_product, unpacked};
use crate::cell::{RNN_RELU, RNN_TANH};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel, Twin};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/rnn.wgsl");
const ALL_STEPS: &str = concat!(include_str!("../../shaders/rnn.wgsl"), "#import sequence\n");
const CELLS: &[&crate::cell::Cell] = &[&RNN_TANH, &RNN_RELU];

const FORWARD_BINDINGS: [Binding; 6] = [
    step::MASK,
    Binding::update("gates").or_f16("GATES_HALF"),
    Binding::read("weight_hh_t"),
    Binding::read("bias_hh"),
    Binding::update("h"),
    Binding::update("y"),
];
const BACKWARD_BINDINGS: [Binding; 6] = [
    step::MASK,
    Binding::read("saved_gates").or_f16("GATES_HALF"),
    Binding::read("weight_hh"),
    Binding::read("dy"),
    Binding::update("dgates"),
    Binding::update("dstate"),
];

/// `rnn.forward`
pub static FORWARD: Kernel = step::kernel(
    "rnn.forward",
    WGSL,
    &FORWARD_BINDINGS,
    twin!(forward),
    |size, rng| sample::forward(CELLS, 0, size, rng),
);

/// `rnn.backward`
pub static BACKWARD: Kernel = step::kernel(
    "rnn.backward",
    WGSL,
    &BACKWARD_BINDINGS,
    twin!(backward),
    |size, rng| sample::backward(CELLS, 0, size, rng),
);

/// What its steps forward over quads have in common: see [`super::forms`].
pub(super) const FORWARD_IN_QUADS: Kernel = step::quads_kernel(
    &step::packed(FORWARD_BINDINGS, 2, "weight_quads"),
    twin!(forward_quads),
);

/// And those back.
pub(super) const BACKWARD_IN_QUADS: Kernel = step::quads_kernel(
    &step::packed(BACKWARD_BINDINGS, 2, "weight_quads_back"),
    twin!(backward_quads),
);

/// `rnn.sequence_forward`
pub static SEQUENCE_FORWARD: Kernel = step::kernel(
    "rnn.sequence_forward",
    ALL_STEPS,
    &step::packed(FORWARD_BINDINGS, 2, "weight_blocks"),
    Twin {
        f32: fast_forward,
        f64: sequence_forward,
    },
    |size, rng| sample::sequence_forward(CELLS, size, rng),
);

/// `rnn.sequence_backward`
pub static SEQUENCE_BACKWARD: Kernel = step::kernel(
    "rnn.sequence_backward",
    ALL_STEPS,
    &step::packed(BACKWARD_BINDINGS, 2, "weight_blocks_back"),
    Twin {
        f32: fast_backward,
        f64: sequence_backward,
    },
    |size, rng| sample::sequence_backward(CELLS, size, rng),
);

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
            of_gates: 1,
            wanted: 0..1,
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
        for n in 0..rows.count() {
            if !rows.live(n) {
                rows.hold_state(h, y, n);
                continue;
            }
            let (at, to) = (rows.gates(n), rows.hand_on(n));
            for j in 0..hidden {
                let input = products.input(n, 0, j, || gates[at + j]);
                let pre = input + products.recurrent(n, 0, j) + bias_hh[j];
                let value = act.gate(0, pre);
                to.store(h, y, j, value);
                if save {
                    gates[at + j] = act.stored(act.kept(pre, value));
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
        call.step(rows, &from_quads(packed, 1, rows))
    })
}

fn sequence_forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Forward::new(args, &rows.p)?;
    let hidden = rows.p.hidden as usize;
    let block = args.constant("UNITS")? as usize;
    let blocks = Blocks::forward([1, hidden, rows.terms()], block);
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
    let blocks = Blocks::forward([1, hidden, terms], args.constant("UNITS")? as usize);
    let call = Forward::new(args, &rows.p)?;
    let packing = Packing::forward(1, hidden, terms);
    let mut sums = Vec::new();
    rows.lanes().try_for_each(|rows| {
        let steps = rows.all_params(1)?;
        let (gates, input) = rows.gates_and_input(&mut *call.gates, 1, &mut sums);
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
            weight: args.read(2)?,
            dy: args.read(3)?,
            dgates: args.write(4)?,
            dstate: args.write(5)?,
        })
    }

    /// One step, with W_hh as PyTorch has it.
    fn step(&mut self, rows: &Rows<'_>, weight: &[R]) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let product = gradient_product(rows, self.dgates, weight, RNN_TANH.recurrent_blocks())?;
        let Self {
            act,
            saved_gates,
            dy,
            dgates,
            dstate,
            ..
        } = self;
        let dstate = rows.own_mut(dstate, rows.p.lane_dstate)?;
        for n in 0..rows.count() {
            let (at, to, live) = (rows.gates(n), rows.dgates(n), rows.live(n));
            let gradient = rows.state_gradient(n);
            for j in 0..hidden {
                let unit = n * hidden + j;
                let dh = gradient.of(dstate, dy, j, product[unit]);
                if live {
                    let kept = saved_gates[at + j];
                    let value = act.value(0, kept);
                    dgates[to + j] = dh * act.gate_slope(0, kept, value);
                    dstate[unit] = R::ZERO;
                } else {
                    dgates[to + j] = R::ZERO;
                    dstate[unit] = dh;
                }
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
    let blocks = Blocks::quads_back([1, hidden, hidden]);
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
    let blocks = Blocks::backward([1, hidden, hidden], block);
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
    let blocks = Blocks::backward([1, hidden, hidden], args.constant("UNITS")? as usize);
    let call = Backward::new(args, &rows.p)?;
    let packing = Packing::backward(1, hidden, hidden);
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
        fast::backward(shared);
        Ok(())
    })
}
