//! `adam`: Adam and AdamW.
//!
//! D. Kingma, J. Ba, *Adam: a method for stochastic optimization*, ICLR 2015, algorithm 1, with
//! weight decay as an L2 penalty; or I. Loshchilov, F. Hutter, *Decoupled weight decay
//! regularization*, ICLR 2019, algorithm 2. Both as PyTorch has them: decoupled decay is multiplied
//! by the learning rate.

use bytemuck::{Pod, Zeroable};

use super::sgd::{not_negative, same_shape};
use super::{clock, index};
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::rng::Rng;
use crate::twin;

/// `adam.step`: see the [module](self).
pub static STEP: Kernel = Kernel {
    name: "adam.step",
    wgsl: include_str!("../../shaders/adam.wgsl"),
    entry: "step",
    bindings: &[
        Binding::update("weight"),
        Binding::read("gradient"),
        Binding::update("m"),
        Binding::update("v"),
        Binding::read("rate"),
        Binding::read("clock").uint(),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(twin),
    sample,
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    len: u32,
    beta: [f32; 2],
    /// 1 − β.
    rest: [f32; 2],
    ln_beta: [f32; 2],
    epsilon: f32,
    weight_decay: f32,
}

/// The arguments of [`step`]. The first four have the same shape.
#[derive(Debug, Clone, Copy)]
pub struct Adam {
    /// w
    pub weight: BufferId,
    /// g
    pub gradient: BufferId,
    /// The mean of gradients, zeros before the first step.
    pub m: BufferId,
    /// The mean of their squares, zeros before the first step.
    pub v: BufferId,
    /// `[1]`: η, the learning rate.
    pub rate: BufferId,
    /// `[1]`, integer: t, 1 in the first step; see [`clock`].
    pub clock: BufferId,
    /// Decay of the mean of gradients; 0.9 is usual.
    pub beta1: f64,
    /// Decay of the mean of their squares; 0.999 is usual.
    pub beta2: f64,
    /// Added to the root in the denominator; 1e-8 is usual.
    pub epsilon: f32,
    /// λ, the factor of the decay.
    pub weight_decay: f32,
    /// True for AdamW.
    pub decoupled: bool,
}

/// Adds one step for one tensor of weights.
///
/// The clock must have been advanced to t ≥ 1 before; at t = 0 the corrected means are 0 / 0, and
/// the weights become NaN.
///
/// # Errors
/// If the shapes differ, `rate` or `clock` has not one element, a β is not in [0, 1), or ε or λ is
/// negative or not finite.
pub fn step(b: &mut Builder, args: Adam) -> Result<()> {
    let name = STEP.name;
    let betas = [args.beta1, args.beta2];
    for (arg, beta) in ["beta1", "beta2"].into_iter().zip(betas) {
        if !(0.0..1.0).contains(&beta) {
            return Err(Error::value(name, arg, "in [0, 1)", beta));
        }
    }
    not_negative(name, "epsilon", args.epsilon)?;
    not_negative(name, "weight_decay", args.weight_decay)?;
    for (arg, id) in [("gradient", args.gradient), ("m", args.m), ("v", args.v)] {
        same_shape(b, name, args.weight, arg, id)?;
    }
    clock::check(b, name, "rate", args.rate)?;
    clock::check(b, name, "clock", args.clock)?;
    let len = b.buffer(args.weight)?.len();
    b.push(Dispatch {
        kernel: &STEP,
        constants: &[("DECOUPLED", u32::from(args.decoupled))],
        bindings: &[
            args.weight,
            args.gradient,
            args.m,
            args.v,
            args.rate,
            args.clock,
        ],
        params: Params {
            len: index(name, len)?,
            beta: betas.map(|beta| beta as f32),
            rest: betas.map(|beta| (1.0 - beta) as f32),
            // Below e⁻¹⁰⁰ the correction is 1 in every step; an infinity would be in the way.
            ln_beta: betas.map(|beta| beta.ln().max(-100.0) as f32),
            epsilon: args.epsilon,
            weight_decay: args.weight_decay,
        },
        grid: Grid::Flat(len),
        cost: Cost {
            // Decay 2, m 3, v 4, and 6 for the weight; the corrections are the same for all.
            flops: 15 * len as u64,
            bytes: 4 * (7 * len as u64 + 2),
            length: 1,
        },
    })?;
    for id in [args.weight, args.m, args.v] {
        b.changed(id);
    }
    Ok(())
}

fn sample([rows, cols, variant]: [usize; 3], rng: &mut Rng) -> Result<Sample> {
    let mut b = Builder::new("adam");
    let shape = [rows, cols];
    let args = Adam {
        weight: b.float("weight", &shape, Role::Weight),
        gradient: b.float("gradient", &shape, Role::Gradient),
        m: b.float("m", &shape, Role::State),
        v: b.float("v", &shape, Role::State),
        rate: b.float("rate", &[1], Role::Input),
        clock: b.uint("clock", &[1], Role::State),
        beta1: [0.9, 0.0, 0.99][variant % 3],
        beta2: [0.999, 0.9][variant % 2],
        epsilon: 1e-8,
        weight_decay: [0.01, 0.0][variant % 2],
        decoupled: rng.below(2) == 1,
    };
    step(&mut b, args)?;
    let t = [1, 2, 30, 1_000, 1_000_000][rng.below(5) as usize];
    // A large rate, so that an error in the step shows in the weight; and gradients below 0,
    // so that the step does not cancel the weight.
    let mut floats = |low, high| Data::Float(rng.uniforms(rows * cols, low, high));
    Ok(Sample {
        data: vec![
            (args.weight, floats(0.5, 1.5)),
            (args.gradient, floats(-1.0, 0.0)),
            (args.m, floats(-1.0, 0.0)),
            (args.v, floats(0.0, 1.0)),
            (args.rate, Data::Float(vec![0.5])),
            (args.clock, Data::Uint(vec![t])),
        ],
        plan: b.finish(),
    })
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let decoupled = args.constant("DECOUPLED")? != 0;
    let (weight, gradient) = (args.write(0)?, args.read(1)?);
    let (m, v) = (args.write(2)?, args.write(3)?);
    let (rate, clock) = (args.read(4)?[0], args.read_uint(5)?[0]);
    let [beta1, beta2] = p.beta.map(R::from_f32);
    let [rest1, rest2] = p.rest.map(R::from_f32);
    let (epsilon, decay) = (R::from_f32(p.epsilon), R::from_f32(p.weight_decay));
    // From 1 − β, and not from the logarithm that the shader is given, so that a wrong one shows.
    let correction = |rest: f32| {
        let ln = (1.0 - f64::from(rest)).ln().max(-100.0);
        R::from_f64(-(f64::from(clock) * ln).exp_m1())
    };
    let [c1, c2] = p.rest.map(correction);
    let root = c2.sqrt();
    let cells = weight.iter_mut().zip(gradient).zip(m).zip(v);
    for (((w, &g), m), v) in cells.take(p.len as usize) {
        let mut g = g;
        if decoupled {
            *w -= rate * decay * *w;
        } else {
            g += decay * *w;
        }
        *m = beta1 * *m + rest1 * g;
        *v = beta2 * *v + rest2 * g * g;
        *w -= rate * (*m / c1) / (v.sqrt() / root + epsilon);
    }
    Ok(())
}
