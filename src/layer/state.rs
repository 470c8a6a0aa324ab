//! Recurrent state as arrays on the host.

use ndarray::Array3;

use crate::error::{Error, Result};
use crate::tensor::{Tensor, read_together, write_together};

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
        let both: Vec<_> = [Some(h), c].into_iter().flatten().collect();
        let mut values = read_together(&both)?.into_iter();
        let mut next = |tensor| array(tensor, values.next().unwrap_or_default());
        Ok(Self {
            h: next(h)?,
            c: c.map(next).transpose()?,
        })
    }

    /// Writes it to the device.
    pub(super) fn write(&self, op: &'static str, h: &Tensor, c: Option<&Tensor>) -> Result<()> {
        // Both are looked at before either is written.
        check(op, "h", h, &self.h)?;
        check_c(op, self, c.is_some())?;
        let mut all = vec![(h, flat(&self.h))];
        if let (Some(values), Some(tensor)) = (&self.c, c) {
            check(op, "c", tensor, values)?;
            all.push((tensor, flat(values)));
        }
        let all: Vec<_> = all.iter().map(|(t, v)| (*t, v.as_slice())).collect();
        write_together(&all)
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

fn flat(values: &Array3<f32>) -> Vec<f32> {
    values.iter().copied().collect()
}

fn array(tensor: &Tensor, values: Vec<f32>) -> Result<Array3<f32>> {
    let mut shape = [1; 3];
    // Tensors of states have three dimensions.
    for (to, &from) in shape.iter_mut().zip(tensor.shape()) {
        *to = from;
    }
    Array3::from_shape_vec(shape, values)
        .map_err(|e| Error::shape("State", "values", tensor.shape(), e.to_string()))
}
