//! A layer's call on a device, ready to be timed, and whether its results are right.

use wgrnn::check::{compare, tolerance};
use wgrnn::rng::Rng;
use wgrnn::{Context, Error, Layer, Result, Sequence};

use super::shapes::{Mode, Shape};

/// The floating-point operations that the oracle may spend on a shape; it runs fewer steps where all
/// of them would cost more.
const ORACLE: f64 = 2e9;
/// The fewest steps that are checked, so that one depends on another.
const FEWEST_STEPS: usize = 2;

/// Numbers that a call reads, the same on every device.
pub(super) struct Inputs {
    x: Vec<f32>,
    dy: Vec<f32>,
}

impl Inputs {
    pub(super) fn draw(shape: &Shape, mode: Mode, steps: usize) -> Self {
        let mut rng = Rng::new(2);
        let (rows, spec) = (steps * shape.batch, shape.spec());
        let mut uniform = |width: usize| rng.uniforms(rows * width, -1.0, 1.0);
        Self {
            x: uniform(spec.input_size),
            dy: match mode {
                Mode::Infer => Vec::new(),
                Mode::Train => uniform(spec.features()),
            },
        }
    }

    /// Puts them on the device. The initial state is zeros, as it was allocated.
    pub(super) fn write(&self, call: &Sequence, mode: Mode) -> Result<()> {
        call.x().write(&self.x)?;
        match mode {
            Mode::Infer => Ok(()),
            Mode::Train => call.dy()?.write(&self.dy),
        }
    }
}

/// The layer of a shape; its weights are the same on every device.
pub(super) fn layer(context: &Context, shape: &Shape) -> Result<Layer> {
    Layer::new(context, shape.spec(), 1)
}

/// The sections of a call's plan that are timed.
pub(super) fn sections(mode: Mode) -> &'static [&'static str] {
    match mode {
        Mode::Infer => &["forward"],
        Mode::Train => &["forward", "backward"],
    }
}

/// Submits what is timed.
pub(super) fn submit(call: &Sequence, mode: Mode) -> Result<()> {
    let mut sections = sections(mode).iter();
    sections.try_for_each(|section| call.program().run(section))
}

/// How many steps the oracle can afford.
fn affordable(shape: &Shape, mode: Mode) -> usize {
    let most = ORACLE / shape.flops(mode, 1);
    (most as usize).max(FEWEST_STEPS).min(shape.steps)
}

/// Compares what a finished call left with the oracle in double precision: y, the final state and, in
/// training, the gradients of x and of every weight. Where the oracle would take too long, another call
/// of the same layer over fewer steps is compared in its place, and of this one, that its numbers are
/// finite. Returns the steps that were compared.
///
/// # Errors
/// [`Error::Value`] with the worst result if one is outside the tolerance; if the device fails.
pub(super) fn verify(layer: &Layer, call: &Sequence, shape: &Shape, mode: Mode) -> Result<usize> {
    let steps = affordable(shape, mode);
    let inputs = Inputs::draw(shape, mode, steps);
    let run = |layer: &Layer| -> Result<Vec<(String, Vec<f64>)>> {
        let short = layer.sequence(&shape.call(mode, steps))?;
        inputs.write(&short, mode)?;
        submit(&short, mode)?;
        results(&short, mode)
    };
    let got = if steps == shape.steps {
        results(call, mode)?
    } else {
        for (name, values) in results(call, mode)? {
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(wrong(format!("{name}[{at}] finite"), values[at]));
            }
        }
        run(layer)?
    };
    let want = run(&self::layer(&Context::cpu_f64(), shape)?)?;
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        let spec = shape.spec();
        // The gradient of a weight is one sum over all steps and sequences.
        let summed = if name.starts_with("grad.") {
            steps * shape.batch
        } else {
            1
        };
        let length = spec.width().max(spec.input_size).max(summed);
        let limit = tolerance::layer(layer.context().dtype(), length, 0.0);
        let d = compare(got, want);
        if d.error > limit {
            let expected = format!("{name}[{}] within {limit:.1e} of {}", d.at, d.want);
            return Err(wrong(expected, format!("{} ({:.1e})", d.got, d.error)));
        }
    }
    Ok(steps)
}

fn wrong(expected: String, got: impl std::fmt::Display) -> Error {
    Error::Value {
        op: "bench",
        arg: "the result".to_owned(),
        expected: format!("right: {expected}"),
        got: got.to_string(),
    }
}

fn results(call: &Sequence, mode: Mode) -> Result<Vec<(String, Vec<f64>)>> {
    let mut tensors = vec![
        ("y".to_owned(), call.y().clone()),
        ("hn".to_owned(), call.hn().clone()),
    ];
    if mode == Mode::Train {
        tensors.push(("grad.x".to_owned(), call.dx()?.clone()));
        for (name, tensor) in call.gradients()? {
            tensors.push((format!("grad.{name}"), tensor));
        }
    }
    let read = |(name, tensor): (String, wgrnn::Tensor)| Ok((name, tensor.read_f64()?));
    tensors.into_iter().map(read).collect()
}
