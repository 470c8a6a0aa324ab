//! What is written between calls: weights are packed again before the next one, and a backward pass whose forward pass
//! read other numbers is refused.

mod common;

use common::refusal;
use common::results::{Values, assert_same, everywhere, fill_inputs, latest, write_inputs};
use wgrnn::interop::safetensors::Archive;
use wgrnn::kernels::copy::copy;
use wgrnn::kernels::sgd::{self, Sgd};
use wgrnn::ndarray::{Array2, Array3};
use wgrnn::plan::{Builder, Role};
use wgrnn::{
    Call, Context, Dtype, Error, Layer, Lstm, Precision, Program, Result, Sequence, Size, Tensor,
};

const SIZE: Size = Size { steps: 3, batch: 2 };

fn lstm() -> Lstm {
    // With everything that is packed.
    Lstm::new(3, 6).projection(4).num_layers(2)
}

/// The weights of the same layer from another seed.
fn others(context: &Context) -> Result<Archive> {
    others_of(context, lstm())
}

fn others_of(context: &Context, lstm: Lstm) -> Result<Archive> {
    lstm.seed(5).build(context)?.to_archive()
}

/// Writes them one by one, and packs nothing.
fn set_weights(layer: &Layer, archive: &Archive) -> Result<()> {
    for (name, array) in &archive.tensors {
        layer.set_weight(name, array.as_f32().unwrap())?;
    }
    Ok(())
}

/// The program of an optimizer, in a plan of its own.
fn optimizer(context: &Context, weight: &Tensor) -> Result<()> {
    let mut b = Builder::on("optimizer", context.target());
    let [bound, gradient, velocity] = [
        ("weight", Role::Weight),
        ("gradient", Role::Input),
        ("velocity", Role::State),
    ]
    .map(|(name, role)| b.float(name, weight.shape(), role));
    let rate = b.float("rate", &[1], Role::Input);
    let args = Sgd {
        weight: bound,
        gradient,
        velocity,
        rate,
        momentum: 0.0,
        weight_decay: 0.5,
    };
    sgd::step(&mut b, args)?;
    let program = Program::new(context, b.finish(), &[(bound, weight.clone())])?;
    program.tensor(rate)?.write(&[0.1])?;
    program.run("main")
}

/// A program of a host that writes to a tensor.
fn copied(context: &Context, to: &Tensor) -> Result<()> {
    let mut b = Builder::on("host", context.target());
    let from = b.float("from", to.shape(), Role::Input);
    let bound = b.float("to", to.shape(), Role::Output);
    copy(&mut b, (from, 0), (bound, 0), to.len())?;
    Program::new(context, b.finish(), &[(bound, to.clone())])?.run("main")
}

type Change = fn(&Layer, &Sequence) -> Result<()>;

/// What a backward pass must not go on from, and what it then names.
const CHANGES: [(&str, Change); 8] = [
    ("x", |_, s| s.x().write(&vec![0.5; s.x().len()])),
    ("x", |_, s| s.x().rows(0..1)?.write(&[0.25; 6])),
    ("x", |layer, s| copied(layer.context(), s.x())),
    ("weight_hh_l1", |layer, _| {
        layer.set_weight("weight_hh_l1", &[0.5; 96])
    }),
    ("bias_ih_l0", |layer, _| {
        let bias = layer.weight("bias_ih_l0")?;
        bias.write_f64(&vec![0.5; bias.len()])
    }),
    ("weight_ih_l0", |layer, _| {
        layer.load(&others(layer.context())?)
    }),
    ("weight_ih_l0", |layer, _| layer.initialise(3)),
    ("weight_hr_l0", |layer, _| {
        optimizer(layer.context(), layer.weight("weight_hr_l0")?)
    }),
];

#[track_caller]
fn names(refused: Result<()>, wanted: &str) {
    match refusal(refused) {
        Error::Value {
            op: "Sequence::backward",
            arg,
            ..
        } if arg == wanted => {}
        other => panic!("{wanted}: {other}"),
    }
}

fn gradients(sequence: &Sequence) -> Result<Vec<Vec<f64>>> {
    let all = sequence.gradients()?.into_iter();
    all.map(|(_, gradient)| gradient.read_f64()).collect()
}

