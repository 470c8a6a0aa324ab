//! `gru`: one step of a GRU with the reset gate after the product, forward and back. Equations in
//! `shaders/gru.wgsl`.
//!
//! K. Cho et al., *Learning phrase representations using RNN encoder–decoder*, 2014, in the form
//! of PyTorch and cuDNN; gate order r, z, n.

use super::gates::Gates;
use super::sample;
use super::simd::backward::BackwardArgs;
use super::simd::forward::ForwardArgs;
use super::simd::gru as fast;
use super::step::twins::{
    self, BackwardBindings, BackwardPlaces, ForwardBindings, ForwardPlaces, FusedStep,
};
use super::step::{self, Rows, StepParams, gradient_product};
use crate::cell::{Cell, GRU};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::real::Real;

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
pub static FORWARD: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| u64::from(p.hidden)),
    ..step::kernel(
        "gru.forward",
        WGSL,
        &FORWARD_BINDINGS,
        twins::forward::<Step>(),
        |size, rng| sample::forward(&[&GRU], 0, size, rng),
    )
};

/// `gru.backward`
pub static BACKWARD: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| 3 * u64::from(p.hidden)),
    ..step::kernel(
        "gru.backward",
        WGSL,
        &BACKWARD_BINDINGS,
        twins::backward::<Step>(),
        |size, rng| sample::backward(&[&GRU], 0, size, rng),
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

/// `gru.sequence_forward`
pub static SEQUENCE_FORWARD: Kernel = Kernel {
    rounds: step::rounds::of_all_steps,
    ..step::kernel(
        "gru.sequence_forward",
        ALL_STEPS,
        &step::packed(FORWARD_BINDINGS, Step::FORWARD_AT.weight, "weight_blocks"),
        twins::sequence_forward::<Step>(),
        |size, rng| sample::sequence_forward(&[&GRU], size, rng),
    )
};

/// `gru.sequence_backward`
pub static SEQUENCE_BACKWARD: Kernel = Kernel {
    rounds: step::rounds::of_all_steps,
    ..step::kernel(
        "gru.sequence_backward",
        ALL_STEPS,
        &step::packed(
            BACKWARD_BINDINGS,
            Step::BACKWARD_AT.weight,
            "weight_blocks_back",
        ),
        twins::sequence_backward::<Step>(),
        |size, rng| sample::sequence_backward(&[&GRU], size, rng),
    )
};

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

/// The step of which all twins here are made.
struct Step;

impl FusedStep for Step {
    const CELL: &'static Cell = &GRU;
    const FORWARD_AT: ForwardPlaces = ForwardPlaces {
        gates: 1,
        weight: 2,
        bias_hh: 3,
        h: 4,
        y: 5,
    };
    const BACKWARD_AT: BackwardPlaces = BackwardPlaces {
        saved_gates: 1,
        weight: 3,
        dy: 4,
        dgates: 5,
        dstate: 6,
    };
    type ForwardOwn<'a, R: Real> = ();
    /// `saved_h`
    type BackwardOwn<'a, R: Real> = &'a [R];

    fn bind_forward<'a, R: Real>(_: &mut Args<'a, R>, _: &StepParams) -> Result<()> {
        Ok(())
    }

    fn bind_backward<'a, R: Real>(args: &mut Args<'a, R>, _: &StepParams) -> Result<&'a [R]> {
        args.read(2)
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
            of_gates: 3,
            wanted: 0..3,
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

    fn backward<R: Real>(
        bound: &mut BackwardBindings<'_, R>,
        saved_h: &[R],
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

    fn fast_forward(args: ForwardArgs<'_>, (): &mut (), _: &Rows<'_>) -> Result<()> {
        fast::forward(args);
        Ok(())
    }

    fn fast_backward(args: BackwardArgs<'_>, saved_h: &[f32], _: &Rows<'_>) -> Result<()> {
        fast::backward(args, saved_h);
        Ok(())
    }
}
