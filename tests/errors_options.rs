//! What options refuse: which argument, what it must be, and what came.

mod common;

use common::refusal;
use common::results::everywhere;
use wgrnn::kernel::Element;
use wgrnn::ndarray::{Array1, Array2, Array3};
use wgrnn::plan::Target;
use wgrnn::rng::Rng;
use wgrnn::{
    Activation, Call, Context, Error, Function, Gru, LayerSpec, Lstm, Mode, Packing, Result, Rnn,
    Sequence, Size, State, Tensor, cell,
};

const SIZE: Size = Size { steps: 4, batch: 3 };

/// A refused value: its argument, a part of what it must be, and what came.
#[track_caller]
fn value<T>(result: Result<T>, arg: &str, must_be: &str, came: &str) {
    match refusal(result) {
        Error::Value {
            arg: a,
            expected,
            got,
            ..
        } => {
            assert_eq!((a.as_str(), got.as_str()), (arg, came));
            assert!(expected.contains(must_be), "{expected}");
        }
        other => panic!("{other:?}"),
    }
}

/// A refused shape, likewise.
#[track_caller]
fn shape<T>(result: Result<T>, arg: &str, must_be: &str, came: &str) {
    match refusal(result) {
        Error::Shape {
            arg: a,
            expected,
            got,
            ..
        } => assert_eq!((&*a, &*expected, &*got), (arg, must_be, came)),
        other => panic!("{other:?}"),
    }
}

