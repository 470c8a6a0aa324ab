//! What the twins of step kernels share of a cell's gates: `shaders/shared/gates.wgsl` on the CPU.

use super::step::StepParams;
use crate::activation::{Function, apply, limit, slope};
use crate::error::{Error, Result};
use crate::kernel::Args;
use crate::real::Real;

/// The most activations that a cell has.
pub const ACTIVATIONS: usize = 3;

/// The constants of `shaders/shared/gates.wgsl` that name a cell's activations.
pub(crate) const NAMES: [&str; ACTIVATIONS] = ["ACTIVATION_0", "ACTIVATION_1", "ACTIVATION_2"];

/// The activations of a cell's gates and what is kept of a gate, as a step's constants and parameters
/// say. A gate is kept activated where its slope follows from the value, else (`RAW`) as its
/// pre-activation.
#[derive(Debug, Clone, Copy)]
pub struct Gates<R> {
    functions: [(Function, R, R); ACTIVATIONS],
    raw: bool,
    clip: Option<R>,
    half: bool,
}

/// Whether a step stores gates as 16-bit floats, which kernels without that choice do not.
pub(crate) fn stores_halves<R>(args: &Args<'_, R>) -> bool {
    args.told.constants.contains(&("GATES_HALF", 1))
}

impl<R: Real> Gates<R> {
    /// Reads constants and parameters of a step.
    ///
    /// # Errors
    /// If the step does not set them.
    pub fn new(args: &Args<'_, R>, p: &StepParams) -> Result<Self> {
        let mut functions = [(Function::Sigmoid, R::ONE, R::ZERO); ACTIVATIONS];
        for ((function, name), numbers) in functions.iter_mut().zip(NAMES).zip(p.activations) {
            let number = args.constant(name)?;
            let known = Function::ALL.get(number as usize).copied();
            let [alpha, alpha_rest, beta, beta_rest] = numbers;
            *function = (
                known.ok_or_else(|| Error::value("gates", name, "a known function", number))?,
                join([alpha, alpha_rest]),
                join([beta, beta_rest]),
            );
        }
        let clips = args.constant("CLIP")? != 0;
        Ok(Self {
            functions,
            raw: args.constant("RAW")? != 0,
            clip: clips.then(|| join(p.clip)),
            half: stores_halves(args),
        })
    }

    /// True if the activations are these, nothing is clipped and gates are kept activated.
    pub(crate) fn are(&self, functions: &[Function]) -> bool {
        let same = functions
            .iter()
            .zip(&self.functions)
            .all(|(a, b)| *a == b.0);
        same && !self.raw && self.clip.is_none()
    }

    /// A value as the kernel stores it in `gates`: rounded where these are 16-bit floats.
    #[inline]
    pub fn stored(&self, value: R) -> R {
        if self.half { value.to_half() } else { value }
    }

    /// The value of an activation.
    #[inline]
    pub fn activate(&self, which: usize, x: R) -> R {
        let (function, alpha, beta) = self.functions[which];
        apply(function, alpha, beta, x)
    }

    /// The slope of an activation at x, where its value is y.
    #[inline]
    pub fn slope(&self, which: usize, x: R, y: R) -> R {
        let (function, alpha, beta) = self.functions[which];
        slope(function, alpha, beta, x, y)
    }

    /// A gate's value from its pre-activation, which is clipped first.
    #[inline]
    pub fn gate(&self, which: usize, pre: R) -> R {
        let clipped = self.clip.map_or(pre, |bound| limit(pre, -bound, bound));
        self.activate(which, clipped)
    }

    /// What is kept of a gate.
    #[inline]
    pub fn kept(&self, pre: R, value: R) -> R {
        if self.raw { pre } else { value }
    }

    /// A gate's value from what was kept of it.
    #[inline]
    pub fn value(&self, which: usize, kept: R) -> R {
        if self.raw {
            self.gate(which, kept)
        } else {
            kept
        }
    }

    /// The slope of a gate in its pre-activation, from what was kept and its value: 0 where the
    /// pre-activation was clipped.
    #[inline]
    pub fn gate_slope(&self, which: usize, kept: R, value: R) -> R {
        match self.clip {
            Some(bound) if kept.abs() > bound => R::ZERO,
            _ => self.slope(which, kept, value),
        }
    }
}

/// A number as a shader's `f32` and what double precision has beyond it.
pub(crate) fn split(value: f64) -> [f32; 2] {
    let first = value as f32;
    [first, (value - f64::from(first)) as f32]
}

/// The number again: in `f32` the first part alone.
pub(crate) fn join<R: Real>([first, rest]: [f32; 2]) -> R {
    R::from_f64(f64::from(first) + f64::from(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_precision() {
        for value in [0.35, -1.0 / 3.0, 1e-12, 12_345.678_9] {
            let back: f64 = join(split(value));
            assert!((back - value).abs() <= value.abs() * 2e-15, "{value}");
            assert_eq!(join::<f32>(split(value)), value as f32);
        }
    }
}
