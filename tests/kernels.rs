//! Every kernel on every backend of this machine against its twin in double precision.

mod common;

use wgrnn::check::{Status, kernels};
use wgrnn::{Context, kernels::ALL};

fn all_sizes(context: &Context) {
    let mut worst: Vec<(f64, String)> = Vec::new();
    let mut failures = Vec::new();
    // What a device has it must not leave out.
    let halves = context.target().f16 || !context.is_gpu();
    for kernel in ALL {
        let mut most = 0.0f64;
        for &size in kernels::SIZES {
            for o in kernels::check(context, kernel, size).expect(kernel.name) {
                most = most.max(o.error / o.tolerance.max(f64::MIN_POSITIVE));
                let half = o.tensor.contains("16-bit floats");
                if o.status == Status::Unsupported && !(half && halves) {
                    println!("{}: not run, it needs {}", o.case, o.tensor);
                } else if o.status != Status::Pass {
                    failures.push(format!(
                        "{} {}: {:.3e} > {:.3e}",
                        o.case, o.tensor, o.error, o.tolerance
                    ));
                }
            }
        }
        worst.push((most, kernel.name.to_owned()));
    }
    for (most, name) in worst {
        println!("{name:24} {most:.3}");
    }
    assert!(
        failures.is_empty(),
        "{}:\n{}",
        context.name(),
        failures.join("\n")
    );
}

#[test]
fn cpu_f32() {
    all_sizes(&Context::cpu());
}

#[test]
fn every_adapter() {
    for context in common::adapters() {
        all_sizes(&context);
    }
}
