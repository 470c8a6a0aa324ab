//! Imported weights against the systems they come from: a layer must give with them what ONNX Runtime
//! and Keras computed (`tests/data/import`), on every device.

mod common;

use std::path::Path;

use wgrnn::cell;
use wgrnn::interop::case;
use wgrnn::interop::safetensors::{self, Archive, Array};
use wgrnn::interop::weights::{Weights, keras, onnx};
use wgrnn::ndarray::Array3;
use wgrnn::{Context, Layer, LayerSpec};

/// Both systems and most devices compute in `f32`, unit roundoff u = 6e-8. A pre-activation sums at most 15
/// terms below 1, whose roundings scatter to about 15 u = 9e-7; approximations of tanh and the sigmoid add a
/// few u. Slopes of at most 1 and gates below 1 keep what five steps and two layers make of it near that:
/// the largest difference seen in double precision is 4e-7. A wrong order of gates shows as 1e-2 or more.
const TOLERANCE: f32 = 1e-5;

#[test]
fn onnx_weights_compute_what_onnx_runtime_computes() {
    let compared = compare_all("onnx", |case, spec, layer| {
        let array = |name: &str| case.tensors.get(&format!("{name}.{layer}")).cloned();
        let arrays = onnx::Arrays {
            w: array("W").unwrap(),
            r: array("R").unwrap(),
            b: array("B"),
            p: array("P"),
        };
        let weights = onnx::import(spec, layer, &arrays).unwrap();
        let back = onnx::export(spec, layer, &weights).unwrap();
        assert_eq!(back, arrays);
        weights
    });
    assert_eq!(compared, 10);
}

#[test]
fn keras_weights_compute_what_keras_computes() {
    let compared = compare_all("keras", |case, spec, layer| {
        let direction = |d: usize| {
            let array = |name: &str| case.tensors.get(&format!("{name}.{layer}.{d}")).cloned();
            keras::Arrays {
                kernel: array("kernel").unwrap(),
                recurrent_kernel: array("recurrent_kernel").unwrap(),
                bias: array("bias"),
            }
        };
        let arrays: Vec<_> = (0..spec.directions()).map(direction).collect();
        let weights = keras::import(spec, layer, &arrays).unwrap();
        let back = keras::export(spec, layer, &weights).unwrap();
        assert_eq!(back, arrays);
        weights
    });
    assert_eq!(compared, 9);
}

/// Runs every case of one system on every device and says how many cases there were.
fn compare_all(system: &str, import: impl Fn(&Archive, &LayerSpec, usize) -> Weights) -> usize {
    let mut contexts = vec![Context::cpu(), Context::cpu_f64()];
    contexts.extend(common::kept());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/import");
    let mut compared = 0;
    for path in case::paths(&[folder]).unwrap() {
        let case = safetensors::load(&path).unwrap();
        if case.metadata["system"] != system {
            continue;
        }
        let spec = spec_of(&case);
        let mut weights = Weights::new();
        for layer in 0..spec.num_layers {
            weights.extend(import(&case, &spec, layer));
        }
        let archive = Archive::from(weights);
        let (x, expected) = (cube(&case.tensors["x"]), cube(&case.tensors["y"]));
        for context in &contexts {
            let layer = Layer::new(context, spec, 0).unwrap();
            layer.load(&archive).unwrap();
            let y = layer.forward(x.view(), None).unwrap().y;
            assert_eq!(y.dim(), expected.dim());
            let close = (&y - &expected).iter().all(|d| d.abs() <= TOLERANCE);
            let (path, name) = (path.display(), context.name());
            assert!(close, "{path} on {name}: {y} instead of {expected}");
        }
        compared += 1;
    }
    compared
}

fn spec_of(case: &Archive) -> LayerSpec {
    let number = |key: &str| case.metadata[key].parse().unwrap();
    let flag = |key: &str| case.metadata[key].parse().unwrap();
    let cell = match (case.metadata["cell"].as_str(), flag("peephole")) {
        ("rnn", false) => &cell::RNN_TANH,
        ("lstm", false) => &cell::LSTM,
        ("lstm", true) => &cell::LSTM_PEEPHOLE,
        ("gru", false) if flag("reset_after") => &cell::GRU,
        ("gru", false) => &cell::GRU_BEFORE,
        other => panic!("{other:?}"),
    };
    LayerSpec {
        num_layers: number("layers"),
        bidirectional: flag("bidirectional"),
        bias: flag("bias"),
        ..LayerSpec::new(cell, number("input_size"), number("hidden_size"))
    }
}

fn cube(array: &Array) -> Array3<f32> {
    let [t, n, size] = array.shape[..] else {
        panic!("{:?}", array.shape);
    };
    Array3::from_shape_vec((t, n, size), array.as_f32().unwrap().to_vec()).unwrap()
}
