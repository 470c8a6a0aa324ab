//! The driver of a recurrent layer: one list of steps for every cell.
//!
//! ```text
//! forward:   gates = X · W_ihᵀ + b_ih over all T·N rows, then one dispatch per step
//! backward:  one dispatch per step in reverse, then dW_ih = dgatesᵀ · X, dW_hh = dgatesᵀ · h,
//!            bias sums and dX = dgates · W_ih over all T·N rows
//! ```
//!
//! It knows a cell as data ([`crate::cell`]) and finds the buffers of its kernels by name.

use super::{BufferId, Builder, Cost, Dispatch, Grid, Matrix, Role};
use crate::cell::{Blocks, Cell};
use crate::error::{Error, Result};
use crate::kernel::{Access, Kernel};
use crate::kernels::copy::{carry, copy, fill};
use crate::kernels::gemm::Gemm;
use crate::kernels::index;
use crate::kernels::reduce::columns;
use crate::kernels::step::{ROWS, StepParams, WORKGROUP};
use crate::kernels::transpose::transpose;

/// What kind of layer, and how large.
#[derive(Debug, Clone, Copy)]
pub struct LayerSpec {
    /// Its cell.
    pub cell: &'static Cell,
    /// I
    pub input_size: usize,
    /// H
    pub hidden_size: usize,
    /// Whether it has biases; without them zeros stand in.
    pub bias: bool,
}

/// The size of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// T
    pub steps: usize,
    /// N
    pub batch: usize,
}

/// What a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Forward alone: of gates and c nothing is kept but what the next step needs.
    Inference,
    /// Forward, keeping what the backward pass needs.
    Training,
}

/// The buffers of a layer's weights, in PyTorch's layout and gate order.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    /// `[G·H, I]`
    pub weight_ih: BufferId,
    /// `[G·H, H]`
    pub weight_hh: BufferId,
    /// `[G·H]`
    pub bias_ih: BufferId,
    /// `[G·H]`
    pub bias_hh: BufferId,
    /// `[H, G·H]`, packed by [`prepare`].
    pub weight_hh_t: BufferId,
}

/// The buffers that a forward pass writes.
#[derive(Debug, Clone, Copy)]
pub struct States {
    /// `[T, N, S, H]`
    pub gates: BufferId,
    /// `[T + 1, N, H]` with the initial state first; y is the rest of it.
    pub h: BufferId,
    /// `[T + 1, N, H]`, or `[2, N, H]` in inference (first and latest), for cells that have c.
    pub c: Option<BufferId>,
}

/// The buffers that a backward pass works in.
#[derive(Debug, Clone, Copy)]
pub struct Gradients {
    /// `[T, N, S, H]`
    pub dgates: BufferId,
    /// `[states, N, H]`: on exit the gradients of the initial h and c.
    pub dstate: BufferId,
}

/// The gradients of a layer's weights and input.
#[derive(Debug, Clone, Copy)]
pub struct Backward {
    /// `[G·H, I]`
    pub weight_ih: BufferId,
    /// `[G·H, H]`
    pub weight_hh: BufferId,
    /// `[G·H]` each, if the layer has biases.
    pub biases: Option<[BufferId; 2]>,
    /// `[T·N, I]`, if it was asked for.
    pub x: Option<BufferId>,
    /// `[states, N, H]`: the gradients of the initial h and c.
    pub dstate: BufferId,
}

/// What a backward pass starts from and is asked for.
#[derive(Debug, Clone, Copy)]
pub struct BackwardArgs {
    /// `[T·N, I]`: the input of the forward pass.
    pub x: Matrix,
    /// `[T·N, H]`: the gradient of y.
    pub dy: Matrix,
    /// `[states, N, H]`: the gradients of the final h and c; zeros without.
    pub final_gradient: Option<BufferId>,
    /// Whether the gradient of x is wanted.
    pub dx: bool,
}

impl LayerSpec {
    /// G·H
    pub fn width(&self) -> usize {
        self.cell.gates * self.hidden_size
    }

