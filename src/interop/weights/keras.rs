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
use super::{GateOrders, Weights, check, levels_of, named};
use crate::cell::{self, Cell};
use crate::error::{Error, Result};
use crate::interop::safetensors::Array;
use crate::plan::sequence::{LayerSpec, Level};

/// The cells that Keras has; `reset_after` is true for [`cell::GRU`].
static CELLS: &[&Cell] = &[
    &cell::LSTM,
    &cell::GRU,
    &cell::GRU_BEFORE,
    &cell::RNN_TANH,
    &cell::RNN_RELU,
];

const GATES: GateOrders = GateOrders {
    lstm: &[0, 1, 2, 3],
    gru: &[1, 0, 2],
};

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

/// The weights of one layer, given by direction, by PyTorch's names; those of several layers together
/// make the model's.
///
/// # Errors
/// [`Error::Shape`] if an array is missing, surplus, of another shape or not `f32`, or if there are not as
/// many elements in `arrays` as directions; [`Error::Value`] for a layer that there is not;
/// [`Error::Unsupported`] for a cell that Keras has not; otherwise as [`LayerSpec::check`].
pub fn import(spec: &LayerSpec, layer: usize, arrays: &[Arrays]) -> Result<Weights> {
    let op = "keras::import";
    check(op, spec, CELLS)?;
    let levels = levels_of(op, spec, layer)?;
    if arrays.len() != levels.len() {
        let (expected, got) = (levels.len(), arrays.len());
        return Err(Error::shape(op, "directions in arrays", expected, got));
    }
    let (rows, input, hidden) = (spec.width(), levels[0].input_size, spec.hidden_size);
    let order = GATES.of(spec.cell);
    let bias_shape = bias_shape(spec);
    let mut weights = Weights::new();
    for (direction, (given, level)) in arrays.iter().zip(&levels).enumerate() {
        let arg = |field| format!("arrays[{direction}].{field}");
        let w = Some(&given.kernel);
        let w = required(op, &arg("kernel"), w, &[input, rows])?;
        let r = Some(&given.recurrent_kernel);
        let r = required(op, &arg("recurrent_kernel"), r, &[hidden, rows])?;
        let bias = given.bias.as_ref();
        let bias = wanted(op, &arg("bias"), bias, bias_shape.as_deref())?;

        let mut insert = |name, shape: &[usize], values: &[f32]| {
            let values = reordered(values, order);
            weights.insert(named(name, level), array(shape, values));
        };
        insert("weight_ih", &[rows, input], &transposed(w, rows));
        insert("weight_hh", &[rows, hidden], &transposed(r, rows));
        if let Some(bias) = bias {
            let (ih, hh) = if two_biases(spec) {
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
pub fn export(spec: &LayerSpec, layer: usize, weights: &Weights) -> Result<Vec<Arrays>> {
    let op = "keras::export";
    check(op, spec, CELLS)?;
    let levels = levels_of(op, spec, layer)?;
    no_surplus(op, spec, weights)?;
    let (rows, hidden) = (spec.width(), spec.hidden_size);
    let order = inverse(GATES.of(spec.cell));
    let one_direction = |level: &Level| {
        let input = level.input_size;
        let get = |name, shape: &[usize]| {
            let name = named(name, level);
            let values = required(op, &name, weights.get(&name), shape)?;
            Ok::<_, Error>(reordered(values, &order))
        };
        let kernel = get("weight_ih", &[rows, input])?;
        let recurrent = get("weight_hh", &[rows, hidden])?;
        let bias = match bias_shape(spec) {
            None => None,
            Some(bias_shape) => {
                let (ih, hh) = (get("bias_ih", &[rows])?, get("bias_hh", &[rows])?);
                let values = if two_biases(spec) {
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
    levels.iter().map(one_direction).collect()
}

fn two_biases(spec: &LayerSpec) -> bool {
    std::ptr::eq(spec.cell, &cell::GRU)
}

fn bias_shape(spec: &LayerSpec) -> Option<Vec<usize>> {
    let rows = spec.width();
    let two = two_biases(spec);
    spec.bias
        .then(|| if two { vec![2, rows] } else { vec![rows] })
}
