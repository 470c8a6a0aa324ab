//! Calls of a layer over whole sequences of one size.

use ndarray::Array2;

use super::{Layer, SUFFIX, State};
use crate::error::{Error, Result};
use crate::plan::sequence::{
    self as driver, BackwardArgs, Call, LayerSpec, Mode, Size, States, Weights,
};
use crate::plan::{BufferId, Builder, Matrix, Plan, Role};
use crate::program::Program;
use crate::tensor::Tensor;

/// A layer's calls over T steps of N sequences: a plan and its memory, made once.
///
/// Write [`x`](Self::x) and the initial state, run or record the forward pass, read
/// [`y`](Self::y) and the final state. With [`Layer::training`], write [`dy`](Self::dy) and the
/// gradients of the final state, then run or record the backward pass. All tensors live as long as
/// the sequence and may also be filled or read by the host's own commands.
#[derive(Debug)]
pub struct Sequence {
    program: Program,
    spec: LayerSpec,
    size: Size,
    x: BufferId,
    states: States,
    backward: Option<Backward>,
}

#[derive(Debug)]
struct Backward {
    dy: BufferId,
    final_gradient: BufferId,
    gradients: driver::Backward,
}

/// A plan and where in it the sequence finds its buffers.
struct Planned {
    plan: Plan,
    x: BufferId,
    weights: Weights,
    states: States,
    backward: Option<Backward>,
}

fn plan(spec: &LayerSpec, size: Size, mode: Mode) -> Result<Planned> {
    spec.check(size)?;
    let call = Call {
        layer: *spec,
        size,
        mode,
    };
    let Size { steps, batch } = size;
    let mut b = Builder::new(format!(
        "{} I {} H {} T {steps} N {batch}",
        spec.cell.name, spec.input_size, spec.hidden_size
    ));
    let x = b.float("x", &[steps, batch, spec.input_size], Role::Input);
    let x_rows = Matrix::dense(x, steps * batch, spec.input_size);
    let weights = driver::weights(&mut b, spec, SUFFIX);
    let states = driver::states(&mut b, &call);
    b.section("carry");
    driver::carry_states(&mut b, &call, &states)?;
    b.section("forward");
    if mode == Mode::Training {
        driver::prepare(&mut b, &weights)?;
    }
    driver::forward(&mut b, &call, x_rows, &weights, &states)?;
    let backward = match mode {
        Mode::Inference => None,
        Mode::Training => {
            b.section("backward");
            let dy = driver::output_gradient(&mut b, &call);
            let shape = [spec.cell.states(), batch, spec.hidden_size];
            let final_gradient = b.float("final gradient", &shape, Role::Input);
            let args = BackwardArgs {
                x: x_rows,
                dy,
                final_gradient: Some(final_gradient),
                dx: true,
            };
            Some(Backward {
                dy: dy.buffer,
                final_gradient,
                gradients: driver::backward(&mut b, &call, &weights, &states, args)?,
            })
        }
    };
    Ok(Planned {
        plan: b.finish(),
        x,
        weights,
        states,
        backward,
    })
}

impl Sequence {
    /// The plan of a layer's calls, without a device or memory: to print, to count, to compare.
    /// Its sections are those of [`Self::program`].
    ///
    /// # Errors
    /// If a size is 0 or an index into a buffer would not fit 32 bits.
    pub fn plan(spec: &LayerSpec, size: Size, mode: Mode) -> Result<Plan> {
        Ok(plan(spec, size, mode)?.plan)
    }

    pub(super) fn new(layer: &Layer, size: Size, mode: Mode) -> Result<Self> {
        let spec = *layer.spec();
        let planned = plan(&spec, size, mode)?;
        let bound = layer.bind(&planned.weights);
        Ok(Self {
            program: Program::new(layer.context(), planned.plan, &bound)?,
            spec,
            size,
            x: planned.x,
            states: planned.states,
            backward: planned.backward,
        })
    }

    /// T and N.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The plan and its memory; its sections are `carry`, `forward` and, in training, `backward`.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The input `[T, N, I]`.
    pub fn x(&self) -> &Tensor {
        self.program.tensor(self.x)
    }

    /// The initial h `[N, H]`; zeros until written.
    ///
    /// # Errors
    /// None in a sequence that was built.
    pub fn h0(&self) -> Result<Tensor> {
        self.state_at(self.states.h, 0)
    }

    /// The initial c `[N, H]`.
    ///
    /// # Errors
    /// If the cell has no c.
    pub fn c0(&self) -> Result<Tensor> {
        self.state_at(self.c()?, 0)
    }

    /// The output `[T, N, H]`: h after every step.
    ///
    /// # Errors
    /// None in a sequence that was built.
    pub fn y(&self) -> Result<Tensor> {
        self.program
            .tensor(self.states.h)
            .rows(1..self.size.steps + 1)
    }

    /// h after the last step, `[N, H]`.
    ///
    /// # Errors
    /// None in a sequence that was built.
    pub fn hn(&self) -> Result<Tensor> {
        self.state_at(self.states.h, self.size.steps)
    }

    /// c after the last step, `[N, H]`.
    ///
    /// # Errors
    /// If the cell has no c.
    pub fn cn(&self) -> Result<Tensor> {
        let c = self.c()?;
        let last = self.program.tensor(c).shape()[0] - 1;
        self.state_at(c, last)
    }

    /// True if the cell has a c beside h.
    pub fn has_cell_state(&self) -> bool {
        self.states.c.is_some()
    }

    fn c(&self) -> Result<BufferId> {
        self.states.c.ok_or_else(|| Error::Unsupported {
            op: self.spec.cell.name,
            needs: "a cell state c".to_owned(),
        })
    }