/// What is not there, and for what.
#[track_caller]
fn unsupported<T>(result: Result<T>, of: &str, parts: &[&str]) {
    match refusal(result) {
        Error::Unsupported { op, needs } => {
            assert_eq!(op, of);
            for part in parts {
                assert!(needs.contains(part), "{needs}");
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn options_of_a_layer() {
    let cpu = &Context::cpu();
    let lstm = Lstm::new(3, 4);
    value(
        lstm.projection(5).build(cpu),
        "proj_size",
        "from 1 to hidden_size 4",
        "5",
    );
    let gru = LayerSpec::new(&cell::GRU, 3, 4);
    let projected = LayerSpec {
        proj_size: 2,
        ..gru
    };
    unsupported(projected.check(), "gru", &["proj_size 2", "lstm_projected"]);
    let two = lstm.num_layers(2);
    for (p, text) in [
        (-0.1, "-0.1"),
        (1.0, "1"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
    ] {
        value(two.dropout(p).build(cpu), "dropout", "in [0, 1)", text);
    }
    value(
        lstm.dropout(0.5).build(cpu),
        "dropout",
        "single layer",
        "0.5",
    );
    let bad = [
        (0.0, "0"),
        (-1.0, "-1"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ];
    for (bound, text) in bad {
        value(
            lstm.clip(bound).build(cpu),
            "clip",
            "above 0 and finite",
            text,
        );
        value(
            Gru::new(3, 4).clip(bound).build(cpu),
            "clip",
            "above 0",
            text,
        );
        value(
            lstm.cell_clip(bound).build(cpu),
            "cell_clip",
            "above 0 and finite",
            text,
        );
    }
    for cell in [
        &cell::GRU,
        &cell::GRU_BEFORE,
        &cell::RNN_TANH,
        &cell::RNN_RELU,
    ] {
        let spec = LayerSpec::new(cell, 3, 4);
        let clipped = LayerSpec {
            cell_clip: Some(1.0),
            ..spec
        };
        unsupported(clipped.check(), cell.name, &["cell_clip"]);
        let coupled = LayerSpec {
            coupled: true,
            ..spec
        };
        unsupported(coupled.check(), cell.name, &["coupled"]);
    }
    let elu = Activation::new(Function::Elu);
    for number in [f64::NAN, f64::INFINITY, 1e300] {
        let text = number.to_string();
        let rnn = Rnn::new(3, 4);
        value(
            rnn.activation(elu.alpha(number)).build(cpu),
            "alpha of elu",
            "finite",
            &text,
        );
        value(
            rnn.activation(elu.beta(number)).build(cpu),
            "beta of elu",
            "finite",
            &text,
        );
    }
    value(
        lstm.num_layers(0).build(cpu),
        "num_layers",
        "at least 1",
        "0",
    );
}

#[test]
fn options_of_a_call() -> Result<()> {
    let cpu = Context::cpu();
    let layer = Gru::new(3, 4).build(&cpu)?;
    let training = || Call::training(SIZE);
    let refused = |call: Call| layer.sequence(&call);
    value(
        refused(training().burn_in(5)),
        "burn_in",
        "at most the 4 steps",
        "5",
    );
    value(
        refused(training().recompute(0)),
        "recompute",
        "at least 1",
        "0",
    );
    let both = Gru::new(3, 4).bidirectional(true).build(&cpu)?;
    let burn_in = both.sequence(&training().burn_in(1));
    value(
        burn_in,
        "burn_in",
        "0 where a direction runs from the end",
        "1",
    );
    // Said of a plan alone as well.
    let plan = Sequence::plan(both.spec(), &training().burn_in(1), &Target::default());
    value(plan, "burn_in", "0 where", "1");

    let inference = || Call::inference(SIZE);
    let without = "left out in inference";
    value(refused(inference().burn_in(2)), "burn_in", without, "2");
    value(refused(inference().recompute(3)), "recompute", without, "3");
    value(
        refused(inference().accumulate()),
        "accumulate",
        without,
        "true",
    );
    Ok(())
}

#[test]
fn packed_sequences() -> Result<()> {
    let layer = Gru::new(3, 4).build(&Context::cpu())?;
    let packed = |sizes: &[usize]| Call::packed(sizes, Mode::Training);
    let refused = |call: Call| layer.sequence(&call);
    value(
        refused(packed(&[])),
        "batch_sizes",
        "at least one step",
        "none",
    );
    value(
        refused(packed(&[2, 0])),
        "batch_sizes",
        "at least 1",
        "0 in step 1",
    );
    value(
        refused(packed(&[2, 1, 2])),
        "batch_sizes",
        "falling or equal",
        "2 after 1 in step 2",
    );
    value(
        refused(packed(&[2, 1]).lengths()),
        "lengths",
        "left out for packed",
        "true",
    );
    let batch_first = refused(packed(&[2, 1]).batch_first());
    value(batch_first, "orders", "TimeFirst", "BatchFirst, BatchFirst");
    value(
        refused(packed(&[2, 1]).burn_in(3)),
        "burn_in",
        "at most the 2 steps",
        "3",
    );

    value(
        Packing::new(&[]),
        "lengths",
        "at least one sequence",
        "none",
    );
    value(Packing::new(&[2, 0, 1]), "lengths[1]", "at least 1", "0");
    let packing = Packing::new(&[1, 3])?;
    let short = packing.pack(Array3::zeros((2, 2, 5)).view());
    value(short, "padded", "[3 or more, 2, F]", "[2, 2, 5]");
    let rows = packing.unpack(Array2::zeros((3, 5)).view());
    shape(rows, "packed", "[4, 5]", "[3, 5]");
    Ok(())
}

#[test]
fn lengths_and_resets() -> Result<()> {
    let layer = Gru::new(3, 4).build(&Context::cpu())?;
    let sequence = layer.sequence(&Call::inference(SIZE).lengths().resets().batch_first())?;
    let lengths = |lengths: &[i64]| sequence.set_lengths(lengths);
    value(lengths(&[4, 5, 1]), "lengths[1]", "from 0 to 4", "5");
    value(lengths(&[4, 1, -1]), "lengths[2]", "from 0 to 4", "-1");
    value(
        lengths(&[i64::MAX, 1, 1]),
        "lengths[0]",
        "from 0 to 4",
        &i64::MAX.to_string(),
    );
    value(
        lengths(&[1, 1 + (1 << 32), 1]),
        "lengths[1]",
        "from 0 to 4",
        "4294967297",
    );
    shape(lengths(&[4, 1]), "lengths", "[3]", "[2]");
    let resets =
        |rows, columns| sequence.set_resets(Array2::from_elem((rows, columns), true).view());
    shape(resets(4, 3), "resets", "[3, 4]", "[4, 3]");
    let flat = sequence.set_resets(Array1::from_elem(12, true).view());
    shape(flat, "resets", "[3, 4]", "[12]");
    // What was refused changed nothing.
    lengths(&[4, 0, 2])?;
    resets(3, 4)?;
    let _ = (lengths(&[1, 1, 9]), resets(4, 3));
    assert_eq!(sequence.program().named("lengths")?.read_uint()?, [4, 0, 2]);
    assert_eq!(sequence.program().named("resets")?.read_uint()?, [1; 12]);

    let plain = layer.inference(SIZE)?;
    let set = plain.set_lengths(&[1, 1, 1]);
    unsupported(
        set,
        "Sequence::set_lengths",
        &["planned without", "Call::lengths"],
    );
    let set = plain.set_resets(Array2::from_elem((4, 3), true).view());
    unsupported(
        set,
        "Sequence::set_resets",
        &["planned without", "Call::resets"],
    );
    let packed = layer.sequence(&Call::packed(&[2, 1], Mode::Inference).resets())?;
    let padded = packed.set_resets(Array2::from_elem((2, 2), true).view());
    shape(padded, "resets", "[3]", "[2, 2]");
    Ok(())
}

#[test]
fn streams() -> Result<()> {
    for context in everywhere() {
        let both = Lstm::new(3, 4).bidirectional(true).build(&context)?;
        unsupported(both.streams(2), "streams", &["from the end"]);
        let layer = Lstm::new(3, 4).num_layers(2).build(&context)?;
        value(layer.streams(0), "count", "at least 1", "0");
        assert!(matches!(
            refusal(layer.streams(usize::MAX)),
            Error::Value { .. } | Error::Limit { .. }
        ));

        let [streams, twin] = [layer.streams(3)?, layer.streams(3)?];
        let mut rng = Rng::new(1);
        let mut x = |rows, columns| {
            Array2::from_shape_simple_fn((rows, columns), || rng.uniform(-1.0, 1.0))
        };
        let first = x(2, 3);
        for s in [&streams, &twin] {
            s.step(&[2, 0], first.view())?;
        }
        value(
            streams.step(&[0, 3], first.view()),
            "streams[1]",
            "below the 3 streams",
            "3",
        );
        value(
            streams.step(&[1, 1], first.view()),
            "streams[1]",
            "another stream",
            "1",
        );
        value(
            streams.advance(&[0, 1, 2, 0]),
            "streams[3]",
            "another stream",
            "0",
        );
        shape(
            streams.step(&[0, 1], x(2, 4).view()),
            "x",
            "[2, 3]",
            "[2, 4]",
        );
        shape(
            streams.step(&[0, 1], x(3, 3).view()),
            "x",
            "[2, 3]",
            "[3, 3]",
        );
        let state = |layers, n, h, c: Option<usize>| State {
            h: Array3::ones((layers, n, h)),
            c: c.map(|c| Array3::ones((layers, n, c))),
        };
        let set = |stream, state: State| streams.set_state(stream, &state);
        shape(
            set(0, state(1, 1, 4, Some(4))),
            "h",
            "[2, 1, 4]",
            "[1, 1, 4]",
        );
        shape(
            set(0, state(2, 2, 4, Some(4))),
            "h",
            "[2, 1, 4]",
            "[2, 2, 4]",
        );
        shape(
            set(0, state(2, 1, 4, Some(5))),
            "c",
            "[2, 1, 4]",
            "[2, 1, 5]",
        );
        value(set(0, state(2, 1, 4, None)), "state", "c", "no c");
        value(
            set(3, state(2, 1, 4, Some(4))),
            "stream",
            "below the 3 streams",
            "3",
        );
        value(streams.state(3), "stream", "below the 3 streams", "3");
        value(
            streams.reset(usize::MAX),
            "stream",
            "below the 3",
            &usize::MAX.to_string(),
        );

        // Nothing of that changed anything.
        let next = x(3, 3);
        let [got, want] = [&streams, &twin].map(|s| s.step(&[0, 1, 2], next.view()));
        assert_eq!(got?, want?);
        for n in 0..3 {
            assert_eq!(streams.state(n)?, twin.state(n)?);
        }
        let gru = Gru::new(3, 4).build(&context)?.streams(1)?;
        value(
            gru.set_state(0, &state(1, 1, 4, Some(4))),
            "state",
            "no c",
            "c",
        );
    }
    Ok(())
}

#[test]
fn weights_of_another_layer() -> Result<()> {
    let cpu = Context::cpu();
    let layer = Gru::new(3, 4).build(&cpu)?;
    let other = Gru::new(5, 4).build(&cpu)?;
    for (name, weight) in other.weights() {
        let set = layer.set_weight(name, &weight.read()?);
        match name.as_str() {
            "weight_ih_l0" => shape(set, "number of values", "36", "60"),
            _ => set?,
        }
    }
    let lstm = Lstm::new(3, 4).num_layers(2).build(&cpu)?;
    let names = r#"["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]"#;
    value(
        layer.set_weight("weight_ih_l1", &[0.0; 64]),
        "name",
        names,
        "weight_ih_l1",
    );
    shape(
        layer.set_weight("bias_hh_l0", &lstm.weight("bias_hh_l0")?.read()?),
        "number of values",
        "12",
        "16",
    );
    Ok(())
}

#[test]
fn gradients_in_tensors_that_do_not_fit() -> Result<()> {
    let (context, other) = (Context::cpu(), Context::cpu_f64());
    let layer = Gru::new(3, 4).build(&context)?;
    let call = Call::training(SIZE);
    let into = |call: &Call, name: &str, context: &Context, shape: &[usize]| {
        let tensor = Tensor::zeros(context, shape, Element::Float)?;
        layer.sequence_into(call, &[(name.to_owned(), tensor)])
    };
    const NAME: &str = "weight_ih_l0";
    into(&call, NAME, &context, &[12, 3])?;
    value(
        into(&call, "weight_ih_l1", &context, &[12, 3]),
        "gradients",
        NAME,
        "weight_ih_l1",
    );
    shape(
        into(&call, NAME, &context, &[3, 12]),
        "dweight_ih_l0",
        "([12, 3], Float)",
        "([3, 12], Float)",
    );
    let elsewhere = into(&call, NAME, &other, &[12, 3]);
    value(elsewhere, "dweight_ih_l0", "", "CPU f64");
    let inference = into(&Call::inference(SIZE), NAME, &context, &[12, 3]);
    value(inference, "gradients", "none in inference", "1");
    // One name twice, and one tensor for two.
    let zeros = |shape: &[usize]| Tensor::zeros(&context, shape, Element::Float);
    let named = |name: &str, tensor: &Tensor| (name.to_owned(), tensor.clone());
    let weight = zeros(&[12, 3])?;
    let twice = layer.sequence_into(
        &call,
        &[named(NAME, &weight), named(NAME, &zeros(&[12, 3])?)],
    );
    value(twice, "gradients", "each name once", NAME);
    let bias = zeros(&[12])?;
    let both = [named("bias_ih_l0", &bias), named("bias_hh_l0", &bias)];
    value(
        layer.sequence_into(&call, &both),
        "gradients",
        "apart",
        "bias_hh_l0",
    );
    // A weight is not the place of its gradient.
    let itself = layer.weight(NAME)?;
    value(
        layer.sequence_into(&call, &[named(NAME, itself)]),
        "gradients",
        "apart",
        NAME,
    );
    Ok(())
}
