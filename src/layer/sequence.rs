//! Calls of a layer over whole sequences of one kind.

use ndarray::{ArrayView, Dimension};

use super::{Layer, State};
use crate::error::{Error, Result};
use crate::kernels::clock;
use crate::plan::sequence::{
    self as driver, BackwardArgs, Call, Ends, LayerSpec, Mode, Run, States, Weights,
};
use crate::plan::{BufferId, Builder, Matrix, Plan, Role, Target};
use crate::program::{Program, check_free};
use crate::tensor::{Tensor, zero_together};

/// A layer's calls of one kind: a plan and its memory, made once.
///
/// Write [`x`](Self::x) and the initial state, run or record the forward pass, read
/// [`y`](Self::y) and the final state. In training, write [`dy`](Self::dy) and the gradients of the
/// final state, then run or record the backward pass. All tensors live as long as the sequence and
/// may also be filled or read by the host's own commands.
///
/// Shapes: x `[T, N, I]` and y `[T, N, D·P]`, or `[N, T, …]` where the [`Call`] says batch first, or
/// `[tokens, …]` for packed sequences; states `[L·D, N, P]` (h) and `[L·D, N, H]` (c). A gradient has
/// the shape of its value.
#[derive(Debug)]
pub struct Sequence {
    program: Program,
    run: Run,
    x: BufferId,
    y: BufferId,
    states: States,
    clock: Option<BufferId>,
    backward: Option<Backward>,
}

#[derive(Debug)]
struct Backward {
    dy: BufferId,
    dhn: BufferId,
    dcn: Option<BufferId>,
    gradients: driver::Backward,
}

/// A plan and where in it the sequence finds its buffers.
struct Planned {
    plan: Plan,
    run: Run,
    x: BufferId,
    y: BufferId,
    weights: Weights,
    states: States,
    clock: Option<BufferId>,
    backward: Option<Backward>,
}

fn plan(spec: &LayerSpec, call: &Call, target: &Target) -> Result<Planned> {
    let run = Run::new(spec, call, target)?;
    let mut b = Builder::on(name(&run), *target);
    let x = b.float("x", &run.shape(call.input, spec.input_size), Role::Input);
    let y = b.float("y", &run.shape(call.output, spec.features()), Role::Output);
    let weights = driver::weights(&mut b, spec);
    let states = driver::states(&mut b, &run);
    b.section("carry");
    driver::carry_states(&mut b, &states)?;
    b.section("forward");
    let training = call.mode == Mode::Training;
    if training {
        driver::prepare(&mut b, &weights)?;
    }
    let clock = (training && spec.dropout > 0.0).then(|| b.uint("clock", &[1], Role::State));
    // The layer's other sequences go on counting before this one's backward pass.
    let taken = clock.map(|_| b.uint("clock taken", &[1], Role::Saved));
    if let (Some(clock), Some(taken)) = (clock, taken) {
        clock::take(&mut b, clock, taken)?;
    }
    let ends = Ends {
        x: Matrix::dense(x, run.rows(), spec.input_size),
        y,
        clock: taken,
    };
    driver::forward(&mut b, &run, ends, &weights, &states)?;
    let backward = match call.mode {
        Mode::Inference => None,
        Mode::Training => {
            b.section("backward");
            let like = |b: &mut Builder, name: &str, id: BufferId| -> Result<BufferId> {
                let shape = b.buffer(id)?.shape.clone();
                Ok(b.float(name, &shape, Role::Input))
            };
            let dy = like(&mut b, "dy", y)?;
            let dhn = like(&mut b, "dhn", states.hn)?;
            let dcn = states.cn.map(|cn| like(&mut b, "dcn", cn)).transpose()?;
            let args = BackwardArgs {
                ends,
                dy,
                dhn: Some(dhn),
                dcn,
                dx: true,
            };
            let gradients = driver::backward(&mut b, &run, &weights, &states, args)?;
            Some(Backward {
                dy,
                dhn,
                dcn,
                gradients,
            })
        }
    };
    Ok(Planned {
        plan: b.finish(),
        run,
        x,
        y,
        weights,
        states,
        clock,
        backward,
    })
}

