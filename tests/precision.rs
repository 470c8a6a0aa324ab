//! Weights in 16-bit floats: a layer computes with just those that its own are rounded to, on every
//! device in every way of running steps, and nothing else of it changes.

mod common;

use std::collections::BTreeMap;

use common::refusal;
use common::results::{Values, assert_all_close, everywhere, fill_inputs, results};
use half::f16;
use wgrnn::cell::{self, Cell};
use wgrnn::check::{compare, tolerance};
use wgrnn::kernel::Element;
use wgrnn::kernels::pack::Blocks;
use wgrnn::ndarray::{Array2, Array3, ArrayView, Axis, IxDyn};
use wgrnn::plan::sequence::{self as driver, Run, StepForm, Strategy};
use wgrnn::plan::{Builder, Force, Role, Target};
use wgrnn::rng::Rng;
use wgrnn::{
    Call, Context, Dtype, Error, Gru, Layer, LayerSpec, Lstm, Precision, Program, Result, Sequence,
    Size, Tensor,
};

const SIZE: Size = Size {
    steps: 6,
    batch: 11,
};
/// The longest sum is that of a weight's gradient over all rows.
const LENGTH: usize = SIZE.steps * SIZE.batch;

/// Cells with every number of gates; sizes that fill no quad, block or word, in both directions.
fn specs() -> Vec<LayerSpec> {
    let of = |cell: &'static Cell, input, hidden| LayerSpec::new(cell, input, hidden);
    vec![
        LayerSpec {
            num_layers: 2,
            bidirectional: true,
            ..of(&cell::LSTM, 5, 19)
        },
        of(&cell::LSTM_PEEPHOLE, 3, 33),
        LayerSpec {
            bias: false,
            ..of(&cell::GRU, 7, 13)
        },
        LayerSpec {
            bidirectional: true,
            ..of(&cell::RNN_TANH, 1, 21)
        },
        of(&cell::RNN_RELU, 4, 8),
    ]
}

fn in_f16(spec: &LayerSpec) -> LayerSpec {
    LayerSpec {
        precision: Precision::F16,
        ..*spec
    }
}

/// The device with each way of running steps that has 16-bit weights.
fn ways(device: &Context) -> Vec<Context> {
    let way = |strategy, step| {
        device.forcing(Force {
            strategy: Some(strategy),
            step: Some(step),
            ..Force::default()
        })
    };
    let forms = [StepForm::Blocks, StepForm::Few, StepForm::Tile];
    let mut ways = vec![way(Strategy::Sequence, StepForm::Blocks)];
    ways.extend(forms.map(|form| way(Strategy::Steps, form)));
    ways
}

/// The numbers of a tensor as 16-bit floats say them.
fn rounded(values: &[f64]) -> Vec<f64> {
    let round = |v: &f64| f16::from_f32(*v as f32).to_f64();
    values.iter().map(round).collect()
}

/// Changes the weights that are stored in 16 bits.
fn change(layer: &Layer, mut to: impl FnMut(&[f64]) -> Vec<f64>) -> Result<()> {
    for (name, tensor) in layer.weights() {
        let stored = ["weight_ih", "weight_hh", "bias_ih"];
        if stored.iter().any(|part| name.starts_with(part)) {
            tensor.write_f64(&to(&tensor.read_f64()?))?;
        }
    }
    layer.prepare()
}

/// With lengths and resets, and states of which only every third is kept.
fn training(layer: &Layer) -> Result<Sequence> {
    let call = Call::training(SIZE).lengths().resets().recompute(4);
    let sequence = layer.sequence(&call)?;
    let mut rng = Rng::new(4);
    let lengths: Vec<i64> = (0..SIZE.batch).map(|n| (n % 7) as i64).collect();
    sequence.set_lengths(&lengths)?;
    let resets: Vec<bool> = (0..SIZE.steps * SIZE.batch)
        .map(|_| rng.below(5) == 0)
        .collect();
    let shape = [SIZE.steps, SIZE.batch];
    sequence.set_resets(ArrayView::from_shape(IxDyn(&shape), &resets).unwrap())?;
    Ok(sequence)
}

