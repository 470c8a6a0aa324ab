//! `dropout`: zeroes some values at random and scales the others up, in place.
//!
//! N. Srivastava et al., *Dropout: a simple way to prevent neural networks from overfitting*, JMLR
//! 15, 2014, in the inverted form that keeps the mean, as PyTorch's. No mask is stored: its bits are
//! a function of the seed, the stream, the clock and the position ([`crate::rng::philox`]), the same
//! on every device, so the backward pass draws them again.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::{clock, index};
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::rng::{philox, unit};
use crate::twin;

/// Values that share one counter.
const BLOCK: usize = 4;

/// `dropout.apply`: see the [module](self).
pub static APPLY: Kernel = Kernel {
    name: "dropout.apply",
    wgsl: include_str!("../../shaders/dropout.wgsl"),
    entry: "apply",
    bindings: &[Binding::read("clock").uint(), Binding::update("values")],
    params_size: size_of::<Params>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    // Those of `philox`.
    rounds: |_| Ok(10 + 1),
    twin: twin!(twin),
    sample: |[m, n, variant], rng| {
        let mut b = Builder::new("dropout");
        let clock = b.uint("clock", &[1], Role::State);
        let values = b.float("values", &[m, n], Role::Saved);
        let args = Dropout {
            values,
            clock,
            probability: [0.3, 0.5, 0.0, 0.9][variant % 4],
            seed: u64::from(rng.word()) << 32 | u64::from(rng.word()),
            stream: variant as u32,
        };
        // Some of the variants leave the ends of the array.
        let all = m * n;
        let start = variant % 3 * (all / 7);
        let end = all - start;
        apply_to(&mut b, args, start, variant % 4 * (end / 5)..end)?;
        Ok(Sample {
            plan: b.finish(),
            data: vec![
                (clock, Data::Uint(vec![rng.word() | 1])),
                (values, Data::Float(rng.uniforms(m * n, -1.0, 1.0))),
            ],
        })
    },
};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    start: u32,
    first: u32,
    end: u32,
    blocks: u32,
    seed: [u32; 2],
    stream: u32,
    p: f32,
    keep: f32,
}

/// The arguments of [`apply`].
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// What is changed, in any shape: activations, or in the backward pass their gradient.
    pub values: BufferId,
    /// `[1]`, integer: another value gives another mask; see [`clock`].
    pub clock: BufferId,
    /// p, the probability with which a value becomes 0: at least 0 and below 1.
    pub probability: f32,
    /// Another seed gives other masks.
    pub seed: u64,
    /// Tells apart the places of a network where values are dropped; the same in both passes.
    pub stream: u32,
}

/// Adds `values[i] = values[i] / (1 − p)` where a random number in [0, 1) is at least p, else 0.
///
/// The backward pass is the same call on the gradient, before the clock advances. A NaN that is
/// dropped becomes 0.
///
/// # Errors
/// If p is not in [0, 1), or `clock` has not one element.
pub fn apply(b: &mut Builder, args: Dropout) -> Result<()> {
    let all = 0..b.buffer(args.values)?.len();
    apply_to(b, args, 0, all)
}

/// The same for some values of an array that begins with element `start` of the buffer: the others stay, and
/// all calls that together have all values drop what one call does.
///
/// # Errors
/// As [`apply`], or if they leave the buffer.
pub(crate) fn apply_to(
    b: &mut Builder,
    args: Dropout,
    start: usize,
    some: Range<usize>,
) -> Result<()> {
    let name = APPLY.name;
    let p = args.probability;
    if !(0.0..1.0).contains(&p) {
        return Err(Error::value(name, "probability", "in [0, 1)", p));
    }
    clock::check(b, name, "clock", args.clock)?;
    let have = b.buffer(args.values)?.len();
    let end = start.saturating_add(some.end);
    if end > have {
        let expected = format!("at least {end} elements long");
        return Err(Error::value(name, "values", expected, have));
    }
    let blocks = some.end.div_ceil(BLOCK) - some.start / BLOCK;
    let len = some.len();
    b.push(Dispatch {
        kernel: &APPLY,
        constants: &[],
        bindings: &[args.clock, args.values],
        params: Params {
            start: index(name, start)?,
            first: index(name, some.start)?,
            end: index(name, some.end)?,
            blocks: index(name, blocks)?,
            seed: [args.seed as u32, (args.seed >> 32) as u32],
            stream: args.stream,
            p,
            keep: (1.0 - f64::from(p)) as f32,
        },
        grid: Grid::Flat(blocks),
        cost: Cost {
            // Word to number, and the quotient; the rounds of Philox are integer work.
            flops: 2 * len as u64,
            bytes: 4 * (2 * len + 1) as u64,
            length: 1,
        },
    })?;
    b.changed(args.values);
    Ok(())
}

fn twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (clock, values) = (args.read_uint(0)?, args.write(1)?);
    let keep = R::from_f32(p.keep);
    let [start, first, end] = [p.start, p.first, p.end].map(|v| v as usize);
    let values = &mut values[start..start + end];
    for block in first / BLOCK..end.div_ceil(BLOCK) {
        let words = philox(p.seed, [block as u32, p.stream, clock[0], 0]);
        for (i, word) in (block * BLOCK..end.min((block + 1) * BLOCK)).zip(words) {
            if i >= first {
                let v = values[i];
                values[i] = if unit(word) >= p.p { v / keep } else { R::ZERO };
            }
        }
    }
    Ok(())
}
