//! The kernels of training against numbers that were found without them: by hand, by numeric
//! differences, or by a plain loop over the published formula. Each on the CPU in both precisions
//! and on every adapter.

mod clipping;
#[path = "../common/mod.rs"]
mod common;
mod dropout;
mod embedding;
mod loss;
mod optimizers;

use wgrnn::check::{compare, tolerance};
use wgrnn::kernel::{Data, Element};
use wgrnn::plan::{BufferId, Builder};
use wgrnn::{Context, Error, Program, Tensor};

fn contexts() -> Vec<Context> {
    let mut all = vec![Context::cpu_f64(), Context::cpu()];
    all.extend(common::kept());
    all
}

/// A plan with its data on a device. Floats without data start as NaN. The tensors are the test's own, which
/// take token ids that a program refuses.
fn program(context: &Context, b: Builder, data: &[(BufferId, Data)]) -> Program {
    let plan = b.finish();
    let mut bound = Vec::new();
    for (id, buffer) in plan.ids() {
        let tensor = Tensor::zeros(context, &buffer.shape, buffer.element).unwrap();
        match data.iter().find(|(d, _)| *d == id).map(|(_, d)| d) {
            Some(Data::Float(values)) => tensor.write(values).unwrap(),
            Some(Data::Uint(values)) => tensor.write_uint(values).unwrap(),
            None if buffer.element == Element::Float => {
                tensor.write(&vec![f32::NAN; buffer.len()]).unwrap();
            }
            None => {}
        }
        bound.push((id, tensor));
    }
    Program::new(context, plan, &bound).unwrap()
}

fn run(context: &Context, b: Builder, data: &[(BufferId, Data)]) -> Program {
    let program = program(context, b, data);
    program.run("main").unwrap();
    program
}

fn read(program: &Program, id: BufferId) -> Vec<f64> {
    program.tensor(id).unwrap().read_f64().unwrap()
}

#[track_caller]
fn close(context: &Context, got: &[f64], want: &[f64], length: usize) {
    within(
        context,
        got,
        want,
        tolerance::kernel(context.dtype(), length),
    );
}

#[track_caller]
fn within(context: &Context, got: &[f64], want: &[f64], limit: f64) {
    let d = compare(got, want);
    assert!(d.error <= limit, "{}: {d:?} > {limit:e}", context.name());
}

fn refused<T: std::fmt::Debug>(result: wgrnn::Result<T>) {
    let e = result.unwrap_err();
    assert!(
        matches!(e, Error::Shape { .. } | Error::Value { .. }),
        "{e}"
    );
}

fn floats(values: &[f64]) -> Data {
    Data::Float(values.iter().map(|&v| v as f32).collect())
}
