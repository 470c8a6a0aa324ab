//! `lstm`: one step of an LSTM, forward and back. Equations in `shaders/lstm.wgsl`.
//!
//! S. Hochreiter and J. Schmidhuber, *Long short-term memory*, 1997, with the forget gate of
//! F. Gers et al., 2000, and the peepholes of F. Gers and J. Schmidhuber, 2000; coupled gates as
//! in K. Greff et al., *LSTM: a search space odyssey*, 2017. Gate order i, f, g, o as in PyTorch.

use super::gates::{Gates, join};
use super::sample;
use super::simd::backward::BackwardArgs;
use super::simd::forward::ForwardArgs;
use super::simd::lstm::{self as fast, LstmArgs, LstmBackwardArgs};
use super::step::twins::{
    self, BackwardBindings, BackwardPlaces, ForwardBindings, ForwardPlaces, FusedStep,
};
use super::step::{self, Rows, StepParams, gradient_product};
use crate::activation::limit;
use crate::cell::{Cell, LSTM, LSTM_PEEPHOLE, LSTM_PEEPHOLE_PROJECTED, LSTM_PROJECTED};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::kernels::gemm::{Strided, StridedMut, product};
use crate::real::Real;

const WGSL: &str = include_str!("../../shaders/lstm.wgsl");
const ALL_STEPS: &str = concat!(
    include_str!("../../shaders/lstm.wgsl"),
    "#import sequence\n"
);
pub(super) const CELLS: &[&Cell] = &[
    &LSTM,
    &LSTM_PEEPHOLE,
    &LSTM_PROJECTED,
    &LSTM_PEEPHOLE_PROJECTED,
];
/// Those whose steps are one kernel.
pub(super) const STEPS: &[&Cell] = &[&LSTM, &LSTM_PEEPHOLE];

const FORWARD_BINDINGS: [Binding; 8] = [
    step::MASK,
    Binding::read("weight_p"),
    Binding::update("gates").or_f16("GATES_HALF"),
    Binding::read("weight_hh_t"),
    Binding::read("bias_hh"),
    Binding::update("h"),
    Binding::update("c"),
    Binding::update("y"),
];
const BACKWARD_BINDINGS: [Binding; 8] = [
    step::MASK,
    Binding::read("weight_p"),
    Binding::read("saved_gates").or_f16("GATES_HALF"),
    Binding::read("saved_c"),
    Binding::read("weight_hh"),
    Binding::read("dy"),
    Binding::update("dgates"),
    Binding::update("dstate"),
];

/// `lstm.forward`
pub static FORWARD: Kernel = Kernel {
    rounds: |told| step::rounds::of_unit(told, |p| u64::from(p.output)),
    ..step::kernel(
        "lstm.forward",
        WGSL,
        &FORWARD_BINDINGS,
        twins::forward::<Step>(),
        |size, rng| sample::forward(CELLS, 0, size, rng),
    )
};

/// `lstm.backward`
pub static BACKWARD: Kernel = Kernel {
    rounds: |told| match told.constant("PROJECTED") {
        Ok(1) => step::rounds::of_unit(told, |p| u64::from(p.output)),
        _ => step::rounds::of_unit(told, |p| 4 * u64::from(p.hidden)),
    },
    ..step::kernel(
        "lstm.backward",
        WGSL,
        &BACKWARD_BINDINGS,
        twins::backward::<Step>(),
        // The last pass of the step, with a projection or without.
        |size, rng| sample::backward(CELLS, usize::MAX, size, rng),
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

/// `lstm.sequence_forward`
pub static SEQUENCE_FORWARD: Kernel = Kernel {
    rounds: step::rounds::of_all_steps,
    ..step::kernel(
        "lstm.sequence_forward",
        ALL_STEPS,
        &step::packed(FORWARD_BINDINGS, Step::FORWARD_AT.weight, "weight_blocks"),
        twins::sequence_forward::<Step>(),
        |size, rng| sample::sequence_forward(STEPS, size, rng),
    )
};

/// `lstm.sequence_backward`
pub static SEQUENCE_BACKWARD: Kernel = Kernel {
    rounds: step::rounds::of_all_steps,
    ..step::kernel(
        "lstm.sequence_backward",
        ALL_STEPS,
        &step::packed(
            BACKWARD_BINDINGS,
            Step::BACKWARD_AT.weight,
            "weight_blocks_back",
        ),
        twins::sequence_backward::<Step>(),
        |size, rng| sample::sequence_backward(STEPS, size, rng),
    )
};

/// The options of a step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options<R> {
    pub(crate) peephole: bool,
    pub(crate) coupled: bool,
    pub(crate) projected: bool,
    pub(crate) cell_clip: Option<R>,
}

/// What a unit has after a step.
pub(crate) struct Forwarded<R> {
    pub(crate) c: R,
    pub(crate) h: R,
    /// What is kept of the gates.
    pub(crate) kept: [R; 4],
}

/// What a unit has before a step back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept<R> {
    pub(crate) gates: [R; 4],
    pub(crate) c_new: R,
    pub(crate) c_old: R,
    /// The gradient of h.
    pub(crate) dh: R,
    /// That of c, without what comes through h.
    pub(crate) dc: R,
}