    fn state_at(&self, id: BufferId, step: usize) -> Result<Tensor> {
        let shape = [self.size.batch, self.spec.hidden_size];
        self.program
            .tensor(id)
            .rows(step..step + 1)?
            .reshaped(&shape)
    }

    /// Writes the initial state; zeros without one.
    ///
    /// # Errors
    /// If its shapes are not `[N, H]`, or it has or lacks c against the cell.
    pub fn set_initial(&self, state: Option<&State>) -> Result<()> {
        let shape = [self.size.batch, self.spec.hidden_size];
        let zeros = || Array2::zeros(shape);
        let zero = || State {
            h: zeros(),
            c: self.states.c.map(|_| zeros()),
        };
        let state = state.map_or_else(zero, State::clone);
        write(&self.h0()?, "h", &state.h)?;
        match (&state.c, self.states.c) {
            (Some(c), Some(_)) => write(&self.c0()?, "c", c),
            (None, None) => Ok(()),
            (given, _) => Err(Error::value(
                "Sequence::set_initial",
                "state",
                format!(
                    "c for an LSTM and none for others ({})",
                    self.spec.cell.name
                ),
                if given.is_some() { "c" } else { "no c" },
            )),
        }
    }

    /// Reads the final state.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&self) -> Result<State> {
        let c = match self.states.c {
            Some(_) => Some(read(&self.cn()?)?),
            None => None,
        };
        Ok(State {
            h: read(&self.hn()?)?,
            c,
        })
    }

    fn training(&self) -> Result<&Backward> {
        self.backward.as_ref().ok_or_else(|| Error::Unsupported {
            op: "a sequence for inference",
            needs: "gradients (use Layer::training)".to_owned(),
        })
    }

    /// The gradient of y `[T, N, H]`, which the caller writes.
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn dy(&self) -> Result<&Tensor> {
        Ok(self.program.tensor(self.training()?.dy))
    }

    /// The gradient of the final h `[N, H]`, which the caller writes; zeros until then.
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn dhn(&self) -> Result<Tensor> {
        self.state_at(self.training()?.final_gradient, 0)
    }

    /// The gradient of the final c `[N, H]`, which the caller writes; zeros until then.
    ///
    /// # Errors
    /// If the sequence is for inference, or the cell has no c.
    pub fn dcn(&self) -> Result<Tensor> {
        self.c()?;
        self.state_at(self.training()?.final_gradient, 1)
    }

    /// The gradient of x `[T, N, I]`.
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn dx(&self) -> Result<&Tensor> {
        let dx = self.training()?.gradients.x;
        dx.map(|id| self.program.tensor(id))
            .ok_or_else(|| Error::value("Sequence::dx", "x", "planned with its gradient", "none"))
    }

    /// The gradient of the initial h `[N, H]`.
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn dh0(&self) -> Result<Tensor> {
        self.state_at(self.training()?.gradients.dstate, 0)
    }

    /// The gradient of the initial c `[N, H]`.
    ///
    /// # Errors
    /// If the sequence is for inference, or the cell has no c.
    pub fn dc0(&self) -> Result<Tensor> {
        self.c()?;
        self.state_at(self.training()?.gradients.dstate, 1)
    }

    /// The gradients of the weights, under the names and in the order of [`Layer::weights`].
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn gradients(&self) -> Result<Vec<(String, Tensor)>> {
        let g = &self.training()?.gradients;
        let mut ids = vec![g.weight_ih, g.weight_hh];
        ids.extend(g.biases.iter().flatten());
        let names = self.spec.weight_shapes();
        let named = names.into_iter().zip(ids);
        Ok(named
            .map(|((name, _), id)| (format!("{name}_{SUFFIX}"), self.program.tensor(id).clone()))
            .collect())
    }

    /// Runs the forward pass: on the CPU at once, on a GPU by a submission of its own.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self) -> Result<()> {
        self.program.run("forward")
    }

    /// Runs the backward pass of the latest forward pass. It keeps what that saved, so it may run again.
    ///
    /// # Errors
    /// If the sequence is for inference, or the device fails.
    pub fn backward(&self) -> Result<()> {
        self.training()?;
        self.program.run("backward")
    }

    /// Moves the final state to the place of the initial one: the next forward pass goes on from it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn carry(&self) -> Result<()> {
        self.program.run("carry")
    }

    /// Records the forward pass into the host's encoder.
    ///
    /// # Errors
    /// If the layer is on the CPU.
    #[cfg(feature = "gpu")]
    pub fn record_forward(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.program.record(encoder, "forward")
    }

    /// Records the backward pass into the host's encoder.
    ///
    /// # Errors
    /// If the layer is on the CPU, or the sequence is for inference.
    #[cfg(feature = "gpu")]
    pub fn record_backward(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.training()?;
        self.program.record(encoder, "backward")
    }

    /// Records [`Self::carry`] into the host's encoder.
    ///
    /// # Errors
    /// If the layer is on the CPU.
    #[cfg(feature = "gpu")]
    pub fn record_carry(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.program.record(encoder, "carry")
    }
}

pub(super) fn write(tensor: &Tensor, arg: &str, values: &Array2<f32>) -> Result<()> {
    if values.shape() != tensor.shape() {
        return Err(Error::shape("State", arg, tensor.shape(), values.shape()));
    }
    tensor.write(&values.iter().copied().collect::<Vec<_>>())
}

pub(super) fn read(tensor: &Tensor) -> Result<Array2<f32>> {
    let shape = (tensor.shape()[0], tensor.shape()[1]);
    Array2::from_shape_vec(shape, tensor.read()?)
        .map_err(|e| Error::shape("State", "values", tensor.shape(), e.to_string()))
}
