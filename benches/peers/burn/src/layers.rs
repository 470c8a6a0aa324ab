//! Layers of `burn::nn` on top of each other, and a call of them.

use burn::module::{Initializer, Module, ModuleVisitor, Param};
use burn::nn::activation::ActivationConfig;
use burn::nn::{
    BiGru, BiGruConfig, BiLstm, BiLstmConfig, BiRnn, BiRnnConfig, Gru, GruConfig, Lstm, LstmConfig,
    LstmState, Rnn, RnnConfig, RnnState,
};
use burn::prelude::*;
use burn::tensor::{Distribution, Gradients};

use crate::{CellName, Shape};

/// One layer, batch first as Burn has it: [N, T, I] to [N, T, D·H].
enum Layer {
    Lstm(Lstm),
    BiLstm(BiLstm),
    Gru(Gru),
    BiGru(BiGru),
    Rnn(Rnn),
    BiRnn(BiRnn),
}

/// Passes the layer that a variant holds to an expression.
macro_rules! each {
    ($layer:expr, $l:ident => $do:expr) => {
        match $layer {
            Layer::Lstm($l) => $do,
            Layer::BiLstm($l) => $do,
            Layer::Gru($l) => $do,
            Layer::BiGru($l) => $do,
            Layer::Rnn($l) => $do,
            Layer::BiRnn($l) => $do,
        }
    };
}

impl Layer {
    fn new(shape: &Shape, input: usize, device: &Device) -> Self {
        let hidden = shape.hidden;
        let bound = (hidden as f64).powf(-0.5);
        let init = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        macro_rules! layer {
            ($config:ident) => {
                $config::new(input, hidden, true).with_initializer(init)
            };
        }
        let activation = match shape.cell {
            CellName::RnnRelu => ActivationConfig::Relu,
            _ => ActivationConfig::Tanh,
        };
        match (shape.cell, shape.bidirectional) {
            (CellName::Lstm, false) => Self::Lstm(layer!(LstmConfig).init(device)),
            (CellName::Lstm, true) => Self::BiLstm(layer!(BiLstmConfig).init(device)),
            (CellName::Gru, false) => Self::Gru(layer!(GruConfig).init(device)),
            (CellName::Gru, true) => Self::BiGru(layer!(BiGruConfig).init(device)),
            (_, false) => {
                let config = layer!(RnnConfig).with_hidden_activation(activation);
                Self::Rnn(config.init(device))
            }
            (_, true) => {
                let config = layer!(BiRnnConfig).with_hidden_activation(activation);
                Self::BiRnn(config.init(device))
            }
        }
    }

    /// `h` and `c` are [D, N, H].
    fn forward(&self, x: Tensor<3>, h: Tensor<3>, c: Tensor<3>) -> Tensor<3> {
        let one = |state: Tensor<3>| state.squeeze_dim::<2>(0);
        match self {
            Self::Lstm(l) => l.forward(x, Some(LstmState::new(one(c), one(h)))).0,
            Self::BiLstm(l) => l.forward(x, Some(LstmState::new(c, h))).0,
            Self::Gru(l) => l.forward(x, Some(one(h))),
            Self::BiGru(l) => l.forward(x, Some(h)).0,
            Self::Rnn(l) => l.forward(x, Some(RnnState::new(one(h)))).0,
            Self::BiRnn(l) => l.forward(x, Some(RnnState::new(h))).0,
        }
    }
}

/// The layers of a shape with their input, zero states and, for training, the gradient of y.
pub struct Stack {
    layers: Vec<Layer>,
    x: Tensor<3>,
    /// h and c of each layer.
    states: Vec<[Tensor<3>; 2]>,
    dy: Option<Tensor<3>>,
    device: Device,
}

impl Stack {
    pub fn new(shape: &Shape, train: bool, device: Device) -> Self {
        let device = if train { device.autodiff() } else { device };
        device.seed(1);
        let directions = 1 + usize::from(shape.bidirectional);
        let variable = |t: Tensor<3>| if train { t.require_grad() } else { t };
        let random = |width: usize| {
            let size = [shape.batch, shape.steps, width];
            Tensor::random(size, Distribution::Uniform(-1.0, 1.0), &device)
        };
        let zeros = || {
            variable(Tensor::zeros(
                [directions, shape.batch, shape.hidden],
                &device,
            ))
        };
        let inputs = (0..shape.layers).map(|l| match l {
            0 => shape.input,
            _ => shape.hidden * directions,
        });
        Self {
            layers: inputs.map(|i| Layer::new(shape, i, &device)).collect(),
            x: variable(random(shape.input)),
            states: (0..shape.layers).map(|_| [zeros(), zeros()]).collect(),
            dy: train.then(|| random(shape.hidden * directions)),
            device,
        }
    }

    fn forward(&self) -> Tensor<3> {
        let levels = self.layers.iter().zip(&self.states);
        levels.fold(self.x.clone(), |x, (layer, [h, c])| {
            layer.forward(x, h.clone(), c.clone())
        })
    }

    /// A call until its results are there. Burn computes what is asked for: this asks for the sum of y,
    /// or of the gradient of x while all other gradients are held.
    pub fn run(&self) -> f32 {
        let Some(dy) = &self.dy else {
            let sum = value(self.forward().sum());
            self.wait();
            return sum;
        };
        let gradients = (self.forward() * dy.clone()).sum().backward();
        let dx = self.x.grad(&gradients).expect("x has a gradient");
        let sum = value(dx.sum());
        self.wait();
        drop(gradients);
        sum
    }

    /// Whether the sum that is timed is that of all of y, or every gradient is there and finite.
    pub fn check(&self) -> Result<(), String> {
        let Some(dy) = &self.dy else {
            let y = self.forward().into_data().try_to_vec::<f32>();
            let y = y.map_err(|e| format!("{e:?}"))?;
            let sum: f64 = y.iter().map(|v| f64::from(*v)).sum();
            let size: f64 = y.iter().map(|v| f64::from(v.abs())).sum();
            let got = f64::from(self.run());
            return if size > 0.0 && (got - sum).abs() <= 1e-3 * size {
                Ok(())
            } else {
                Err(format!("y sums up to {sum} and was read as {got}"))
            };
        };
        let gradients = (self.forward() * dy.clone()).sum().backward();
        let mut sums = Sums {
            gradients: &gradients,
            of: Vec::new(),
        };
        for layer in &self.layers {
            each!(layer, l => l.visit(&mut sums));
        }
        sums.of.push(self.x.grad(&gradients).map(|g| g.sum()));
        for sum in sums.of {
            let sum = value(sum.ok_or("a gradient is missing")?);
            if !sum.is_finite() || sum == 0.0 {
                return Err(format!("a gradient sums up to {sum}"));
            }
        }
        Ok(())
    }

    fn wait(&self) {
        self.device.sync().expect("the device fails");
    }
}

/// The sum of the gradient of every weight.
struct Sums<'a> {
    gradients: &'a Gradients,
    of: Vec<Option<Tensor<1>>>,
}

impl ModuleVisitor for Sums<'_> {
    fn visit_float<const D: usize>(&mut self, weight: &Param<Tensor<D>>) {
        let gradient = weight.val().grad(self.gradients);
        self.of.push(gradient.map(|g| g.sum()));
    }
}

fn value(tensor: Tensor<1>) -> f32 {
    tensor.into_data().try_to_vec::<f32>().expect("floats")[0]
}
