//! The driver of a recurrent layer: one list of steps for every cell.
//!
//! ```text
//! forward:   gates = X · W_ihᵀ + b_ih over all T·N rows, then one dispatch per step
//! backward:  one dispatch per step in reverse, then dW_ih = dgatesᵀ · X, dW_hh = dgatesᵀ · h,
//!            bias sums and dX = dgates · W_ih over all T·N rows
//! ```
//!
//! It knows a cell as data ([`crate::cell`]) and finds the buffers of its kernels by name.

mod backward;
mod forward;
mod step;

use super::{BufferId, Builder, Matrix, Role};
use crate::cell::Cell;
use crate::error::{Error, Result};
use crate::kernels::copy::carry;
use crate::kernels::transpose::transpose;

pub use backward::backward;
pub use forward::forward;
pub(crate) use step::{backward_step, forward_step};

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

/// One kind of call of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Which layer.
    pub layer: LayerSpec,
    /// How many steps of how many sequences.
    pub size: Size,
    /// What for.
    pub mode: Mode,
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

    /// Refuses sizes of 0, and arrays whose elements a shader could not index with 32 bits, before
    /// any product of their sizes is taken.
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
        let (cell, input, hidden) = (self.cell, self.input_size, self.hidden_size);
        let steps = size.steps.saturating_add(1);
        let largest: [(&str, &[usize]); 4] = [
            ("weight_ih", &[cell.gates, hidden, input]),
            ("weight_hh", &[cell.gates, hidden, hidden]),
            ("x", &[steps, size.batch, input]),
            ("gates", &[steps, size.batch, cell.slots, hidden]),
        ];
        for (name, shape) in largest {
            let needed = shape.iter().fold(1u64, |n, &v| n.saturating_mul(v as u64));
            if needed > u64::from(u32::MAX) {
                return Err(Error::Limit {
                    what: format!("{}: elements of {name}", cell.name),
                    needed,
                    available: u64::from(u32::MAX),
                });
            }
        }
        Ok(())
    }
}

impl Call {
    /// T·N
    pub fn rows(&self) -> usize {
        self.size.steps * self.size.batch
    }

    /// S: blocks per step and sequence in `gates`.
    fn slots(&self) -> usize {
        match self.mode {
            Mode::Training => self.layer.cell.slots,
            Mode::Inference => self.layer.cell.gates,
        }
    }
}

impl States {
    /// y as a matrix `[T·N, H]`.
    pub fn y(&self, call: &Call) -> Matrix {
        let batch = call.size.batch;
        let all = Matrix::dense(self.h, batch + call.rows(), call.layer.hidden_size);
        all.row_range(batch..all.rows)
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
pub fn states(b: &mut Builder, call: &Call) -> States {
    let Call { layer, size, mode } = call;
    let Size { steps, batch } = *size;
    let hidden = layer.hidden_size;
    let (kept, c_steps) = match mode {
        Mode::Training => (Role::Saved, steps + 1),
        Mode::Inference => (Role::Scratch, 2),
    };
    let with_c = layer.cell.cell_state;
    States {
        gates: b.float("gates", &[steps, batch, call.slots(), hidden], kept),
        h: b.float("h", &[steps + 1, batch, hidden], Role::State),
        c: with_c.then(|| b.float("c", &[c_steps, batch, hidden], Role::State)),
    }
}

/// Adds the buffers that a backward pass works in.
pub(crate) fn gradients(b: &mut Builder, call: &Call) -> Gradients {
    let Size { steps, batch } = call.size;
    let (cell, hidden) = (call.layer.cell, call.layer.hidden_size);
    Gradients {
        dgates: b.float("dgates", &[steps, batch, cell.slots, hidden], Role::Scratch),
        dstate: b.float("dstate", &[cell.states(), batch, hidden], Role::Gradient),
    }
}

/// Adds a buffer for the gradient of y that the caller writes.
pub fn output_gradient(b: &mut Builder, call: &Call) -> Matrix {
    let Size { steps, batch } = call.size;
    let hidden = call.layer.hidden_size;
    let dy = b.float("dy", &[steps, batch, hidden], Role::Input);
    Matrix::dense(dy, call.rows(), hidden)
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
pub fn carry_states(b: &mut Builder, call: &Call, states: &States) -> Result<()> {
    let state = call.size.batch * call.layer.hidden_size;
    for id in [Some(states.h), states.c].into_iter().flatten() {
        let end = b.buffer(id).len() - state;
        carry(b, id, end, 0, state)?;
    }
    Ok(())
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
