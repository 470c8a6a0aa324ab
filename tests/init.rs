//! Initial weights: what each scheme promises, where a forget bias lies, what a layer does with them, and
//! what is refused.

use wgrnn::init::{Init, Layout, Scheme};
use wgrnn::ndarray::Array3;
use wgrnn::rng::Rng;
use wgrnn::{Context, Error, Gru, Layer, Lstm, Nonlinearity, Result, Rnn};

const LSTM: Layout = Layout {
    gates: 4,
    hidden_size: 5,
    forget_gate: Some(1),
};
const RNN: Layout = Layout {
    gates: 1,
    hidden_size: 5,
    forget_gate: None,
};

/// Every weight of an LSTM layer with three inputs, two projected units and peepholes.
const LSTM_WEIGHTS: [(&str, &[usize]); 6] = [
    ("weight_ih_l0", &[20, 3]),
    ("weight_hh_l0", &[20, 2]),
    ("bias_ih_l0", &[20]),
    ("bias_hh_l0", &[20]),
    ("weight_hr_l0", &[2, 5]),
    ("weight_p_l0", &[3, 5]),
];

fn all_from(scheme: Scheme) -> Init {
    Init {
        input: scheme,
        recurrent: scheme,
        bias: scheme,
        peephole: scheme,
        forget_bias: None,
    }
}

fn lstm(init: &Init, seed: u64) -> Vec<Vec<f32>> {
    let mut rng = Rng::new(seed);
    LSTM_WEIGHTS
        .iter()
        .map(|(name, shape)| init.values(&LSTM, name, shape, &mut rng).unwrap())
        .collect()
}

/// `weight_ih` of one gate, so that the block is the matrix.
fn matrix(scheme: Scheme, rows: usize, columns: usize) -> Vec<f32> {
    let layout = Layout {
        hidden_size: rows,
        ..RNN
    };
    let shape = [rows, columns];
    all_from(scheme)
        .values(&layout, "weight_ih_l0", &shape, &mut Rng::new(3))
        .unwrap()
}

/// Mean and standard deviation.
fn moments(values: &[f32]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let square = |&v: &f32| (f64::from(v) - mean).powi(2);
    (mean, (values.iter().map(square).sum::<f64>() / n).sqrt())
}

#[test]
fn every_weight_of_every_init_is_drawn_and_repeatable() {
    for init in [
        Init::pytorch(),
        Init::xavier(),
        Init::orthogonal(),
        all_from(Scheme::Normal { std: 0.5 }),
    ] {
        let values = lstm(&init, 1);
        for (values, (name, shape)) in values.iter().zip(LSTM_WEIGHTS) {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
            assert!(values.iter().all(|v| v.is_finite()), "{name}");
        }
        assert_eq!(values, lstm(&init, 1));
        assert_ne!(values[..2], lstm(&init, 2)[..2]);
    }
    let reverse = Init::default().values(&LSTM, "bias_hh_l11_reverse", &[20], &mut Rng::new(1));
    assert_eq!(reverse.unwrap().len(), 20);
}

#[test]
fn pytorch_is_uniform_below_one_over_root_h() {
    let mut rng = Rng::new(9);
    let bound = 1.0 / 5_f32.sqrt();
    for (values, (_, shape)) in lstm(&Init::pytorch(), 9).iter().zip(LSTM_WEIGHTS) {
        assert_eq!(*values, rng.uniforms(shape.iter().product(), -bound, bound));
    }
}

