//! `rnn`: one step of a plain recurrent network, forward and back. Equations in `shaders/rnn.wgsl`.
//!
//! J. Elman, *Finding structure in time*, 1990; with tanh, max(x, 0) or another activation.

use super::gates::Gates;
use super::sample;
use super::step::{self, Forward, Rows, gradient_product};
use crate::cell::{RNN_RELU, RNN_TANH};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/rnn.wgsl");

/// `rnn.forward`
pub static FORWARD: Kernel = step::kernel(
    "rnn.forward",
    WGSL,
    &[
        step::MASK,
        Binding::update("gates"),
        Binding::read("weight_hh_t"),
        Binding::read("bias_hh"),
        Binding::update("h"),
        Binding::update("y"),
    ],
    twin!(forward),
    |size, rng| sample::forward(&[&RNN_TANH, &RNN_RELU], 0, size, rng),
);

/// `rnn.backward`
pub static BACKWARD: Kernel = step::kernel(
    "rnn.backward",
    WGSL,
    &[
        step::MASK,
        Binding::read("saved_gates"),
        Binding::read("weight_hh"),
        Binding::read("dy"),
        Binding::update("dgates"),
        Binding::update("dstate"),
    ],
    twin!(backward),
    |size, rng| sample::backward(&[&RNN_TANH, &RNN_RELU], 0, size, rng),
);

fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let act = Gates::new(args, &rows.p)?;
    let save = args.constant("SAVE")? != 0;
    let (gates, weight_hh_t, bias_hh) = (args.write(1)?, args.read(2)?, args.read(3)?);
    let (h, y) = (args.write(4)?, args.write(5)?);
    let hidden = rows.p.hidden as usize;
    let products = Forward {
        gates,
        weight_hh_t,
        operand: h,
        size: hidden,
        of_gates: 1,
        wanted: 0..1,
    }
    .products(&rows, |n| rows.h_before(n))?;
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
                gates[at + j] = act.kept(pre, value);
            }
        }
    }
    Ok(())
}

fn backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let act = Gates::new(args, &rows.p)?;
    let (saved_gates, weight_hh, dy) = (args.read(1)?, args.read(2)?, args.read(3)?);
    let (dgates, dstate) = (args.write(4)?, args.write(5)?);
    let hidden = rows.p.hidden as usize;
    let product = gradient_product(&rows, dgates, weight_hh, RNN_TANH.recurrent_blocks())?;
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
