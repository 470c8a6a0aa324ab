//! Imported weights against the systems they come from: the equations in PyTorch's order, in double
//! precision, must give with them what ONNX Runtime and Keras computed (`tests/data/import`).

use std::path::Path;

use wgrnn::interop::case;
use wgrnn::interop::safetensors::{self, Archive, Array};
use wgrnn::interop::weights::{Gates, Shape, Weights, keras, onnx};
use wgrnn::ndarray::{Array1, Array2, Array3, ArrayView1, Axis, concatenate, s};

/// The other systems compute in `f32`, unit roundoff u = 6e-8. A pre-activation sums at most 15 terms
/// below 1, whose roundings scatter to about 15 u = 9e-7; approximations of tanh and the sigmoid add a few u.
/// Slopes of at most 1 and gates below 1 keep what five steps and two layers make of it near that: the
/// largest difference seen is 4e-7. A wrong order of gates shows as 1e-2 or more.
const TOLERANCE: f64 = 1e-5;

#[test]
fn onnx_weights_compute_what_onnx_runtime_computes() {
    let compared = compare_all("onnx", |case, shape, layer| {
        let array = |name: &str| case.tensors.get(&format!("{name}.{layer}")).cloned();
        let arrays = onnx::Arrays {
            w: array("W").unwrap(),
            r: array("R").unwrap(),
            b: array("B"),
            p: array("P"),
        };
        let weights = onnx::import(shape, layer, &arrays).unwrap();
        let back = onnx::export(shape, layer, &weights).unwrap();
        assert_eq!(back, arrays);
        weights
    });
    assert_eq!(compared, 10);
}

#[test]
fn keras_weights_compute_what_keras_computes() {
    let compared = compare_all("keras", |case, shape, layer| {
        let direction = |d: usize| {
            let array = |name: &str| case.tensors.get(&format!("{name}.{layer}.{d}")).cloned();
            keras::Arrays {
                kernel: array("kernel").unwrap(),
                recurrent_kernel: array("recurrent_kernel").unwrap(),
                bias: array("bias"),
            }
        };
        let arrays: Vec<_> = (0..shape.directions()).map(direction).collect();
        let weights = keras::import(shape, layer, &arrays).unwrap();
        let back = keras::export(shape, layer, &weights).unwrap();
        assert_eq!(back, arrays);
        weights
    });
    assert_eq!(compared, 9);
}

/// Runs every case of one system and says how many there were.
fn compare_all(system: &str, import: impl Fn(&Archive, &Shape, usize) -> Weights) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/import");
    let mut compared = 0;
    for path in case::paths(&[folder]).unwrap() {
        let case = safetensors::load(&path).unwrap();
        if case.metadata["system"] != system {
            continue;
        }
        let shape = shape_of(&case);
        let mut weights = Weights::new();
        for layer in 0..shape.num_layers {
            weights.extend(import(&case, &shape, layer));
        }
        let names = shape.names().unwrap();
        assert_eq!(weights.len(), names.len());
        for (name, expected) in &names {
            assert_eq!(weights[name].shape, *expected, "{name}");
        }

        let y = model(&shape, &weights, cube(&case.tensors["x"]));
        let expected = cube(&case.tensors["y"]);
        assert_eq!(y.dim(), expected.dim());
        let close = (&y - &expected).iter().all(|d| d.abs() <= TOLERANCE);
        assert!(close, "{}: {y} instead of {expected}", path.display());
        compared += 1;
    }
    compared
}

fn shape_of(case: &Archive) -> Shape {
    let number = |key: &str| case.metadata[key].parse().unwrap();
    let flag = |key: &str| case.metadata[key].parse().unwrap();
    let gates = match case.metadata["cell"].as_str() {
        "rnn" => Gates::Rnn,
        "lstm" => Gates::Lstm,
        "gru" => Gates::Gru,
        other => panic!("{other}"),
    };
    Shape {
        num_layers: number("layers"),
        bidirectional: flag("bidirectional"),
        bias: flag("bias"),
        peephole: flag("peephole"),
        reset_after: flag("reset_after"),
        ..Shape::new(gates, number("input_size"), number("hidden_size"))
    }
}

fn cube(array: &Array) -> Array3<f64> {
    let [t, n, size] = array.shape[..] else {
        panic!("{:?}", array.shape);
    };
    Array3::from_shape_vec((t, n, size), array.to_f64()).unwrap()
}

