//! Streams: single steps of any of many independent sequences, one dispatch for each kernel of a
//! level's step.
//!
//! A step reads which streams advance from a list in the device's memory, so one plan serves every
//! subset. The kernels are those of whole sequences; with `STREAM` they also take the product with
//! the input, from weights packed as `[I + 1 + P, G·H]`: W_ih, b_ih and W_hh, transposed, in the forms
//! over quads as `[quads, I + 1 + P, 4]`, on the CPU in the blocks of the kernel that runs all steps. h has
//! two halves per stream, read and written by turns, since every unit of a stream reads all of them.

use super::buffers::{LevelWeights, Weights, blocks_forward, sizes};
use super::call::check_sequences;
use super::form::{Shape, Shaped, Way, plain, shaped};
use super::small;
use super::spec::{LayerSpec, Level, Precision};
use super::step::{Stored, bindings, constants, cost, numbers};
use super::strategy::{Strategy, choose};
use super::{BufferId, Builder, Role};
use crate::cell::Pass;
use crate::error::{Error, Result};
use crate::kernels::copy::copy;
use crate::kernels::index;
use crate::kernels::pack::Blocks;
use crate::kernels::step::StepParams;
use crate::kernels::transpose::transpose_to;
use crate::plan::{DeviceKind, Dispatch, Grid, Target};

/// The buffers of a layer's streams.
#[derive(Debug, Clone)]
pub struct StreamStates {
    /// `[2, 1 + streams]`, integer: two lists, one for each of the [`STEPS`]; how many streams advance, then for
    /// each twice its number plus which half of h has its state.
    pub list: BufferId,
    /// `[streams, I]`: the inputs of those that advance, in the order of the list.
    pub x: BufferId,
    /// `[streams, P]`: their outputs, likewise.
    pub y: BufferId,
    /// For each layer `[2, streams, P]`.
    pub h: Vec<BufferId>,
    /// For each layer `[streams, H]`, for cells that have c.
    pub c: Vec<Option<BufferId>>,
    packed: Vec<BufferId>,
    inner: Option<BufferId>,
    between: Option<BufferId>,
}

/// The sections of a step by the first and by the second list: streams that advance again and again take them by
/// turns, and no list has to be written.
pub const STEPS: [&str; 2] = ["step", "step by the second list"];

/// Adds the buffers of `count` streams, a section `prepare` that packs the weights, and the sections
/// [`STEPS`].
///
/// # Errors
/// If the layer has two directions, `count` is 0 or the arrays are too large.
pub fn streams(
    b: &mut Builder,
    spec: &LayerSpec,
    count: usize,
    weights: &Weights,
) -> Result<StreamStates> {
    check(spec, count)?;
    b.small(small::of_streams(spec, b.target(), count));
    let states = buffers(b, spec, count);
    b.section("prepare");
    for (level, &packed) in spec.levels().zip(&states.packed) {
        pack(b, spec, &level, &weights.levels[level.layer], packed)?;
        let level = &weights.levels[level.layer];
        if let (Some(from), Some(to)) = (level.weight_hr, level.weight_hr_t) {
            crate::kernels::transpose::transpose(b, from, to)?;
        }
    }
    for (list, section) in STEPS.into_iter().enumerate() {
        b.section(section);
        for level in spec.levels() {
            for pass in spec.cell.forward {
                step(b, spec, &level, [count, list], weights, &states, pass)?;
            }
        }
    }
    Ok(states)
}

fn check(spec: &LayerSpec, count: usize) -> Result<()> {
    const OP: &str = "streams";
    spec.check()?;
    if spec.bidirectional {
        let needs = "a direction that runs from the end (its first step needs the last input)";
        return Err(Error::Unsupported {
            op: OP,
            needs: needs.to_owned(),
        });
    }
    if count == 0 {
        return Err(Error::value(OP, "count", "at least 1", count));
    }
    check_sequences(OP, "count", count)?;
    let (hidden, width) = (spec.hidden_size, spec.width());
    let rows = spec.input_size.max(spec.output_size()) + 1 + spec.output_size();
    let arrays: [(&str, &[usize]); 3] = [
        ("states", &[2, count, hidden]),
        ("x", &[count, spec.input_size]),
        ("packed weights", &[rows, width]),
    ];
    super::spec::check_elements(spec.cell.name, &arrays)
}

