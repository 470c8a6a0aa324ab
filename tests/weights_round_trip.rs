//! Weights there and back again through every layout, where the values lie, and what is refused.

use wgrnn::cell::{self, Cell};
use wgrnn::interop::safetensors::{Array, Data};
use wgrnn::interop::weights::{Weights, cudnn, keras, onnx};
use wgrnn::rng::Rng;
use wgrnn::{Error, LayerSpec, Result};

const ONNX: &[&Cell] = &[
    &cell::LSTM,
    &cell::LSTM_PEEPHOLE,
    &cell::GRU,
    &cell::GRU_BEFORE,
    &cell::RNN_TANH,
    &cell::RNN_RELU,
];
const KERAS: &[&Cell] = &[
    &cell::LSTM,
    &cell::GRU,
    &cell::GRU_BEFORE,
    &cell::RNN_TANH,
    &cell::RNN_RELU,
];
const CUDNN: &[&Cell] = &[
    &cell::LSTM,
    &cell::LSTM_PROJECTED,
    &cell::GRU,
    &cell::RNN_TANH,
    &cell::RNN_RELU,
];

/// Every cell with every combination of the options that decide which weights there are.
fn specs(cells: &[&'static Cell]) -> Vec<LayerSpec> {
    let options = |cell: &&'static Cell| {
        let cell = *cell;
        (0..8).map(move |options| {
            let on = |bit: u32| options >> bit & 1 == 1;
            LayerSpec {
                num_layers: if on(0) { 3 } else { 1 },
                bidirectional: on(1),
                bias: on(2),
                ..LayerSpec::new(cell, 3, 5)
            }
        })
    };
    cells.iter().flat_map(options).collect()
}

fn random(spec: &LayerSpec, seed: u64) -> Weights {
    let mut rng = Rng::new(seed);
    let names = spec.weight_shapes();
    names
        .into_iter()
        .map(|(name, shape)| {
            let data = Data::F32(rng.uniforms(shape.iter().product(), -1.0, 1.0));
            (name, Array { shape, data })
        })
        .collect()
}

fn zeros(shape: &[usize]) -> Array {
    Array {
        shape: shape.to_vec(),
        data: Data::F32(vec![0.0; shape.iter().product()]),
    }
}

/// Imports every layer.
fn each_layer(spec: &LayerSpec, through: impl Fn(usize) -> Result<Weights>) -> Weights {
    (0..spec.num_layers)
        .flat_map(|k| through(k).unwrap())
        .collect()
}

#[test]
fn pytorch_names_in_order() {
    let spec = LayerSpec {
        num_layers: 2,
        bidirectional: true,
        ..LayerSpec::new(&cell::LSTM_PEEPHOLE_PROJECTED, 7, 5)
    };
    let names = spec.weight_shapes();
    let lines: Vec<_> = names.iter().map(|(n, s)| format!("{n} {s:?}")).collect();
    assert_eq!(lines.len(), 24);
    assert_eq!(
        lines[..7],
        [
            "weight_ih_l0 [20, 7]",
            "weight_hh_l0 [20, 3]",
            "bias_ih_l0 [20]",
            "bias_hh_l0 [20]",
            "weight_hr_l0 [3, 5]",
            "weight_p_l0 [3, 5]",
            "weight_ih_l0_reverse [20, 7]",
        ]
    );
    assert_eq!(lines[12], "weight_ih_l1 [20, 6]");
    assert_eq!(lines[23], "weight_p_l1_reverse [3, 5]");
}

#[test]
fn through_onnx() {
    for spec in &specs(ONNX) {
        let weights = random(spec, 1);
        let back = each_layer(spec, |k| {
            onnx::import(spec, k, &onnx::export(spec, k, &weights)?)
        });
        assert_eq!(back, weights, "{spec:?}");
    }
}

#[test]
fn through_keras() {
    for spec in &specs(KERAS) {
        let mut weights = random(spec, 2);
        let back = each_layer(spec, |k| {
            keras::import(spec, k, &keras::export(spec, k, &weights)?)
        });
        if spec.cell.name != "gru" {
            join_biases(&mut weights);
        }
        assert_eq!(back, weights, "{spec:?}");
    }
}

/// What one bias keeps of two.
fn join_biases(weights: &mut Weights) {
    let names: Vec<_> = weights
        .keys()
        .filter(|n| n.starts_with("bias_hh"))
        .cloned()
        .collect();
    for hh in names {
        let ih = hh.replace("bias_hh", "bias_ih");
        let second = weights
            .insert(hh.clone(), zeros(&weights[&hh].shape))
            .unwrap();
        let (a, b) = (values(&weights[&ih]), values(&second));
        let sum = a.iter().zip(b).map(|(a, b)| a + b).collect();
        weights.get_mut(&ih).unwrap().data = Data::F32(sum);
    }
}

fn values(array: &Array) -> &[f32] {
    array.as_f32().unwrap()
}

