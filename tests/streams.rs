//! Streams: any subset in any order gives each stream what a whole sequence of its own would, and
//! touches no other.

mod common;

use common::config::fill;
use common::results::{self, assert_close, assert_same};
use wgrnn::cell::{self, Cell};
use wgrnn::ndarray::{Array2, Array3, ArrayView2, Axis, s, stack};
use wgrnn::rng::Rng;
use wgrnn::{Context, Dtype, Layer, LayerSpec, Precision, Result, Size, State, Streams};

const COUNT: usize = 7;
const STEPS: usize = 9;
const INPUT: usize = 5;
const HIDDEN: usize = 6;

fn specs() -> Vec<LayerSpec> {
    let two = |cell: &'static Cell| LayerSpec {
        num_layers: 2,
        ..LayerSpec::new(cell, INPUT, HIDDEN)
    };
    vec![
        two(&cell::LSTM_PROJECTED),
        // Three layers, of which the middle one hands on what neither end does.
        LayerSpec {
            num_layers: 3,
            bias: false,
            ..two(&cell::LSTM_PEEPHOLE)
        },
        two(&cell::GRU),
        two(&cell::GRU_BEFORE),
        LayerSpec {
            precision: Precision::F16,
            ..two(&cell::LSTM)
        },
        LayerSpec {
            precision: Precision::F16,
            ..two(&cell::GRU)
        },
        LayerSpec::new(&cell::RNN_TANH, INPUT, HIDDEN),
        // So large that the CPU's threads share a step.
        LayerSpec {
            hidden_size: 140,
            ..two(&cell::GRU)
        },
        LayerSpec::new(&cell::LSTM, INPUT, 140),
        LayerSpec::new(&cell::RNN_RELU, INPUT, 300),
    ]
}

/// Not in double precision, since outputs and states pass through arrays of `f32`.
fn everywhere() -> Vec<Context> {
    let mut contexts = results::everywhere();
    contexts.retain(|c| c.dtype() == Dtype::F32);
    contexts
}

fn layer(context: &Context, spec: LayerSpec) -> Result<Layer> {
    Layer::new(context, spec, 3)
}

/// The inputs of all streams, `[T, N, I]`.
fn inputs() -> Array3<f32> {
    let mut rng = Rng::new(5);
    Array3::from_shape_simple_fn((STEPS, COUNT, INPUT), || rng.uniform(-1.0, 1.0))
}

