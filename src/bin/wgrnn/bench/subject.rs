//! A layer's call on a device, ready to be timed, and whether its results are right.
//!
//! A shape of the group `stream` is a step of [`Streams`], which is what a layer has for such use; all
//! others are calls of whole sequences.

use wgrnn::check::{compare, tolerance};
use wgrnn::ndarray::Axis;
use wgrnn::plan::sequence::{streams, weights};
use wgrnn::plan::{Builder, Plan};
use wgrnn::rng::Rng;
use wgrnn::{Context, Error, Layer, Precision, Program, Result, Sequence, Streams};

use super::shapes::{Group, Mode, Shape};

/// The floating-point operations that the oracle may spend on a shape; it runs fewer steps where all
/// of them would cost more.
pub(super) const ORACLE: f64 = 2e9;
/// The fewest steps that are checked, so that one depends on another.
const FEWEST_STEPS: usize = 2;

/// Numbers that a call reads, the same on every device.
pub(super) struct Inputs {
    x: Vec<f32>,
    dy: Vec<f32>,
}

impl Inputs {
    /// # Errors
    /// If there is no memory for them.
    pub(super) fn draw(shape: &Shape, mode: Mode, steps: usize) -> Result<Self> {
        let mut rng = Rng::new(2);
        let (rows, spec) = (steps.saturating_mul(shape.batch), shape.spec());
        let mut uniform = |width| rng.try_uniforms(rows.saturating_mul(width), -1.0, 1.0);
        Ok(Self {
            x: uniform(spec.input_size)?,
            dy: match mode {
                Mode::Infer => Vec::new(),
                Mode::Train => uniform(spec.features())?,
            },
        })
    }

    /// Puts them on the device. The initial state is zeros, as it was allocated.
    pub(super) fn write(&self, call: &Call, mode: Mode) -> Result<()> {
        match (call, mode) {
            (Call::Streams(call), _) => call.x().write(&self.x),
            (Call::Sequence(call), Mode::Infer) => call.x().write(&self.x),
            (Call::Sequence(call), Mode::Train) => {
                call.x().write(&self.x)?;
                call.dy()?.write(&self.dy)
            }
        }
    }
}

/// What is timed.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Call {
    Sequence(Sequence),
    /// One step of all of them.
    Streams(Streams),
}

impl Call {
    pub(super) fn new(layer: &Layer, shape: &Shape, mode: Mode) -> Result<Self> {
        match is_stream(shape, mode) {
            true => Ok(Self::Streams(layer.streams(shape.batch)?)),
            false => Self::sequence(layer, shape, mode, shape.steps),
        }
    }

    fn sequence(layer: &Layer, shape: &Shape, mode: Mode, steps: usize) -> Result<Self> {
        let call = layer.sequence(&shape.call(mode, steps))?;
        Ok(Self::Sequence(call))
    }

    pub(super) fn program(&self) -> &Program {
        match self {
            Self::Sequence(call) => call.program(),
            Self::Streams(call) => call.program(),
        }
    }

    /// The sections of its plan that are timed.
    pub(super) fn sections(&self, mode: Mode) -> &'static [&'static str] {
        match (self, mode) {
            (Self::Streams(_), _) => &["step"],
            (_, Mode::Infer) => &["forward"],
            (_, Mode::Train) => &["forward", "backward"],
        }
    }

    /// Submits it.
    pub(super) fn submit(&self, mode: Mode) -> Result<()> {
        match self {
            Self::Streams(call) => {
                let all: Vec<usize> = (0..call.count()).collect();
                call.advance(&all)?;
                call.run_step()
            }
            Self::Sequence(call) => {
                let mut sections = self.sections(mode).iter();
                sections.try_for_each(|section| call.program().run(section))
            }
        }
    }
}

/// Whether a shape is timed as a step of streams.
fn is_stream(shape: &Shape, mode: Mode) -> bool {
    let one = shape.steps == 1 && mode == Mode::Infer && !shape.spec().bidirectional;
    one && shape.group == Group::Stream
}

/// The plan of what is timed.
///
/// # Errors
/// If it is too large.
pub(super) fn plan(context: &Context, shape: &Shape, mode: Mode) -> Result<Plan> {
    let spec = shape.spec();
    if !is_stream(shape, mode) {
        return Sequence::plan(&spec, &shape.call(mode, shape.steps), &context.target());
    }
    let mut b = Builder::on("streams", context.target());
    let weights = weights(&mut b, &spec);
    streams(&mut b, &spec, shape.batch, &weights)?;
    Ok(b.finish())
}

