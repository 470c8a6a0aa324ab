//! One step of a level: the buffers of its cell's kernels by name, and where its rows stand.

use super::BufferId;
use super::buffers::{LevelStates, LevelWeights};
use super::call::{Mode, Order};
use super::run::{Place, Run, Segment};
use super::spec::{LayerSpec, Level, Precision};
use crate::cell::{CellOption, Pass};
use crate::error::{Error, Result};
use crate::kernel::{Access, Binding, Constant};
use crate::kernels::gates::{NAMES, split};
use crate::kernels::index;
use crate::kernels::step::{Moment as Entry, StepParams};
use crate::plan::Cost;

/// An output of a layer, or its gradient: rows of D·P values; or those of all layers of a stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) buffer: BufferId,
    /// Without one the outputs are not wanted: every step writes the same N rows of P.
    pub(crate) order: Option<Order>,
    /// From one layer's to the next one's, if it has those of several.
    pub(crate) of_layer: usize,
}

impl Output {
    /// One layer's.
    pub(crate) fn new(buffer: BufferId, order: Option<Order>) -> Self {
        Self {
            buffer,
            order,
            of_layer: 0,
        }
    }

    fn start_of(self, level: &Level) -> usize {
        level.layer * self.of_layer
    }
}

/// What a backward pass of one level works in; its rows are those of a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LevelGradients {
    /// `[rows, gradient slots, H]`; of levels that run side by side, like `dstate`, one behind another.
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

