//! Weights of Keras's layers `LSTM`, `GRU` and `SimpleRNN`.
//!
//! | array | shape | |
//! |---|---|---|
//! | `kernel` | `[I, G*H]` | |
//! | `recurrent_kernel` | `[H, G*H]` | |
//! | `bias` | `[G*H]` | with `use_bias` |
//! | | `[2, G*H]` | of a `GRU` with `reset_after`, its default: of the input, of the state |
//!
//! They are what `get_weights()` of a layer gives, in this order; `Bidirectional` gives those of the
//! forward layer, then those of the backward layer. Gates stand in the order i, f, c, o and z, r, h.
//! Source: `call` of the cells in `keras/src/layers/rnn`.
//!
//! Where Keras has one bias, it becomes `bias_ih`, and `bias_hh` is zero. In the other direction it is
//! their sum: the same function, but not the same two vectors after a round trip.
//!
//! A layer with `go_backwards` and no `Bidirectional` around it is a forward layer over x that is reversed
//! in time.

use super::arrays::{array, inverse, no_surplus, part, reordered, required, transposed, wanted};
use super::{Gates, Shape, Weights, named};
use crate::error::{Error, Result};
use crate::interop::safetensors::Array;

/// The weights of one direction. See the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Arrays {
    /// `[I, G*H]`
    pub kernel: Array,
    /// `[H, G*H]`
    pub recurrent_kernel: Array,
    /// `[G*H]`, or `[2, G*H]` of a GRU with reset after the product.
    pub bias: Option<Array>,
}

/// Where each of PyTorch's gates stands.
fn order(gates: Gates) -> &'static [usize] {
    match gates {
        Gates::Rnn => &[0],
        Gates::Lstm => &[0, 1, 2, 3],
        Gates::Gru => &[1, 0, 2],
    }
}

/// The weights of one layer, given by direction, by PyTorch's names; those of several layers together
/// make the model's.
///
/// # Errors
/// [`Error::Shape`] if an array is missing, surplus, of another shape or not `f32`, or if there are not as
/// many elements in `arrays` as directions; [`Error::Value`] for a shape that cannot be or a layer it has
/// not; [`Error::Unsupported`] for a projection or peepholes.
pub fn import(shape: &Shape, layer: usize, arrays: &[Arrays]) -> Result<Weights> {
    let op = "keras::import";
    check(op, shape, layer)?;
    if arrays.len() != shape.directions() {
        let (expected, got) = (shape.directions(), arrays.len());
        return Err(Error::shape(op, "directions in arrays", expected, got));
    }
    let (rows, input, hidden) = (shape.rows(), shape.layer_input(layer), shape.hidden_size);
    let order = order(shape.gates);
    let bias_shape = bias_shape(shape);
    let mut weights = Weights::new();
    for (direction, given) in arrays.iter().enumerate() {
        let arg = |field| format!("arrays[{direction}].{field}");
        let w = Some(&given.kernel);
        let w = required(op, &arg("kernel"), w, &[input, rows])?;
        let r = Some(&given.recurrent_kernel);
        let r = required(op, &arg("recurrent_kernel"), r, &[hidden, rows])?;
        let bias = given.bias.as_ref();
        let bias = wanted(op, &arg("bias"), bias, bias_shape.as_deref())?;

        let mut insert = |name, shape: &[usize], values: &[f32]| {
            let values = reordered(values, order);
            weights.insert(named(name, layer, direction), array(shape, values));
        };
        insert("weight_ih", &[rows, input], &transposed(w, rows));
        insert("weight_hh", &[rows, hidden], &transposed(r, rows));
        if let Some(bias) = bias {
            let (ih, hh) = if two_biases(shape) {
                (part(bias, 0, 2), part(bias, 1, 2))
            } else {
                (bias, &vec![0.0; rows][..])
            };
            insert("bias_ih", &[rows], ih);
            insert("bias_hh", &[rows], hh);
        }
    }
    Ok(weights)
}

/// Keras's weights, by direction, for one layer of the model with these weights.
///
/// # Errors
/// As [`import`]; a weight is surplus if no layer of the model has it.
pub fn export(shape: &Shape, layer: usize, weights: &Weights) -> Result<Vec<Arrays>> {
    let op = "keras::export";
    check(op, shape, layer)?;
    no_surplus(op, shape, weights)?;
    let (rows, input, hidden) = (shape.rows(), shape.layer_input(layer), shape.hidden_size);
    let order = inverse(order(shape.gates));
    let one_direction = |direction| {
        let get = |name, shape: &[usize]| {
            let name = named(name, layer, direction);
            let values = required(op, &name, weights.get(&name), shape)?;
            Ok::<_, Error>(reordered(values, &order))
        };
        let kernel = get("weight_ih", &[rows, input])?;
        let recurrent = get("weight_hh", &[rows, hidden])?;
        let bias = match bias_shape(shape) {
            None => None,
            Some(bias_shape) => {
                let (ih, hh) = (get("bias_ih", &[rows])?, get("bias_hh", &[rows])?);
                let values = if two_biases(shape) {
                    [ih, hh].concat()
                } else {
                    ih.iter().zip(&hh).map(|(i, h)| i + h).collect()
                };
                Some(array(&bias_shape, values))
            }
        };
        Ok(Arrays {
            kernel: array(&[input, rows], transposed(&kernel, input)),
            recurrent_kernel: array(&[hidden, rows], transposed(&recurrent, hidden)),
            bias,
        })
    };
    (0..shape.directions()).map(one_direction).collect()
}

fn two_biases(shape: &Shape) -> bool {
    shape.gates == Gates::Gru && shape.reset_after
}

fn bias_shape(shape: &Shape) -> Option<Vec<usize>> {
    shape.bias.then(|| {
        if two_biases(shape) {
            vec![2, shape.rows()]
        } else {
            vec![shape.rows()]
        }
    })
}

fn check(op: &'static str, shape: &Shape, layer: usize) -> Result<()> {
    shape.check_layer(op, layer)?;
    for (there, what) in [
        (shape.proj_size > 0, "a projection"),
        (shape.peephole, "peepholes"),
    ] {
        if there {
            let needs = format!("{what}, which Keras's layers have not");
            return Err(Error::Unsupported { op, needs });
        }
    }
    Ok(())
}