    /// Names and shapes of the weights that training changes, as in PyTorch's state dict.
    pub fn weight_shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (width, hidden) = (self.width(), self.hidden_size);
        let mut shapes = vec![
            ("weight_ih", vec![width, self.input_size]),
            ("weight_hh", vec![width, hidden]),
        ];
        if self.bias {
            shapes.extend([("bias_ih", vec![width]), ("bias_hh", vec![width])]);
        }
        shapes
    }

    /// Refuses sizes of 0.
    pub(crate) fn check(&self, size: Size) -> Result<()> {
        let sizes = [
            ("input_size", self.input_size),
            ("hidden_size", self.hidden_size),
            ("steps", size.steps),
            ("batch", size.batch),
        ];
        for (arg, value) in sizes {
            if value == 0 {
                return Err(Error::value("layer", arg, "at least 1", value));
            }
        }
        Ok(())
    }

    fn slots(&self, mode: Mode) -> usize {
        match mode {
            Mode::Training => self.cell.slots,
            Mode::Inference => self.cell.gates,
        }
    }
}

impl States {
    /// y as a matrix `[T·N, H]`.
    pub fn y(&self, layer: &LayerSpec, size: Size) -> Matrix {
        let rows = (size.steps + 1) * size.batch;
        Matrix::dense(self.h, rows, layer.hidden_size).row_range(size.batch..rows)
    }
}

/// Adds the buffers of a layer's weights; `suffix` is PyTorch's, such as `l0`.
pub fn weights(b: &mut Builder, layer: &LayerSpec, suffix: &str) -> Weights {
    let (width, hidden) = (layer.width(), layer.hidden_size);
    let mut add =
        |name: &str, shape: &[usize]| b.float(&format!("{name}_{suffix}"), shape, Role::Weight);
    let weight_ih = add("weight_ih", &[width, layer.input_size]);
    let weight_hh = add("weight_hh", &[width, hidden]);
    let (bias_ih, bias_hh) = if layer.bias {
        (add("bias_ih", &[width]), add("bias_hh", &[width]))
    } else {
        let zeros = add("zero_bias", &[width]);
        (zeros, zeros)
    };
    Weights {
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        weight_hh_t: add("weight_hh_t", &[hidden, width]),
    }
}

/// Adds the buffers of a forward pass.
pub fn states(b: &mut Builder, layer: &LayerSpec, size: Size, mode: Mode) -> States {
    let Size { steps, batch } = size;
    let hidden = layer.hidden_size;
    let (kept, c_steps) = match mode {
        Mode::Training => (Role::Saved, steps + 1),
        Mode::Inference => (Role::Scratch, 2),
    };
    let with_c = layer.cell.cell_state;
    States {
        gates: b.float("gates", &[steps, batch, layer.slots(mode), hidden], kept),
        h: b.float("h", &[steps + 1, batch, hidden], Role::State),
        c: with_c.then(|| b.float("c", &[c_steps, batch, hidden], Role::State)),
    }
}

/// Adds the buffers that a backward pass works in.
pub fn gradients(b: &mut Builder, layer: &LayerSpec, size: Size) -> Gradients {
    let Size { steps, batch } = size;
    let (cell, hidden) = (layer.cell, layer.hidden_size);
    Gradients {
        dgates: b.float("dgates", &[steps, batch, cell.slots, hidden], Role::Scratch),
        dstate: b.float("dstate", &[cell.states(), batch, hidden], Role::Gradient),
    }
}

/// Adds a buffer for the gradient of y that the caller writes.
pub fn output_gradient(b: &mut Builder, layer: &LayerSpec, size: Size) -> Matrix {
    let Size { steps, batch } = size;
    let dy = b.float("dy", &[steps, batch, layer.hidden_size], Role::Input);
    Matrix::dense(dy, steps * batch, layer.hidden_size)
}

/// Adds the packing of the recurrent weights, needed whenever they have changed.
///
/// # Errors
/// If the buffers are not those of [`weights`].
pub fn prepare(b: &mut Builder, weights: &Weights) -> Result<()> {
    transpose(b, weights.weight_hh, weights.weight_hh_t)
}