/// Outputs and all gradients.
fn run(layer: &Layer) -> Result<Values> {
    let sequence = training(layer)?;
    fill_inputs(&sequence, 9)?;
    results(&sequence)
}

#[test]
fn as_with_rounded_weights() -> Result<()> {
    let specs: Vec<(usize, LayerSpec)> = specs().into_iter().enumerate().collect();
    let done = common::spread(&specs, |specs| {
        specs.into_iter().try_for_each(as_with_rounded)
    });
    done.into_iter().collect()
}

fn as_with_rounded((nth, spec): (usize, LayerSpec)) -> Result<()> {
    let oracle = Context::cpu_f64();
    let whole = Layer::new(&oracle, spec, 3)?;
    let unrounded = run(&whole)?;
    change(&whole, rounded)?;
    let want = run(&whole)?;
    for device in everywhere() {
        for context in common::share_on(&device, ways(&device), nth, 4) {
            let what = format!("{} {}", spec.cell.name, context.target().force);
            let layer = Layer::new(&context, in_f16(&spec), 3)?;
            let got = run(&layer)?;
            assert_all_close(&context, &what, &got, &want, LENGTH);
            // The weights themselves would give another result.
            let limit = 4.0 * tolerance::layer(Dtype::F32, LENGTH, 4.0 * tolerance::UNIT);
            for (name, unrounded) in &unrounded {
                let moved = compare(&got[name], unrounded).error;
                assert!(moved > limit, "{what}: {name} moved by {moved:.1e} alone");
            }
        }
    }
    Ok(())
}

/// The error of rounding, from how far the exact result moves when the weights do.
#[test]
fn near_the_weights_themselves() -> Result<()> {
    for (nth, spec) in specs().into_iter().enumerate() {
        let exact = Layer::new(&Context::cpu_f64(), spec, 3)?;
        let want = run(&exact)?;
        let mut sensitivity: BTreeMap<&str, f64> = BTreeMap::new();
        for seed in 0..4 {
            let layer = Layer::new(&Context::cpu_f64(), spec, 3)?;
            let mut rng = Rng::new(seed);
            let mut sign = || if rng.below(2) == 0 { 1.0 } else { -1.0 };
            change(&layer, |values| {
                let moved = |v: &f64| v * (1.0 + sign() * tolerance::UNIT_F16);
                values.iter().map(moved).collect()
            })?;
            for (name, moved) in run(&layer)? {
                let (name, want) = want.get_key_value(&name).unwrap();
                let most = sensitivity.entry(name).or_default();
                *most = most.max(compare(&moved, want).error);
            }
        }
        let everywhere = everywhere().into_iter();
        for context in everywhere.flat_map(|c| common::share_on(&c.clone(), vec![c], nth, 5)) {
            let got = run(&Layer::new(&context, in_f16(&spec), 3)?)?;
            for (name, want) in &want {
                let limit = tolerance::weights_f16(sensitivity[name.as_str()]);
                let d = compare(&got[name], want);
                let what = format!("{} {}: {name}", context.name(), spec.cell.name);
                assert!(d.error <= limit, "{what}: {:.1e} > {limit:.1e}", d.error);
            }
        }
    }
    Ok(())
}

/// Streams, which have b_ih among their weights.
#[test]
fn streams_too() -> Result<()> {
    const COUNT: usize = 9;
    const STEPS: usize = 4;
    let steps = |layer: &Layer| -> Result<Vec<f64>> {
        let streams = layer.streams(COUNT)?;
        let (all, mut rng) = (Vec::from_iter(0..COUNT), Rng::new(6));
        let mut outputs = Vec::new();
        for _ in 0..STEPS {
            let width = layer.input_size();
            let x = Array2::from_shape_simple_fn((COUNT, width), || rng.uniform(-1.0, 1.0));
            outputs.extend(streams.step(&all, x.view())?.into_iter().map(f64::from));
        }
        Ok(outputs)
    };
    let specs = specs().into_iter().filter(|s| !s.bidirectional);
    for (nth, spec) in specs.enumerate() {
        let whole = Layer::new(&Context::cpu_f64(), spec, 3)?;
        change(&whole, rounded)?;
        let want = steps(&whole)?;
        let unrounded = steps(&Layer::new(&Context::cpu_f64(), spec, 3)?)?;
        for device in everywhere() {
            for context in common::share_on(&device, ways(&device), nth, 4) {
                let what = format!("{} {}", spec.cell.name, context.target().force);
                let got = steps(&Layer::new(&context, in_f16(&spec), 3)?)?;
                // Outputs are `f32` everywhere.
                let limit = tolerance::layer(Dtype::F32, 64, 4.0 * tolerance::UNIT);
                let d = compare(&got, &want);
                assert!(d.error <= limit, "{what}: {:.1e} > {limit:.1e}", d.error);
                assert!(compare(&got, &unrounded).error > limit, "{what}");
            }
        }
    }
    Ok(())
}

