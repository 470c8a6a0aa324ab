//! Calls from several threads: every two of them leave what they leave one after the other, and none fails because of
//! another.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use wgrnn::interop::safetensors::Archive;
use wgrnn::ndarray::{Array2, Array3};
use wgrnn::rng::Rng;
#[cfg(feature = "gpu")]
use wgrnn::wgpu;
use wgrnn::{Call, Context, Error, Layer, Lstm, Result, Sequence, Size, State, Streams};

const SIZE: Size = Size { steps: 4, batch: 3 };
const INPUT: usize = 5;
const HIDDEN: usize = 8;
const MANY: usize = 4_000;

fn everywhere() -> Vec<Context> {
    let mut contexts = vec![Context::cpu()];
    contexts.extend(common::adapters());
    contexts
}

/// A call of the CPU takes microseconds, one of a software adapter milliseconds.
fn rounds(context: &Context) -> usize {
    let few = if context.is_gpu() { 1 } else { 20 };
    if common::thorough() { 10 * few } else { few }
}

fn lstm() -> Lstm {
    Lstm::new(INPUT, HIDDEN).num_layers(2)
}

fn numbers(len: usize, seed: u64) -> Vec<f32> {
    Rng::new(seed).uniforms(len, -1.0, 1.0)
}

/// Runs each of the calls over and over from a thread of its own, all at the same time.
fn at_once(rounds: usize, calls: &[&(dyn Fn(usize) -> Result<()> + Sync)]) {
    let start = Barrier::new(calls.len());
    thread::scope(|scope| {
        for call in calls {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for round in 0..rounds {
                    call(round).unwrap();
                }
            });
        }
    });
}

/// Sets it at the end, also of a panic.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fails, instead of waiting for ever, if the work does not end.
fn ends(what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = channel();
    let worker = thread::spawn(move || {
        work();
        // Nobody listens once it took too long.
        let _ = done.send(());
    });
    match wait.recv_timeout(Duration::from_secs(120)) {
        Ok(()) => worker.join().unwrap(),
        Err(RecvTimeoutError::Disconnected) => worker.join().unwrap(),
        Err(RecvTimeoutError::Timeout) => panic!("{what}: threads wait for each other for ever"),
    }
}

/// What a layer gives with each of the sets of weights that it has in turn.
struct Wanted {
    weights: Vec<Archive>,
    /// y of [`SIZE`] steps.
    y: Vec<Vec<f32>>,
    gradients: Vec<Vec<Vec<f32>>>,
    /// y of a stream's first step.
    step: Vec<Array2<f32>>,
}

/// A call that checks what it gives.
type Called<'a> = Box<dyn Fn(usize, usize) -> Result<()> + Sync + 'a>;

/// One layer and every kind of thing that is planned for it.
struct Shared {
    layer: Layer,
    inference: [Sequence; 2],
    training: [Sequence; 2],
    streams: Streams,
    x: Array3<f32>,
    state: State,
    wanted: Wanted,
}

fn gradients(sequence: &Sequence) -> Result<Vec<Vec<f32>>> {
    let all = sequence.gradients()?.into_iter();
    all.map(|(_, gradient)| gradient.read()).collect()
}

fn one(x: &Array3<f32>) -> Array2<f32> {
    x.slice(wgrnn::ndarray::s![0, ..1, ..]).to_owned()
}

