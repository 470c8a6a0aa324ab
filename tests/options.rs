//! What options of a call promise about each other: a burn-in and the call that starts after it, chunks
//! and the whole, accumulated gradients and their sum, packed sequences and padded ones.

mod common;

use common::results::{
    Values, assert_all_close, assert_close, assert_same, assert_zero, differ, everywhere,
    fill_inputs, inputs, latest, results, write_inputs,
};
use wgrnn::cell::{self, Cell};
use wgrnn::ndarray::{Array2, ArrayView1, ArrayView3, Axis, s};
use wgrnn::plan::{Plan, Role, Target};
use wgrnn::rng::Rng;
use wgrnn::{
    Activation, Call, Context, Function, Layer, LayerSpec, Mode, Order, Packing, Result, Sequence,
    Size,
};

const STEPS: usize = 7;
const BATCH: usize = 5;
const SIZE: Size = Size {
    steps: STEPS,
    batch: BATCH,
};
/// Unsorted, with the longest, one of no step, and ends on either side of what splits the steps.
const LENGTHS: [i64; BATCH] = [4, 7, 0, 2, 5];
/// The longest sum in these layers is that of a weight's gradient over all rows.
const LENGTH: usize = STEPS * BATCH;

/// Cells that together have every kernel and every way to hand on a state.
const CELLS: [&Cell; 4] = [
    &cell::LSTM_PEEPHOLE_PROJECTED,
    &cell::GRU,
    &cell::GRU_BEFORE,
    &cell::RNN_TANH,
];

fn spec(cell: &'static Cell, num_layers: usize) -> LayerSpec {
    LayerSpec {
        num_layers,
        ..LayerSpec::new(cell, 4, 6)
    }
}

fn resets() -> Array2<bool> {
    let mut rng = Rng::new(11);
    let mut resets = Array2::from_shape_simple_fn((STEPS, BATCH), || rng.below(4) == 0);
    // One before the first step, and one before the step after a burn-in or a chunk.
    resets[[0, 1]] = true;
    resets[[3, 4]] = true;
    resets
}

/// Some steps of an array `[T, …]`.
fn steps(values: &[f64], steps: std::ops::Range<usize>, of: usize) -> Vec<f64> {
    let row = values.len() / of;
    values[steps.start * row..steps.end * row].to_vec()
}

