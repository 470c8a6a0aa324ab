//! Every kernel on every backend of this machine against its twin in double precision.

mod common;

use std::collections::BTreeSet;

use wgrnn::check::{Status, kernels};
use wgrnn::kernel::{Constant, Kernel};
use wgrnn::kernels::ALL;
use wgrnn::{Context, Result};
#[cfg(feature = "gpu")]
use wgrnn::{Error, Program, Tensor, plan::DeviceKind, rng::Rng};

/// The constants of a kernel's sample.
fn constants(kernel: &'static Kernel, size: [usize; 3]) -> Result<BTreeSet<Constant>> {
    let plan = kernels::sample(kernel, size)?.plan;
    let own = plan
        .steps()
        .iter()
        .filter(|s| std::ptr::eq(s.kernel, kernel));
    Ok(own.flat_map(|s| s.constants.iter().copied()).collect())
}

/// The sizes with which a kernel is compared: all, or on an adapter two that together have as many values of its
/// constants as any, since another set of them is another shader to compile; of kernels of all steps, which take a second
/// each, one. Those at the edges of tiles come first.
fn sizes(context: &Context, kernel: &'static Kernel) -> Result<Vec<[usize; 3]>> {
    if common::thorough() || !context.is_gpu() {
        return Ok(kernels::SIZES.to_vec());
    }
    let (small, large) = kernels::SIZES.split_at(11);
    let all = [large, small].concat().into_iter();
    let all = all.map(|size| Ok((size, constants(kernel, size)?)));
    let all = all.collect::<Result<Vec<_>>>()?;
    let mut chosen = vec![all[0].0];
    let mut met = all[0].1.clone();
    let most = if kernel.name.contains(".sequence_") {
        1
    } else {
        2
    };
    while chosen.len() < most {
        let new = |set: &BTreeSet<Constant>| set.difference(&met).count();
        // The first of several that bring as many.
        let best = all.iter().rev().max_by_key(|(_, set)| new(set));
        let (size, set) = best.expect("there are sizes");
        chosen.push(*size);
        met.extend(set);
    }
    Ok(chosen)
}

fn all_sizes(context: &Context, all: &[&'static Kernel]) {
    let mut worst: Vec<(f64, String)> = Vec::new();
    let mut failures = Vec::new();
    // What a device has it must not leave out.
    let halves = context.target().f16 || !context.is_gpu();
    for kernel in all {
        let mut most = 0.0f64;
        for size in sizes(context, kernel).expect(kernel.name) {
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
        for context in common::kept() {
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
    for context in common::kept().into_iter().chain(portable) {
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
