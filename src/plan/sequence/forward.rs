//! The forward pass of a layer as steps of a plan.

use std::ops::Range;

use super::buffers::{Part, States, Weights};
use super::call::Order;
use super::form::{Way, packing};
use super::group::Group;
use super::run::{Block, Run, Segment};
use super::small;
use super::spec::{Level, Precision};
use super::stack;
use super::step::{At, Output};
use super::{BufferId, Builder, Matrix, Role, check_len, check_rows, check_weights};
use crate::error::{Error, Result};
use crate::kernels::copy::copy;
use crate::kernels::dropout::{self, Dropout};
use crate::kernels::gemm::Gemm;
use crate::kernels::mask::Mask;
use crate::kernels::pack::Blocks;
use crate::kernels::state::{Load, MaskRows};

/// Where a forward pass reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// `[rows, I]`: x, in the order of the call's input.
    pub x: Matrix,
    /// `[rows, D·P]` in the order of the call's output.
    pub y: BufferId,
    /// `[1]`, integer: with another value other outputs are dropped; for layers with dropout.
    pub clock: Option<BufferId>,
}

/// The stream of [`crate::kernels::dropout`] that drops the outputs of a layer; lower ones are left to
/// networks around it.
pub(crate) const DROPOUT_STREAM: u32 = 2;

/// Adds the forward pass. The initial states stand in their buffers; [`prepare`](super::prepare)
/// must have run.
///
/// # Errors
/// If `x` has another shape, or a buffer is not that of [`states`](super::states) and
/// [`weights`](super::weights).
pub fn forward(
    b: &mut Builder,
    run: &Run,
    ends: Ends,
    weights: &Weights,
    states: &States,
) -> Result<()> {
    let spec = run.spec();
    check_rows("x", ends.x, run.rows(), spec.input_size)?;
    check_len(b, "y", ends.y, run.rows() * spec.features())?;
    check_weights(run.spec(), run.target(), weights)?;
    if run.training() && spec.dropout > 0.0 && ends.clock.is_none() {
        let expected = "given to a layer with dropout";
        return Err(Error::value("layer", "clock", expected, "none"));
    }
    b.small(small::of_call(run));
    b.forward_from(states.h0);
    if run.masked() {
        make_mask(b, run, states)?;
    }
    if let Some((chosen, why)) = run.levels_chosen() {
        b.chose("levels", chosen.name(), &why);
    }
    let levels: Vec<Level> = spec.levels().collect();
    let pass = |level| Pass {
        run,
        weights,
        states,
        level,
    };
    let passes: Vec<Pass<'_>> = levels.iter().map(pass).collect();
    if run.lag() > 0 {
        return stack::forward(b, &passes, ends);
    }
    for of_layer in passes.chunks(spec.directions()) {
        let level = of_layer[0].level;
        let (x, y) = (
            input(run, ends, states, level),
            output(run, ends, states, level),
        );
        if run.together() {
            together(b, of_layer, x, y)?;
        } else {
            for pass in of_layer {
                pass.push(b, x, y)?;
            }
        }
        if let Some(&values) = states.outputs.get(level.layer) {
            drop_outputs(b, run, ends.clock, values, level.layer, 0..run.rows())?;
        }
    }
    Ok(())
}

/// Drops some rows of the outputs between layers, or of their gradients: the same mask in both passes.
pub(super) fn drop_outputs(
    b: &mut Builder,
    run: &Run,
    clock: Option<BufferId>,
    values: Part,
    layer: usize,
    rows: Range<usize>,
) -> Result<()> {
    let spec = run.spec();
    let (true, true, Some(clock)) = (run.training(), spec.dropout > 0.0, clock) else {
        return Ok(());
    };
    let args = Dropout {
        values: values.buffer,
        clock,
        probability: spec.dropout,
        seed: spec.dropout_seed,
        stream: DROPOUT_STREAM + layer as u32,
    };
    let some = rows.start * spec.features()..rows.end * spec.features();
    dropout::apply_to(b, args, values.start, some)
}

fn make_mask(b: &mut Builder, run: &Run, states: &States) -> Result<()> {
    let rows = run.rows();
    // Packed sequences have no lengths: their rows are independent of each other.
    let (size, row) = match run.call().batch {
        super::Batch::Packed(_) => ([1, rows], [0, 1]),
        super::Batch::Padded(size) => {
            let row = match run.call().input {
                Order::TimeFirst => [size.batch, 1],
                Order::BatchFirst => [1, size.steps],
            };
            ([size.steps, size.batch], row)
        }
    };
    Mask {
        lengths: states.lengths,
        resets: states.resets,
        mask: (states.mask, run.table_words()),
        size,
        rows: row,
    }
    .push(b)
}

/// What a level reads.
pub(super) fn input(run: &Run, ends: Ends, states: &States, level: &Level) -> Matrix {
    match level.layer.checked_sub(1) {
        None => ends.x,
        Some(below) => {
            let below = states.outputs[below];
            Matrix {
                offset: below.start,
                ..Matrix::dense(below.buffer, run.output_rows_below(), run.spec().features())
            }
        }
    }
}

