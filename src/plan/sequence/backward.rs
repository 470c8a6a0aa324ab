//! The backward pass of a layer as steps of a plan.

use super::buffers::{Part, States, Weights, of_layers};
use super::forward::{Ends, Pass, drop_outputs, input};
use super::group::Group;
use super::run::{Block, Run, Segment};
use super::spec::{LayerSpec, Level};
use super::stack;
use super::step::{At, LevelGradients, Output};
use super::{BufferId, Builder, Matrix, Mode, Role, check_len, check_weights};
use crate::cell::{Blocks, Operand};
use crate::error::{Error, Result};
use crate::kernels::copy::{copy, fill};
use crate::kernels::gemm::Gemm;
use crate::kernels::mask::Clear;
use crate::kernels::reduce::Columns;
use crate::kernels::state::{MaskRows, unset};

/// What a backward pass starts from and is asked for.
#[derive(Debug, Clone, Copy)]
pub struct BackwardArgs {
    /// Those of the forward pass.
    pub ends: Ends,
    /// The gradient of y, in its shape.
    pub dy: BufferId,
    /// `[L·D, N, P]` and `[L·D, N, H]`: the gradients of the final h and c; zeros without.
    pub dhn: Option<BufferId>,
    /// The second of them, for cells that have c.
    pub dcn: Option<BufferId>,
    /// Whether the gradient of x is wanted.
    pub dx: bool,
}

/// The gradients of a layer's weights, input and initial states.
#[derive(Debug, Clone)]
pub struct Backward {
    /// In the order of [`LayerSpec::weight_shapes`].
    pub weights: Vec<BufferId>,
    /// In the shape of x, if it was asked for.
    pub x: Option<BufferId>,
    /// `[L·D, N, P]`
    pub dh0: BufferId,
    /// `[L·D, N, H]`, for cells that have c.
    pub dc0: Option<BufferId>,
}