impl<R: Real> Options<R> {
    /// True if a unit's step is not the usual one.
    pub(crate) fn any(&self) -> bool {
        self.peephole || self.coupled || self.cell_clip.is_some()
    }

    /// A unit's step from the pre-activations without peepholes, their weights, and c before.
    #[inline]
    pub(crate) fn forward(&self, act: &Gates<R>, pre: [R; 4], p: [R; 3], c_old: R) -> Forwarded<R> {
        let [pre_i, pre_f, pre_g, pre_o] = pre;
        let peephole = |gate: usize, c: R| if self.peephole { p[gate] * c } else { R::ZERO };
        let (pre_i, pre_f) = (pre_i + peephole(0, c_old), pre_f + peephole(1, c_old));
        let i = act.gate(0, pre_i);
        let f = match self.coupled {
            true => R::ONE - i,
            false => act.gate(0, pre_f),
        };
        let g = act.gate(1, pre_g);
        let sum = f * c_old + i * g;
        let c = self.cell_clip.map_or(sum, |b| limit(sum, -b, b));
        let pre_o = pre_o + peephole(2, c);
        let o = act.gate(0, pre_o);
        let kept = [
            act.kept(pre_i, i),
            act.kept(pre_f, f),
            act.kept(pre_g, g),
            act.kept(pre_o, o),
        ];
        let h = o * act.activate(2, c);
        Forwarded { c, h, kept }
    }

    /// A unit's step back: the gradients of the gates and of c before the step.
    #[inline]
    pub(crate) fn backward(&self, act: &Gates<R>, p: [R; 3], kept: Kept<R>) -> ([R; 4], R) {
        let Kept {
            c_new, c_old, dh, ..
        } = kept;
        let (i, g, o) = (
            act.value(0, kept.gates[0]),
            act.value(1, kept.gates[2]),
            act.value(0, kept.gates[3]),
        );
        let f = match self.coupled {
            true => R::ONE - i,
            false => act.value(0, kept.gates[1]),
        };
        let b = act.activate(2, c_new);
        let d_o = dh * b * act.gate_slope(0, kept.gates[3], o);
        let mut dc = kept.dc + dh * o * act.slope(2, c_new, b) + d_o * p[2];
        if self.cell_clip.is_some_and(|bound| c_new.abs() >= bound) {
            dc = R::ZERO;
        }
        let i_slope = act.gate_slope(0, kept.gates[0], i);
        let (d_i, d_f) = match self.coupled {
            true => (dc * (g - c_old) * i_slope, R::ZERO),
            false => (
                dc * g * i_slope,
                dc * c_old * act.gate_slope(0, kept.gates[1], f),
            ),
        };
        let d_g = dc * i * act.gate_slope(1, kept.gates[2], g);
        ([d_i, d_f, d_g, d_o], dc * f + d_i * p[0] + d_f * p[1])
    }
}

/// The weights of a unit's peepholes; 0 without.
#[inline]
pub(crate) fn peepholes<R: Real>(weight_p: &[R], hidden: usize, j: usize, on: bool) -> [R; 3] {
    [0, 1, 2].map(|gate| match on {
        true => weight_p[gate * hidden + j],
        false => R::ZERO,
    })
}

