//! Weights of other systems, converted to PyTorch's names, layout and gate order, and back.
//!
//! A [`LayerSpec`] says what is converted; the arrays of the other system are plain arguments. What comes
//! out is what a layer loads and a safetensors file keeps: `f32` arrays by PyTorch's names, with
//! `l{k}` for layer k and `l{k}_reverse` for its second direction.
//!
//! | array | shape | |
//! |---|---|---|
//! | `weight_ih_l{k}` | `[G*H, I]`, above layer 0 `[G*H, D*P]` | |
//! | `weight_hh_l{k}` | `[G*H, P]` | |
//! | `bias_ih_l{k}`, `bias_hh_l{k}` | `[G*H]` | with `bias` |
//! | `weight_hr_l{k}` | `[P, H]` | with a projection; otherwise P = H |
//! | `weight_p_l{k}` | `[3, H]` | with peepholes: of i, f and o, which PyTorch has not |
//!
//! The G blocks of H rows are in the order below. `bias` of Keras is the sum of both vectors where it
//! has one.
//!
//! | | LSTM | GRU | matrices | biases |
//! |---|---|---|---|---|
//! | PyTorch, cuDNN | i f g o | r z n | `[G*H, I]` | two |
//! | [`onnx`] | i o f c | z r h | `[D, G*H, I]` | two, joined |
//! | [`keras`] | i f c o | z r h | `[I, G*H]` | one, of a GRU with `reset_after` two |
//!
//! Each knows some of [`crate::cell`]'s cells, for which its module has a list, and no others. The options of
//! a spec that no weight depends on are not looked at: activations, bounds and coupled gates must be the same
//! in both systems for both to compute the same.
//!
//! ```
//! use wgrnn::interop::safetensors::{Array, Data};
//! use wgrnn::interop::weights::keras;
//! use wgrnn::{Context, Lstm, Result};
//!
//! # fn main() -> Result<()> {
//! let zeros = |shape: &[usize]| Array {
//!     shape: shape.to_vec(),
//!     data: Data::F32(vec![0.0; shape.iter().product()]),
//! };
//! let forward = keras::Arrays {
//!     kernel: zeros(&[3, 32]),
//!     recurrent_kernel: zeros(&[8, 32]),
//!     bias: Some(zeros(&[32])),
//! };
//! let layer = Lstm::new(3, 8).build(&Context::cpu())?;
//! let weights = keras::import(layer.spec(), 0, &[forward])?;
//! assert_eq!(weights["weight_ih_l0"].shape, [32, 3]);
//! layer.load(&weights.into())?;
//! # Ok(())
//! # }
//! ```

mod arrays;
pub mod cudnn;
pub mod keras;
pub mod onnx;

use std::collections::BTreeMap;

use super::safetensors::Array;
use crate::cell::Cell;
use crate::error::{Error, Result};
use crate::plan::sequence::{LayerSpec, Level};

/// Arrays by PyTorch's names. See the [module](self).
pub type Weights = BTreeMap<String, Array>;

/// Where another system has each of PyTorch's gates.
#[derive(Debug)]
struct GateOrders {
    lstm: &'static [usize],
    gru: &'static [usize],
}

impl GateOrders {
    /// That of a cell that the system knows, all of which are LSTMs, GRUs and plain RNNs.
    fn of(&self, cell: &Cell) -> &'static [usize] {
        match cell.gates {
            4 => self.lstm,
            3 => self.gru,
            _ => &[0],
        }
    }
}

/// Refuses a spec that contradicts itself, and one whose cell is none of those that a system knows.
fn check(op: &'static str, spec: &LayerSpec, known: &[&Cell]) -> Result<()> {
    spec.check()?;
    // By address: a cell from elsewhere may have a name or a number of gates that one of these has.
    if known.iter().any(|cell| std::ptr::eq(*cell, spec.cell)) {
        return Ok(());
    }
    let needs = format!("the cell {}", spec.cell.name);
    Err(Error::Unsupported { op, needs })
}

/// The directions of one layer of a spec that was checked.
fn levels_of(op: &'static str, spec: &LayerSpec, layer: usize) -> Result<Vec<Level>> {
    if layer >= spec.num_layers {
        let expected = format!("below num_layers, {}", spec.num_layers);
        return Err(Error::value(op, "layer", expected, layer));
    }
    Ok(spec.levels().filter(|l| l.layer == layer).collect())
}

/// PyTorch's name of a weight.
fn named(weight: &str, level: &Level) -> String {
    format!("{weight}_{}", level.suffix())
}
