//! Layers against solved cases: outputs and every gradient of a [`Case`], on one device.
//!
//! The layer runs in every way that the case allows, all of which must give what the case states:
//! training, inference, batch-first input and output, segments that are computed again in the backward
//! pass; packed sequences, where each has a step and no reset stands past a length (a packed array
//! cannot say either); and streams step by step, in one direction without lengths and resets.

use std::collections::BTreeMap;

use super::tolerance::UNIT;
use super::{Outcome, compare, tolerance};
use crate::activation::{Activation, Function};
use crate::cell::{self, Cell};
use crate::context::{Context, Dtype};
use crate::error::{Error, Result};
use crate::interop::case::{Case, CaseCell};
use crate::layer::{Layer, Packing, Sequence, State};
use crate::plan::sequence::{Call, LayerSpec, Mode, Order, Size};
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Compares a layer on `context` with a case: outputs in every way of running it, and in training the
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
    for way in ways(case)? {
        let results = way.results(&layer, case)?;
        for (name, values) in results {
            run.compare(&name, way.name, &values)?;
        }
    }
    if streams_fit(case) {
        run.streams(&layer)?;
    }
    Ok(run.outcomes)
}

/// The options of a case that no layer has, by the names of the case's fields.
pub fn unsupported(case: &Case) -> Vec<&'static str> {
    let options = [("an empty sequence", case.steps == 0 || case.batch == 0)];
    options
        .into_iter()
        .filter_map(|(name, used)| used.then_some(name))
        .collect()
}

/// What kind of layer a case has.
///
/// # Errors
/// [`Error::Value`] if it names an activation that is not known.
pub fn spec(case: &Case) -> Result<LayerSpec> {
    let mut spec = LayerSpec {
        proj_size: case.proj_size,
        num_layers: case.num_layers,
        bidirectional: case.bidirectional,
        bias: case.bias,
        clip: case.clip,
        cell_clip: case.cell_clip,
        coupled: case.coupled,
        ..LayerSpec::new(cell_of(case), case.input_size, case.hidden_size)
    };
    let given = |numbers: &[Option<f64>], at: usize| numbers.get(at).copied().flatten();
    for (at, name) in case.activations.iter().enumerate() {
        let function = Function::named(name)
            .ok_or_else(|| Error::value("check::cases", "activations", "known functions", name))?;
        let own = Activation::new(function);
        spec.activations[at] = Activation {
            alpha: given(&case.alpha, at).unwrap_or(own.alpha),
            beta: given(&case.beta, at).unwrap_or(own.beta),
            ..own
        };
    }
    Ok(spec)
}

fn cell_of(case: &Case) -> &'static Cell {
    match (case.cell, case.peephole, case.proj_size > 0) {
        (CaseCell::RnnTanh, ..) => &cell::RNN_TANH,
        (CaseCell::RnnRelu, ..) => &cell::RNN_RELU,
        (CaseCell::Gru, ..) if case.reset_after => &cell::GRU,
        (CaseCell::Gru, ..) => &cell::GRU_BEFORE,
        (CaseCell::Lstm, false, false) => &cell::LSTM,
        (CaseCell::Lstm, true, false) => &cell::LSTM_PEEPHOLE,
        (CaseCell::Lstm, false, true) => &cell::LSTM_PROJECTED,
        (CaseCell::Lstm, true, true) => &cell::LSTM_PEEPHOLE_PROJECTED,
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
    let layer = Layer::new(context, spec(case)?, 0)?;
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
    let mut inputs = inputs(&sequence)?;
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

/// A training sequence of a supported case's layer, with all that the case gives written to it:
/// running `forward` and then `backward` gives what the case expects.
///
/// # Errors
/// As [`layer`].
pub fn training(context: &Context, case: &Case) -> Result<Sequence> {
    let way = Way::new(
        "",
        call(case, Mode::Training),
        case,
        padded(case, Order::TimeFirst),
    );
    way.sequence(&layer(context, case)?, case)
}

/// What a caller writes to a training sequence, under the case's names.
fn inputs(sequence: &Sequence) -> Result<Vec<(String, Tensor)>> {
    let mut inputs = vec![
        ("x", sequence.x()),
        ("h0", sequence.h0()),
        ("dy", sequence.dy()?),
        ("dhn", sequence.dhn()?),
    ];
    if sequence.has_cell_state() {
        inputs.extend([("c0", sequence.c0()?), ("dcn", sequence.dcn()?)]);
    }
    let named = inputs.into_iter();
    Ok(named.map(|(n, t)| (n.to_owned(), t.clone())).collect())
}

/// Runs a training sequence forward and backward and reads its results, under the case's names.
fn results(sequence: &Sequence) -> Result<Vec<(String, Vec<f64>)>> {
    sequence.forward()?;
    let mut tensors = vec![
        ("out.y".to_owned(), sequence.y().clone()),
        ("out.hn".to_owned(), sequence.hn().clone()),
    ];
    if sequence.has_cell_state() {
        tensors.push(("out.cn".to_owned(), sequence.cn()?.clone()));
    }
    if sequence.call().mode == Mode::Training {
        sequence.backward()?;
        tensors.push(("grad.x".to_owned(), sequence.dx()?.clone()));
        tensors.push(("grad.h0".to_owned(), sequence.dh0()?.clone()));
        if sequence.has_cell_state() {
            tensors.push(("grad.c0".to_owned(), sequence.dc0()?.clone()));
        }
        for (name, gradient) in sequence.gradients()? {
            tensors.push((format!("grad.{name}"), gradient));
        }
    }
    tensors
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.read_f64()?)))
        .collect()
}

