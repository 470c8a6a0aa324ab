//! One step of a level: its cell's kernels with their buffers found by name and their rows found by
//! the run.

use super::buffers::{LevelStates, LevelWeights, blocks_back, blocks_forward};
use super::call::{Mode, Order};
use super::form::{Shape, Way, packing, shaped};
use super::run::{Place, Run, Segment};
use super::spec::{LayerSpec, Level};
use super::strategy::{Strategy, floats, team};
use super::{BufferId, Builder};
use crate::cell::{CellOption, Pass};
use crate::error::{Error, Result};
use crate::kernel::{Access, Binding, Constant};
use crate::kernels::gates::{NAMES, split};
use crate::kernels::index;
use crate::kernels::step::{Moment as Entry, StepParams};
use crate::plan::{Cost, Dispatch, Grid};

/// The places of a cell's kernels for all steps.
const FORTH: usize = 0;
const BACK: usize = 1;

/// An output of a layer, or its gradient: rows of D·P values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) buffer: BufferId,
    /// Without one the outputs are not wanted: every step writes the same N rows of P.
    pub(crate) order: Option<Order>,
}

/// What a backward pass of one level works in; its rows are those of a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LevelGradients {
    /// `[rows, gradient slots, H]`
    pub(crate) dgates: BufferId,
    /// `[N, P]`, then `[N, H]` for cells that have c.
    pub(crate) dstate: BufferId,
    /// `[rows, P]`, for cells whose kernels hand something back.
    pub(crate) outer: Option<BufferId>,
    /// W_hh packed for the kernels, unless they take it as it is.
    pub(crate) packed: Option<BufferId>,
    /// W_hh as 16-bit floats, in that precision.
    pub(crate) weight_hh_half: Option<BufferId>,
}

/// One level of a run, and the segment and the step that are to be added.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) run: &'a Run,
    pub(crate) level: &'a Level,
    pub(crate) weights: &'a LevelWeights,
    pub(crate) states: &'a LevelStates,
    /// The level's place among all.
    pub(crate) number: usize,
    pub(crate) mask: BufferId,
    pub(crate) segment: &'a Segment,
    /// The other direction, where it runs along.
    pub(crate) beside: Option<&'a At<'a>>,
}

/// A step's place in its segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) t: usize,
    /// The step that runs after it in the segment.
    pub(crate) next: Option<usize>,
    /// How many steps of the segment run before it.
    pub(crate) nth: usize,
}