/// The values with these names.
fn some(values: &Values, names: &[&str]) -> Values {
    let named = values.iter().filter(|(n, _)| names.contains(&n.as_str()));
    named.map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// The gradients of the weights.
fn of_weights(values: &Values) -> Values {
    let weights = |n: &str| n.starts_with("dweight") || n.starts_with("dbias");
    let named = values.iter().filter(|(n, _)| weights(n));
    named.map(|(n, v)| (n.clone(), v.clone())).collect()
}

fn sum(a: &Values, b: &Values) -> Values {
    let pair = |(name, a): (&String, &Vec<f64>)| {
        let values = a.iter().zip(&b[name]).map(|(a, b)| a + b).collect();
        (name.clone(), values)
    };
    a.iter().map(pair).collect()
}

/// A call over some of the steps, with the inputs, lengths and resets that belong to them.
fn over(
    layer: &Layer,
    part: std::ops::Range<usize>,
    call: impl Fn(Size) -> Call,
    given: &Values,
) -> Result<Sequence> {
    let size = Size {
        steps: part.len(),
        batch: BATCH,
    };
    let sequence = layer.sequence(&call(size))?;
    if sequence.call().lengths {
        let (start, most) = (part.start as i64, part.len() as i64);
        let lengths = LENGTHS.map(|l| (l - start).clamp(0, most));
        sequence.set_lengths(&lengths)?;
    }
    if sequence.call().resets {
        sequence.set_resets(resets().slice(s![part.clone(), ..]))?;
    }
    let mut given = given.clone();
    for name in ["x", "dy"] {
        if let Some(values) = given.get_mut(name) {
            *values = steps(values, part.clone(), STEPS);
        }
    }
    write_inputs(&sequence, &given)?;
    Ok(sequence)
}

/// Random numbers for all that a training call over all steps is given.
fn given(layer: &Layer, seed: u64) -> Result<Values> {
    fill_inputs(&layer.training(SIZE)?, seed)
}

// Burn-in

const BURN_IN: usize = 3;

fn burn_in(context: &Context, spec: LayerSpec, options: impl Fn(Call) -> Call) -> Result<()> {
    let what = format!("{} x {}", spec.cell.name, spec.num_layers);
    let layer = Layer::new(context, spec, 3)?;
    let mut given = given(&layer, 1)?;
    let with = |size| options(Call::training(size)).burn_in(BURN_IN);
    let got = results(&over(&layer, 0..STEPS, with, &given)?)?;

    let first = |size| Call {
        recompute: None,
        mode: Mode::Inference,
        ..options(Call::training(size))
    };
    let before = results(&over(&layer, 0..BURN_IN, first, &given)?)?;
    for (to, from) in [("h0", "hn"), ("c0", "cn")] {
        if let Some(state) = before.get(from) {
            given.insert(to.to_owned(), state.clone());
        }
    }
    let rest = |size| options(Call::training(size));
    let mut want = results(&over(&layer, BURN_IN..STEPS, rest, &given)?)?;
    for name in ["dh0", "dc0"] {
        if want.remove(name).is_some() {
            assert_zero(context, &format!("{what}: {name}"), &got[name]);
        }
    }
    for name in ["y", "dx"] {
        let late = steps(&got[name], BURN_IN..STEPS, STEPS);
        let want = want.remove(name).unwrap();
        assert_close(context, &format!("{what}: {name}"), &late, &want, LENGTH);
    }
    let early = |name: &str| steps(&got[name], 0..BURN_IN, STEPS);
    assert_close(context, &what, &early("y"), &before["y"], LENGTH);
    assert_zero(context, &format!("{what}: early dx"), &early("dx"));
    assert_all_close(context, &what, &got, &want, LENGTH);
    Ok(())
}

#[test]
fn a_burn_in_is_a_call_that_starts_later() -> Result<()> {
    for context in everywhere() {
        for cell in CELLS {
            for num_layers in [1, 2] {
                burn_in(&context, spec(cell, num_layers), |call| call)?;
            }
            let masked = |call: Call| call.lengths().resets();
            burn_in(&context, spec(cell, 2), |call| masked(call).recompute(3))?;
        }
    }
    Ok(())
}

#[test]
fn nothing_but_a_burn_in_has_no_gradient() -> Result<()> {
    for context in everywhere() {
        let layer = Layer::new(&context, spec(&cell::LSTM_PEEPHOLE_PROJECTED, 2), 3)?;
        let given = given(&layer, 1)?;
        for accumulate in [false, true] {
            let call = |size| Call {
                accumulate,
                ..Call::training(size).burn_in(STEPS)
            };
            let sequence = over(&layer, 0..STEPS, call, &given)?;
            for (_, gradient) in sequence.gradients()? {
                gradient.write_f64(&vec![2.0; gradient.len()])?;
            }
            let got = results(&sequence)?;
            for (name, values) in got.iter().filter(|(n, _)| n.starts_with('d')) {
                let of_weight = of_weights(&got).contains_key(name);
                // What accumulates is left alone.
                let left = if accumulate && of_weight { 2.0 } else { 0.0 };
                let want = vec![left; values.len()];
                assert_same(
                    &context,
                    name,
                    &values.iter().map(|v| v.abs()).collect::<Vec<_>>(),
                    &want,
                );
            }
        }
    }
    Ok(())
}

// Chunks

#[test]
fn chunks_are_the_whole_with_gradients_cut() -> Result<()> {
    const CHUNK: usize = 3;
    for context in everywhere() {
        for cell in CELLS {
            let what = cell.name;
            let layer = Layer::new(&context, spec(cell, 2), 3)?;
            let given = given(&layer, 1)?;
            let whole = results(&over(&layer, 0..2 * CHUNK, Call::training, &given)?)?;

            let chunk = over(&layer, 0..CHUNK, |s| Call::training(s).accumulate(), &given)?;
            let mut chunks = Vec::new();
            for nth in 0..2 {
                let part = nth * CHUNK..(nth + 1) * CHUNK;
                for name in ["x", "dy"] {
                    let values = steps(&given[name], part.clone(), STEPS);
                    write_inputs(&chunk, &Values::from([(name.to_owned(), values)]))?;
                }
                chunks.push(results(&chunk)?);
                chunk.carry()?;
            }
            let y = [chunks[0]["y"].clone(), chunks[1]["y"].clone()].concat();
            assert_close(&context, what, &y, &whole["y"], LENGTH);
            let states = some(&whole, &["hn", "cn"]);
            assert_all_close(&context, what, &chunks[1], &states, LENGTH);

            // The second chunk's gradients end where it starts, as after a burn-in.
            let cut = |s| Call::training(s).burn_in(CHUNK);
            let second = results(&over(&layer, 0..2 * CHUNK, cut, &given)?)?;
            let late = steps(&second["dx"], CHUNK..2 * CHUNK, 2 * CHUNK);
            assert_close(&context, what, &chunks[1]["dx"], &late, LENGTH);
            let first = of_weights(&chunks[0]);
            let want = sum(&first, &of_weights(&second));
            assert_all_close(&context, what, &chunks[1], &want, LENGTH);
            let uncut = of_weights(&whole);
            assert!(differ(&chunks[1]["dweight_hh_l0"], &uncut["dweight_hh_l0"]));
        }
    }
    Ok(())
}

// Accumulation

/// Calls of different sizes and kinds that add to the same gradients.
fn accumulation(context: &Context, cell: &'static Cell) -> Result<()> {
    let layer = Layer::new(context, spec(cell, 2), 3)?;
    let small = Size { steps: 4, batch: 2 };
    let calls = [Call::training(SIZE), Call::training(small).recompute(3)];
    let mut apart = Vec::new();
    for (seed, call) in calls.iter().enumerate() {
        let sequence = layer.sequence(call)?;
        fill_inputs(&sequence, seed as u64)?;
        apart.push(results(&sequence)?);
    }
    let want = sum(&of_weights(&apart[0]), &of_weights(&apart[1]));

    let [one, two] = calls.map(Call::accumulate);
    let one = layer.sequence(&one)?;
    let two = layer.sequence_into(&two, &one.gradients()?)?;
    for (seed, sequence) in [&one, &two].into_iter().enumerate() {
        fill_inputs(sequence, seed as u64)?;
    }
    let run = || -> Result<Values> {
        let alone = [results(&one)?, results(&two)?];
        // What is not a weight's is not added up.
        for (got, want) in alone.iter().zip(&apart) {
            let ends = some(want, &["y", "hn", "cn", "dx", "dh0", "dc0"]);
            assert_all_close(context, cell.name, got, &ends, LENGTH);
        }
        Ok(of_weights(&latest(&one)?))
    };
    assert_all_close(context, "sum", &run()?, &want, LENGTH);
    assert_all_close(context, "again", &run()?, &sum(&want, &want), LENGTH);
    two.zero_gradients()?;
    for (name, values) in of_weights(&latest(&one)?) {
        assert_zero(context, &name, &values);
    }
    assert_all_close(context, "from zero", &run()?, &want, LENGTH);
    Ok(())
}

#[test]
fn accumulated_gradients_are_the_sum() -> Result<()> {
    for context in everywhere() {
        for cell in CELLS {
            accumulation(&context, cell)?;
        }
    }
    Ok(())
}

// Recomputation

fn recompute(context: &Context, spec: LayerSpec, options: impl Fn(Call) -> Call) -> Result<()> {
    let layer = Layer::new(context, spec, 3)?;
    let run = |k: Option<usize>| -> Result<Values> {
        let call = Call {
            recompute: k,
            ..options(Call::training(SIZE))
        };
        let sequence = layer.sequence(&call)?;
        if call.lengths {
            sequence.set_lengths(&LENGTHS)?;
        }
        if call.resets {
            let resets = resets();
            sequence.set_resets(match call.input {
                Order::TimeFirst => resets.view(),
                Order::BatchFirst => resets.t(),
            })?;
        }
        fill_inputs(&sequence, 1)?;
        let got = results(&sequence)?;
        sequence.backward()?;
        for (name, again) in latest(&sequence)? {
            assert_same(context, &format!("{name} again"), &again, &got[&name]);
        }
        Ok(got)
    };
    let want = run(None)?;
    for k in [1, 3, STEPS, STEPS + 5] {
        let got = run(Some(k))?;
        for (name, want) in &want {
            let what = format!("{} every {k}: {name}", spec.cell.name);
            // A single segment is the plan without. More of them take the products for fewer rows at
            // once, which our shaders, unlike the CPU's kernels, sum in the same order. Gradients are
            // summed in parts.
            let forward = ["y", "hn", "cn"].contains(&name.as_str());
            if k >= STEPS || forward && context.is_gpu() {
                assert_same(context, &what, &got[name], want);
            } else {
                assert_close(context, &what, &got[name], want, LENGTH);
            }
        }
    }
    Ok(())
}

#[test]
fn recomputation_changes_nothing() -> Result<()> {
    for context in everywhere() {
        for cell in CELLS {
            // Every sequence draws the same mask, as its clock starts from 0.
            let two = LayerSpec {
                bidirectional: true,
                dropout: DROPOUT,
                ..spec(cell, 2)
            };
            recompute(&context, spec(cell, 1), |call| call)?;
            recompute(&context, two, |call| {
                call.lengths()
                    .resets()
                    .orders(Order::BatchFirst, Order::TimeFirst)
            })?;
        }
    }
    Ok(())
}

/// Bytes of everything that is kept: of every `k` steps of each level the rows of one segment and the
/// states before it.
fn kept_bytes(spec: &LayerSpec, size: Size, k: usize) -> u64 {
    let (hidden, output) = (spec.hidden_size, spec.output_size());
    let states = output + hidden * usize::from(spec.cell.cell_state);
    let inner = hidden * usize::from(spec.cell.hands_on());
    let row = spec.cell.slots * hidden + states + inner;
    // The states after the last step have rows of their own; several segments keep those before each.
    let segments = match size.steps.div_ceil(k) {
        1 => 0,
        several => several,
    };
    let level = k.min(size.steps) * row + states + segments * states;
    let levels = spec.num_layers * spec.directions();
    let between = (spec.num_layers - 1) * size.steps * spec.features();
    (4 * size.batch * (levels * level + between)) as u64
}

#[test]
fn recomputation_keeps_the_states_between_segments() -> Result<()> {
    let size = Size {
        steps: 100,
        batch: 3,
    };
    for cell in cell::ALL {
        let spec = LayerSpec {
            bidirectional: true,
            ..spec(cell, 2)
        };
        let saved = |call: &Call| -> Result<u64> {
            Ok(Sequence::plan(&spec, call, &Target::default())?.bytes(Role::Saved))
        };
        let all = saved(&Call::training(size))?;
        assert_eq!(all, kept_bytes(&spec, size, size.steps), "{}", cell.name);
        for k in [1, 3, 10, 100, 105] {
            let some = saved(&Call::training(size).recompute(k))?;
            assert_eq!(some, kept_bytes(&spec, size, k), "{} every {k}", cell.name);
        }
        let tenth = saved(&Call::training(size).recompute(10))?;
        assert!(3 * tenth < all, "{}: {tenth} of {all}", cell.name);
    }
    Ok(())
}

/// The bytes that a plan's text says on its line of this name.
fn printed(plan: &Plan, name: &str) -> f64 {
    let text = plan.to_string();
    let mut lines = text
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|l| l.len() > 2 && l[0] == name).unwrap();
    let prefix = match line[2] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        other => panic!("{other}"),
    };
    line[1].parse::<f64>().unwrap() * prefix
}