fn buffers(b: &mut Builder, spec: &LayerSpec, count: usize) -> StreamStates {
    let (hidden, output) = (spec.hidden_size, spec.output_size());
    let list = b.uint("streams", &[STEPS.len(), 1 + count], Role::Input);
    let x = b.float("x", &[count, spec.input_size], Role::Input);
    let y = b.float("y", &[count, output], Role::Output);
    let mut states = StreamStates {
        list,
        x,
        y,
        h: Vec::new(),
        c: Vec::new(),
        packed: Vec::new(),
        // z stands behind what a GRU's first kernel hands on.
        inner: spec
            .cell
            .hands_on()
            .then(|| b.float("inner", &[count, 2, hidden], Role::Scratch)),
        between: None,
    };
    for level in spec.levels() {
        let suffix = level.suffix();
        let rows = level.input_size + 1 + output;
        let name = |name: &str| format!("{name}_{suffix}");
        states
            .h
            .push(b.float(&name("h"), &[2, count, output], Role::State));
        let with_c = spec.cell.cell_state;
        states
            .c
            .push(with_c.then(|| b.float(&name("c"), &[count, hidden], Role::State)));
        let shape = match packing(spec, b.target(), rows) {
            None => vec![rows, spec.width()],
            Some([_, blocks]) => vec![blocks.len()],
        };
        let packed = b.stored(spec.precision, &name("weight_stream"), &shape, Role::Saved);
        states.packed.push(packed);
    }
    if spec.num_layers > 1 {
        // With y two, as a layer reads one and writes the other.
        let shape = [count, output];
        states.between = Some(b.float("y below", &shape, Role::Scratch));
    }
    states
}

/// How W_ih and W_hh are packed as if they had so many terms, unless they are just transposed: for quads,
/// or for the kernel that runs all steps, which on the CPU runs that of streams too.
fn packing(spec: &LayerSpec, target: &Target, terms: usize) -> Option<[Blocks; 2]> {
    let [gates, hidden, _] = sizes(spec);
    if whole(spec, target).is_some() {
        let block = blocks_forward(spec, target).block;
        return Some([Blocks::forward([gates, hidden, terms], block); 2]);
    }
    (!plain(spec, target, Way::Forward)).then(|| {
        let of_h = Blocks::quads([gates, hidden, terms]);
        [Blocks::quads_of_input([gates, hidden, terms]), of_h]
    })
}

/// The kernel of all steps, where it runs the step of streams: on the CPU, whose fast twins it has.
fn whole(spec: &LayerSpec, target: &Target) -> Option<&'static Pass> {
    let on_cpu = target.kind == DeviceKind::Cpu;
    let by_it = on_cpu && choose(spec, target).0 == Strategy::Sequence;
    let [forward, _] = spec.cell.sequence.as_ref()?;
    by_it.then_some(forward)
}

/// Packs W_ih, b_ih and W_hh of a level: as [`packing`] says, or one on top of the other transposed.
fn pack(
    b: &mut Builder,
    spec: &LayerSpec,
    level: &Level,
    weights: &LevelWeights,
    packed: BufferId,
) -> Result<()> {
    let (input, width) = (level.input_size, spec.width());
    // Without biases zeros stand in.
    let bias = weights.bias_ih.unwrap_or(weights.bias_hh);
    let (hidden, output) = (spec.hidden_size, spec.output_size());
    let all = input + 1 + output;
    if let Some([x, h]) = packing(spec, b.target(), all) {
        let of_x = Blocks {
            size: input,
            strides: [hidden * input, input, 1],
            ..x
        };
        let of_bias = Blocks {
            size: 1,
            strides: [hidden, 1, 0],
            ..x
        };
        let of_h = Blocks {
            size: output,
            strides: [hidden * output, output, 1],
            ..h
        };
        of_x.push_part(b, weights.weight_ih, packed, 0, all)?;
        of_bias.push_part(b, bias, packed, input, all)?;
        return of_h.push_part(b, weights.weight_hh, packed, input + 1, all);
    }
    transpose_to(b, weights.weight_ih, (packed, 0))?;
    copy(b, (bias, 0), (packed, input * width), width)?;
    transpose_to(b, weights.weight_hh, (packed, (input + 1) * width))
}

