//! What layer to build: one struct per cell, so that each has just the options that make sense.

use super::Layer;
use crate::activation::Activation;
use crate::cell::{self, Cell};
use crate::context::Context;
use crate::error::Result;
use crate::init::Init;
use crate::plan::sequence::{LayerSpec, Precision};

/// Long short-term memory, as `torch.nn.LSTM`, with the options of ONNX and cuDNN.
#[derive(Debug, Clone, Copy)]
pub struct Lstm {
    spec: LayerSpec,
    init: Init,
    seed: u64,
    peepholes: bool,
}

/// Gated recurrent units, as `torch.nn.GRU`, or with the reset gate before the product.
#[derive(Debug, Clone, Copy)]
pub struct Gru {
    spec: LayerSpec,
    init: Init,
    seed: u64,
}

/// Plain recurrent layers, as `torch.nn.RNN`, or with another activation.
#[derive(Debug, Clone, Copy)]
pub struct Rnn {
    spec: LayerSpec,
    init: Init,
    seed: u64,
}

/// The usual activations of an [`Rnn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nonlinearity {
    /// tanh
    #[default]
    Tanh,
    /// max(x, 0)
    Relu,
}

/// Where a [`Gru`] applies its reset gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reset {
    /// To W_hn h + b_hn, as PyTorch and cuDNN do.
    #[default]
    After,
    /// To h, as the original paper and ONNX do.
    Before,
}

macro_rules! common_options {
    ($layer:ident) => {
        impl $layer {
            /// L layers on top of each other; 1 by default.
            #[must_use]
            pub fn num_layers(mut self, num_layers: usize) -> Self {
                self.spec.num_layers = num_layers;
                self
            }

            /// With a second direction that runs from the end, or without, as is the default.
            #[must_use]
            pub fn bidirectional(mut self, bidirectional: bool) -> Self {
                self.spec.bidirectional = bidirectional;
                self
            }

            /// With both biases, as is the default, or without.
            #[must_use]
            pub fn bias(mut self, bias: bool) -> Self {
                self.spec.bias = bias;
                self
            }

            /// In training, the probability with which what one layer passes to the next is dropped;
            /// 0 by default.
            #[must_use]
            pub fn dropout(mut self, probability: f32) -> Self {
                self.spec.dropout = probability;
                self
            }

            /// The seed of what is dropped; 0 by default.
            #[must_use]
            pub fn dropout_seed(mut self, seed: u64) -> Self {
                self.spec.dropout_seed = seed;
                self
            }

            /// Limits every gate's pre-activation to ±`bound`, as ONNX does.
            #[must_use]
            pub fn clip(mut self, bound: f64) -> Self {
                self.spec.clip = Some(bound);
                self
            }

            /// What the kernels read of the weights: all of their bits, as is the default, or a copy in
            /// 16-bit floats, which halves the bytes of every step; see [`Precision`].
            #[must_use]
            pub fn precision(mut self, precision: Precision) -> Self {
                self.spec.precision = precision;
                self
            }

            /// How the weights begin; as PyTorch's, [`Init::pytorch`], by default.
            #[must_use]
            pub fn init(mut self, init: Init) -> Self {
                self.init = init;
                self
            }

            /// The seed of the initial weights; 0 by default.
            #[must_use]
            pub fn seed(mut self, seed: u64) -> Self {
                self.seed = seed;
                self
            }

            /// Allocates the weights on a device and draws them.
            ///
            /// # Errors
            /// If a size is 0, options contradict each other, or the device cannot hold the weights; as
            /// [`Layer::initialise_with`].
            pub fn build(self, context: &Context) -> Result<Layer> {
                let layer = Layer::zeros(context, self.spec())?;
                layer.initialise_with(&self.init, self.seed)?;
                Ok(layer)
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
        Self {
            spec: LayerSpec::new(&cell::LSTM, input_size, hidden_size),
            init: Init::pytorch(),
            seed: 0,
            peepholes: false,
        }
    }

    /// Projects h to P units, as `proj_size` in PyTorch; 0, the default, for none.
    #[must_use]
    pub fn projection(mut self, proj_size: usize) -> Self {
        self.spec.proj_size = proj_size;
        self
    }

    /// Lets the gates see the cell state through weights of their own; off by default.
    #[must_use]
    pub fn peepholes(mut self, peepholes: bool) -> Self {
        self.peepholes = peepholes;
        self
    }

    /// Makes the forget gate 1 minus the input gate, ONNX's `input_forget`; off by default. The
    /// forget gate's own weights then have no effect and no gradient.
    #[must_use]
    pub fn coupled(mut self, coupled: bool) -> Self {
        self.spec.coupled = coupled;
        self
    }

    /// Limits the cell state to ±`bound` before it is used, as cuDNN does. A state at the bound counts as
    /// limited: no gradient passes.
    #[must_use]
    pub fn cell_clip(mut self, bound: f64) -> Self {
        self.spec.cell_clip = Some(bound);
        self
    }

    /// The activations of the gates i, f and o, of g, and of the cell state on its way to h; sigmoid,
    /// tanh and tanh by default.
    #[must_use]
    pub fn activations(mut self, gate: Activation, cell: Activation, hidden: Activation) -> Self {
        self.spec.activations = [gate, cell, hidden];
        self
    }

    /// What the driver of [`crate::plan::sequence`] needs to know.
    pub fn spec(&self) -> LayerSpec {
        let cell: &'static Cell = match (self.peepholes, self.spec.proj_size > 0) {
            (false, false) => &cell::LSTM,
            (true, false) => &cell::LSTM_PEEPHOLE,
            (false, true) => &cell::LSTM_PROJECTED,
            (true, true) => &cell::LSTM_PEEPHOLE_PROJECTED,
        };
        LayerSpec { cell, ..self.spec }
    }
}

impl Gru {
    /// I inputs and H hidden units, with biases.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            spec: LayerSpec::new(&cell::GRU, input_size, hidden_size),
            init: Init::pytorch(),
            seed: 0,
        }
    }

    /// Where the reset gate is applied; after the product by default.
    #[must_use]
    pub fn reset(mut self, reset: Reset) -> Self {
        self.spec.cell = match reset {
            Reset::After => &cell::GRU,
            Reset::Before => &cell::GRU_BEFORE,
        };
        self
    }

    /// The activations of the gates r and z, and of n; sigmoid and tanh by default.
    #[must_use]
    pub fn activations(mut self, gate: Activation, new: Activation) -> Self {
        self.spec.activations[..2].copy_from_slice(&[gate, new]);
        self
    }

    /// What the driver of [`crate::plan::sequence`] needs to know.
    pub fn spec(&self) -> LayerSpec {
        self.spec
    }
}

impl Rnn {
    /// I inputs and H hidden units, with biases and tanh.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            spec: LayerSpec::new(&cell::RNN_TANH, input_size, hidden_size),
            init: Init::pytorch(),
            seed: 0,
        }
    }

    /// The activation; tanh by default.
    #[must_use]
    pub fn nonlinearity(mut self, nonlinearity: Nonlinearity) -> Self {
        self.spec.cell = match nonlinearity {
            Nonlinearity::Tanh => &cell::RNN_TANH,
            Nonlinearity::Relu => &cell::RNN_RELU,
        };
        self.activation(self.spec.cell.activations[0])
    }

    /// Any other activation.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.spec.activations[0] = activation;
        self
    }

    /// What the driver of [`crate::plan::sequence`] needs to know.
    pub fn spec(&self) -> LayerSpec {
        self.spec
    }
}
