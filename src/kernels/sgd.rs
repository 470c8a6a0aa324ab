//! `sgd`: stochastic gradient descent with momentum and weight decay.
//!
//! As PyTorch's `SGD` without dampening and Nesterov's variant: v ← μ v + (g + λ w), w ← w − η v.

use bytemuck::{Pod, Zeroable};

use super::{clock, index};
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::twin;

/// `sgd.step`: see the [module](self).
pub static STEP: Kernel = Kernel {
    name: "sgd.step",
    wgsl: include_str!("../../shaders/sgd.wgsl"),
    entry: "step",
    bindings: &[
        Binding::update("weight"),
        Binding::read("gradient"),
        Binding::update("velocity"),
        Binding::read("rate"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(twin),
    // Without momentum the velocity starts as NaN, since it must not be read.
    sample: |[m, n, variant], rng| {
        let mut b = Builder::new("sgd");
        let weight = b.float("weight", &[m, n], Role::Weight);
        let gradient = b.float("gradient", &[m, n], Role::Gradient);
        let velocity = b.float("velocity", &[m, n], Role::State);
        let rate = b.float("rate", &[1], Role::Input);
        let momentum = [0.0, 0.9][variant % 2];
        let args = Sgd {
            weight,
            gradient,
            velocity,
            rate,
            momentum,
            weight_decay: [0.0, 0.01, 0.1][variant % 3],
        };
        step(&mut b, args)?;
        // A large rate, so that an error in the step shows in the weight; and gradients below
        // 0, so that the step does not cancel the weight.
        let mut data = vec![
            (weight, Data::Float(rng.uniforms(m * n, 0.5, 1.5))),
            (gradient, Data::Float(rng.uniforms(m * n, -1.0, 0.0))),
            (rate, Data::Float(vec![0.5])),
        ];
        if momentum != 0.0 {
            data.push((velocity, Data::Float(rng.uniforms(m * n, -1.0, 0.0))));
        }
        Ok(Sample {
            plan: b.finish(),
            data,
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    len: u32,
    momentum: f32,
    weight_decay: f32,
}

/// The arguments of [`step`]. The first three have the same shape.
#[derive(Debug, Clone, Copy)]
pub struct Sgd {
    /// w
    pub weight: BufferId,
    /// g
    pub gradient: BufferId,
    /// v, zeros before the first step; written, but not read, without momentum.
    pub velocity: BufferId,
    /// `[1]`: η, the learning rate.
    pub rate: BufferId,
    /// μ; 0 for plain gradient descent.
    pub momentum: f32,
    /// λ, the factor of the L2 penalty.
    pub weight_decay: f32,
}

/// Adds one step for one tensor of weights.
///
/// # Errors
/// If the shapes differ, `rate` has not one element, or μ or λ is negative or not finite.
pub fn step(b: &mut Builder, args: Sgd) -> Result<()> {
    let name = STEP.name;
    not_negative(name, "momentum", args.momentum)?;
    not_negative(name, "weight_decay", args.weight_decay)?;
    same_shape(b, name, args.weight, "gradient", args.gradient)?;
    same_shape(b, name, args.weight, "velocity", args.velocity)?;
    clock::check(b, name, "rate", args.rate)?;
    let len = b.buffer(args.weight)?.len();
    // Without momentum the old velocity is neither read nor multiplied.
    let (flops, touched) = if args.momentum == 0.0 { (4, 4) } else { (6, 5) };
    b.push(Dispatch {
        kernel: &STEP,
        constants: &[],
        bindings: &[args.weight, args.gradient, args.velocity, args.rate],
        params: Params {
            len: index(name, len)?,
            momentum: args.momentum,
            weight_decay: args.weight_decay,
        },
        grid: Grid::Flat(len),
        cost: Cost {
            flops: flops * len as u64,
            bytes: 4 * (touched * len as u64 + 1),
            length: 1,
        },
    })?;
    b.changed(args.weight);
    if args.momentum != 0.0 {
        b.changed(args.velocity);
    }
    Ok(())
}

/// Refuses an option that an optimizer cannot have.
pub(super) fn not_negative(op: &'static str, arg: &'static str, value: f32) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::value(op, arg, "finite and not negative", value))
}

/// Refuses a buffer that has not the shape of the weights.
pub(super) fn same_shape(
    b: &Builder,
    op: &'static str,
    weight: BufferId,
    arg: &'static str,
    other: BufferId,
) -> Result<()> {
    let (expected, got) = (&b.buffer(weight)?.shape, &b.buffer(other)?.shape);
    if expected == got {
        return Ok(());
    }
    Err(Error::shape(op, arg, expected, got))
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (weight, gradient) = (args.write(0)?, args.read(1)?);
    let (velocity, rate) = (args.write(2)?, args.read(3)?);
    let (momentum, decay) = (R::from_f32(p.momentum), R::from_f32(p.weight_decay));
    let cells = weight.iter_mut().zip(gradient).zip(velocity);
    for ((w, &g), v) in cells.take(p.len as usize) {
        let old = if p.momentum == 0.0 {
            R::ZERO
        } else {
            momentum * *v
        };
        *v = old + (g + decay * *w);
        *w -= rate[0] * *v;
    }
    Ok(())
}
