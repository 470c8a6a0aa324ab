//! `lstm`: one step of an LSTM, forward and back. Equations in `shaders/lstm.wgsl`.
//!
//! S. Hochreiter and J. Schmidhuber, *Long short-term memory*, 1997, with the forget gate of
//! F. Gers et al., 2000, and the peepholes of F. Gers and J. Schmidhuber, 2000; coupled gates as
//! in K. Greff et al., *LSTM: a search space odyssey*, 2017. Gate order i, f, g, o as in PyTorch.

use super::gates::{Gates, join};
use super::sample;
use super::step::{self, Rows, StepParams, gradient_product, unpacked};
use crate::activation::limit;
use crate::cell::{LSTM, LSTM_PEEPHOLE, LSTM_PEEPHOLE_PROJECTED, LSTM_PROJECTED};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::kernels::gemm::{Strided, StridedMut, product};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/lstm.wgsl");
const CELLS: &[&crate::cell::Cell] = &[
    &LSTM,
    &LSTM_PEEPHOLE,
    &LSTM_PROJECTED,
    &LSTM_PEEPHOLE_PROJECTED,
];

/// `lstm.forward`
pub static FORWARD: Kernel = step::kernel(
    "lstm.forward",
    WGSL,
    &[
        step::MASK,
        Binding::read("weight_p"),
        Binding::update("gates"),
        Binding::read("weight_hh_t"),
        Binding::read("bias_hh"),
        Binding::update("h"),
        Binding::update("c"),
        Binding::update("y"),
    ],
    twin!(forward),
    |size, rng| sample::forward(CELLS, 0, size, rng),
);

/// `lstm.backward`
pub static BACKWARD: Kernel = step::kernel(
    "lstm.backward",
    WGSL,
    &[
        step::MASK,
        Binding::read("weight_p"),
        Binding::read("saved_gates"),
        Binding::read("saved_c"),
        Binding::read("weight_hh"),
        Binding::read("dy"),
        Binding::update("dgates"),
        Binding::update("dstate"),
    ],
    twin!(backward),
    // The last pass of the step, with a projection or without.
    |size, rng| sample::backward(CELLS, usize::MAX, size, rng),
);

/// `lstm.sequence_forward`
pub static SEQUENCE_FORWARD: Kernel = step::sequence_kernel(
    "lstm.sequence_forward",
    &FORWARD,
    twin!(sequence_forward),
    |size, rng| sample::sequence_forward(&[&LSTM, &LSTM_PEEPHOLE], size, rng),
);

/// `lstm.sequence_backward`
pub static SEQUENCE_BACKWARD: Kernel = step::sequence_kernel(
    "lstm.sequence_backward",
    &BACKWARD,
    twin!(sequence_backward),
    |size, rng| sample::sequence_backward(&[&LSTM, &LSTM_PEEPHOLE], size, rng),
);

/// The options of a step.
struct Options<R> {
    peephole: bool,
    coupled: bool,
    projected: bool,
    cell_clip: Option<R>,
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

/// What a forward kernel binds.
struct Forward<'a, R> {
    act: Gates<R>,
    options: Options<R>,
    save: bool,
    weight_p: &'a [R],
    gates: &'a mut [R],
    weight: &'a [R],
    bias_hh: &'a [R],
    h: &'a mut [R],
    c: &'a mut [R],
    y: &'a mut [R],
}

impl<'a, R: Real> Forward<'a, R> {
    fn new(args: &mut Args<'a, R>, p: &StepParams) -> Result<Self> {
        Ok(Self {
            act: Gates::new(args, p)?,
            options: Options::new(args, p)?,
            save: args.constant("SAVE")? != 0,
            weight_p: args.read(1)?,
            gates: args.write(2)?,
            weight: args.read(3)?,
            bias_hh: args.read(4)?,
            h: args.write(5)?,
            c: args.write(6)?,
            y: args.write(7)?,
        })
    }

