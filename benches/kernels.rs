//! Every kernel on the CPU backend and on each adapter. Each is checked with its f64 twin before it is
//! timed, and what it is timed with is compared as well.
//!
//!     cargo bench --bench kernels -- 'lstm'

mod common;

use std::collections::HashMap;

use criterion::{Criterion, criterion_group, criterion_main};
use wgrnn::check::{Status, compare, kernels, tolerance};
use wgrnn::kernel::{Access, Data, Element, Kernel};
use wgrnn::rng::Rng;
use wgrnn::{Context, Program, Result, Tensor, kernels::ALL};

/// m, n, k of a product; batch and hidden size of a step.
const SIZE: [usize; 3] = [64, 256, 128];

/// The kernel's sample on a device; the same numbers on every device.
fn ready(context: &Context, kernel: &'static Kernel) -> Result<Program> {
    let sample = (kernel.sample)(SIZE, &mut Rng::new(1))?;
    let mut bound = Vec::new();
    for (id, buffer) in sample.plan.ids() {
        let zeros = Tensor::zeros(context, &buffer.shape, buffer.element)?;
        bound.push((id, zeros));
    }
    let program = Program::new(context, sample.plan, &bound)?;
    for (id, data) in &sample.data {
        let tensor = program.tensor(*id)?;
        match (data, tensor.element()) {
            (Data::Float(v), Element::Float | Element::Half) => tensor.write(v)?,
            (Data::Uint(v), Element::Uint) => tensor.write_uint(v)?,
            (Data::Float(_), Element::Uint) | (Data::Uint(_), Element::Float | Element::Half) => {
                panic!("{}: the sample has other data than its buffer", kernel.name)
            }
        }
    }
    Ok(program)
}

fn section(program: &Program) -> &'static str {
    program.plan().sections()[0].name
}

/// Runs both once and compares every buffer that the kernel writes.
fn agree(program: &Program, oracle: &Program) -> Result<()> {
    let plan = program.plan();
    let name = section(program);
    program.run(name)?;
    oracle.run(name)?;
    let length = plan.cost(plan.section(name)?)?.length;
    let limit = tolerance::kernel(program.context().dtype(), length);
    let twins = plan.ids().zip(oracle.plan().ids());
    let twins: HashMap<_, _> = twins.map(|((own, _), (twin, _))| (own, twin)).collect();
    let mut compared = 0;
    for step in plan.steps() {
        for (&id, binding) in step.bindings.iter().zip(step.kernel.bindings) {
            if binding.access != Access::Read {
                let error = compare(
                    &values(program.tensor(id)?)?,
                    &values(oracle.tensor(twins[&id])?)?,
                )
                .error;
                let buffer = &plan.buffer(id)?.name;
                // What is stored in 16 bits may be rounded up and down.
                let half = binding.f16 && plan.buffer(id)?.element == Element::Half;
                let limit = if half {
                    limit + 2.0 * tolerance::UNIT_F16
                } else {
                    limit
                };
                let kernel = step.kernel.name;
                assert!(error <= limit, "{kernel} {buffer}: {error:e} > {limit:e}");
                compared += 1;
            }
        }
    }
    assert!(compared > 0, "{} writes nothing", plan.name());
    Ok(())
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    match tensor.element() {
        Element::Float | Element::Half => tensor.read_f64(),
        Element::Uint => Ok(tensor.read_uint()?.into_iter().map(f64::from).collect()),
    }
}

fn bench(c: &mut Criterion) {
    for context in common::contexts() {
        let mut group = c.benchmark_group(context.name());
        group.sample_size(20);
        for kernel in ALL.iter().filter(|k| context.check_kernel(k).is_ok()) {
            let outcomes = kernels::check(&context, kernel, SIZE).expect(kernel.name);
            assert!(!outcomes.is_empty(), "{} was not checked", kernel.name);
            for outcome in outcomes {
                assert_eq!(outcome.status, Status::Pass, "{outcome:?}");
            }
            let program = ready(&context, kernel).expect(kernel.name);
            let oracle = ready(&Context::cpu_f64(), kernel).expect(kernel.name);
            agree(&program, &oracle).expect(kernel.name);
            let section = section(&program);
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