impl At<'_> {
    /// The segment's steps in the order in which the level runs them.
    pub(crate) fn moments(&self) -> Vec<Moment> {
        let order = self.run.order(self.segment, self.level.reverse);
        let moment = |(nth, &t): (usize, &usize)| Moment {
            t,
            next: order.get(nth + 1).copied(),
            nth,
        };
        order.iter().enumerate().map(moment).collect()
    }

    /// The level's place among those that it shares buffers with.
    fn lane(&self) -> usize {
        self.run.lane(self.level.reverse)
    }

    /// The level, and the one that runs along.
    fn lanes(&self) -> impl Iterator<Item = &Self> {
        [Some(self), self.beside].into_iter().flatten()
    }

    /// The step of each that runs as the `nth`.
    fn moments_of(&self, nth: usize) -> impl Iterator<Item = (&Self, Moment)> {
        let moment = move |at: &Self| {
            let of = |nth| at.run.nth(at.segment, at.level.reverse, nth);
            let (t, next) = (of(nth)?, of(nth + 1));
            Some(Moment { t, next, nth })
        };
        self.lanes().filter_map(move |at| Some((at, moment(at)?)))
    }

    /// Adds all steps of the segment; `save` says whether the backward pass will need them, `again` whether
    /// they ran before.
    pub(crate) fn steps(&self, b: &mut Builder, y: Output, save: bool, again: bool) -> Result<()> {
        self.tables(b, y, again)?;
        if self.run.strategy() == Strategy::Sequence {
            return self.sequence_forward(b, y, save, again);
        }
        for moment in self.moments() {
            for pass in self.run.spec().cell.forward {
                self.forward(b, pass, moment, y, save)?;
            }
        }
        Ok(())
    }

    /// Adds them back.
    pub(crate) fn steps_back(
        &self,
        b: &mut Builder,
        dy: Output,
        work: &LevelGradients,
    ) -> Result<()> {
        if self.run.strategy() == Strategy::Sequence {
            return self.sequence_backward(b, dy, work);
        }
        for moment in self.moments().into_iter().rev() {
            for pass in self.run.spec().cell.backward {
                self.backward(b, pass, moment, dy, work)?;
            }
        }
        Ok(())
    }

    /// Adds a forward kernel of a step; `save` says whether the backward pass will need it.
    pub(crate) fn forward(
        &self,
        b: &mut Builder,
        pass: &Pass,
        moment: Moment,
        y: Output,
        save: bool,
    ) -> Result<()> {
        let known = self.forward_buffers(y);
        self.push(b, Way::Forward, pass, moment, y, save, &known)
    }

    fn forward_buffers(&self, y: Output) -> [(&'static str, Option<BufferId>); 9] {
        let (w, s) = (self.weights, self.states);
        [
            ("gates", Some(s.gates)),
            ("weight_hh_t", Some(w.weight_hh_t)),
            ("weight_quads", Some(w.weight_hh_t)),
            ("weight_blocks", Some(w.weight_hh_t)),
            ("weight_hr_t", w.weight_hr_t),
            ("h", Some(s.h)),
            ("c", s.c),
            ("inner", s.inner),
            ("y", Some(y.buffer)),
        ]
    }

    /// Adds the forward kernel that runs all steps of the segment, over the table that [`Self::tables`]
    /// wrote; `again` says that it ran before and its output is not wanted.
    pub(crate) fn sequence_forward(
        &self,
        b: &mut Builder,
        y: Output,
        save: bool,
        again: bool,
    ) -> Result<()> {
        let known = self.forward_buffers(y);
        self.push_sequence(b, FORTH, y, save, again, &known)
    }

    /// Adds the backward kernel that runs all steps of the segment, over the table of the forward pass.
    pub(crate) fn sequence_backward(
        &self,
        b: &mut Builder,
        dy: Output,
        work: &LevelGradients,
    ) -> Result<()> {
        let known = self.backward_buffers(dy, work);
        self.push_sequence(b, BACK, dy, true, false, &known)
    }

    fn table(&self, again: bool) -> usize {
        let reverse = self.level.reverse;
        self.run.table(self.number, self.segment, reverse, again)
    }

    /// Writes what kernels read of the segment's steps that run all of them, or those of several levels.
    pub(crate) fn tables(&self, b: &mut Builder, y: Output, again: bool) -> Result<()> {
        if self.run.strategy() == Strategy::Sequence {
            for at in self.lanes() {
                let moments = at.moments().into_iter();
                let words = at.entries(moments.map(|moment| (at, moment)), y)?;
                b.contents(self.mask, at.table(again), words)?;
            }
        } else if self.beside.is_some() {
            let steps = 0..self.segment.steps.len();
            let words = self.entries(steps.flat_map(|nth| self.moments_of(nth)), y)?;
            b.contents(self.mask, self.run.step_table(self.level.layer, 0), words)?;
        }
        Ok(())
    }

    fn entries<'b>(
        &self,
        of: impl Iterator<Item = (&'b Self, Moment)>,
        y: Output,
    ) -> Result<Vec<u32>>
    where
        Self: 'b,
    {
        let mut words = Vec::with_capacity(self.segment.steps.len() * Entry::WORDS);
        for (at, moment) in of {
            let entry = at.params("the table of steps", moment, y)?.moment();
            words.extend_from_slice(bytemuck::cast_slice(&[entry]));
        }
        Ok(words)
    }

    fn push_sequence(
        &self,
        b: &mut Builder,
        which: usize,
        y: Output,
        save: bool,
        again: bool,
        known: &[(&str, Option<BufferId>)],
    ) -> Result<()> {
        let (run, spec) = (self.run, self.run.spec());
        let Some(pass) = &spec.cell.sequence.as_ref().map(|passes| passes[which]) else {
            let needs = "a kernel for all steps".to_owned();
            return Err(Error::Unsupported {
                op: spec.cell.name,
                needs,
            });
        };
        let blocks = match which {
            FORTH => blocks_forward(spec, run.target()),
            _ => blocks_back(spec, run.target()),
        };
        let lanes = self.lanes().count();
        let team = team(spec, run.target(), lanes * run.batch());
        let constants = [
            self.constants(pass, save),
            vec![
                ("THREADS", team.threads as u32),
                ("TILE", team.tile as u32),
                ("UNITS", blocks.block as u32),
                ("HIDDEN", spec.hidden_size as u32),
                ("KEPT_ROWS", team.rows as u32),
                (
                    "KEPT_TERMS",
                    match team.rows {
                        0 => 0,
                        _ => spec.hidden_size.div_ceil(4) as u32,
                    },
                ),
                ("WORKGROUP_FLOATS", floats(spec, team.tile) as u32),
            ],
        ]
        .concat();
        let moments = self.moments();
        let op = pass.kernel.name;
        let mut at = 0;
        let mut parts: Vec<_> = Vec::new();
        for part in moments.chunks(run.target().dispatch_steps.max(1)) {
            parts.push((at, part));
            at += part.len();
        }
        // Back the last steps come first.
        if which == BACK {
            parts.reverse();
        }
        let bindings = bindings(pass, &self.with_shared(known))?;
        let of_table = match self.beside {
            Some(other) => index(op, other.table(again) - self.table(again))?,
            None => 0,
        };
        for (at, part) in parts {
            b.push(Dispatch {
                kernel: pass.kernel,
                constants: &constants,
                bindings: &bindings,
                params: StepParams {
                    table: index(op, self.table(again) + at * Entry::WORDS)?,
                    lane_table: of_table,
                    steps: index(op, part.len())?,
                    lane_weights: self.of_lane(op, blocks.len())?,
                    ..self.params(op, part[0], y)?
                },
                grid: Grid::Groups([run.batch().div_ceil(team.tile), 1, lanes]),
                cost: sum(self.lanes().map(|of| {
                    let moments = of.moments();
                    of.cost_of_all(pass, &moments[at..at + part.len()])
                })),
            })?;
        }
        Ok(())
    }

    /// What a kernel costs that runs some steps: the weights are read once.
    fn cost_of_all(&self, pass: &Pass, moments: &[Moment]) -> Cost {
        let (run, spec) = (self.run, self.run.spec());
        let each = moments
            .iter()
            .map(|m| cost(spec, pass, run.count(m.t), run.slots()));
        let total = sum(each);
        let again = moments.len().saturating_sub(1) * spec.width() * spec.output_size();
        Cost {
            bytes: total
                .bytes
                .saturating_sub(spec.precision.element().bytes(again) as u64),
            ..total
        }
    }

    /// Adds a backward kernel of a step.
    pub(crate) fn backward(
        &self,
        b: &mut Builder,
        pass: &Pass,
        moment: Moment,
        dy: Output,
        work: &LevelGradients,
    ) -> Result<()> {
        let known = self.backward_buffers(dy, work);
        self.push(b, Way::Back, pass, moment, dy, true, &known)
    }

    fn backward_buffers(
        &self,
        dy: Output,
        work: &LevelGradients,
    ) -> [(&'static str, Option<BufferId>); 11] {
        let (w, s) = (self.weights, self.states);
        [
            ("saved_gates", Some(s.gates)),
            ("saved_h", Some(s.h)),
            ("saved_c", s.c),
            ("weight_hh", Some(work.packed.unwrap_or(w.weight_hh))),
            ("weight_quads_back", work.packed),
            ("weight_blocks_back", work.packed),
            ("weight_hr", w.weight_hr),
            ("dy", Some(dy.buffer)),
            ("dgates", Some(work.dgates)),
            ("dstate", Some(work.dstate)),
            ("outer", work.outer),
        ]
    }

    /// Adds a kernel of a step in the form that the rules choose; `plain` is what it has in any case.
    #[allow(clippy::too_many_arguments, reason = "one caller for each way")]
    fn push(
        &self,
        b: &mut Builder,
        way: Way,
        plain: &Pass,
        moment: Moment,
        y: Output,
        save: bool,
        known: &[(&str, Option<BufferId>)],
    ) -> Result<()> {
        let (run, spec) = (self.run, self.run.spec());
        // Of several levels the most: each has its own in the table.
        let of = self.moments_of(moment.nth);
        let counts = of.map(|(at, m)| (run.count(m.t), at.next_count(&m)));
        let (count, next_count) = counts.fold((0, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        let lanes = self.lanes().count();
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
        let packed = packing(spec, run.target(), way);
        b.push(Dispatch {
            kernel: pass.kernel,
            constants: &[self.constants(pass, save), shaped.constants].concat(),
            bindings: &bindings(pass, &self.with_shared(known))?,
            params: StepParams {
                count: index(op, count)?,
                next_count: index(op, next_count)?,
                table: index(op, run.step_table(self.level.layer, moment.nth))?,
                lane_table: index(op, Entry::WORDS)?,
                lane_weights: self.of_lane(op, packed.map_or(0, |blocks| blocks.len()))?,
                ..self.params(op, moment, y)?
            },
            grid: shaped.grid,
            cost: sum(self
                .moments_of(moment.nth)
                .map(|(_, m)| cost(spec, pass, run.count(m.t), run.slots()))),
        })
    }

    fn constants(&self, pass: &Pass, save: bool) -> Vec<Constant> {
        let flags = [
            ("SAVE", u32::from(save)),
            ("MASKED", u32::from(self.run.masked())),
            ("STREAM", 0),
            ("LEVELS", self.lanes().count() as u32),
        ];
        constants(self.run.spec(), pass, &flags)
    }

    fn with_shared<'b>(
        &self,
        known: &[(&'b str, Option<BufferId>)],
    ) -> Vec<(&'b str, Option<BufferId>)> {
        let w = self.weights;
        let shared = [
            ("mask", Some(self.mask)),
            ("bias_hh", Some(w.biases.unwrap_or(w.bias_hh))),
            // Not read by a cell without such weights.
            (
                "weight_p",
                Some(w.diagonals.or(w.weight_p).unwrap_or(w.bias_hh)),
            ),
        ];
        known.iter().chain(&shared).copied().collect()
    }

    /// How many sequences go on to a moment's next step.
    fn next_count(&self, moment: &Moment) -> usize {
        let count = self.run.count(moment.t);
        moment
            .next
            .map_or(0, |next| self.run.count(next).min(count))
    }

    /// What a level has of a buffer that several share; 0 where it is alone.
    fn of_lane(&self, op: &'static str, elements: usize) -> Result<u32> {
        match self.run.lanes() {
            1 => Ok(0),
            _ => index(op, elements),
        }
    }

    fn params(&self, op: &'static str, moment: Moment, y: Output) -> Result<StepParams> {
        let (run, segment) = (self.run, self.segment);
        let spec = run.spec();
        let (hidden, output, features) = (spec.hidden_size, spec.output_size(), spec.features());
        let (t, batch, count) = (moment.t, run.batch(), run.count(moment.t));
        let local = run.place_in(segment, t);
        let local_next = moment.next.map(|next| run.place_in(segment, next));
        let next_count = self.next_count(&moment);
        let (lane, of_lane) = (self.lane(), run.lane_sizes());
        // The states before each step stand behind those after the last one.
        let state = |width: usize, start: usize| -> [usize; 3] {
            let row = |place: Place| start + (batch + place.start) * width;
            let next = local_next.map_or(0, row);
            [row(local), next, local.row * width]
        };
        let (h, c) = (lane * of_lane.h, lane * of_lane.c);
        let by_turns = |nth: usize| h + (1 + nth % 2) * batch * output;
        let ([h_from, h_next, h_row], [c_from, c_next, c_row]) = match run.call().mode {
            Mode::Training => (state(output, h), state(hidden, c)),
            Mode::Inference => (
                [by_turns(moment.nth), by_turns(moment.nth + 1), output],
                [c, c, hidden],
            ),
        };
        let (gates, dgates) = (run.slots() * hidden, spec.cell.gradient_slots * hidden);
        let (gates_of, dgates_of) = (lane * of_lane.gates, lane * of_lane.dgates);
        let column = usize::from(self.level.reverse) * output;
        let (y_start, y_row) = y.order.map_or((0, output), |order| {
            let whole = run.place(order, t);
            (whole.start * features + column, whole.row * features)
        });
        let mask = run.mask_place(t);
        let mask_next = moment.next.map_or(0, |next| run.mask_place(next).start);
        // In inference one step's rows are enough.
        let handed = |width: usize| match run.call().mode {
            Mode::Training => (local.start * width, local.row * width),
            Mode::Inference => (0, width),
        };
        let ((inner_start, inner_row), (outer_start, outer_row)) = (handed(hidden), handed(output));
        let i = |value: usize| index(op, value);
        Ok(StepParams {
            count: i(count)?,
            next_count: i(next_count)?,
            gates_start: i(gates_of + local.start * gates)?,
            gates_row: i(local.row * gates)?,
            dgates_start: i(dgates_of + local.start * dgates)?,
            dgates_row: i(local.row * dgates)?,
            dgates_next: i(local_next.map_or(0, |p| dgates_of + p.start * dgates))?,
            h_from: i(h_from)?,
            h_next: i(h_next)?,
            h_row: i(h_row)?,
            c_from: i(c_from)?,
            c_next: i(c_next)?,
            c_row: i(c_row)?,
            y_start: i(y_start)?,
            y_row: i(y_row)?,
            mask_start: i(mask.start)?,
            mask_next: i(mask_next)?,
            mask_row: i(mask.row)?,
            inner_start: i(inner_start)?,
            inner_row: i(inner_row)?,
            outer_start: i(outer_start)?,
            outer_row: i(outer_row)?,
            dc_start: i(batch * output)?,
            lane: i(lane)?,
            lane_h: i(of_lane.h)?,
            lane_c: i(of_lane.c)?,
            lane_dstate: self.of_lane(op, of_lane.dstate)?,
            lane_bias: self.of_lane(op, usize::from(spec.bias) * spec.width())?,
            lane_diagonal: self.of_lane(op, spec.cell.diagonal.len() * hidden)?,
            ..numbers(spec, op)?
        })
    }
}

/// What several things cost together.
fn sum(costs: impl Iterator<Item = Cost>) -> Cost {
    costs.fold(Cost::default(), |a, c| Cost {
        flops: a.flops + c.flops,
        bytes: a.bytes + c.bytes,
        length: a.length.max(c.length),
    })
}

/// The parameters that all steps of a layer have.
pub(crate) fn numbers(spec: &LayerSpec, op: &'static str) -> Result<StepParams> {
    let mut p: StepParams = bytemuck::Zeroable::zeroed();
    for (to, a) in p.activations.iter_mut().zip(spec.activations) {
        let ([alpha, alpha_rest], [beta, beta_rest]) = (split(a.alpha), split(a.beta));
        *to = [alpha, alpha_rest, beta, beta_rest];
    }
    p.clip = split(spec.clip.unwrap_or_default());
    p.cell_clip = split(spec.cell_clip.unwrap_or_default());
    p.hidden = index(op, spec.hidden_size)?;
    p.output = index(op, spec.output_size())?;
    Ok(p)
}

/// The constants of a kernel of a step.
pub(crate) fn constants(spec: &LayerSpec, pass: &Pass, flags: &[Constant]) -> Vec<Constant> {
    let mut constants = [flags, pass.constants].concat();
    if !pass.gates {
        return constants;
    }
    for (name, activation) in NAMES.into_iter().zip(spec.activations) {
        constants.push((name, activation.function as u32));
    }
    constants.push(("RAW", u32::from(spec.keeps_raw())));
    for (option, name) in CellOption::ALL {
        // `gates` itself declares the first.
        if option == CellOption::Clip || spec.cell.options.contains(&option) {
            constants.push((name, u32::from(spec.uses(option))));
        }
    }
    constants
}

/// The buffers of a kernel of a step, by the names of its bindings.
pub(crate) fn bindings(pass: &Pass, known: &[(&str, Option<BufferId>)]) -> Result<Vec<BufferId>> {
    let one = |binding: &Binding| {
        let buffer = pass.buffer(binding.name);
        let found = known.iter().find(|(name, _)| *name == buffer);
        found
            .and_then(|(_, id)| *id)
            .ok_or_else(|| Error::Unsupported {
                op: "the sequence driver",
                needs: format!("'{buffer}' of {} for this cell", pass.kernel.name),
            })
    };
    pass.kernel.bindings.iter().map(one).collect()
}

/// The product, about ten operations for every gate of a unit, the weights once, and for each
/// sequence one step of every other buffer.
pub(crate) fn cost(spec: &LayerSpec, pass: &Pass, count: usize, slots: usize) -> Cost {
    let (hidden, output, width) = (spec.hidden_size, spec.output_size(), spec.width());
    let (mut weights, mut touched, mut length) = (0, 0, 1);
    for binding in pass.kernel.bindings {
        let times = if binding.access == Access::ReadWrite {
            2
        } else {
            1
        };
        let each = match pass.buffer(binding.name) {
            "weight_hh" | "weight_quads_back" | "weight_blocks_back" => {
                weights += width * output;
                length = width;
                continue;
            }
            "weight_hh_t" | "weight_quads" | "weight_blocks" => {
                weights += width * output;
                length = output;
                continue;
            }
            name @ ("weight_hr" | "weight_hr_t") => {
                weights += hidden * output;
                length = if name == "weight_hr" { output } else { hidden };
                continue;
            }
            "bias_hh" | "weight_p" => {
                touched += width;
                continue;
            }
            "mask" => continue,
            "gates" | "saved_gates" => slots * hidden,
            "dgates" => spec.cell.gradient_slots * hidden,
            "dstate" => output + hidden * usize::from(spec.cell.cell_state),
            "y" | "dy" | "h" | "saved_h" | "outer" => output,
            _ => hidden,
        };
        touched += times * count * each;
    }
    let gates = count * width;
    Cost {
        flops: (2 * count * weights + 10 * gates) as u64,
        bytes: (spec.precision.element().bytes(weights) + 4 * touched) as u64,
        length,
    }
}