/// Adds the backward pass of a [`forward`](super::forward()) in training mode. In another section than that, a program
/// runs it only after the other, and refuses it where x or a weight has been written in between.
///
/// # Errors
/// If the call is for inference, or buffers are not those of the forward pass.
pub fn backward(
    b: &mut Builder,
    run: &Run,
    weights: &Weights,
    states: &States,
    args: BackwardArgs,
) -> Result<Backward> {
    let (spec, mode) = (run.spec(), run.call().mode);
    if mode != Mode::Training {
        let got = format!("{mode:?}");
        return Err(Error::value("layer", "mode", "Training", got));
    }
    check_len(b, "dy", args.dy, run.rows() * spec.features())?;
    check_weights(run.spec(), run.target(), weights)?;
    let states_of = spec.num_layers * spec.directions() * run.batch();
    for (arg, id, width) in [
        ("dhn", args.dhn, spec.output_size()),
        ("dcn", args.dcn, spec.hidden_size),
    ] {
        if let Some(id) = id {
            check_len(b, arg, id, states_of * width)?;
        }
    }
    let unchanged = [&[args.ends.x.buffer], &*weights.trained].concat();
    b.backward_from(states.h0, unchanged)?;
    let shapes = spec.weight_shapes().into_iter();
    let gradients: Vec<BufferId> = shapes
        .map(|(name, shape)| b.float(&format!("d{name}"), &shape, Role::Gradient))
        .collect();
    let all = spec.num_layers * spec.directions();
    let (batch, hidden, output) = (run.batch(), spec.hidden_size, spec.output_size());
    let dh0 = b.float("dh0", &[all, batch, output], Role::Gradient);
    let with_c = spec.cell.cell_state;
    let dc0 = with_c.then(|| b.float("dc0", &[all, batch, hidden], Role::Gradient));

    let per_level = gradients.len() / all;
    let levels: Vec<Level> = spec.levels().collect();
    let to = [Some(dh0), dc0];
    let pass = |level| Pass {
        run,
        weights,
        states,
        level,
    };
    // `beside` has the buffers that a level shares.
    let level = |b: &mut Builder, level, dy, dx, beside: Option<LevelGradients>| {
        let pass: Pass<'_> = pass(level);
        let number = pass.number();
        let ids = &gradients[number * per_level..(number + 1) * per_level];
        Ok(LevelBackward {
            x: input(run, args.ends, states, level),
            dy,
            dx,
            gradients: Gradients::new(spec, level, ids),
            work: pass.work(b, beside.filter(|_| run.together()))?,
            sums: sums(b, run, level),
            pass,
        })
    };
    let dx = args.dx.then(|| Part {
        buffer: b.float(
            "dx",
            &run.shape(run.call().input, spec.input_size),
            Role::Gradient,
        ),
        start: 0,
    });
    let done = Backward {
        weights: gradients.clone(),
        x: dx.map(|dx| dx.buffer),
        dh0,
        dc0,
    };
    if run.lag() > 0 {
        let dys = of_layers(b, run, "dy of layers", Role::Scratch);
        let dy = stack::all(run, &dys);
        let mut of_stack: Vec<LevelBackward<'_>> = Vec::new();
        for (nth, of) in levels.iter().enumerate() {
            let below = nth.checked_sub(1).map_or(dx, |below| Some(dys[below]));
            let beside = of_stack.last().map(|back| back.work);
            of_stack.push(level(b, of, dy, below, beside)?);
        }
        stack::backward(b, &of_stack, args, &dys, to)?;
        return Ok(done);
    }
    let mut dy = Output::new(args.dy, Some(run.call().output));
    for of_layer in levels.chunks(spec.directions()).rev() {
        let below = match of_layer[0].layer.checked_sub(1) {
            None => dx,
            Some(below) => {
                let shape = [run.rows(), spec.features()];
                Some(Part {
                    buffer: b.float(&format!("dy_l{below}"), &shape, Role::Scratch),
                    start: 0,
                })
            }
        };
        let mut backs: Vec<LevelBackward<'_>> = Vec::new();
        for of in of_layer {
            let beside = backs.last().map(|back| back.work);
            backs.push(level(b, of, dy, below, beside)?);
        }
        if run.together() {
            together(b, &backs, args, to)?;
        } else {
            for back in &backs {
                back.push(b, args, to)?;
            }
        }
        if let (Some(values), Some(layer)) = (below, of_layer[0].layer.checked_sub(1)) {
            drop_outputs(b, run, args.ends.clock, values, layer, 0..run.rows())?;
            dy = Output::new(values.buffer, Some(run.call().input));
        }
    }
    Ok(done)
}

/// Adds both directions of a layer, each step of them in one dispatch.
fn together(
    b: &mut Builder,
    backs: &[LevelBackward<'_>],
    args: BackwardArgs,
    to: [Option<BufferId>; 2],
) -> Result<()> {
    for back in backs {
        back.begin(b, args)?;
    }
    let levels: Vec<At<'_>> = backs.iter().map(|l| l.pass.at(l.pass.whole())).collect();
    let group = Group::new(&levels, 0);
    for span in group.spans().into_iter().rev() {
        group.back(b, span.moments, backs[0].dy, &backs[0].work)?;
    }
    for back in backs {
        back.after(b, back.pass.whole(), true)?;
        back.end(b, false, to)?;
    }
    Ok(())
}

impl Pass<'_> {
    /// The buffers of the way back, and W_hh packed for it; `beside` is what a level has that this one shares
    /// its buffers with.
    fn work(&self, b: &mut Builder, beside: Option<LevelGradients>) -> Result<LevelGradients> {
        let packed = self.pack_back(b, beside.and_then(|beside| beside.packed))?;
        let weight_hh_half = self.half_weight_hh(b)?;
        let own = beside.unwrap_or_else(|| work(b, self.run, self.level));
        Ok(LevelGradients {
            packed,
            weight_hh_half,
            ..own
        })
    }
}

