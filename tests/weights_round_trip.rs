//! Weights there and back again through every layout, where the values lie, and what is refused.

use wgrnn::interop::safetensors::{Array, Data};
use wgrnn::interop::weights::{Gates, Shape, Weights, cudnn, keras, onnx};
use wgrnn::rng::Rng;
use wgrnn::{Error, Result};

const CELLS: [Gates; 3] = [Gates::Rnn, Gates::Lstm, Gates::Gru];

/// Every cell with every combination of the options that it has.
fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for gates in CELLS {
        for options in 0..64 {
            let on = |bit: u32| options >> bit & 1 == 1;
            let shape = Shape {
                num_layers: if on(0) { 3 } else { 1 },
                bidirectional: on(1),
                bias: on(2),
                proj_size: if on(3) { 2 } else { 0 },
                peephole: on(4),
                reset_after: on(5),
                ..Shape::new(gates, 3, 5)
            };
            if shape.names().is_ok() {
                shapes.push(shape);
            }
        }
    }
    assert_eq!(shapes.len(), 64 + 2 * 16);
    shapes
}

fn random(shape: &Shape, seed: u64) -> Weights {
    let mut rng = Rng::new(seed);
    let names = shape.names().unwrap();
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
fn each_layer(shape: &Shape, through: impl Fn(usize) -> Result<Weights>) -> Weights {
    (0..shape.num_layers)
        .flat_map(|k| through(k).unwrap())
        .collect()
}

#[test]
fn pytorch_names_in_order() {
    let shape = Shape {
        num_layers: 2,
        bidirectional: true,
        proj_size: 3,
        peephole: true,
        ..Shape::new(Gates::Lstm, 7, 5)
    };
    let names = shape.names().unwrap();
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
    for shape in shapes().iter().filter(|s| s.proj_size == 0) {
        let weights = random(shape, 1);
        let back = each_layer(shape, |k| {
            onnx::import(shape, k, &onnx::export(shape, k, &weights)?)
        });
        assert_eq!(back, weights, "{shape:?}");
    }
}

#[test]
fn through_keras() {
    for shape in shapes().iter().filter(|s| s.proj_size == 0 && !s.peephole) {
        let mut weights = random(shape, 2);
        let back = each_layer(shape, |k| {
            keras::import(shape, k, &keras::export(shape, k, &weights)?)
        });
        if !(shape.gates == Gates::Gru && shape.reset_after) {
            join_biases(&mut weights);
        }
        assert_eq!(back, weights, "{shape:?}");
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
    for shape in shapes().iter().filter(|s| !s.peephole) {
        let weights = random(shape, 3);
        let buffer = cudnn::export(shape, &weights).unwrap();
        assert_eq!(cudnn::import(shape, &buffer).unwrap(), weights, "{shape:?}");
    }
}

/// A buffer put together by hand: number of the array * 100 + position in it.
#[test]
fn where_cudnn_has_the_arrays() {
    let shape = Shape {
        bidirectional: true,
        num_layers: 2,
        proj_size: 1,
        ..Shape::new(Gates::Lstm, 3, 2)
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
    let weights = cudnn::import(&shape, &buffer).unwrap();
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
    assert_eq!(cudnn::export(&shape, &weights).unwrap(), buffer);
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

fn onnx_arrays() -> (Shape, onnx::Arrays) {
    let shape = Shape {
        peephole: true,
        ..Shape::new(Gates::Lstm, 3, 5)
    };
    let arrays = onnx::export(&shape, 0, &random(&shape, 4)).unwrap();
    (shape, arrays)
}

#[test]
fn onnx_arrays_that_do_not_fit() {
    let (shape, good) = onnx_arrays();
    let refused = |change: &dyn Fn(&mut onnx::Arrays)| {
        let mut arrays = good.clone();
        change(&mut arrays);
        refusal(onnx::import(&shape, 0, &arrays))
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

    let plain = Shape {
        bias: false,
        peephole: false,
        ..shape
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
    let shape = Shape {
        bidirectional: true,
        ..Shape::new(Gates::Gru, 3, 5)
    };
    let good = keras::export(&shape, 0, &random(&shape, 5)).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<keras::Arrays>)| {
        let mut arrays = good.clone();
        change(&mut arrays);
        refusal(keras::import(&shape, 0, &arrays))
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
    let nobias = Shape {
        bias: false,
        ..shape
    };
    let surplus = refusal(keras::import(&nobias, 0, &good));
    assert_eq!(surplus[..2], ["arrays[0].bias", "none"]);
}

#[test]
fn cudnn_buffers_that_do_not_fit() {
    let shape = Shape::new(Gates::Gru, 3, 4);
    // 12 * 3 + 12 * 4 + 2 * 12
    for len in [0, 107, 109] {
        let refused = refusal(cudnn::import(&shape, &vec![0.0; len]));
        assert_eq!(refused, ["the buffer's length", "108", &len.to_string()]);
    }
    let huge = Shape {
        num_layers: 1 << 12,
        bidirectional: true,
        ..Shape::new(Gates::Lstm, 1 << 24, 1 << 24)
    };
    let refused = refusal(cudnn::import(&huge, &[]));
    assert_eq!(refused[1..], ["more than memory holds", "0"]);
}

#[test]
fn weights_that_do_not_fit_are_not_exported() {
    type Export = fn(&Shape, &Weights) -> Result<()>;
    let exports: [Export; 3] = [
        |shape, weights| onnx::export(shape, 0, weights).map(drop),
        |shape, weights| keras::export(shape, 0, weights).map(drop),
        |shape, weights| cudnn::export(shape, weights).map(drop),
    ];
    let shape = Shape::new(Gates::Lstm, 3, 5);
    let good = random(&shape, 6);
    for export in exports {
        export(&shape, &good).unwrap();

        let mut weights = good.clone();
        weights.insert("bias_hh_l1".to_owned(), zeros(&[20]));
        let surplus = refusal(export(&shape, &weights));
        assert_eq!(surplus, ["bias_hh_l1", "none", "F32 [20] of 20 elements"]);

        for name in good.keys() {
            let mut weights = good.clone();
            weights.remove(name);
            assert_eq!(refusal(export(&shape, &weights))[0], *name);
            weights.insert(name.clone(), zeros(&[2]));
            assert_eq!(
                refusal(export(&shape, &weights))[2],
                "F32 [2] of 2 elements"
            );
        }
    }
}

#[test]
fn shapes_that_cannot_be() {
    let good = Shape::new(Gates::Gru, 3, 5);
    let refused = |change: &dyn Fn(&mut Shape)| {
        let mut shape = good;
        change(&mut shape);
        refusal(shape.names())
    };
    assert_eq!(
        refused(&|s| s.input_size = 0),
        ["input_size", "1 to 16777216", "0"]
    );
    assert_eq!(refused(&|s| s.hidden_size = usize::MAX)[0], "hidden_size");
    assert_eq!(refused(&|s| s.num_layers = 0)[0], "num_layers");
    assert_eq!(refused(&|s| s.num_layers = usize::MAX)[0], "num_layers");
    assert_eq!(refused(&|s| s.proj_size = 2)[0], "proj_size");
    assert_eq!(refused(&|s| s.peephole = true)[0], "peephole");

    let (_, arrays) = onnx_arrays();
    let no_layer = refusal(onnx::import(&good, 1, &arrays));
    assert_eq!(no_layer, ["layer", "below num_layers, 1", "1"]);
}

#[test]
fn options_that_the_other_system_has_not() {
    let lstm = Shape::new(Gates::Lstm, 3, 5);
    let projected = Shape {
        proj_size: 2,
        ..lstm
    };
    let peephole = Shape {
        peephole: true,
        ..lstm
    };
    let unsupported = |refusal: [String; 3]| assert_eq!(refusal[1..], ["", ""], "{refusal:?}");
    let weights = Weights::new();
    unsupported(refusal(onnx::export(&projected, 0, &weights)));
    unsupported(refusal(keras::import(&projected, 0, &[])));
    unsupported(refusal(keras::export(&peephole, 0, &weights)));
    unsupported(refusal(cudnn::import(&peephole, &[])));
}