/// With n = 40,000 draws the standard error of the mean is 0.005 deviations, and that of the deviation
/// at most 0.0036 of it; both are given four of them.
#[test]
fn bounds_and_moments() {
    let (rows, columns) = (100, 400);
    let xavier = (2.0_f64 / 500.0).sqrt();
    for (scheme, deviation, bound) in [
        (Scheme::XavierUniform, xavier, (6.0_f64 / 500.0).sqrt()),
        (Scheme::XavierNormal, xavier, f64::INFINITY),
        (Scheme::Uniform { bound: 0.3 }, 0.3 / 3_f64.sqrt(), 0.3),
        (Scheme::Normal { std: 0.2 }, 0.2, f64::INFINITY),
        (Scheme::PyTorch, 0.1 / 3_f64.sqrt(), 0.1),
    ] {
        let values = matrix(scheme, rows, columns);
        let (mean, found) = moments(&values);
        assert!(mean.abs() < 0.02 * deviation, "{scheme:?}: {mean}");
        assert!(
            (found / deviation - 1.0).abs() < 0.015,
            "{scheme:?}: {found}"
        );
        let largest = values.iter().fold(0_f32, |m, v| m.max(v.abs()));
        assert!(f64::from(largest) <= bound * (1.0 + 1e-6), "{scheme:?}");
        // That values come near the bound, on both sides.
        if bound.is_finite() {
            let near = |sign: f32| values.iter().any(|v| f64::from(sign * v) > 0.99 * bound);
            assert!(near(1.0) && near(-1.0), "{scheme:?}");
        }
    }
}

/// The block of a gate has the fans, not the whole weight.
#[test]
fn xavier_takes_the_fans_of_one_gate() {
    let layout = Layout {
        gates: 4,
        hidden_size: 100,
        forget_gate: Some(1),
    };
    let init = Init::xavier();
    let values = init.values(&layout, "weight_ih_l0", &[400, 50], &mut Rng::new(4));
    let largest = values.unwrap().iter().fold(0_f32, |m, v| m.max(v.abs()));
    let bound = (6.0_f32 / 150.0).sqrt();
    assert!(largest <= bound && largest > 0.99 * bound, "{largest}");
}

/// That the rows of a wide matrix, or the columns of a tall one, are orthonormal. Rounding Q to f32 moves a
/// product of two unit vectors by at most 2 * 6e-8.
fn assert_orthonormal(matrix: &[f32], rows: usize, columns: usize) {
    let (count, len) = (rows.min(columns), rows.max(columns));
    let at = |vector: usize, k: usize| {
        let (row, column) = if rows > columns {
            (k, vector)
        } else {
            (vector, k)
        };
        f64::from(matrix[row * columns + column])
    };
    for a in 0..count {
        for b in 0..count {
            let product: f64 = (0..len).map(|k| at(a, k) * at(b, k)).sum();
            let expected = if a == b { 1.0 } else { 0.0 };
            assert!(
                (product - expected).abs() < 1e-6,
                "{rows}x{columns} {a} {b} {product}"
            );
        }
    }
}

#[test]
fn orthogonal_blocks_have_orthonormal_columns_or_rows() {
    for (rows, columns) in [
        (1, 1),
        (2, 2),
        (33, 33),
        (13, 8),
        (8, 13),
        (64, 9),
        (9, 64),
        (1, 7),
        (7, 1),
        (128, 128),
    ] {
        let layout = Layout {
            gates: 3,
            hidden_size: rows,
            forget_gate: None,
        };
        let scheme = Scheme::Orthogonal { gain: 1.0 };
        let values = all_from(scheme)
            .values(
                &layout,
                "weight_hh_l0",
                &[3 * rows, columns],
                &mut Rng::new(5),
            )
            .unwrap();
        for block in values.chunks_exact(rows * columns) {
            assert_orthonormal(block, rows, columns);
        }
        // Each gate has its own.
        if rows > 1 {
            assert_ne!(
                values[..rows * columns],
                values[rows * columns..][..rows * columns]
            );
        }
    }
}

/// A uniform orthogonal matrix has as many positive as negative numbers on its diagonal; one that comes
/// from a decomposition with unmended signs has not.
#[test]
fn orthogonal_has_no_preferred_sign() {
    let values = matrix(Scheme::Orthogonal { gain: 1.0 }, 200, 200);
    let positive = values.iter().step_by(201).filter(|&&v| v > 0.0).count();
    // Four standard deviations of a fair coin.
    assert!((72..=128).contains(&positive), "{positive}");
}