#[test]
fn the_plan_says_what_recomputation_saves() -> Result<()> {
    let size = Size {
        steps: 200,
        batch: 8,
    };
    let spec = LayerSpec::new(&cell::LSTM, 16, 16);
    let all = Sequence::plan(&spec, &Call::training(size), &Target::default())?;
    let some = Sequence::plan(
        &spec,
        &Call::training(size).recompute(14),
        &Target::default(),
    )?;
    assert!(some.name().contains("recompute 14"), "{}", some.name());
    for (name, role) in [("saved", Role::Saved), ("scratch", Role::Scratch)] {
        for plan in [&all, &some] {
            let (text, bytes) = (printed(plan, name), plan.bytes(role) as f64);
            assert!((text - bytes).abs() <= 0.01 * bytes, "{text} {bytes}");
        }
        assert!(4.0 * printed(&some, name) < printed(&all, name), "{name}");
    }
    assert!(printed(&some, "total") < 0.5 * printed(&all, "total"));
    Ok(())
}

// Dropout between layers

const DROPOUT: f32 = 0.3;

/// Layers whose outputs are what a lower one makes of their input: h' = W_ih x + W_hh h.
fn linear(dropout: f32, num_layers: usize) -> LayerSpec {
    let mut spec = LayerSpec {
        num_layers,
        dropout,
        dropout_seed: 9,
        bias: false,
        ..LayerSpec::new(&cell::RNN_TANH, 6, 6)
    };
    spec.activations[0] = Activation::new(Function::Affine).alpha(1.0).beta(0.0);
    spec
}

