//! Layers against solved cases: outputs and every gradient of a [`Case`], on one device.
//!
//! The layer runs three ways, all of which must give what the case states: forward and backward as
//! in training, forward alone, and one step at a time. Of the case's options those that a layer
//! has not are named by [`unsupported`]; such a case is not run, and its only outcome says so.

use std::collections::BTreeMap;

use super::tolerance::UNIT;
use super::{Outcome, compare, tolerance};
use crate::cell::{self, Cell};
use crate::context::{Context, Dtype};
use crate::error::{Error, Result};
use crate::interop::case::{Case, CaseCell};
use crate::layer::{Layer, Sequence};
use crate::plan::sequence::{LayerSpec, Size};
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Compares a layer on `context` with a case: the outputs of all three ways of running it, and the
/// gradients of x, the initial state and every weight.
///
/// # Errors
/// If the device cannot hold the layer, or fails.
pub fn check(context: &Context, case: &Case) -> Result<Vec<Outcome>> {
    let missing = unsupported(case);
    if !missing.is_empty() {
        let options = missing.join(", ");
        return Ok(vec![Outcome::unsupported(context, &case.name, options)]);
    }
    let layer = layer(context, case)?;
    let mut run = Run {
        context,
        case,
        sensitivity: match context.dtype() {
            Dtype::F32 => sensitivity(case)?,
            Dtype::F64 => BTreeMap::new(),
        },
        outcomes: Vec::new(),
    };
    run.training()?;
    run.inference(&layer)?;
    run.stream(&layer)?;
    Ok(run.outcomes)
}

/// The options of a case that no layer has, by the names of the case's fields.
pub fn unsupported(case: &Case) -> Vec<&'static str> {
    let steps = case.steps as i64;
    let shorter = |lengths: &[i64]| lengths.iter().any(|&l| l != steps);
    let own = own_activations(case.cell);
    let options = [
        ("num_layers", case.num_layers > 1),
        ("bidirectional", case.bidirectional),
        ("proj_size", case.proj_size > 0),
        ("peephole", case.peephole),
        ("coupled", case.coupled),
        ("clip", case.clip.is_some()),
        ("cell_clip", case.cell_clip.is_some()),
        (
            "gru_reset before",
            case.cell == CaseCell::Gru && !case.reset_after,
        ),
        (
            "activations",
            !case.activations.is_empty() && case.activations != own,
        ),
        ("lengths", case.lengths().is_some_and(shorter)),
        ("reset", case.resets().is_some_and(|r| r.contains(&1))),
        ("an empty sequence", case.steps == 0 || case.batch == 0),
    ];
    options
        .into_iter()
        .filter_map(|(name, used)| used.then_some(name))
        .collect()
}

/// What a case may name as its activations without changing the cell.
fn own_activations(cell: CaseCell) -> &'static [&'static str] {
    match cell {
        CaseCell::RnnTanh => &["tanh"],
        CaseCell::RnnRelu => &["relu"],
        CaseCell::Lstm => &["sigmoid", "tanh", "tanh"],
        CaseCell::Gru => &["sigmoid", "tanh"],
    }
}

/// The layer of a supported case with its weights.
///
/// # Errors
/// [`Error::Unsupported`] for other cases; [`Error::Limit`] or [`Error::Device`] if the device cannot
/// hold it.
pub fn layer(context: &Context, case: &Case) -> Result<Layer> {
    let missing = unsupported(case);
    if !missing.is_empty() {
        return Err(Error::Unsupported {
            op: "check::cases::layer",
            needs: missing.join(", "),
        });
    }
    let spec = LayerSpec {
        cell: cell_of(case.cell),
        input_size: case.input_size,
        hidden_size: case.hidden_size,
        bias: case.bias,
    };
    let layer = Layer::new(context, spec, 0)?;
    for (name, _) in case.weight_names() {
        layer.set_weight(&name, case.input(&name)?)?;
    }
    layer.prepare()?;
    Ok(layer)
}

/// How far the exact results of a supported case move, relative to the largest value of each tensor,
/// when all its inputs and weights change by factors of 1 ± 2⁻²⁴: the largest of some random draws.
///
/// # Errors
/// As [`layer`].
pub fn sensitivity(case: &Case) -> Result<BTreeMap<String, f64>> {
    const DRAWS: u64 = 8;
    let sequence = training(&Context::cpu_f64(), case)?;
    let exact = results(&sequence)?;
    let mut inputs = inputs(case, &sequence)?;
    for (name, _) in case.weight_names() {
        let weight = sequence.program().named(&name)?.clone();
        inputs.push((name, weight));
    }
    let mut largest: BTreeMap<String, f64> = BTreeMap::new();
    for draw in 0..DRAWS {
        let mut rng = Rng::new(draw);
        for (name, tensor) in &inputs {
            let mut change = |&v: &f32| {
                let up = rng.word() & 1 == 0;
                f64::from(v) * (1.0 + if up { UNIT } else { -UNIT })
            };
            let changed: Vec<f64> = case.input(name)?.iter().map(&mut change).collect();
            tensor.write_f64(&changed)?;
        }
        for ((name, changed), (_, exact)) in results(&sequence)?.iter().zip(&exact) {
            let moved = compare(changed, exact).error;
            let known = largest.entry(name.clone()).or_default();
            *known = known.max(moved);
        }
    }
    Ok(largest)
}