#[test]
fn gain_scale_and_constant() {
    let one = matrix(Scheme::Orthogonal { gain: 1.0 }, 4, 4);
    let two = matrix(Scheme::Orthogonal { gain: 2.0 }, 4, 4);
    assert!(one.iter().zip(&two).all(|(a, b)| 2.0 * a == *b));
    assert_eq!(matrix(Scheme::Constant(0.5), 2, 3), [0.5; 6]);

    let init = Init {
        recurrent: Scheme::Identity { scale: 0.5 },
        ..Init::identity()
    };
    let values = |name, shape: &[usize]| init.values(&RNN, name, shape, &mut Rng::new(6)).unwrap();
    let recurrent = values("weight_hh_l0", &[5, 5]);
    for (k, value) in recurrent.iter().enumerate() {
        assert_eq!(*value, if k / 5 == k % 5 { 0.5 } else { 0.0 });
    }
    assert_eq!(values("bias_ih_l0", &[5]), [0.0; 5]);
    assert!(moments(&values("weight_ih_l0", &[5, 400])).1 < 0.0011);
}

#[test]
fn forget_biases_add_up() {
    for init in [
        Init::orthogonal(),
        Init::pytorch().forget_bias(1.0),
        Init::xavier().forget_bias(1.0),
    ] {
        let values = lstm(&init, 7);
        assert_eq!(values[2][5..10], [1.0; 5]);
        assert_eq!(values[3][5..10], [0.0; 5]);
        // The rest, and the other weights, are those without it.
        let without = lstm(
            &Init {
                forget_bias: None,
                ..init
            },
            7,
        );
        for (k, (a, b)) in values.iter().zip(&without).enumerate() {
            for (position, (a, b)) in a.iter().zip(b).enumerate() {
                let forget = (k == 2 || k == 3) && (5..10).contains(&position);
                assert!(forget || a == b, "{} {position}", LSTM_WEIGHTS[k].0);
            }
        }
    }
    // Without a forget gate there is nothing to set.
    let bias = Init::orthogonal().values(&RNN, "bias_ih_l0", &[5], &mut Rng::new(8));
    assert_eq!(bias.unwrap(), [0.0; 5]);
}

fn refused(init: Init, layout: Layout, name: &str, shape: &[usize]) -> String {
    let result: Result<_> = init.values(&layout, name, shape, &mut Rng::new(1));
    match result.expect_err("it was accepted") {
        Error::Value { arg, .. } | Error::Shape { arg, .. } => arg,
        other => panic!("{other}"),
    }
}

#[test]
fn numbers_that_mean_nothing() {
    let nan = f32::NAN;
    for (scheme, arg) in [
        (Scheme::Uniform { bound: -0.1 }, "bound"),
        (Scheme::Uniform { bound: nan }, "bound"),
        (Scheme::Uniform { bound: f32::MAX }, "bound"),
        (Scheme::Normal { std: -1.0 }, "std"),
        (Scheme::Normal { std: f32::INFINITY }, "std"),
        (Scheme::Constant(nan), "a constant"),
        (Scheme::Orthogonal { gain: nan }, "gain"),
        (Scheme::Identity { scale: nan }, "scale"),
    ] {
        assert_eq!(refused(all_from(scheme), RNN, "weight_hh_l0", &[5, 5]), arg);
    }
    let forget = Init::pytorch().forget_bias(nan);
    assert_eq!(refused(forget, LSTM, "bias_ih_l0", &[20]), "forget_bias");
}