fn output(run: &Run, ends: Ends, states: &States, level: &Level) -> Output {
    match states.outputs.get(level.layer) {
        Some(below) => Output::new(below.buffer, Some(run.call().input)),
        None => Output::new(ends.y, Some(run.call().output)),
    }
}

/// Adds both directions of a layer, each step of them in one dispatch.
fn together(b: &mut Builder, passes: &[Pass<'_>], x: Matrix, y: Output) -> Result<()> {
    for pass in passes {
        pass.enter(b, pass.whole(), x)?;
    }
    let levels: Vec<At<'_>> = passes.iter().map(|pass| pass.at(pass.whole())).collect();
    let group = Group::new(&levels, 0);
    group.tables(b, y, false)?;
    for span in group.spans() {
        group.forward(b, span.moments, y, passes[0].run.training(), false)?;
    }
    passes
        .iter()
        .try_for_each(|pass| pass.store(b, pass.whole(), true))
}

/// One level of a run.
pub(super) struct Pass<'a> {
    pub(super) run: &'a Run,
    pub(super) weights: &'a Weights,
    pub(super) states: &'a States,
    pub(super) level: &'a Level,
}

impl Pass<'_> {
    /// The level's place among all.
    pub(super) fn number(&self) -> usize {
        self.level.layer * self.run.spec().directions() + usize::from(self.level.reverse)
    }

    pub(super) fn at<'b>(&'b self, segment: &'b Segment) -> At<'b> {
        let number = self.number();
        At {
            run: self.run,
            level: self.level,
            weights: &self.weights.levels[number],
            states: &self.states.levels[number],
            number,
            mask: self.states.mask,
            segment,
        }
    }

    /// The first segment; where levels run side by side there is no other.
    pub(super) fn whole(&self) -> &Segment {
        &self.run.segments(self.level.reverse)[0]
    }

    /// Where the level's part starts of a buffer in which each level has so many elements.
    pub(super) fn lane(&self, of_lane: usize) -> usize {
        self.run.lane(self.level, of_lane)
    }

    /// Adds all segments of a level.
    fn push(&self, b: &mut Builder, x: Matrix, y: Output) -> Result<()> {
        let segments = self.run.segments(self.level.reverse);
        self.keep_initial(b)?;
        for segment in segments {
            let last = segment.number + 1 == segments.len();
            // What runs again in the backward pass is kept then.
            let save = segment.trained && !self.run.runs_again();
            self.segment(b, segment, x, y, save, false)?;
            self.store(b, segment, last)?;
        }
        Ok(())
    }

    /// Adds a segment: loads its initial states, projects the input of all its rows and runs its steps.
    /// `save` says whether the backward pass will need it, `again` whether it ran before.
    pub(super) fn segment(
        &self,
        b: &mut Builder,
        segment: &Segment,
        x: Matrix,
        y: Output,
        save: bool,
        again: bool,
    ) -> Result<()> {
        self.enter(b, segment, x)?;
        let levels = [self.at(segment)];
        let group = Group::new(&levels, 0);
        group.tables(b, y, again)?;
        group.forward(b, 0..segment.steps.len(), y, save, again)
    }

    fn enter(&self, b: &mut Builder, segment: &Segment, x: Matrix) -> Result<()> {
        self.load(b, segment)?;
        let mut blocks = self.run.blocks(segment).into_iter();
        blocks.try_for_each(|block| self.project(b, x, block))
    }

    /// Packs W_hh for the kernels that run steps back, unless they take it as it is; into the buffer of a
    /// level that has its own there.
    pub(super) fn pack_back(
        &self,
        b: &mut Builder,
        beside: Option<BufferId>,
    ) -> Result<Option<BufferId>> {
        let Some(blocks) = packing(self.run.spec(), self.run.target(), Way::Back) else {
            return Ok(None);
        };
        let precision = self.run.spec().precision;
        let packed = beside.unwrap_or_else(|| {
            let name = format!("weight_back_{}", self.level.suffix());
            let shape = [self.run.lanes() * blocks.len()];
            b.stored(precision, &name, &shape, Role::Scratch)
        });
        let weight_hh = self.weights.levels[self.number()].weight_hh;
        blocks.push_to(b, weight_hh, (packed, self.lane(blocks.len())))?;
        Ok(Some(packed))
    }

    /// W_hh as 16-bit floats, in that precision, for the gradient of the states before the first step.
    pub(super) fn half_weight_hh(&self, b: &mut Builder) -> Result<Option<BufferId>> {
        let precision = self.run.spec().precision;
        if precision == Precision::F32 {
            return Ok(None);
        }
        let source = self.weights.levels[self.number()].weight_hh;
        let blocks = Blocks::copy(b.buffer(source)?.len());
        let name = format!("weight_hh_half_{}", self.level.suffix());
        let half = b.stored(precision, &name, &[blocks.len()], Role::Scratch);
        blocks.push(b, source, half)?;
        Ok(Some(half))
    }

    /// gates = X · W_ihᵀ + b_ih for some rows.
    pub(super) fn project(&self, b: &mut Builder, x: Matrix, block: Block) -> Result<()> {
        let spec = self.run.spec();
        let weights = &self.weights.levels[self.number()];
        let gates = self.states.levels[self.number()].gates;
        let row = self.run.slots() * spec.hidden_size;
        let all = Matrix {
            offset: self.lane(self.run.lane_sizes().gates),
            row_stride: row,
            ..Matrix::dense(gates, self.run.gate_rows(), spec.width())
        };
        let weight_ih = weights.weight_ih_half.unwrap_or(weights.weight_ih);
        let weight = Matrix::dense(weight_ih, spec.width(), self.level.input_size);
        Gemm {
            bias: weights.bias_ih_rounded.or(weights.bias_ih),
            ..Gemm::new(
                x.row_range(block.whole..block.whole + block.len),
                weight.t(),
                all.row_range(block.local..block.local + block.len),
            )
        }
        .push(b)
    }

    /// Brings the states before a segment to the rows of each sequence's first step in it.
    pub(super) fn load(&self, b: &mut Builder, segment: &Segment) -> Result<()> {
        let (run, number) = (self.run, self.number());
        let states = &self.states.levels[number];
        let (batch, spec) = (run.batch(), run.spec());
        let of_lane = run.lane_sizes();
        for (which, initial, to, width) in [
            (0, Some(self.states.h0), Some(states.h), spec.output_size()),
            (1, self.states.c0, states.c, spec.hidden_size),
        ] {
            let (Some(initial), Some(to)) = (initial, to) else {
                continue;
            };
            let lane = self.lane([of_lane.h, of_lane.c][which]);
            let (source, nth) = match states.kept.and_then(|kept| kept[which]) {
                Some(kept) => (kept, segment.number),
                None => (initial, number),
            };
            for start in run.starts(segment, self.level.reverse) {
                let first = start.sequences.start;
                let place = match (start.step, run.training(), which) {
                    (Some(t), true, _) => {
                        let place = run.place_in(segment, t);
                        Some((batch + place.start + first * place.row, place.row))
                    }
                    // h stands in two halves by turns, c in one place.
                    (Some(t), false, 0) => {
                        let order = run.order(segment, self.level.reverse);
                        let nth = order.iter().position(|&o| o == t).unwrap_or_default();
                        Some(((1 + nth % 2) * batch + first, 1))
                    }
                    _ => None,
                };
                let (row, stride) = place.unwrap_or((first, 1));
                // c is zeroed where it is read, since its gradients need it whole.
                let reset = start.step.filter(|_| run.call().resets && which == 0);
                let mask = reset.map(|t| {
                    let rows = run.mask_place(t);
                    MaskRows {
                        mask: self.states.mask,
                        start: rows.start + first * rows.row,
                        row: rows.row,
                    }
                });
                Load {
                    mask,
                    count: start.sequences.len(),
                    width,
                    source: (source, (nth * batch + first) * width),
                    state: to,
                    to_start: lane + row * width,
                    to_row: stride * width,
                }
                .push_with(b, self.states.mask)?;
            }
        }
        Ok(())
    }

    /// Keeps the initial states where segments run again, since the call's may change before.
    fn keep_initial(&self, b: &mut Builder) -> Result<()> {
        let (number, spec) = (self.number(), self.run.spec());
        let Some([h, c]) = self.states.levels[number].kept else {
            return Ok(());
        };
        for (from, to, width) in [
            (Some(self.states.h0), h, spec.output_size()),
            (self.states.c0, c, spec.hidden_size),
        ] {
            if let (Some(from), Some(to)) = (from, to) {
                let len = self.run.batch() * width;
                copy(b, (from, number * len), (to, 0), len)?;
            }
        }
        Ok(())
    }

    /// Keeps the states after a segment: for the next, or as the final ones.
    pub(super) fn store(&self, b: &mut Builder, segment: &Segment, last: bool) -> Result<()> {
        let (number, spec) = (self.number(), self.run.spec());
        let states = &self.states.levels[number];
        let of_lane = self.run.lane_sizes();
        for (which, from, end, width) in [
            (0, Some(states.h), Some(self.states.hn), spec.output_size()),
            (1, states.c, self.states.cn, spec.hidden_size),
        ] {
            let (Some(from), Some(end)) = (from, end) else {
                continue;
            };
            let len = self.run.batch() * width;
            let kept = states.kept.and_then(|kept| kept[which]);
            let (to, nth) = match kept {
                Some(kept) if !last => (kept, segment.number + 1),
                _ => (end, number),
            };
            let lane = self.lane([of_lane.h, of_lane.c][which]);
            copy(b, (from, lane), (to, nth * len), len)?;
        }
        Ok(())
    }
}
