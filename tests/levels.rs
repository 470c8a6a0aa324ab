//! Levels side by side, the two directions of a layer or the layers of a stack: the numbers of one after
//! another, in fewer dispatches.

mod common;

use common::config::{Config, Most, fill, seeds};
use common::results::{assert_close, assert_same, everywhere, fill_inputs, results};
use wgrnn::plan::sequence::{Levels, StepForm, Strategy};
use wgrnn::plan::{Buffer, Force, Step, Target};
use wgrnn::rng::Rng;
use wgrnn::{Call, Context, Gru, Layer, LayerSpec, Lstm, Mode, Order, Result, Rnn, Sequence, Size};

fn forced(context: &Context, way: (Strategy, StepForm), levels: Levels) -> Context {
    // Some sequences are cut.
    context.dispatching(4).forcing(Force {
        strategy: Some(way.0),
        step: Some(way.1),
        levels: Some(levels),
        ..Force::default()
    })
}

/// Every way of running steps that reads packed weights.
fn ways() -> Vec<(Strategy, StepForm)> {
    let steps = [StepForm::Blocks, StepForm::Few, StepForm::Tile].map(|f| (Strategy::Steps, f));
    [vec![(Strategy::Sequence, StepForm::Blocks)], steps.to_vec()].concat()
}

const MOST: Most = Most {
    steps: 26,
    batch: 9,
    hidden: 20,
};

/// A layer with two directions, and a call of it.
fn both_directions(seed: u64) -> Option<Config> {
    let mut config = Config::draw(seed, MOST);
    config.spec.bidirectional = true;
    config.call.burn_in = 0;
    if seed.is_multiple_of(2) {
        config.call.recompute = None;
    }
    config.spec.cell.side_by_side.then_some(config)
}

/// A stack of which some layers have steps at the same time, and a call of it; some run in turn over weights of
/// layers side by side.
fn stack(seed: u64) -> Option<Config> {
    let mut cells = (0..).map(|k| Config::draw(seed + 100 * k, MOST));
    let mut config = cells.find(|c| c.spec.cell.side_by_side)?;
    let mut rng = Rng::new(seed);
    let mut below = |most: u32| rng.below(most) as usize;
    let (steps, batch) = (17 + below(20), 2 + below(7));
    config.spec.bidirectional = false;
    config.spec.num_layers = 2 + below(3);
    config.spec.dropout = [0.0, 0.3][below(2)];
    config.spec.dropout_seed = 7;
    let training = Call::training(Size { steps, batch });
    let falling: Vec<usize> = (0..steps)
        .map(|t| batch - t * (batch - 1) / steps)
        .collect();
    let packed = Call::packed(&falling, Mode::Training);
    let alone = Call::training(Size { steps, batch: 1 });
    config.call = match seed % 8 {
        0 => training,
        1 => training.lengths().resets(),
        2 => packed,
        3 => packed.resets().accumulate(),
        4 => alone.orders(
            Order::BatchFirst,
            [Order::TimeFirst, Order::BatchFirst][below(2)],
        ),
        5 => training.batch_first(),
        6 => training.recompute(1 + below(steps as u32)),
        _ => training.burn_in([steps, steps / 2][below(2)]),
    };
    config.lengths = (0..batch).map(|_| below(steps as u32 + 1) as i64).collect();
    config.resets = (0..steps * batch).map(|_| below(5) == 0).collect();
    Some(config)
}

/// The same call for inference.
fn inference(config: &Config) -> Config {
    let call = Call {
        mode: Mode::Inference,
        recompute: None,
        burn_in: 0,
        accumulate: false,
        ..config.call.clone()
    };
    Config {
        call,
        ..config.clone()
    }
}

/// Whether levels run together.
fn together(config: &Config, context: &Context) -> bool {
    let plan = Sequence::plan(&config.spec, &config.call, &context.target()).unwrap();
    let mut levels = plan.choices().iter().filter(|c| c.what == "levels");
    levels.any(|c| c.chosen == Levels::Together.name())
}

fn run(config: &Config, context: &Context) -> Result<common::results::Values> {
    let (layer, sequence) = config.build(context)?;
    let mut rng = Rng::new(config.seed + 1);
    let scale = 1.5 / (config.spec.hidden_size as f64).sqrt();
    for (_, weight) in layer.weights() {
        let values = fill(weight, &mut rng)?.into_iter().map(|v| scale * v);
        weight.write_f64(&values.collect::<Vec<_>>())?;
    }
    layer.prepare()?;
    if let Some(clock) = sequence.dropout_clock() {
        clock.write_uint(&[5])?;
    }
    if config.call.mode == Mode::Training {
        for (_, gradient) in sequence.gradients()? {
            fill(&gradient, &mut rng)?;
        }
    }
    fill_inputs(&sequence, config.seed + 2)?;
    results(&sequence)
}

