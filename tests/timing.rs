//! Times that the device itself takes: how many there are, that they add up, and that what is timed
//! computes what it computes without.

mod common;

use std::time::{Duration, Instant};

use common::refusal;
use wgrnn::plan::{Builder, Role};
use wgrnn::{Context, Error, Gru, Program, Result, Size};

fn everywhere() -> Vec<Context> {
    let mut contexts = vec![Context::cpu()];
    contexts.extend(common::kept());
    contexts
}

#[test]
fn a_timed_run_computes_the_same() -> Result<()> {
    for context in everywhere() {
        let gru = Gru::new(3, 20).build(&context)?;
        let call = gru.training(Size { steps: 9, batch: 2 })?;
        let ones = |tensor: &wgrnn::Tensor| tensor.write(&vec![1.0; tensor.len()]);
        let results = || -> Result<Vec<Vec<f32>>> {
            let all = call.gradients()?.into_iter().map(|(_, g)| g.read());
            all.chain([call.y().read()]).collect()
        };
        let (name, sections) = (context.name(), ["forward", "backward"]);
        ones(call.x())?;
        ones(call.dy()?)?;
        call.forward()?;
        call.backward()?;
        let want = results()?;

        let forget = || -> Result<()> {
            call.y().write(&vec![f32::NAN; call.y().len()])?;
            let mut gradients = call.gradients()?.into_iter();
            gradients.try_for_each(|(_, g)| g.write(&vec![f32::NAN; g.len()]))
        };
        forget()?;
        let start = Instant::now();
        let time = call.program().run_timed(&sections)?;
        let wall = start.elapsed();
        assert_eq!(results()?, want, "{name}");
        assert!(time > Duration::ZERO, "{name}");
        assert!(time <= wall, "{name}: {time:?} of {wall:?}");

        forget()?;
        let start = Instant::now();
        for section in sections {
            let times = call.program().profile(section)?;
            let steps = call.program().plan().section(section)?;
            assert_eq!(times.len(), steps.len(), "{name}");
            assert!(times.iter().any(|t| *t > Duration::ZERO), "{name}");
            let sum: Duration = times.iter().sum();
            assert!(sum <= start.elapsed(), "{name}");
        }
        assert_eq!(results()?, want, "{name}");
    }
    Ok(())
}

/// More steps than a set of queries has room for.
#[test]
fn a_long_profile() -> Result<()> {
    const STEPS: usize = 4500;
    for context in everywhere() {
        let mut b = Builder::new("chain");
        let ends = [
            b.float("a", &[2], Role::State),
            b.float("b", &[2], Role::State),
        ];
        for step in 0..STEPS {
            let (from, to) = (ends[step % 2], ends[(step + 1) % 2]);
            // Each moves one value up or down a place, so that the order shows.
            wgrnn::kernels::copy::copy(&mut b, (from, step % 2), (to, (step + 1) % 2), 1)?;
        }
        let program = Program::new(&context, b.finish(), &[])?;
        program.tensor(ends[0])?.write(&[7.0, 8.0])?;
        let times = program.profile("main")?;
        assert_eq!(times.len(), STEPS, "{}", context.name());
        assert_eq!(program.tensor(ends[0])?.read()?, [7.0, 8.0]);
        assert_eq!(program.tensor(ends[1])?.read()?, [0.0, 7.0]);
    }
    Ok(())
}

#[test]
fn refusals() -> Result<()> {
    for context in everywhere() {
        let gru = Gru::new(3, 4).build(&context)?;
        let call = gru.inference(Size { steps: 1, batch: 1 })?;
        let program = call.program();
        for e in [
            refusal(program.run_timed(&["forward", "backward"])),
            refusal(program.profile("backward")),
        ] {
            assert!(matches!(e, Error::Value { .. }), "{e}");
        }
        assert_eq!(program.run_timed(&[])?.as_secs(), 0);
        assert_eq!(program.profile("carry")?.len(), 1);
    }
    Ok(())
}

/// A host may open its device without timestamps; all but timing works on it.
#[cfg(feature = "gpu")]
#[test]
fn a_device_without_timestamps() -> Result<()> {
    for adapter in common::present() {
        let opened = pollster::block_on(adapter.request_device(&Default::default()));
        let (device, queue) = opened.unwrap();
        let context = Context::from_wgpu(device, queue);
        let gru = Gru::new(3, 4).build(&context)?;
        let call = gru.inference(Size { steps: 1, batch: 1 })?;
        for e in [
            refusal(call.program().run_timed(&["forward"])),
            refusal(call.program().profile("forward").map(drop)),
        ] {
            assert!(matches!(e, Error::Unsupported { .. }), "{e}");
        }
        call.forward()?;
        assert_eq!(call.y().read()?.len(), 4);
    }
    Ok(())
}