#[test]
fn through_cudnn() {
    for spec in &specs(CUDNN) {
        let weights = random(spec, 3);
        let buffer = cudnn::export(spec, &weights).unwrap();
        assert_eq!(cudnn::import(spec, &buffer).unwrap(), weights, "{spec:?}");
    }
}

/// A buffer put together by hand: number of the array * 100 + position in it.
#[test]
fn where_cudnn_has_the_arrays() {
    let spec = LayerSpec {
        bidirectional: true,
        num_layers: 2,
        ..LayerSpec::new(&cell::LSTM_PROJECTED, 3, 2)
    };
    // Pseudo-layers: l0, l0_reverse, l1, l1_reverse; G*H = 8, P = 1, D*P = 2.
    let lengths = [
        [24, 8, 2, 24, 8, 2, 16, 8, 2, 16, 8, 2].as_slice(),
        [8; 8].as_slice(),
    ]
    .concat();
    let mut buffer = Vec::new();
    for (k, &len) in lengths.iter().enumerate() {
        buffer.extend((0..len).map(|position| (100 * k + position) as f32));
    }
    let weights = cudnn::import(&spec, &buffer).unwrap();
    assert_eq!(weights.len(), 20);
    for (name, first) in [
        ("weight_ih_l0", 0.0),
        ("weight_hh_l0", 100.0),
        ("weight_hr_l0", 200.0),
        ("weight_ih_l0_reverse", 300.0),
        ("weight_hr_l0_reverse", 500.0),
        ("weight_ih_l1", 600.0),
        ("weight_hh_l1_reverse", 1000.0),
        ("weight_hr_l1_reverse", 1100.0),
        ("bias_ih_l0", 1200.0),
        ("bias_hh_l0", 1300.0),
        ("bias_ih_l0_reverse", 1400.0),
        ("bias_hh_l1_reverse", 1900.0),
    ] {
        let values = values(&weights[name]);
        let expected: Vec<_> = (0..values.len()).map(|k| first + k as f32).collect();
        assert_eq!(values, expected, "{name}");
    }
    assert_eq!(cudnn::export(&spec, &weights).unwrap(), buffer);
}

/// `arg`, `expected` and `got` of a refusal.
fn refusal<T>(result: Result<T>) -> [String; 3] {
    match result.err().expect("it was accepted") {
        Error::Shape {
            arg, expected, got, ..
        }
        | Error::Value {
            arg, expected, got, ..
        } => [arg, expected, got],
        Error::Unsupported { needs, .. } => [needs, String::new(), String::new()],
        other => panic!("{other}"),
    }
}

fn onnx_arrays() -> (LayerSpec, onnx::Arrays) {
    let spec = LayerSpec::new(&cell::LSTM_PEEPHOLE, 3, 5);
    let arrays = onnx::export(&spec, 0, &random(&spec, 4)).unwrap();
    (spec, arrays)
}

#[test]
fn onnx_arrays_that_do_not_fit() {
    let (spec, good) = onnx_arrays();
    let refused = |change: &dyn Fn(&mut onnx::Arrays)| {
        let mut arrays = good.clone();
        change(&mut arrays);
        refusal(onnx::import(&spec, 0, &arrays))
    };
    assert_eq!(
        refused(&|a| a.w = zeros(&[20, 3])),
        ["W", "F32 [1, 20, 3]", "F32 [20, 3] of 60 elements"]
    );
    assert_eq!(refused(&|a| a.r.shape = vec![1, 5, 20])[0], "R");
    assert_eq!(refused(&|a| a.b = None), ["B", "F32 [1, 40]", "none"]);
    assert_eq!(refused(&|a| a.p = None), ["P", "F32 [1, 15]", "none"]);
    assert_eq!(
        refused(&|a| a.w.data = Data::F64(vec![0.0; 60]))[2],
        "F64 [1, 20, 3] of 60 elements"
    );
    assert_eq!(
        refused(&|a| a.w.data = Data::F32(vec![0.0; 59]))[2],
        "F32 [1, 20, 3] of 59 elements"
    );

    let plain = LayerSpec {
        cell: &cell::LSTM,
        bias: false,
        ..spec
    };
    let mut arrays = good.clone();
    let surplus = refusal(onnx::import(&plain, 0, &arrays));
    assert_eq!(surplus, ["B", "none", "F32 [1, 40] of 40 elements"]);
    arrays.b = None;
    assert_eq!(refusal(onnx::import(&plain, 0, &arrays))[0], "P");
    arrays.p = None;
    onnx::import(&plain, 0, &arrays).unwrap();
}