/// The layer and the call in a line.
fn name(run: &Run) -> String {
    let (spec, call) = (run.spec(), run.call());
    let mut name = format!(
        "{} I {} H {}",
        spec.cell.name, spec.input_size, spec.hidden_size
    );
    let mut add = |used: bool, text: String| {
        if used {
            name.push(' ');
            name.push_str(&text);
        }
    };
    add(spec.cell.projected, format!("P {}", spec.proj_size));
    add(spec.num_layers > 1, format!("L {}", spec.num_layers));
    add(spec.bidirectional, "D 2".to_owned());
    let half = spec.precision == driver::Precision::F16;
    add(half, spec.precision.to_string());
    let stored = call.activations;
    let half = stored == driver::Precision::F16;
    add(half, format!("activations {stored}"));
    add(true, format!("T {} N {}", run.steps(), run.batch()));
    let packed = matches!(call.batch, driver::Batch::Packed(_));
    add(packed, format!("packed {} tokens", run.rows()));
    if let Some(k) = call.recompute {
        add(true, format!("recompute {k}"));
    }
    add(call.burn_in > 0, format!("burn-in {}", call.burn_in));
    name
}

impl Sequence {
    /// The plan of a layer's calls for a target, without a device or memory: to print, to count, to
    /// compare.
    /// Its sections are those of [`Self::program`].
    ///
    /// # Errors
    /// If the layer or the call contradicts itself, or an index into a buffer would not fit 32 bits.
    pub fn plan(spec: &LayerSpec, call: &Call, target: &Target) -> Result<Plan> {
        Ok(plan(spec, call, target)?.plan)
    }

    pub(super) fn new(layer: &Layer, call: &Call, gradients: &[(String, Tensor)]) -> Result<Self> {
        let spec = *layer.spec();
        let target = layer.context().target();
        let least = Run::new(&spec, call, &target)?.least_bytes();
        check_free(layer.context(), "a call", least)?;
        let planned = plan(&spec, call, &target)?;
        let mut bound = existing(layer, planned.backward.as_ref(), gradients)?;
        bound.extend(planned.clock.zip(layer.clock.clone()));
        let sequence = Self {
            program: layer.program(planned.plan, &planned.weights, &bound)?,
            run: planned.run,
            x: planned.x,
            y: planned.y,
            states: planned.states,
            clock: planned.clock,
            backward: planned.backward,
        };
        if let Some(lengths) = sequence.states.lengths {
            let all = vec![sequence.run.steps() as u32; sequence.run.batch()];
            sequence.program.own(lengths).write_uint(&all)?;
        }
        Ok(sequence)
    }

    /// What kind of call it is.
    pub fn call(&self) -> &Call {
        self.run.call()
    }

    /// The plan and its memory; its sections are `carry`, `forward` and, in training, `backward`.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The input.
    pub fn x(&self) -> &Tensor {
        self.program.own(self.x)
    }

    /// The output: h of the last layer after every step, 0 past a sequence's length.
    pub fn y(&self) -> &Tensor {
        self.program.own(self.y)
    }

    /// The initial h; zeros until written.
    pub fn h0(&self) -> &Tensor {
        self.program.own(self.states.h0)
    }

    /// The initial c; zeros until written.
    ///
    /// # Errors
    /// If the cell has no c.
    pub fn c0(&self) -> Result<&Tensor> {
        self.of_cell(self.states.c0)
    }

    /// h after each sequence's last step.
    pub fn hn(&self) -> &Tensor {
        self.program.own(self.states.hn)
    }

    /// c after each sequence's last step.
    ///
    /// # Errors
    /// If the cell has no c.
    pub fn cn(&self) -> Result<&Tensor> {
        self.of_cell(self.states.cn)
    }

    /// True if the cell has a c beside h.
    pub fn has_cell_state(&self) -> bool {
        self.states.c0.is_some()
    }

    fn of_cell(&self, id: Option<BufferId>) -> Result<&Tensor> {
        let id = id.ok_or_else(|| Error::Unsupported {
            op: self.run.spec().cell.name,
            needs: "a cell state c".to_owned(),
        })?;
        Ok(self.program.own(id))
    }