/// One level of a run, and the segment whose steps are to be added.
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
    pub(super) fn moments(&self) -> Vec<Moment> {
        (0..).map_while(|nth| self.moment(nth)).collect()
    }

    /// The step that it runs as the `nth`, if there are so many.
    pub(super) fn moment(&self, nth: usize) -> Option<Moment> {
        let of = |nth| self.run.nth(self.segment, self.level.reverse, nth);
        let (t, next) = (of(nth)?, of(nth + 1));
        Some(Moment { t, next, nth })
    }

    /// How many sequences have a step.
    pub(super) fn count(&self, moment: &Moment) -> usize {
        self.run.count(moment.t)
    }

    pub(super) fn forward_buffers(&self, y: Output) -> [(&'static str, Option<BufferId>); 9] {
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

    pub(super) fn table(&self, again: bool) -> usize {
        let reverse = self.level.reverse;
        self.run.table(self.number, self.segment, reverse, again)
    }

    /// What kernels read of some steps that run several of them, or those of several levels.
    pub(super) fn entries(&self, y: Output) -> Result<Vec<u32>> {
        let mut words = Vec::with_capacity(self.segment.steps.len() * Entry::WORDS);
        for moment in self.moments() {
            let entry = self.params("the table of steps", moment, y)?.moment();
            words.extend_from_slice(bytemuck::cast_slice(&[entry]));
        }
        Ok(words)
    }

    /// What a kernel costs that runs some steps: the weights are read once.
    pub(super) fn cost_of_all(&self, pass: &Pass, moments: &[Moment]) -> Cost {
        let (run, spec) = (self.run, self.run.spec());
        let each = moments
            .iter()
            .map(|m| cost(spec, pass, run.count(m.t), run.stored()));
        let total = sum(each);
        let again = moments.len().saturating_sub(1) * spec.width() * spec.output_size();
        Cost {
            bytes: total
                .bytes
                .saturating_sub(spec.precision.element().bytes(again) as u64),
            ..total
        }
    }

    pub(super) fn backward_buffers(
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

    pub(super) fn with_shared<'b>(
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
    pub(super) fn next_count(&self, moment: &Moment) -> usize {
        let count = self.run.count(moment.t);
        moment
            .next
            .map_or(0, |next| self.run.count(next).min(count))
    }

    pub(super) fn params(&self, op: &'static str, moment: Moment, y: Output) -> Result<StepParams> {
        let (run, segment) = (self.run, self.segment);
        let spec = run.spec();
        let (hidden, output, features) = (spec.hidden_size, spec.output_size(), spec.features());
        let (t, batch, count) = (moment.t, run.batch(), run.count(moment.t));
        let local = run.place_in(segment, t);
        let local_next = moment.next.map(|next| run.place_in(segment, next));
        let next_count = self.next_count(&moment);
        let of_lane = run.lane_sizes();
        let lane = |size| run.lane(self.level, size);
        // The states before each step stand behind those after the last one.
        let state = |width: usize, start: usize| -> [usize; 3] {
            let row = |place: Place| start + (batch + place.start) * width;
            let next = local_next.map_or(0, row);
            [row(local), next, local.row * width]
        };
        let (h, c) = (lane(of_lane.h), lane(of_lane.c));
        let by_turns = |nth: usize| h + (1 + nth % 2) * batch * output;
        let ([h_from, h_next, h_row], [c_from, c_next, c_row]) = match run.call().mode {
            Mode::Training => (state(output, h), state(hidden, c)),
            Mode::Inference => (
                [by_turns(moment.nth), by_turns(moment.nth + 1), output],
                [c, c, hidden],
            ),
        };
        let (gates, dgates) = (run.slots() * hidden, spec.cell.gradient_slots * hidden);
        let (gates_of, dgates_of) = (lane(of_lane.gates), lane(of_lane.dgates));
        let gates_at = run.gates_place(segment, t);
        let column = usize::from(self.level.reverse) * output;
        let (y_start, y_row) = y.order.map_or((0, output), |order| {
            let whole = run.output_place(self.level, order, t);
            (whole.start * features + column, whole.row * features)
        });
        let y_start = y.start_of(self.level) + y_start;
        let mask = run.mask_place(t);
        let mask_next = moment.next.map_or(0, |next| run.mask_place(next).start);
        // In inference one step's rows are enough.
        let handed = |width: usize| match run.call().mode {
            Mode::Training => (local.start * width, local.row * width),
            Mode::Inference => (0, width),
        };
        let ((inner_start, inner_row), (outer_start, outer_row)) = (handed(hidden), handed(output));
        // Levels in turn have buffers of their own, but their packed weights may share one.
        let beside = |size: usize| size * usize::from(run.together());
        let packed = |size: usize| size * usize::from(self.weights.lanes > 1);
        let i = |value: usize| index(op, value);
        Ok(StepParams {
            count: i(count)?,
            next_count: i(next_count)?,
            gates_start: i(gates_of + gates_at.start * gates)?,
            gates_row: i(gates_at.row * gates)?,
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
            lane: i(self.weights.lane)?,
            lane_h: i(beside(of_lane.h))?,
            lane_c: i(beside(of_lane.c))?,
            lane_dstate: i(beside(of_lane.dstate))?,
            lane_bias: i(packed(usize::from(spec.bias) * spec.width()))?,
            lane_diagonal: i(packed(spec.cell.diagonal.len() * hidden))?,
            ..numbers(spec, op)?
        })
    }
}

/// What several things cost together.
pub(super) fn sum(costs: impl Iterator<Item = Cost>) -> Cost {
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

/// What a row of the gates takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    /// S
    pub(crate) slots: usize,
    pub(crate) precision: Precision,
}

/// The product, about ten operations for every gate of a unit, the weights once, and for each
/// sequence one step of every other buffer.
pub(crate) fn cost(spec: &LayerSpec, pass: &Pass, count: usize, stored: Stored) -> Cost {
    let (hidden, output, width) = (spec.hidden_size, spec.output_size(), spec.width());
    let (mut weights, mut touched, mut length) = (0, 0, 1);
    let mut activations = 0;
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
            "gates" | "saved_gates" => {
                activations += times * count * stored.slots * hidden;
                continue;
            }
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
        bytes: (spec.precision.element().bytes(weights)
            + stored.precision.element().bytes(activations)
            + 4 * touched) as u64,
        length,
    }
}