/// Adds the move of the final h and c to the place of the initial ones, so that the next call goes on
/// where this one ended.
///
/// # Errors
/// If the buffers are not those of [`states`].
pub fn carry_states(b: &mut Builder, layer: &LayerSpec, size: Size, states: &States) -> Result<()> {
    let state = size.batch * layer.hidden_size;
    for id in [Some(states.h), states.c].into_iter().flatten() {
        let end = b.buffer(id).len() - state;
        carry(b, id, end, 0, state)?;
    }
    Ok(())
}

/// Adds the forward pass over `x` `[T·N, I]`. The initial h and c stand in the first step of their
/// buffers; [`prepare`] must have run.
///
/// # Errors
/// If a size is 0 or `x` has another shape.
pub fn forward(
    b: &mut Builder,
    layer: &LayerSpec,
    size: Size,
    mode: Mode,
    x: Matrix,
    weights: &Weights,
    states: &States,
) -> Result<()> {
    layer.check(size)?;
    let rows = size.steps * size.batch;
    check_rows("x", x, rows, layer.input_size)?;
    let (width, hidden) = (layer.width(), layer.hidden_size);
    let input = Matrix {
        row_stride: layer.slots(mode) * hidden,
        ..Matrix::dense(states.gates, rows, width)
    };
    Gemm {
        bias: layer.bias.then_some(weights.bias_ih),
        ..Gemm::new(
            x,
            Matrix::dense(weights.weight_ih, width, layer.input_size).t(),
            input,
        )
    }
    .push(b)?;
    for t in 0..size.steps {
        forward_step(b, layer, size, mode, weights, states, t)?;
    }
    Ok(())
}

/// Adds one step of the forward pass.
///
/// # Errors
/// If the cell's kernel has a binding that the driver does not know.
pub fn forward_step(
    b: &mut Builder,
    layer: &LayerSpec,
    size: Size,
    mode: Mode,
    weights: &Weights,
    states: &States,
    t: usize,
) -> Result<()> {
    let (cell, hidden) = (layer.cell, layer.hidden_size);
    let mut constants = cell.constants.to_vec();
    if cell.saves {
        constants.push(("SAVE", u32::from(mode == Mode::Training)));
    }
    let known = [
        ("gates", Some(states.gates)),
        ("weight_hh_t", Some(weights.weight_hh_t)),
        ("bias_hh", Some(weights.bias_hh)),
        ("h", Some(states.h)),
        ("c", states.c),
    ];
    let step = StepArgs {
        layer,
        size,
        mode,
        t,
        dy: None,
    };
    let product = size.batch * layer.width() * hidden;
    b.push(Dispatch {
        kernel: cell.forward,
        constants: &constants,
        bindings: &bindings(cell.forward, &known)?,
        params: step.params(cell.forward)?,
        grid: step.grid(),
        cost: Cost {
            flops: 2 * product as u64 + step.pointwise(),
            bytes: step.bytes(cell.forward, layer.width() * hidden),
            length: hidden,
        },
    })
}

/// Adds one step of the backward pass.
///
/// # Errors
/// If the cell's kernel has a binding that the driver does not know.
#[allow(
    clippy::too_many_arguments,
    reason = "one call inside the driver and one in the samples; every argument is of another type"
)]
pub fn backward_step(
    b: &mut Builder,
    layer: &LayerSpec,
    size: Size,
    weights: &Weights,
    states: &States,
    gradients: &Gradients,
    dy: Matrix,
    t: usize,
) -> Result<()> {
    let (cell, hidden) = (layer.cell, layer.hidden_size);
    let known = [
        ("saved_gates", Some(states.gates)),
        ("saved_h", Some(states.h)),
        ("saved_c", states.c),
        ("weight_hh", Some(weights.weight_hh)),
        ("dy", Some(dy.buffer)),
        ("dgates", Some(gradients.dgates)),
        ("dstate", Some(gradients.dstate)),
    ];
    let step = StepArgs {
        layer,
        size,
        mode: Mode::Training,
        t,
        dy: Some(dy),
    };
    let product = if t + 1 < size.steps {
        size.batch * layer.width() * hidden
    } else {
        0
    };
    b.push(Dispatch {
        kernel: cell.backward,
        constants: cell.constants,
        bindings: &bindings(cell.backward, &known)?,
        params: step.params(cell.backward)?,
        grid: step.grid(),
        cost: Cost {
            flops: 2 * product as u64 + step.pointwise(),
            bytes: step.bytes(cell.backward, layer.width() * hidden),
            length: layer.width(),
        },
    })
}

