//! The steps of some levels as dispatches: of one level, or of several side by side.
//!
//! Such levels are counted in moments: as the moment `m` each runs its step `m − k·lag`, where it is the k-th
//! of them, if it has that step. The way back is the same moments from the last to the first.

use std::ops::Range;

use super::buffers::{blocks_back, blocks_forward};
use super::form::{Shape, Way, packing, shaped};
use super::run::Run;
use super::step::{At, LevelGradients, Moment, Output, bindings, constants, cost, sum};
use super::strategy::Strategy;
use super::team::Team;
use super::{BufferId, Builder};
use crate::cell::Pass;
use crate::error::{Error, Result};
use crate::kernel::Constant;
use crate::kernels::index;
use crate::kernels::step::rounds::AllSteps;
use crate::kernels::step::{Moment as Entry, StepParams};
use crate::plan::{DeviceKind, Dispatch, Grid, MAX_GROUPS, Portion};

/// Levels whose steps share dispatches, in the order of their lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group<'a> {
    levels: &'a [At<'a>],
    lag: usize,
}

/// Moments in which the same levels have steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) moments: Range<usize>,
    pub(crate) levels: Range<usize>,
}

/// Which way steps are added, and over what.
#[derive(Debug, Clone, Copy)]
enum Work<'a> {
    /// `save` says whether the backward pass will need them, `again` whether they ran before.
    Forward { y: Output, save: bool, again: bool },
    /// Back.
    Back {
        dy: Output,
        work: &'a LevelGradients,
    },
}

impl Work<'_> {
    fn way(self) -> Way {
        match self {
            Self::Forward { .. } => Way::Forward,
            Self::Back { .. } => Way::Back,
        }
    }

    fn output(self) -> Output {
        match self {
            Self::Forward { y, .. } => y,
            Self::Back { dy, .. } => dy,
        }
    }

    fn save(self) -> bool {
        match self {
            Self::Forward { save, .. } => save,
            Self::Back { .. } => true,
        }
    }

    fn again(self) -> bool {
        matches!(self, Self::Forward { again: true, .. })
    }
}