impl<R: Real> Options<R> {
    fn new(args: &Args<'_, R>, p: &StepParams) -> Result<Self> {
        let set = |name| Ok(args.constant(name)? != 0);
        Ok(Self {
            peephole: set("PEEPHOLE")?,
            coupled: set("COUPLED")?,
            projected: set("PROJECTED")?,
            cell_clip: set("CELL_CLIP")?.then(|| join(p.cell_clip)),
        })
    }
}

/// The step of which all twins here are made.
struct Step;

/// What its forward kernels have beside those of every cell.
struct ForwardOwn<'a, R> {
    options: Options<R>,
    weight_p: &'a [R],
    c: &'a mut [R],
}

/// What its backward kernels have.
#[derive(Clone, Copy)]
struct BackwardOwn<'a, R> {
    options: Options<R>,
    weight_p: &'a [R],
    saved_c: &'a [R],
}

impl FusedStep for Step {
    const CELL: &'static Cell = &LSTM;
    const FORWARD_AT: ForwardPlaces = ForwardPlaces {
        gates: 2,
        weight: 3,
        bias_hh: 4,
        h: 5,
        y: 7,
    };
    const BACKWARD_AT: BackwardPlaces = BackwardPlaces {
        saved_gates: 2,
        weight: 4,
        dy: 5,
        dgates: 6,
        dstate: 7,
    };
    type ForwardOwn<'a, R: Real> = ForwardOwn<'a, R>;
    type BackwardOwn<'a, R: Real> = BackwardOwn<'a, R>;

