//! Whole layers, inference and training, on the CPU backend and on each adapter. Each result is
//! compared with the f64 oracle before it is timed.
//!
//!     cargo bench --bench layers

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wgrnn::check::{compare, tolerance};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::rng::Rng;
use wgrnn::{Context, Dtype, Layer, Sequence, Size, cell};

const INPUT: usize = 128;
const HIDDEN: usize = 128;
const SIZE: Size = Size {
    steps: 32,
    batch: 16,
};

fn ready(context: &Context, cell: &'static cell::Cell) -> wgrnn::Result<Sequence> {
    let spec = LayerSpec::new(cell, INPUT, HIDDEN);
    let call = Layer::new(context, spec, 1)?.training(SIZE)?;
    let mut rng = Rng::new(2);
    call.x().write(&rng.uniforms(call.x().len(), -1.0, 1.0))?;
    call.dy()?
        .write(&rng.uniforms(call.dy()?.len(), -1.0, 1.0))?;
    call.forward()?;
    call.backward()?;
    Ok(call)
}

fn bench(c: &mut Criterion) {
    for context in common::contexts() {
        let mut group = c.benchmark_group(context.name());
        group.sample_size(20);
        for cell in cell::ALL {
            let call = ready(&context, cell).expect(cell.name);
            let oracle = ready(&Context::cpu_f64(), cell).expect(cell.name);
            let got = call
                .dx()
                .and_then(wgrnn::Tensor::read_f64)
                .expect(cell.name);
            let want = oracle
                .dx()
                .and_then(wgrnn::Tensor::read_f64)
                .expect(cell.name);
            let limit = tolerance::layer(Dtype::F32, HIDDEN * cell.gates, 0.0);
            let error = compare(&got, &want).error;
            assert!(error <= limit, "{}: {error:e} > {limit:e}", cell.name);

            let plan = call.program().plan();
            for (name, sections) in [
                ("forward", &["forward"][..]),
                ("forward and backward", &["forward", "backward"]),
            ] {
                let flops = sections
                    .iter()
                    .map(|s| plan.cost(plan.section(s).expect(s)).flops)
                    .sum();
                group.throughput(Throughput::Elements(flops));
                group.bench_function(format!("{} {name}", cell.name), |b| {
                    b.iter(|| {
                        for section in sections {
                            call.program().run(section).expect(section);
                        }
                        context.wait().expect(name);
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
