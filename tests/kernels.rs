//! Every kernel on every backend of this machine against its twin in double precision.

mod common;

use std::collections::BTreeSet;

use wgrnn::check::{Status, kernels};
use wgrnn::rng::Rng;
use wgrnn::{Context, kernels::ALL};

fn all_sizes(context: &Context) {
    let mut worst: Vec<(f64, String)> = Vec::new();
    let mut failures = Vec::new();
    for kernel in ALL {
        let mut most = 0.0f64;
        for &size in kernels::SIZES {
            for o in kernels::check(context, kernel, size).expect(kernel.name) {
                most = most.max(o.error / o.tolerance);
                if o.status != Status::Pass {
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

/// The product has three kinds, a bias or none, four activations, and an old C that counts or not.
#[test]
fn samples_of_the_product_reach_every_variant() {
    let gemm = &wgrnn::kernels::gemm::GEMM;
    let mut constants = BTreeSet::new();
    for &size in kernels::SIZES {
        let sample = (gemm.sample)(size, &mut Rng::new(1)).unwrap();
        constants.insert(sample.plan.steps()[0].constants.clone());
    }
    assert_eq!(constants.len(), 8, "{constants:?}");
}