impl Shared {
    fn new(context: &Context) -> Result<Self> {
        let layer = lstm().build(context)?;
        let [h, c] = [21, 22].map(|seed| {
            let values = numbers(2 * HIDDEN, seed);
            Array3::from_shape_vec((2, 1, HIDDEN), values).unwrap()
        });
        let x = numbers(SIZE.steps * SIZE.batch * INPUT, 1);
        let mut shared = Self {
            inference: [layer.inference(SIZE)?, layer.inference(SIZE)?],
            training: [layer.training(SIZE)?, layer.training(SIZE)?],
            streams: layer.streams(16)?,
            x: Array3::from_shape_vec((SIZE.steps, SIZE.batch, INPUT), x).unwrap(),
            state: State { h, c: Some(c) },
            layer,
            wanted: Wanted {
                weights: Vec::new(),
                y: Vec::new(),
                gradients: Vec::new(),
                step: Vec::new(),
            },
        };
        let x: Vec<f32> = shared.x.iter().copied().collect();
        for sequence in shared.inference.iter().chain(&shared.training) {
            sequence.x().write(&x)?;
        }
        for sequence in &shared.training {
            let dy = sequence.dy()?;
            dy.write(&numbers(dy.len(), 2))?;
        }
        let mut wanted = Vec::new();
        for seed in 0..3 {
            shared.layer.initialise(seed)?;
            // One weight is the same in all sets.
            shared.layer.set_weight(SAME, &same())?;
            shared.layer.prepare()?;
            shared.streams.prepare()?;
            let training = &shared.training[0];
            training.forward()?;
            training.backward()?;
            shared.streams.reset(0)?;
            wanted.push((
                shared.layer.to_archive()?,
                training.y().read()?,
                gradients(training)?,
                shared.streams.step(&[0], one(&shared.x).view())?,
            ));
        }
        for (weights, y, gradients, step) in wanted {
            shared.wanted.weights.push(weights);
            shared.wanted.y.push(y);
            shared.wanted.gradients.push(gradients);
            shared.wanted.step.push(step);
        }
        Ok(shared)
    }

    /// The calls, by name. A call is told the round and the thread, of which there are two.
    fn calls(&self) -> Vec<(&'static str, Called<'_>)> {
        let wanted = &self.wanted;
        let [one, two] = &self.inference;
        let [three, four] = &self.training;
        vec![
            (
                "forward of a sequence",
                Box::new(move |_, _| forward(one, wanted)),
            ),
            (
                "forward of another",
                Box::new(move |_, _| forward(two, wanted)),
            ),
            ("training", Box::new(move |_, _| train_alone(three, wanted))),
            (
                "training by another",
                Box::new(move |_, _| train(four, wanted).map(drop)),
            ),
            (
                "Layer::forward",
                Box::new(move |_, _| {
                    let y = self.layer.forward(self.x.view(), None)?.y;
                    among(&y.iter().copied().collect(), &wanted.y, "y")
                }),
            ),
            (
                "load",
                Box::new(move |round, _| self.layer.load(&wanted.weights[round % 3])),
            ),
            (
                "set_weight",
                Box::new(move |_, _| self.layer.set_weight(SAME, &same())),
            ),
            ("prepare", Box::new(move |_, _| self.layer.prepare())),
            (
                "Streams::prepare",
                Box::new(move |_, _| self.streams.prepare()),
            ),
            (
                "to_archive",
                Box::new(move |_, _| among(&self.layer.to_archive()?, &wanted.weights, "weights")),
            ),
            (
                "Streams::step",
                Box::new(move |_, thread| {
                    self.streams.reset(thread)?;
                    let y = self.streams.step(&[thread], self::one(&self.x).view())?;
                    among(&y, &wanted.step, "y of a stream")
                }),
            ),
            (
                "Streams::state",
                Box::new(move |_, thread| {
                    self.streams.set_state(2 + thread, &self.state)?;
                    assert_eq!(self.streams.state(2 + thread)?, self.state);
                    Ok(())
                }),
            ),
            (
                "reads of y",
                Box::new(move |_, _| {
                    for sequence in [one, three] {
                        let y = sequence.y().read()?;
                        if y.iter().any(|&v| v != 0.0) {
                            among(&y, &wanted.y, "y")?;
                        }
                    }
                    self.streams.y().read().map(drop)
                }),
            ),
            (
                "writes of x",
                Box::new(move |_, _| {
                    let x: Vec<f32> = self.x.iter().copied().collect();
                    one.x().write(&x)?;
                    two.x().write(&x)
                }),
            ),
            (
                "set_initial and carry",
                Box::new(move |_, _| {
                    four.carry()?;
                    four.set_initial(None)?;
                    // The final states of a call that ran or did not.
                    four.state().map(drop)
                }),
            ),
            (
                "zero_gradients",
                Box::new(move |_, _| four.zero_gradients()),
            ),
            (
                "planning",
                Box::new(move |_, _| {
                    let sequence = self.layer.inference(SIZE)?;
                    sequence
                        .x()
                        .write(&self.x.iter().copied().collect::<Vec<_>>())?;
                    forward(&sequence, wanted)
                }),
            ),
        ]
    }
}

const SAME: &str = "bias_hh_l1";

fn same() -> Vec<f32> {
    numbers(4 * HIDDEN, 7)
}

