//! What recording costs the host: time per dispatch and allocations, for a layer whose steps have a
//! dispatch each.
//!
//!     cargo bench --bench recording
//!
//! `record` is ours: the encoder, one pass with all dispatches, and its end. `finish` is wgpu's work on
//! it, which it does once per command buffer. Both are divided by the number of dispatches. Before that
//! the allocations of a recording of T and of 2 T steps are printed: what differs, divided by T, is what
//! a step costs.

mod common;
#[path = "../tests/common/counting.rs"]
mod counting;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use wgrnn::plan::Force;
use wgrnn::plan::sequence::Strategy;
use wgrnn::{Call, Context, Lstm, Result, Sequence, Size, wgpu};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting::new();

const STEPS: usize = 1000;

fn ready(context: &Context, steps: usize) -> Result<Sequence> {
    let context = context.forcing(Force {
        strategy: Some(Strategy::Steps),
        ..Force::default()
    });
    let layer = Lstm::new(8, 8).build(&context)?;
    let call = layer.sequence(&Call::inference(Size { steps, batch: 1 }))?;
    // Verified before it is timed: the oracle has the same weights, since it has the same seed.
    let x = vec![0.5; call.x().len()];
    call.x().write(&x)?;
    call.forward()?;
    let oracle = Lstm::new(8, 8).build(&Context::cpu_f64())?;
    let want = oracle.sequence(&Call::inference(Size { steps, batch: 1 }))?;
    want.x().write(&x)?;
    want.forward()?;
    let error = wgrnn::check::compare(&call.y().read_f64()?, &want.y().read_f64()?).error;
    assert!(error < 1e-5, "{}: {error:e}", context.name());
    Ok(call)
}

fn record(context: &Context, call: &Sequence) -> Result<wgpu::CommandEncoder> {
    let (device, _) = context.wgpu().expect("an adapter");
    let mut encoder = device.create_command_encoder(&Default::default());
    call.record_forward(&mut encoder)?;
    Ok(encoder)
}

fn bench(c: &mut Criterion) {
    for context in common::adapters() {
        let (one, two) = (ready(&context, STEPS), ready(&context, 2 * STEPS));
        let (one, two) = (one.expect("a layer"), two.expect("a layer"));
        let count = |call: &Sequence| {
            let before = ALLOCATOR.count();
            let encoder = record(&context, call).expect("recorded");
            let recorded = ALLOCATOR.count() - before;
            drop(encoder.finish());
            (recorded, ALLOCATOR.count() - before - recorded)
        };
        // The first recording may set up what later ones use.
        let _ = (count(&one), count(&two));
        let ((r1, f1), (r2, f2)) = (count(&one), count(&two));
        let per_step = |a: usize, b: usize| (b as f64 - a as f64) / STEPS as f64;
        println!(
            "{}: allocations of recording {STEPS} steps {r1}, {} steps {r2}: {:.4} per step; of finishing {f1} and {f2}: {:.4} per step",
            context.name(),
            2 * STEPS,
            per_step(r1, r2),
            per_step(f1, f2),
        );
        let dispatches = one
            .program()
            .plan()
            .section("forward")
            .expect("forward")
            .len();
        let mut group = c.benchmark_group(format!("{} per dispatch", context.name()));
        group.throughput(Throughput::Elements(dispatches as u64));
        group.bench_function("record", |b| {
            b.iter_batched(
                || (),
                |()| record(&context, &one).expect("recorded"),
                BatchSize::PerIteration,
            );
        });
        group.bench_function("record and finish", |b| {
            b.iter_batched(
                || (),
                |()| record(&context, &one).expect("recorded").finish(),
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
