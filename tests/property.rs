//! Random configurations of all options: back-propagation in double precision against central
//! differences of every input, and every backend against double precision.
//!
//! A failure prints the configuration and its seed; `WGRNN_SEED=7 cargo test --test property` runs
//! that one alone, `WGRNN_COUNT=1000` runs more of them.

mod common;

use std::collections::BTreeMap;

use common::config::{Config, Most, fill, seeds};
use wgrnn::check::{compare, tolerance};
use wgrnn::plan::Force;
use wgrnn::plan::sequence::{Levels, StepForm, Strategy};
use wgrnn::rng::Rng;
use wgrnn::{Context, Dtype, Layer, LayerSpec, Precision, Result, Sequence, Tensor};

/// A difference errs by STEP² f'''/6 (truncation) and by about u |f| / STEP (rounding, with
/// u = 1.1e-16); the two meet near the cube root of u, 5e-6, which is rounded to a power of two so
/// that value ± STEP lose little more.
const STEP: f64 = 1.0 / (1 << 17) as f64;

/// Relative to the largest element of a gradient. Truncation: 5.8e-11 f'''/6, where a loss over a
/// few dozen gates of arguments of order 1 has third derivatives of order 10. A wrong term shows as
/// 1e-3 or more.
const TOLERANCE: f64 = 1e-8;

/// What rounding adds, for a loss that sums some dozen terms: as many roundings as that, u / STEP
/// each, of the sum of their magnitudes. It counts where a gradient is much smaller than the loss.
const ROUNDING: f64 = 16.0 * (1.1e-16 / STEP);

/// A sequence with numbers in it, and the loss whose gradients `dy`, `dhn` and `dcn` are: the outputs
/// weighted with them.
struct Loss {
    layer: Layer,
    sequence: Sequence,
    weighted: Vec<(Tensor, Vec<f64>)>,
    /// What the gradients of the weights start from.
    before: BTreeMap<String, Vec<f64>>,
}

impl Loss {
    fn new(config: &Config, context: &Context) -> Result<Self> {
        let (layer, sequence) = config.build(context)?;
        let mut rng = Rng::new(config.seed + 1);
        let s = &sequence;
        fill(s.x(), &mut rng)?;
        fill(s.h0(), &mut rng)?;
        let mut weighted = vec![(s.hn().clone(), fill(s.dhn()?, &mut rng)?)];
        if s.has_cell_state() {
            fill(s.c0()?, &mut rng)?;
            weighted.push((s.cn()?.clone(), fill(s.dcn()?, &mut rng)?));
        }
        let mut dy = fill(s.dy()?, &mut rng)?;
        if config.call.burn_in > 0 {
            // The loss does not see these steps.
            for (value, counts) in dy.iter_mut().zip(counted(config, s)) {
                *value = if counts { *value } else { 0.0 };
            }
        }
        weighted.push((s.y().clone(), dy));
        let mut before = BTreeMap::new();
        for (name, gradient) in s.gradients()? {
            let values = match config.call.accumulate {
                true => fill(&gradient, &mut rng)?,
                false => vec![0.0; gradient.len()],
            };
            before.insert(name, values);
        }
        Ok(Self {
            layer,
            sequence,
            weighted,
            before,
        })
    }

    /// Always with the same mask of dropped outputs.
    fn forward(&self) -> Result<()> {
        if let Some(clock) = self.sequence.dropout_clock() {
            clock.write_uint(&[5])?;
        }
        self.sequence.forward()
    }

    fn value(&self) -> Result<f64> {
        self.forward()?;
        self.sum(|term| term)
    }

    /// The sum of the terms' magnitudes after the latest forward pass.
    fn magnitude(&self) -> Result<f64> {
        self.sum(f64::abs)
    }

    fn sum(&self, of: impl Fn(f64) -> f64) -> Result<f64> {
        let mut sum = 0.0;
        for (tensor, weights) in &self.weighted {
            let values = tensor.read_f64()?;
            let terms = values.iter().zip(weights).map(|(v, w)| of(v * w));
            sum += terms.sum::<f64>();
        }
        Ok(sum)
    }

    /// Every input with the gradient that the backward pass gives for it.
    fn inputs(&self) -> Result<Vec<(String, Tensor, Tensor)>> {
        let s = &self.sequence;
        let mut inputs = vec![
            ("x".to_owned(), s.x().clone(), s.dx()?.clone()),
            ("h0".to_owned(), s.h0().clone(), s.dh0()?.clone()),
        ];
        if s.has_cell_state() {
            inputs.push(("c0".to_owned(), s.c0()?.clone(), s.dc0()?.clone()));
        }
        for (name, gradient) in s.gradients()? {
            let weight = self.layer.weight(&name)?.clone();
            inputs.push((name, weight, gradient));
        }
        Ok(inputs)
    }