/// The bits that IEEE 754 asks for, on every device: ties, subnormal numbers, what overflows.
#[test]
fn rounded_to_the_nearest_even() -> Result<()> {
    let mut rng = Rng::new(1);
    let mut values = vec![
        0.0,
        -0.0,
        1.0,
        65_504.0,
        65_519.99,
        65_520.0,
        -65_520.0,
        1e6,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE,
        1e-40,
        f32::NAN,
    ];
    for exponent in -27..17 {
        let one = 2f32.powi(exponent);
        for part in [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75] {
            let step = (part / 1024.0) as f32;
            values.extend([one * (1.0 + step), -one * (1.5 + step), one * (1.0 - step)]);
        }
    }
    // All exponents alike.
    for _ in 0..5000 {
        let bits = rng.below(1 << 16) << 16 | rng.below(1 << 16);
        values.push(f32::from_bits(bits));
        values.push(rng.uniform(-1.0, 1.0));
    }
    values.push(0.1);
    for context in everywhere() {
        let len = values.len();
        let mut b = Builder::new("round");
        let source = b.float("source", &[len], Role::Input);
        let blocks = Blocks::copy(len);
        let half = b.stored(Precision::F16, "half", &[blocks.len()], Role::Output);
        blocks.push(&mut b, source, half)?;
        let program = Program::new(&context, b.finish(), &[])?;
        program.tensor(source)?.write(&values)?;
        program.run("main")?;
        let got = program.tensor(half)?.read()?;
        for (&v, got) in values.iter().zip(got) {
            let want = f16::from_f32(v).to_f32();
            let same = want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan());
            assert!(same, "{}: {v:e} is {got:e}, not {want:e}", context.name());
        }
    }
    Ok(())
}

#[test]
fn tensors_of_halves() -> Result<()> {
    for context in everywhere() {
        let tensor = Tensor::zeros(&context, &[5, 3], Element::Half)?;
        let values: Vec<f32> = (0..15).map(|i| i as f32 + 0.1).collect();
        let near: Vec<f32> = values.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
        assert_ne!(values, near);
        tensor.write(&values)?;
        assert_eq!(tensor.read()?, near, "{}", context.name());
        tensor.write_f64(&values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>())?;
        assert_eq!(tensor.read()?, near);
        // Rows 2 to 4 begin and end with a word; 1 to 3 do not; the last may be half a word.
        let middle = tensor.rows(2..4)?;
        assert_eq!(middle.read()?, near[6..12]);
        middle.write(&[1.0; 6])?;
        let all = tensor.read()?;
        assert_eq!((&all[..6], &all[12..]), (&near[..6], &near[12..]));
        assert_eq!(all[6..12], [1.0; 6]);
        assert_eq!(tensor.rows(4..5)?.read()?, near[12..]);
        for cut in [1..3, 0..1, 3..5] {
            refusal(tensor.rows(cut));
        }
        refusal(tensor.write_uint(&[0; 15]));
        refusal(tensor.write(&[0.0; 14]));
    }
    Ok(())
}

/// A word is packed by one invocation.
#[test]
fn half_a_word_is_refused() {
    let mut b = Builder::new("odd");
    let blocks = Blocks::forward([3, 4, 5], 1);
    let source = b.float("source", &[60], Role::Input);
    let half = b.stored(Precision::F16, "half", &[blocks.len()], Role::Output);
    let e = refusal(blocks.push(&mut b, source, half));
    assert!(e.to_string().contains("even"), "{e}");
}

