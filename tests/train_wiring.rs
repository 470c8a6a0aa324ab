//! How the trainer, the evaluator and the sampler put their parts together, against what does not
//! run their plans: central differences of the loss, one long chunk in place of two, and the
//! model's equations in plain loops. In double precision on the CPU, with tiny models.

use std::collections::HashMap;

use wgrnn::cell::{self, Cell};
use wgrnn::kernels::cross_entropy::IGNORE;
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::rng::Rng;
use wgrnn::train::batches::Chunk;
use wgrnn::train::{
    Batches, Evaluator, LanguageModel, ModelSpec, Optimizer, Sampler, Trainer, TrainerSpec,
};
use wgrnn::{Context, Result, Size, Tensor};

const V: usize = 5;
const E: usize = 3;
const H: usize = 4;

const SPEC: TrainerSpec = TrainerSpec {
    size: Size { steps: 3, batch: 2 },
    optimizer: Optimizer::Sgd {
        momentum: 0.0,
        weight_decay: 0.0,
    },
    clip: f32::INFINITY,
    dropout: 0.0,
    seed: 9,
};

fn model(cell: &'static Cell, [input_size, hidden_size]: [usize; 2]) -> Result<LanguageModel> {
    let layer = LayerSpec::new(cell, input_size, hidden_size);
    let vocabulary = V;
    let spec = ModelSpec { vocabulary, layer };
    let model = LanguageModel::new(&Context::cpu_f64(), spec, 5)?;
    randomise(&model, 3)?;
    Ok(model)
}

/// Weights larger than a new model's, so that each of its parts shows in the loss, and biases that
/// do not outweigh them. They are written past the layer, whose packed recurrent weights are stale
/// afterwards, as after a training step.
fn randomise(model: &LanguageModel, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    for (name, tensor) in model.weights() {
        let bound = if name.contains("bias") { 0.3 } else { 1.5 };
        tensor.write_f64(&random(&mut rng, tensor.len(), bound))?;
    }
    Ok(())
}

fn random(rng: &mut Rng, len: usize, bound: f32) -> Vec<f64> {
    let values = rng.uniforms(len, -bound, bound);
    values.into_iter().map(f64::from).collect()
}

fn tokens(len: usize) -> Vec<u32> {
    let mut rng = Rng::new(17);
    (0..len).map(|_| rng.below(V as u32)).collect()
}

fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    let apart = (got - want).abs();
    assert!(apart <= tolerance, "{what}: {got} {want}: {apart:.2e}");
}

/// A training step that can be repeated: the same tokens, dropout masks and recurrent state.
struct Step {
    trainer: Trainer,
    weights: Vec<(String, Tensor)>,
    states: Vec<(Tensor, Vec<f64>)>,
}

impl Step {
    fn new(model: &LanguageModel, spec: TrainerSpec) -> Result<Self> {
        let trainer = Trainer::new(model, spec)?;
        let mut rng = Rng::new(23);
        let names = ["hn", "cn"];
        let states = names[..model.spec().layer.cell.states()]
            .iter()
            .map(|name| {
                let state = trainer.program().named(name)?.clone();
                let values = random(&mut rng, state.len(), 0.9);
                Ok((state, values))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            trainer,
            weights: model.weights(),
            states,
        })
    }

    /// Runs it and gives the loss. The state is one that is carried, so that the first step of the
    /// recurrence has a gradient for its weights too.
    fn run(&self, rate: f32) -> Result<f64> {
        for (state, values) in &self.states {
            state.write_f64(values)?;
        }
        self.trainer.program().named("clock")?.write_uint(&[0])?;
        self.trainer.set_learning_rate(rate)?;
        self.trainer.step(&Chunk {
            inputs: vec![0, 3, 1, 1, 4, 2],
            targets: vec![2, IGNORE, 4, 0, 3, 2],
            counted: 5,
            starts: false,
        })?;
        Ok(self.trainer.program().named("loss")?.read_f64()?[0])
    }

