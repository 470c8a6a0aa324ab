//! Recurrent state as arrays on the host.

use ndarray::Array3;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Recurrent state of a batch: what one call ends with and the next may start from. The first axis
/// counts layers and, within a layer, directions, as in PyTorch.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// `[L·D, N, P]`
    pub h: Array3<f32>,
    /// `[L·D, N, H]`, for cells that have one.
    pub c: Option<Array3<f32>>,
}

impl State {
    /// Reads a state from the device.
    pub(super) fn read(h: &Tensor, c: Option<&Tensor>) -> Result<Self> {
        Ok(Self {
            h: read(h)?,
            c: c.map(read).transpose()?,
        })
    }

    /// Writes it to the device.
    pub(super) fn write(&self, op: &'static str, h: &Tensor, c: Option<&Tensor>) -> Result<()> {
        // Both are looked at before either is written.
        check(op, "h", h, &self.h)?;
        check_c(op, self, c.is_some())?;
        if let (Some(values), Some(tensor)) = (&self.c, c) {
            check(op, "c", tensor, values)?;
            write(tensor, values)?;
        }
        write(h, &self.h)
    }
}

/// Refuses a state that has c where it should not, or has none where it should.
pub(super) fn check_c(op: &'static str, state: &State, wanted: bool) -> Result<()> {
    let given = state.c.is_some();
    if given == wanted {
        return Ok(());
    }
    let say = |there: bool| if there { "c" } else { "no c" };
    let expected = format!("with {}", say(wanted));
    Err(Error::value(op, "state", expected, say(given)))
}

fn check(op: &'static str, arg: &str, tensor: &Tensor, values: &Array3<f32>) -> Result<()> {
    if values.shape() == tensor.shape() {
        return Ok(());
    }
    Err(Error::shape(op, arg, tensor.shape(), values.shape()))
}

fn write(tensor: &Tensor, values: &Array3<f32>) -> Result<()> {
    tensor.write(&values.iter().copied().collect::<Vec<_>>())
}

fn read(tensor: &Tensor) -> Result<Array3<f32>> {
    let values = tensor.read()?;
    let mut shape = [1; 3];
    // Tensors of states have three dimensions.
    for (to, &from) in shape.iter_mut().zip(tensor.shape()) {
        *to = from;
    }
    Array3::from_shape_vec(shape, values)
        .map_err(|e| Error::shape("State", "values", tensor.shape(), e.to_string()))
}
