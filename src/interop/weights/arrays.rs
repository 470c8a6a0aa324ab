//! What every conversion needs: arrays that are checked, and blocks and transposes of them.

use std::collections::BTreeSet;

use super::Weights;
use crate::error::{Error, Result};
use crate::interop::archive::{Array, Data, elements};
use crate::plan::sequence::LayerSpec;

/// The elements of an array that must be there, with this shape.
///
/// # Errors
/// [`Error::Shape`] if it is missing, has another shape, or is not `f32`.
pub(super) fn required<'a>(
    op: &'static str,
    arg: &str,
    array: Option<&'a Array>,
    shape: &[usize],
) -> Result<&'a [f32]> {
    array
        .filter(|a| a.shape == shape)
        .and_then(Array::as_f32)
        .filter(|values| elements(shape) == Some(values.len()))
        .ok_or_else(|| mismatch(op, arg, Some(shape), array))
}

/// The elements of an array that must be there with this shape, or must not be there.
///
/// # Errors
/// As [`required`], and [`Error::Shape`] if it is surplus.
pub(super) fn wanted<'a>(
    op: &'static str,
    arg: &str,
    array: Option<&'a Array>,
    shape: Option<&[usize]>,
) -> Result<Option<&'a [f32]>> {
    match (array, shape) {
        (array, Some(shape)) => required(op, arg, array, shape).map(Some),
        (None, None) => Ok(None),
        (Some(_), None) => Err(mismatch(op, arg, None, array)),
    }
}

/// Refuses an array whose name is not one of the spec's.
///
/// # Errors
/// [`Error::Shape`] that names it.
pub(super) fn no_surplus(op: &'static str, spec: &LayerSpec, weights: &Weights) -> Result<()> {
    let names = spec.weight_shapes().into_iter().map(|(name, _)| name);
    let names: BTreeSet<_> = names.collect();
    match weights.iter().find(|(name, _)| !names.contains(*name)) {
        Some((name, array)) => Err(mismatch(op, name, None, Some(array))),
        None => Ok(()),
    }
}

fn mismatch(op: &'static str, arg: &str, expected: Option<&[usize]>, got: Option<&Array>) -> Error {
    let none = || "none".to_owned();
    Error::Shape {
        op,
        arg: arg.to_owned(),
        expected: expected.map_or_else(none, |shape| format!("F32 {shape:?}")),
        got: got.map_or_else(none, |a| {
            let (dtype, shape, elements) = (a.data.dtype(), &a.shape, a.data.len());
            // An array made by hand may contradict itself.
            format!("{dtype} {shape:?} of {elements} elements")
        }),
    }
}

pub(super) fn array(shape: &[usize], values: Vec<f32>) -> Array {
    Array {
        shape: shape.to_vec(),
        data: Data::F32(values),
    }
}

/// One of `count` equal parts.
pub(super) fn part(values: &[f32], index: usize, count: usize) -> &[f32] {
    let len = values.len() / count;
    &values[index * len..][..len]
}

/// Equal parts in another order: part k of the result is part `order[k]` of `values`.
pub(super) fn reordered(values: &[f32], order: &[usize]) -> Vec<f32> {
    order
        .iter()
        .flat_map(|&k| part(values, k, order.len()))
        .copied()
        .collect()
}

/// The order that undoes this one.
pub(super) fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    for (k, &from) in order.iter().enumerate() {
        inverse[from] = k;
    }
    inverse
}

/// A row-major matrix of `columns` columns as one of `columns` rows.
pub(super) fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|column| values.iter().skip(column).step_by(columns))
        .copied()
        .collect()
}