/// A layer whose lowest one hands on its input as it is, in each direction.
fn handing_on(context: &Context, spec: LayerSpec) -> Result<Layer> {
    let layer = Layer::new(context, spec, 3)?;
    let identity = |i: usize| f32::from(u8::from(i / 6 == i % 6));
    for level in spec.levels().filter(|l| l.layer == 0) {
        let set = |weight: &str, values: &[f32]| {
            layer.set_weight(&format!("{weight}_{}", level.suffix()), values)
        };
        set("weight_ih", &(0..36).map(identity).collect::<Vec<_>>())?;
        set("weight_hh", &[0.0; 36])?;
    }
    layer.prepare()?;
    Ok(layer)
}

/// Large enough for frequencies.
const MANY: Size = Size {
    steps: 20,
    batch: 25,
};

/// What the lowest layer hands on, after dropping.
fn handed_on(sequence: &Sequence, layer: usize) -> Result<Vec<f64>> {
    // Layers that run side by side have theirs in one buffer.
    if let Ok(all) = sequence.program().named("y of layers") {
        let of_layer = sequence.y().len();
        let values = all.read_f64()?;
        return Ok(values[layer * of_layer..(layer + 1) * of_layer].to_vec());
    }
    let name = format!("y_l{layer}");
    sequence.program().named(&name)?.read_f64()
}