/// The call of a case's layer as PyTorch would make it.
fn call(case: &Case, mode: Mode) -> Call {
    let size = Size {
        steps: case.steps,
        batch: case.batch,
    };
    let mut call = match mode {
        Mode::Inference => Call::inference(size),
        Mode::Training => Call::training(size).burn_in(case.burn_in),
    };
    call.lengths = case.lengths().is_some();
    call.resets = case.resets().is_some();
    call
}

/// A way of running a case: a call, and where its rows and sequences stand in the case's.
struct Way {
    name: &'static str,
    call: Call,
    /// The row t · N + n of each row of the call.
    rows: Vec<usize>,
    /// The sequence of each of the call's.
    sequences: Vec<usize>,
    /// T · N
    all: usize,
}

/// Every way in which a case can run but streams.
fn ways(case: &Case) -> Result<Vec<Way>> {
    let training = call(case, Mode::Training);
    let time_first = || padded(case, Order::TimeFirst);
    let mut ways = vec![
        Way::new("", training.clone(), case, time_first()),
        Way::new(
            " (inference)",
            call(case, Mode::Inference),
            case,
            time_first(),
        ),
        Way::new(
            " (batch first)",
            training.clone().batch_first(),
            case,
            padded(case, Order::BatchFirst),
        ),
        Way::new(
            " (recompute)",
            training.clone().recompute(3),
            case,
            time_first(),
        ),
        Way::new(
            " (recompute, batch first)",
            training.clone().batch_first().recompute(2),
            case,
            padded(case, Order::BatchFirst),
        ),
    ];
    let full = vec![case.steps as i64; case.batch];
    let lengths: Vec<usize> = case
        .lengths()
        .unwrap_or(&full)
        .iter()
        .map(|&l| l as usize)
        .collect();
    // A packed array has no steps past the longest, and no sequences without a step.
    if lengths.iter().all(|&l| l > 0) && lengths.contains(&case.steps) {
        let packing = Packing::new(&lengths)?;
        let rows: Vec<usize> = packing.rows().map(|(t, n)| t * case.batch + n).collect();
        let packed = |mode| Call {
            lengths: false,
            burn_in: if mode == Mode::Training {
                case.burn_in
            } else {
                0
            },
            resets: case.resets().is_some(),
            ..Call::packed(packing.batch_sizes(), mode)
        };
        let recompute = packed(Mode::Training).recompute(2);
        for (name, call) in [
            (" (packed)", packed(Mode::Training)),
            (" (packed, inference)", packed(Mode::Inference)),
            (" (packed, recompute)", recompute),
        ] {
            let mut way = Way::new(name, call, case, rows.clone());
            way.sequences = packing.order().to_vec();
            // A reset past the length would count in padded sequences: the state is held after it.
            if !resets_past_lengths(case, &lengths) {
                ways.push(way);
            }
        }
    }
    Ok(ways)
}

fn resets_past_lengths(case: &Case, lengths: &[usize]) -> bool {
    let resets = case.resets().unwrap_or(&[]).chunks(case.batch.max(1));
    let past = |(t, row): (usize, &[u8])| {
        let mut both = row.iter().zip(lengths);
        both.any(|(&reset, &length)| reset != 0 && t >= length)
    };
    resets.enumerate().any(past)
}

/// The rows of a padded call of this order.
fn padded(case: &Case, order: Order) -> Vec<usize> {
    let (steps, batch) = (case.steps, case.batch);
    match order {
        Order::TimeFirst => (0..steps * batch).collect(),
        Order::BatchFirst => (0..batch)
            .flat_map(|n| (0..steps).map(move |t| t * batch + n))
            .collect(),
    }
}

impl Way {
    fn new(name: &'static str, call: Call, case: &Case, rows: Vec<usize>) -> Self {
        Self {
            name,
            call,
            rows,
            sequences: (0..case.batch).collect(),
            all: case.steps * case.batch,
        }
    }

