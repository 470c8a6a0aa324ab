//! What layer to build: one struct per cell, so that each has just the options that make sense.

use super::Layer;
use crate::cell::{self, Cell};
use crate::context::Context;
use crate::error::Result;
use crate::plan::sequence::LayerSpec;

/// A long short-term memory layer, as `torch.nn.LSTM` with one layer.
#[derive(Debug, Clone, Copy)]
pub struct Lstm {
    common: Common,
}

/// A gated recurrent unit layer with the reset gate after the product, as `torch.nn.GRU` with one layer.
#[derive(Debug, Clone, Copy)]
pub struct Gru {
    common: Common,
}

/// A plain recurrent layer, as `torch.nn.RNN` with one layer.
#[derive(Debug, Clone, Copy)]
pub struct Rnn {
    common: Common,
    nonlinearity: Nonlinearity,
}

/// The activation of an [`Rnn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nonlinearity {
    /// tanh
    #[default]
    Tanh,
    /// max(x, 0)
    Relu,
}

#[derive(Debug, Clone, Copy)]
struct Common {
    input_size: usize,
    hidden_size: usize,
    bias: bool,
    seed: u64,
}

impl Common {
    fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            input_size,
            hidden_size,
            bias: true,
            seed: 0,
        }
    }

    fn spec(self, cell: &'static Cell) -> LayerSpec {
        LayerSpec {
            cell,
            input_size: self.input_size,
            hidden_size: self.hidden_size,
            bias: self.bias,
        }
    }
}

macro_rules! common_options {
    ($layer:ident) => {
        impl $layer {
            /// With both biases, as is the default, or without.
            #[must_use]
            pub fn bias(mut self, bias: bool) -> Self {
                self.common.bias = bias;
                self
            }

            /// The seed of the initial weights; 0 by default.
            #[must_use]
            pub fn seed(mut self, seed: u64) -> Self {
                self.common.seed = seed;
                self
            }

            /// Allocates the weights on a device and draws them uniform in ±1/√H.
            ///
            /// # Errors
            /// If a size is 0, or the device cannot hold the weights.
            pub fn build(self, context: &Context) -> Result<Layer> {
                Layer::new(context, self.spec(), self.common.seed)
            }
        }
    };
}

common_options!(Lstm);
common_options!(Gru);
common_options!(Rnn);

impl Lstm {
    /// I inputs and H hidden units, with biases.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        let common = Common::new(input_size, hidden_size);
        Self { common }
    }

    /// What the driver of [`crate::plan::sequence`] needs to know.
    pub fn spec(&self) -> LayerSpec {
        self.common.spec(&cell::LSTM)
    }
}

impl Gru {
    /// I inputs and H hidden units, with biases.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        let common = Common::new(input_size, hidden_size);
        Self { common }
    }

    /// What the driver of [`crate::plan::sequence`] needs to know.
    pub fn spec(&self) -> LayerSpec {
        self.common.spec(&cell::GRU)
    }
}

impl Rnn {
    /// I inputs and H hidden units, with biases and tanh.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            common: Common::new(input_size, hidden_size),
            nonlinearity: Nonlinearity::Tanh,
        }
    }

    /// The activation; tanh by default.
    #[must_use]
    pub fn nonlinearity(mut self, nonlinearity: Nonlinearity) -> Self {
        self.nonlinearity = nonlinearity;
        self
    }

    /// What the driver of [`crate::plan::sequence`] needs to know.
    pub fn spec(&self) -> LayerSpec {
        self.common.spec(match self.nonlinearity {
            Nonlinearity::Tanh => &cell::RNN_TANH,
            Nonlinearity::Relu => &cell::RNN_RELU,
        })
    }
}