/// Adds the backward pass of a [`forward`] in training mode.
///
/// # Errors
/// If a matrix has another shape than the layer and the size ask for.
pub fn backward(
    b: &mut Builder,
    layer: &LayerSpec,
    size: Size,
    weights: &Weights,
    states: &States,
    args: BackwardArgs,
) -> Result<Backward> {
    layer.check(size)?;
    let (cell, hidden, width) = (layer.cell, layer.hidden_size, layer.width());
    let rows = size.steps * size.batch;
    check_rows("x", args.x, rows, layer.input_size)?;
    check_rows("dy", args.dy, rows, hidden)?;

    let work = gradients(b, layer, size);
    match args.final_gradient {
        None => fill(b, work.dstate, 0.0)?,
        Some(given) => {
            let len = b.buffer(work.dstate).len();
            copy(b, (given, 0), (work.dstate, 0), len)?;
        }
    }
    for t in (0..size.steps).rev() {
        backward_step(b, layer, size, weights, states, &work, args.dy, t)?;
    }

    // What is left for the initial h: the gates of the first step.
    let dgates = |blocks: &Blocks| {
        let all = Matrix::dense(work.dgates, rows, cell.slots * hidden);
        all.col_range(blocks.slot * hidden..(blocks.slot + blocks.count) * hidden)
    };
    let gate_rows = |m: Matrix, blocks: &Blocks| {
        m.row_range(blocks.gate * hidden..(blocks.gate + blocks.count) * hidden)
    };
    for blocks in cell.recurrent_gradient {
        let weight = Matrix::dense(weights.weight_hh, width, hidden);
        Gemm {
            beta: 1.0,
            ..Gemm::new(
                dgates(blocks).row_range(0..size.batch),
                gate_rows(weight, blocks),
                Matrix::dense(work.dstate, size.batch, hidden),
            )
        }
        .push(b)?;
    }

    let weight_ih = b.float("dweight_ih", &[width, layer.input_size], Role::Gradient);
    for blocks in cell.input_gradient {
        let dw = Matrix::dense(weight_ih, width, layer.input_size);
        Gemm::new(dgates(blocks).t(), args.x, gate_rows(dw, blocks)).push(b)?;
    }
    let weight_hh = b.float("dweight_hh", &[width, hidden], Role::Gradient);
    let h_before = Matrix::dense(states.h, rows, hidden);
    for blocks in cell.recurrent_gradient {
        let dw = Matrix::dense(weight_hh, width, hidden);
        Gemm::new(dgates(blocks).t(), h_before, gate_rows(dw, blocks)).push(b)?;
    }

    let biases = if layer.bias {
        let sums = b.float("dgate sums", &[cell.slots, hidden], Role::Scratch);
        columns(
            b,
            Matrix::dense(work.dgates, rows, cell.slots * hidden),
            sums,
        )?;
        let bias = |b: &mut Builder, name, from: &[Blocks]| -> Result<BufferId> {
            let id = b.float(name, &[width], Role::Gradient);
            for blocks in from {
                let (slot, gate) = (blocks.slot * hidden, blocks.gate * hidden);
                copy(b, (sums, slot), (id, gate), blocks.count * hidden)?;
            }
            Ok(id)
        };
        Some([
            bias(b, "dbias_ih", cell.input_gradient)?,
            bias(b, "dbias_hh", cell.recurrent_gradient)?,
        ])
    } else {
        None
    };

    let x = if args.dx {
        let dx = b.float(
            "dx",
            &[size.steps, size.batch, layer.input_size],
            Role::Gradient,
        );
        for (i, blocks) in cell.input_gradient.iter().enumerate() {
            let weight = Matrix::dense(weights.weight_ih, width, layer.input_size);
            Gemm {
                beta: if i == 0 { 0.0 } else { 1.0 },
                ..Gemm::new(
                    dgates(blocks),
                    gate_rows(weight, blocks),
                    Matrix::dense(dx, rows, layer.input_size),
                )
            }
            .push(b)?;
        }
        Some(dx)
    } else {
        None
    };
    Ok(Backward {
        weight_ih,
        weight_hh,
        biases,
        x,
        dstate: work.dstate,
    })
}

