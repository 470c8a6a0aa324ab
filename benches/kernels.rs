//! Every kernel on the CPU backend and on each adapter, checked against its f64 twin before it is timed.
//!
//!     cargo bench --bench kernels -- 'lstm'

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use wgrnn::check::{Status, kernels};
use wgrnn::kernel::{Data, Element};
use wgrnn::rng::Rng;
use wgrnn::{Program, kernels::ALL};

/// m, n, k of a product; batch and hidden size of a step.
const SIZE: [usize; 3] = [64, 256, 128];

fn bench(c: &mut Criterion) {
    for context in common::contexts() {
        let mut group = c.benchmark_group(context.name());
        group.sample_size(20);
        for kernel in ALL {
            for outcome in kernels::check(&context, kernel, SIZE).expect(kernel.name) {
                assert_eq!(outcome.status, Status::Pass, "{outcome:?}");
            }
            let sample = (kernel.sample)(SIZE, &mut Rng::new(1)).expect(kernel.name);
            let program = Program::new(&context, sample.plan, &[]).expect(kernel.name);
            for (id, data) in &sample.data {
                let tensor = program.tensor(*id);
                match (data, tensor.element()) {
                    (Data::Float(v), Element::Float) => tensor.write(v),
                    (Data::Uint(v), Element::Uint) => tensor.write_uint(v),
                    _ => continue,
                }
                .expect(kernel.name);
            }
            let section = program.plan().sections()[0].name;
            group.bench_function(kernel.name, |b| {
                b.iter(|| {
                    program.run(section).expect(kernel.name);
                    context.wait().expect(kernel.name);
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