    /// One step, with W_hh transposed.
    fn step(&mut self, rows: &Rows<'_>, weight_hh_t: &[R]) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let products = step::Forward {
            gates: self.gates,
            weight_hh_t,
            operand: self.h,
            size: rows.p.output as usize,
            of_gates: 4,
            wanted: 0..4,
        }
        .products(rows, |n| rows.h_before(n))?;
        let Self {
            act,
            options,
            save,
            weight_p,
            gates,
            bias_hh,
            h,
            c,
            y,
            ..
        } = self;
        let save = *save;
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
                        gates[at + 4 * hidden + j] = c_old;
                        gates[at + 5 * hidden + j] = c_old;
                    }
                    continue;
                }
                let peephole = |gate: usize, c: R| match options.peephole {
                    true => weight_p[gate * hidden + j] * c,
                    false => R::ZERO,
                };
                let [pre_i, pre_f, pre_g, pre_o] = [0, 1, 2, 3].map(|gate| {
                    let unit = gate * hidden + j;
                    let input = products.input(n, gate, j, || gates[at + unit]);
                    input + products.recurrent(n, gate, j) + bias_hh[unit]
                });
                let (pre_i, pre_f) = (pre_i + peephole(0, c_old), pre_f + peephole(1, c_old));
                let i = act.gate(0, pre_i);
                let f = match options.coupled {
                    true => R::ONE - i,
                    false => act.gate(0, pre_f),
                };
                let g = act.gate(1, pre_g);
                let sum = f * c_old + i * g;
                let c_new = options.cell_clip.map_or(sum, |b| limit(sum, -b, b));
                c[c_to + j] = c_new;
                let pre_o = pre_o + peephole(2, c_new);
                let o = act.gate(0, pre_o);
                let value = o * act.activate(2, c_new);
                if options.projected {
                    y[inner + j] = value;
                } else {
                    to.store(h, y, j, value);
                }
                if save {
                    let kept = [(pre_i, i), (pre_f, f), (pre_g, g), (pre_o, o)];
                    for (gate, (pre, value)) in kept.into_iter().enumerate() {
                        gates[at + gate * hidden + j] = act.kept(pre, value);
                    }
                    if options.peephole {
                        gates[at + 4 * hidden + j] = c_new;
                        gates[at + 5 * hidden + j] = c_old;
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

fn sequence_forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Forward::new(args, &rows.p)?;
    let hidden = rows.p.hidden as usize;
    let weight = unpacked(call.weight, [4, hidden, hidden], false);
    let mut steps = rows.steps()?.into_iter();
    steps.try_for_each(|rows| call.step(&rows, &weight))
}

/// What a backward kernel binds.
struct Backward<'a, R> {
    act: Gates<R>,
    options: Options<R>,
    weight_p: &'a [R],
    saved_gates: &'a [R],
    saved_c: &'a [R],
    weight: &'a [R],
    dy: &'a [R],
    dgates: &'a mut [R],
    dstate: &'a mut [R],
}

impl<'a, R: Real> Backward<'a, R> {
    fn new(args: &mut Args<'a, R>, p: &StepParams) -> Result<Self> {
        Ok(Self {
            act: Gates::new(args, p)?,
            options: Options::new(args, p)?,
            weight_p: args.read(1)?,
            saved_gates: args.read(2)?,
            saved_c: args.read(3)?,
            weight: args.read(4)?,
            dy: args.read(5)?,
            dgates: args.write(6)?,
            dstate: args.write(7)?,
        })
    }

    /// One step, with W_hh (or W_hr) as PyTorch has it.
    fn step(&mut self, rows: &Rows<'_>, weight: &[R]) -> Result<()> {
        let hidden = rows.p.hidden as usize;
        let product = if self.options.projected {
            projected_product(&rows.p, self.dy, weight)?
        } else {
            gradient_product(rows, self.dgates, weight, LSTM.recurrent_blocks())?
        };
        let Self {
            act,
            options,
            weight_p,
            saved_gates,
            saved_c,
            dy,
            dgates,
            dstate,
            ..
        } = self;
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
                let p = |gate: usize| match options.peephole {
                    true => weight_p[gate * hidden + j],
                    false => R::ZERO,
                };
                let kept = [0, 1, 2, 3].map(|gate| saved_gates[at + gate * hidden + j]);
                let (i, g, o) = (
                    act.value(0, kept[0]),
                    act.value(1, kept[2]),
                    act.value(0, kept[3]),
                );
                let f = match options.coupled {
                    true => R::ONE - i,
                    false => act.value(0, kept[1]),
                };
                let c_new = saved_c[c_to + j];
                let c_old = if zeroed { R::ZERO } else { saved_c[c_from + j] };
                let b = act.activate(2, c_new);
                let d_o = dh * b * act.gate_slope(0, kept[3], o);
                let mut dc = dc_state[unit] + dh * o * act.slope(2, c_new, b) + d_o * p(2);
                if options.cell_clip.is_some_and(|bound| c_new.abs() >= bound) {
                    dc = R::ZERO;
                }
                let i_slope = act.gate_slope(0, kept[0], i);
                let (d_i, d_f) = match options.coupled {
                    true => (dc * (g - c_old) * i_slope, R::ZERO),
                    false => (dc * g * i_slope, dc * c_old * act.gate_slope(0, kept[1], f)),
                };
                dgates[to + j] = d_i;
                dgates[to + hidden + j] = d_f;
                dgates[to + 2 * hidden + j] = dc * i * act.gate_slope(1, kept[2], g);
                dgates[to + 3 * hidden + j] = d_o;
                let dc_old = dc * f + d_i * p(0) + d_f * p(1);
                dc_state[unit] = if zeroed { R::ZERO } else { dc_old };
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

fn sequence_backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let mut call = Backward::new(args, &rows.p)?;
    let hidden = rows.p.hidden as usize;
    let weight = unpacked(call.weight, [4, hidden, hidden], true);
    let mut steps = rows.steps()?.into_iter().rev();
    steps.try_for_each(|rows| call.step(&rows, &weight))
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