fn among<T: PartialEq + std::fmt::Debug>(got: &T, wanted: &[T], what: &str) -> Result<()> {
    assert!(
        wanted.contains(got),
        "{what} is that of no set of weights: {got:?}"
    );
    Ok(())
}

fn forward(sequence: &Sequence, wanted: &Wanted) -> Result<()> {
    sequence.forward()?;
    among(&sequence.y().read()?, &wanted.y, "y")
}

/// Whatever another thread does, gradients are those of one set of weights, or refused: then the result is false.
fn train(sequence: &Sequence, wanted: &Wanted) -> Result<bool> {
    sequence.forward()?;
    match sequence.backward() {
        Ok(()) => {}
        Err(Error::Value { op: "backward", .. }) => return Ok(false),
        Err(e) => return Err(e),
    }
    among(&sequence.y().read()?, &wanted.y, "y")?;
    Ok(true)
}

/// Nobody else writes its gradients.
fn train_alone(sequence: &Sequence, wanted: &Wanted) -> Result<()> {
    if train(sequence, wanted)? {
        among(&gradients(sequence)?, &wanted.gradients, "a gradient")?;
    }
    Ok(())
}

/// A recurrent weight is read twice: packed in the forward pass, and as it is in the backward pass.
#[test]
fn a_recurrent_weight_beside_training() -> Result<()> {
    const WEIGHT: &str = "weight_hh_l0";
    for context in everywhere() {
        let mut shared = Shared::new(&context)?;
        let layer = &shared.layer;
        let two = [51, 52].map(|seed| numbers(4 * HIDDEN * HIDDEN, seed));
        let (mut y, mut both) = (Vec::new(), Vec::new());
        for values in &two {
            layer.set_weight(WEIGHT, values)?;
            let training = &shared.training[0];
            training.forward()?;
            training.backward()?;
            y.push(training.y().read()?);
            both.push(gradients(training)?);
        }
        (shared.wanted.y, shared.wanted.gradients) = (y, both);
        let (layer, wanted) = (&shared.layer, &shared.wanted);
        at_once(
            100 * rounds(&context),
            &[
                &|_| train_alone(&shared.training[0], wanted),
                &|_| forward(&shared.inference[0], wanted),
                &|round| layer.set_weight(WEIGHT, &two[round % 2]),
            ],
        );
    }
    Ok(())
}

/// wgpu runs a host's callbacks inside the calls that submit: there a call is refused that would wait for itself.
#[cfg(feature = "gpu")]
#[test]
fn in_a_callback() {
    use std::sync::{Arc, OnceLock};

    ends("a callback", || {
        for context in common::adapters() {
            let layer = lstm().build(&context).unwrap();
            let sequence = Arc::new(layer.inference(SIZE).unwrap());
            let (device, queue) = context.wgpu().unwrap();
            for _ in 0..20 {
                let done = Arc::new(OnceLock::new());
                let (inner, told) = (sequence.clone(), done.clone());
                queue.submit([]);
                queue.on_submitted_work_done(move || {
                    told.get_or_init(|| inner.x().write(&numbers(inner.x().len(), 3)));
                });
                sequence.forward().unwrap();
                device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
                match done.get().expect("it was called") {
                    Ok(()) => {}
                    Err(e) => assert!(
                        e.to_string().contains("this thread is in a call already"),
                        "{e}"
                    ),
                }
            }
        }
    });
}

#[test]
fn every_two_calls() {
    for context in everywhere() {
        let shared = Shared::new(&context).unwrap();
        let rounds = rounds(&context);
        let calls = shared.calls();
        for (n, (one, first)) in calls.iter().enumerate() {
            for (two, second) in &calls[n..] {
                // `carry` and another's forward from zeros would have many orders.
                let moves = |name: &str| name == "set_initial and carry";
                let uses = |name: &str| name == "training by another";
                if (moves(one) && uses(two)) || (uses(one) && moves(two)) {
                    continue;
                }
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    at_once(
                        rounds,
                        &[&|round| first(round, 0), &|round| second(round, 1)],
                    );
                }));
                assert!(done.is_ok(), "{}: '{one}' beside '{two}'", context.name());
            }
        }
    }
}

