//! Layers against the solved cases in `tests/data`, on every backend of this machine.

mod common;

use std::path::Path;

use wgrnn::Context;
use wgrnn::check::{Status, cases};
use wgrnn::interop::case::{self, Case};
#[cfg(feature = "gpu")]
use wgrnn::plan::{Force, sequence::Strategy};

/// How many cases there are: none may get lost.
const COUNT: usize = 74;

fn all() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let paths = case::paths(&[folder]).unwrap();
    assert_eq!(paths.len(), COUNT, "cases in tests/data");
    paths.iter().map(|p| case::load(p).unwrap()).collect()
}

fn every_case_passes(context: &Context) {
    let mut failures = Vec::new();
    for case in all() {
        let outcomes = cases::check(context, &case).unwrap();
        // y, hn, cn and the gradients of x, h0, c0 and the weights in training, at least.
        let states = 1 + usize::from(case.tensors.contains_key("c0"));
        let least = 1 + states + 1 + states + case.weight_names().len();
        assert!(outcomes.len() > 3 * least, "{}: comparisons", case.name);
        let worst = outcomes
            .iter()
            .max_by(|a, b| (a.error / a.tolerance).total_cmp(&(b.error / b.tolerance)))
            .unwrap();
        println!(
            "{:30} {:.3} of the tolerance {:.2e} in {}",
            case.name,
            worst.error / worst.tolerance,
            worst.tolerance,
            worst.tensor
        );
        for o in outcomes.iter().filter(|o| o.status != Status::Pass) {
            failures.push(format!(
                "{} {}: {:.3e} > {:.3e}",
                o.case, o.tensor, o.error, o.tolerance
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{}:\n{}",
        context.name(),
        failures.join("\n")
    );
}

#[test]
fn cpu_f64() {
    every_case_passes(&Context::cpu_f64());
}

#[test]
fn cpu_f32() {
    every_case_passes(&Context::cpu());
}

#[cfg(feature = "gpu")]
#[test]
fn every_adapter() {
    for context in common::adapters() {
        every_case_passes(&context);
    }
}

/// All steps of a layer in one dispatch without subgroup operations, in the form that a GPU has.
#[cfg(feature = "gpu")]
#[test]
fn whole_sequences_on_portable_devices() {
    for (device, queue) in common::portable_devices() {
        let force = Force {
            strategy: Some(Strategy::Sequence),
            ..Force::default()
        };
        every_case_passes(&Context::from_wgpu(device, queue).forcing(force));
    }
}