#[test]
fn dropped_outputs_are_zero_and_the_others_scaled() -> Result<()> {
    let mut masks = Vec::new();
    for context in everywhere() {
        let layer = handing_on(&context, linear(DROPOUT, 3))?;
        let sequence = layer.training(MANY)?;
        let given = fill_inputs(&sequence, 1)?;
        // So that every gradient comes from above.
        let dhn = sequence.dhn()?;
        dhn.write(&vec![0.0; dhn.len()])?;
        let got = results(&sequence)?;
        let dropped = handed_on(&sequence, 0)?;
        let mask: Vec<bool> = dropped.iter().map(|&v| v != 0.0).collect();
        let scaled: Vec<f64> = given["x"]
            .iter()
            .map(|x| x / (1.0 - f64::from(DROPOUT)))
            .collect();
        for (i, kept) in mask.iter().enumerate() {
            let (value, want) = (dropped[i], if *kept { scaled[i] } else { 0.0 });
            let error = (value - want).abs();
            assert!(error <= 1e-6 * want.abs(), "[{i}] {value} {want}");
            // The gradient of what was dropped is 0, and only that.
            let at = format!("{}: dx[{i}]", context.name());
            assert_eq!(got["dx"][i] != 0.0, *kept, "{at}");
        }
        // Four standard deviations of a binomial distribution.
        let (p, count) = (f64::from(DROPOUT), mask.len() as f64);
        let zeros = mask.iter().filter(|kept| !**kept).count() as f64;
        let most = 4.0 * (count * p * (1.0 - p)).sqrt();
        assert!((zeros - count * p).abs() < most, "{zeros} of {count}");

        // The second layer drops others.
        let second: Vec<bool> = handed_on(&sequence, 1)?.iter().map(|&v| v != 0.0).collect();
        assert_ne!(mask, second);
        // The next forward pass drops others again; the same clock drops the same.
        let clock = sequence.dropout_clock().unwrap();
        let now = clock.read_uint()?[0];
        sequence.forward()?;
        assert_eq!(clock.read_uint()?, [now + 1]);
        let next: Vec<bool> = handed_on(&sequence, 0)?.iter().map(|&v| v != 0.0).collect();
        assert_ne!(mask, next);
        clock.write_uint(&[now - 1])?;
        for (name, again) in results(&sequence)? {
            assert_same(&context, &name, &again, &got[&name]);
        }
        // So does another seed.
        let seeded = LayerSpec {
            dropout_seed: 10,
            ..linear(DROPOUT, 3)
        };
        let other = handing_on(&context, seeded)?.training(MANY)?;
        write_inputs(&other, &given)?;
        other.forward()?;
        let other: Vec<bool> = handed_on(&other, 0)?.iter().map(|&v| v != 0.0).collect();
        assert_ne!(mask, other);
        masks.push((mask, second, next));
    }
    // The same everywhere.
    assert!(masks.iter().all(|m| *m == masks[0]));
    Ok(())
}

#[test]
fn outputs_of_both_directions_are_dropped_once() -> Result<()> {
    for context in everywhere() {
        let spec = LayerSpec {
            bidirectional: true,
            ..linear(DROPOUT, 2)
        };
        let layer = handing_on(&context, spec)?;
        let sequence = layer.training(SIZE)?;
        let given = fill_inputs(&sequence, 1)?;
        sequence.forward()?;
        let dropped = handed_on(&sequence, 0)?;
        // Each direction hands on the same rows.
        let both = given["x"].chunks(6).flat_map(|row| [row, row].concat());
        let mut zeros = 0;
        for (i, (value, x)) in dropped.iter().zip(both).enumerate() {
            let want = x / (1.0 - f64::from(DROPOUT));
            zeros += usize::from(*value == 0.0);
            let kept = (value - want).abs() <= 1e-6 * want.abs();
            assert!(*value == 0.0 || kept, "[{i}] {value} {want}");
        }
        assert!(
            (dropped.len() / 5..dropped.len() / 2).contains(&zeros),
            "{zeros}"
        );
    }
    Ok(())
}