impl<'a> Group<'a> {
    /// Levels of which each runs `lag` steps behind the one before; without a level there is nothing to add.
    pub(crate) fn new(levels: &'a [At<'a>], lag: usize) -> Self {
        Self { levels, lag }
    }

    /// All moments, cut where a level begins or ends, and at every multiple of the lag.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let steps = self.steps();
        let ends = (0..self.levels.len()).map(|k| steps + k * self.lag);
        let last = ends.clone().max().unwrap_or(0);
        let multiples = (0..last).step_by(self.lag.max(1)).take(match self.lag {
            0 => 1,
            _ => usize::MAX,
        });
        let mut cuts: Vec<usize> = multiples.chain(ends).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let span = |cut: &[usize]| Span {
            moments: cut[0]..cut[1],
            levels: self.running(cut[0]),
        };
        cuts.windows(2).map(span).collect()
    }

    /// The levels that have a step at a moment.
    fn running(&self, moment: usize) -> Range<usize> {
        let (steps, all) = (self.steps(), self.levels.len());
        if self.lag == 0 {
            return 0..if moment < steps { all } else { 0 };
        }
        // From the first that is not yet through to the last that has begun.
        let first = (moment + 1).saturating_sub(steps).div_ceil(self.lag);
        first.min(all)..all.min(moment / self.lag + 1)
    }

    fn steps(&self) -> usize {
        self.levels.first().map_or(0, |at| at.segment.steps.len())
    }

    /// The step of the k-th level at a moment.
    fn at(&self, k: usize, moment: usize) -> Option<(&'a At<'a>, Moment)> {
        let at = self.levels.get(k)?;
        Some((at, at.moment(moment.checked_sub(k * self.lag)?)?))
    }

    /// The steps of all levels at a moment.
    fn steps_at(&self, moment: usize) -> impl Iterator<Item = (&'a At<'a>, Moment)> {
        self.running(moment).filter_map(move |k| self.at(k, moment))
    }

    /// Writes what kernels read that run several steps, or those of several levels.
    pub(crate) fn tables(&self, b: &mut Builder, y: Output, again: bool) -> Result<()> {
        for at in self.levels {
            if self.levels.len() > 1 || at.run.strategy() == Strategy::Sequence {
                b.contents(at.mask, at.table(again), at.entries(y)?)?;
            }
        }
        Ok(())
    }

    /// Adds the steps of some moments in which the same levels have steps, over the tables that
    /// [`Self::tables`] wrote; `save` says whether the backward pass will need them, `again` whether they ran
    /// before and their output is not wanted.
    pub(crate) fn forward(
        &self,
        b: &mut Builder,
        moments: Range<usize>,
        y: Output,
        save: bool,
        again: bool,
    ) -> Result<()> {
        self.add(b, moments, Work::Forward { y, save, again })
    }

    /// Adds them back, over the tables of the forward pass.
    pub(crate) fn back(
        &self,
        b: &mut Builder,
        moments: Range<usize>,
        dy: Output,
        work: &LevelGradients,
    ) -> Result<()> {
        self.add(b, moments, Work::Back { dy, work })
    }

    /// How many steps a dispatch may have: no more than a submission, and than an invocation's loop may have rounds.
    fn steps_of_dispatch(&self, run: &Run, pass: &Pass, team: &Team) -> usize {
        let (spec, target) = (run.spec(), run.target());
        if target.kind == DeviceKind::Cpu {
            return target.dispatch_steps.max(1);
        }
        let (portion, each) = (
            Portion::default(),
            cost(spec, pass, run.batch(), run.stored()),
        );
        // The weights are read once.
        let weights = spec
            .precision
            .element()
            .bytes(spec.width() * spec.output_size()) as u64;
        let levels = self.levels.len() as u64;
        let affordable = [
            (portion.flops, each.flops),
            (portion.bytes, each.bytes.saturating_sub(weights)),
        ]
        .map(|(all, of_step)| all / of_step.saturating_mul(levels).max(1));
        let loops = AllSteps::of(&team.constants());
        let most = (target.dispatch_steps.max(1) as u64).min(loops.most_steps(target.loop_rounds));
        affordable[0].min(affordable[1]).clamp(1, most) as usize
    }

    fn add(&self, b: &mut Builder, moments: Range<usize>, work: Work<'_>) -> Result<()> {
        let Some(at) = self.levels.first() else {
            return Ok(());
        };
        let (run, cell) = (at.run, at.run.spec().cell);
        if run.strategy() == Strategy::Sequence {
            let passes = cell.sequence.as_ref().ok_or_else(|| Error::Unsupported {
                op: cell.name,
                needs: "a kernel for all steps".to_owned(),
            })?;
            let pass = &passes[work.way() as usize];
            let lanes = self.running(moments.start).len();
            let team = Team::new(at.run.spec(), run.target(), lanes * run.batch(), work.way());
            let most = self.steps_of_dispatch(run, pass, &team);
            let starts = moments.clone().step_by(most);
            let part = |start: usize| start..(start + most).min(moments.end);
            let push = |part| self.push_all(b, pass, part, work, &team);
            return match work.way() {
                Way::Forward => starts.map(part).try_for_each(push),
                Way::Back => starts.rev().map(part).try_for_each(push),
            };
        }
        match work.way() {
            Way::Forward => {
                for moment in moments {
                    for pass in cell.forward {
                        self.push(b, pass, moment, work)?;
                    }
                }
            }
            Way::Back => {
                for moment in moments.rev() {
                    for pass in cell.backward {
                        self.push(b, pass, moment, work)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds one kernel of the steps of a moment, in the form that the rules choose; for the test inputs of
    /// kernels.
    pub(super) fn one_forward(
        &self,
        b: &mut Builder,
        pass: &Pass,
        moment: usize,
        y: Output,
        save: bool,
    ) -> Result<()> {
        let again = false;
        self.push(b, pass, moment, Work::Forward { y, save, again })
    }

    /// The same back.
    pub(super) fn one_back(
        &self,
        b: &mut Builder,
        pass: &Pass,
        moment: usize,
        dy: Output,
        work: &LevelGradients,
    ) -> Result<()> {
        self.push(b, pass, moment, Work::Back { dy, work })
    }

    /// Adds a kernel of the steps of a moment; `plain` is what it has in any case.
    fn push(&self, b: &mut Builder, plain: &Pass, moment: usize, work: Work<'_>) -> Result<()> {
        let Some((first, of_first)) = self.steps_at(moment).next() else {
            return Ok(());
        };
        let (run, spec, way) = (first.run, first.run.spec(), work.way());
        // Of several levels the most: each has its own in the table.
        let counts = self
            .steps_at(moment)
            .map(|(at, m)| [at.count(&m), at.next_count(&m)]);
        let [count, next_count] = counts.fold([0, 0], |[a, b], [c, d]| [a.max(c), b.max(d)]);
        let lanes = self.running(moment).len();
        let shape = Shape::new(spec, way, count).side_by_side(lanes);
        let shaped = shaped(spec, run.target(), plain, &shape);
        if let Some((form, why)) = &shaped.chosen {
            let what = match way {
                Way::Forward => "step",
                Way::Back => "step back",
            };
            b.chose(what, form.name(), why);
        }
        let (pass, op) = (&shaped.pass, shaped.pass.kernel.name);
        b.push(Dispatch {
            kernel: pass.kernel,
            constants: &[self.constants(first, pass, work), shaped.constants].concat(),
            bindings: &first.bindings(pass, work)?,
            params: StepParams {
                count: index(op, count)?,
                next_count: index(op, next_count)?,
                ..self.params(op, first, of_first, work, lanes)?
            },
            grid: shaped.grid,
            cost: sum(self
                .steps_at(moment)
                .map(|(at, m)| cost(spec, pass, at.count(&m), run.stored()))),
        })?;
        // The first step back has none after it from which gates' gradients come.
        if let (Work::Back { work, .. }, 0) = (work, next_count) {
            b.unread(work.dgates);
        }
        Ok(())
    }

    /// Adds the kernel that runs all of some moments.
    fn push_all(
        &self,
        b: &mut Builder,
        pass: &Pass,
        moments: Range<usize>,
        work: Work<'_>,
        team: &Team,
    ) -> Result<()> {
        let Some((first, of_first)) = self.steps_at(moments.start).next() else {
            return Ok(());
        };
        let (run, spec) = (first.run, first.run.spec());
        let blocks = match work.way() {
            Way::Forward => blocks_forward(spec, run.target()),
            Way::Back => blocks_back(spec, run.target()),
        };
        let lanes = self.running(moments.start);
        let constants = [
            self.constants(first, pass, work),
            team.constants(),
            vec![("UNITS", blocks.block as u32)],
        ]
        .concat();
        let op = pass.kernel.name;
        let groups = run.batch().div_ceil(team.tile);
        // Folded, as the shader says.
        let y = groups.div_ceil(MAX_GROUPS as usize).max(1);
        b.push(Dispatch {
            kernel: pass.kernel,
            constants: &constants,
            bindings: &first.bindings(pass, work)?,
            params: StepParams {
                steps: index(op, moments.len())?,
                ..self.params(op, first, of_first, work, lanes.len())?
            },
            grid: Grid::Groups([groups.div_ceil(y), y, lanes.len()]),
            cost: sum(lanes.filter_map(|k| {
                let of_level = moments.clone().filter_map(|moment| self.at(k, moment));
                let steps: Vec<Moment> = of_level.map(|(_, step)| step).collect();
                Some(self.levels.get(k)?.cost_of_all(pass, &steps))
            })),
        })
    }

    fn constants(&self, at: &At<'_>, pass: &Pass, work: Work<'_>) -> Vec<Constant> {
        let flags = [
            ("SAVE", u32::from(work.save())),
            ("MASKED", u32::from(at.run.masked())),
            ("STREAM", 0),
            ("BESIDE", u32::from(self.levels.len() > 1)),
        ];
        constants(at.run.spec(), pass, &flags)
    }

    /// The parameters of the first of so many levels that have a step.
    fn params(
        &self,
        op: &'static str,
        at: &At<'_>,
        step: Moment,
        work: Work<'_>,
        lanes: usize,
    ) -> Result<StepParams> {
        let (run, again) = (at.run, work.again());
        let packed = packing(run.spec(), run.target(), work.way()).map_or(0, |p| p.len());
        // W_hh is packed for the way back by the call itself.
        let shared = match work.way() {
            Way::Forward => at.weights.lanes > 1,
            Way::Back => run.together(),
        };
        // The next level runs an earlier step.
        let of_table = match self.levels {
            [one, next, ..] => next.table(again) - one.table(again) - self.lag * Entry::WORDS,
            _ => 0,
        };
        Ok(StepParams {
            table: index(op, at.table(again) + step.nth * Entry::WORDS)?,
            lanes: index(op, lanes)?,
            lane_table: index(op, of_table)?,
            lane_weights: index(op, packed * usize::from(shared))?,
            ..at.params(op, step, work.output())?
        })
    }
}

impl At<'_> {
    fn bindings(&self, pass: &Pass, work: Work<'_>) -> Result<Vec<BufferId>> {
        match work {
            Work::Forward { y, .. } => bindings(pass, &self.with_shared(&self.forward_buffers(y))),
            Work::Back { dy, work } => {
                bindings(pass, &self.with_shared(&self.backward_buffers(dy, work)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::LSTM;
    use crate::plan::sequence::Levels;
    use crate::plan::sequence::{Call, LayerSpec, Level, Run, Size, states, weights};
    use crate::plan::{Force, Target};

    /// What a test wants of a stack of so many layers.
    fn of_stack<R>(
        [layers, hidden, lag]: [usize; 3],
        size: Size,
        target: Target,
        wanted: impl FnOnce(Group<'_>, &Run) -> R,
    ) -> R {
        let spec = LayerSpec {
            num_layers: layers,
            ..LayerSpec::new(&LSTM, 2, hidden)
        };
        let target = Target {
            force: Force {
                levels: Some(Levels::InTurn),
                ..Force::default()
            },
            ..target
        };
        let run = Run::new(&spec, &Call::inference(size), &target).unwrap();
        let mut b = Builder::on("a stack", target);
        let (weights, states) = (weights(&mut b, &spec), states(&mut b, &run));
        let levels: Vec<Level> = spec.levels().collect();
        let at = |number: usize| At {
            run: &run,
            level: &levels[number],
            weights: &weights.levels[number],
            states: &states.levels[number],
            number,
            mask: states.mask,
            segment: &run.segments(false)[0],
        };
        let all: Vec<At<'_>> = (0..layers).map(at).collect();
        wanted(Group::new(&all, lag), &run)
    }

    /// The spans of a stack of so many layers.
    fn spans(layers: usize, steps: usize, lag: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let size = Size { steps, batch: 1 };
        of_stack([layers, 3, lag], size, Target::default(), |group, _| {
            let spans = group.spans().into_iter();
            spans.map(|span| (span.moments, span.levels)).collect()
        })
    }

    /// As many as a submission may have, by operations or by bytes; on the CPU backend nothing waits.
    #[test]
    fn steps_of_a_dispatch() {
        let of = |layers, hidden, batch, kind| {
            let size = Size { steps: 9, batch };
            let target = Target::portable(kind);
            of_stack([layers, hidden, 0], size, target, |group, run| {
                let pass = &LSTM.sequence.as_ref().unwrap()[0];
                let each = cost(run.spec(), pass, batch, run.stored());
                let team = Team::new(run.spec(), &target, layers * batch, Way::Forward);
                let steps = group.steps_of_dispatch(run, pass, &team);
                let parts = [each.flops, each.bytes].map(|n| n * (steps * layers) as u64);
                (steps, parts)
            })
        };
        let Portion { flops, bytes, .. } = Portion::default();
        for kind in [DeviceKind::Software, DeviceKind::Gpu] {
            // A step of so many units makes seven rounds of the loops that a software adapter bounds.
            let most = match kind {
                DeviceKind::Software => 65_535 / 7,
                _ => 16_384,
            };
            assert_eq!(of(1, 128, 1, kind).0, most);
            for layers in [1, 2] {
                let (steps, [of_flops, _]) = of(layers, 128, 1_000, kind);
                assert!((300 / layers..400 / layers).contains(&steps), "{steps}");
                assert!(of_flops <= flops && 100 * of_flops > 99 * flops);
            }
            let (steps, [_, of_bytes]) = of(1, 2, 100_000, kind);
            assert!(steps < 16_384 && of_bytes < bytes + bytes / 99 && 100 * of_bytes > 99 * bytes);
            assert_eq!(of(1, 128, 250_000, kind).0, 1);
        }
        assert_eq!(of(1, 128, 1_000, DeviceKind::Cpu).0, 16_384);
    }

    #[test]
    fn spans_of_a_diagonal() {
        assert_eq!(spans(1, 5, 0), [(0..5, 0..1)]);
        assert_eq!(spans(2, 5, 0), [(0..5, 0..2)]);
        let expected = [
            (0..2, 0..1),
            (2..4, 0..2),
            (4..5, 0..3),
            (5..6, 1..3),
            (6..7, 1..3),
            (7..8, 2..3),
            (8..9, 2..3),
        ];
        assert_eq!(spans(3, 5, 2), expected);
        // As many steps as the lag: one after the other.
        assert_eq!(spans(2, 3, 3), [(0..3, 0..1), (3..6, 1..2)]);
    }
}
