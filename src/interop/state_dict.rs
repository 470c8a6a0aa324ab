//! Tensors from and to the arrays of a state dict, as a whole or not at all.

use std::collections::BTreeMap;

use super::archive::{Array, Data, elements};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, read_together, write_together};

/// Reads tensors of floats for an archive, as one call.
pub(crate) fn read_all(tensors: &[(String, Tensor)]) -> Result<BTreeMap<String, Array>> {
    let all: Vec<_> = tensors.iter().map(|(_, tensor)| tensor).collect();
    let arrays = tensors.iter().zip(read_together(&all)?);
    let named = arrays.map(|((name, tensor), values)| {
        let array = Array {
            shape: tensor.shape().to_vec(),
            data: Data::F32(values),
        };
        (name.clone(), array)
    });
    Ok(named.collect())
}

/// Writes the arrays of an archive into the tensors of the same names, after checking all of them, as one call.
pub(crate) fn write_all(
    op: &'static str,
    tensors: &[(String, Tensor)],
    arrays: &BTreeMap<String, Array>,
) -> Result<()> {
    write_together(&matching(op, tensors, arrays)?)
}

/// Each of the tensors with the numbers that an archive has for it, if it has just those arrays.
pub(crate) fn matching<'a>(
    op: &'static str,
    tensors: &'a [(String, Tensor)],
    arrays: &'a BTreeMap<String, Array>,
) -> Result<Vec<(&'a Tensor, &'a [f32])>> {
    let fail = |reason: String| Err(Error::Weights { op, reason });
    let mut found = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let Some(array) = arrays.get(name) else {
            return fail(format!("'{name}' is missing"));
        };
        let Some(values) = array.as_f32() else {
            return fail(format!("'{name}' must be f32, got {}", array.data.dtype()));
        };
        if array.shape != tensor.shape() {
            let (want, got) = (tensor.shape(), &array.shape);
            return fail(format!("'{name}' must be {want:?}, got {got:?}"));
        }
        // An array made by hand may contradict itself.
        if elements(&array.shape) != Some(values.len()) {
            let (shape, got) = (&array.shape, values.len());
            return fail(format!("'{name}' must be {shape:?}, got {got} elements"));
        }
        found.push((tensor, values));
    }
    let known = |name: &String| tensors.iter().any(|(n, _)| n == name);
    if let Some(surplus) = arrays.keys().find(|name| !known(name)) {
        return fail(format!("'{surplus}' is surplus"));
    }
    Ok(found)
}
