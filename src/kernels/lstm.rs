//! `lstm`: one step of an LSTM, forward and back. Equations in `shaders/lstm.wgsl`.
//!
//! S. Hochreiter and J. Schmidhuber, *Long short-term memory*, 1997, with the forget gate of
//! F. Gers et al., 2000; gate order i, f, g, o as in PyTorch.

use super::step::{self, ROWS, StepParams, WORKGROUP, gradient_product, recurrent_product};
use crate::cell::LSTM;
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/lstm.wgsl");

/// `lstm.forward`
pub static FORWARD: Kernel = Kernel {
    name: "lstm.forward",
    wgsl: WGSL,
    entry: "forward",
    bindings: &[
        Binding::update("gates"),
        Binding::read("weight_hh_t"),
        Binding::read("bias_hh"),
        Binding::update("h"),
        Binding::update("c"),
    ],
    params_size: size_of::<StepParams>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: 0,
    twin: twin!(forward),
    sample: |size, rng| step::forward_sample(&LSTM, size, rng),
};

/// `lstm.backward`
pub static BACKWARD: Kernel = Kernel {
    name: "lstm.backward",
    wgsl: WGSL,
    entry: "backward",
    bindings: &[
        Binding::read("saved_gates"),
        Binding::read("saved_c"),
        Binding::read("weight_hh"),
        Binding::read("dy"),
        Binding::update("dgates"),
        Binding::update("dstate"),
    ],
    params_size: size_of::<StepParams>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: 0,
    twin: twin!(backward),
    sample: |size, rng| step::backward_sample(&LSTM, size, rng),
};

const _: () = assert!(ROWS == 4, "the shader names four rows");

fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: StepParams = args.params()?;
    let save = args.constant("SAVE")? != 0;
    let (gates, weight_hh_t, bias_hh) = (args.write(0)?, args.read(1)?, args.read(2)?);
    let (h, c) = (args.write(3)?, args.write(4)?);
    let (batch, hidden) = (p.batch as usize, p.hidden as usize);
    let product = recurrent_product(&p, h, weight_hh_t, 4)?;
    for n in 0..batch {
        for j in 0..hidden {
            let at = p.gates_start as usize + n * p.gates_row as usize + j;
            let pre = |gate: usize| {
                let unit = gate * hidden + j;
                gates[at + gate * hidden] + product[n * 4 * hidden + unit] + bias_hh[unit]
            };
            let (i, f, g, o) = (
                pre(0).sigmoid(),
                pre(1).sigmoid(),
                pre(2).tanh(),
                pre(3).sigmoid(),
            );
            let unit = n * hidden + j;
            let c_new = f * c[p.c_from as usize + unit] + i * g;
            c[p.c_to as usize + unit] = c_new;
            h[p.h_to as usize + unit] = o * c_new.tanh();
            if save {
                for (gate, value) in [i, f, g, o].into_iter().enumerate() {
                    gates[at + gate * hidden] = value;
                }
            }
        }
    }
    Ok(())
}

fn backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: StepParams = args.params()?;
    let (saved_gates, saved_c, weight_hh) = (args.read(0)?, args.read(1)?, args.read(2)?);
    let (dy, dgates, dstate) = (args.read(3)?, args.write(4)?, args.write(5)?);
    let (batch, hidden) = (p.batch as usize, p.hidden as usize);
    let product = gradient_product(&p, dgates, weight_hh, LSTM.recurrent_gradient)?;
    let (dh_state, dc_state) = dstate.split_at_mut(batch * hidden);
    let one = R::ONE;
    for n in 0..batch {
        for j in 0..hidden {
            let unit = n * hidden + j;
            let at = p.gates_start as usize + n * p.gates_row as usize + j;
            let [i, f, g, o] = [0, 1, 2, 3].map(|gate| saved_gates[at + gate * hidden]);
            let tanh_c = saved_c[p.c_to as usize + unit].tanh();
            let dy_at = p.dy_start as usize + n * p.dy_row as usize + j;
            let dh = dh_state[unit] + dy[dy_at] + product[unit];
            let dc = dc_state[unit] + dh * o * (one - tanh_c * tanh_c);
            dgates[at] = dc * g * i * (one - i);
            dgates[at + hidden] = dc * saved_c[p.c_from as usize + unit] * f * (one - f);
            dgates[at + 2 * hidden] = dc * i * (one - g * g);
            dgates[at + 3 * hidden] = dh * tanh_c * o * (one - o);
            dh_state[unit] = R::ZERO;
            dc_state[unit] = dc * f;
        }
    }
    Ok(())
}