/// The layer of a shape; its weights are the same on every device.
pub(super) fn layer(context: &Context, shape: &Shape) -> Result<Layer> {
    Layer::new(context, shape.spec(), 1)
}

/// How many steps the oracle can run with so many operations.
fn affordable(shape: &Shape, mode: Mode, flops: f64) -> usize {
    let most = flops / shape.flops(mode, 1);
    (most as usize).max(FEWEST_STEPS).min(shape.steps)
}

/// Compares what a call left that ran once with the oracle in double precision: y, the final state and, in
/// training, the gradients of x and of every weight. Where the oracle would need more than `flops`, another
/// call of the same layer over fewer steps is compared in its place; of this one are compared the first
/// steps of y, if there is one direction, and that its numbers are finite. Returns the steps that were
/// compared.
///
/// # Errors
/// [`Error::Value`] with the first result outside the tolerance; if the device fails.
pub(super) fn verify(
    layer: &Layer,
    call: &Call,
    shape: &Shape,
    mode: Mode,
    flops: f64,
) -> Result<usize> {
    let steps = affordable(shape, mode, flops);
    let inputs = Inputs::draw(shape, mode, steps)?;
    let run = |layer: &Layer| -> Result<Vec<(String, Vec<f64>)>> {
        let short = Call::sequence(layer, shape, mode, steps)?;
        inputs.write(&short, mode)?;
        short.submit(mode)?;
        results(&short, mode)
    };
    let want = run(&self::layer(&Context::cpu_f64(), shape)?)?;
    let all = results(call, mode)?;
    let got = if steps == shape.steps {
        all
    } else {
        for (name, values) in &all {
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(wrong(format!("{name}[{at}] finite"), values[at]));
            }
        }
        // The first steps of x are the same, and nothing comes back from later ones.
        if !shape.spec().bidirectional {
            let (name, y) = &want[0];
            agree(layer, shape, 1, name, (&all[0].1[..y.len()], y))?;
        }
        run(layer)?
    };
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        // The gradient of a weight is one sum over all steps and sequences.
        let summed = match name.starts_with("grad.") {
            true => steps * shape.batch,
            false => 1,
        };
        agree(layer, shape, summed, name, (got, want))?;
    }
    Ok(steps)
}

/// `summed` steps of all sequences are added up in a value.
fn agree(
    layer: &Layer,
    shape: &Shape,
    summed: usize,
    name: &str,
    (got, want): (&[f64], &[f64]),
) -> Result<()> {
    let spec = shape.spec();
    let length = spec.width().max(spec.input_size).max(summed);
    // The oracle rounds too; a layer that amplifies where the two go apart is not told from a wrong one.
    let rounding = match shape.activations {
        Precision::F32 => 0.0,
        Precision::F16 => tolerance::activations_f16(0.0),
    };
    let limit = tolerance::layer(layer.context().dtype(), length, 0.0) + rounding;
    let d = compare(got, want);
    if d.error > limit {
        let expected = format!("{name}[{}] within {limit:.1e} of {}", d.at, d.want);
        return Err(wrong(expected, format!("{} ({:.1e})", d.got, d.error)));
    }
    Ok(())
}

fn wrong(expected: String, got: impl std::fmt::Display) -> Error {
    Error::Value {
        op: "bench",
        arg: "the result".to_owned(),
        expected: format!("right: {expected}"),
        got: got.to_string(),
    }
}

