//! What callers share and what they do in between: threads on one layer, calls between a forward pass
//! and its backward pass, and steps of streams that are announced, replaced or never run.

mod common;

use common::config::fill;
use wgrnn::ndarray::{Array2, Array3};
use wgrnn::plan::sequence::{self as driver, BackwardArgs, Call, Ends, Levels, Run};
use wgrnn::plan::{Builder, Force, Matrix, Role};
use wgrnn::rng::Rng;
use wgrnn::{Context, Error, Gru, Lstm, Program, Result, Size};

fn everywhere() -> Vec<Context> {
    let mut contexts = vec![Context::cpu()];
    contexts.extend(common::kept());
    contexts
}

/// The states that a call started from belong to it, whatever is done before its backward pass.
#[test]
fn what_comes_between_forward_and_backward() -> Result<()> {
    let size = Size { steps: 6, batch: 2 };
    for context in everywhere() {
        let lstm = Lstm::new(3, 5).num_layers(2).build(&context)?;
        for call in [Call::training(size), Call::training(size).recompute(2)] {
            let sequence = lstm.sequence(&call)?;
            let mut rng = Rng::new(3);
            let (h0, dy) = (sequence.h0(), sequence.dy()?);
            for tensor in [sequence.x(), h0, sequence.c0()?, dy, sequence.dhn()?] {
                fill(tensor, &mut rng)?;
            }
            let gradients = || -> Result<Vec<Vec<f32>>> {
                sequence.backward()?;
                let all = sequence.gradients()?.into_iter();
                all.map(|(_, g)| g.read()).collect()
            };
            sequence.forward()?;
            let alone = gradients()?;
            sequence.carry()?;
            assert_eq!(gradients()?, alone, "after carry, {call:?}");
            sequence.set_initial(None)?;
            assert_eq!(gradients()?, alone, "after set_initial, {call:?}");
        }
    }
    Ok(())
}

/// As a host with workers does, and every program of tests: some drivers bear one instance at a time.
#[cfg(feature = "gpu")]
#[test]
fn threads_open_devices_at_once() {
    let found: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| common::adapters().len()))
            .collect();
        let found = threads.into_iter().map(|thread| thread.join().unwrap());
        found.collect()
    });
    assert_eq!(found, [common::adapters().len(); 8]);
}

#[test]
fn threads_share_a_layer() -> Result<()> {
    for context in everywhere() {
        let gru = Gru::new(3, 8).build(&context)?;
        let input = |n: usize| Array3::from_elem((4, 2, 3), n as f32 * 0.1);
        let want: Vec<_> = (0..4)
            .map(|n| gru.forward(input(n).view(), None))
            .collect::<Result<_>>()?;
        std::thread::scope(|scope| {
            for (n, want) in want.iter().enumerate() {
                let gru = &gru;
                scope.spawn(move || {
                    for _ in 0..25 {
                        assert_eq!(&gru.forward(input(n).view(), None).unwrap(), want);
                    }
                });
            }
        });
    }
    Ok(())
}

#[test]
fn threads_share_streams() -> Result<()> {
    const THREADS: usize = 4;
    const STEPS: usize = 25;
    for context in everywhere() {
        let lstm = Lstm::new(3, 8).build(&context)?;
        let input = |n: usize| Array2::from_elem((1, 3), n as f32 * 0.2 - 0.3);
        let apart = lstm.streams(THREADS)?;
        for n in 0..THREADS {
            for _ in 0..STEPS {
                apart.step(&[n], input(n).view())?;
            }
        }
        let together = lstm.streams(THREADS)?;
        std::thread::scope(|scope| {
            for n in 0..THREADS {
                let streams = &together;
                scope.spawn(move || {
                    for _ in 0..STEPS {
                        streams.step(&[n], input(n).view()).unwrap();
                    }
                });
            }
        });
        for n in 0..THREADS {
            assert_eq!(together.state(n)?, apart.state(n)?, "{n}");
        }
    }
    Ok(())
}

#[test]
fn announced_steps() -> Result<()> {
    for context in everywhere() {
        let lstm = Lstm::new(3, 8).build(&context)?;
        let streams = lstm.streams(3)?;
        let x = Array2::from_elem((1, 3), 0.5f32);
        streams.step(&[0], x.view())?;
        let before = streams.state(0)?;
        // Announced alone, a step changes nothing, and another takes its place.
        streams.advance(&[0])?;
        assert_eq!(streams.state(0)?, before);
        streams.advance(&[1])?;
        streams.run_step()?;
        assert_eq!(streams.state(0)?, before);
        assert_ne!(streams.state(1)?, streams.state(2)?);
        // It runs once.
        match streams.run_step() {
            Err(Error::Value { arg, got, .. }) => assert_eq!((&*arg, &*got), ("step", "none")),
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

/// The driver by itself, for plans around a layer: what is left out counts as zeros, and what does not
/// fit is refused.
#[test]
fn the_driver_alone() -> Result<()> {
    for levels in Levels::ALL {
        driver_alone(&Context::cpu().forcing(Force {
            levels: Some(levels),
            ..Force::default()
        }))?;
    }
    Ok(())
}

fn driver_alone(context: &Context) -> Result<()> {
    let spec = Lstm::new(3, 5).num_layers(2).dropout(0.5).spec();
    let layer = Lstm::new(3, 5).num_layers(2).build(context)?;
    let call = Call::training(Size { steps: 4, batch: 2 });
    let planned = |clock: bool, y: usize, dy: usize, dcn: bool| -> Result<Vec<f32>> {
        let run = Run::new(&spec, &call, &context.target())?;
        let mut b = Builder::on("alone", context.target());
        let weights = driver::weights(&mut b, &spec);
        let states = driver::states(&mut b, &run);
        let x = b.float("x", &[8, 3], Role::Input);
        let ends = Ends {
            x: Matrix::dense(x, 8, 3),
            y: b.float("y", &[y], Role::Output),
            clock: clock.then(|| b.uint("clock", &[1], Role::State)),
        };
        b.section("both");
        driver::prepare(&mut b, &weights)?;
        driver::forward(&mut b, &run, ends, &weights, &states)?;
        let args = BackwardArgs {
            ends,
            dy: b.float("dy", &[dy], Role::Input),
            dhn: Some(b.float("dhn", &[2, 2, 5], Role::Input)),
            dcn: dcn.then(|| b.float("dcn", &[2, 2, 5], Role::Input)),
            dx: true,
        };
        let gradients = driver::backward(&mut b, &run, &weights, &states, args)?.weights;
        let program = Program::new(context, b.finish(), &layer.bind(&weights)?)?;
        for name in ["x", "dy", "dhn"] {
            let tensor = program.named(name)?;
            fill(tensor, &mut Rng::new(4))?;
        }
        // Twice, as the first run leaves its own numbers in the scratch memory.
        program.run("both")?;
        program.run("both")?;
        program.tensor(gradients[0]).unwrap().read()
    };
    assert_eq!(planned(true, 40, 40, false)?, planned(true, 40, 40, true)?);
    for (clock, y, dy, arg) in [
        (false, 40, 40, "clock"),
        (true, 39, 40, "y"),
        (true, 40, 41, "dy"),
    ] {
        match planned(clock, y, dy, true) {
            Err(Error::Value { arg: got, .. } | Error::Shape { arg: got, .. }) => {
                assert_eq!(got, arg);
            }
            other => panic!("{arg}: {other:?}"),
        }
    }
    Ok(())
}
