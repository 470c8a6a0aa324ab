//! Whole layers of every cell, inference and training, on the CPU backend and on each adapter. The
//! output and, in training, every gradient is compared with the f64 oracle before it is timed. Layers
//! of real models are what `wgrnn bench` times.
//!
//!     cargo bench --bench layers

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wgrnn::cell::{self, Cell};
use wgrnn::check::{compare, tolerance};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::rng::Rng;
use wgrnn::{Context, Layer, Mode, Result, Sequence, Size};

const INPUT: usize = 128;
const HIDDEN: usize = 128;
const SIZE: Size = Size {
    steps: 32,
    batch: 16,
};

/// What is timed, and the sections that it runs.
const WAYS: [(&str, Mode, &[&str]); 2] = [
    ("inference", Mode::Inference, &["forward"]),
    ("training", Mode::Training, &["forward", "backward"]),
];

/// A call of the cell's layer that has run once.
fn ready(
    context: &Context,
    cell: &'static Cell,
    mode: Mode,
    sections: &[&str],
) -> Result<Sequence> {
    let layer = Layer::new(context, LayerSpec::new(cell, INPUT, HIDDEN), 1)?;
    let call = match mode {
        Mode::Inference => layer.inference(SIZE)?,
        Mode::Training => layer.training(SIZE)?,
    };
    let mut rng = Rng::new(2);
    call.x().write(&rng.uniforms(call.x().len(), -1.0, 1.0))?;
    if let Ok(dy) = call.dy() {
        dy.write(&rng.uniforms(dy.len(), -1.0, 1.0))?;
    }
    run(&call, sections)?;
    Ok(call)
}

fn run(call: &Sequence, sections: &[&str]) -> Result<()> {
    let mut sections = sections.iter();
    sections.try_for_each(|section| call.program().run(section))?;
    call.program().context().wait()
}

/// y and, in training, the gradients.
fn results(call: &Sequence) -> Result<Vec<(String, Vec<f64>)>> {
    let mut tensors = vec![("y".to_owned(), call.y().clone())];
    if let Ok(dx) = call.dx() {
        tensors.push(("dx".to_owned(), dx.clone()));
        tensors.extend(call.gradients()?);
    }
    let tensors = tensors.into_iter();
    tensors
        .map(|(name, tensor)| Ok((name, tensor.read_f64()?)))
        .collect()
}

fn agree(call: &Sequence, oracle: &Sequence, cell: &Cell) -> Result<()> {
    // The gradient of a weight is a sum over all steps and sequences.
    let length = (HIDDEN * cell.gates).max(SIZE.steps * SIZE.batch);
    let limit = tolerance::layer(call.program().context().dtype(), length, 0.0);
    for ((name, got), (_, want)) in results(call)?.iter().zip(results(oracle)?) {
        let error = compare(got, &want).error;
        let cell = cell.name;
        assert!(error <= limit, "{cell} {name}: {error:e} > {limit:e}");
    }
    Ok(())
}

fn bench(c: &mut Criterion) {
    for context in common::contexts() {
        let mut group = c.benchmark_group(context.name());
        group.sample_size(20);
        for cell in cell::ALL {
            for (way, mode, sections) in WAYS {
                let call = ready(&context, cell, mode, sections).expect(cell.name);
                let oracle = ready(&Context::cpu_f64(), cell, mode, sections).expect(cell.name);
                agree(&call, &oracle, cell).expect(cell.name);

                let plan = call.program().plan();
                let flops = sections
                    .iter()
                    .map(|s| plan.cost(plan.section(s).expect(s)).unwrap().flops)
                    .sum();
                group.throughput(Throughput::Elements(flops));
                group.bench_function(format!("{} {way}", cell.name), |b| {
                    b.iter(|| run(&call, sections).expect(way));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
