//! Layers against solved cases: outputs and every gradient of a [`Case`], on one device.
//!
//! The layer runs three ways, all of which must give what the case states: forward and backward as
//! in training, forward alone, and one step at a time. Of the case's options those that a layer
//! has not are named by [`unsupported`]; such a case is not run, and its only outcome says so.

use super::{Outcome, compare, tolerance};
use crate::cell::{self, Cell};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::interop::case::{Case, CaseCell};
use crate::layer::{Layer, Sequence};
use crate::plan::sequence::{LayerSpec, Size};
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
    sequence.x().write(case.input("x")?)?;
    sequence.h0()?.write(case.input("h0")?)?;
    sequence.dy()?.write(case.input("dy")?)?;
    sequence.dhn()?.write(case.input("dhn")?)?;
    if case.cell == CaseCell::Lstm {
        sequence.c0()?.write(case.input("c0")?)?;
        sequence.dcn()?.write(case.input("dcn")?)?;
    }
    Ok(sequence)
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
    outcomes: Vec<Outcome>,
}

impl Run<'_> {
    fn training(&mut self) -> Result<()> {
        let sequence = training(self.context, self.case)?;
        sequence.forward()?;
        sequence.backward()?;
        self.compare("out.y", "", &sequence.y()?)?;
        self.compare("out.hn", "", &sequence.hn()?)?;
        self.compare("grad.x", "", sequence.dx()?)?;
        self.compare("grad.h0", "", &sequence.dh0()?)?;
        if self.case.cell == CaseCell::Lstm {
            self.compare("out.cn", "", &sequence.cn()?)?;
            self.compare("grad.c0", "", &sequence.dc0()?)?;
        }
        for (name, gradient) in sequence.gradients()? {
            self.compare(&format!("grad.{name}"), "", &gradient)?;
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
        self.outcomes.push(Outcome::new(
            self.context,
            &case.name,
            format!("{name}{way}"),
            compare(got, &want).error,
            tolerance::layer(self.context.dtype(), length, case.steps),
        ));
        Ok(())
    }
}
