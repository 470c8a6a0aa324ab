//! The driver of a recurrent layer: one list of steps for every cell and every option.
//!
//! ```text
//! forward:   for each level: gates = X · W_ihᵀ + b_ih over all rows, then the cell's kernels per step
//! backward:  for each level in reverse: the cell's kernels back per step in reverse, then
//!            dW_ih = dgatesᵀ · X, dW_hh = dgatesᵀ · h, bias sums and dX = dgates · W_ih over all rows
//! ```
//!
//! A level is one direction of one layer. Levels may run side by side ([`Levels`]); a stack of which one layer
//! runs behind the other projects its input, and what one layer hands to the next, some steps at a time.
//!
//! What a call is, and where the rows of a step stand, says [`Run`]; it alone knows padded from packed
//! sequences, orders and segments. The driver knows a cell as data ([`crate::cell`]) and finds the buffers of
//! its kernels by name.

mod backward;
mod buffers;
mod call;
mod form;
mod forward;
mod group;
mod lanes;
mod run;
mod sampled;
mod small;
mod spec;
mod stack;
mod step;
mod strategy;
mod streams;
mod team;
mod tile;

use super::{BufferId, Builder, Matrix, Role, Target};
use crate::error::{Error, Result};
use crate::kernels::copy::copy;
use crate::kernels::pack::Blocks;
use crate::kernels::transpose::transpose;

pub use backward::{Backward, BackwardArgs, backward};
pub use buffers::{LevelStates, LevelWeights, Part, States, Weights, states, weights};
pub use call::{Batch, Call, Mode, Order, Size};
pub use form::StepForm;
pub(crate) use form::Way;
use form::packing;
pub use forward::{Ends, forward};
use lanes::weight_lanes;
pub use lanes::{Levels, levels};
pub use run::Run;
pub(crate) use sampled::Sampled;
pub(crate) use small::{LAYER, many_inputs, many_steps};
pub use spec::{LayerSpec, Level, Precision};
pub use strategy::{Strategy, choose};
pub(crate) use streams::sample as sample_stream;
pub use streams::{STEPS, StreamStates, streams};
pub(crate) use team::subgroup;

/// Adds the packing of the weights, needed whenever they have changed.
///
/// # Errors
/// If the buffers are not those of [`weights`].
pub fn prepare(b: &mut Builder, weights: &Weights) -> Result<()> {
    for level in &weights.levels {
        match weights.packed {
            None => transpose(b, level.weight_hh, level.weight_hh_t)?,
            Some(blocks) => {
                let place = (level.weight_hh_t, level.lane * blocks.len());
                blocks.push_to(b, level.weight_hh, place)?;
            }
        }
        for (from, to) in [
            (Some(level.bias_hh), level.biases),
            (level.weight_p, level.diagonals),
        ] {
            if let (Some(from), Some(to)) = (from, to) {
                let len = b.buffer(from)?.len();
                copy(b, (from, 0), (to, level.lane * len), len)?;
            }
        }
        if let Some(half) = level.weight_ih_half {
            let len = b.buffer(level.weight_ih)?.len();
            Blocks::copy(len).push(b, level.weight_ih, half)?;
        }
        if let (Some(from), Some(to)) = (level.bias_ih, level.bias_ih_rounded) {
            let len = b.buffer(from)?.len();
            Blocks::copy(len).push_rounded(b, from, to)?;
        }
        if let (Some(from), Some(to)) = (level.weight_hr, level.weight_hr_t) {
            transpose(b, from, to)?;
        }
    }
    Ok(())
}

/// Adds the move of the final h and c to the place of the initial ones, so that the next call goes on
/// where this one ended.
///
/// # Errors
/// If the buffers are not those of [`states`].
pub fn carry_states(b: &mut Builder, states: &States) -> Result<()> {
    for (from, to) in [(Some(states.hn), Some(states.h0)), (states.cn, states.c0)] {
        if let (Some(from), Some(to)) = (from, to) {
            let len = b.buffer(from)?.len();
            copy(b, (from, 0), (to, 0), len)?;
        }
    }
    Ok(())
}

fn check_len(b: &Builder, arg: &str, id: BufferId, len: usize) -> Result<()> {
    match b.buffer(id)?.len() {
        have if have == len => Ok(()),
        have => Err(Error::shape("layer", arg, [len], [have])),
    }
}

/// Refuses the weights of a layer with another number of levels, in another precision, or packed for
/// other kernels.
pub(crate) fn check_weights(spec: &LayerSpec, target: &Target, weights: &Weights) -> Result<()> {
    if weights.precision != spec.precision {
        let [expected, got] = [spec.precision, weights.precision].map(|p| format!("in {p}"));
        return Err(Error::value("layer", "weights", expected, got));
    }
    let packed = packing(spec, target, Way::Forward);
    if weights.packed != packed {
        let [expected, got] = match [packed, weights.packed] {
            [Some(own), Some(given)] => {
                let [own, given] = own.differences(&given);
                [format!("packed with {own}"), format!("packed with {given}")]
            }
            both => both.map(|blocks| match blocks {
                None => "transposed".to_owned(),
                Some(b) => format!("packed in blocks of {} x {}", b.slots, b.block),
            }),
        };
        return Err(Error::value("layer", "weights", expected, got));
    }
    let [expected, got] = [weight_lanes(spec, target), weights.lanes];
    if expected != got {
        let [expected, got] =
            [expected, got].map(|lanes| format!("of {lanes} levels side by side"));
        return Err(Error::value("layer", "weights", expected, got));
    }
    let levels = spec.num_layers * spec.directions();
    if weights.levels.len() == levels {
        return Ok(());
    }
    let expected = format!("of {levels} levels");
    Err(Error::value(
        "layer",
        "weights",
        expected,
        weights.levels.len(),
    ))
}

fn check_rows(arg: &str, matrix: Matrix, rows: usize, cols: usize) -> Result<()> {
    if (matrix.rows, matrix.cols) == (rows, cols) {
        Ok(())
    } else {
        let got = [matrix.rows, matrix.cols];
        Err(Error::shape("layer", arg, [rows, cols], got))
    }
}