#[test]
fn schemes_that_do_not_fit_the_weight() {
    let identity = all_from(Scheme::Identity { scale: 1.0 });
    for (layout, name, shape) in [
        (RNN, "weight_ih_l0", &[5, 5][..]),
        (RNN, "weight_hh_l0", &[5, 4]),
        (RNN, "weight_hr_l0", &[5, 5]),
        (RNN, "bias_ih_l0", &[5]),
        (LSTM, "weight_hh_l0", &[20, 5]),
    ] {
        let arg = refused(identity, layout, name, shape);
        assert_eq!(arg, format!("the scheme of {name}"));
    }
    for scheme in [
        Scheme::XavierUniform,
        Scheme::XavierNormal,
        Scheme::Orthogonal { gain: 1.0 },
    ] {
        let arg = refused(all_from(scheme), LSTM, "bias_ih_l0", &[20]);
        assert_eq!(arg, "the scheme of bias_ih_l0");
    }
}

#[test]
fn names_shapes_and_layouts_that_do_not_fit() {
    let init = Init::pytorch();
    for name in [
        "",
        "weight",
        "weight_ih",
        "weight_ih_l",
        "weight_ih_lx",
        "kernel_l0",
        "l0",
    ] {
        assert_eq!(refused(init, LSTM, name, &[20, 3]), "name", "{name}");
    }
    for (name, shape) in [
        ("weight_ih_l0", &[19, 3][..]),
        ("weight_ih_l0", &[20]),
        ("weight_hh_l0", &[20, 5, 1]),
        ("bias_ih_l0", &[]),
        ("bias_hh_l0", &[5]),
        ("weight_hr_l0", &[5, 4]),
        ("weight_p_l0", &[3, 4]),
        ("weight_p_l0", &[15]),
        ("weight_ih_l0", &[20, usize::MAX]),
    ] {
        assert_eq!(refused(init, LSTM, name, shape), name, "{shape:?}");
    }
    let layout = |gates, hidden_size, forget_gate| Layout {
        gates,
        hidden_size,
        forget_gate,
    };
    for (layout, arg) in [
        (layout(0, 5, None), "gates"),
        (layout(4, 0, None), "hidden_size"),
        (layout(4, 5, Some(4)), "forget_gate"),
    ] {
        assert_eq!(refused(init, layout, "bias_ih_l0", &[20]), arg);
    }
}

fn weight(layer: &Layer, name: &str) -> Vec<f32> {
    layer.weight(name).unwrap().read().unwrap()
}

/// A layer with all options that bring weights, and each weight as it was promised.
#[test]
fn a_layer_is_built_with_its_init() -> Result<()> {
    let (hidden, proj) = (6, 4);
    let lstm = Lstm::new(3, hidden)
        .num_layers(2)
        .bidirectional(true)
        .projection(proj)
        .peepholes(true)
        .init(Init::orthogonal())
        .seed(11);
    let layer = lstm.build(&Context::cpu())?;
    for level in ["l0", "l0_reverse", "l1", "l1_reverse"] {
        let of = |name: &str| weight(&layer, &format!("{name}_{level}"));
        for block in of("weight_hh").chunks_exact(hidden * proj) {
            assert_orthonormal(block, hidden, proj);
        }
        let sum: Vec<_> = of("bias_ih")
            .iter()
            .zip(of("bias_hh"))
            .map(|(a, b)| a + b)
            .collect();
        for (gate, bias) in sum.chunks_exact(hidden).enumerate() {
            let expected = if gate == 1 { 1.0 } else { 0.0 };
            assert_eq!(bias, [expected; 6], "gate {gate} of {level}");
        }
        assert_eq!(of("weight_p"), [0.0; 18]);
        let bound = (6.0 / (hidden + proj) as f32).sqrt();
        let hr = of("weight_hr");
        assert!(hr.iter().all(|v| v.abs() <= bound && *v != 0.0));
    }
    // Drawn anew it is the same, and with another seed another one.
    let built = layer.to_archive()?;
    layer.initialise_with(&Init::orthogonal(), 12)?;
    assert_ne!(layer.to_archive()?, built);
    layer.initialise_with(&Init::orthogonal(), 11)?;
    assert_eq!(layer.to_archive()?, built);
    Ok(())
}