/// One step of a pass, for its parameters and counts.
struct StepArgs<'a> {
    layer: &'a LayerSpec,
    size: Size,
    mode: Mode,
    t: usize,
    dy: Option<Matrix>,
}

impl StepArgs<'_> {
    fn params(&self, kernel: &Kernel) -> Result<StepParams> {
        let Size { steps, batch } = self.size;
        let (t, hidden) = (self.t, self.layer.hidden_size);
        let op = kernel.name;
        let state = batch * hidden;
        let row = self.layer.slots(self.mode) * hidden;
        let (c_from, c_to) = match self.mode {
            Mode::Training => (t * state, (t + 1) * state),
            Mode::Inference => (if t == 0 { 0 } else { state }, state),
        };
        let (dy_start, dy_row) = self.dy.map_or((0, 0), |dy| {
            (dy.offset + t * batch * dy.row_stride, dy.row_stride)
        });
        Ok(StepParams {
            batch: index(op, batch)?,
            hidden: index(op, hidden)?,
            gates_start: index(op, t * batch * row)?,
            gates_row: index(op, row)?,
            next_start: index(op, (t + 1) * batch * row)?,
            has_next: u32::from(t + 1 < steps),
            h_from: index(op, t * state)?,
            h_to: index(op, (t + 1) * state)?,
            c_from: index(op, c_from)?,
            c_to: index(op, c_to)?,
            dy_start: index(op, dy_start)?,
            dy_row: index(op, dy_row)?,
        })
    }

    fn grid(&self) -> Grid {
        let units = self.layer.hidden_size.div_ceil(WORKGROUP);
        Grid::Groups([units, self.size.batch.div_ceil(ROWS), 1])
    }

    /// About ten operations for every gate of a unit.
    fn pointwise(&self) -> u64 {
        10 * (self.size.batch * self.layer.width()) as u64
    }

    /// The weights once, and for each sequence one step of every other buffer.
    fn bytes(&self, kernel: &Kernel, weights: usize) -> u64 {
        let unit = self.size.batch * self.layer.hidden_size;
        let touched: usize = kernel
            .bindings
            .iter()
            .map(|b| {
                let times = if b.access == Access::ReadWrite { 2 } else { 1 };
                match b.name {
                    "weight_hh" | "weight_hh_t" => weights,
                    "bias_hh" => self.layer.width(),
                    "gates" | "saved_gates" | "dgates" => {
                        times * unit * self.layer.slots(self.mode)
                    }
                    "dstate" => times * unit * self.layer.cell.states(),
                    _ => times * unit,
                }
            })
            .sum();
        4 * touched as u64
    }
}

fn bindings(kernel: &Kernel, known: &[(&str, Option<BufferId>)]) -> Result<Vec<BufferId>> {
    let find = |name: &str| {
        known
            .iter()
            .find(|(n, _)| *n == name)
            .and_then(|(_, id)| *id)
    };
    let one = |b: &crate::kernel::Binding| {
        find(b.name).ok_or_else(|| Error::Unsupported {
            op: "the sequence driver",
            needs: format!("binding '{}' of {} for this cell", b.name, kernel.name),
        })
    };
    kernel.bindings.iter().map(one).collect()
}

fn check_rows(arg: &str, matrix: Matrix, rows: usize, cols: usize) -> Result<()> {
    if (matrix.rows, matrix.cols) == (rows, cols) {
        Ok(())
    } else {
        Err(Error::shape(
            "layer",
            arg,
            [rows, cols],
            [matrix.rows, matrix.cols],
        ))
    }
}