/// All layers over x `[T, N, I]`.
fn model(shape: &Shape, weights: &Weights, x: Array3<f64>) -> Array3<f64> {
    (0..shape.num_layers).fold(x, |x, layer| {
        let forward = direction(shape, weights, &format!("l{layer}"), &x);
        if !shape.bidirectional {
            return forward;
        }
        let reversed = x.slice(s![..;-1, .., ..]).to_owned();
        let backward = direction(shape, weights, &format!("l{layer}_reverse"), &reversed);
        let backward = backward.slice(s![..;-1, .., ..]);
        concatenate![Axis(2), forward, backward]
    })
}

/// One layer in one direction, from a zero state.
fn direction(shape: &Shape, weights: &Weights, suffix: &str, x: &Array3<f64>) -> Array3<f64> {
    let (steps, batch, _) = x.dim();
    let cell = Cell::new(shape, weights, suffix);
    let mut y = Array3::zeros((steps, batch, shape.hidden_size));
    for n in 0..batch {
        let mut h = Array1::zeros(shape.hidden_size);
        let mut c = Array1::zeros(shape.hidden_size);
        for t in 0..steps {
            (h, c) = cell.step(x.slice(s![t, n, ..]), &h, &c);
            y.slice_mut(s![t, n, ..]).assign(&h);
        }
    }
    y
}

struct Cell {
    shape: Shape,
    w_ih: Array2<f64>,
    w_hh: Array2<f64>,
    b_ih: Array1<f64>,
    b_hh: Array1<f64>,
    peepholes: Array2<f64>,
}

impl Cell {
    fn new(shape: &Shape, weights: &Weights, suffix: &str) -> Self {
        let rows = shape.gates.count() * shape.hidden_size;
        let matrix = |name: &str| {
            let array = &weights[&format!("{name}_{suffix}")];
            let (rows, columns) = (array.shape[0], array.shape[1]);
            Array2::from_shape_vec((rows, columns), array.to_f64()).unwrap()
        };
        let bias = |name: &str| {
            weights.get(&format!("{name}_{suffix}")).map_or_else(
                || Array1::zeros(rows),
                |array| Array1::from_vec(array.to_f64()),
            )
        };
        Self {
            shape: *shape,
            w_ih: matrix("weight_ih"),
            w_hh: matrix("weight_hh"),
            b_ih: bias("bias_ih"),
            b_hh: bias("bias_hh"),
            peepholes: if shape.peephole {
                matrix("weight_p")
            } else {
                Array2::zeros((3, shape.hidden_size))
            },
        }
    }

    /// h and c after one step; only an LSTM uses c.
    fn step(
        &self,
        x: ArrayView1<'_, f64>,
        h: &Array1<f64>,
        c: &Array1<f64>,
    ) -> (Array1<f64>, Array1<f64>) {
        let hidden = self.shape.hidden_size;
        let gate = |k: usize| s![k * hidden..(k + 1) * hidden];
        let input = self.w_ih.dot(&x) + &self.b_ih;
        let state = self.w_hh.dot(h) + &self.b_hh;
        let sum = |k: usize| &input.slice(gate(k)) + &state.slice(gate(k));
        match self.shape.gates {
            Gates::Rnn => (tanh(sum(0)), c.clone()),
            Gates::Lstm => {
                let i = sigmoid(sum(0) + &self.peepholes.row(0) * c);
                let f = sigmoid(sum(1) + &self.peepholes.row(1) * c);
                let c = f * c + i * tanh(sum(2));
                let o = sigmoid(sum(3) + &self.peepholes.row(2) * &c);
                (o * tanh(c.clone()), c)
            }
            Gates::Gru => {
                let (r, z) = (sigmoid(sum(0)), sigmoid(sum(1)));
                let n = if self.shape.reset_after {
                    &r * &state.slice(gate(2))
                } else {
                    let w_hn = self.w_hh.slice(s![2 * hidden.., ..]);
                    w_hn.dot(&(&r * h)) + self.b_hh.slice(gate(2))
                };
                let n = tanh(&input.slice(gate(2)) + &n);
                ((1.0 - &z) * n + z * h, c.clone())
            }
        }
    }
}

fn sigmoid(v: Array1<f64>) -> Array1<f64> {
    v.mapv_into(|v| 1.0 / (1.0 + (-v).exp()))
}

fn tanh(v: Array1<f64>) -> Array1<f64> {
    v.mapv_into(f64::tanh)
}
