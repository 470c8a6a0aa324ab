//! Back-propagation through time against central differences, for every element of every input:
//! x, h0, c0, each weight and each bias. In double precision on the CPU, whose twins the GPU's
//! kernels are compared with elsewhere.

use wgrnn::cell::{self, Cell};
use wgrnn::check::compare;
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::rng::Rng;
use wgrnn::{Context, Layer, Result, Sequence, Size, Tensor};

/// A central difference errs by STEP² f'''/6 (truncation) and by about u |f| / STEP (rounding, with
/// u = 1.1e-16); the two meet near the cube root of u, 5e-6, which is rounded to a power of two so
/// that value ± STEP lose little more.
const STEP: f64 = 1.0 / (1 << 17) as f64;

/// Relative to the largest element of a gradient. Truncation: 5.8e-11 f'''/6, where a loss over a
/// few dozen tanh and sigmoid of arguments of order 1 has third derivatives of order 10; rounding:
/// u · 30 / STEP = 4e-10 for a loss of order 30. A wrong term shows as 1e-3 or more.
const TOLERANCE: f64 = 1e-8;

/// The loss whose gradients `dy`, `dhn` and `dcn` are: the outputs weighted with them.
struct Loss {
    layer: Layer,
    sequence: Sequence,
    dy: Vec<f64>,
    dhn: Vec<f64>,
    dcn: Vec<f64>,
}

impl Loss {
    fn new(cell: &'static Cell, bias: bool, steps: usize) -> Result<Self> {
        let spec = LayerSpec {
            cell,
            input_size: 2,
            hidden_size: 3,
            bias,
        };
        let size = Size { steps, batch: 2 };
        let layer = Layer::new(&Context::cpu_f64(), spec, 5)?;
        let sequence = layer.training(size)?;
        let mut rng = Rng::new(11);
        let mut random = |tensor: &Tensor| -> Result<Vec<f64>> {
            let values: Vec<f64> = (0..tensor.len())
                .map(|_| f64::from(rng.uniform(-1.0, 1.0)))
                .collect();
            tensor.write_f64(&values)?;
            Ok(values)
        };
        random(sequence.x())?;
        random(&sequence.h0()?)?;
        let dy = random(sequence.dy()?)?;
        let dhn = random(&sequence.dhn()?)?;
        let dcn = if cell.cell_state {
            random(&sequence.c0()?)?;
            random(&sequence.dcn()?)?
        } else {
            Vec::new()
        };
        Ok(Self {
            layer,
            sequence,
            dy,
            dhn,
            dcn,
        })
    }

    fn value(&self) -> Result<f64> {
        self.sequence.forward()?;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut loss = dot(&self.sequence.y()?.read_f64()?, &self.dy);
        loss += dot(&self.sequence.hn()?.read_f64()?, &self.dhn);
        if !self.dcn.is_empty() {
            loss += dot(&self.sequence.cn()?.read_f64()?, &self.dcn);
        }
        Ok(loss)
    }

    /// Every input with the gradient that the backward pass gives for it.
    fn inputs(&self) -> Result<Vec<(String, Tensor, Tensor)>> {
        let s = &self.sequence;
        let mut inputs = vec![
            ("x".to_owned(), s.x().clone(), s.dx()?.clone()),
            ("h0".to_owned(), s.h0()?, s.dh0()?),
        ];
        if !self.dcn.is_empty() {
            inputs.push(("c0".to_owned(), s.c0()?, s.dc0()?));
        }
        for (name, gradient) in s.gradients()? {
            let weight = self.layer.weight(&name)?.clone();
            inputs.push((name, weight, gradient));
        }
        Ok(inputs)
    }

    fn difference(&self, input: &Tensor) -> Result<Vec<f64>> {
        let values = input.read_f64()?;
        let mut moved = values.clone();
        let mut slopes = Vec::new();
        for (i, &value) in values.iter().enumerate() {
            let mut at = |v: f64| -> Result<f64> {
                moved[i] = v;
                input.write_f64(&moved)?;
                self.value()
            };
            let (above, below) = (value + STEP, value - STEP);
            let rise = at(above)? - at(below)?;
            slopes.push(rise / (above - below));
            moved[i] = value;
        }
        input.write_f64(&values)?;
        Ok(slopes)
    }
}

fn every_input(cell: &'static Cell) -> Result<()> {
    for bias in [true, false] {
        for steps in [1, 3] {
            let loss = Loss::new(cell, bias, steps)?;
            loss.value()?;
            loss.sequence.backward()?;
            let inputs = loss.inputs()?;
            let count = 2 + usize::from(cell.cell_state) + if bias { 4 } else { 2 };
            assert_eq!(inputs.len(), count, "{}", cell.name);
            // Read before the differences run the forward pass again.
            let gradients = inputs
                .iter()
                .map(|(_, _, g)| g.read_f64())
                .collect::<Result<Vec<_>>>()?;
            for ((name, input, _), got) in inputs.iter().zip(gradients) {
                let want = loss.difference(input)?;
                assert!(want.iter().any(|v| *v != 0.0), "{name}: no slope at all");
                let d = compare(&got, &want);
                assert!(
                    d.error <= TOLERANCE,
                    "{} (bias {bias}, T {steps}): gradient of {name}[{}] is {}, the difference {}: {:.2e}",
                    cell.name,
                    d.at,
                    d.got,
                    d.want,
                    d.error
                );
            }
        }
    }
    Ok(())
}

#[test]
fn lstm() -> Result<()> {
    every_input(&cell::LSTM)
}

#[test]
fn gru() -> Result<()> {
    every_input(&cell::GRU)
}

#[test]
fn rnn_tanh() -> Result<()> {
    every_input(&cell::RNN_TANH)
}

/// max(x, 0) has a kink, where a difference means nothing; with this seed no value comes within
/// STEP of it.
#[test]
fn rnn_relu() -> Result<()> {
    every_input(&cell::RNN_RELU)
}

/// Every cell of the crate has its test above.
#[test]
fn no_cell_is_left_out() {
    let names: Vec<_> = cell::ALL.iter().map(|c| c.name).collect();
    assert_eq!(names, ["lstm", "gru", "rnn_tanh", "rnn_relu"]);
}