fn cell_of(cell: CaseCell) -> &'static Cell {
    match cell {
        CaseCell::RnnTanh => &cell::RNN_TANH,
        CaseCell::RnnRelu => &cell::RNN_RELU,
        CaseCell::Lstm => &cell::LSTM,
        CaseCell::Gru => &cell::GRU,
    }
}

/// A training sequence of a supported case's layer, with all that the case gives written to it:
/// running `forward` and then `backward` gives what the case expects.
///
/// # Errors
/// As [`layer`].
pub fn training(context: &Context, case: &Case) -> Result<Sequence> {
    let sequence = layer(context, case)?.training(size(case))?;
    for (name, tensor) in inputs(case, &sequence)? {
        tensor.write(case.input(&name)?)?;
    }
    Ok(sequence)
}

/// What a caller writes to a training sequence, under the case's names.
fn inputs(case: &Case, sequence: &Sequence) -> Result<Vec<(String, Tensor)>> {
    let mut inputs = vec![
        ("x", sequence.x().clone()),
        ("h0", sequence.h0()?),
        ("dy", sequence.dy()?.clone()),
        ("dhn", sequence.dhn()?),
    ];
    if case.cell == CaseCell::Lstm {
        inputs.extend([("c0", sequence.c0()?), ("dcn", sequence.dcn()?)]);
    }
    let named = inputs.into_iter();
    Ok(named.map(|(n, t)| (n.to_owned(), t)).collect())
}

/// Runs a training sequence forward and backward and reads its results, under the case's names.
fn results(sequence: &Sequence) -> Result<Vec<(String, Vec<f64>)>> {
    sequence.forward()?;
    sequence.backward()?;
    let mut tensors = vec![
        ("out.y".to_owned(), sequence.y()?),
        ("out.hn".to_owned(), sequence.hn()?),
        ("grad.x".to_owned(), sequence.dx()?.clone()),
        ("grad.h0".to_owned(), sequence.dh0()?),
    ];
    if sequence.has_cell_state() {
        tensors.push(("out.cn".to_owned(), sequence.cn()?));
        tensors.push(("grad.c0".to_owned(), sequence.dc0()?));
    }
    for (name, gradient) in sequence.gradients()? {
        tensors.push((format!("grad.{name}"), gradient));
    }
    tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.read_f64()?)))
        .collect()
}

fn size(case: &Case) -> Size {
    Size {
        steps: case.steps,
        batch: case.batch,
    }
}

/// The comparisons of one case on one device.
struct Run<'a> {
    context: &'a Context,
    case: &'a Case,
    sensitivity: BTreeMap<String, f64>,
    outcomes: Vec<Outcome>,
}

impl Run<'_> {
    fn training(&mut self) -> Result<()> {
        for (name, values) in results(&training(self.context, self.case)?)? {
            self.compare_values(&name, "", &values)?;
        }
        Ok(())
    }

    fn inference(&mut self, layer: &Layer) -> Result<()> {
        let case = self.case;
        let sequence = layer.inference(size(case))?;
        sequence.x().write(case.input("x")?)?;
        sequence.h0()?.write(case.input("h0")?)?;
        if case.cell == CaseCell::Lstm {
            sequence.c0()?.write(case.input("c0")?)?;
        }
        sequence.forward()?;
        const WAY: &str = " (inference)";
        self.compare("out.y", WAY, &sequence.y()?)?;
        self.compare("out.hn", WAY, &sequence.hn()?)?;
        if case.cell == CaseCell::Lstm {
            self.compare("out.cn", WAY, &sequence.cn()?)?;
        }
        Ok(())
    }

    fn stream(&mut self, layer: &Layer) -> Result<()> {
        let case = self.case;
        let stream = layer.stream(case.batch)?;
        stream.h()?.write(case.input("h0")?)?;
        if case.cell == CaseCell::Lstm {
            stream.c()?.write(case.input("c0")?)?;
        }
        let mut y = Vec::new();
        for x in case.input("x")?.chunks(case.batch * case.input_size) {
            stream.x().write(x)?;
            stream.step()?;
            y.extend(stream.h()?.read_f64()?);
        }
        const WAY: &str = " (stream)";
        self.compare_values("out.y", WAY, &y)?;
        self.compare("out.hn", WAY, &stream.h()?)?;
        if case.cell == CaseCell::Lstm {
            self.compare("out.cn", WAY, &stream.c()?)?;
        }
        Ok(())
    }

    fn compare(&mut self, name: &str, way: &str, got: &Tensor) -> Result<()> {
        self.compare_values(name, way, &got.read_f64()?)
    }

    fn compare_values(&mut self, name: &str, way: &str, got: &[f64]) -> Result<()> {
        let case = self.case;
        let want = case.tensor(name)?.to_f64();
        // The gradient of a weight is one sum over all steps and sequences.
        let of_weight = ["grad.weight", "grad.bias"]
            .iter()
            .any(|p| name.starts_with(p));
        let summed = if of_weight {
            case.steps * case.batch
        } else {
            1
        };
        let length = case.hidden_size.max(case.input_size).max(summed);
        let sensitivity = self.sensitivity.get(name).copied().unwrap_or_default();
        self.outcomes.push(Outcome::new(
            self.context,
            &case.name,
            format!("{name}{way}"),
            compare(got, &want).error,
            tolerance::layer(self.context.dtype(), length, sensitivity),
        ));
        Ok(())
    }
}