/// Where a call runs: everywhere, or of some calls and without inference not on adapters.
fn places(config: &Config) -> Vec<Context> {
    let mut places = everywhere();
    let also = config.seed.is_multiple_of(5) && config.call.mode == Mode::Training;
    places.retain(|context| !context.is_gpu() || also || common::thorough());
    places
}

/// Runs a call with its levels side by side and in turn on the devices in every way. Returns whether these levels ran
/// side by side in all.
fn compared(config: &Config) -> Result<bool> {
    let mut side_by_side = true;
    for context in places(config) {
        for way in common::share_on(&context, ways(), config.seed as usize / 5, 4) {
            let [beside, in_turn] =
                [Levels::Together, Levels::InTurn].map(|levels| forced(&context, way, levels));
            side_by_side &= together(config, &beside);
            let (got, want) = (run(config, &beside)?, run(config, &in_turn)?);
            assert_eq!(got.len(), want.len());
            for (name, want) in &want {
                let what = format!("{config:?} {way:?}: {name}");
                // The steps are the same sums. In a tile, and in products over a lane or some of its rows,
                // which may start at no multiple of 4 and be of another form, the order of the terms differs.
                let exact = config.spec.bidirectional
                    && ["y", "hn", "cn"].contains(&name.as_str())
                    && way.1 != StepForm::Tile;
                if exact {
                    assert_same(&context, &what, &got[name], want);
                } else if want.iter().all(|v| v.abs() < 1e3) {
                    assert_close(&context, &what, &got[name], want, 80);
                }
            }
        }
    }
    Ok(side_by_side)
}

/// Of so many seeds how many calls there were, and how many ran levels side by side in every way.
fn all_compared(count: u64, draw: fn(u64) -> Option<Config>) -> Result<[usize; 2]> {
    let all: Vec<u64> = seeds(count).collect();
    let found = common::spread(&all, |seeds| -> Result<[usize; 2]> {
        let mut found = [0, 0];
        for config in seeds.into_iter().filter_map(draw) {
            for config in [inference(&config), config] {
                found[0] += 1;
                found[1] += usize::from(compared(&config)?);
            }
        }
        Ok(found)
    });
    let add = |sum: [usize; 2], found: [usize; 2]| [sum[0] + found[0], sum[1] + found[1]];
    found
        .into_iter()
        .try_fold([0, 0], |sum, found| Ok(add(sum, found?)))
}

#[test]
fn both_directions_as_in_turn() -> Result<()> {
    let [all, together] = all_compared(20, both_directions)?;
    assert!(all >= 12 && together * 4 >= all * 3, "{together} of {all}");
    Ok(())
}

#[test]
fn a_stack_as_in_turn() -> Result<()> {
    let [all, together] = all_compared(16, stack)?;
    assert!(all >= 32 && together * 4 >= all * 3, "{together} of {all}");
    assert!(together < all, "all together");
    Ok(())
}

/// Steps without gradients leave none, in a stack that could run side by side too.
#[test]
fn nothing_but_a_burn_in() -> Result<()> {
    let size = Size {
        steps: 20,
        batch: 3,
    };
    for context in everywhere() {
        let way = (Strategy::Steps, StepForm::Blocks);
        let context = forced(&context, way, Levels::Together);
        let layer = Layer::new(&context, Lstm::new(4, 7).num_layers(2).spec(), 1)?;
        let sequence = layer.sequence(&Call::training(size).burn_in(20))?;
        fill_inputs(&sequence, 3)?;
        for (name, values) in results(&sequence)? {
            if name.starts_with('d') {
                assert!(values.iter().all(|v| *v == 0.0), "{name}");
            }
        }
    }
    Ok(())
}

/// How many dispatches run steps.
fn of_steps(spec: &LayerSpec, call: &Call, levels: Levels, strategy: Strategy) -> usize {
    let target = Target {
        force: Force {
            strategy: Some(strategy),
            levels: Some(levels),
            ..Force::default()
        },
        ..Target::default()
    };
    let plan = Sequence::plan(spec, call, &target).unwrap();
    let runs_steps = |step: &&Step| step.kernel.name.contains("ward");
    plan.steps().iter().filter(runs_steps).count()
}

#[test]
fn half_of_the_dispatches() {
    let size = Size {
        steps: 10,
        batch: 3,
    };
    for layers in [1, 2] {
        let specs = [
            Lstm::new(5, 40).spec(),
            Gru::new(5, 40).spec(),
            Lstm::new(5, 40).peepholes(true).spec(),
        ];
        for spec in specs {
            let spec = LayerSpec {
                bidirectional: true,
                num_layers: layers,
                ..spec
            };
            for (strategy, steps) in [(Strategy::Steps, 10), (Strategy::Sequence, 1)] {
                for (call, passes) in [(Call::inference(size), 1), (Call::training(size), 2)] {
                    let of = |levels| of_steps(&spec, &call, levels, strategy);
                    let expected = layers * passes * steps;
                    assert_eq!(of(Levels::Together), expected, "{spec:?} {strategy:?}");
                    assert_eq!(of(Levels::InTurn), 2 * expected);
                }
            }
            // Segments that share memory run in turn, each direction's in its own order.
            let cut = Call::training(size).recompute(4);
            let of = |levels| of_steps(&spec, &cut, levels, Strategy::Steps);
            assert_eq!(of(Levels::Together), of(Levels::InTurn));
        }
    }
}

