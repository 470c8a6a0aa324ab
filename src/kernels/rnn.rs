//! `rnn`: one step of a plain recurrent network, forward and back. Equations in `shaders/rnn.wgsl`.
//!
//! J. Elman, *Finding structure in time*, 1990; with tanh, max(x, 0) or another activation.

use super::sample;
use super::simd::backward::BackwardArgs;
use super::simd::forward::ForwardArgs;
use super::simd::rnn as fast;
use super::step::twins::{
    self, BackwardBindings, BackwardPlaces, ForwardBindings, ForwardPlaces, FusedStep,
};
use super::step::{self, Rows, StepParams, gradient_product};
use crate::cell::{Cell, RNN_RELU, RNN_TANH};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::real::Real;

const WGSL: &str = include_str!("../../shaders/rnn.wgsl");
const ALL_STEPS: &str = concat!(include_str!("../../shaders/rnn.wgsl"), "#import sequence\n");
const CELLS: &[&Cell] = &[&RNN_TANH, &RNN_RELU];

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
pub static FORWARD: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| u64::from(p.hidden)),
    ..step::kernel(
        "rnn.forward",
        WGSL,
        &FORWARD_BINDINGS,
        twins::forward::<Step>(),
        |size, rng| sample::forward(CELLS, 0, size, rng),
    )
};

/// `rnn.backward`
pub static BACKWARD: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| u64::from(p.hidden)),
    ..step::kernel(
        "rnn.backward",
        WGSL,
        &BACKWARD_BINDINGS,
        twins::backward::<Step>(),
        |size, rng| sample::backward(CELLS, 0, size, rng),
    )
};

/// What its steps forward over quads have in common: see [`super::forms`].
pub(super) const FORWARD_IN_QUADS: Kernel = step::quads_kernel(
    &step::packed(FORWARD_BINDINGS, Step::FORWARD_AT.weight, "weight_quads"),
    twins::forward_in_quads::<Step>(),
);

/// And those back.
pub(super) const BACKWARD_IN_QUADS: Kernel = step::quads_kernel(
    &step::packed(
        BACKWARD_BINDINGS,
        Step::BACKWARD_AT.weight,
        "weight_quads_back",
    ),
    twins::backward_in_quads::<Step>(),
);

/// `rnn.sequence_forward`
pub static SEQUENCE_FORWARD: Kernel = Kernel {
    rounds: step::rounds::of_all_steps,
    ..step::kernel(
        "rnn.sequence_forward",
        ALL_STEPS,
        &step::packed(FORWARD_BINDINGS, Step::FORWARD_AT.weight, "weight_blocks"),
        twins::sequence_forward::<Step>(),
        |size, rng| sample::sequence_forward(CELLS, size, rng),
    )
};

/// `rnn.sequence_backward`
pub static SEQUENCE_BACKWARD: Kernel = Kernel {
    rounds: step::rounds::of_all_steps,
    ..step::kernel(
        "rnn.sequence_backward",
        ALL_STEPS,
        &step::packed(
            BACKWARD_BINDINGS,
            Step::BACKWARD_AT.weight,
            "weight_blocks_back",
        ),
        twins::sequence_backward::<Step>(),
        |size, rng| sample::sequence_backward(CELLS, size, rng),
    )
};

/// The step of which all twins here are made.
struct Step;

impl FusedStep for Step {
    const CELL: &'static Cell = &RNN_TANH;
    const FORWARD_AT: ForwardPlaces = ForwardPlaces {
        gates: 1,
        weight: 2,
        bias_hh: 3,
        h: 4,
        y: 5,
    };
    const BACKWARD_AT: BackwardPlaces = BackwardPlaces {
        saved_gates: 1,
        weight: 2,
        dy: 3,
        dgates: 4,
        dstate: 5,
    };
    type ForwardOwn<'a, R: Real> = ();
    type BackwardOwn<'a, R: Real> = ();

    fn bind_forward<'a, R: Real>(_: &mut Args<'a, R>, _: &StepParams) -> Result<()> {
        Ok(())
    }

    fn bind_backward<'a, R: Real>(_: &mut Args<'a, R>, _: &StepParams) -> Result<()> {
        Ok(())
    }

    fn forward<R: Real>(
        bound: &mut ForwardBindings<'_, R>,
        (): &mut (),
        rows: &Rows<'_>,
        weight_hh_t: &[R],
    ) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let products = step::Forward {
            gates: bound.gates,
            weight_hh_t,
            operand: bound.h,
            size: hidden,
            of_gates: 1,
            wanted: 0..1,
        }
        .products(rows, |n| rows.h_before(n))?;
        let ForwardBindings {
            act,
            save,
            gates,
            bias_hh,
            h,
            y,
        } = bound;
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

    fn backward<R: Real>(
        bound: &mut BackwardBindings<'_, R>,
        (): (),
        rows: &Rows<'_>,
        weight_hh: &[R],
    ) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let product =
            gradient_product(rows, bound.dgates, weight_hh, Self::CELL.recurrent_blocks())?;
        let BackwardBindings {
            act,
            saved_gates,
            dy,
            dgates,
            dstate,
        } = bound;
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

    fn fast_forward(args: ForwardArgs<'_>, (): &mut (), _: &Rows<'_>) -> Result<()> {
        fast::forward(args);
        Ok(())
    }

    fn fast_backward(args: BackwardArgs<'_>, (): (), _: &Rows<'_>) -> Result<()> {
        fast::backward(args);
        Ok(())
    }
}
