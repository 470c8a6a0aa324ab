//! Layers against the solved cases in `tests/data`, on every backend of this machine.

mod common;

use std::path::Path;

use wgrnn::cell;
use wgrnn::check::{Status, cases};
use wgrnn::interop::case::{self, Case};
#[cfg(feature = "gpu")]
use wgrnn::plan::{Force, sequence::Strategy};
use wgrnn::{Context, Function, LayerSpec};

/// How many cases there are: none may get lost.
const COUNT: usize = 74;

/// Those that run on adapters where not everything does: with every cell, option, activation and kind of call, and one
/// that fills no tile.
const SOME: [&str; 17] = [
    "gru_before_activations_resets",
    "gru_before_bi_lengths",
    "gru_burn_in_two_layers",
    "gru_clip",
    "gru_nobias",
    "gru_softplus_elu",
    "lstm_affine_scaledtanh",
    "lstm_all_options",
    "lstm_burn_in_lengths_resets",
    "lstm_coupled_peephole",
    "lstm_h65",
    "lstm_leakyrelu_thresholded",
    "lstm_peephole_bi_lengths",
    "lstm_proj_bi_lengths_resets",
    "rnn_activation_softsign",
    "rnn_lengths_bi",
    "rnn_two_layers_bi",
];

fn all() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let paths = case::paths(&[folder]).unwrap();
    assert_eq!(paths.len(), COUNT, "cases in tests/data");
    paths.iter().map(|p| case::load(p).unwrap()).collect()
}

/// [`SOME`], or all.
#[cfg(feature = "gpu")]
fn on_adapters() -> Vec<Case> {
    let mut cases = all();
    if !common::thorough() {
        cases.retain(|case| SOME.contains(&case.name.as_str()));
        assert_eq!(cases.len(), SOME.len());
    }
    cases
}

fn they_pass<'a>(context: &Context, all: impl IntoIterator<Item = &'a Case>) {
    let mut failures = Vec::new();
    for case in all {
        let outcomes = cases::check(context, case).unwrap();
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
    they_pass(&Context::cpu_f64(), &all());
}

#[test]
fn cpu_f32() {
    they_pass(&Context::cpu(), &all());
}

#[cfg(feature = "gpu")]
#[test]
fn every_adapter() {
    let cases = on_adapters();
    let numbers: Vec<usize> = (0..cases.len()).collect();
    common::spread(&numbers, |numbers| {
        for context in common::kept() {
            they_pass(&context, numbers.iter().map(|&n| &cases[n]));
        }
    });
}

/// Those that run on adapters in every run have every cell, function and option.
#[test]
fn some_have_everything() {
    let some: Vec<Case> = all()
        .into_iter()
        .filter(|case| SOME.contains(&case.name.as_str()))
        .collect();
    let specs: Vec<LayerSpec> = some.iter().map(|case| cases::spec(case).unwrap()).collect();
    for cell in cell::ALL {
        let has = |spec: &LayerSpec| std::ptr::eq(spec.cell, *cell);
        assert!(specs.iter().any(has), "{}", cell.name);
    }
    for function in Function::ALL {
        let has = |spec: &LayerSpec| {
            let own = &spec.activations[..spec.cell.activations.len()];
            own.iter().any(|a| a.function == function)
        };
        assert!(specs.iter().any(has), "{function:?}");
    }
    let has = |name: &str, of: &dyn Fn(&Case) -> bool| assert!(some.iter().any(of), "{name}");
    has("both directions", &|c| c.bidirectional);
    has("layers", &|c| c.num_layers > 1);
    has("no bias", &|c| !c.bias);
    has("clip", &|c| c.clip.is_some());
    has("cell clip", &|c| c.cell_clip.is_some());
    has("coupled gates", &|c| c.coupled);
    has("lengths", &|c| c.tensors.contains_key("lengths"));
    has("resets", &|c| c.tensors.contains_key("reset"));
    has("a burn-in", &|c| c.burn_in > 0);
}

/// All steps of a layer in one dispatch without subgroup operations, in the form that a GPU has.
#[cfg(feature = "gpu")]
#[test]
fn whole_sequences_on_portable_devices() {
    let cases = common::share(on_adapters(), 3, 6);
    for (device, queue) in common::portable_devices() {
        let force = Force {
            strategy: Some(Strategy::Sequence),
            ..Force::default()
        };
        they_pass(&Context::from_wgpu(device, queue).forcing(force), &cases);
    }
}