/// T + (L − 1)·lag instead of L·T, or a dispatch for each part in which the same layers run.
#[test]
fn a_stack_on_a_diagonal() {
    for (layers, lag, spans) in [(2, 15, 6), (3, 13, 6)] {
        let spec = Gru::new(5, 200).num_layers(layers).spec();
        for (call, passes) in [(Call::inference(LONG), 1), (Call::training(LONG), 2)] {
            let of = |levels, strategy| of_steps(&spec, &call, levels, strategy);
            let steps = LONG.steps + (layers - 1) * lag;
            assert_eq!(of(Levels::Together, Strategy::Steps), passes * steps);
            assert_eq!(
                of(Levels::InTurn, Strategy::Steps),
                passes * layers * LONG.steps
            );
            assert_eq!(of(Levels::Together, Strategy::Sequence), passes * spans);
            assert_eq!(of(Levels::InTurn, Strategy::Sequence), passes * layers);
        }
    }
}

const LONG: Size = Size {
    steps: 100,
    batch: 3,
};

/// What is projected of a stack in inference, and put out by its lower layers, is kept for some steps alone.
#[test]
fn a_stack_takes_less_memory() {
    let spec = Lstm::new(5, 40).num_layers(2).spec();
    let found = |levels, part: &str| {
        let target = Target {
            force: Force {
                levels: Some(levels),
                ..Force::default()
            },
            ..Target::default()
        };
        let plan = Sequence::plan(&spec, &Call::inference(LONG), &target).unwrap();
        let found = plan.buffers().iter().filter(|b| b.name.starts_with(part));
        found.map(Buffer::len).sum::<usize>()
    };
    assert_eq!(found(Levels::InTurn, "gates"), 2 * 100 * 3 * 160);
    assert_eq!(found(Levels::Together, "gates"), 2 * 29 * 3 * 160);
    assert_eq!(found(Levels::Together, "y of layers"), (29 + 100) * 3 * 40);
}

#[test]
fn the_plan_says_so() {
    let text = |spec: &LayerSpec, call: &Call| {
        let plan = Sequence::plan(spec, call, &Target::default()).unwrap();
        plan.to_string()
    };
    let says = |spec: &LayerSpec, call: &Call, chosen: &str, why: &str| {
        let line = format!("     1 x levels                  {chosen:<16}{why}\n");
        let text = text(spec, call);
        assert!(text.contains(&line), "{line}{text}");
    };
    let both = LayerSpec {
        bidirectional: true,
        ..Rnn::new(5, 300).spec()
    };
    let call = Call::inference(LONG);
    let why = "half of the dispatches, each with twice the work";
    says(&both, &call, "together", why);
    let cut = Call::training(LONG).recompute(20);
    says(&both, &cut, "in-turn", "segments share memory");
    let stack = Rnn::new(5, 300).num_layers(2).spec();
    let why =
        "each layer behind the one below: fewer dispatches, each with more work; 15 steps behind";
    says(&stack, &call, "together", why);
    let why = "batch first, the rows of some steps are not neighbours";
    says(&stack, &call.batch_first(), "in-turn", why);
    let one = Rnn::new(5, 300).spec();
    assert!(!text(&one, &Call::inference(LONG)).contains("levels"));
}

/// Weights of one way are not those of another.
#[test]
fn weights_of_another_way_are_refused() -> Result<()> {
    let spec = LayerSpec {
        bidirectional: true,
        ..Lstm::new(3, 8).spec()
    };
    let context = Context::cpu();
    let way = (Strategy::Sequence, StepForm::Blocks);
    let in_turn = Layer::new(&forced(&context, way, Levels::InTurn), spec, 1)?;
    let call = Call::inference(Size { steps: 2, batch: 1 });
    let other = forced(&context, way, Levels::Together).target();
    let mut b = wgrnn::plan::Builder::on("other", other);
    let weights = wgrnn::plan::sequence::weights(&mut b, &spec);
    assert_eq!(weights.lanes, 2);
    let run = wgrnn::plan::sequence::Run::new(&spec, &call, &in_turn.context().target())?;
    let x = b.float("x", &[2, 3], wgrnn::plan::Role::Input);
    let y = b.float("y", &[2, 16], wgrnn::plan::Role::Output);
    let states = wgrnn::plan::sequence::states(&mut b, &run);
    let ends = wgrnn::plan::sequence::Ends {
        x: wgrnn::plan::Matrix::dense(x, 2, 3),
        y,
        clock: None,
    };
    let refused = wgrnn::plan::sequence::forward(&mut b, &run, ends, &weights, &states);
    let text = common::refusal(refused).to_string();
    assert!(text.contains("levels side by side"), "{text}");
    Ok(())
}