fn step(
    b: &mut Builder,
    spec: &LayerSpec,
    level: &Level,
    [count, list]: [usize; 2],
    weights: &Weights,
    states: &StreamStates,
    pass: &Pass,
) -> Result<()> {
    let w = &weights.levels[level.layer];
    let (hidden, output, layer) = (spec.hidden_size, spec.output_size(), level.layer);
    // Outputs go back and forth, so that the last one is y.
    let even = |layer: usize| (spec.num_layers - 1 - layer).is_multiple_of(2);
    let output_of = |layer: usize| match states.between {
        Some(between) if !even(layer) => between,
        _ => states.y,
    };
    let x = match layer.checked_sub(1) {
        None => states.x,
        Some(below) => output_of(below),
    };
    let known = [
        ("mask", Some(states.list)),
        ("gates", Some(x)),
        ("weight_hh_t", Some(states.packed[layer])),
        ("weight_quads", Some(states.packed[layer])),
        ("weight_blocks", Some(states.packed[layer])),
        ("weight_hr_t", w.weight_hr_t),
        ("bias_hh", Some(w.bias_hh)),
        ("weight_p", Some(w.weight_p.unwrap_or(w.bias_hh))),
        ("h", Some(states.h[layer])),
        ("c", states.c[layer]),
        ("inner", states.inner),
        ("y", Some(output_of(layer))),
    ];
    let flags = [("SAVE", 0), ("MASKED", 0), ("STREAM", 1), ("BESIDE", 0)];
    let shape = Shape::streams(spec, level.input_size, count);
    let target = *b.target();
    let shaped = match whole(spec, &target) {
        Some(pass) => {
            let name = Strategy::Sequence.name();
            b.chose(
                "step of streams",
                name,
                "on the CPU one call runs all of a step",
            );
            Shaped {
                pass: *pass,
                constants: vec![("UNITS", blocks_forward(spec, &target).block as u32)],
                grid: Grid::Groups([1, 1, 1]),
                chosen: None,
            }
        }
        None => shaped(spec, &target, pass, &shape),
    };
    if let Some((form, why)) = &shaped.chosen {
        b.chose("step of streams", form.name(), why);
    }
    let pass = &shaped.pass;
    let op = pass.kernel.name;
    b.push(Dispatch {
        kernel: pass.kernel,
        constants: &[constants(spec, pass, &flags), shaped.constants].concat(),
        bindings: &bindings(pass, &known)?,
        params: StepParams {
            count: index(op, count)?,
            mask_start: index(op, list * (1 + count))?,
            streams: index(op, count)?,
            input: index(op, level.input_size)?,
            y_row: index(op, output)?,
            inner_row: index(op, 2 * hidden)?,
            ..numbers(spec, op)?
        },
        grid: shaped.grid,
        cost: {
            let stored = Stored {
                slots: spec.cell.gates,
                precision: Precision::F32,
            };
            let cost = cost(spec, pass, count, stored);
            let of_input = 2 * count * spec.width() * level.input_size;
            crate::plan::Cost {
                flops: cost.flops + of_input as u64,
                length: cost.length.max(level.input_size),
                ..cost
            }
        },
    })
}

/// One kernel of a step of streams, for its test inputs.
pub(crate) fn sample(b: &mut Builder, spec: &LayerSpec, count: usize, pass: &Pass) -> Result<()> {
    let spec = LayerSpec {
        bidirectional: false,
        ..*spec
    };
    check(&spec, count)?;
    let weights = super::weights(b, &spec);
    let states = buffers(b, &spec, count);
    let level = Level {
        layer: 0,
        reverse: false,
        input_size: spec.input_size,
    };
    // Some samples by the second list.
    let which = [count, count % 2];
    step(b, &spec, &level, which, &weights, &states, pass)
}