#[test]
fn a_backward_pass_needs_its_forward_pass() -> Result<()> {
    for context in everywhere() {
        let sequence = lstm().build(&context)?.training(SIZE)?;
        names(sequence.backward(), "call");
        names(sequence.program().run("backward"), "call");
        names(
            sequence.program().run_timed(&["backward"]).map(drop),
            "call",
        );
        names(sequence.program().profile("backward").map(drop), "call");
        // Once there is one it may be run again.
        sequence.forward()?;
        sequence.backward()?;
        sequence.backward()?;
        sequence.program().run("backward")?;
        sequence.program().profile("backward")?;
    }
    Ok(())
}

#[test]
fn a_backward_pass_needs_what_its_forward_pass_read() -> Result<()> {
    for context in everywhere() {
        for call in [Call::training(SIZE), Call::training(SIZE).accumulate()] {
            let layer = lstm().build(&context)?;
            let sequence = layer.sequence(&call)?;
            fill_inputs(&sequence, 1)?;
            sequence.forward()?;
            sequence.backward()?;
            for (name, change) in CHANGES {
                sequence.forward()?;
                change(&layer, &sequence)?;
                let before = gradients(&sequence)?;
                names(sequence.backward(), name);
                names(sequence.backward(), name);
                let same = gradients(&sequence)? == before;
                assert!(same, "{name}: what is refused has changed nothing");
                sequence.forward()?;
                sequence.backward()?;
                assert!(gradients(&sequence)? != before, "{name}");
            }
        }
    }
    Ok(())
}

/// Everything else may be written: the forward pass keeps what it needs of it.
#[test]
fn a_backward_pass_after_other_changes() -> Result<()> {
    for context in everywhere() {
        let layer = lstm().build(&context)?;
        let sequence = layer.sequence(&Call::training(SIZE).lengths().recompute(2))?;
        fill_inputs(&sequence, 1)?;
        sequence.set_lengths(&[3, 1])?;
        sequence.forward()?;
        sequence.backward()?;
        let want = gradients(&sequence)?;
        sequence.forward()?;
        sequence.carry()?;
        sequence.set_initial(None)?;
        sequence.set_lengths(&[2, 2])?;
        sequence.y().write(&vec![f32::NAN; sequence.y().len()])?;
        layer.prepare()?;
        layer.forward(Array3::zeros((2, 1, 3)).view(), None)?;
        layer.training(SIZE)?.forward()?;
        sequence.backward()?;
        assert!(gradients(&sequence)? == want, "{}", context.name());
    }
    Ok(())
}

/// What a layer with these weights gives that has had no others.
fn fresh(context: &Context, lstm: Lstm, archive: &Archive) -> Result<Layer> {
    let layer = lstm.seed(11).build(context)?;
    layer.load(archive)?;
    Ok(layer)
}

/// Every kind of call after weights were written one by one.
#[test]
fn weights_are_packed_again() -> Result<()> {
    for context in everywhere() {
        let half = Lstm::new(3, 6).num_layers(2).precision(Precision::F16);
        for lstm in [lstm(), half] {
            let layer = lstm.build(&context)?;
            let (training, inference) = (layer.training(SIZE)?, layer.inference(SIZE)?);
            let streams = layer.streams(2)?;
            let given = fill_inputs(&training, 1)?;
            write_inputs(&inference, &given)?;
            let x = Array3::from_elem((2, 1, 3), 0.5f32);
            let row = Array2::from_elem((1, 3), 0.5f32);
            let results = |sequence: &Sequence| -> Result<Values> {
                sequence.forward()?;
                latest(sequence)
            };
            // All have run with the weights that are replaced.
            results(&training)?;
            results(&inference)?;
            layer.forward(x.view(), None)?;
            streams.step(&[1], row.view())?;

            let archive = others_of(&context, lstm)?;
            let fresh = fresh(&context, lstm, &archive)?;
            let same = |what: &str, got: &Values, want: &Sequence| -> Result<()> {
                write_inputs(want, &given)?;
                for (name, want) in results(want)? {
                    assert_same(&context, &format!("{what}: {name}"), &got[&name], &want);
                }
                Ok(())
            };
            let ways: [(&str, &dyn Fn() -> Result<()>); 4] = [
                ("inference", &|| {
                    same("inference", &results(&inference)?, &fresh.inference(SIZE)?)
                }),
                ("training", &|| {
                    let got: Values = results(&training)?;
                    let only = |(name, values): (&String, &Vec<f64>)| {
                        let forward = ["y", "hn", "cn"].contains(&name.as_str());
                        forward.then(|| (name.clone(), values.clone()))
                    };
                    let got: Values = got.iter().filter_map(only).collect();
                    let want = fresh.training(SIZE)?;
                    write_inputs(&want, &given)?;
                    let want = results(&want)?;
                    for (name, got) in got {
                        assert_same(&context, &format!("training: {name}"), &got, &want[&name]);
                    }
                    Ok(())
                }),
                ("Layer::forward", &|| {
                    assert_eq!(
                        layer.forward(x.view(), None)?,
                        fresh.forward(x.view(), None)?
                    );
                    Ok(())
                }),
                ("streams", &|| {
                    streams.reset(0)?;
                    let want = fresh.streams(2)?.step(&[0], row.view())?;
                    assert_eq!(streams.step(&[0], row.view())?, want);
                    Ok(())
                }),
            ];
            for (what, way) in ways {
                if context.dtype() == Dtype::F64 && what == "streams" {
                    continue;
                }
                layer.initialise(1)?;
                set_weights(&layer, &archive)?;
                way()?;
            }
        }
    }
    Ok(())
}