    /// How far every element of every weight goes down in one step at the learning rate 1. The
    /// weights are put back.
    fn movement(&self) -> Result<Vec<Vec<f64>>> {
        let read = || self.weights.iter().map(|(_, w)| w.read_f64());
        let before = read().collect::<Result<Vec<_>>>()?;
        self.run(1.0)?;
        let after = read().collect::<Result<Vec<_>>>()?;
        for ((_, weight), values) in self.weights.iter().zip(&before) {
            weight.write_f64(values)?;
        }
        let pairs = before.into_iter().zip(after);
        Ok(pairs
            .map(|(b, a)| b.iter().zip(a).map(|(b, a)| b - a).collect())
            .collect())
    }

    /// The slope of the loss along every element of a weight.
    fn differences(&self, weight: &Tensor) -> Result<Vec<f64>> {
        let values = weight.read_f64()?;
        let mut moved = values.clone();
        let mut slopes = Vec::new();
        for (i, &value) in values.iter().enumerate() {
            let mut at = |v: f64| -> Result<f64> {
                moved[i] = v;
                weight.write_f64(&moved)?;
                self.run(0.0)
            };
            slopes.push((at(value + STEP)? - at(value - STEP)?) / (2.0 * STEP));
            moved[i] = value;
        }
        weight.write_f64(&values)?;
        Ok(slopes)
    }
}

/// A central difference errs by STEP² f'''/6 (truncation) and by about u |f| / STEP (rounding, with
/// u = 1.1e-16); the two meet near the cube root of u, 5e-6, here rounded to a power of two.
const STEP: f64 = 1.0 / (1 << 17) as f64;

/// Truncation: 5.8e-11 f'''/6 with third derivatives of order 10, as weights and what dropout
/// leaves are above 1; rounding: some ten operations on a loss of order 3 give 10 u · 3 / STEP =
/// 4e-10. The movement is a difference of weights of order 1, which loses u. A wrong mask or a
/// missing term shows as 1e-3 or more.
const TOLERANCE: f64 = 5e-9;

/// For rectified units no value comes within STEP of the kink with these seeds.
#[test]
fn a_training_step_follows_the_slope_of_its_loss() -> Result<()> {
    for cell in cell::ALL {
        let model = model(cell, [E, H])?;
        let spec = TrainerSpec {
            dropout: 0.3,
            ..SPEC
        };
        let step = Step::new(&model, spec)?;
        let gradients = step.movement()?;
        assert_eq!(gradients.len(), 3 + model.layer().weights().len());
        let norm = step.trainer.program().named("gradient norm")?.read_f64()?[0];
        for ((name, weight), gradient) in step.weights.iter().zip(&gradients) {
            let slopes = step.differences(weight)?;
            assert!(slopes.iter().any(|s| s.abs() > 1e-3), "{name}: no slope");
            for (i, (got, want)) in gradient.iter().zip(slopes).enumerate() {
                close(*got, want, TOLERANCE, &format!("{} {name}[{i}]", cell.name));
            }
        }

        // Some 200 squares of numbers that are right to 1e-16.
        let all = || gradients.iter().flatten();
        let want = all().map(|g| g * g).sum::<f64>().sqrt();
        close(norm, want, 1e-13 * want, "norm");

        let clip = 0.125;
        assert!(norm > 2.0 * clip);
        let spec = TrainerSpec {
            clip: clip as f32,
            ..spec
        };
        let clipped = Step::new(&model, spec)?.movement()?;
        for (got, g) in clipped.iter().flatten().zip(all()) {
            close(*got, g * clip / (norm + 1e-6), 1e-14, "clipped");
        }

        // Adam's first step, its means corrected for their start at 0, is the gradient's sign but
        // for ε. Rounding ε to f32 moves it by 1e-15 / |g|.
        let spec = TrainerSpec {
            clip: f32::INFINITY,
            optimizer: Optimizer::default(),
            ..spec
        };
        let adam = Step::new(&model, spec)?.movement()?;
        for (got, g) in adam.iter().flatten().zip(all()) {
            close(*got, g / (g.abs() + 1e-8), 1e-9, "adam");
        }
    }
    Ok(())
}

