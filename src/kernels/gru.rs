//! `gru`: one step of a GRU with the reset gate after the product, forward and back. Equations in
//! `shaders/gru.wgsl`.
//!
//! K. Cho et al., *Learning phrase representations using RNN encoder–decoder*, 2014, in the form
//! of PyTorch and cuDNN; gate order r, z, n.

use super::step::{self, StepParams, WORKGROUP, gradient_product, recurrent_product};
use crate::cell::GRU;
use crate::error::Result;
use crate::kernel::{Args, Binding, Kernel};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/gru.wgsl");

/// `gru.forward`
pub static FORWARD: Kernel = Kernel {
    name: "gru.forward",
    wgsl: WGSL,
    entry: "forward",
    bindings: &[
        Binding::update("gates"),
        Binding::read("weight_hh_t"),
        Binding::read("bias_hh"),
        Binding::update("h"),
    ],
    params_size: size_of::<StepParams>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: 0,
    twin: twin!(forward),
    sample: |size, rng| step::forward_sample(&GRU, size, rng),
};

/// `gru.backward`
pub static BACKWARD: Kernel = Kernel {
    name: "gru.backward",
    wgsl: WGSL,
    entry: "backward",
    bindings: &[
        Binding::read("saved_gates"),
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
    sample: |size, rng| step::backward_sample(&GRU, size, rng),
};

fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: StepParams = args.params()?;
    let save = args.constant("SAVE")? != 0;
    let (gates, weight_hh_t) = (args.write(0)?, args.read(1)?);
    let (bias_hh, h) = (args.read(2)?, args.write(3)?);
    let (batch, hidden) = (p.batch as usize, p.hidden as usize);
    let product = recurrent_product(&p, h, weight_hh_t, 3)?;
    for row in 0..batch {
        for j in 0..hidden {
            let at = p.gates_start as usize + row * p.gates_row as usize + j;
            let recurrent = |gate: usize| {
                let unit = gate * hidden + j;
                product[row * 3 * hidden + unit] + bias_hh[unit]
            };
            let r = (gates[at] + recurrent(0)).sigmoid();
            let z = (gates[at + hidden] + recurrent(1)).sigmoid();
            let q = recurrent(2);
            let n = (gates[at + 2 * hidden] + r * q).tanh();
            let unit = row * hidden + j;
            h[p.h_to as usize + unit] = (R::ONE - z) * n + z * h[p.h_from as usize + unit];
            if save {
                for (slot, value) in [r, z, n, q].into_iter().enumerate() {
                    gates[at + slot * hidden] = value;
                }
            }
        }
    }
    Ok(())
}

fn backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: StepParams = args.params()?;
    let (saved_gates, saved_h, weight_hh) = (args.read(0)?, args.read(1)?, args.read(2)?);
    let (dy, dgates, dstate) = (args.read(3)?, args.write(4)?, args.write(5)?);
    let (batch, hidden) = (p.batch as usize, p.hidden as usize);
    let product = gradient_product(&p, dgates, weight_hh, GRU.recurrent_gradient)?;
    let one = R::ONE;
    for row in 0..batch {
        for j in 0..hidden {
            let unit = row * hidden + j;
            let at = p.gates_start as usize + row * p.gates_row as usize + j;
            let [r, z, n, q] = [0, 1, 2, 3].map(|slot| saved_gates[at + slot * hidden]);
            let dy_at = p.dy_start as usize + row * p.dy_row as usize + j;
            let dh = dstate[unit] + dy[dy_at] + product[unit];
            let dn = dh * (one - z) * (one - n * n);
            dgates[at] = dn * q * r * (one - r);
            dgates[at + hidden] = dh * (saved_h[p.h_from as usize + unit] - n) * z * (one - z);
            dgates[at + 2 * hidden] = dn;
            dgates[at + 3 * hidden] = dn * r;
            dstate[unit] = dh * z;
        }
    }
    Ok(())
}