    fn bind_forward<'a, R: Real>(
        args: &mut Args<'a, R>,
        p: &StepParams,
    ) -> Result<ForwardOwn<'a, R>> {
        Ok(ForwardOwn {
            options: Options::new(args, p)?,
            weight_p: args.read(1)?,
            c: args.write(6)?,
        })
    }

    fn bind_backward<'a, R: Real>(
        args: &mut Args<'a, R>,
        p: &StepParams,
    ) -> Result<BackwardOwn<'a, R>> {
        Ok(BackwardOwn {
            options: Options::new(args, p)?,
            weight_p: args.read(1)?,
            saved_c: args.read(3)?,
        })
    }

    fn forward<R: Real>(
        bound: &mut ForwardBindings<'_, R>,
        own: &mut ForwardOwn<'_, R>,
        rows: &Rows<'_>,
        weight_hh_t: &[R],
    ) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let products = step::Forward {
            gates: bound.gates,
            weight_hh_t,
            operand: bound.h,
            size: rows.p.output as usize,
            of_gates: 4,
            wanted: 0..4,
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
        let ForwardOwn {
            options,
            weight_p,
            c,
        } = own;
        let save = *save;
        let bias_hh = rows.own(bias_hh, rows.p.lane_bias)?;
        let weight_p = rows.own(weight_p, rows.p.lane_diagonal)?;
        for n in 0..rows.count() {
            let (at, live, zeroed) = (rows.gates(n), rows.live(n), rows.reset(n));
            let (c_from, c_to, inner) = (rows.c_before(n), rows.c_after(n), rows.inner(n));
            let to = rows.hand_on(n);
            if !live && !options.projected {
                rows.hold_state(h, y, n);
            }
            for j in 0..hidden {
                let c_old = if zeroed { R::ZERO } else { c[c_from + j] };
                if !live {
                    c[c_to + j] = c_old;
                    if options.projected {
                        y[inner + j] = R::ZERO;
                    }
                    // The sums for the peepholes' gradients run over these rows, with zeros as gates'
                    // gradients.
                    if save && options.peephole {
                        gates[at + 4 * hidden + j] = act.stored(c_old);
                        gates[at + 5 * hidden + j] = act.stored(c_old);
                    }
                    continue;
                }
                let pre = [0, 1, 2, 3].map(|gate| {
                    let unit = gate * hidden + j;
                    let input = products.input(n, gate, j, || gates[at + unit]);
                    input + products.recurrent(n, gate, j) + bias_hh[unit]
                });
                let p = peepholes(weight_p, hidden, j, options.peephole);
                let unit = options.forward(act, pre, p, c_old);
                c[c_to + j] = unit.c;
                if options.projected {
                    y[inner + j] = unit.h;
                } else {
                    to.store(h, y, j, unit.h);
                }
                if save {
                    for (gate, value) in unit.kept.into_iter().enumerate() {
                        gates[at + gate * hidden + j] = act.stored(value);
                    }
                    if options.peephole {
                        gates[at + 4 * hidden + j] = act.stored(unit.c);
                        gates[at + 5 * hidden + j] = act.stored(c_old);
                    }
                }
            }
        }
        Ok(())
    }

    /// With a projection `weight_hh` is W_hr.
    fn backward<R: Real>(
        bound: &mut BackwardBindings<'_, R>,
        own: BackwardOwn<'_, R>,
        rows: &Rows<'_>,
        weight_hh: &[R],
    ) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let product = if own.options.projected {
            projected_product(&rows.p, bound.dy, weight_hh)?
        } else {
            gradient_product(rows, bound.dgates, weight_hh, Self::CELL.recurrent_blocks())?
        };
        let BackwardBindings {
            act,
            saved_gates,
            dy,
            dgates,
            dstate,
        } = bound;
        let BackwardOwn {
            options,
            weight_p,
            saved_c,
        } = own;
        let weight_p = rows.own(weight_p, rows.p.lane_diagonal)?;
        let dstate = rows.own_mut(dstate, rows.p.lane_dstate)?;
        let (dh_state, dc_state) = dstate.split_at_mut(rows.p.dc_start as usize);
        for n in 0..rows.count() {
            let (at, to) = (rows.gates(n), rows.dgates(n));
            let (live, zeroed) = (rows.live(n), rows.reset(n));
            let (c_from, c_to) = (rows.c_before(n), rows.c_after(n));
            let gradient = rows.state_gradient(n);
            for j in 0..hidden {
                let unit = n * hidden + j;
                let dh = match options.projected {
                    true => product[unit],
                    false => gradient.of(dh_state, dy, j, product[unit]),
                };
                if !options.projected {
                    dh_state[unit] = if live { R::ZERO } else { dh };
                }
                if !live {
                    for gate in 0..4 {
                        dgates[to + gate * hidden + j] = R::ZERO;
                    }
                    if zeroed {
                        dc_state[unit] = R::ZERO;
                    }
                    continue;
                }
                let p = peepholes(weight_p, hidden, j, options.peephole);
                let kept = Kept {
                    gates: [0, 1, 2, 3].map(|gate| saved_gates[at + gate * hidden + j]),
                    c_new: saved_c[c_to + j],
                    c_old: if zeroed { R::ZERO } else { saved_c[c_from + j] },
                    dh,
                    dc: dc_state[unit],
                };
                let (gradients, dc_old) = options.backward(act, p, kept);
                for (gate, value) in gradients.into_iter().enumerate() {
                    dgates[to + gate * hidden + j] = value;
                }
                dc_state[unit] = if zeroed { R::ZERO } else { dc_old };
            }
        }
        Ok(())
    }

    fn fast_forward(
        args: ForwardArgs<'_>,
        own: &mut ForwardOwn<'_, f32>,
        rows: &Rows<'_>,
    ) -> Result<()> {
        let lstm = LstmArgs {
            options: own.options,
            weight_p: rows.own(own.weight_p, rows.p.lane_diagonal)?,
            c: own.c,
        };
        fast::forward(args, lstm);
        Ok(())
    }

    fn fast_backward(
        args: BackwardArgs<'_>,
        own: BackwardOwn<'_, f32>,
        rows: &Rows<'_>,
    ) -> Result<()> {
        let lstm = LstmBackwardArgs {
            options: own.options,
            weight_p: rows.own(own.weight_p, rows.p.lane_diagonal)?,
            saved_c: own.saved_c,
        };
        fast::backward(args, lstm);
        Ok(())
    }
}

/// The gradient of the projection's input, dy W_hr: `[N, H]`.
fn projected_product<R: Real>(p: &StepParams, dy: &[R], weight_hr: &[R]) -> Result<Vec<R>> {
    let (count, hidden, output) = (p.count as usize, p.hidden as usize, p.output as usize);
    let mut out = vec![R::ZERO; count * hidden];
    product(
        Strided::new(dy, [p.outer_start, p.outer_row, 1], [count, output]),
        Strided::new(weight_hr, [0, p.hidden, 1], [output, hidden]),
        StridedMut::new(&mut out, [0, p.hidden, 1], [count, hidden]),
        R::ONE,
        R::ZERO,
    )?;
    Ok(out)
}
