//! One step of a pass: a cell's kernel with its buffers found by name.

use super::{BufferId, Builder, Call, Gradients, Matrix, Mode, Size, States, Weights};
use crate::error::{Error, Result};
use crate::kernel::{Access, Kernel};
use crate::kernels::index;
use crate::kernels::step::{ROWS, StepParams, WORKGROUP};
use crate::plan::{Cost, Dispatch, Grid};

/// Adds one step of the forward pass.
///
/// # Errors
/// If the cell's kernel has a binding that the driver does not know.
pub(crate) fn forward_step(
    b: &mut Builder,
    call: &Call,
    weights: &Weights,
    states: &States,
    t: usize,
) -> Result<()> {
    let (cell, mode) = (call.layer.cell, call.mode);
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
    let step = Step { call, t, dy: None };
    b.push(Dispatch {
        kernel: cell.forward,
        constants: &constants,
        bindings: &bindings(cell.forward, &known)?,
        params: step.params(cell.forward)?,
        grid: step.grid(),
        cost: Cost {
            flops: step.flops(),
            bytes: step.bytes(cell.forward),
            length: call.layer.hidden_size,
        },
    })
}

/// Adds one step of the backward pass.
///
/// # Errors
/// If the cell's kernel has a binding that the driver does not know.
pub(crate) fn backward_step(
    b: &mut Builder,
    call: &Call,
    weights: &Weights,
    states: &States,
    gradients: &Gradients,
    dy: Matrix,
    t: usize,
) -> Result<()> {
    let cell = call.layer.cell;
    let known = [
        ("saved_gates", Some(states.gates)),
        ("saved_h", Some(states.h)),
        ("saved_c", states.c),
        ("weight_hh", Some(weights.weight_hh)),
        ("dy", Some(dy.buffer)),
        ("dgates", Some(gradients.dgates)),
        ("dstate", Some(gradients.dstate)),
    ];
    let step = Step {
        call,
        t,
        dy: Some(dy),
    };
    b.push(Dispatch {
        kernel: cell.backward,
        constants: cell.constants,
        bindings: &bindings(cell.backward, &known)?,
        params: step.params(cell.backward)?,
        grid: step.grid(),
        cost: Cost {
            flops: step.flops(),
            bytes: step.bytes(cell.backward),
            length: call.layer.width(),
        },
    })
}

/// One step of a pass, for its parameters and counts.
struct Step<'a> {
    call: &'a Call,
    t: usize,
    /// The gradient of y, in a backward pass.
    dy: Option<Matrix>,
}

impl Step<'_> {
    fn params(&self, kernel: &Kernel) -> Result<StepParams> {
        let Size { steps, batch } = self.call.size;
        let (t, hidden) = (self.t, self.call.layer.hidden_size);
        let op = kernel.name;
        let state = batch * hidden;
        let row = self.call.slots() * hidden;
        let (c_from, c_to) = match self.call.mode {
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
        let units = self.call.layer.hidden_size.div_ceil(WORKGROUP);
        Grid::Groups([units, self.call.size.batch.div_ceil(ROWS), 1])
    }

    /// The product, unless this is the last step of a backward pass, which has none, and about ten
    /// operations for every gate of a unit.
    fn flops(&self) -> u64 {
        let Call { layer, size, .. } = self.call;
        let gates = size.batch * layer.width();
        let last = self.t + 1 == size.steps;
        let product = if self.dy.is_some() && last {
            0
        } else {
            2 * gates * layer.hidden_size
        };
        (product + 10 * gates) as u64
    }

    /// The weights once, and for each sequence one step of every other buffer.
    fn bytes(&self, kernel: &Kernel) -> u64 {
        let unit = self.call.size.batch * self.call.layer.hidden_size;
        let touched: usize = kernel
            .bindings
            .iter()
            .map(|b| {
                let times = if b.access == Access::ReadWrite { 2 } else { 1 };
                match b.name {
                    "weight_hh" | "weight_hh_t" => {
                        self.call.layer.width() * self.call.layer.hidden_size
                    }
                    "bias_hh" => self.call.layer.width(),
                    "gates" | "saved_gates" | "dgates" => times * unit * self.call.slots(),
                    "dstate" => times * unit * self.call.layer.cell.states(),
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