/// The values that layers have had from the start: one stream of numbers through all weights.
#[test]
fn by_default_a_layer_begins_as_pytorch() -> Result<()> {
    let lstm = Lstm::new(3, 5).num_layers(2).projection(2).peepholes(true);
    let cpu = Context::cpu();
    for layer in [
        lstm.seed(13).build(&cpu)?,
        Layer::new(&cpu, lstm.spec(), 13)?,
    ] {
        let mut rng = Rng::new(13);
        let bound = 1.0 / 5_f32.sqrt();
        assert_eq!(layer.weights().len(), 12);
        for (name, tensor) in layer.weights() {
            let expected = rng.uniforms(tensor.len(), -bound, bound);
            assert_eq!(tensor.read()?, expected, "{name}");
        }
    }
    Ok(())
}

/// A first and a new draw are packed for the kernels, as weights that are loaded are.
#[test]
fn a_layer_computes_with_its_new_weights() -> Result<()> {
    let cpu = Context::cpu();
    let gru = Gru::new(2, 3).bidirectional(true);
    let x = Array3::<f32>::ones((4, 1, 2));
    let built = gru.init(Init::xavier()).seed(1).build(&cpu)?;
    let [drawn, loaded] = [gru.build(&cpu)?, gru.build(&cpu)?];
    let before = drawn.forward(x.view(), None)?;
    drawn.initialise_with(&Init::xavier(), 1)?;
    loaded.load(&drawn.to_archive()?)?;
    let expected = loaded.forward(x.view(), None)?;
    assert_ne!(expected, before);
    assert_eq!(drawn.forward(x.view(), None)?, expected);
    assert_eq!(built.forward(x.view(), None)?, expected);
    Ok(())
}

#[test]
fn inits_that_contradict_the_layer() -> Result<()> {
    let cpu = Context::cpu();
    let refused = |built: Result<Layer>| match built.expect_err("it was accepted") {
        Error::Value { arg, expected, .. } => [arg, expected],
        other => panic!("{other}"),
    };
    let forget = Init::pytorch().forget_bias(1.0);
    let lstm = Lstm::new(3, 5);
    let nobias = refused(lstm.bias(false).init(forget).build(&cpu));
    assert_eq!(nobias, ["forget_bias", "none in a layer without biases"]);
    let [arg, expected] = refused(lstm.coupled(true).init(forget).build(&cpu));
    assert_eq!(arg, "forget_bias");
    assert!(expected.contains("coupled"), "{expected}");
    let none = Init {
        forget_bias: None,
        ..forget
    };
    lstm.bias(false).coupled(true).init(none).build(&cpu)?;

    // Without a forget gate it has no meaning, with and without biases.
    Gru::new(3, 5).init(Init::orthogonal()).build(&cpu)?;
    Gru::new(3, 5).bias(false).init(forget).build(&cpu)?;

    let identity = Init::identity();
    for built in [
        lstm.init(identity).build(&cpu),
        Gru::new(3, 5).init(identity).build(&cpu),
    ] {
        assert_eq!(refused(built)[0], "the scheme of weight_hh_l0");
    }
    let relu = Rnn::new(3, 5)
        .nonlinearity(Nonlinearity::Relu)
        .num_layers(2);
    let irnn = relu.init(identity).build(&cpu)?;
    for (k, value) in weight(&irnn, "weight_hh_l1").iter().enumerate() {
        assert_eq!(*value, if k / 5 == k % 5 { 1.0 } else { 0.0 });
    }

    // Nothing is changed by a refusal, although weight_ih was drawn before weight_hh was refused.
    let layer = lstm.build(&cpu)?;
    let before = layer.to_archive()?;
    assert!(layer.initialise_with(&identity, 1).is_err());
    assert_eq!(layer.to_archive()?, before);
    Ok(())
}