    /// The slopes below and above each element.
    fn slopes(&self, input: &Tensor) -> Result<Vec<[f64; 2]>> {
        let here = self.value()?;
        let values = input.read_f64()?;
        let mut moved = values.clone();
        let mut slopes = Vec::new();
        for (i, &value) in values.iter().enumerate() {
            let mut at = |v: f64| -> Result<f64> {
                moved[i] = v;
                input.write_f64(&moved)?;
                self.value()
            };
            let below = (here - at(value - STEP)?) / STEP;
            let above = (at(value + STEP)? - here) / STEP;
            slopes.push([below, above]);
            moved[i] = value;
        }
        input.write_f64(&values)?;
        Ok(slopes)
    }
}

/// Which outputs belong to steps after the burn-in.
fn counted(config: &Config, sequence: &Sequence) -> Vec<bool> {
    let shape = sequence.y().shape();
    let features = shape[shape.len() - 1];
    let from = config.call.burn_in;
    let steps: Vec<usize> = match &config.call.batch {
        wgrnn::plan::sequence::Batch::Packed(sizes) => {
            let rows = sizes.iter().enumerate();
            rows.flat_map(|(t, &size)| std::iter::repeat_n(t, size))
                .collect()
        }
        wgrnn::plan::sequence::Batch::Padded(size) => match config.call.output {
            wgrnn::Order::TimeFirst => (0..size.steps * size.batch)
                .map(|r| r / size.batch)
                .collect(),
            wgrnn::Order::BatchFirst => (0..size.steps * size.batch)
                .map(|r| r % size.steps)
                .collect(),
        },
    };
    let counts = steps.into_iter().map(|t| t >= from);
    counts
        .flat_map(|c| std::iter::repeat_n(c, features))
        .collect()
}

/// With a burn-in the gradient is not that of the loss as a function of the weights, since the state
/// that the first steps leave counts as given. What the steps after it leave must agree with a layer
/// that starts there; `tests/options/truncation.rs` compares the two.
fn has_differences(config: &Config) -> bool {
    config.call.burn_in == 0
}

fn check_differences(config: &Config) -> Result<usize> {
    let strategy = Strategy::ALL[config.seed as usize % Strategy::ALL.len()];
    let loss = Loss::new(
        config,
        &forced(&Context::cpu_f64(), strategy, StepForm::Plain),
    )?;
    loss.forward()?;
    let rounding = ROUNDING * loss.magnitude()?;
    loss.sequence.backward()?;
    let inputs = loss.inputs()?;
    // Read before the differences run the forward pass again.
    let gradients = inputs
        .iter()
        .map(|(_, _, g)| g.read_f64())
        .collect::<Result<Vec<_>>>()?;
    let mut kinks = 0;
    for ((name, input, _), got) in inputs.iter().zip(gradients) {
        // A weight that is rounded has no slope; `tests/precision.rs` compares its gradient with that of a
        // layer whose weights are the rounded ones.
        let rounded = ["weight_ih", "weight_hh", "bias_ih"];
        let rounded = rounded.iter().any(|part| name.starts_with(part));
        if rounded && config.spec.precision == Precision::F16 {
            continue;
        }
        let slopes = loss.slopes(input)?;
        let zeros = vec![0.0; got.len()];
        let before = loss.before.get(name).unwrap_or(&zeros);
        let largest = slopes
            .iter()
            .flatten()
            .chain(before)
            .fold(1e-3f64, |m, v| m.max(v.abs()));
        for (i, ([below, above], got)) in slopes.iter().zip(got).enumerate() {
            let got = got - before[i];
            // One-sided slopes of a smooth loss are STEP f'' apart. Across a kink or a jump, where
            // there is no derivative, what is between them will do.
            let kink = (above - below).abs() > 1e-3 * largest;
            kinks += usize::from(kink);
            let error = match kink {
                true => (below.min(*above) - got)
                    .max(got - below.max(*above))
                    .max(0.0),
                false => (got - 0.5 * (below + above)).abs(),
            };
            assert!(
                error <= TOLERANCE * largest + rounding,
                "gradient of {name}[{i}] is {got}, the slopes {below} and {above}\n{config:#?}"
            );
        }
    }
    Ok(kinks)
}

#[test]
fn gradients_are_differences() -> Result<()> {
    let most = Most {
        steps: 5,
        batch: 3,
        hidden: 3,
    };
    let (mut compared, mut kinks) = (0, 0);
    for seed in seeds(300) {
        let config = Config::draw(seed, most);
        if has_differences(&config) {
            kinks += check_differences(&config)?;
            compared += 1;
        }
    }
    println!("{compared} configurations, {kinks} elements at a kink");
    Ok(())
}

/// Everything that a run leaves.
fn results(loss: &Loss) -> Result<Vec<(String, Vec<f64>)>> {
    loss.forward()?;
    let s = &loss.sequence;
    // What accumulates starts from the same numbers every time.
    for (name, gradient) in s.gradients()? {
        gradient.write_f64(&loss.before[&name])?;
    }
    s.backward()?;
    let mut tensors = vec![
        ("y".to_owned(), s.y().clone()),
        ("hn".to_owned(), s.hn().clone()),
    ];
    if s.has_cell_state() {
        tensors.push(("cn".to_owned(), s.cn()?.clone()));
    }
    for (name, _, gradient) in loss.inputs()? {
        tensors.push((format!("gradient of {name}"), gradient));
    }
    let read = |(name, tensor): (String, Tensor)| Ok((name, tensor.read_f64()?));
    tensors.into_iter().map(read).collect()
}

