//! The two directions of a layer side by side: the numbers of one after the other, in half of the
//! dispatches.

mod common;

use common::config::{Config, Most, fill, seeds};
use common::results::{assert_close, assert_same, everywhere, fill_inputs, results};
use wgrnn::plan::sequence::{Directions, StepForm, Strategy};
use wgrnn::plan::{Force, Step, Target};
use wgrnn::rng::Rng;
use wgrnn::{Call, Context, Gru, Layer, LayerSpec, Lstm, Result, Rnn, Sequence, Size};

fn forced(context: &Context, way: (Strategy, StepForm), directions: Directions) -> Context {
    // Some sequences are cut.
    context.dispatching(4).forcing(Force {
        strategy: Some(way.0),
        step: Some(way.1),
        directions: Some(directions),
        ..Force::default()
    })
}

/// Every way of running steps that reads packed weights.
fn ways() -> Vec<(Strategy, StepForm)> {
    let steps = [StepForm::Blocks, StepForm::Few, StepForm::Tile].map(|f| (Strategy::Steps, f));
    [vec![(Strategy::Sequence, StepForm::Blocks)], steps.to_vec()].concat()
}

/// A layer with two directions in which they can be side by side, and a call of it.
fn draw(seed: u64) -> Option<Config> {
    let most = Most {
        steps: 7,
        batch: 9,
        hidden: 20,
    };
    let mut config = Config::draw(seed, most);
    config.spec.bidirectional = true;
    config.call.burn_in = 0;
    let cell = config.spec.cell;
    let one_kernel = cell.forward.len() == 1 && cell.backward.len() == 1;
    (one_kernel && cell.forms.iter().all(Option::is_some)).then_some(config)
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
    for config in seeds(30).filter_map(draw) {
        for context in everywhere() {
            for way in ways() {
                let of = |directions| run(&config, &forced(&context, way, directions));
                let (together, in_turn) = (of(Directions::Together)?, of(Directions::InTurn)?);
                for (name, want) in &in_turn {
                    let what = format!("seed {} {way:?}: {name}", config.seed);
                    let got = &together[name];
                    // The steps are the same sums; in a tile, and in products over a lane, whose place may
                    // be no multiple of 4, the order of the terms may differ.
                    let exact = ["y", "hn", "cn"].contains(&name.as_str());
                    if exact && way.1 != StepForm::Tile {
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
    Ok(())
}

/// How many dispatches run steps.
fn of_steps(spec: &LayerSpec, call: &Call, directions: Directions, strategy: Strategy) -> usize {
    let target = Target {
        force: Force {
            strategy: Some(strategy),
            directions: Some(directions),
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
                    let of = |directions| of_steps(&spec, &call, directions, strategy);
                    let expected = layers * passes * steps;
                    assert_eq!(of(Directions::Together), expected, "{spec:?} {strategy:?}");
                    assert_eq!(of(Directions::InTurn), 2 * expected);
                }
            }
            // Segments that share memory run in turn, each direction's in its own order.
            let cut = Call::training(size).recompute(4);
            let of = |directions| of_steps(&spec, &cut, directions, Strategy::Steps);
            assert_eq!(of(Directions::Together), of(Directions::InTurn));
        }
    }
}

#[test]
fn the_plan_says_so() {
    let size = Size { steps: 3, batch: 2 };
    let spec = LayerSpec {
        bidirectional: true,
        ..Rnn::new(5, 300).spec()
    };
    let text = |spec: &LayerSpec| {
        let plan = Sequence::plan(spec, &Call::inference(size), &Target::default()).unwrap();
        plan.to_string()
    };
    let line = "1 x directions              together        half of the dispatches, each with twice the work";
    assert!(text(&spec).contains(line), "{}", text(&spec));
    let one = LayerSpec {
        bidirectional: false,
        ..spec
    };
    assert!(!text(&one).contains("directions"));
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
    let in_turn = Layer::new(&forced(&context, way, Directions::InTurn), spec, 1)?;
    let call = Call::inference(Size { steps: 2, batch: 1 });
    let other = forced(&context, way, Directions::Together).target();
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
