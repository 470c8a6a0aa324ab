//! A recurrent cell as data: how many gates, what is kept, which kernels.
//!
//! One driver, [`crate::plan::sequence`], runs every cell. It finds the buffers of a cell's kernels
//! by the names of their bindings, so a new cell is two kernels and a [`Cell`].
//!
//! Binding names in the forward kernel: `gates` `[T, N, S, H]` (on entry W_ih x + b_ih in the first
//! G blocks; in training the kernel may leave there what the backward pass needs), `weight_hh_t`
//! `[H, G, H]`, `bias_hh` `[G, H]`, `h` `[T + 1, N, H]`, `c` `[T + 1, N, H]` (in inference `[2, N, H]`).
//!
//! In the backward kernel: `saved_gates`, `saved_h`, `saved_c` (the same buffers), `weight_hh`
//! `[G, H, H]`, `dy` `[T, N, H]`, `dgates` `[T, N, S, H]`, `dstate` `[1 or 2, N, H]` (the gradients of
//! h and c; on entry to step t the part that did not come through the gates of step t + 1).

use crate::kernel::{Constant, Kernel};
use crate::kernels::{gru, lstm, rnn};

/// A cell. See the [module](self).
#[derive(Debug)]
pub struct Cell {
    /// The name by which a tool or a file selects it.
    pub name: &'static str,
    /// G: the blocks of H rows in `weight_ih` and `weight_hh`.
    pub gates: usize,
    /// S: the blocks of H values per step and sequence that training keeps; at least G.
    pub slots: usize,
    /// True if the forward kernel has a constant `SAVE` that turns the keeping on.
    pub saves: bool,
    /// True if there is a cell state c beside h.
    pub cell_state: bool,
    /// One step forward.
    pub forward: &'static Kernel,
    /// One step of back-propagation.
    pub backward: &'static Kernel,
    /// Constants of both kernels.
    pub constants: &'static [Constant],
    /// Where `dgates` has the gradients of W_ih x + b_ih.
    pub input_gradient: &'static [Blocks],
    /// Where `dgates` has the gradients of W_hh h + b_hh.
    pub recurrent_gradient: &'static [Blocks],
}

/// Some neighbouring blocks of `dgates` and the gates that they are the gradients of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// The first block in `dgates`.
    pub slot: usize,
    /// The first gate.
    pub gate: usize,
    /// How many.
    pub count: usize,
}

impl Cell {
    /// How many states it carries: h, and c where it has one.
    pub fn states(&self) -> usize {
        1 + usize::from(self.cell_state)
    }

    /// The cell with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|c| c.name == name).copied()
    }
}

/// Every cell of this crate.
pub static ALL: &[&Cell] = &[&LSTM, &GRU, &RNN_TANH, &RNN_RELU];

const fn blocks(slot: usize, gate: usize, count: usize) -> Blocks {
    Blocks { slot, gate, count }
}

/// Long short-term memory; gates i, f, g, o.
pub static LSTM: Cell = Cell {
    name: "lstm",
    gates: 4,
    slots: 4,
    saves: true,
    cell_state: true,
    forward: &lstm::FORWARD,
    backward: &lstm::BACKWARD,
    constants: &[],
    input_gradient: &[blocks(0, 0, 4)],
    recurrent_gradient: &[blocks(0, 0, 4)],
};

/// Gated recurrent unit, reset after the product; gates r, z, n. It keeps r, z, n and q = R_n h + b.
pub static GRU: Cell = Cell {
    name: "gru",
    gates: 3,
    slots: 4,
    saves: true,
    cell_state: false,
    forward: &gru::FORWARD,
    backward: &gru::BACKWARD,
    constants: &[],
    input_gradient: &[blocks(0, 0, 3)],
    recurrent_gradient: &[blocks(0, 0, 2), blocks(3, 2, 1)],
};

/// Plain recurrent network with tanh.
pub static RNN_TANH: Cell = rnn_cell("rnn_tanh", &[("RELU", 0)]);

/// Plain recurrent network with max(x, 0).
pub static RNN_RELU: Cell = rnn_cell("rnn_relu", &[("RELU", 1)]);

const fn rnn_cell(name: &'static str, constants: &'static [Constant]) -> Cell {
    Cell {
        name,
        gates: 1,
        slots: 1,
        saves: false,
        cell_state: false,
        forward: &rnn::FORWARD,
        backward: &rnn::BACKWARD,
        constants,
        input_gradient: ONE_GATE,
        recurrent_gradient: ONE_GATE,
    }
}

const ONE_GATE: &[Blocks] = &[blocks(0, 0, 1)];
