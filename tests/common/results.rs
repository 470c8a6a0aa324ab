//! What a sequence is given and what a run of it leaves, by name, and how two runs compare.

use std::collections::BTreeMap;

use wgrnn::check::{compare, tolerance};
use wgrnn::kernel::Element;
use wgrnn::plan::Role;
use wgrnn::rng::Rng;
use wgrnn::{Context, Mode, Result, Sequence, Tensor};

use super::config::fill;

/// Values by name; those of a gradient have a `d` before the name of what they belong to.
pub(crate) type Values = BTreeMap<String, Vec<f64>>;

/// The CPU in both precisions, and every adapter.
pub(crate) fn everywhere() -> Vec<Context> {
    let mut contexts = vec![Context::cpu(), Context::cpu_f64()];
    contexts.extend(super::kept());
    contexts
}

/// The tensors that a caller writes.
pub(crate) fn inputs(sequence: &Sequence) -> Result<Vec<(&'static str, Tensor)>> {
    let training = sequence.call().mode == Mode::Training;
    let mut inputs = vec![("x", sequence.x()), ("h0", sequence.h0())];
    if sequence.has_cell_state() {
        inputs.push(("c0", sequence.c0()?));
    }
    if training {
        inputs.extend([("dy", sequence.dy()?), ("dhn", sequence.dhn()?)]);
        if sequence.has_cell_state() {
            inputs.push(("dcn", sequence.dcn()?));
        }
    }
    Ok(inputs.into_iter().map(|(n, t)| (n, t.clone())).collect())
}

/// Writes random numbers to all of them.
pub(crate) fn fill_inputs(sequence: &Sequence, seed: u64) -> Result<Values> {
    let mut rng = Rng::new(seed);
    let each = inputs(sequence)?.into_iter();
    each.map(|(name, tensor)| Ok((name.to_owned(), fill(&tensor, &mut rng)?)))
        .collect()
}

/// Writes given numbers to those that have the name.
pub(crate) fn write_inputs(sequence: &Sequence, values: &Values) -> Result<()> {
    for (name, tensor) in inputs(sequence)? {
        if let Some(values) = values.get(name) {
            tensor.write_f64(values)?;
        }
    }
    Ok(())
}

/// Overwrites everything that a run must write before it is read with NaN.
fn poison(sequence: &Sequence) -> Result<()> {
    let program = sequence.program();
    let kept: Vec<String> = match sequence.call().accumulate {
        true => sequence
            .gradients()?
            .into_iter()
            .map(|(n, _)| format!("d{n}"))
            .collect(),
        false => Vec::new(),
    };
    for (id, buffer) in program.plan().ids() {
        let written = match buffer.role {
            Role::Output | Role::Gradient | Role::Saved | Role::Scratch => true,
            Role::State => ["hn", "cn"].contains(&buffer.name.as_str()),
            Role::Input | Role::Weight => false,
        };
        if written && buffer.element != Element::Uint && !kept.contains(&buffer.name) {
            program.tensor(id)?.write(&vec![f32::NAN; buffer.len()])?;
        }
    }
    Ok(())
}

/// Runs forward and, in training, backward, over memory that holds nothing of use.
pub(crate) fn results(sequence: &Sequence) -> Result<Values> {
    poison(sequence)?;
    sequence.forward()?;
    if sequence.call().mode == Mode::Training {
        sequence.backward()?;
    }
    latest(sequence)
}

/// What the latest run left.
pub(crate) fn latest(sequence: &Sequence) -> Result<Values> {
    let mut tensors = vec![("y", sequence.y()), ("hn", sequence.hn())];
    if sequence.has_cell_state() {
        tensors.push(("cn", sequence.cn()?));
    }
    if sequence.call().mode == Mode::Training {
        tensors.extend([("dx", sequence.dx()?), ("dh0", sequence.dh0()?)]);
        if sequence.has_cell_state() {
            tensors.push(("dc0", sequence.dc0()?));
        }
    }
    let mut values = Values::new();
    for (name, tensor) in tensors {
        values.insert(name.to_owned(), tensor.read_f64()?);
    }
    if sequence.call().mode == Mode::Training {
        for (name, gradient) in sequence.gradients()? {
            values.insert(format!("d{name}"), gradient.read_f64()?);
        }
    }
    Ok(values)
}

/// Two results of one device that are sums over `length` terms in different orders. Each may be off by
/// what [`tolerance::layer`] allows a layer that amplifies roundings no more than fourfold, which small
/// layers with random weights in ±1/√H do not.
#[track_caller]
pub(crate) fn assert_close(
    context: &Context,
    what: &str,
    got: &[f64],
    want: &[f64],
    length: usize,
) {
    let limit = 2.0 * tolerance::layer(context.dtype(), length, 4.0 * tolerance::UNIT);
    let d = compare(got, want);
    assert!(
        d.error <= limit,
        "{}: {what}[{}] is {}, must be {}: {:.2e} > {limit:.2e}",
        context.name(),
        d.at,
        d.got,
        d.want,
        d.error
    );
}

/// [`assert_close`] for all values with the names of `want`.
#[track_caller]
pub(crate) fn assert_all_close(
    context: &Context,
    what: &str,
    got: &Values,
    want: &Values,
    length: usize,
) {
    for (name, want) in want {
        let what = format!("{what}: {name}");
        assert_close(context, &what, &got[name], want, length);
    }
}

/// The same bits, and no NaN.
#[track_caller]
pub(crate) fn assert_same(context: &Context, what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{}: {what}", context.name());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            got.to_bits() == want.to_bits() && !got.is_nan(),
            "{}: {what}[{i}] is {got:e}, must be {want:e}, bit for bit",
            context.name()
        );
    }
}

/// Exact zeros.
#[track_caller]
pub(crate) fn assert_zero(context: &Context, what: &str, got: &[f64]) {
    let other = got.iter().position(|&v| v != 0.0);
    if let Some(i) = other {
        panic!("{}: {what}[{i}] is {}, must be 0", context.name(), got[i]);
    }
}

/// True if a value is further away than any rounding.
pub(crate) fn differ(got: &[f64], want: &[f64]) -> bool {
    compare(got, want).error > 1e-3
}
