//! Test inputs of the step kernels: one kernel of one step of a layer with random options.

use crate::activation::{Activation, Function};
use crate::cell::{Cell, CellOption, Pass};
use crate::error::Result;
use crate::kernel::{Data, Element, Sample};
use crate::kernels::step::LANES;
use crate::plan::sequence::{
    Call, LayerSpec, Mode, Precision, Run, Sampled, Size, StepForm, Strategy,
};
use crate::plan::{Builder, DeviceKind, Plan, Target};
use crate::rng::Rng;

/// The `nth` kernel of a step forward of one of the cells (or the last, where there are fewer).
///
/// # Errors
/// If a cell has an option that its kernels do not know.
pub fn forward(
    cells: &[&'static Cell],
    nth: usize,
    [batch, hidden, variant]: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    let spec = layer(cells[variant % cells.len()], hidden, rng);
    let pass = nth_of(spec.cell.forward, nth);
    if variant % 5 != 4 {
        return step_forward(StepForm::Plain, &spec, pass, [batch, variant], rng);
    }
    step_of_streams(StepForm::Plain, &spec, pass, batch, rng)
}

/// The first kernel of a step forward of one of the cells in a form.
///
/// # Errors
/// As [`forward`].
pub(crate) fn forward_as(
    form: StepForm,
    cells: &[&'static Cell],
    [batch, hidden, variant]: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    let spec = packed(form, cells[variant % cells.len()], hidden, rng);
    let pass = nth_of(spec.cell.forward, 0);
    if variant % 5 != 4 || form == StepForm::Tile {
        return step_forward(form, &spec, pass, [batch, variant], rng);
    }
    step_of_streams(form, &spec, pass, batch, rng)
}

fn step_of_streams(
    form: StepForm,
    spec: &LayerSpec,
    pass: &Pass,
    count: usize,
    rng: &mut Rng,
) -> Result<Sample> {
    let mut b = Builder::on(spec.cell.name, forced(Strategy::Steps, form, 0));
    crate::plan::sequence::sample_stream(&mut b, spec, count, pass)?;
    let mut sample = filled(b.finish(), [count, spec.hidden_size], rng);
    if form != StepForm::Plain && spec.cell.gates == 3 {
        empty_places(&mut sample, spec);
    }
    Ok(sample)
}

/// Puts zeros into the places of packed weights that no gate has, as packing does: of the terms of x and
/// its bias the third, of those of h the fourth.
fn empty_places(sample: &mut Sample, spec: &LayerSpec) {
    let of_x = spec.input_size + 1;
    let terms = of_x + spec.output_size();
    for (id, data) in &mut sample.data {
        let name = &sample.plan.buffers[id.0].name;
        if let (true, Data::Float(weights)) = (name.starts_with("weight_stream"), data) {
            for (at, quad) in weights.chunks_exact_mut(4).enumerate() {
                quad[if at % terms < of_x { 2 } else { 3 }] = 0.0;
            }
        }
    }
}

fn step_forward(
    form: StepForm,
    spec: &LayerSpec,
    pass: &Pass,
    [batch, variant]: [usize; 2],
    rng: &mut Rng,
) -> Result<Sample> {
    let mut b = Builder::on(spec.cell.name, forced(Strategy::Steps, form, variant));
    let mode = [Mode::Training, Mode::Inference][variant / 5 % 2];
    let run = Run::new(spec, &call(spec, [3, batch], mode, rng), b.target())?;
    Sampled::new(&mut b, &run, variant % 3).forward(&mut b, pass)?;
    Ok(filled(b.finish(), [batch, spec.hidden_size], rng))
}

/// The `nth` kernel of a step back of one of the cells (or the last, where there are fewer).
///
/// # Errors
/// As [`forward`].
pub fn backward(
    cells: &[&'static Cell],
    nth: usize,
    size: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    step_back(StepForm::Plain, cells, nth, size, rng)
}

/// The first kernel of a step back of one of the cells in a form.
///
/// # Errors
/// As [`forward`].
pub(crate) fn backward_as(
    form: StepForm,
    cells: &[&'static Cell],
    size: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    step_back(form, cells, 0, size, rng)
}

fn step_back(
    form: StepForm,
    cells: &[&'static Cell],
    nth: usize,
    [batch, hidden, variant]: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    let spec = packed(form, cells[variant % cells.len()], hidden, rng);
    let pass = nth_of(spec.cell.backward, nth);
    let mut b = Builder::on(spec.cell.name, forced(Strategy::Steps, form, variant));
    let run = Run::new(
        &spec,
        &call(&spec, [3, batch], Mode::Training, rng),
        b.target(),
    )?;
    Sampled::new(&mut b, &run, variant % 3).backward(&mut b, pass)?;
    Ok(filled(b.finish(), [batch, hidden], rng))
}

/// The kernel of a cell that runs all steps forward.
///
/// # Errors
/// As [`forward`].
pub(crate) fn sequence_forward(
    cells: &[&'static Cell],
    [batch, hidden, variant]: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    let spec = in_precision(layer(cells[variant % cells.len()], hidden, rng), rng);
    let mut b = Builder::on(spec.cell.name, for_all_steps(variant));
    let mode = [Mode::Training, Mode::Inference][variant / 5 % 2];
    let run = Run::new(
        &spec,
        &call(&spec, [steps(variant), batch], mode, rng),
        b.target(),
    )?;
    Sampled::new(&mut b, &run, 0).sequence_forward(&mut b)?;
    Ok(folded(filled(b.finish(), [batch, hidden], rng), variant))
}

/// The kernel of a cell that runs all steps back.
///
/// # Errors
/// As [`forward`].
pub(crate) fn sequence_backward(
    cells: &[&'static Cell],
    [batch, hidden, variant]: [usize; 3],
    rng: &mut Rng,
) -> Result<Sample> {
    let spec = in_precision(layer(cells[variant % cells.len()], hidden, rng), rng);
    let mut b = Builder::on(spec.cell.name, for_all_steps(variant));
    let run = Run::new(
        &spec,
        &call(&spec, [steps(variant), batch], Mode::Training, rng),
        b.target(),
    )?;
    // In a part of the samples a later dispatch has left the gradients of the step after.
    let ran = usize::from(variant / 3 % 2 == 1);
    Sampled::new(&mut b, &run, 0).sequence_backward(&mut b, run.steps() - ran)?;
    Ok(folded(filled(b.finish(), [batch, hidden], rng), variant))
}

/// Every other sample with the workgroups in two rows, as more than a dimension of a dispatch has are.
fn folded(mut sample: Sample, variant: usize) -> Sample {
    for step in &mut sample.plan.steps {
        let [groups, _, lanes] = step.grid;
        if variant % 2 == 1 {
            step.grid = [groups.div_ceil(2), 2, lanes];
        }
    }
    sample
}

/// A portable GPU, large or small, on which the steps of a layer are run so.
fn forced(strategy: Strategy, form: StepForm, variant: usize) -> Target {
    let mut target = Target::default();
    target.groups = [target.groups, 12, 1][variant % 3];
    target.f16 = true;
    target.force.strategy = Some(strategy);
    target.force.step = Some(form);
    target
}

/// The same for kernels that run all steps: half of them are shaped for large workgroups, whose invocations have
/// more registers, and those of the last sizes for an adapter that runs shaders on a CPU, whose subgroups hand terms
/// around. They take no more invocations nor memory than every device has.
fn for_all_steps(variant: usize) -> Target {
    let target = forced(Strategy::Sequence, StepForm::Plain, variant);
    if variant >= OF_SUBGROUPS {
        return Target {
            kind: DeviceKind::Software,
            subgroup_size: LANES as u32,
            subgroup_most: LANES as u32,
            ..target
        };
    }
    Target {
        // Not the half of which `variant` chooses the cell.
        invocations: [target.invocations, 1024][variant / 2 % 2],
        ..target
    }
}

/// From which variant on samples of kernels that run all steps are for subgroups.
pub(crate) const OF_SUBGROUPS: usize = 129;

fn nth_of(passes: &'static [Pass], nth: usize) -> &'static Pass {
    &passes[nth.min(passes.len() - 1)]
}

/// A layer whose steps have a form, in a precision that the form can have.
fn packed(form: StepForm, cell: &'static Cell, hidden: usize, rng: &mut Rng) -> LayerSpec {
    match form {
        StepForm::Plain => layer(cell, hidden, rng),
        _ => in_precision(layer(cell, hidden, rng), rng),
    }
}

/// The layer in one of the precisions that its cell can have.
fn in_precision(spec: LayerSpec, rng: &mut Rng) -> LayerSpec {
    let half = spec.cell.forms.iter().all(Option::is_some) && rng.below(2) == 1;
    LayerSpec {
        precision: Precision::ALL[usize::from(half)],
        ..spec
    }
}

fn layer(cell: &'static Cell, hidden: usize, rng: &mut Rng) -> LayerSpec {
    let mut chance = |one_in: u32| rng.below(one_in) == 0;
    let mut spec = LayerSpec::new(cell, 3, hidden);
    spec.bidirectional = chance(3);
    if cell.projected {
        spec.proj_size = hidden.div_ceil(2);
    }
    let has = |option| cell.options.contains(&option);
    spec.clip = (has(CellOption::Clip) && chance(3)).then_some(0.7);
    spec.cell_clip = (has(CellOption::CellClip) && chance(3)).then_some(0.6);
    spec.coupled = has(CellOption::Coupled) && chance(4);
    if chance(2) {
        for activation in &mut spec.activations {
            let function = Function::ALL[rng.below(11) as usize];
            *activation = Activation::new(function)
                .alpha(f64::from(rng.uniform(0.1, 0.9)))
                .beta(f64::from(rng.uniform(0.1, 0.9)));
        }
    }
    spec
}

/// Of kernels that run all steps: fewer and more than stand in the text of one, which are up to four.
fn steps(variant: usize) -> usize {
    3 + variant % 7
}

/// Some steps, with one of the things that a call may have.
fn call(spec: &LayerSpec, [steps, batch]: [usize; 2], mode: Mode, rng: &mut Rng) -> Call {
    let gates = |pass: &Pass| pass.kernel.bindings.iter().find(|b| b.name == "gates");
    let mut gates = spec.cell.forward.iter().filter_map(gates);
    let can_halve = gates.all(|b| b.takes(Element::Half));
    let size = Size { steps, batch };
    let padded = match mode {
        Mode::Training => Call::training(size),
        Mode::Inference => Call::inference(size),
    };
    // From further on, so that everything else is as it is without.
    let mut further = rng.clone();
    further.uniforms(64, 0.0, 1.0);
    let half = can_halve && further.below(3) == 0;
    let padded = padded.activations(Precision::ALL[usize::from(half)]);
    let shrinking: Vec<usize> = (1..=steps).map(|nth| batch.div_ceil(nth)).collect();
    let packed = Call::packed(&shrinking, mode).activations(padded.activations);
    match rng.below(5) {
        0 => padded.lengths().resets(),
        1 => padded.batch_first().resets(),
        2 => packed,
        3 => packed.resets(),
        _ => padded,
    }
}

/// Random contents for every buffer: weights in ±1/√H, as a layer starts with, since sums of hundreds
/// of terms of order 1 under a clip would be all rounding; other floats in ±1; masks; and a list of
/// streams.
fn filled(plan: Plan, [batch, hidden]: [usize; 2], rng: &mut Rng) -> Sample {
    let mut data = Vec::new();
    for (id, buffer) in plan.ids() {
        let len = buffer.len();
        data.push(match (buffer.element, buffer.name.as_str()) {
            (Element::Float | Element::Half, name) => {
                let bound = if name.starts_with("weight") {
                    1.0 / (hidden as f32).sqrt()
                } else {
                    1.0
                };
                (id, Data::Float(rng.uniforms(len, -bound, bound)))
            }
            (Element::Uint, "streams") => {
                // Some of them, from the last to the first.
                let count = batch.div_ceil(2) as u32;
                let mut list: Vec<u32> = (0..batch as u32)
                    .rev()
                    .map(|stream| 2 * stream + rng.below(2))
                    .collect();
                list.insert(0, count);
                // Both lists are the same.
                (id, Data::Uint(list.repeat(2)))
            }
            (Element::Uint, _) => {
                let mut words: Vec<u32> = (0..len).map(|_| rng.below(4)).collect();
                for own in plan.contents.iter().filter(|c| c.buffer == id) {
                    words[own.start..own.start + own.words.len()].copy_from_slice(&own.words);
                }
                (id, Data::Uint(words))
            }
        });
    }
    Sample { plan, data }
}
