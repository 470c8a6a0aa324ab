//! Layers against the solved cases in `tests/data`, on every backend of this machine.

mod common;

use std::path::Path;

use wgrnn::Context;
use wgrnn::check::{Status, cases};
use wgrnn::interop::case::{self, Case};

/// The cases with an option that a layer has not yet. Support for one shows here as a failure.
const UNSUPPORTED: &[&str] = &[
    "gru_activations",
    "gru_before",
    "gru_before_nobias",
    "gru_bi",
    "gru_clip",
    "gru_length_zero_bi",
    "gru_lengths_bi_two_layers",
    "gru_resets_lengths",
    "gru_three_layers",
    "lstm_activations",
    "lstm_bi",
    "lstm_bi_two_layers",
    "lstm_cell_clip",
    "lstm_cell_clip_proj",
    "lstm_clip",
    "lstm_coupled",
    "lstm_length_zero",
    "lstm_lengths",
    "lstm_lengths_unsorted_bi",
    "lstm_peephole",
    "lstm_peephole_bi_lengths",
    "lstm_peephole_proj_clip",
    "lstm_proj",
    "lstm_proj_bi_two_layers",
    "lstm_resets",
    "lstm_two_layers",
    "rnn_activation_elu",
    "rnn_lengths_bi",
    "rnn_resets",
    "rnn_two_layers_bi",
];

fn all() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let paths = case::paths(&[folder]).unwrap();
    assert_eq!(paths.len(), 49, "cases in tests/data");
    paths.iter().map(|p| case::load(p).unwrap()).collect()
}

fn supported_cases_pass(context: &Context) {
    let mut failures = Vec::new();
    for case in all() {
        let outcomes = cases::check(context, &case).unwrap();
        if outcomes.iter().all(|o| o.status == Status::Unsupported) {
            continue;
        }
        // y, hn, cn three times and the gradients of x, h0, c0 and the weights.
        let states = if case.tensors.contains_key("c0") {
            2
        } else {
            1
        };
        let expected = 3 * (1 + states) + 1 + states + case.weight_names().len();
        assert_eq!(outcomes.len(), expected, "{}: comparisons", case.name);
        let worst = outcomes
            .iter()
            .max_by(|a, b| (a.error / a.tolerance).total_cmp(&(b.error / b.tolerance)))
            .unwrap();
        println!(
            "{:24} {:.3} of the tolerance {:.2e} in {}",
            case.name,
            worst.error / worst.tolerance,
            worst.tolerance,
            worst.tensor
        );
        for o in &outcomes {
            if o.status == Status::Pass {
                continue;
            }
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
    supported_cases_pass(&Context::cpu_f64());
}

#[test]
fn cpu_f32() {
    supported_cases_pass(&Context::cpu());
}

#[cfg(feature = "gpu")]
#[test]
fn every_adapter() {
    for context in common::adapters() {
        supported_cases_pass(&context);
    }
}

#[test]
fn what_is_unsupported_is_named() {
    let found: Vec<_> = all()
        .into_iter()
        .filter(|c| !cases::unsupported(c).is_empty())
        .collect();
    let names: Vec<_> = found.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, UNSUPPORTED);
    for case in &found {
        let outcomes = cases::check(&Context::cpu(), case).unwrap();
        let [outcome] = outcomes.as_slice() else {
            panic!("{}: {outcomes:?}", case.name);
        };
        assert_eq!(outcome.status, Status::Unsupported);
        assert_eq!(outcome.tensor, cases::unsupported(case).join(", "));
        assert!(cases::layer(&Context::cpu(), case).is_err());
    }
    let options = |name: &str| {
        let case = found.iter().find(|c| c.name == name).unwrap();
        cases::unsupported(case)
    };
    assert_eq!(
        options("lstm_proj_bi_two_layers"),
        ["num_layers", "bidirectional", "proj_size"]
    );
    assert_eq!(options("gru_resets_lengths"), ["lengths", "reset"]);
    assert_eq!(options("gru_before"), ["gru_reset before"]);
}
