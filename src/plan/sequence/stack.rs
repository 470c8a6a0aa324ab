//! The layers of a stack side by side.
//!
//! Each layer runs some steps, the lag, behind the one below it. At every multiple of the lag some layers begin
//! another chunk of as many steps: what the layer below has put out for these steps is then projected for all of
//! them. On the way back a layer's chunk ends there, and its gradients go to the layer below. All that has no
//! need of that order, such as the gradients of the weights, comes before or behind all steps.

use super::backward::{BackwardArgs, LevelBackward};
use super::buffers::Part;
use super::forward::{Ends, Pass, drop_outputs, input};
use super::group::Group;
use super::run::{Block, Run};
use super::step::{At, Output};
use super::{BufferId, Builder};
use crate::error::Result;
use crate::kernels::copy::copy;

/// The layers that begin a chunk at a moment, and its rows.
fn chunks_at(run: &Run, moment: usize) -> impl Iterator<Item = (usize, Block)> {
    let nth = moment / run.lag();
    let begins = moment.is_multiple_of(run.lag());
    let layers = 0..run.spec().num_layers.min(nth + 1);
    layers.filter(move |_| begins).filter_map(move |layer| {
        let steps = run.chunk(nth - layer)?;
        Some((layer, run.rows_at(steps)))
    })
}

/// The outputs of all layers, or their gradients.
pub(super) fn all(run: &Run, parts: &[Part]) -> Output {
    Output {
        of_layer: run.output_rows_below() * run.spec().features(),
        ..Output::new(parts[0].buffer, Some(run.call().input))
    }
}

fn copy_rows(b: &mut Builder, run: &Run, from: Part, to: Part) -> Result<()> {
    let len = run.rows() * run.spec().features();
    copy(b, (from.buffer, from.start), (to.buffer, to.start), len)
}

/// Adds the forward pass of all layers.
pub(super) fn forward(b: &mut Builder, passes: &[Pass<'_>], ends: Ends) -> Result<()> {
    let (run, states) = (passes[0].run, passes[0].states);
    for pass in passes {
        pass.load(b, pass.whole())?;
    }
    let levels: Vec<At<'_>> = passes.iter().map(|pass| pass.at(pass.whole())).collect();
    let group = Group::new(&levels, run.lag());
    let y = all(run, &states.outputs);
    group.tables(b, y, false)?;
    for span in group.spans() {
        for (layer, rows) in chunks_at(run, span.moments.start) {
            if let Some(below) = layer.checked_sub(1) {
                let some = rows.whole..rows.whole + rows.len;
                let values = states.outputs[below];
                drop_outputs(b, run, ends.clock, values, below, some)?;
            }
            let pass = &passes[layer];
            let of_x = match layer {
                0 => rows.whole,
                // Of which there may be one chunk alone.
                _ => rows.local,
            };
            let rows = Block {
                whole: of_x,
                ..rows
            };
            pass.project(b, input(run, ends, states, pass.level), rows)?;
        }
        group.forward(b, span.moments, y, run.training(), false)?;
    }
    for pass in passes {
        pass.store(b, pass.whole(), true)?;
    }
    let last = states.outputs[passes.len() - 1];
    let to = Part {
        buffer: ends.y,
        start: 0,
    };
    copy_rows(b, run, last, to)
}

/// Adds the way back of all layers; `dys` are the gradients of their outputs.
pub(super) fn backward(
    b: &mut Builder,
    layers: &[LevelBackward<'_>],
    args: BackwardArgs,
    dys: &[Part],
    to: [Option<BufferId>; 2],
) -> Result<()> {
    let run = layers[0].pass.run;
    let dy = layers[0].dy;
    let from = Part {
        buffer: args.dy,
        start: 0,
    };
    copy_rows(b, run, from, dys[layers.len() - 1])?;
    for back in layers {
        back.begin(b, args)?;
    }
    let levels: Vec<At<'_>> = layers.iter().map(|l| l.pass.at(l.pass.whole())).collect();
    let group = Group::new(&levels, run.lag());
    for span in group.spans().into_iter().rev() {
        let begin = span.moments.start;
        group.back(b, span.moments, dy, &layers[0].work)?;
        for (layer, rows) in chunks_at(run, begin) {
            if let Some(below) = layer.checked_sub(1) {
                layers[layer].input(b, rows)?;
                let some = rows.whole..rows.whole + rows.len;
                drop_outputs(b, run, args.ends.clock, dys[below], below, some)?;
            }
        }
    }
    for back in layers.iter().rev() {
        let segment = back.pass.whole();
        back.close(b, segment)?;
        back.weights(b, segment, true)?;
        if back.pass.level.layer == 0 {
            back.input(b, run.rows_at(0..run.steps()))?;
        }
        back.end(b, false, to)?;
    }
    Ok(())
}
