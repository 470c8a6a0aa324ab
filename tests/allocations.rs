//! What a call allocates does not grow with its steps: on the CPU all the work of a sequence, on a GPU its
//! recording.

#[path = "common/counting.rs"]
mod counting;

#[cfg(feature = "gpu")]
use wgrnn::plan::{Force, sequence::Strategy};
#[cfg(feature = "gpu")]
use wgrnn::wgpu;
use wgrnn::{Context, Gru, Layer, Lstm, Result, Rnn, Size};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting::new();

/// So many more steps may not be seen.
const STEPS: usize = 400;
/// Growth of lists that have an entry for each step, and what a pool allocates now and then.
const FEW: usize = 60;
/// Jobs for which a pool's queue allocates once.
const JOBS: usize = 63;

fn layers(context: &Context) -> Result<Vec<Layer>> {
    Ok(vec![
        Lstm::new(3, 20).build(context)?,
        Gru::new(3, 20).build(context)?,
        Rnn::new(3, 20).build(context)?,
    ])
}

/// The allocations of `run`, which has run before.
fn count(run: impl Fn() -> Result<()>) -> Result<usize> {
    run()?;
    let before = ALLOCATOR.count();
    run()?;
    Ok(ALLOCATOR.count() - before)
}

fn assert_few(what: &str, counts: [usize; 2]) {
    let [one, two] = counts;
    assert!(one > 0, "{what}: nothing was counted");
    // A step may give each other thread of the pool a job.
    let jobs = STEPS * (rayon::current_num_threads() - 1);
    let most = one + FEW + jobs.div_ceil(JOBS);
    assert!(two < most, "{what}: {one} and {two} allocations");
}

/// One test, since others beside it would be counted too.
#[test]
fn none_per_step() -> Result<()> {
    for layer in layers(&Context::cpu())? {
        let of = |steps| {
            let call = layer.training(Size { steps, batch: 9 })?;
            Ok([count(|| call.forward())?, count(|| call.backward())?])
        };
        let ([f1, b1], [f2, b2]) = (of(STEPS)?, of(2 * STEPS)?);
        assert_few(&format!("{:?} forward", layer.spec().cell), [f1, f2]);
        assert_few(&format!("{:?} back", layer.spec().cell), [b1, b2]);
    }
    #[cfg(feature = "gpu")]
    recordings()?;
    Ok(())
}

#[cfg(feature = "gpu")]
fn recordings() -> Result<()> {
    for context in Context::all()? {
        let Some((device, _)) = context.wgpu() else {
            continue;
        };
        for strategy in Strategy::ALL {
            let forced = context.forcing(Force {
                strategy: Some(strategy),
                ..Force::default()
            });
            for layer in layers(&forced)? {
                let of = |steps| {
                    let call = layer.training(Size { steps, batch: 2 })?;
                    let encoder = || device.create_command_encoder(&Default::default());
                    let count = |record: &dyn Fn(&mut wgpu::CommandEncoder) -> Result<()>| {
                        let mut encoder = encoder();
                        record(&mut encoder)?;
                        let before = ALLOCATOR.count();
                        record(&mut encoder)?;
                        Ok(ALLOCATOR.count() - before)
                    };
                    Ok([
                        count(&|e| call.record_forward(e))?,
                        count(&|e| call.record_backward(e))?,
                    ])
                };
                let ([f1, b1], [f2, b2]): ([usize; 2], [usize; 2]) = (of(STEPS)?, of(2 * STEPS)?);
                let what = format!("{} {:?} {strategy:?}", context.name(), layer.spec().cell);
                assert_few(&format!("{what}: recorded forward"), [f1, f2]);
                assert_few(&format!("{what}: recorded back"), [b1, b2]);
            }
        }
    }
    Ok(())
}
