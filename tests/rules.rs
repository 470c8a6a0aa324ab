//! Plans by the rules for another kind of device: what hardware would run, where there is none.

mod common;

use common::refusal;
use common::results::{assert_all_close, everywhere, fill_inputs, results, write_inputs};
use wgrnn::cell;
use wgrnn::plan::sequence::{self as driver, Strategy};
use wgrnn::plan::{Builder, DeviceKind, Force, Target};
use wgrnn::tune::Tuning;
use wgrnn::{Call, Context, Error, Layer, LayerSpec, Precision, Result, Sequence, Size};

/// Each kind of device that this one can be planned for, with its plans.
fn planned(context: &Context) -> Result<Vec<(DeviceKind, Context)>> {
    let kinds = DeviceKind::ALL.into_iter();
    let kinds = kinds.filter(|kind| !context.is_gpu() || *kind != DeviceKind::Cpu);
    kinds
        .map(|kind| Ok((kind, context.planning_for(kind)?)))
        .collect()
}

/// Layers and calls for which the rules of the kinds differ: tiny ones, few sequences, many.
fn calls() -> Vec<(LayerSpec, Call)> {
    let training = |steps, batch| Call::training(Size { steps, batch });
    let two = |cell, input, hidden| LayerSpec {
        num_layers: 2,
        ..LayerSpec::new(cell, input, hidden)
    };
    vec![
        (LayerSpec::new(&cell::LSTM, 3, 8), training(6, 2)),
        (two(&cell::LSTM, 5, 150), training(4, 3)),
        (two(&cell::GRU, 7, 90), training(4, 20)),
        (LayerSpec::new(&cell::GRU_BEFORE, 6, 33), training(4, 9)),
        (LayerSpec::new(&cell::RNN_TANH, 6, 300), training(3, 12)),
        (
            LayerSpec::new(&cell::LSTM_PROJECTED, 6, 40),
            training(4, 10),
        ),
    ]
}

#[test]
fn the_same_results() -> Result<()> {
    for (nth, (spec, call)) in calls().into_iter().enumerate() {
        let oracle = Layer::new(&Context::cpu_f64(), spec, 1)?.sequence(&call)?;
        let inputs = fill_inputs(&oracle, 2)?;
        let want = results(&oracle)?;
        for context in everywhere() {
            for (_, context) in common::share_on(&context, planned(&context)?, nth, 2) {
                let sequence = Layer::new(&context, spec, 1)?.sequence(&call)?;
                write_inputs(&sequence, &inputs)?;
                let what = format!("{} {:?}", spec.cell.name, call.mode);
                assert_all_close(&context, &what, &results(&sequence)?, &want, 400);
            }
        }
    }
    Ok(())
}

/// The plan is that for a device of the kind with the limits and features of this one.
#[test]
fn the_plans_of_that_kind() -> Result<()> {
    for context in everywhere() {
        let mut different = 0;
        for (spec, call) in calls() {
            let mut chosen = Vec::new();
            for (kind, planned) in planned(&context)? {
                let target = Target {
                    kind,
                    ..context.target()
                };
                assert_eq!(planned.target(), target);
                let sequence = Layer::new(&planned, spec, 1)?.sequence(&call)?;
                let plan = sequence.program().plan();
                let kernels: Vec<_> = plan.steps().iter().map(|s| s.kernel.name).collect();
                let want = Sequence::plan(&spec, &call, &target)?;
                let of_kind: Vec<_> = want.steps().iter().map(|s| s.kernel.name).collect();
                assert_eq!(kernels, of_kind, "{}", planned.name());
                chosen.push(kernels);
            }
            different += usize::from(chosen.iter().any(|c| *c != chosen[0]));
        }
        assert!(different >= 4, "{}: {different}", context.name());
    }
    Ok(())
}

#[test]
fn a_name_says_so() -> Result<()> {
    for context in [Context::cpu(), Context::cpu_f64()] {
        let own = context.planning_for(DeviceKind::Cpu)?;
        assert_eq!(own.name(), context.name());
        let other = context.planning_for(DeviceKind::Gpu)?;
        assert_eq!(other.name(), format!("{}, planned for gpu", context.name()));
        assert!(other.same(&context));
        assert_eq!(other.forcing(Default::default()).name(), other.name());
    }
    Ok(())
}

/// What was measured by other rules is not what a device runs by its own.
#[test]
fn tuned_apart() -> Result<()> {
    let spec = LayerSpec::new(&cell::RNN_TANH, 3, 8);
    let call = Call::inference(Size { steps: 6, batch: 2 });
    let mut tuning = Tuning::new();
    for context in everywhere() {
        let before = tuning.len();
        let planned = planned(&context)?;
        for (_, context) in &planned {
            tuning.context(context, &spec, &call)?;
        }
        tuning.context(&context, &spec, &call)?;
        assert_eq!(tuning.len() - before, planned.len(), "{}", context.name());
    }
    Ok(())
}

/// A plan for other rules, or other choices, would read weights that are packed otherwise, though as many.
#[test]
fn weights_of_other_rules_are_refused() -> Result<()> {
    let cpu = Context::cpu();
    let spec = LayerSpec::new(&cell::RNN_TANH, 6, 64);
    let layer = Layer::new(&cpu, spec, 1)?;
    let weights_for = |context: &Context| {
        let mut b = Builder::on("other", context.target());
        driver::weights(&mut b, &spec)
    };
    assert!(!layer.bind(&weights_for(&cpu))?.is_empty());
    let steps = Force {
        strategy: Some(Strategy::Steps),
        ..Force::default()
    };
    let gpu = cpu.planning_for(DeviceKind::Gpu)?;
    for other in [&gpu, &gpu.forcing(steps)] {
        match refusal(layer.bind(&weights_for(other))) {
            Error::Value { arg, .. } => assert_eq!(arg, "weights"),
            e => panic!("{e}"),
        }
    }
    Ok(())
}

/// The CPU stores activations in 16 bits under any rules.
#[test]
fn activations_in_16_bits() -> Result<()> {
    for (_, context) in planned(&Context::cpu())? {
        let (spec, call) = calls().remove(1);
        let call = Call {
            activations: Precision::F16,
            ..call
        };
        Layer::new(&context, spec, 1)?.sequence(&call)?.forward()?;
    }
    Ok(())
}

#[test]
fn the_rules_for_the_cpu_are_not_for_adapters() {
    for context in common::kept() {
        match refusal(context.planning_for(DeviceKind::Cpu)) {
            Error::Value { op, arg, .. } => {
                assert_eq!((op, arg.as_str()), ("Context::planning_for", "kind"));
            }
            e => panic!("{e}"),
        }
    }
}