    /// Sets the number of valid steps of each sequence, from 0 to T, for the runs from here on. What x and dy
    /// hold past them has no effect, be it NaN.
    ///
    /// # Errors
    /// If the call was planned without lengths, there are not N of them, or one is out of range.
    pub fn set_lengths(&self, lengths: &[i64]) -> Result<()> {
        const OP: &str = "Sequence::set_lengths";
        let Some(id) = self.states.lengths else {
            let needs = "lengths in a call that was planned without (Call::lengths)".to_owned();
            return Err(Error::Unsupported { op: OP, needs });
        };
        let (steps, batch) = (self.run.steps(), self.run.batch());
        if lengths.len() != batch {
            return Err(Error::shape(OP, "lengths", [batch], [lengths.len()]));
        }
        let mut values = Vec::with_capacity(batch);
        for (n, &length) in lengths.iter().enumerate() {
            match u32::try_from(length) {
                Ok(value) if length <= steps as i64 => values.push(value),
                _ => {
                    let arg = format!("lengths[{n}]");
                    return Err(Error::value(OP, arg, format!("from 0 to {steps}"), length));
                }
            }
        }
        self.program.own(id).write_uint(&values)
    }

    /// Sets the steps before which the state is zeroed, for the runs from here on: `[T, N]`, or
    /// `[N, T]` where the input is batch first, or `[tokens]` for packed sequences. A direction that
    /// runs from the end zeroes it before that step in its own order. A reset past a sequence's length
    /// counts as well: it zeroes the state that is kept there.
    ///
    /// # Errors
    /// If the call was planned without resets, or the mask has another shape.
    pub fn set_resets<D: Dimension>(&self, resets: ArrayView<'_, bool, D>) -> Result<()> {
        const OP: &str = "Sequence::set_resets";
        let Some(id) = self.states.resets else {
            let needs = "resets in a call that was planned without (Call::resets)".to_owned();
            return Err(Error::Unsupported { op: OP, needs });
        };
        let tensor = self.program.own(id);
        if resets.shape() != tensor.shape() {
            return Err(Error::shape(OP, "resets", tensor.shape(), resets.shape()));
        }
        tensor.write_uint(&resets.iter().map(|&r| u32::from(r)).collect::<Vec<_>>())
    }

    /// The layer's [counter of dropout masks](Layer::dropout_clock), in training with dropout.
    pub fn dropout_clock(&self) -> Option<&Tensor> {
        self.clock.map(|id| self.program.own(id))
    }

    /// Writes the initial state; zeros without one.
    ///
    /// # Errors
    /// If its shapes are not those of [`State`], or it has or lacks c against the cell.
    pub fn set_initial(&self, state: Option<&State>) -> Result<()> {
        let c0 = self.states.c0.map(|id| self.program.own(id));
        match state {
            Some(state) => state.write("Sequence::set_initial", self.h0(), c0),
            None => {
                let both: Vec<_> = [Some(self.h0()), c0].into_iter().flatten().collect();
                zero_together(&both)
            }
        }
    }

