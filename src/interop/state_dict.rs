//! Tensors from and to the arrays of a state dict, as a whole or not at all.

use std::collections::BTreeMap;

use super::archive::{Array, Data, elements};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Reads tensors of floats for an archive.
pub(crate) fn read_all(tensors: &[(String, Tensor)]) -> Result<BTreeMap<String, Array>> {
    tensors
        .iter()
        .map(|(name, tensor)| {
            let array = Array {
                shape: tensor.shape().to_vec(),
                data: Data::F32(tensor.read()?),
            };
            Ok((name.clone(), array))
        })
        .collect()
}

/// Writes the arrays of an archive into the tensors of the same names, after checking all of them.
pub(crate) fn write_all(
    op: &'static str,
    tensors: &[(String, Tensor)],
    arrays: &BTreeMap<String, Array>,
) -> Result<()> {
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
    found
        .into_iter()
        .try_for_each(|(tensor, values)| tensor.write(values))
}
