//! One kernel of one step with its buffers, for the test inputs of kernels.

use super::backward::work;
use super::buffers::{States, Weights, states, weights};
use super::form::{Way, packing};
use super::run::{Run, Segment};
use super::spec::Level;
use super::step::{At, LevelGradients, Moment, Output};
use super::{BufferId, Builder, Role};
use crate::cell::Pass;
use crate::error::Result;

/// A step of a run whose buffers are in a plan.
pub(crate) struct Sampled<'a> {
    run: &'a Run,
    level: Level,
    nth: usize,
    segment: Segment,
    weights: Weights,
    states: States,
    y: BufferId,
}

impl<'a> Sampled<'a> {
    /// Adds the buffers of the run; the step is the one that its last level runs as the `nth`.
    pub(crate) fn new(b: &mut Builder, run: &'a Run, nth: usize) -> Self {
        let spec = run.spec();
        let level = Level {
            layer: 0,
            reverse: spec.bidirectional,
            input_size: spec.input_size,
        };
        let shape = run.shape(run.call().output, spec.features());
        Self {
            run,
            level,
            nth,
            segment: run.segments(level.reverse)[0].clone(),
            weights: weights(b, spec),
            states: states(b, run),
            y: b.float("y", &shape, Role::Output),
        }
    }

    fn at(&self) -> (At<'_>, Moment, Output) {
        let number = usize::from(self.level.reverse);
        let at = At {
            run: self.run,
            level: &self.level,
            weights: &self.weights.levels[number],
            states: &self.states.levels[number],
            number,
            mask: self.states.mask,
            segment: &self.segment,
        };
        let y = Output {
            buffer: self.y,
            order: Some(self.run.call().output),
        };
        (at, at.moments()[self.nth], y)
    }

    /// Adds a forward kernel.
    pub(crate) fn forward(&self, b: &mut Builder, pass: &Pass) -> Result<()> {
        let (at, moment, y) = self.at();
        at.forward(b, pass, moment, y, self.run.training())
    }

    /// Adds the kernel that runs all steps forward.
    pub(crate) fn sequence_forward(&self, b: &mut Builder) -> Result<()> {
        let (at, _, y) = self.at();
        at.sequence_forward(b, y, self.run.training(), false)
    }

    /// Adds the kernel that runs all steps back, over weights that are packed already.
    pub(crate) fn sequence_backward(&self, b: &mut Builder) -> Result<()> {
        let (at, _, dy) = self.at();
        // It shares the table of the forward pass.
        at.push_table(b, dy, false)?;
        let work = self.work(b);
        at.sequence_backward(b, dy, &work)
    }

    /// With weights that are packed already.
    fn work(&self, b: &mut Builder) -> LevelGradients {
        let packed = packing(self.run.spec(), self.run.target(), Way::Back);
        LevelGradients {
            packed: packed.map(|p| {
                let precision = self.run.spec().precision;
                b.stored(precision, "weight_back", &[p.len()], Role::Scratch)
            }),
            ..work(b, self.run, &self.level)
        }
    }

    /// Adds a backward kernel.
    pub(crate) fn backward(&self, b: &mut Builder, pass: &Pass) -> Result<()> {
        let (at, moment, dy) = self.at();
        let work = self.work(b);
        at.backward(b, pass, moment, dy, &work)
    }
}
