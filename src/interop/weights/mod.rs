//! Weights of other systems, converted to PyTorch's names, layout and gate order, and back.
//!
//! A [`Shape`] says what is converted; the arrays of the other system are plain arguments. What comes
//! out is what a layer loads and a safetensors file keeps: `f32` arrays by PyTorch's names, with
//! `l{k}` for layer k and `l{k}_reverse` for its second direction.
//!
//! | array | shape | |
//! |---|---|---|
//! | `weight_ih_l{k}` | `[G*H, I]`, above layer 0 `[G*H, D*P]` | |
//! | `weight_hh_l{k}` | `[G*H, P]` | |
//! | `bias_ih_l{k}`, `bias_hh_l{k}` | `[G*H]` | with `bias` |
//! | `weight_hr_l{k}` | `[P, H]` | with `proj_size` P; otherwise P = H |
//! | `weight_p_l{k}` | `[3, H]` | with `peephole`: of i, f and o, which PyTorch has not |
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
//! ```
//! use wgrnn::interop::safetensors::{Array, Data};
//! use wgrnn::interop::weights::{Gates, Shape, keras};
//!
//! # fn main() -> wgrnn::Result<()> {
//! let zeros = |shape: &[usize]| Array {
//!     shape: shape.to_vec(),
//!     data: Data::F32(vec![0.0; shape.iter().product()]),
//! };
//! let shape = Shape::new(Gates::Lstm, 3, 8);
//! let forward = keras::Arrays {
//!     kernel: zeros(&[3, 32]),
//!     recurrent_kernel: zeros(&[8, 32]),
//!     bias: Some(zeros(&[32])),
//! };
//! let weights = keras::import(&shape, 0, &[forward])?;
//! assert_eq!(weights["weight_ih_l0"].shape, [32, 3]);
//! # Ok(())
//! # }
//! ```

mod arrays;
pub mod cudnn;
pub mod keras;
pub mod onnx;

use std::collections::BTreeMap;

use super::safetensors::Array;
use crate::error::{Error, Result};

/// Arrays by PyTorch's names. See the [module](self).
pub type Weights = BTreeMap<String, Array>;

/// The largest size, so that a product of two and a gate count stays far from overflowing.
const MAX_SIZE: usize = 1 << 24;
/// The largest number of layers, for each of which names are made.
const MAX_LAYERS: usize = 1 << 12;

/// The kind of cell, as far as it decides the shapes of weights and the order of gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gates {
    /// No gate, G = 1.
    Rnn,
    /// i, f, g, o; G = 4.
    Lstm,
    /// r, z, n; G = 3.
    Gru,
}

impl Gates {
    /// G: the blocks of H rows in `weight_ih` and `weight_hh`.
    pub fn count(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}

/// What is converted: the recurrent layers of one model, in PyTorch's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The cell's gates.
    pub gates: Gates,
    /// I, the inputs of the first layer.
    pub input_size: usize,
    /// H, the hidden units.
    pub hidden_size: usize,
    /// P, what an LSTM's output is projected to; 0 for no projection.
    pub proj_size: usize,
    /// L, the layers.
    pub num_layers: usize,
    /// Whether there is a reverse direction: D = 2, otherwise 1.
    pub bidirectional: bool,
    /// Whether there are biases.
    pub bias: bool,
    /// Whether an LSTM's gates see the cell state.
    pub peephole: bool,
    /// Whether a GRU's reset gate comes after the recurrent product. It decides how many biases Keras
    /// has, and nothing else here; of no meaning for other cells.
    pub reset_after: bool,
}

impl Shape {
    /// One layer, one direction, with biases, without projection and peepholes, reset after the
    /// product: PyTorch's defaults.
    pub fn new(gates: Gates, input_size: usize, hidden_size: usize) -> Self {
        Self {
            gates,
            input_size,
            hidden_size,
            proj_size: 0,
            num_layers: 1,
            bidirectional: false,
            bias: true,
            peephole: false,
            reset_after: true,
        }
    }

    /// D
    pub fn directions(&self) -> usize {
        if self.bidirectional { 2 } else { 1 }
    }

    /// P: `proj_size` or else `hidden_size`.
    pub fn output_size(&self) -> usize {
        if self.proj_size > 0 {
            self.proj_size
        } else {
            self.hidden_size
        }
    }

    /// Names and shapes of all weights in PyTorch's order: by layer, then by direction, then
    /// `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`, `weight_hr`; last `weight_p`.
    ///
    /// # Errors
    /// [`Error::Value`] if a size is 0 or too large, or if a cell that is no LSTM has a projection or
    /// peepholes.
    pub fn names(&self) -> Result<Vec<(String, Vec<usize>)>> {
        self.check("Shape::names")?;
        let directions = self.directions();
        Ok((0..self.num_layers)
            .flat_map(|layer| (0..directions).flat_map(move |d| self.names_of(layer, d)))
            .collect())
    }

    /// G*H
    fn rows(&self) -> usize {
        self.gates.count() * self.hidden_size
    }

    /// What a layer reads: I, or D*P above the first layer.
    fn layer_input(&self, layer: usize) -> usize {
        if layer == 0 {
            self.input_size
        } else {
            self.directions() * self.output_size()
        }
    }

    fn names_of(&self, layer: usize, direction: usize) -> Vec<(String, Vec<usize>)> {
        let (rows, output) = (self.rows(), self.output_size());
        let mut names = vec![
            ("weight_ih", vec![rows, self.layer_input(layer)]),
            ("weight_hh", vec![rows, output]),
        ];
        if self.bias {
            names.push(("bias_ih", vec![rows]));
            names.push(("bias_hh", vec![rows]));
        }
        if self.proj_size > 0 {
            names.push(("weight_hr", vec![output, self.hidden_size]));
        }
        if self.peephole {
            names.push(("weight_p", vec![3, self.hidden_size]));
        }
        names
            .into_iter()
            .map(|(name, shape)| (named(name, layer, direction), shape))
            .collect()
    }

    fn check(&self, op: &'static str) -> Result<()> {
        for (arg, size, least, most) in [
            ("input_size", self.input_size, 1, MAX_SIZE),
            ("hidden_size", self.hidden_size, 1, MAX_SIZE),
            ("proj_size", self.proj_size, 0, MAX_SIZE),
            ("num_layers", self.num_layers, 1, MAX_LAYERS),
        ] {
            if !(least..=most).contains(&size) {
                return Err(Error::value(op, arg, format!("{least} to {most}"), size));
            }
        }
        if self.gates != Gates::Lstm && self.proj_size > 0 {
            let expected = "0 for a cell that is no LSTM";
            return Err(Error::value(op, "proj_size", expected, self.proj_size));
        }
        if self.gates != Gates::Lstm && self.peephole {
            let expected = "false for a cell that is no LSTM";
            return Err(Error::value(op, "peephole", expected, self.peephole));
        }
        Ok(())
    }

    /// [`Self::check`], and that there is such a layer.
    fn check_layer(&self, op: &'static str, layer: usize) -> Result<()> {
        self.check(op)?;
        if layer >= self.num_layers {
            let expected = format!("below num_layers, {}", self.num_layers);
            return Err(Error::value(op, "layer", expected, layer));
        }
        Ok(())
    }
}

/// PyTorch's name of a weight in this layer and direction.
fn named(weight: &str, layer: usize, direction: usize) -> String {
    let reverse = if direction == 0 { "" } else { "_reverse" };
    format!("{weight}_l{layer}{reverse}")
}
