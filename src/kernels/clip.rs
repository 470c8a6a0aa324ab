//! `clip`: all gradients scaled down together where their global norm is too large.
//!
//! R. Pascanu, T. Mikolov, Y. Bengio, *On the difficulty of training recurrent neural networks*,
//! ICML 2013, § 3.2; with PyTorch's guard: factor = min(1, max_norm / (norm + 10⁻⁶)).

use std::collections::HashSet;

use bytemuck::{Pod, Zeroable};

use super::{index, reduce};
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/clip.wgsl");
const GUARD: f64 = 1e-6;

/// `clip.factor`: the global norm and the factor, from the sums of squares.
pub static FACTOR: Kernel = Kernel {
    name: "clip.factor",
    wgsl: WGSL,
    entry: "factor",
    bindings: &[Binding::read("squares"), Binding::write("result")],
    params_size: size_of::<FactorParams>(),
    workgroup_size: 1,
    workgroup_memory: 0,
    // One for each sum of squares.
    rounds: |told| Ok(u64::from(told.params::<FactorParams>()?.count) + 1),
    twin: twin!(factor_twin),
    // Limits below the norm and, as often, above it or infinite.
    sample: |[count, _, _], rng| {
        let mut b = Builder::new("factor");
        let squares = b.float("squares", &[count], Role::Input);
        let result = b.float("result", &[2], Role::Output);
        let limit = [0.5, 0.01, 100.0, f32::INFINITY][rng.below(4) as usize];
        factor(&mut b, squares, result, limit)?;
        Ok(Sample {
            plan: b.finish(),
            data: vec![(squares, Data::Float(rng.uniforms(count, 0.0, 1.0)))],
        })
    },
};

/// `clip.scale`: a gradient times the factor.
pub static SCALE: Kernel = Kernel {
    name: "clip.scale",
    wgsl: WGSL,
    entry: "scale",
    bindings: &[Binding::read("measured"), Binding::update("gradient")],
    params_size: size_of::<ScaleParams>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: twin!(scale_twin),
    sample: |[m, n, _], rng| {
        let mut b = Builder::new("scale");
        let measured = b.float("measured", &[2], Role::Input);
        let gradient = b.float("gradient", &[m, n], Role::Gradient);
        scale(&mut b, measured, gradient)?;
        Ok(Sample {
            plan: b.finish(),
            data: vec![
                (measured, Data::Float(vec![3.0, rng.unit()])),
                (gradient, Data::Float(rng.uniforms(m * n, -1.0, 1.0))),
            ],
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FactorParams {
    count: u32,
    max_norm: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScaleParams {
    len: u32,
}

/// Adds the scaling of all `gradients` so that their global norm, the root of the sum of all their
/// squares, is at most `max_norm`; an infinite `max_norm` only measures and leaves them alone.
///
/// Returns a buffer `[2]`, an output named `gradient norm`: the norm before scaling, and the factor.
/// A NaN in any gradient makes both NaN, and then all gradients. No gradient at all has the norm 0.
///
/// # Errors
/// If `max_norm` is not above 0, or a buffer is given twice or does not hold floats.
pub fn clip_by_global_norm(
    b: &mut Builder,
    gradients: &[BufferId],
    max_norm: f32,
) -> Result<BufferId> {
    const OP: &str = "clip_by_global_norm";
    if max_norm.is_nan() || max_norm <= 0.0 {
        return Err(Error::value(OP, "max_norm", "above 0", max_norm));
    }
    let mut given = HashSet::new();
    for id in gradients {
        let name = &b.buffer(*id)?.name;
        if !given.insert(id) {
            return Err(Error::value(OP, "gradients", "each buffer once", name));
        }
    }
    let squares = b.float("gradient squares", &[gradients.len()], Role::Scratch);
    for (at, &gradient) in gradients.iter().enumerate() {
        reduce::total_at(b, gradient, (squares, at), true)?;
    }
    let result = b.float("gradient norm", &[2], Role::Output);
    factor(b, squares, result, max_norm)?;
    if max_norm.is_finite() {
        for &gradient in gradients {
            scale(b, result, gradient)?;
        }
    }
    Ok(result)
}

fn factor(b: &mut Builder, squares: BufferId, result: BufferId, max_norm: f32) -> Result<()> {
    let count = b.buffer(squares)?.len();
    b.push(Dispatch {
        kernel: &FACTOR,
        constants: &[],
        bindings: &[squares, result],
        params: FactorParams {
            count: index(FACTOR.name, count)?,
            max_norm,
        },
        grid: Grid::Groups([1, 1, 1]),
        cost: Cost {
            // The sum, a root, the guard, a quotient.
            flops: count as u64 + 3,
            bytes: 4 * (count + 2) as u64,
            length: count.max(1),
        },
    })
}

fn scale(b: &mut Builder, measured: BufferId, gradient: BufferId) -> Result<()> {
    let len = b.buffer(gradient)?.len();
    b.push(Dispatch {
        kernel: &SCALE,
        constants: &[],
        bindings: &[measured, gradient],
        params: ScaleParams {
            len: index(SCALE.name, len)?,
        },
        grid: Grid::Flat(len),
        cost: Cost {
            flops: len as u64,
            bytes: 4 * (2 * len + 1) as u64,
            length: 1,
        },
    })?;
    b.changed(gradient);
    Ok(())
}

fn factor_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: FactorParams = args.params()?;
    let (squares, result) = (args.read(0)?, args.write(1)?);
    let sum: R = squares[..p.count as usize].iter().copied().sum();
    let norm = sum.sqrt();
    let quotient = R::from_f32(p.max_norm) / (norm + R::from_f64(GUARD));
    result[0] = norm;
    // An infinite limit is no limit, also for an infinite norm.
    let unlimited = p.max_norm.is_infinite() && !norm.is_nan();
    result[1] = if unlimited || quotient > R::ONE {
        R::ONE
    } else {
        quotient
    };
    Ok(())
}

fn scale_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: ScaleParams = args.params()?;
    let (measured, gradient) = (args.read(0)?, args.write(1)?);
    for g in &mut gradient[..p.len as usize] {
        *g *= measured[1];
    }
    Ok(())
}