#[test]
fn inference_drops_nothing() -> Result<()> {
    for context in everywhere() {
        let with = Layer::new(&context, linear(DROPOUT, 3), 3)?.inference(SIZE)?;
        let without = Layer::new(&context, linear(0.0, 3), 3)?.inference(SIZE)?;
        assert!(with.dropout_clock().is_none());
        for sequence in [&with, &without] {
            fill_inputs(sequence, 1)?;
        }
        let (got, want) = (results(&with)?, results(&without)?);
        for (name, want) in want {
            assert_same(&context, &name, &got[&name], &want);
        }
    }
    Ok(())
}

#[test]
fn dropout_keeps_the_mean() -> Result<()> {
    const RUNS: usize = 400;
    let context = Context::cpu();
    let sequence = Layer::new(&context, linear(DROPOUT, 2), 3)?.training(SIZE)?;
    let plain = Layer::new(&context, linear(0.0, 2), 3)?.training(SIZE)?;
    let given = fill_inputs(&sequence, 1)?;
    write_inputs(&plain, &given)?;
    let want = results(&plain)?;
    let mut sums: Values = Values::new();
    let mut squares: Values = Values::new();
    for _ in 0..RUNS {
        for (name, values) in some(&results(&sequence)?, &["y", "hn", "dx"]) {
            let zeros = vec![0.0; values.len()];
            let sum = sums.entry(name.clone()).or_insert(zeros.clone());
            sum.iter_mut().zip(&values).for_each(|(s, v)| *s += v);
            let square = squares.entry(name).or_insert(zeros);
            square
                .iter_mut()
                .zip(&values)
                .for_each(|(s, v)| *s += v * v);
        }
    }
    for (name, sums) in &sums {
        for (i, (sum, square)) in sums.iter().zip(&squares[name]).enumerate() {
            let mean = sum / RUNS as f64;
            let variance = (square / RUNS as f64 - mean * mean).max(0.0);
            // Of some 500 elements none should be five standard errors off.
            let most = 5.0 * (variance / RUNS as f64).sqrt() + 1e-5;
            let want = want[name][i];
            assert!(
                (mean - want).abs() <= most,
                "{name}[{i}] {mean} {want} ± {most}"
            );
        }
    }
    Ok(())
}

// Orders

/// `[T, N, F]` as `[N, T, F]`, or back.
fn transposed(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let width = values.len() / (rows * columns);
    let shape = (rows, columns, width);
    let array = ArrayView3::from_shape(shape, values).unwrap();
    array.permuted_axes([1, 0, 2]).iter().copied().collect()
}

#[test]
fn orders_of_input_and_output_are_transpositions() -> Result<()> {
    const ORDERS: [Order; 2] = [Order::TimeFirst, Order::BatchFirst];
    for context in everywhere() {
        for cell in CELLS {
            let spec = LayerSpec {
                bidirectional: true,
                ..spec(cell, 2)
            };
            let layer = Layer::new(&context, spec, 3)?;
            let given = given(&layer, 1)?;
            let call = |size| Call::training(size).lengths().resets();
            let want = results(&over(&layer, 0..STEPS, call, &given)?)?;
            for (input, output) in ORDERS.into_iter().flat_map(|i| ORDERS.map(|o| (i, o))) {
                let order = |name: &str| match name {
                    "x" | "dx" => input,
                    "y" | "dy" => output,
                    _ => Order::TimeFirst,
                };
                let sequence = layer.sequence(&call(SIZE).orders(input, output))?;
                sequence.set_lengths(&LENGTHS)?;
                let resets = resets();
                sequence.set_resets(match input {
                    Order::TimeFirst => resets.view(),
                    Order::BatchFirst => resets.t(),
                })?;
                let mut given = given.clone();
                for (name, values) in &mut given {
                    if order(name) == Order::BatchFirst {
                        *values = transposed(values, STEPS, BATCH);
                    }
                }
                write_inputs(&sequence, &given)?;
                let mut got = results(&sequence)?;
                for (name, values) in &mut got {
                    if order(name) == Order::BatchFirst {
                        *values = transposed(values, BATCH, STEPS);
                    }
                }
                let what = format!("{} {input:?} {output:?}", cell.name);
                assert_all_close(&context, &what, &got, &want, LENGTH);
            }
        }
    }
    Ok(())
}

// Packed sequences

/// No sequence is empty, which a packed array cannot say; two are equally long.
const PACKED: [usize; BATCH] = [4, 7, 1, 4, 6];