pub(super) fn work(b: &mut Builder, run: &Run, level: &Level) -> LevelGradients {
    let (spec, suffix) = (run.spec(), level.suffix());
    let (rows, hidden) = (run.most_rows(), spec.hidden_size);
    let (cell, output, lanes) = (spec.cell, spec.output_size(), run.lanes());
    let mut float =
        |name: &str, shape: &[usize]| b.float(&format!("{name}_{suffix}"), shape, Role::Scratch);
    LevelGradients {
        dgates: float("dgates", &[lanes * rows, cell.gradient_slots, hidden]),
        dstate: float("dstate", &[lanes * run.lane_sizes().dstate]),
        outer: cell.hands_back().then(|| float("outer", &[rows, output])),
        packed: None,
        weight_hh_half: None,
    }
}

/// `[gradient slots, H]`: the sums of the gates' gradients, for the biases of a layer that has them.
fn sums(b: &mut Builder, run: &Run, level: &Level) -> Option<BufferId> {
    let spec = run.spec();
    let shape = [spec.cell.gradient_slots, spec.hidden_size];
    let name = format!("dgate sums_{}", level.suffix());
    spec.bias.then(|| b.float(&name, &shape, Role::Scratch))
}

/// The gradients of one level's weights.
struct Gradients {
    weight_ih: BufferId,
    weight_hh: BufferId,
    biases: Option<[BufferId; 2]>,
    weight_hr: Option<BufferId>,
    weight_p: Option<BufferId>,
}

impl Gradients {
    /// `ids` are in the order of [`LayerSpec::level_shapes`].
    fn new(spec: &LayerSpec, level: &Level, ids: &[BufferId]) -> Self {
        let shapes = spec.level_shapes(level);
        let named: Vec<_> = shapes.iter().map(|(name, _)| *name).zip(ids).collect();
        let find = |name: &str| named.iter().find(|(n, _)| *n == name).map(|(_, id)| **id);
        Self {
            // The first two are always there.
            weight_ih: ids[0],
            weight_hh: ids[1],
            biases: find("bias_ih").zip(find("bias_hh")).map(|(a, b)| [a, b]),
            weight_hr: find("weight_hr"),
            weight_p: find("weight_p"),
        }
    }

    fn all(&self) -> impl Iterator<Item = BufferId> {
        let biases = self.biases.into_iter().flatten();
        [self.weight_ih, self.weight_hh]
            .into_iter()
            .chain(biases)
            .chain(self.weight_hr)
            .chain(self.weight_p)
    }
}

/// One level on the way back.
pub(super) struct LevelBackward<'a> {
    pub(super) pass: Pass<'a>,
    x: Matrix,
    pub(super) dy: Output,
    dx: Option<Part>,
    gradients: Gradients,
    pub(super) work: LevelGradients,
    sums: Option<BufferId>,
}

