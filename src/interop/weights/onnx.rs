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
use super::{GateOrders, Weights, check, levels_of, named};
use crate::cell::{self, Cell};
use crate::error::Result;
use crate::interop::safetensors::Array;
use crate::plan::sequence::LayerSpec;

/// The cells that ONNX has; `linear_before_reset` is 1 for [`cell::GRU`].
static CELLS: &[&Cell] = &[
    &cell::LSTM,
    &cell::LSTM_PEEPHOLE,
    &cell::GRU,
    &cell::GRU_BEFORE,
    &cell::RNN_TANH,
    &cell::RNN_RELU,
];

const GATES: GateOrders = GateOrders {
    lstm: &[0, 2, 3, 1],
    gru: &[1, 0, 2],
};

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

/// The weights of one layer by PyTorch's names; those of several layers together make the model's.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if an array is missing, surplus, of another shape or not `f32`;
/// [`Error::Value`](crate::Error::Value) for a layer that there is not;
/// [`Error::Unsupported`](crate::Error::Unsupported) for a cell that ONNX has not; otherwise as
/// [`LayerSpec::check`].
pub fn import(spec: &LayerSpec, layer: usize, arrays: &Arrays) -> Result<Weights> {
    let op = "onnx::import";
    check(op, spec, CELLS)?;
    let levels = levels_of(op, spec, layer)?;
    let (directions, rows) = (levels.len(), spec.width());
    let (input, hidden) = (levels[0].input_size, spec.hidden_size);
    let w = required(op, "W", Some(&arrays.w), &[directions, rows, input])?;
    let r = required(op, "R", Some(&arrays.r), &[directions, rows, hidden])?;
    let b_shape = [directions, 2 * rows];
    let b_shape = spec.bias.then_some(&b_shape[..]);
    let b = wanted(op, "B", arrays.b.as_ref(), b_shape)?;
    let p_shape = [directions, 3 * hidden];
    let p_shape = peepholes(spec).then_some(&p_shape[..]);
    let p = wanted(op, "P", arrays.p.as_ref(), p_shape)?;

    let order = GATES.of(spec.cell);
    let mut weights = Weights::new();
    for (direction, level) in levels.iter().enumerate() {
        let mut insert = |name, shape: &[usize], values: &[f32], order| {
            let values = reordered(values, order);
            weights.insert(named(name, level), array(shape, values));
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
pub fn export(spec: &LayerSpec, layer: usize, weights: &Weights) -> Result<Arrays> {
    let op = "onnx::export";
    check(op, spec, CELLS)?;
    let levels = levels_of(op, spec, layer)?;
    no_surplus(op, spec, weights)?;
    let (directions, rows) = (levels.len(), spec.width());
    let (input, hidden) = (levels[0].input_size, spec.hidden_size);
    let order = inverse(GATES.of(spec.cell));
    let joined = |parts: &[(&str, &[usize])], order: &[usize]| {
        let mut values = Vec::new();
        for level in &levels {
            for (name, shape) in parts {
                let name = named(name, level);
                let from = required(op, &name, weights.get(&name), shape)?;
                values.extend(reordered(from, order));
            }
        }
        Ok(values)
    };
    let w = joined(&[("weight_ih", &[rows, input])], &order)?;
    let r = joined(&[("weight_hh", &[rows, hidden])], &order)?;
    let b = if spec.bias {
        let values = joined(&[("bias_ih", &[rows]), ("bias_hh", &[rows])], &order)?;
        Some(array(&[directions, 2 * rows], values))
    } else {
        None
    };
    let p = if peepholes(spec) {
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

fn peepholes(spec: &LayerSpec) -> bool {
    !spec.cell.diagonal.is_empty()
}
