//! Levels side by side, the two directions of a layer or the layers of a stack: the numbers of one after
//! another, in fewer dispatches.

mod common;

use common::config::{Config, Most, fill, seeds};
use common::results::{assert_close, assert_same, everywhere, fill_inputs, results};
use wgrnn::plan::sequence::{Levels, StepForm, Strategy};
use wgrnn::plan::{Buffer, Force, Step, Target};
use wgrnn::rng::Rng;
use wgrnn::{Call, Context, Gru, Layer, LayerSpec, Lstm, Order, Result, Rnn, Sequence, Size};

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

/// A layer whose levels can be side by side, and a call of it: every other one a stack.
fn draw(seed: u64) -> Option<Config> {
    let most = Most {
        steps: 26,
        batch: 9,
        hidden: 20,
    };
    let mut config = Config::draw(seed, most);
    config.spec.bidirectional = seed.is_multiple_of(2);
    config.call.burn_in = 0;
    if !config.spec.bidirectional {
        config.spec.num_layers = config.spec.num_layers.max(2);
    }
    // The others may run in turn over the weights of levels side by side.
    if seed % 4 < 2 {
        config.call = config.call.orders(Order::TimeFirst, Order::TimeFirst);
        config.call.recompute = None;
    }
    config.spec.cell.side_by_side.then_some(config)
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
    for (_, weight) in layer.weights() {
        fill(weight, &mut rng)?;
    }
    if let Some(clock) = sequence.dropout_clock() {
        clock.write_uint(&[5])?;
    }
    for (_, gradient) in sequence.gradients()? {
        fill(&gradient, &mut rng)?;
    }
    fill_inputs(&sequence, config.seed + 2)?;
    results(&sequence)
}

#[test]
fn side_by_side_as_in_turn() -> Result<()> {
    let mut compared = 0;
    let mut side_by_side = [0, 0];
    for config in seeds(40).filter_map(draw) {
        for context in everywhere() {
            for way in ways() {
                let both = forced(&context, way, Levels::Together);
                let kind = usize::from(config.spec.bidirectional);
                side_by_side[kind] += usize::from(together(&config, &both));
                let of = |levels| run(&config, &forced(&context, way, levels));
                let (together, in_turn) = (of(Levels::Together)?, of(Levels::InTurn)?);
                for (name, want) in &in_turn {
                    let what = format!("seed {} {way:?}: {name}", config.seed);
                    let got = &together[name];
                    // The steps are the same sums. In a tile, and in products over a lane or some of its rows,
                    // which may start at no multiple of 4 and be of another form, the order of the terms differs.
                    let exact = config.spec.bidirectional
                        && ["y", "hn", "cn"].contains(&name.as_str())
                        && way.1 != StepForm::Tile;
                    if exact {
                        assert_same(&context, &what, got, want);
                    } else if want.iter().all(|v| v.abs() < 1e3) {
                        assert_close(&context, &what, got, want, 80);
                    }
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 500, "{compared}");
    assert!(side_by_side.iter().all(|n| *n > 30), "{side_by_side:?}");
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
    for (layers, lag, spans) in [(2, 15, 9), (3, 13, 12)] {
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

/// What is projected of a stack in inference is kept for some steps alone.
#[test]
fn a_stack_takes_less_memory() {
    let spec = Lstm::new(5, 40).num_layers(2).spec();
    let gates = |levels| {
        let target = Target {
            force: Force {
                levels: Some(levels),
                ..Force::default()
            },
            ..Target::default()
        };
        let plan = Sequence::plan(&spec, &Call::inference(LONG), &target).unwrap();
        let of_gates = plan
            .buffers()
            .iter()
            .filter(|b| b.name.starts_with("gates"));
        of_gates.map(Buffer::len).sum::<usize>()
    };
    assert_eq!(gates(Levels::InTurn), 2 * 100 * 3 * 160);
    assert_eq!(gates(Levels::Together), 2 * 15 * 3 * 160);
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