impl LevelBackward<'_> {
    /// Adds a level: its segments from the last to the first. `to` are the gradients of the initial states.
    fn push(&self, b: &mut Builder, args: BackwardArgs, to: [Option<BufferId>; 2]) -> Result<()> {
        let (run, level) = (self.pass.run, self.pass.level);
        self.begin(b, args)?;
        if let Some(dx) = self.dx
            && run.call().burn_in > 0
        {
            fill(b, dx.buffer, 0.0)?;
        }
        // The outputs of segments that run again are there already, perhaps changed since.
        let shape = [run.batch(), run.spec().output_size()];
        let unwanted = run
            .runs_again()
            .then(|| b.float("y again", &shape, Role::Scratch));
        let segments = run.segments(level.reverse);
        let mut first = true;
        for segment in segments.iter().rev().filter(|s| s.trained) {
            if let Some(buffer) = unwanted {
                let y = Output::new(buffer, None);
                self.pass.segment(b, segment, self.x, y, true, true)?;
            }
            let levels = [self.pass.at(segment)];
            let steps = 0..segment.steps.len();
            Group::new(&levels, 0).back(b, steps, self.dy, &self.work)?;
            self.after(b, segment, first)?;
            first = false;
        }
        self.end(b, first, to)
    }

    /// Brings the gradients of the final states to where the steps take them.
    pub(super) fn begin(&self, b: &mut Builder, args: BackwardArgs) -> Result<()> {
        let (run, spec, number) = (self.pass.run, self.pass.run.spec(), self.pass.number());
        let (of_h, of_c) = (
            run.batch() * spec.output_size(),
            run.batch() * spec.hidden_size,
        );
        let missing = args.dhn.is_none() || (args.dcn.is_none() && spec.cell.cell_state);
        // One fill serves all lanes, and comes before any copy.
        if missing && run.lane(self.pass.level, 1) == 0 {
            fill(b, self.work.dstate, 0.0)?;
        }
        for (from, to, len) in [(args.dhn, 0, of_h), (args.dcn, of_h, of_c)] {
            if let Some(from) = from {
                let to = (self.work.dstate, self.dstate() + to);
                copy(b, (from, number * len), to, len)?;
            }
        }
        Ok(())
    }

    /// What follows the steps of a segment.
    fn after(&self, b: &mut Builder, segment: &Segment, first: bool) -> Result<()> {
        self.close(b, segment)?;
        self.weights(b, segment, first)?;
        let mut blocks = self.pass.run.blocks(segment).into_iter();
        blocks.try_for_each(|block| self.input(b, block))
    }

    /// And those of all segments; `none` says that there were none.
    pub(super) fn end(&self, b: &mut Builder, none: bool, to: [Option<BufferId>; 2]) -> Result<()> {
        let (run, spec, number) = (self.pass.run, self.pass.run.spec(), self.pass.number());
        if none {
            self.no_gradients(b)?;
        } else if let (Some(sums), Some(biases)) = (self.sums, self.gradients.biases) {
            self.biases(b, sums, biases)?;
        }
        let (of_h, of_c) = (
            run.batch() * spec.output_size(),
            run.batch() * spec.hidden_size,
        );
        let segments = run.segments(self.pass.level.reverse);
        let cut = segments.first().is_some_and(|s| !s.trained);
        for (to, from, len) in [(to[0], 0, of_h), (to[1], of_h, of_c)] {
            let Some(to) = to else { continue };
            if cut {
                fill(b, to, 0.0)?;
            } else {
                let from = (self.work.dstate, self.dstate() + from);
                copy(b, from, (to, number * len), len)?;
            }
        }
        Ok(())
    }

    /// Where the level's part of `dstate` starts.
    fn dstate(&self) -> usize {
        self.pass.lane(self.pass.run.lane_sizes().dstate)
    }

    /// What a call without trained steps leaves.
    fn no_gradients(&self, b: &mut Builder) -> Result<()> {
        if self.pass.run.call().accumulate {
            return Ok(());
        }
        self.gradients.all().try_for_each(|id| fill(b, id, 0.0))
    }

    /// What is left for the states before a segment: the gates of each sequence's first step in it.
    pub(super) fn close(&self, b: &mut Builder, segment: &Segment) -> Result<()> {
        let (run, states) = (self.pass.run, self.pass.states);
        let spec = run.spec();
        let output = spec.output_size();
        for start in run.starts(segment, self.pass.level.reverse) {
            let Some(t) = start.step else { continue };
            let place = run.place_in(segment, t);
            let row = spec.cell.gradient_slots * spec.hidden_size;
            let (first, count) = (start.sequences.start, start.sequences.len());
            let own = self.dgates(0..0).offset;
            let dgates = Matrix {
                offset: own + (place.start + first * place.row) * row,
                row_stride: place.row * row,
                ..Matrix::dense(self.work.dgates, count, row)
            };
            let dstate = Matrix {
                offset: self.dstate() + first * output,
                ..Matrix::dense(self.work.dstate, count, output)
            };
            for blocks in spec.cell.recurrent_blocks() {
                Gemm {
                    beta: 1.0,
                    ..Gemm::new(
                        self.slots(dgates, blocks),
                        self.gates(self.weight_hh(), output, blocks),
                        dstate,
                    )
                }
                .push(b)?;
            }
            if run.call().resets {
                let mask = run.mask_place(t);
                let rows = MaskRows {
                    mask: states.mask,
                    start: mask.start + first * mask.row,
                    row: mask.row,
                };
                let to = (self.work.dstate, self.dstate() + first * output);
                unset(b, rows, to, [count, output])?;
            }
        }
        Ok(())
    }

    /// W_hh as the kernels read it.
    fn weight_hh(&self) -> BufferId {
        let own = self.pass.weights.levels[self.pass.number()].weight_hh;
        self.work.weight_hh_half.unwrap_or(own)
    }

    /// Some blocks of rows of gate gradients.
    fn slots(&self, dgates: Matrix, blocks: &Blocks) -> Matrix {
        let hidden = self.pass.run.spec().hidden_size;
        dgates.col_range(blocks.slot * hidden..(blocks.slot + blocks.count) * hidden)
    }

    /// The rows of some gates in a weight of G·H rows.
    fn gates(&self, weight: BufferId, cols: usize, blocks: &Blocks) -> Matrix {
        let spec = self.pass.run.spec();
        let hidden = spec.hidden_size;
        let all = Matrix::dense(weight, spec.width(), cols);
        all.row_range(blocks.gate * hidden..(blocks.gate + blocks.count) * hidden)
    }

    fn dgates(&self, rows: std::ops::Range<usize>) -> Matrix {
        let run = self.pass.run;
        let cols = run.spec().cell.gradient_slots * run.spec().hidden_size;
        let all = Matrix {
            offset: self.pass.lane(run.lane_sizes().dgates),
            ..Matrix::dense(self.work.dgates, run.most_rows(), cols)
        };
        all.row_range(rows)
    }

    /// Adds a segment to the gradients of the weights and to the sums of the gates' gradients.
    pub(super) fn weights(&self, b: &mut Builder, segment: &Segment, first: bool) -> Result<()> {
        let run = self.pass.run;
        let (spec, cell) = (run.spec(), run.spec().cell);
        let (hidden, output, batch) = (spec.hidden_size, spec.output_size(), run.batch());
        let states = &self.pass.states.levels[self.pass.number()];
        let rows = run.rows_in(segment);
        let most = run.most_rows();
        let beta = if first && !run.call().accumulate {
            0.0
        } else {
            1.0
        };
        let product = |b: &mut Builder, a: Matrix, x: Matrix, to: Matrix, beta: f32| {
            Gemm {
                beta,
                ..Gemm::new(a.t(), x, to)
            }
            .push(b)
        };
        let sizes = run.lane_sizes();
        let of_lane = |id, size, rows, cols| Matrix {
            offset: self.pass.lane(size),
            ..Matrix::dense(id, rows, cols)
        };
        for (nth, block) in run.blocks(segment).into_iter().enumerate() {
            let beta = if nth == 0 { beta } else { 1.0 };
            let x = self.x.row_range(block.whole..block.whole + block.len);
            // Above the first layer stand zeros past a length.
            let x = match self.pass.level.layer {
                0 => self.cleared(b, &[block], x)?,
                _ => x,
            };
            let dgates = self.dgates(block.local..block.local + block.len);
            for blocks in cell.input_gradient {
                let to = self.gates(self.gradients.weight_ih, x.cols, blocks);
                product(b, self.slots(dgates, blocks), x, to, beta)?;
            }
        }
        let dgates = self.dgates(0..rows);
        for recurrent in cell.recurrent_gradient {
            let operand = match (recurrent.operand, states.inner) {
                (Operand::Inner, Some(inner)) => Matrix::dense(inner, most, hidden),
                // The states before each step stand behind the last ones.
                _ => {
                    of_lane(states.h, sizes.h, batch + most, output).row_range(batch..batch + most)
                }
            };
            let operand = self.cleared(b, &run.blocks(segment), operand.row_range(0..rows))?;
            let to = self.gates(self.gradients.weight_hh, output, &recurrent.blocks);
            let slots = self.slots(dgates, &recurrent.blocks);
            product(b, slots, operand, to, beta)?;
        }
        if let (Some(to), Some(outer), Some(inner)) =
            (self.gradients.weight_hr, self.work.outer, states.inner)
        {
            let of = |id, width| Matrix::dense(id, most, width).row_range(0..rows);
            let to = Matrix::dense(to, output, hidden);
            let inner = self.cleared(b, &run.blocks(segment), of(inner, hidden))?;
            product(b, of(outer, output), inner, to, beta)?;
        }
        if let Some(to) = self.gradients.weight_p {
            let slots = run.slots() * hidden;
            let kept = of_lane(states.gates, sizes.gates, most, slots).row_range(0..rows);
            let block = |m: Matrix, nth: usize| m.col_range(nth * hidden..(nth + 1) * hidden);
            for (row, diagonal) in cell.diagonal.iter().enumerate() {
                let kept = block(kept, diagonal.kept);
                Columns {
                    a: block(dgates, diagonal.gradient),
                    b: Some(self.cleared(b, &run.blocks(segment), kept)?),
                    output: (to, row * hidden),
                    beta,
                }
                .push(b)?;
            }
        }
        if let Some(sums) = self.sums {
            Columns {
                a: dgates,
                b: None,
                output: (sums, 0),
                beta: if first { 0.0 } else { 1.0 },
            }
            .push(b)?;
        }
        Ok(())
    }

    /// What a product over rows multiplies the gates' gradients with, some blocks of rows that follow each other. Those
    /// gradients are 0 past a sequence's length; what stands there in these rows may be NaN, and is 0 in a copy.
    fn cleared(&self, b: &mut Builder, blocks: &[Block], rows: Matrix) -> Result<Matrix> {
        let run = self.pass.run;
        if !run.call().lengths {
            return Ok(rows);
        }
        let (len, cols) = (rows.rows, rows.cols);
        let copy = b.float("cleared rows", &[len, cols], Role::Scratch);
        let first = blocks.first().map_or(0, |block| block.local);
        for block in blocks {
            let local = block.local - first;
            Clear {
                mask: (self.pass.states.mask, run.table_words() + block.whole),
                source: rows.row_range(local..local + block.len),
                destination: (copy, local * cols),
            }
            .push(b)?;
        }
        Ok(Matrix::dense(copy, len, cols))
    }

    /// Brings the sums of the gates' gradients to the biases.
    fn biases(&self, b: &mut Builder, sums: BufferId, biases: [BufferId; 2]) -> Result<()> {
        let run = self.pass.run;
        let (cell, hidden) = (run.spec().cell, run.spec().hidden_size);
        let all = Matrix::dense(sums, 1, cell.gradient_slots * hidden);
        let recurrent = cell.recurrent_gradient.iter().map(|r| r.blocks);
        let input = cell.input_gradient.iter().copied();
        let from = input
            .map(|blocks| (biases[0], blocks))
            .chain(recurrent.map(|blocks| (biases[1], blocks)));
        for (to, blocks) in from {
            Columns {
                a: self.slots(all, &blocks),
                b: None,
                output: (to, blocks.gate * hidden),
                beta: if run.call().accumulate { 1.0 } else { 0.0 },
            }
            .push(b)?;
        }
        Ok(())
    }

    /// dX = dgates · W_ih for some rows; the second direction adds to the first.
    pub(super) fn input(&self, b: &mut Builder, block: Block) -> Result<()> {
        let Some(dx) = self.dx else { return Ok(()) };
        let (run, level) = (self.pass.run, self.pass.level);
        let weights = &self.pass.weights.levels[self.pass.number()];
        let weight_ih = weights.weight_ih_half.unwrap_or(weights.weight_ih);
        let dgates = self.dgates(block.local..block.local + block.len);
        let rows = Matrix {
            offset: dx.start,
            ..Matrix::dense(dx.buffer, run.rows(), level.input_size)
        };
        for (nth, blocks) in run.spec().cell.input_gradient.iter().enumerate() {
            Gemm {
                beta: if nth == 0 && !level.reverse { 0.0 } else { 1.0 },
                ..Gemm::new(
                    self.slots(dgates, blocks),
                    self.gates(weight_ih, level.input_size, blocks),
                    rows.row_range(block.whole..block.whole + block.len),
                )
            }
            .push(b)?;
        }
        Ok(())
    }
}