/// How far the exact results move when every input is rounded: see [`tolerance::layer`]. With weights
/// in 16-bit floats as far as with the weights themselves, since a weight that moves from one of those
/// to the next would say more of that distance than of the layer.
fn sensitivity(config: &Config) -> Result<Vec<f64>> {
    let whole = Config {
        spec: LayerSpec {
            precision: Precision::F32,
            ..config.spec
        },
        ..config.clone()
    };
    let loss = Loss::new(&whole, &Context::cpu_f64())?;
    let exact = results(&loss)?;
    let mut inputs: Vec<Tensor> = loss.inputs()?.into_iter().map(|(_, t, _)| t).collect();
    inputs.extend([loss.sequence.dy()?.clone(), loss.sequence.dhn()?.clone()]);
    let mut moved = vec![0.0f64; exact.len()];
    let values = inputs
        .iter()
        .map(Tensor::read_f64)
        .collect::<Result<Vec<_>>>()?;
    for draw in 0..6 {
        let mut rng = Rng::new(draw);
        for (tensor, values) in inputs.iter().zip(&values) {
            let mut round = |v: &f64| {
                let up = rng.below(2) == 0;
                v * (1.0
                    + if up {
                        tolerance::UNIT
                    } else {
                        -tolerance::UNIT
                    })
            };
            tensor.write_f64(&values.iter().map(&mut round).collect::<Vec<_>>())?;
        }
        for ((most, (_, changed)), (_, exact)) in moved.iter_mut().zip(results(&loss)?).zip(&exact)
        {
            *most = most.max(compare(&changed, exact).error);
        }
    }
    Ok(moved)
}

/// The device, on which the steps of a layer are run so.
fn forced(device: &Context, strategy: Strategy, form: StepForm) -> Context {
    // Some of their sequences are cut.
    device.dispatching(5).forcing(Force {
        strategy: Some(strategy),
        step: Some(form),
        // Wherever they can; `tests/levels.rs` compares with levels in turn.
        levels: Some(Levels::Together),
        ..Force::default()
    })
}

/// The device in every way of running steps: all in one dispatch, or each in one of the forms.
fn in_every_way(device: &Context) -> Vec<Context> {
    let steps = StepForm::ALL.map(|form| forced(device, Strategy::Steps, form));
    let mut ways = vec![forced(device, Strategy::Sequence, StepForm::Plain)];
    ways.extend(steps);
    ways
}

const MOST: Most = Most {
    steps: 12,
    batch: 9,
    hidden: 70,
};

#[test]
fn backends_agree() -> Result<()> {
    let seeds: Vec<u64> = seeds(40).collect();
    let (mut worst, mut exploded) = (0.0f64, 0);
    for done in common::spread(&seeds, agree) {
        let (most, unbounded) = done?;
        worst = worst.max(most);
        exploded += unbounded;
    }
    println!("worst {worst:.3} of the tolerance; {exploded} exploded");
    Ok(())
}

/// The most that a result took of its tolerance, and how many configurations explode.
fn agree(seeds: Vec<u64>) -> Result<(f64, usize)> {
    let mut devices = vec![Context::cpu()];
    devices.extend(common::kept());
    let oracle = forced(&Context::cpu_f64(), Strategy::Steps, StepForm::Plain);
    let (mut worst, mut exploded) = (0.0f64, 0);
    for seed in seeds {
        let config = Config::draw(seed, MOST);
        let exact = results(&Loss::new(&config, &oracle)?)?;
        // Unbounded activations may explode beyond what single precision can say.
        if exact.iter().flat_map(|(_, v)| v).any(|v| v.abs() > 1e30) {
            exploded += 1;
            continue;
        }
        let sensitivity = sensitivity(&config)?;
        let rows = MOST.steps * MOST.batch;
        // Not all of them on adapters, and each in one way, where not everything runs.
        let everywhere = seed.is_multiple_of(5) || common::thorough();
        let devices = devices.iter().filter(|d| everywhere || !d.is_gpu());
        let ways = |device| common::share_on(device, in_every_way(device), seed as usize / 5, 5);
        for context in devices.flat_map(ways) {
            let got = results(&Loss::new(&config, &context)?)?;
            for (((name, got), (_, want)), moved) in got.iter().zip(&exact).zip(&sensitivity) {
                let limit = tolerance::layer(Dtype::F32, MOST.hidden.max(rows), *moved);
                let d = compare(got, want);
                worst = worst.max(d.error / limit);
                assert!(
                    d.error <= limit,
                    "{} {:?}: {name}[{}] is {}, must be {}: {:.2e} > {limit:.2e}\n{config:#?}",
                    context.name(),
                    context.target().force,
                    d.at,
                    d.got,
                    d.want,
                    d.error
                );
            }
        }
    }
    Ok((worst, exploded))
}