#[test]
fn two_chunks_are_one_of_twice_the_length_and_the_next_pass_starts_anew() -> Result<()> {
    let size = SPEC.size;
    let twice = Size {
        steps: 2 * size.steps,
        ..size
    };
    let text = tokens(twice.steps * twice.batch + 1);
    for cell in cell::ALL {
        let model = model(cell, [E, H])?;
        let losses = |size: Size, chunks: usize| -> Result<Vec<f64>> {
            // The learning rate is 0 as long as none is set: the weights stay.
            let trainer = Trainer::new(&model, TrainerSpec { size, ..SPEC })?;
            let batches = Batches::new(&text, size)?;
            let run = |number| {
                trainer.step(&batches.chunk(number))?;
                Ok(trainer.program().named("loss")?.read_f64()?[0])
            };
            (0..chunks).map(run).collect()
        };
        let (halves, whole) = (losses(size, 4)?, losses(twice, 1)?);
        // Sums of the same dozen numbers of order 1 in another order.
        let mean = (halves[0] + halves[1]) / 2.0;
        close(mean, whole[0], 1e-14, cell.name);
        assert_eq!(halves[..2], halves[2..], "{}: the second pass", cell.name);
    }
    Ok(())
}

/// The model of an LSTM as its equations say, one token of one stream at a time.
struct Direct {
    weights: HashMap<String, Vec<f64>>,
    h: Vec<f64>,
    c: Vec<f64>,
}

impl Direct {
    fn new(model: &LanguageModel) -> Result<Self> {
        let read = |(name, tensor): (String, Tensor)| Ok((name, tensor.read_f64()?));
        Ok(Self {
            weights: model
                .weights()
                .into_iter()
                .map(read)
                .collect::<Result<_>>()?,
            h: vec![0.0; H],
            c: vec![0.0; H],
        })
    }

    /// bias + weight · x
    fn linear(&self, [weight, bias]: [&str; 2], x: &[f64]) -> Vec<f64> {
        let rows = self.weights[weight].chunks(x.len());
        let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        rows.zip(&self.weights[bias])
            .map(|(w, b)| b + dot(w))
            .collect()
    }

    /// Reads a token and gives the logits of the next.
    fn next(&mut self, token: u32) -> Vec<f64> {
        let at = token as usize * E;
        let x = &self.weights["embedding.weight"][at..at + E];
        let input = self.linear(["rnn.weight_ih_l0", "rnn.bias_ih_l0"], x);
        let recurrent = self.linear(["rnn.weight_hh_l0", "rnn.bias_hh_l0"], &self.h);
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        for j in 0..H {
            let [i, f, g, o] =
                [0, 1, 2, 3].map(|gate| input[gate * H + j] + recurrent[gate * H + j]);
            self.c[j] = sigmoid(f) * self.c[j] + sigmoid(i) * g.tanh();
            self.h[j] = sigmoid(o) * self.c[j].tanh();
        }
        self.linear(["linear.weight", "linear.bias"], &self.h)
    }
}

fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let weight = |v: &f64| ((v - largest) / temperature).exp();
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// The ids from the likeliest to the least likely.
fn ranking(logits: &[f64]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..V as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    ids
}

/// N streams of ⌈targets / N⌉ tokens, the last of what is left, each from a zero state.
fn direct_perplexity(model: &LanguageModel, text: &[u32], streams: usize) -> Result<f64> {
    let targets = text.len() - 1;
    let length = targets.div_ceil(streams);
    let mut sum = 0.0;
    for start in (0..targets).step_by(length) {
        let mut direct = Direct::new(model)?;
        for at in start..(start + length).min(targets) {
            let p = softmax(&direct.next(text[at]), 1.0);
            sum -= p[text[at + 1] as usize].ln();
        }
    }
    Ok((sum / targets as f64).exp())
}