/// Gradients of a training call beside whatever replaces its weights: those of one set, or refused by name.
#[test]
fn gradients_are_of_one_set_of_weights() -> Result<()> {
    for context in everywhere() {
        let shared = Shared::new(&context)?;
        let (sequence, wanted) = (&shared.training[0], &shared.wanted);
        let [one, two] = [1, 2].map(|n| &wanted.weights[n]);
        let all = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !all.load(Ordering::Relaxed) {
                    shared.layer.load(one).unwrap();
                    shared.layer.load(two).unwrap();
                }
            });
            let _ends = Ends(&all);
            for _ in 0..5 * rounds(&context) {
                sequence.forward().unwrap();
                if sequence.backward().is_ok() {
                    let got = gradients(sequence).unwrap();
                    assert!(wanted.gradients.contains(&got), "{}", context.name());
                }
            }
        });
    }
    Ok(())
}

/// A step of several layers is done as a whole, whoever looks at its output meanwhile.
#[test]
fn streams_step_while_another_reads() -> Result<()> {
    for context in everywhere() {
        let layer = lstm().build(&context)?;
        let steps = 20 * rounds(&context);
        let x =
            |t: usize| Array2::from_shape_vec((2, INPUT), numbers(2 * INPUT, t as u64)).unwrap();
        let run = |streams: &Streams| -> Vec<Array2<f32>> {
            let step = |t| streams.step(&[t % 3, 3], x(t).view()).unwrap();
            (0..steps).map(step).collect()
        };
        // So many that reading all their outputs takes as long as a step.
        let want = run(&layer.streams(MANY)?);
        let streams = layer.streams(MANY)?;
        let over = AtomicBool::new(false);
        let got = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    streams.y().read().unwrap();
                    streams.x().read().unwrap();
                }
            });
            let _ends = Ends(&over);
            run(&streams)
        });
        assert!(got == want, "{}", context.name());
    }
    Ok(())
}

/// Every backward pass adds once.
#[test]
fn accumulation_while_another_reads() -> Result<()> {
    for context in everywhere() {
        let layer = lstm().build(&context)?;
        let passes = 20 * rounds(&context);
        let run = |read: bool| -> Result<Vec<Vec<f32>>> {
            let sequence = layer.sequence(&Call::training(SIZE).accumulate())?;
            let (x, dy) = (sequence.x(), sequence.dy()?);
            x.write(&numbers(x.len(), 1))?;
            dy.write(&numbers(dy.len(), 2))?;
            sequence.forward()?;
            let over = AtomicBool::new(!read);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        gradients(&sequence).unwrap();
                    }
                });
                let _ends = Ends(&over);
                (0..passes).for_each(|_| sequence.backward().unwrap());
            });
            gradients(&sequence)
        };
        assert!(run(true)? == run(false)?, "{}", context.name());
    }
    Ok(())
}

/// Inference of several threads on a layer that another keeps replacing.
#[test]
fn load_beside_forward() -> Result<()> {
    for context in everywhere() {
        let shared = Shared::new(&context)?;
        let load = |round: usize| shared.layer.load(&shared.wanted.weights[round % 3]);
        let [one, two] = &shared.inference;
        at_once(
            5 * rounds(&context),
            &[
                &load,
                &|_| forward(one, &shared.wanted),
                &|_| forward(two, &shared.wanted),
                &|_| {
                    among(
                        &shared.layer.to_archive()?,
                        &shared.wanted.weights,
                        "weights",
                    )
                },
            ],
        );
    }
    Ok(())
}

/// A host that is a task of rayon's pool itself: a thread that waits for others' work must not begin a task that
/// waits for what it holds.
#[test]
fn calls_from_tasks_of_the_pool() {
    ends("tasks of the pool", || {
        // So large that a call is shared out among threads.
        let size = Size {
            steps: 4,
            batch: 16,
        };
        let layer = Lstm::new(24, 64).build(&Context::cpu()).unwrap();
        let x = numbers(size.steps * size.batch * 24, 3);
        let x = Array3::from_shape_vec((size.steps, size.batch, 24), x).unwrap();
        let want = layer.forward(x.view(), None).unwrap();
        let sequence = layer.training(size).unwrap();
        let check = || assert!(layer.forward(x.view(), None).unwrap() == want);
        thread::scope(|scope| {
            scope.spawn(|| (0..20).for_each(|_| check()));
            rayon::scope(|tasks| {
                for _ in 0..40 {
                    tasks.spawn(|_| check());
                    tasks.spawn(|_| sequence.forward().unwrap());
                }
            });
        });
    });
}