#[test]
fn cells_without_such_kernels_are_refused() {
    let context = Context::cpu();
    let gru = Gru::new(3, 4).reset(wgrnn::Reset::Before);
    let projected = Lstm::new(3, 4).projection(2);
    for (name, result) in [
        ("gru_before", gru.precision(Precision::F16).build(&context)),
        (
            "lstm_projected",
            projected.precision(Precision::F16).build(&context),
        ),
    ] {
        let e = refusal(result);
        assert!(
            matches!(e, Error::Unsupported { op, .. } if op == name),
            "{e}"
        );
        assert!(e.to_string().contains("f16"), "{e}");
    }
}

/// Weights in one precision and a run in another do not go together.
#[test]
fn precisions_are_not_mixed() -> Result<()> {
    let target = Target::default();
    let spec = Lstm::new(3, 70).spec();
    let run = Run::new(&in_f16(&spec), &Call::inference(SIZE), &target)?;
    let mut b = Builder::on("mixed", target);
    let x = b.float("x", &[LENGTH, 3], Role::Input);
    let y = b.float("y", &[LENGTH, 70], Role::Output);
    let weights = driver::weights(&mut b, &spec);
    let states = driver::states(&mut b, &run);
    let ends = driver::Ends {
        x: wgrnn::plan::Matrix::dense(x, LENGTH, 3),
        y,
        clock: None,
    };
    let e = refusal(driver::forward(&mut b, &run, ends, &weights, &states));
    assert!(e.to_string().contains("in f16"), "{e}");
    Ok(())
}

/// Two bytes for each packed weight, in memory and in what a step costs.
#[test]
fn half_the_bytes() -> Result<()> {
    let call = Call::training(SIZE);
    for hidden in [64, 200] {
        let spec = Lstm::new(12, hidden).spec();
        let [whole, half] =
            [spec, in_f16(&spec)].map(|spec| Sequence::plan(&spec, &call, &Target::default()));
        let (whole, half) = (whole?, half?);
        assert!(half.name().contains("f16"), "{}", half.name());
        let packed = |plan: &wgrnn::plan::Plan| {
            let mut named = plan.buffers().iter();
            named.find(|b| b.name == "weight_hh_t_l0").unwrap().clone()
        };
        assert_eq!(2 * packed(&half).bytes(), packed(&whole).bytes());
        let weights = (4 * hidden * hidden) as u64;
        let bytes = |plan: &wgrnn::plan::Plan, kernel: &str| -> Vec<u64> {
            let of = plan.steps().iter().filter(|s| s.kernel.name == kernel);
            of.map(|s| s.cost.bytes).collect()
        };
        let kernels = match hidden {
            64 => ["lstm.sequence_forward", "lstm.sequence_backward"],
            // Back there are too few tiles.
            _ => ["lstm.forward_tile", "lstm.backward_few"],
        };
        for kernel in kernels {
            let (whole, half) = (bytes(&whole, kernel), bytes(&half, kernel));
            assert!(!half.is_empty() && half.len() == whole.len(), "{kernel}");
            for (half, whole) in half.into_iter().zip(whole) {
                assert_eq!(whole - half, 2 * weights, "{kernel}");
            }
        }
    }
    Ok(())
}

/// What an optimizer changes stays whole, and the next call packs it again.
#[test]
fn a_change_counts_in_the_next_call() -> Result<()> {
    for context in everywhere() {
        let layer = Lstm::new(4, 6).precision(Precision::F16).build(&context)?;
        let x = Array3::from_elem((2, 3, 4), 0.5f32);
        let before = layer.forward(x.view(), None)?.y;
        for (name, tensor) in layer.weights() {
            let halved: Vec<f64> = tensor.read_f64()?.iter().map(|v| 0.5 * v).collect();
            tensor.write_f64(&halved)?;
            assert_eq!(tensor.read_f64()?, halved, "{name}");
        }
        let after = layer.forward(x.view(), None)?.y;
        let moved = (&after - &before).mapv(f32::abs);
        assert!(moved.index_axis(Axis(0), 0).iter().any(|&v| v > 1e-3));
    }
    Ok(())
}