#[test]
fn perplexity_is_that_of_the_equations() -> Result<()> {
    let text = tokens(24);
    let model = model(&cell::LSTM, [E, H])?;
    // 23 targets: uneven last chunks, a shorter last stream, a chunk longer than the streams.
    for (steps, batch) in [(4, 3), (3, 2), (5, 1), (9, 4), (1, 2), (30, 1)] {
        let evaluator = Evaluator::new(&model, Size { steps, batch })?;
        for weights in [3, 4] {
            randomise(&model, weights)?;
            let want = direct_perplexity(&model, &text, batch)?;
            // Twice, since the second call must not start from the state that the first left. The
            // losses are read in f32: 6e-8 of a loss below 4.
            for _ in 0..2 {
                let got = evaluator.perplexity(&text)?;
                close(got / want, 1.0, 2.5e-7, &format!("{steps} {batch}"));
            }
        }
    }
    Ok(())
}

#[test]
fn the_likeliest_token_is_that_of_the_equations() -> Result<()> {
    let text = tokens(60);
    let model = model(&cell::LSTM, [E, H])?;
    let mut direct = Direct::new(&model)?;
    let (mut first, mut other) = (Sampler::new(&model, 0.0, 1)?, Sampler::new(&model, 0.0, 1)?);
    let (mut drawn, mut stateless) = ([0; V], 0);
    for &token in &text {
        let ranks = ranking(&direct.next(token));
        assert_eq!(first.next(token, None)?, ranks[0]);
        assert_eq!(other.next(token, Some(ranks[0]))?, ranks[1]);
        drawn[ranks[0] as usize] += 1;
        let alone = Direct::new(&model)?.next(token);
        stateless += usize::from(ranking(&alone)[0] != ranks[0]);
    }
    // Else the text would say little: one answer for all, or one that needs no state.
    assert!(drawn.iter().filter(|&&n| n > 0).count() > 2, "{drawn:?}");
    assert!(stateless > 5, "{stateless}");
    Ok(())
}

/// A sampler goes on from its state with weights that have changed meanwhile.
#[test]
fn the_likeliest_token_is_that_of_the_latest_weights() -> Result<()> {
    let model = model(&cell::LSTM, [E, H])?;
    let mut sampler = Sampler::new(&model, 0.0, 1)?;
    let mut direct = Direct::new(&model)?;
    for (nth, token) in tokens(60).into_iter().enumerate() {
        if nth % 4 == 3 {
            randomise(&model, nth as u64)?;
            direct.weights = Direct::new(&model)?.weights;
        }
        let want = ranking(&direct.next(token))[0];
        assert_eq!(sampler.next(token, None)?, want, "token {nth}");
    }
    Ok(())
}

/// Reads tokens in turns, so that each place in the turn has its own distribution, and counts the
/// draws for each.
fn draws_follow(model: &LanguageModel, temperature: f32, never: Option<u32>) -> Result<()> {
    const TURN: [u32; 4] = [0, 3, 3, 1];
    let mut sampler = Sampler::new(model, temperature, 29)?;
    let mut direct = Direct::new(model)?;
    let mut drawn = [[0.0; V]; TURN.len()];
    let (mut mean, mut variance) = (drawn, drawn);
    for (place, token) in TURN.into_iter().enumerate().cycle().take(4_000) {
        let mut logits = direct.next(token);
        if let Some(id) = never {
            logits[id as usize] = f64::NEG_INFINITY;
        }
        for (id, p) in softmax(&logits, f64::from(temperature))
            .into_iter()
            .enumerate()
        {
            mean[place][id] += p;
            variance[place][id] += p * (1.0 - p);
        }
        drawn[place][sampler.next(token, never)? as usize] += 1.0;
    }
    for place in 0..TURN.len() {
        for id in 0..V {
            // Four standard deviations, and one draw where there are next to none.
            let bound = 4.0 * variance[place][id].sqrt() + 1.0;
            let what = format!("temperature {temperature}, never {never:?}, {id} at {place}");
            close(drawn[place][id], mean[place][id], bound, &what);
        }
    }
    if let Some(id) = never {
        assert!(drawn.iter().all(|counts| counts[id as usize] == 0.0));
    }
    Ok(())
}