fn wide(values: impl IntoIterator<Item = f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

fn numbers(state: &State) -> Vec<f64> {
    let c = state.c.iter().flatten();
    wide(state.h.iter().chain(c).copied())
}

fn states(streams: &Streams) -> Result<Vec<Vec<f64>>> {
    let each = (0..streams.count()).map(|n| Ok(numbers(&streams.state(n)?)));
    each.collect()
}

/// Some of those that are not done, in random order.
fn subset(done: &[usize], rng: &mut Rng) -> Vec<usize> {
    let mut open: Vec<usize> = (0..COUNT).filter(|&n| done[n] < STEPS).collect();
    for i in (1..open.len()).rev() {
        open.swap(i, rng.below(i as u32 + 1) as usize);
    }
    open.truncate(rng.below(open.len() as u32 + 1) as usize);
    open
}

fn any_subset_in_any_order(context: &Context, spec: LayerSpec) -> Result<()> {
    let what = spec.cell.name;
    let layer = layer(context, spec)?;
    let x = inputs();
    let sequence = layer.inference(Size {
        steps: STEPS,
        batch: COUNT,
    })?;
    sequence.x().write(&x.iter().copied().collect::<Vec<_>>())?;
    let mut rng = Rng::new(8);
    for initial in [Some(sequence.h0()), sequence.c0().ok()]
        .into_iter()
        .flatten()
    {
        fill(initial, &mut rng)?;
    }
    sequence.forward()?;
    let width = spec.output_size();
    let want = sequence.y().read_f64()?;

    let streams = layer.streams(COUNT)?;
    let initial = State {
        h: array(sequence.h0())?,
        c: sequence.c0().ok().map(array).transpose()?,
    };
    for n in 0..COUNT {
        streams.set_state(n, &of_stream(&initial, n))?;
    }
    let mut done = [0; COUNT];
    while done.iter().any(|&d| d < STEPS) {
        let some = subset(&done, &mut rng);
        let before = states(&streams)?;
        let row = |&n: &usize| x.slice(s![done[n], n, ..]);
        let rows: Vec<_> = some.iter().map(row).collect();
        let given = match rows.is_empty() {
            true => Array2::zeros((0, INPUT)),
            false => stack(Axis(0), &rows).unwrap(),
        };
        let y = streams.step(&some, given.view())?;
        assert_eq!(y.dim(), (some.len(), width));
        let after = states(&streams)?;
        for n in (0..COUNT).filter(|n| !some.contains(n)) {
            assert_same(
                context,
                &format!("{what}: state of {n}"),
                &after[n],
                &before[n],
            );
        }
        for (&n, y) in some.iter().zip(y.outer_iter()) {
            let y = wide(y.iter().copied());
            let want = &want[(done[n] * COUNT + n) * width..][..width];
            let what = format!("{what}: stream {n} in step {}", done[n]);
            assert_close(context, &what, &y, want, HIDDEN + INPUT);
            // What it put out is its state, in whichever half that stands.
            let h = streams.state(n)?.h;
            let h = wide(h.index_axis(Axis(0), spec.num_layers - 1).iter().copied());
            assert_same(context, &what, &h, &y);
            done[n] += 1;
        }
    }
    let last = sequence.state()?;
    for n in 0..COUNT {
        let (got, want) = (numbers(&streams.state(n)?), numbers(&of_stream(&last, n)));
        assert_close(
            context,
            &format!("{what}: last state of {n}"),
            &got,
            &want,
            HIDDEN + INPUT,
        );
    }
    Ok(())
}

fn array(tensor: &wgrnn::Tensor) -> Result<Array3<f32>> {
    Ok(tensor.to_array()?.into_dimensionality().unwrap())
}

/// One sequence's part of a state.
fn of_stream(state: &State, n: usize) -> State {
    let part = |a: &Array3<f32>| a.slice(s![.., n..n + 1, ..]).to_owned();
    State {
        h: part(&state.h),
        c: state.c.as_ref().map(part),
    }
}

#[test]
fn streams_are_sequences() -> Result<()> {
    for context in everywhere() {
        for spec in common::share_on(&context, specs(), 0, 2) {
            any_subset_in_any_order(&context, spec)?;
        }
    }
    Ok(())
}

/// Steps one stream through some inputs.
fn alone(streams: &Streams, stream: usize, x: ArrayView2<'_, f32>) -> Result<Vec<f64>> {
    let mut y = Vec::new();
    for row in x.outer_iter() {
        y.extend(wide(streams.step(&[stream], row.insert_axis(Axis(0)))?));
    }
    Ok(y)
}

#[test]
fn a_state_moves_from_one_stream_to_another() -> Result<()> {
    let x = inputs();
    let x = x.index_axis(Axis(1), 0);
    for context in everywhere() {
        for spec in common::share_on(&context, specs(), 1, 5) {
            let layer = layer(&context, spec)?;
            let [one, two] = [layer.streams(COUNT)?, layer.streams(3)?];
            // After an odd and after an even number of steps, to a stream that has made one.
            for (stream, steps) in [(4, 3), (6, 4)] {
                alone(&one, stream, x.slice(s![..steps, ..]))?;
                alone(&two, 2, x.slice(s![..1, ..]))?;
                two.set_state(2, &one.state(stream)?)?;
                let same = [one.state(stream)?, two.state(2)?].map(|s| numbers(&s));
                assert_same(&context, "state", &same[1], &same[0]);
                let rest = x.slice(s![steps.., ..]);
                let want = alone(&one, stream, rest)?;
                assert_same(&context, spec.cell.name, &alone(&two, 2, rest)?, &want);
            }
        }
    }
    Ok(())
}

#[test]
fn a_reset_stream_is_a_new_one() -> Result<()> {
    let x = inputs();
    let x = x.index_axis(Axis(1), 0);
    for context in everywhere() {
        for spec in common::share_on(&context, specs(), 3, 5) {
            let layer = layer(&context, spec)?;
            let [used, fresh] = [layer.streams(COUNT)?, layer.streams(COUNT)?];
            for (stream, steps) in [(0, 1), (5, 2)] {
                alone(&used, stream, x.slice(s![..steps, ..]))?;
                let other = used.state(3)?;
                used.reset(stream)?;
                assert!(numbers(&used.state(stream)?).iter().all(|&v| v == 0.0));
                assert_eq!(used.state(3)?, other);
                let want = alone(&fresh, stream, x)?;
                assert_same(&context, spec.cell.name, &alone(&used, stream, x)?, &want);
            }
        }
    }
    Ok(())
}

#[test]
fn weights_count_from_the_next_step_on() -> Result<()> {
    for context in everywhere() {
        let spec = specs()[0];
        let layer = layer(&context, spec)?;
        let [old, new] = [layer.streams(2)?, layer.streams(2)?];
        let x = inputs();
        let x = x.index_axis(Axis(1), 0);
        let before = alone(&old, 1, x)?;
        layer.initialise(4)?;
        let after = alone(&new, 1, x)?;
        assert_ne!(before, after);
        assert_same(
            &context,
            "a stream of the new weights",
            &alone(&layer.streams(2)?, 1, x)?,
            &after,
        );
    }
    Ok(())
}

#[test]
fn a_step_has_one_dispatch_for_each_kernel_and_layer() -> Result<()> {
    for context in everywhere() {
        for cell in cell::ALL {
            let spec = LayerSpec {
                num_layers: 3,
                ..LayerSpec::new(cell, INPUT, HIDDEN)
            };
            let streams = layer(&context, spec)?.streams(COUNT)?;
            let plan = streams.program().plan();
            let step = &plan.steps()[plan.section("step")?];
            assert_eq!(step.len(), 3 * cell.forward.len(), "{}", cell.name);
            assert!(step.iter().all(|s| !s.grid.contains(&0)));
        }
    }
    Ok(())
}

/// The same in the host's own encoder, where inputs never leave the device.
#[cfg(feature = "gpu")]
#[test]
fn steps_recorded_by_the_host() -> Result<()> {
    let x = inputs();
    for context in common::kept() {
        let (device, queue) = context.wgpu().unwrap();
        let layer = layer(&context, specs()[0])?;
        let [recorded, waited] = [layer.streams(COUNT)?, layer.streams(COUNT)?];
        let some = [5, 0, 3];
        for t in 0..3 {
            let rows = x.slice(s![t, ..some.len(), ..]);
            let want = waited.step(&some, rows)?;
            recorded.advance(&some)?;
            recorded
                .x()
                .rows(0..some.len())?
                .write(&rows.iter().copied().collect::<Vec<_>>())?;
            let mut encoder = device.create_command_encoder(&Default::default());
            recorded.record_step(&mut encoder)?;
            queue.submit([encoder.finish()]);
            let got = recorded.y().rows(0..some.len())?.read_f64()?;
            assert_same(&context, "y", &got, &wide(want));
        }
        for (got, want) in states(&recorded)?.iter().zip(states(&waited)?) {
            assert_same(&context, "state", got, &want);
        }
    }
    Ok(())
}