#[cfg(feature = "gpu")]
mod recorded {
    use super::*;
    use wgrnn::wgpu;

    fn submit(
        context: &Context,
        record: impl FnOnce(&mut wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<()> {
        let (device, queue) = context.wgpu().unwrap();
        let mut encoder = device.create_command_encoder(&Default::default());
        record(&mut encoder)?;
        queue.submit([encoder.finish()]);
        Ok(())
    }

    #[test]
    fn weights_are_packed_again_in_the_encoder() -> Result<()> {
        for context in common::adapters() {
            let layer = lstm().build(&context)?;
            let archive = others(&context)?;
            let fresh = fresh(&context, lstm(), &archive)?;
            let sequence = layer.inference(SIZE)?;
            let given = fill_inputs(&sequence, 1)?;
            let want = fresh.inference(SIZE)?;
            write_inputs(&want, &given)?;
            want.forward()?;
            sequence.forward()?;
            set_weights(&layer, &archive)?;
            // What is never submitted has packed nothing.
            let (device, _) = context.wgpu().unwrap();
            let mut dropped = device.create_command_encoder(&Default::default());
            sequence.record_forward(&mut dropped)?;
            drop(dropped);
            submit(&context, |encoder| sequence.record_forward(encoder))?;
            let what = "a recorded forward pass";
            assert_same(
                &context,
                what,
                &sequence.y().read_f64()?,
                &want.y().read_f64()?,
            );

            layer.initialise(1)?;
            set_weights(&layer, &archive)?;
            let program = sequence.program();
            let steps = program.plan().section("forward")?;
            submit(&context, |encoder| program.record_steps(encoder, steps))?;
            let what = "recorded steps";
            assert_same(
                &context,
                what,
                &sequence.y().read_f64()?,
                &want.y().read_f64()?,
            );

            let streams = layer.streams(1)?;
            layer.initialise(1)?;
            set_weights(&layer, &archive)?;
            streams.advance(&[0])?;
            streams.x().write(&[0.5; 3])?;
            submit(&context, |encoder| streams.record_step(encoder))?;
            let row = Array2::from_elem((1, 3), 0.5f32);
            let want = fresh.streams(1)?.step(&[0], row.view())?;
            assert_eq!(streams.y().read()?, want.into_raw_vec_and_offset().0);
        }
        Ok(())
    }

    #[test]
    fn a_recorded_backward_pass_needs_its_forward_pass() -> Result<()> {
        for context in common::adapters() {
            let layer = lstm().build(&context)?;
            let sequence = layer.training(SIZE)?;
            fill_inputs(&sequence, 1)?;
            sequence.forward()?;
            sequence.backward()?;
            let want = gradients(&sequence)?;
            let again = layer.training(SIZE)?;
            fill_inputs(&again, 1)?;
            submit(&context, |encoder| {
                names(again.record_backward(encoder), "call");
                again.record_forward(encoder)?;
                again.record_backward(encoder)
            })?;
            assert!(gradients(&again)? == want);
            submit(&context, |encoder| {
                again.record_forward(encoder)?;
                layer.set_weight("weight_hh_l1", &[0.5; 96])?;
                names(again.record_backward(encoder), "weight_hh_l1");
                Ok(())
            })?;
        }
        Ok(())
    }
}
