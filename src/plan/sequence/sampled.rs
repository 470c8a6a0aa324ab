//! One kernel of one step with its buffers, for the test inputs of kernels.

use super::backward::work;
use super::buffers::{States, Weights, states, weights};
use super::form::{Way, packing};
use super::group::Group;
use super::run::Run;
use super::spec::Level;
use super::step::{At, LevelGradients, Output};
use super::{BufferId, Builder, Role};
use crate::cell::Pass;
use crate::error::Result;

/// A step of a run whose buffers are in a plan.
pub(crate) struct Sampled<'a> {
    run: &'a Run,
    levels: Vec<Level>,
    nth: usize,
    weights: Weights,
    states: States,
    y: BufferId,
}

impl<'a> Sampled<'a> {
    /// Adds the buffers of the run; the step is the one that its levels run as the `nth`.
    pub(crate) fn new(b: &mut Builder, run: &'a Run, nth: usize) -> Self {
        let spec = run.spec();
        let shape = run.shape(run.call().output, spec.features());
        Self {
            run,
            levels: spec.levels().collect(),
            nth,
            weights: weights(b, spec),
            states: states(b, run),
            y: b.float("y", &shape, Role::Output),
        }
    }

    fn at(&self, reverse: bool) -> At<'_> {
        let number = usize::from(reverse);
        At {
            run: self.run,
            level: &self.levels[number],
            weights: &self.weights.levels[number],
            states: &self.states.levels[number],
            number,
            mask: self.states.mask,
            segment: &self.run.segments(reverse)[0],
        }
    }

    /// Calls with the last level, or with both where they run side by side, and y.
    fn with<T>(
        &self,
        b: &mut Builder,
        of: impl FnOnce(&mut Builder, Group<'_>, Output) -> Result<T>,
    ) -> Result<T> {
        let y = Output::new(self.y, Some(self.run.call().output));
        let last = self.at(self.run.spec().bidirectional);
        let both = [self.at(false), last];
        let levels = if self.run.together() {
            &both[..]
        } else {
            &both[1..]
        };
        let group = Group::new(levels, 0);
        group.tables(b, y, false)?;
        of(b, group, y)
    }

    /// Adds a forward kernel.
    pub(crate) fn forward(&self, b: &mut Builder, pass: &Pass) -> Result<()> {
        let save = self.run.training();
        self.with(b, |b, group, y| {
            group.one_forward(b, pass, self.nth, y, save)
        })
    }

    /// Adds the kernel that runs all steps forward.
    pub(crate) fn sequence_forward(&self, b: &mut Builder) -> Result<()> {
        let save = self.run.training();
        self.with(b, |b, group, y| {
            group.forward(b, 0..self.run.steps(), y, save, false)
        })
    }

    /// Adds the kernel that runs the first steps back, all of them or fewer, over weights that are packed already.
    pub(crate) fn sequence_backward(&self, b: &mut Builder, steps: usize) -> Result<()> {
        self.with(b, |b, group, dy| {
            let work = self.work(b);
            group.back(b, 0..steps, dy, &work)
        })
    }

    /// With weights that are packed already.
    fn work(&self, b: &mut Builder) -> LevelGradients {
        let run = self.run;
        let packed = packing(run.spec(), run.target(), Way::Back);
        LevelGradients {
            packed: packed.map(|p| {
                let shape = [run.lanes() * p.len()];
                b.stored(run.spec().precision, "weight_back", &shape, Role::Scratch)
            }),
            ..work(b, run, &self.levels[0])
        }
    }

    /// Adds a backward kernel.
    pub(crate) fn backward(&self, b: &mut Builder, pass: &Pass) -> Result<()> {
        self.with(b, |b, group, dy| {
            let work = self.work(b);
            group.one_back(b, pass, self.nth, dy, &work)
        })
    }
}