/// The packed rows of a padded array `[T, N, F]`.
fn packed(values: &[f64], packing: &Packing) -> Vec<f64> {
    let width = values.len() / (STEPS * BATCH);
    let row = |(t, n)| &values[(t * BATCH + n) * width..][..width];
    packing.rows().flat_map(row).copied().collect()
}

/// States `[L·D, N, F]` in the order of the packed sequences.
fn sorted(values: &[f64], packing: &Packing, levels: usize) -> Vec<f64> {
    let width = values.len() / (levels * BATCH);
    let array = ArrayView3::from_shape((levels, BATCH, width), values).unwrap();
    array
        .select(Axis(1), packing.order())
        .iter()
        .copied()
        .collect()
}

fn packed_equals_padded(context: &Context, spec: LayerSpec, recompute: bool) -> Result<()> {
    let layer = Layer::new(context, spec, 3)?;
    let packing = Packing::new(&PACKED)?;
    let padded = layer.sequence(&Call::training(SIZE).lengths().resets())?;
    padded.set_lengths(&PACKED.map(|l| l as i64))?;
    // A direction that runs from the end starts with the last step of each sequence; of two of them
    // the state before it is zeroed. Past the end a reset would count for padded sequences alone.
    let ends = [false, true, true, false, false];
    let resets = Array2::from_shape_fn((STEPS, BATCH), |(t, n)| match t + 1 == PACKED[n] {
        true => ends[n],
        false => t < PACKED[n] && resets()[[t, n]],
    });
    padded.set_resets(resets.view())?;
    let of_rows: Vec<bool> = packing.rows().map(|at| resets[at]).collect();
    let levels = spec.num_layers * spec.directions();
    let pack = |values: Values| -> Values {
        let each = values.into_iter().map(|(name, values)| {
            let values = match name.as_str() {
                "x" | "dx" | "y" | "dy" => packed(&values, &packing),
                "h0" | "c0" | "hn" | "cn" | "dh0" | "dc0" | "dhn" | "dcn" => {
                    sorted(&values, &packing, levels)
                }
                _ => values,
            };
            (name, values)
        });
        each.collect()
    };
    let given = pack(fill_inputs(&padded, 1)?);
    let want = pack(results(&padded)?);
    for mode in [Mode::Training, Mode::Inference] {
        let call = Call {
            resets: true,
            recompute: (recompute && mode == Mode::Training).then_some(3),
            ..Call::packed(packing.batch_sizes(), mode)
        };
        let sequence = layer.sequence(&call)?;
        sequence.set_resets(ArrayView1::from(&of_rows))?;
        write_inputs(&sequence, &given)?;
        let got = results(&sequence)?;
        for (name, got) in &got {
            let what = format!("{} {mode:?}: {name}", spec.cell.name);
            assert_close(context, &what, got, &want[name], LENGTH);
        }
    }
    Ok(())
}

#[test]
fn packed_sequences_are_padded_ones_with_lengths() -> Result<()> {
    for context in everywhere() {
        for cell in CELLS {
            packed_equals_padded(&context, spec(cell, 1), false)?;
            let both = LayerSpec {
                bidirectional: true,
                ..spec(cell, 2)
            };
            packed_equals_padded(&context, both, true)?;
        }
    }
    Ok(())
}

#[test]
fn packed_work_is_that_of_its_tokens() -> Result<()> {
    let packing = Packing::new(&[7, 2, 1, 6])?;
    assert_eq!(packing.tokens(), 16);
    for cell in cell::ALL {
        let spec = LayerSpec {
            bidirectional: true,
            ..spec(cell, 2)
        };
        let flops = |call: &Call, section: &str| -> Result<u64> {
            let plan = Sequence::plan(&spec, call, &Target::default())?;
            Ok(plan.cost(plan.section(section)?).flops)
        };
        // As many sequences and tokens without padding; and the padded ones.
        let [same, padded] = [4, 7].map(|steps| Call::training(Size { steps, batch: 4 }));
        let packed = Call::packed(packing.batch_sizes(), Mode::Training);
        for section in ["forward", "backward"] {
            let work = flops(&packed, section)?;
            assert_eq!(work, flops(&same, section)?, "{} {section}", cell.name);
            assert!(work < flops(&padded, section)?);
        }
    }
    Ok(())
}

// Lengths and resets

