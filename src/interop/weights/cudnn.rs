//! cuDNN's weight space: one flat buffer that holds all layers.
//!
//! A pseudo-layer is one direction of one layer: layer 0 forward, layer 0 reverse, layer 1 forward, and
//! so on. First stand the matrices of all pseudo-layers, then the biases of all:
//!
//! ```text
//! weight_ih, weight_hh (, weight_hr) of pseudo-layer 0, of pseudo-layer 1, …
//! bias_ih, bias_hh                   of pseudo-layer 0, of pseudo-layer 1, …
//! ```
//!
//! Each is row-major with PyTorch's gate order, which is cuDNN's: i, f, new memory, o and r, z, new memory
//! (`linLayerID` of `cudnnGetRNNWeightParams`). It is the buffer that `flatten_parameters` of PyTorch
//! makes on an NVIDIA GPU.
//!
//! cuDNN documents the gates but not where in the buffer they lie. The order of the arrays is the one that
//! JAX relies on (`jax/experimental/rnn.py`, found there by trial) for LSTMs in `f32` with
//! `CUDNN_RNN_DOUBLE_BIAS`. That `weight_hr` stands behind `weight_hh` follows the numbers of
//! `linLayerID`, where it is the last; no source confirms it. Where cuDNN is at hand, ask it for the
//! addresses and convert array by array.
//!
//! A spec without `bias` is `CUDNN_RNN_NO_BIAS`. PyTorch's layers without biases have zeros in their place in the
//! buffer: read those with `bias` true.

use super::arrays::{array, no_surplus, required};
use super::{Weights, check};
use crate::cell::{self, Cell};
use crate::error::{Error, Result};
use crate::interop::archive::elements;
use crate::plan::sequence::LayerSpec;

/// The cells that cuDNN has; its GRU applies the reset gate after the product.
static CELLS: &[&Cell] = &[
    &cell::LSTM,
    &cell::LSTM_PROJECTED,
    &cell::GRU,
    &cell::RNN_TANH,
    &cell::RNN_RELU,
];

/// All weights of the model by PyTorch's names.
///
/// # Errors
/// [`Error::Shape`] if the buffer has another length; [`Error::Unsupported`] for a cell that cuDNN has not;
/// otherwise as [`LayerSpec::check`].
pub fn import(spec: &LayerSpec, buffer: &[f32]) -> Result<Weights> {
    let op = "cudnn::import";
    let layout = layout(op, spec)?;
    let expected = total(&layout);
    if expected != Some(buffer.len()) {
        let expected = expected.map_or("more than memory holds".to_owned(), |n| n.to_string());
        return Err(Error::Shape {
            op,
            arg: "the buffer's length".to_owned(),
            expected,
            got: buffer.len().to_string(),
        });
    }
    let mut rest = buffer;
    let take = |(name, shape): (String, Vec<usize>)| {
        let (values, behind) = rest.split_at(shape.iter().product());
        rest = behind;
        (name, array(&shape, values.to_vec()))
    };
    Ok(layout.into_iter().map(take).collect())
}

/// The buffer of a model with these weights.
///
/// # Errors
/// [`Error::Shape`] if a weight is missing, surplus, of another shape or not `f32`; otherwise as
/// [`import`].
pub fn export(spec: &LayerSpec, weights: &Weights) -> Result<Vec<f32>> {
    let op = "cudnn::export";
    let layout = layout(op, spec)?;
    no_surplus(op, spec, weights)?;
    let mut buffer = Vec::new();
    for (name, shape) in layout {
        buffer.extend_from_slice(required(op, &name, weights.get(&name), &shape)?);
    }
    Ok(buffer)
}

/// Names and shapes in the order of the buffer.
fn layout(op: &'static str, spec: &LayerSpec) -> Result<Vec<(String, Vec<usize>)>> {
    check(op, spec, CELLS)?;
    let mut layout = spec.weight_shapes();
    // Stable: matrices and biases stay in PyTorch's order, each among themselves.
    layout.sort_by_key(|(name, _)| name.starts_with("bias"));
    Ok(layout)
}

/// How many numbers there are together, if a `usize` can say so.
fn total(layout: &[(String, Vec<usize>)]) -> Option<usize> {
    layout
        .iter()
        .try_fold(0_usize, |sum, (_, shape)| sum.checked_add(elements(shape)?))
}