    /// A sequence with all that the case gives written to it.
    fn sequence(&self, layer: &Layer, case: &Case) -> Result<Sequence> {
        let sequence = layer.sequence(&self.call)?;
        if self.call.lengths
            && let Some(lengths) = case.lengths()
        {
            sequence.set_lengths(lengths)?;
        }
        if let Some(resets) = case.resets() {
            let resets: Vec<bool> = self.rows.iter().map(|&row| resets[row] != 0).collect();
            let shape = resets_shape(&sequence, &self.call)?;
            let view = ndarray::ArrayView::from_shape(shape, &resets)
                .map_err(|e| Error::value("check::cases", "reset", "of the case's shape", e))?;
            sequence.set_resets(view)?;
        }
        let inputs = match self.call.mode {
            Mode::Training => inputs(&sequence)?,
            Mode::Inference => {
                let mut inputs = vec![("x", sequence.x()), ("h0", sequence.h0())];
                if sequence.has_cell_state() {
                    inputs.push(("c0", sequence.c0()?));
                }
                let named = inputs.into_iter();
                named.map(|(n, t)| (n.to_owned(), t.clone())).collect()
            }
        };
        for (name, tensor) in inputs {
            let values = case.input(&name)?;
            let values = if matches!(name.as_str(), "x" | "dy") {
                gather(values, &self.rows, self.all)
            } else {
                self.sequences_of(values, tensor.shape()[0], gather)
            };
            tensor.write(&values)?;
        }
        Ok(sequence)
    }

    /// Applies `f` to the states of each level.
    fn sequences_of<T: Copy>(
        &self,
        values: &[T],
        levels: usize,
        f: impl Fn(&[T], &[usize], usize) -> Vec<T>,
    ) -> Vec<T> {
        let each = (values.len() / levels).max(1);
        let batch = self.sequences.len();
        values
            .chunks(each)
            .flat_map(|level| f(level, &self.sequences, batch))
            .collect()
    }

    /// Runs it and brings the results to the case's order.
    fn results(&self, layer: &Layer, case: &Case) -> Result<Vec<(String, Vec<f64>)>> {
        let levels = layer.spec().num_layers * layer.spec().directions();
        let results = results(&self.sequence(layer, case)?)?;
        let ordered = results.into_iter().map(|(name, values)| {
            let values = match name.as_str() {
                "out.y" | "grad.x" => scatter(&values, &self.rows, self.all),
                "out.hn" | "out.cn" | "grad.h0" | "grad.c0" => {
                    self.sequences_of(&values, levels, scatter)
                }
                _ => values,
            };
            (name, values)
        });
        Ok(ordered.collect())
    }
}

fn resets_shape(sequence: &Sequence, call: &Call) -> Result<ndarray::IxDyn> {
    let mut shape = sequence.x().shape().to_vec();
    shape.pop();
    if shape.is_empty() {
        return Err(Error::shape("check::cases", "x", "rows", call.mode));
    }
    Ok(ndarray::IxDyn(&shape))
}

/// The given rows of `count` rows.
fn gather<T: Copy>(values: &[T], rows: &[usize], count: usize) -> Vec<T> {
    let width = values.len() / count;
    let row = |&at: &usize| values[at * width..(at + 1) * width].iter().copied();
    rows.iter().flat_map(row).collect()
}

/// `count` rows: the given ones where they belong, zeros elsewhere.
fn scatter(values: &[f64], rows: &[usize], count: usize) -> Vec<f64> {
    let width = values.len() / rows.len().max(1);
    let mut out = vec![0.0; count * width];
    for (from, &to) in values.chunks(width.max(1)).zip(rows) {
        out[to * width..(to + 1) * width].copy_from_slice(from);
    }
    out
}

/// Streams have one direction and neither lengths nor resets.
fn streams_fit(case: &Case) -> bool {
    !case.bidirectional && case.lengths().is_none() && case.resets().is_none()
}

/// The comparisons of one case on one device.
struct Run<'a> {
    context: &'a Context,
    case: &'a Case,
    sensitivity: BTreeMap<String, f64>,
    outcomes: Vec<Outcome>,
}

impl Run<'_> {
    /// The case's sequences as streams, the last first.
    fn streams(&mut self, layer: &Layer) -> Result<()> {
        let case = self.case;
        let (batch, levels) = (case.batch, case.num_layers);
        let streams = layer.streams(batch)?;
        let order: Vec<usize> = (0..batch).rev().collect();
        let state = |name: &str, n: usize| -> Result<ndarray::Array3<f32>> {
            let values = case.input(name)?;
            let width = values.len() / (levels * batch);
            let at = |(l, _, u): (usize, usize, usize)| values[(l * batch + n) * width + u];
            Ok(ndarray::Array3::from_shape_fn((levels, 1, width), at))
        };
        let has_c = layer.cell().cell_state;
        for &n in &order {
            let c = if has_c { Some(state("c0", n)?) } else { None };
            streams.set_state(
                n,
                &State {
                    h: state("h0", n)?,
                    c,
                },
            )?;
        }
        let mut y = Vec::new();
        for x in case.input("x")?.chunks(batch * case.input_size) {
            streams.advance(&order)?;
            streams.x().write(&gather(x, &order, batch))?;
            streams.run_step()?;
            y.extend(scatter(&streams.y().read_f64()?, &order, batch));
        }
        const WAY: &str = " (streams)";
        self.compare("out.y", WAY, &y)
    }

    fn compare(&mut self, name: &str, way: &str, got: &[f64]) -> Result<()> {
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