#[test]
fn lengths_change_from_run_to_run() -> Result<()> {
    for context in everywhere() {
        for cell in CELLS {
            let layer = Layer::new(&context, spec(cell, 1), 3)?;
            let call = Call::training(SIZE).lengths();
            let kept = layer.sequence(&call)?;
            let given = fill_inputs(&kept, 1)?;
            let full = results(&layer.training(SIZE).and_then(|s| {
                write_inputs(&s, &given)?;
                Ok(s)
            })?)?;
            // Until lengths are written all are T.
            assert_all_close(&context, cell.name, &results(&kept)?, &full, LENGTH);
            for lengths in [LENGTHS, [7, 1, 3, 7, 6], [0; BATCH], [STEPS as i64; BATCH]] {
                kept.set_lengths(&lengths)?;
                let fresh = layer.sequence(&call)?;
                fresh.set_lengths(&lengths)?;
                write_inputs(&fresh, &given)?;
                let (got, want) = (results(&kept)?, results(&fresh)?);
                for (name, want) in &want {
                    assert_same(&context, &format!("{lengths:?}: {name}"), &got[name], want);
                }
                if lengths == [0; BATCH] {
                    nothing_but_states(&context, &got, &given);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn what_stands_past_a_length_counts_for_nothing() -> Result<()> {
    for context in everywhere() {
        for cell in CELLS {
            let both = LayerSpec {
                bidirectional: true,
                ..spec(cell, 2)
            };
            let layer = Layer::new(&context, both, 3)?;
            let sequence = layer.sequence(&Call::training(SIZE).lengths())?;
            sequence.set_lengths(&LENGTHS)?;
            let mut given = fill_inputs(&sequence, 1)?;
            let want = results(&sequence)?;
            // Any gradient there, and any finite input.
            for (name, value) in [("x", 1e30), ("dy", f64::NAN)] {
                let values = given.get_mut(name).unwrap();
                let width = values.len() / (STEPS * BATCH);
                for (row, values) in values.chunks_mut(width).enumerate() {
                    if (row / BATCH) as i64 >= LENGTHS[row % BATCH] {
                        values.fill(value);
                    }
                }
            }
            write_inputs(&sequence, &given)?;
            for (name, got) in results(&sequence)? {
                let what = format!("{}: {name}", cell.name);
                assert_close(&context, &what, &got, &want[&name], LENGTH);
            }
        }
    }
    Ok(())
}

/// Sequences without a step hand their initial state to the end, and its gradient back.
fn nothing_but_states(context: &Context, got: &Values, given: &Values) {
    for (name, values) in got {
        let from = match name.as_str() {
            "hn" => "h0",
            "cn" => "c0",
            "dh0" => "dhn",
            "dc0" => "dcn",
            _ => {
                assert_zero(context, name, values);
                continue;
            }
        };
        assert_same(context, name, values, &given[from]);
    }
}

#[test]
fn resets_at_every_step_are_single_steps() -> Result<()> {
    for context in everywhere() {
        for cell in CELLS {
            let what = cell.name;
            let layer = Layer::new(&context, spec(cell, 2), 3)?;
            let whole = layer.sequence(&Call::training(SIZE).resets())?;
            whole.set_resets(Array2::from_elem((STEPS, BATCH), true).view())?;
            let given = fill_inputs(&whole, 1)?;
            let got = results(&whole)?;
            // The same rows as sequences of one step each, from zeros.
            let single = layer.training(Size {
                steps: 1,
                batch: STEPS * BATCH,
            })?;
            write_inputs(&single, &some(&given, &["x", "dy"]))?;
            // The last steps end with the whole's final states.
            for (name, tensor) in inputs(&single)? {
                if ["dhn", "dcn"].contains(&name) {
                    let width = *tensor.shape().last().unwrap();
                    let levels = given[name].chunks(BATCH * width);
                    let behind = vec![0.0; (STEPS - 1) * BATCH * width];
                    let all: Vec<f64> = levels.flat_map(|l| [&behind, l].concat()).collect();
                    tensor.write_f64(&all)?;
                }
            }
            let mut want = results(&single)?;
            for name in ["dh0", "dc0", "hn", "cn"] {
                let Some(values) = want.remove(name) else {
                    continue;
                };
                let got = &got[name];
                if name.starts_with('d') {
                    assert_zero(&context, &format!("{what}: {name}"), got);
                    continue;
                }
                let width = got.len() / (2 * BATCH);
                let level = STEPS * BATCH * width;
                let last = values
                    .chunks(level)
                    .flat_map(|l| &l[level - BATCH * width..]);
                let last: Vec<f64> = last.copied().collect();
                assert_close(&context, &format!("{what}: {name}"), got, &last, LENGTH);
            }
            assert_all_close(&context, what, &got, &want, LENGTH);
        }
    }
    Ok(())
}
