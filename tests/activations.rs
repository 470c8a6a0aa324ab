//! Activations in 16-bit floats: every device in every way of running steps rounds what the oracle rounds, and
//! nothing else changes but the memory.

mod common;

use common::config::fill;
use common::refusal;
use common::results::{Values, everywhere, fill_inputs, results};
use wgrnn::cell::{self, Cell};
use wgrnn::check::{compare, tolerance};
use wgrnn::kernels::gemm::Form;
use wgrnn::ndarray::{ArrayView, IxDyn};
use wgrnn::plan::sequence::{Levels, StepForm, Strategy};
use wgrnn::plan::{Buffer, DeviceKind, Force, Target};
use wgrnn::rng::Rng;
use wgrnn::{Call, Context, Dtype, Error, Layer, LayerSpec, Precision, Result, Sequence, Size};

const SIZE: Size = Size {
    steps: 17,
    batch: 11,
};

/// Cells with every number of gates; sizes that fill no quad, block or word; directions and a stack.
fn specs() -> Vec<LayerSpec> {
    let of = |cell: &'static Cell, input, hidden| LayerSpec::new(cell, input, hidden);
    vec![
        LayerSpec {
            bidirectional: true,
            ..of(&cell::LSTM, 5, 19)
        },
        of(&cell::LSTM_PEEPHOLE, 3, 33),
        LayerSpec {
            proj_size: 6,
            ..of(&cell::LSTM_PROJECTED, 4, 13)
        },
        LayerSpec {
            num_layers: 2,
            ..of(&cell::GRU, 7, 13)
        },
        of(&cell::RNN_TANH, 1, 21),
    ]
}

/// The device with each form of steps, and with each of products or without.
fn ways(device: &Context, products: bool) -> Vec<Context> {
    let forced = |force| device.forcing(force);
    let by_steps = |form| {
        forced(Force {
            strategy: Some(Strategy::Steps),
            step: Some(form),
            levels: Some(Levels::Together),
            ..Force::default()
        })
    };
    let product = |form| {
        forced(Force {
            gemm: Some(form),
            levels: Some(Levels::InTurn),
            ..Force::default()
        })
    };
    let all_steps = forced(Force {
        strategy: Some(Strategy::Sequence),
        ..Force::default()
    });
    let mut ways: Vec<Context> = StepForm::ALL.map(by_steps).into();
    ways.push(all_steps);
    if products {
        ways.extend(Form::ALL.map(product));
    }
    ways
}

/// Every device that has 16-bit floats.
fn halves() -> Vec<Context> {
    let mut all = everywhere();
    all.retain(|context| context.target().f16 || !context.is_gpu());
    all
}

fn call(precision: Precision) -> Call {
    Call::training(SIZE).lengths().activations(precision)
}

/// Outputs and all gradients.
fn run(context: &Context, spec: LayerSpec, call: &Call) -> Result<Values> {
    let layer = Layer::new(context, spec, 3)?;
    let mut rng = Rng::new(7);
    for (_, weight) in layer.weights() {
        fill(weight, &mut rng)?;
    }
    layer.prepare()?;
    let sequence = layer.sequence(call)?;
    let lengths: Vec<i64> = (0..SIZE.batch as i64).map(|n| 3 * n % 18).collect();
    if call.lengths {
        sequence.set_lengths(&lengths)?;
    }
    if call.resets {
        let resets: Vec<bool> = (0..SIZE.steps * SIZE.batch).map(|i| i % 7 == 3).collect();
        let shape = [SIZE.steps, SIZE.batch];
        sequence.set_resets(ArrayView::from_shape(IxDyn(&shape), &resets).unwrap())?;
    }
    fill_inputs(&sequence, 9)?;
    results(&sequence)
}

#[test]
fn rounded_alike_everywhere() -> Result<()> {
    let specs: Vec<(usize, LayerSpec)> = specs().into_iter().enumerate().collect();
    let done = common::spread(&specs, |specs| {
        let mut each = specs.into_iter();
        each.try_for_each(|(nth, spec)| rounded_alike(nth, spec))
    });
    done.into_iter().collect()
}

fn rounded_alike(nth: usize, spec: LayerSpec) -> Result<()> {
    for more in [false, true] {
        let call = |precision| match more {
            false => call(precision),
            true => call(precision).resets().recompute(5),
        };
        let exact = run(&Context::cpu_f64(), spec, &call(Precision::F32))?;
        let want = run(&Context::cpu_f64(), spec, &call(Precision::F16))?;
        let moved = |name: &str| compare(&want[name], &exact[name]).error;
        let mut devices = halves();
        devices.retain(|device| !more || !device.is_gpu() || common::thorough());
        for device in devices {
            for context in common::share_on(&device, ways(&device, !more), nth, 8) {
                let what = format!("{} {}", spec.cell.name, context.target().force);
                let got = run(&context, spec, &call(Precision::F16))?;
                for (name, want) in &want {
                    let whole = tolerance::layer(Dtype::F32, SIZE.steps * SIZE.batch, 0.0);
                    let limit = whole + tolerance::activations_f16(moved(name));
                    let d = compare(&got[name], want);
                    let what = format!("{what}: {name} on {}", context.name());
                    assert!(d.error <= limit, "{what}: {:.1e} > {limit:.1e}", d.error);
                }
                // Without rounding y would be the exact one.
                let y = compare(&got["y"], &exact["y"]).error;
                let least = 10.0 * tolerance::layer(Dtype::F32, spec.width(), 0.0);
                assert!(y > least, "{what}: y moved by {y:.1e} alone");
            }
        }
    }
    Ok(())
}

