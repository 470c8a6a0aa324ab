//! Small plans with the kernels of a call, in the same specialisation, with numbers to run them on: what a certificate
//! compares.

use super::backward::{BackwardArgs, backward};
use super::buffers::{states, weights};
use super::call::{Batch, Call, Mode, Size};
use super::forward::{Ends, forward};
use super::run::Run;
use super::spec::LayerSpec;
use super::strategy::Strategy;
use super::streams::streams;
use super::{Builder, Matrix, Role, StepForm, Target, prepare};
use crate::cell::Cell;
use crate::error::Result;
use crate::kernel::{Data, Element, Sample};
use crate::plan::{Amount, Denied, Force, Plan, Small};
use crate::rng::Rng;

/// Steps of a small call: a first, a last, and some between.
const STEPS: usize = 5;
/// And of a brief one.
const BRIEF: usize = 2;
/// Sequences of a small call, or streams.
const FEW: usize = 3;

/// The section of a small plan that packs the weights as a layer does, in a program of its own, before any call.
pub(crate) const LAYER: &str = "layer";

/// The small plans of a call.
pub(super) fn of_call(run: &Run) -> Small {
    let (spec, call) = (*run.spec(), run.call().clone());
    // A stack runs its layers side by side over many steps alone.
    let steps = STEPS.max(2 * run.lag() + 2);
    let target = Target {
        force: Force {
            levels: run.levels_chosen().map(|(levels, _)| levels),
            ..run.target().force
        },
        ..*run.target()
    };
    Small::new(move |amount, rng| {
        let steps = if amount.brief { BRIEF } else { steps };
        let call = smaller(&call, amount, steps);
        let plan = call_plan(&spec, &call, &target)?;
        let most = call.steps();
        Ok(filled(plan, most, rng))
    })
}

/// The small plans of streams.
pub(super) fn of_streams(spec: &LayerSpec, target: &Target, count: usize) -> Small {
    let (spec, target) = (*spec, *target);
    Small::new(move |amount, rng| {
        let count = least(amount, count);
        let mut b = Builder::on("some streams", target);
        let weights = weights(&mut b, &spec);
        b.section(LAYER);
        prepare(&mut b, &weights)?;
        streams(&mut b, &spec, count, &weights)?;
        Ok(filled(b.finish(), 1, rng))
    })
}

/// A training call of a layer of one unit over many steps, of which each dispatch runs all.
///
/// # Errors
/// If the cell has no such kernels.
pub(crate) fn many_steps(cell: &'static Cell, steps: usize, target: &Target) -> Result<Sample> {
    let target = Target {
        dispatch_steps: steps,
        denied: Denied::NONE,
        force: Force {
            strategy: Some(Strategy::Sequence),
            ..Force::default()
        },
        ..*target
    };
    let call = Call::training(Size { steps, batch: 1 });
    let plan = call_plan(&LayerSpec::new(cell, 1, 1), &call, &target)?;
    Ok(filled(plan, steps, &mut Rng::new(1)))
}

/// A stream of a layer of one unit that reads many inputs, by plain steps.
///
/// # Errors
/// If the cell has options that streams do not.
pub(crate) fn many_inputs(cell: &'static Cell, inputs: usize, target: &Target) -> Result<Sample> {
    let target = Target {
        denied: Denied::NONE,
        force: Force {
            strategy: Some(Strategy::Steps),
            step: Some(StepForm::Plain),
            ..Force::default()
        },
        ..*target
    };
    let spec = LayerSpec::new(cell, inputs, 1);
    let mut b = Builder::on("a stream of many inputs", target);
    let weights = weights(&mut b, &spec);
    streams(&mut b, &spec, 1, &weights)?;
    Ok(filled(b.finish(), 1, &mut Rng::new(1)))
}

fn least(amount: Amount, count: usize) -> usize {
    match amount.all_sequences {
        false => count.min(FEW),
        true => count,
    }
}

fn smaller(call: &Call, amount: Amount, steps: usize) -> Call {
    let batch = match &call.batch {
        Batch::Padded(size) => Batch::Padded(Size {
            steps: size.steps.min(steps),
            batch: least(amount, size.batch),
        }),
        Batch::Packed(sizes) => {
            let some = sizes.iter().take(steps);
            Batch::Packed(some.map(|&size| least(amount, size)).collect())
        }
    };
    Call {
        batch,
        recompute: call.recompute.map(|k| k.min(2)),
        burn_in: call.burn_in.min(1),
        ..call.clone()
    }
}

fn call_plan(spec: &LayerSpec, call: &Call, target: &Target) -> Result<Plan> {
    let run = Run::new(spec, call, target)?;
    let mut b = Builder::on("a small call", *target);
    let x = b.float("x", &run.shape(call.input, spec.input_size), Role::Input);
    let y = b.float("y", &run.shape(call.output, spec.features()), Role::Output);
    let weights = weights(&mut b, spec);
    let states = states(&mut b, &run);
    let clock = (spec.dropout > 0.0).then(|| b.uint("clock", &[1], Role::State));
    b.section(LAYER);
    prepare(&mut b, &weights)?;
    b.section("forward");
    let ends = Ends {
        x: Matrix::dense(x, run.rows(), spec.input_size),
        y,
        clock,
    };
    forward(&mut b, &run, ends, &weights, &states)?;
    if call.mode == Mode::Training {
        b.section("backward");
        let shape = run.shape(call.output, spec.features());
        let args = BackwardArgs {
            ends,
            dy: b.float("dy", &shape, Role::Input),
            dhn: None,
            dcn: None,
            dx: true,
        };
        backward(&mut b, &run, &weights, &states, args)?;
    }
    Ok(b.finish())
}

/// Numbers for what a caller gives: weights as a layer begins with, other floats in ±1, lengths up to `most`, some resets,
/// and all streams.
fn filled(plan: Plan, most: usize, rng: &mut Rng) -> Sample {
    let given = |role| matches!(role, Role::Input | Role::Weight | Role::State);
    let mut data = Vec::new();
    // What the plan puts into a buffer itself stays.
    let own = |id| plan.contents.iter().any(|c| c.buffer == id);
    for (id, buffer) in plan.ids().filter(|(id, b)| given(b.role) && !own(*id)) {
        let len = buffer.len();
        let name = buffer.name.as_str();
        data.push(match buffer.element {
            Element::Uint => {
                let words = match name {
                    "lengths" => (0..len).map(|_| rng.below(most as u32 + 1)).collect(),
                    "resets" => (0..len).map(|_| u32::from(rng.below(3) == 0)).collect(),
                    "streams" => {
                        let count = buffer.shape.last().map_or(0, |n| n.saturating_sub(1)) as u32;
                        let halves = (0..count).map(|n| 2 * n + n % 2);
                        let list: Vec<u32> = std::iter::once(count).chain(halves).collect();
                        list.repeat(2)
                    }
                    _ => (0..len).map(|_| rng.word()).collect(),
                };
                (id, Data::Uint(words))
            }
            Element::Float | Element::Half => {
                let wide = buffer.shape.last().map_or(1, |n| (*n).max(1));
                let weight = name.starts_with("weight") || name.starts_with("bias");
                let bound = if weight {
                    (wide as f32).sqrt().recip()
                } else {
                    1.0
                };
                (id, Data::Float(rng.uniforms(len, -bound, bound)))
            }
        });
    }
    Sample { plan, data }
}

impl Call {
    /// T
    fn steps(&self) -> usize {
        match &self.batch {
            Batch::Padded(size) => size.steps,
            Batch::Packed(sizes) => sizes.len(),
        }
    }
}