fn results(call: &Call, mode: Mode) -> Result<Vec<(String, Vec<f64>)>> {
    let call = match call {
        Call::Sequence(call) => call,
        Call::Streams(call) => return results_of_streams(call),
    };
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

/// y `[N, P]` and, layer by layer, h of all streams, as a sequence of one step has them.
fn results_of_streams(call: &Streams) -> Result<Vec<(String, Vec<f64>)>> {
    let states = (0..call.count()).map(|n| call.state(n));
    let states: Vec<_> = states.collect::<Result<_>>()?;
    let layers = states.first().map_or(0, |state| state.h.shape()[0]);
    let of_layer = |layer| {
        let rows = states
            .iter()
            .map(move |state| state.h.index_axis(Axis(0), layer));
        rows.flat_map(|row| row.iter().map(|&h| f64::from(h)).collect::<Vec<_>>())
    };
    let hn = (0..layers).flat_map(of_layer).collect();
    Ok(vec![
        ("y".to_owned(), call.y().read_f64()?),
        ("hn".to_owned(), hn),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::shapes::parse;
    use super::*;

    const SHAPE: &str = "[[shape]]\nname = \"a\"\nsource = \"\"\ncell = \"gru\"\ninput = 3\n\
        hidden = 6\nlayers = 2\nbidirectional = false\nproj = 0\nbatch = 2\nsteps = 9\n\
        mode = [\"train\"]\ngroup = \"small\"\n";

    /// Checks a training call that has run once and then had one number of a result changed.
    fn check(text: &str, flops: f64, change: impl Fn(&Sequence)) -> Result<usize> {
        let shape = &parse(text).unwrap()[0];
        let layer = layer(&Context::cpu(), shape)?;
        let call = Call::new(&layer, shape, Mode::Train)?;
        Inputs::draw(shape, Mode::Train, shape.steps)?.write(&call, Mode::Train)?;
        call.submit(Mode::Train)?;
        match &call {
            Call::Sequence(call) => change(call),
            Call::Streams(_) => panic!("training by streams"),
        }
        verify(&layer, &call, shape, Mode::Train, flops)
    }

    fn set(tensor: &wgrnn::Tensor, at: usize, value: f32) {
        let mut values = tensor.read().unwrap();
        values[at] = value;
        tensor.write(&values).unwrap();
    }

    #[test]
    fn a_wrong_number_anywhere_is_found() {
        assert_eq!(check(SHAPE, ORACLE, |_| ()).unwrap(), 9);
        let found = |part: &str, change: &dyn Fn(&Sequence)| {
            let e = check(SHAPE, ORACLE, change).unwrap_err().to_string();
            assert!(e.contains(part) && !e.contains('\n'), "{e}");
        };
        found("y[17] within", &|call| set(call.y(), 17, 0.9));
        found("hn[4] within", &|call| set(call.hn(), 4, f32::NAN));
        found("grad.x[5] within", &|call| set(call.dx().unwrap(), 5, 7.0));
        for nth in 0..8 {
            let change = |call: &Sequence| set(&call.gradients().unwrap()[nth].1, 2, -9.0);
            found("grad.", &change);
        }
    }

    #[test]
    fn a_step_of_streams() {
        let text = SHAPE
            .replace("steps = 9", "steps = 1")
            .replace("train", "infer")
            .replace("small", "stream");
        let shape = &parse(&text).unwrap()[0];
        let layer = layer(&Context::cpu(), shape).unwrap();
        let check = |change: &dyn Fn(&Streams)| {
            let call = Call::new(&layer, shape, Mode::Infer)?;
            Inputs::draw(shape, Mode::Infer, 1)?.write(&call, Mode::Infer)?;
            call.submit(Mode::Infer)?;
            match &call {
                Call::Sequence(_) => panic!("a sequence"),
                Call::Streams(call) => change(call),
            }
            verify(&layer, &call, shape, Mode::Infer, ORACLE)
        };
        assert_eq!(check(&|_| ()).unwrap(), 1);
        let e = check(&|call| set(call.y(), 11, 0.9)).unwrap_err();
        assert!(e.to_string().contains("y[11] within"), "{e}");
        let e = check(&|call| call.reset(1).unwrap()).unwrap_err();
        assert!(e.to_string().contains("hn["), "{e}");
    }

    #[test]
    fn with_fewer_steps_too() {
        let few = 3.0 * parse(SHAPE).unwrap()[0].flops(Mode::Train, 1);
        assert_eq!(check(SHAPE, few, |_| ()).unwrap(), 3);
        // Two steps at least.
        assert_eq!(check(SHAPE, 0.0, |_| ()).unwrap(), 2);
        // y of the first steps, and anything that is not finite.
        let e = check(SHAPE, few, |call| set(call.y(), 3 * 12 - 1, 0.9)).unwrap_err();
        assert!(e.to_string().contains("y[35] within"), "{e}");
        check(SHAPE, few, |call| set(call.y(), 3 * 12, 0.9)).unwrap();
        let e = check(SHAPE, few, |call| set(call.y(), 100, f32::INFINITY)).unwrap_err();
        assert!(e.to_string().contains("y[100] finite"), "{e}");
        let both = SHAPE.replace("false", "true");
        let few = 3.0 * parse(&both).unwrap()[0].flops(Mode::Train, 1);
        assert_eq!(check(&both, few, |_| ()).unwrap(), 3);
    }
}
