//! What is written between calls: weights are packed again before the next one, and a backward pass whose forward pass
//! read other numbers is refused.

mod common;

use common::refusal;
use common::results::{Values, assert_same, everywhere, fill_inputs, latest, write_inputs};
use wgrnn::interop::safetensors::Archive;
use wgrnn::kernels::copy::copy;
use wgrnn::kernels::sgd::{self, Sgd};
use wgrnn::ndarray::{Array2, Array3};
use wgrnn::plan::sequence::{self as driver, BackwardArgs, Ends, Run, Weights};
use wgrnn::plan::{BufferId, Builder, Matrix, Plan, Role, Target};
use wgrnn::rng::Rng;
use wgrnn::{
    Call, Context, Dtype, Error, Layer, LayerSpec, Lstm, Precision, Program, Result, Sequence,
    Size, Tensor,
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
    optimizing(context, weight)?.run("main")
}

fn optimizing(context: &Context, weight: &Tensor) -> Result<Program> {
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
    Ok(program)
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
            op: "backward",
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

/// A host's own plan of a layer: sections of the forward pass, of the backward pass and of a step of all weights.
struct Own {
    plan: Plan,
    weights: Weights,
    x: BufferId,
    dy: BufferId,
    rate: BufferId,
}

/// The sections are those of forward, backward and update; equal names are one section.
fn own(
    spec: &LayerSpec,
    target: &Target,
    [forward, backward, update]: [&'static str; 3],
) -> Result<Own> {
    let run = Run::new(spec, &Call::training(SIZE), target)?;
    let mut b = Builder::on("own", *target);
    let rows = SIZE.steps * SIZE.batch;
    let x = b.float("x", &[rows, spec.input_size], Role::Input);
    let y = b.float("y", &[rows, spec.features()], Role::Output);
    let dy = b.float("dy", &[rows, spec.features()], Role::Input);
    let rate = b.float("rate", &[1], Role::Input);
    let weights = driver::weights(&mut b, spec);
    let states = driver::states(&mut b, &run);
    let ends = Ends {
        x: Matrix::dense(x, rows, spec.input_size),
        y,
        clock: None,
    };
    b.section(forward);
    driver::prepare(&mut b, &weights)?;
    driver::forward(&mut b, &run, ends, &weights, &states)?;
    if backward != forward {
        b.section(backward);
    }
    let args = BackwardArgs {
        ends,
        dy,
        dhn: None,
        dcn: None,
        dx: false,
    };
    let gradients = driver::backward(&mut b, &run, &weights, &states, args)?.weights;
    if update != backward {
        b.section(update);
    }
    for (&weight, &gradient) in weights.trained.iter().zip(&gradients) {
        let shape = b.buffer(weight)?.shape.clone();
        let args = Sgd {
            weight,
            gradient,
            velocity: b.float("velocity", &shape, Role::State),
            rate,
            momentum: 0.0,
            weight_decay: 0.0,
        };
        sgd::step(&mut b, args)?;
    }
    Ok(Own {
        plan: b.finish(),
        weights,
        x,
        dy,
        rate,
    })
}

impl Own {
    /// A program of it, with numbers.
    fn over(&self, layer: &Layer) -> Result<Program> {
        let program = layer.program(self.plan.clone(), &self.weights, &[])?;
        for (seed, id) in [self.x, self.dy].into_iter().enumerate() {
            let tensor = program.tensor(id)?;
            tensor.write(&Rng::new(seed as u64).uniforms(tensor.len(), -1.0, 1.0))?;
        }
        program.tensor(self.rate)?.write(&[0.1])?;
        Ok(program)
    }
}

/// A host's own plans are held to it as well, however they are cut into sections.
#[test]
fn passes_of_a_plan_of_ones_own() -> Result<()> {
    for context in everywhere() {
        let spec = lstm().spec();
        let trained = |sections: [&'static str; 3]| -> Result<Archive> {
            let layer = lstm().build(&context)?;
            let own = own(&spec, &context.target(), sections)?;
            let program = own.over(&layer)?;
            for _ in 0..3 {
                let mut ran = Vec::new();
                for section in sections {
                    if !ran.contains(&section) {
                        program.run(section)?;
                        ran.push(section);
                    }
                }
            }
            layer.to_archive()
        };
        let want = trained(["all"; 3])?;
        for sections in [["f", "b", "u"], ["f", "b", "b"], ["f", "f", "u"]] {
            assert!(
                trained(sections)? == want,
                "{}: {sections:?}",
                context.name()
            );
        }

        let layer = lstm().build(&context)?;
        let own = own(&spec, &context.target(), ["f", "b", "u"])?;
        let program = own.over(&layer)?;
        let refused = |wanted: &str| match refusal(program.run("b")) {
            Error::Value { op: "b", arg, .. } => assert_eq!(arg, wanted),
            other => panic!("{wanted}: {other}"),
        };
        refused("call");
        program.run("f")?;
        program.run("b")?;
        program.run("u")?;
        refused("weight_ih_l0");
        program.run("f")?;
        program.tensor(own.x)?.write(&[0.5; 18])?;
        refused("x");
    }
    Ok(())
}

/// A plan that packs nothing follows the weights of its layer, and what it packs into is nobody else's.
#[test]
fn packing_for_a_plan_of_ones_own() -> Result<()> {
    for context in everywhere() {
        let spec = lstm().spec();
        let target = context.target();
        let run = Run::new(&spec, &Call::inference(SIZE), &target)?;
        let mut b = Builder::on("own", target);
        let x = b.float("x", &[6, 3], Role::Input);
        let y = b.float("y", &[6, 4], Role::Output);
        let weights = driver::weights(&mut b, &spec);
        let states = driver::states(&mut b, &run);
        let ends = Ends {
            x: Matrix::dense(x, 6, 3),
            y,
            clock: None,
        };
        driver::forward(&mut b, &run, ends, &weights, &states)?;
        let layer = lstm().build(&context)?;
        let plan = b.finish();
        // With the weights alone there is nothing that it could read packed.
        let refused = Program::new(&context, plan.clone(), &layer.bind(&weights)?);
        assert!(refusal(refused).to_string().contains("neither"));
        let program = layer.program(plan, &weights, &[])?;
        let sequence = layer.inference(SIZE)?;
        let given = Rng::new(1).uniforms(18, -1.0, 1.0);
        program.tensor(x)?.write(&given)?;
        sequence.x().write(&given)?;
        let archive = others(&context)?;
        let same = |what: &str| -> Result<()> {
            program.run("main")?;
            sequence.forward()?;
            let (got, want) = (program.tensor(y)?.read_f64()?, sequence.y().read_f64()?);
            assert_same(&context, what, &got, &want);
            Ok(())
        };
        same("at first")?;
        set_weights(&layer, &archive)?;
        program.run("main")?;
        let fresh = fresh(&context, lstm(), &archive)?.inference(SIZE)?;
        fresh.x().write(&given)?;
        fresh.forward()?;
        let want = fresh.y().read_f64()?;
        assert_same(&context, "later", &program.tensor(y)?.read_f64()?, &want);
        same("both")?;
        // Whoever writes into what is packed has it packed again.
        let packed = sequence.program().named("weight_hh_t_l0")?;
        packed.write_f64(&vec![0.5; packed.len()])?;
        sequence.forward()?;
        assert_same(&context, "written over", &sequence.y().read_f64()?, &want);
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

    /// Nobody knows when a host submits what writes weights.
    #[test]
    fn an_optimizer_that_is_submitted_later() -> Result<()> {
        for context in common::adapters() {
            let layer = lstm().build(&context)?;
            let sequence = layer.inference(SIZE)?;
            fill_inputs(&sequence, 1)?;
            let step = optimizing(&context, layer.weight("weight_hh_l0")?)?;
            let (device, queue) = context.wgpu().unwrap();
            let mut encoder = device.create_command_encoder(&Default::default());
            step.record(&mut encoder, "main")?;
            sequence.forward()?;
            let before = sequence.y().read()?;
            queue.submit([encoder.finish()]);
            sequence.forward()?;
            let after = sequence.y().read()?;
            layer.prepare()?;
            sequence.forward()?;
            let want = sequence.y().read()?;
            assert!(after == want && before != want, "{}", context.name());
        }
        Ok(())
    }

    /// Streams pack for themselves, and do not say that anything was submitted.
    #[test]
    fn streams_beside_an_optimizer_that_is_submitted_later() -> Result<()> {
        for context in common::adapters() {
            let layer = lstm().build(&context)?;
            let x = Array3::from_elem((2, 1, 3), 0.5f32);
            let row = Array2::from_elem((1, 3), 0.5f32);
            let step = optimizing(&context, layer.weight("weight_hh_l0")?)?;
            let (device, queue) = context.wgpu().unwrap();
            let mut encoder = device.create_command_encoder(&Default::default());
            step.record(&mut encoder, "main")?;
            let streams = layer.streams(1)?;
            layer.forward(x.view(), None)?;
            streams.step(&[0], row.view())?;
            queue.submit([encoder.finish()]);
            layer.prepare()?;
            let fresh = fresh(&context, lstm(), &layer.to_archive()?)?;
            assert_eq!(
                layer.forward(x.view(), None)?,
                fresh.forward(x.view(), None)?
            );
            streams.reset(0)?;
            let want = fresh.streams(1)?.step(&[0], row.view())?;
            assert_eq!(streams.step(&[0], row.view())?, want);
        }
        Ok(())
    }

    /// Sections that run in one submission are held to the same as in several.
    #[test]
    fn a_timed_run_of_a_plan_of_ones_own() -> Result<()> {
        for context in common::adapters() {
            let layer = lstm().build(&context)?;
            let own = own(&lstm().spec(), &context.target(), ["f", "b", "u"])?;
            let program = own.over(&layer)?;
            program.run_timed(&["f", "b", "u"])?;
            let refused = program.run("b");
            assert!(matches!(refusal(refused), Error::Value { op: "b", .. }));
        }
        Ok(())
    }

    #[test]
    fn steps_across_both_passes() -> Result<()> {
        for context in common::adapters() {
            let layer = lstm().build(&context)?;
            let sequence = layer.training(SIZE)?;
            fill_inputs(&sequence, 1)?;
            sequence.forward()?;
            sequence.backward()?;
            let want = gradients(&sequence)?;
            let again = layer.training(SIZE)?;
            fill_inputs(&again, 1)?;
            let program = again.program();
            let all = program.plan().section("forward")?.start..program.plan().steps().len();
            // The first step of the backward pass.
            let end = program.plan().section("forward")?.end;
            submit(&context, |encoder| {
                names(program.record_steps(encoder, end..end + 1), "call");
                program.record_steps(encoder, all.clone())
            })?;
            assert!(gradients(&again)? == want);
            // What is refused has changed nothing: there is a forward pass to go on from.
            again.forward()?;
            submit(&context, |encoder| {
                program.record_steps(encoder, end..all.end)
            })?;
            assert!(gradients(&again)? == want);
        }
        Ok(())
    }
}