    /// Reads the final state.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&self) -> Result<State> {
        let cn = self.states.cn.map(|id| self.program.own(id));
        State::read(self.hn(), cn)
    }

    fn training(&self) -> Result<&Backward> {
        self.backward.as_ref().ok_or_else(|| Error::Unsupported {
            op: "a sequence for inference",
            needs: "gradients (use Layer::training)".to_owned(),
        })
    }

    /// The gradient of y, which the caller writes.
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn dy(&self) -> Result<&Tensor> {
        Ok(self.program.own(self.training()?.dy))
    }

    /// The gradient of the final h, which the caller writes; zeros until then.
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn dhn(&self) -> Result<&Tensor> {
        Ok(self.program.own(self.training()?.dhn))
    }

    /// The gradient of the final c, which the caller writes; zeros until then.
    ///
    /// # Errors
    /// If the sequence is for inference, or the cell has no c.
    pub fn dcn(&self) -> Result<&Tensor> {
        self.of_cell(self.training()?.dcn)
    }

    /// The gradient of x; 0 in steps of a burn-in.
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn dx(&self) -> Result<&Tensor> {
        let dx = self.training()?.gradients.x;
        dx.map(|id| self.program.own(id))
            .ok_or_else(|| Error::value("Sequence::dx", "x", "planned with its gradient", "none"))
    }

    /// The gradient of the initial h; 0 with a burn-in.
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn dh0(&self) -> Result<&Tensor> {
        Ok(self.program.own(self.training()?.gradients.dh0))
    }

    /// The gradient of the initial c; 0 with a burn-in.
    ///
    /// # Errors
    /// If the sequence is for inference, or the cell has no c.
    pub fn dc0(&self) -> Result<&Tensor> {
        self.of_cell(self.training()?.gradients.dc0)
    }

    /// The gradients of the weights, under the names and in the order of [`Layer::weights`].
    ///
    /// # Errors
    /// If the sequence is for inference.
    pub fn gradients(&self) -> Result<Vec<(String, Tensor)>> {
        let names = self.run.spec().weight_shapes().into_iter();
        let ids = self.training()?.gradients.weights.iter();
        Ok(names
            .zip(ids)
            .map(|((name, _), id)| (name, self.program.own(*id).clone()))
            .collect())
    }

    /// Sets the gradients of the weights to 0: what accumulation starts from.
    ///
    /// # Errors
    /// If the sequence is for inference, or the device fails.
    pub fn zero_gradients(&self) -> Result<()> {
        let gradients = self.gradients()?;
        zero_together(&gradients.iter().map(|(_, t)| t).collect::<Vec<_>>())
    }

    /// Runs the forward pass: on the CPU at once, on a GPU by a submission of its own. Weights that have changed are
    /// packed again before it, as part of the call.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self) -> Result<()> {
        self.program.run_fresh("forward")
    }

    /// Runs the backward pass of the latest forward pass, of this sequence. It keeps what that saved, so it may run
    /// again.
    ///
    /// # Errors
    /// [`Error::Value`] without a forward pass before it, or naming x or the weight that was written since,
    /// by whatever call of this crate: the gradients would belong to neither; nothing is changed then. What a host
    /// writes to buffers of a GPU by commands of its own is not seen. If the sequence is for inference, or the
    /// device fails.
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

    /// Records the forward pass into the host's encoder. In inference, weights that have changed since they were packed
    /// last are packed again before it, in the same encoder; where a host records alone, [`Layer::prepare`]
    /// after a change spares that to each recording. Weights that change between the recording and its submission
    /// need [`Layer::prepare`] before the submission.
    ///
    /// # Errors
    /// If the layer is on the CPU.
    #[cfg(feature = "gpu")]
    pub fn record_forward(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.program.record(encoder, "forward")
    }

    /// Records the backward pass into the host's encoder. A forward pass that was recorded before it counts as one that
    /// ran.
    ///
    /// # Errors
    /// As [`Self::backward`]; if the layer is on the CPU.
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

/// The tensors that a caller gave for gradients, for the plan's buffers.
fn existing(
    layer: &Layer,
    backward: Option<&Backward>,
    gradients: &[(String, Tensor)],
) -> Result<Vec<(BufferId, Tensor)>> {
    const OP: &str = "Layer::sequence_into";
    const ARG: &str = "gradients";
    if gradients.is_empty() {
        return Ok(Vec::new());
    }
    let Some(backward) = backward else {
        let got = gradients.len();
        return Err(Error::value(OP, ARG, "none in inference", got));
    };
    let names: Vec<&str> = layer.weights().iter().map(|(n, _)| n.as_str()).collect();
    let mut bound = Vec::new();
    for (i, (name, tensor)) in gradients.iter().enumerate() {
        let Some(nth) = names.iter().position(|n| n == name) else {
            let expected = format!("named as one of {names:?}");
            return Err(Error::value(OP, ARG, expected, name));
        };
        let before = &gradients[..i];
        if before.iter().any(|(n, _)| n == name) {
            return Err(Error::value(OP, ARG, "each name once", name));
        }
        let mut others = before.iter().chain(layer.weights());
        if let Some((other, _)) = others.find(|(_, other)| tensor.overlaps(other)) {
            let expected =
                format!("apart from each other and the weights, not in the memory of '{other}'");
            return Err(Error::value(OP, ARG, expected, name));
        }
        bound.push((backward.gradients.weights[nth], tensor.clone()));
    }
    Ok(bound)
}
