//! Every kernel on every backend of this machine against its twin in double precision.

mod common;

use wgrnn::check::{Status, kernels};
use wgrnn::{Context, kernel::Kernel, kernels::ALL};
#[cfg(feature = "gpu")]
use wgrnn::{Error, Program, Tensor, plan::DeviceKind, rng::Rng};

fn all_sizes(context: &Context, all: &[&'static Kernel]) {
    let mut worst: Vec<(f64, String)> = Vec::new();
    let mut failures = Vec::new();
    // What a device has it must not leave out.
    let halves = context.target().f16 || !context.is_gpu();
    for kernel in all {
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
    all_sizes(&Context::cpu(), ALL);
}

#[test]
fn every_adapter() {
    common::spread(ALL, |kernels| {
        for context in common::adapters() {
            all_sizes(&context, &kernels);
        }
    });
}

/// Kernels in which subgroups hand terms around are compared where plans have them, and refused where subgroups have
/// another size.
#[cfg(feature = "gpu")]
#[test]
fn kernels_for_subgroups() {
    let portable = common::portable_devices().into_iter();
    let portable = portable.map(|(device, queue)| Context::from_wgpu(device, queue));
    for context in common::adapters().into_iter().chain(portable) {
        let target = context.target();
        let eight = [target.subgroup_size, target.subgroup_most] == [8; 2];
        for kernel in ALL.iter().filter(|k| k.name.contains(".sequence_")) {
            let size = *kernels::SIZES.last().unwrap();
            let outcomes = kernels::check(&context, kernel, size).unwrap();
            let compared = eight && context.kind() == DeviceKind::Software;
            assert_eq!(!outcomes.is_empty(), compared, "{}", kernel.name);
            let sample = (kernel.sample)(size, &mut Rng::new(1)).unwrap();
            let zeros = sample.plan.ids().map(|(id, buffer)| {
                let zeros = Tensor::zeros(&context, &buffer.shape, buffer.element);
                zeros.map(|zeros| (id, zeros))
            });
            let bound: Vec<_> = zeros.collect::<Result<_, _>>().unwrap();
            match Program::new(&context, sample.plan, &bound) {
                Ok(_) => assert!(eight, "{}", kernel.name),
                Err(Error::Unsupported { needs, .. }) => {
                    assert!(!eight, "{}", kernel.name);
                    assert_eq!(needs, "a device whose subgroups have 8 invocations");
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
}
