//! `rnn`: one step of a plain recurrent network, forward and back. Equations in `shaders/rnn.wgsl`.
//!
//! J. Elman, *Finding structure in time*, 1990; with tanh or max(x, 0).

use super::step::{self, StepParams, WORKGROUP, gradient_product, recurrent_product};
use crate::cell::{RNN_RELU, RNN_TANH};
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::kernels::gemm::Activation;
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/rnn.wgsl");

/// `rnn.forward`
pub static FORWARD: Kernel = Kernel {
    name: "rnn.forward",
    wgsl: WGSL,
    entry: "forward",
    bindings: &[
        Binding::read("gates"),
        Binding::read("weight_hh_t"),
        Binding::read("bias_hh"),
        Binding::update("h"),
    ],
    params_size: size_of::<StepParams>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: 0,
    twin: twin!(forward),
    sample: |size, rng| {
        let cell = [&RNN_TANH, &RNN_RELU][rng.below(2) as usize];
        step::forward_sample(cell, size, rng)
    },
};

/// `rnn.backward`
pub static BACKWARD: Kernel = Kernel {
    name: "rnn.backward",
    wgsl: WGSL,
    entry: "backward",
    bindings: &[
        Binding::read("saved_h"),
        Binding::read("weight_hh"),
        Binding::read("dy"),
        Binding::update("dgates"),
        Binding::update("dstate"),
    ],
    params_size: size_of::<StepParams>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: 0,
    twin: twin!(backward),
    sample: |size, rng| {
        let cell = [&RNN_TANH, &RNN_RELU][rng.below(2) as usize];
        step::backward_sample(cell, size, rng)
    },
};

fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: StepParams = args.params()?;
    let activation = if args.constant("RELU")? != 0 {
        Activation::Relu
    } else {
        Activation::Tanh
    };
    let (gates, weight_hh_t) = (args.read(0)?, args.read(1)?);
    let (bias_hh, h) = (args.read(2)?, args.write(3)?);
    let (batch, hidden) = (p.batch as usize, p.hidden as usize);
    let product = recurrent_product(&p, h, weight_hh_t, 1)?;
    for n in 0..batch {
        let at = p.gates_start as usize + n * p.gates_row as usize;
        for j in 0..hidden {
            let pre = gates[at + j] + product[n * hidden + j] + bias_hh[j];
            h[p.h_to as usize + n * hidden + j] = activation.apply(pre);
        }
    }
    Ok(())
}

fn backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: StepParams = args.params()?;
    let relu = args.constant("RELU")? != 0;
    let (saved_h, weight_hh, dy) = (args.read(0)?, args.read(1)?, args.read(2)?);
    let (dgates, dstate) = (args.write(3)?, args.write(4)?);
    let (batch, hidden) = (p.batch as usize, p.hidden as usize);
    let product = gradient_product(&p, dgates, weight_hh, RNN_TANH.recurrent_gradient)?;
    for n in 0..batch {
        for j in 0..hidden {
            let unit = n * hidden + j;
            let value = saved_h[p.h_to as usize + unit];
            let dy_at = p.dy_start as usize + n * p.dy_row as usize + j;
            let dh = dstate[unit] + dy[dy_at] + product[unit];
            let slope = match relu {
                true if value <= R::ZERO => R::ZERO,
                true => R::ONE,
                false => R::ONE - value * value,
            };
            dgates[p.gates_start as usize + n * p.gates_row as usize + j] = dh * slope;
            dstate[unit] = R::ZERO;
        }
    }
    Ok(())
}
