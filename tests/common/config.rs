//! Random layers and calls of them: any options that go together, from a seed.

use wgrnn::cell::{self, CellOption};
use wgrnn::ndarray::{ArrayView, IxDyn};
use wgrnn::rng::Rng;
use wgrnn::{
    Activation, Call, Context, Function, Layer, LayerSpec, Mode, Order, Precision, Result,
    Sequence, Size, Tensor,
};

/// The largest sizes that a configuration is drawn with.
#[derive(Clone, Copy)]
pub(crate) struct Most {
    pub(crate) steps: usize,
    pub(crate) batch: usize,
    pub(crate) hidden: usize,
}

/// A layer, a call of it and what the call is given beside numbers. Printing it shows all that is
/// needed to build it again.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "the seed is printed")]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) spec: LayerSpec,
    pub(crate) call: Call,
    pub(crate) lengths: Vec<i64>,
    pub(crate) resets: Vec<bool>,
}

impl Config {
    pub(crate) fn draw(seed: u64, most: Most) -> Self {
        let mut rng = Rng::new(seed);
        let mut up_to = |most: usize| 1 + rng.below(most as u32) as usize;
        let (steps, batch) = (up_to(most.steps), up_to(most.batch));
        let (input, hidden) = (up_to(most.hidden), up_to(most.hidden));
        let spec = layer(input, hidden, &mut rng);
        let call = call(&spec, Size { steps, batch }, &mut rng);
        let lengths = (0..batch).map(|_| i64::from(rng.below(steps as u32 + 1)));
        let lengths = lengths.collect();
        let resets = (0..steps * batch).map(|_| rng.below(5) == 0).collect();
        let can = spec.cell.forms.iter().all(Option::is_some);
        let precision = match can && rng.below(3) == 0 {
            true => Precision::F16,
            false => Precision::F32,
        };
        Self {
            seed,
            spec: LayerSpec { precision, ..spec },
            call,
            lengths,
            resets,
        }
    }

    /// Its layer and a sequence with everything but numbers in it.
    pub(crate) fn build(&self, context: &Context) -> Result<(Layer, Sequence)> {
        let layer = Layer::new(context, self.spec, self.seed)?;
        let sequence = layer.sequence(&self.call)?;
        if self.call.lengths {
            sequence.set_lengths(&self.lengths)?;
        }
        if self.call.resets {
            let mut shape = sequence.x().shape().to_vec();
            shape.pop();
            let rows: usize = shape.iter().product();
            let resets = ArrayView::from_shape(IxDyn(&shape), &self.resets[..rows]);
            sequence.set_resets(resets.unwrap())?;
        }
        Ok((layer, sequence))
    }
}

fn layer(input: usize, hidden: usize, rng: &mut Rng) -> LayerSpec {
    let cell = cell::ALL[rng.below(cell::ALL.len() as u32) as usize];
    let mut chance = |one_in: u32| rng.below(one_in) == 0;
    let mut spec = LayerSpec::new(cell, input, hidden);
    spec.num_layers = if chance(3) { 2 } else { 1 };
    if spec.num_layers == 2 && chance(3) {
        spec.num_layers = 3;
    }
    spec.bidirectional = chance(3);
    spec.bias = !chance(5);
    if spec.num_layers > 1 && chance(2) {
        spec.dropout = 0.3;
        spec.dropout_seed = 17;
    }
    let has = |option| cell.options.contains(&option);
    spec.clip = (has(CellOption::Clip) && chance(4)).then_some(0.6);
    spec.cell_clip = (has(CellOption::CellClip) && chance(4)).then_some(0.45);
    spec.coupled = has(CellOption::Coupled) && chance(5);
    let others = chance(3);
    if cell.projected {
        spec.proj_size = 1 + rng.below(hidden as u32) as usize;
    }
    if others {
        for activation in &mut spec.activations[..cell.activations.len()] {
            let function = Function::ALL[rng.below(11) as usize];
            *activation = Activation::new(function)
                .alpha(f64::from(rng.uniform(0.1, 0.9)))
                .beta(f64::from(rng.uniform(0.1, 0.9)));
        }
    }
    spec
}

fn call(spec: &LayerSpec, size: Size, rng: &mut Rng) -> Call {
    let mut chance = |one_in: u32| rng.below(one_in) == 0;
    let mut call = if chance(4) {
        let mut sizes = vec![size.batch];
        for _ in 1..size.steps {
            let last = sizes[sizes.len() - 1];
            sizes.push(if chance(3) { last.div_ceil(2) } else { last });
        }
        Call::packed(&sizes, Mode::Training)
    } else {
        let mut padded = Call::training(size);
        padded.lengths = chance(2);
        let order = |batch_first: bool| {
            if batch_first {
                Order::BatchFirst
            } else {
                Order::TimeFirst
            }
        };
        padded.orders(order(chance(3)), order(chance(3)))
    };
    call.resets = chance(3);
    call.accumulate = chance(4);
    call.recompute = chance(3).then(|| 1 + size.steps / 3);
    if !spec.bidirectional && chance(4) {
        call.burn_in = rng.below(size.steps as u32 + 1) as usize;
    }
    call
}

/// Random numbers in ±1 for a tensor, which are returned.
pub(crate) fn fill(tensor: &Tensor, rng: &mut Rng) -> Result<Vec<f64>> {
    let values: Vec<f64> = (0..tensor.len())
        .map(|_| f64::from(rng.uniform(-1.0, 1.0)))
        .collect();
    tensor.write_f64(&values)?;
    Ok(values)
}

/// The seeds of a test: `count` of them, or the one that `WGRNN_SEED` names; `WGRNN_COUNT` asks for more.
pub(crate) fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
        )
    };
    match number("WGRNN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WGRNN_COUNT").unwrap_or(count),
    }
}