#[test]
fn keras_arrays_that_do_not_fit() {
    let spec = LayerSpec {
        bidirectional: true,
        ..LayerSpec::new(&cell::GRU, 3, 5)
    };
    let good = keras::export(&spec, 0, &random(&spec, 5)).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<keras::Arrays>)| {
        let mut arrays = good.clone();
        change(&mut arrays);
        refusal(keras::import(&spec, 0, &arrays))
    };
    assert_eq!(
        refused(&|a| a.truncate(1)),
        ["directions in arrays", "2", "1"]
    );
    assert_eq!(
        refused(&|a| a[1].kernel = zeros(&[15, 3])),
        [
            "arrays[1].kernel",
            "F32 [3, 15]",
            "F32 [15, 3] of 45 elements"
        ]
    );
    assert_eq!(
        refused(&|a| a[0].recurrent_kernel = zeros(&[5, 5]))[0],
        "arrays[0].recurrent_kernel"
    );
    // The bias of a GRU with the reset before the product, and none.
    let before = refused(&|a| a[0].bias = Some(zeros(&[15])));
    assert_eq!(before[..2], ["arrays[0].bias", "F32 [2, 15]"]);
    assert_eq!(refused(&|a| a[0].bias = None)[2], "none");
    let nobias = LayerSpec {
        bias: false,
        ..spec
    };
    let surplus = refusal(keras::import(&nobias, 0, &good));
    assert_eq!(surplus[..2], ["arrays[0].bias", "none"]);
}

#[test]
fn cudnn_buffers_that_do_not_fit() {
    let spec = LayerSpec::new(&cell::GRU, 3, 4);
    // 12 * 3 + 12 * 4 + 2 * 12
    for len in [0, 107, 109] {
        let refused = refusal(cudnn::import(&spec, &vec![0.0; len]));
        assert_eq!(refused, ["the buffer's length", "108", &len.to_string()]);
    }
}

#[test]
fn weights_that_do_not_fit_are_not_exported() {
    type Export = fn(&LayerSpec, &Weights) -> Result<()>;
    let exports: [Export; 3] = [
        |spec, weights| onnx::export(spec, 0, weights).map(drop),
        |spec, weights| keras::export(spec, 0, weights).map(drop),
        |spec, weights| cudnn::export(spec, weights).map(drop),
    ];
    let spec = LayerSpec::new(&cell::LSTM, 3, 5);
    let good = random(&spec, 6);
    for export in exports {
        export(&spec, &good).unwrap();

        let mut weights = good.clone();
        weights.insert("bias_hh_l1".to_owned(), zeros(&[20]));
        let surplus = refusal(export(&spec, &weights));
        assert_eq!(surplus, ["bias_hh_l1", "none", "F32 [20] of 20 elements"]);

        for name in good.keys() {
            let mut weights = good.clone();
            weights.remove(name);
            assert_eq!(refusal(export(&spec, &weights))[0], *name);
            weights.insert(name.clone(), zeros(&[2]));
            assert_eq!(refusal(export(&spec, &weights))[2], "F32 [2] of 2 elements");
        }
    }
}

#[test]
fn layers_that_cannot_be() {
    let (spec, arrays) = onnx_arrays();
    let no_layer = refusal(onnx::import(&spec, 1, &arrays));
    assert_eq!(no_layer, ["layer", "below num_layers, 1", "1"]);

    let empty = LayerSpec {
        hidden_size: 0,
        ..LayerSpec::new(&cell::LSTM, 3, 5)
    };
    for refused in [
        refusal(onnx::import(&empty, 0, &arrays)),
        refusal(onnx::export(&empty, 0, &Weights::new())),
        refusal(keras::import(&empty, 0, &[])),
        refusal(keras::export(&empty, 0, &Weights::new())),
        refusal(cudnn::import(&empty, &[])),
        refusal(cudnn::export(&empty, &Weights::new())),
    ] {
        assert_eq!(refused, ["hidden_size", "at least 1", "0"]);
    }
}

/// And a cell from elsewhere, although it has an LSTM's name and gates.
#[test]
fn cells_that_the_other_system_has_not() {
    let own: &'static Cell = Box::leak(Box::new(cell::LSTM));
    let (_, arrays) = onnx_arrays();
    let none = Weights::new();
    for cell in cell::ALL.iter().copied().chain([own]) {
        let spec = LayerSpec::new(cell, 3, 5);
        let refused = |known: &[&Cell], errors: [Option<Error>; 2]| {
            let expected = !known.iter().any(|c| std::ptr::eq(*c, cell));
            for error in errors {
                let needs = match error.expect("nothing fits this cell") {
                    Error::Unsupported { needs, .. } => Some(needs),
                    _ => None,
                };
                let text = expected.then(|| format!("the cell {}", cell.name));
                assert_eq!(needs, text);
            }
        };
        let mut bad = arrays.clone();
        bad.w = zeros(&[1]);
        let import = onnx::import(&spec, 0, &bad).err();
        refused(ONNX, [import, onnx::export(&spec, 0, &none).err()]);
        let import = keras::import(&spec, 0, &[]).err();
        refused(KERAS, [import, keras::export(&spec, 0, &none).err()]);
        let import = cudnn::import(&spec, &[]).err();
        refused(CUDNN, [import, cudnn::export(&spec, &none).err()]);
    }
}
