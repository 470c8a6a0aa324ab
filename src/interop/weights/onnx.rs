//! Weights of ONNX's operators `LSTM`, `GRU` and `RNN`, one operator per layer.
//!
//! | input | shape | |
//! |---|---|---|
//! | `W` | `[D, G*H, I]` | |
//! | `R` | `[D, G*H, H]` | |
//! | `B` | `[D, 2*G*H]` | optional; of W, then of R |
//! | `P` | `[D, 3*H]` | optional; peepholes of i, o, f |
//!
//! Gates stand in the order i, o, f, c and z, r, h. Source: the
//! [operators' definitions](https://onnx.ai/onnx/operators/onnx__LSTM.html).
//!
//! Attributes are not converted, as PyTorch's names have no place for them: `linear_before_reset` of
//! a GRU, `input_forget`, `clip` and `activations` are for the layer that loads the weights. An operator
//! whose `direction` is `reverse` is a forward layer over x and y that are reversed in time.

use super::arrays::{array, inverse, no_surplus, part, reordered, required, wanted};
use super::{Gates, Shape, Weights, named};
use crate::error::{Error, Result};
use crate::interop::safetensors::Array;

/// Where the peephole of i, f and o stands.
const PEEPHOLES: &[usize] = &[0, 2, 1];

/// The operator's inputs that are weights. See the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Arrays {
    /// `[D, G*H, I]`
    pub w: Array,
    /// `[D, G*H, H]`
    pub r: Array,
    /// `[D, 2*G*H]`
    pub b: Option<Array>,
    /// `[D, 3*H]`
    pub p: Option<Array>,
}

/// Where each of PyTorch's gates stands.
fn order(gates: Gates) -> &'static [usize] {
    match gates {
        Gates::Rnn => &[0],
        Gates::Lstm => &[0, 2, 3, 1],
        Gates::Gru => &[1, 0, 2],
    }
}

/// The weights of one layer by PyTorch's names; those of several layers together make the model's.
///
/// # Errors
/// [`Error::Shape`] if an array is missing, surplus, of another shape or not `f32`; [`Error::Value`] for
/// a shape that cannot be or a layer it has not; [`Error::Unsupported`] for a projection.
pub fn import(shape: &Shape, layer: usize, arrays: &Arrays) -> Result<Weights> {
    let op = "onnx::import";
    check(op, shape, layer)?;
    let (directions, rows) = (shape.directions(), shape.rows());
    let (input, hidden) = (shape.layer_input(layer), shape.hidden_size);
    let w = required(op, "W", Some(&arrays.w), &[directions, rows, input])?;
    let r = required(op, "R", Some(&arrays.r), &[directions, rows, hidden])?;
    let b_shape = [directions, 2 * rows];
    let b_shape = shape.bias.then_some(&b_shape[..]);
    let b = wanted(op, "B", arrays.b.as_ref(), b_shape)?;
    let p_shape = [directions, 3 * hidden];
    let p_shape = shape.peephole.then_some(&p_shape[..]);
    let p = wanted(op, "P", arrays.p.as_ref(), p_shape)?;

    let order = order(shape.gates);
    let mut weights = Weights::new();
    for direction in 0..directions {
        let mut insert = |name, shape: &[usize], values: &[f32], order| {
            let values = reordered(values, order);
            weights.insert(named(name, layer, direction), array(shape, values));
        };
        let of_direction = |values| part(values, direction, directions);
        insert("weight_ih", &[rows, input], of_direction(w), order);
        insert("weight_hh", &[rows, hidden], of_direction(r), order);
        if let Some(b) = b.map(of_direction) {
            insert("bias_ih", &[rows], part(b, 0, 2), order);
            insert("bias_hh", &[rows], part(b, 1, 2), order);
        }
        if let Some(p) = p.map(of_direction) {
            insert("weight_p", &[3, hidden], p, PEEPHOLES);
        }
    }
    Ok(weights)
}

/// The operator's weights for one layer of the model with these weights.
///
/// # Errors
/// As [`import`]; a weight is surplus if no layer of the model has it.
pub fn export(shape: &Shape, layer: usize, weights: &Weights) -> Result<Arrays> {
    let op = "onnx::export";
    check(op, shape, layer)?;
    no_surplus(op, shape, weights)?;
    let (directions, rows) = (shape.directions(), shape.rows());
    let (input, hidden) = (shape.layer_input(layer), shape.hidden_size);
    let order = inverse(order(shape.gates));
    let joined = |parts: &[(&str, &[usize])], order: &[usize]| {
        let mut values = Vec::new();
        for direction in 0..directions {
            for (name, shape) in parts {
                let name = named(name, layer, direction);
                let from = required(op, &name, weights.get(&name), shape)?;
                values.extend(reordered(from, order));
            }
        }
        Ok(values)
    };
    let w = joined(&[("weight_ih", &[rows, input])], &order)?;
    let r = joined(&[("weight_hh", &[rows, hidden])], &order)?;
    let b = if shape.bias {
        let values = joined(&[("bias_ih", &[rows]), ("bias_hh", &[rows])], &order)?;
        Some(array(&[directions, 2 * rows], values))
    } else {
        None
    };
    let p = if shape.peephole {
        let values = joined(&[("weight_p", &[3, hidden])], &inverse(PEEPHOLES))?;
        Some(array(&[directions, 3 * hidden], values))
    } else {
        None
    };
    Ok(Arrays {
        w: array(&[directions, rows, input], w),
        r: array(&[directions, rows, hidden], r),
        b,
        p,
    })
}

fn check(op: &'static str, shape: &Shape, layer: usize) -> Result<()> {
    shape.check_layer(op, layer)?;
    if shape.proj_size > 0 {
        let needs = "a projection, which ONNX's operators have not".to_owned();
        return Err(Error::Unsupported { op, needs });
    }
    Ok(())
}