#[test]
fn draws_follow_the_softmax_of_the_equations() -> Result<()> {
    let model = model(&cell::LSTM, [E, H])?;
    // At 0.02 nearly all draws are the likeliest token.
    for temperature in [1.0, 0.25, 4.0, 0.02] {
        draws_follow(&model, temperature, None)?;
    }
    (0..V as u32).try_for_each(|id| draws_follow(&model, 1.0, Some(id)))
}

/// What dropout left of `values`: each is 0 or v / (1 − p), some p of them 0; true for those kept.
fn kept(got: &[f64], values: &[f64], p: f64) -> Vec<bool> {
    assert_eq!(got.len(), values.len());
    for (&got, value) in got.iter().zip(values) {
        // 1 − p is exact for these p, and the quotient rounds alike here and there.
        assert!(got == 0.0 || got == value / (1.0 - p), "{got} {value}");
    }
    let kept: Vec<bool> = got.iter().map(|&v| v != 0.0).collect();
    let (zeros, len) = (kept.iter().filter(|&&k| !k).count(), kept.len() as f64);
    // Four standard deviations.
    let bound = 4.0 * (len * p * (1.0 - p)).sqrt();
    close(zeros as f64, p * len, bound, "zeros");
    kept
}

#[test]
fn dropout_is_applied_at_both_places() -> Result<()> {
    const WIDE: usize = 32;
    let size = Size { steps: 8, batch: 4 };
    let model = model(&cell::GRU, [WIDE, WIDE])?;
    let text = tokens(size.steps * size.batch + 1);
    let chunk = Batches::new(&text, size)?.chunk(0);
    let table = model.weights()[0].1.read_f64()?;
    let rows = chunk.inputs.iter().map(|&id| id as usize * WIDE);
    let embedded: Vec<f64> = rows.flat_map(|at| table[at..at + WIDE].to_vec()).collect();
    let mut losses = Vec::new();
    for dropout in [0.0, 0.25, 0.5] {
        let spec = TrainerSpec {
            size,
            dropout,
            ..SPEC
        };
        let trainer = Trainer::new(&model, spec)?;
        let read = |name: &str| trainer.program().named(name)?.read_f64();
        let mut masks = Vec::new();
        for clock in [0, 1, 0] {
            trainer.program().named("clock")?.write_uint(&[clock])?;
            trainer.step(&chunk)?;
            losses.push(read("loss")?[0]);
            if dropout == 0.0 {
                assert_eq!(read("embedded")?, embedded);
                continue;
            }
            // The states before each step stand behind those after the last.
            let (p, h) = (f64::from(dropout), read("h_l0")?);
            let state = size.batch * WIDE;
            let h = [&h[2 * state..], &h[..state]].concat();
            masks.push(kept(&read("embedded")?, &embedded, p));
            // The recurrence itself goes on with all of h.
            assert!(h.iter().all(|&v| v != 0.0));
            masks.push(kept(&read("features")?, &h, p));
        }
        // A mask for each place and each clock, the same whenever it is drawn.
        if let [a, b, c, d, e, f] = &masks[..] {
            assert!(a == e && b == f && a != b && a != c && b != d && c != d);
        }
    }
    let [none, same, .., half, other, again] = losses[..] else {
        unreachable!("nine losses");
    };
    assert!(none == same && half == again && half != other);
    assert!(
        losses[3..].iter().all(|loss| (loss - none).abs() > 1e-3),
        "{losses:?}"
    );
    Ok(())
}