/// What is kept is 16-bit floats, and the gradients move with them.
#[test]
fn what_is_kept_fits() -> Result<()> {
    for (nth, spec) in specs().into_iter().enumerate() {
        let exact = run(&Context::cpu_f64(), spec, &call(Precision::F32))?;
        let mut devices = halves();
        devices.retain(|device| nth.is_multiple_of(3) || !device.is_gpu() || common::thorough());
        for device in devices {
            for context in common::share_on(&device, ways(&device, false), nth, 6) {
                let what = format!("{} {}", spec.cell.name, context.target().force);
                let sequence = Layer::new(&context, spec, 3)?.sequence(&call(Precision::F16))?;
                fill_inputs(&sequence, 9)?;
                results(&sequence)?;
                for value in sequence.program().named("gates_l0")?.read_f64()? {
                    let kept = half::f16::from_f64(value).to_f64();
                    assert!(value.is_nan() || kept == value, "{what}: {value}");
                }
                let got = run(&context, spec, &call(Precision::F16))?;
                for (name, exact) in exact.iter().filter(|(name, _)| name.starts_with('d')) {
                    let moved = compare(&got[name], exact).error;
                    assert!(moved > 1e-5, "{what}: {name} moved by {moved:.1e} alone");
                }
            }
        }
    }
    Ok(())
}

/// Pre-activations beyond the largest 16-bit float saturate their gates as they do in `f32`, and NaN goes on.
#[test]
fn what_does_not_fit() -> Result<()> {
    let spec = LayerSpec {
        bias: false,
        ..LayerSpec::new(&cell::LSTM, 1, 6)
    };
    let size = Size { steps: 2, batch: 3 };
    for context in halves() {
        let of = |precision| -> Result<Vec<f64>> {
            let layer = Layer::new(&context, spec, 5)?;
            let sequence = layer.sequence(&Call::inference(size).activations(precision))?;
            let far = [1e6, -1e7, f32::NAN];
            sequence.x().write(&[far, far].concat())?;
            Ok(results(&sequence)?["y"].clone())
        };
        let (got, want) = (of(Precision::F16)?, of(Precision::F32)?);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got.is_nan(), want.is_nan());
            assert!(want.is_nan() || (got - want).abs() < 1e-3, "{got} {want}");
        }
        assert_eq!(got.iter().filter(|v| v.is_nan()).count(), 2 * 6);
    }
    Ok(())
}

/// Where nothing is rounded that was not before, every bit is the same: all activations are 16-bit floats.
#[test]
fn what_fits_is_not_changed() -> Result<()> {
    let spec = LayerSpec {
        activations: [wgrnn::Activation::new(wgrnn::Function::Affine); 3],
        ..LayerSpec::new(&cell::RNN_TANH, 2, 5)
    };
    for context in halves() {
        let of = |precision| -> Result<Values> {
            let layer = Layer::new(&context, spec, 1)?;
            for (_, weight) in layer.weights() {
                let values: Vec<f32> = (0..weight.len()).map(|i| (i % 3) as f32 - 1.0).collect();
                weight.write(&values)?;
            }
            layer.prepare()?;
            let size = Size { steps: 3, batch: 2 };
            let sequence = layer.sequence(&Call::training(size).activations(precision))?;
            let whole =
                |len: usize| -> Vec<f32> { (0..len).map(|i| (i % 5) as f32 - 2.0).collect() };
            sequence.x().write(&whole(sequence.x().len()))?;
            sequence.dy()?.write(&whole(sequence.dy()?.len()))?;
            results(&sequence)
        };
        assert_eq!(
            of(Precision::F16)?,
            of(Precision::F32)?,
            "{}",
            context.name()
        );
    }
    Ok(())
}

#[test]
fn half_of_the_memory() -> Result<()> {
    let spec = LayerSpec::new(&cell::LSTM, 8, 32);
    let target = Target {
        f16: true,
        ..Target::portable(DeviceKind::Gpu)
    };
    let plans = Precision::ALL.map(|p| Sequence::plan(&spec, &call(p), &target));
    let [whole, half] = plans;
    let (whole, half) = (whole?, half?);
    let gates = |plan: &wgrnn::plan::Plan| {
        let mut found = plan
            .buffers()
            .iter()
            .filter(|b| b.name.starts_with("gates"));
        found.next().map(Buffer::bytes)
    };
    assert_eq!(gates(&whole), Some(17 * 11 * 128 * 4));
    assert_eq!(gates(&half), Some(17 * 11 * 128 * 2));
    assert!(half.name().contains("activations f16"), "{}", half.name());
    // What reads or writes them moves fewer bytes.
    let bytes =
        |plan: &wgrnn::plan::Plan| plan.cost(plan.section("forward").unwrap()).unwrap().bytes;
    let saved = bytes(&whole) - bytes(&half);
    // Written by the product; read and written by the steps.
    assert_eq!(saved, 3 * 17 * 11 * 128 * 2);
    Ok(())
}

#[test]
fn refused_where_there_are_none() {
    let half = call(Precision::F16);
    let without = Target::portable(DeviceKind::Gpu);
    let spec = LayerSpec::new(&cell::LSTM, 3, 4);
    let e = refusal(Sequence::plan(&spec, &half, &without));
    let expected = "16-bit floats in shaders";
    assert!(
        matches!(&e, Error::Unsupported { needs, .. } if needs.contains(expected)),
        "{e}"
    );
    let spec = LayerSpec::new(&cell::GRU_BEFORE, 3, 4);
    let e = refusal(Sequence::plan(
        &spec,
        &half,
        &Target::portable(DeviceKind::Cpu),
    ));
    assert!(e.to_string().contains("16-bit activations"), "{e}");
}
