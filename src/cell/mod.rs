//! A recurrent cell as data: how many gates, what is kept, which kernels run in a step.
//!
//! One driver, [`crate::plan::sequence`], runs every cell, those of this crate ([`ALL`]) and those of
//! others. It finds the buffers of a cell's kernels by the names of their bindings, so a new cell is
//! its kernels and a [`Cell`]; `examples/mgu` is one outside the crate. A kernel is described by
//! [`step::kernel`](crate::kernels::step::kernel), takes
//! [`StepParams`](crate::kernels::step::StepParams) and has `mask` as its first binding.
//!
//! What a forward kernel may bind (G gates, S kept values, P units of h; the rows of a step are found
//! as [`Rows`](crate::kernels::step::Rows) says):
//!
//! | name | rows or shape | |
//! |---|---|---|
//! | `mask` | | read; which steps lie past a sequence's length, which start from zeros |
//! | `gates` | `[S, H]` | on entry W_ih x + b_ih in G blocks; in training the kernel leaves there what the backward pass needs. For streams x |
//! | `weight_hh_t` | `[P, G, H]` | W_hh transposed; for streams behind W_ih and b_ih |
//! | `bias_hh` | `[G, H]` | zeros in a layer without biases |
//! | `weight_p` | `[diagonal, H]` | weights that work unit by unit ([`Cell::diagonal`]) |
//! | `weight_hr_t` | `[H, P]` | the projection transposed |
//! | `h`, `c` | `[P]`, `[H]` | states before and after the step |
//! | `inner` | `[H]` | what one kernel of a step hands to the next |
//! | `y` | `[P]` | the output |
//!
//! And a backward kernel:
//!
//! | name | rows or shape | |
//! |---|---|---|
//! | `saved_gates`, `saved_h`, `saved_c` | as above | what the forward pass left |
//! | `weight_hh`, `weight_hr`, `weight_p` | `[G, H, P]`, `[P, H]`, as above | as PyTorch has them |
//! | `dy` | `[P]` | the gradient of y |
//! | `dgates` | `[gradient slots, H]` | the gradients of the pre-activations; those of the next step are read |
//! | `outer` | `[P]` | what one kernel of a step back hands to the next |
//! | `dstate` | `[N, P]`, then `[N, H]` | the gradients of h and c that do not come through the gates of the next step; on exit those of the states before this step |

mod cells;

use std::fmt;

use crate::activation::Activation;
use crate::kernel::{Constant, Kernel};

pub use cells::{
    ALL, GRU, GRU_BEFORE, LSTM, LSTM_PEEPHOLE, LSTM_PEEPHOLE_PROJECTED, LSTM_PROJECTED, RNN_RELU,
    RNN_TANH,
};

/// A cell. See the [module](self).
#[derive(Clone, Copy)]
pub struct Cell {
    /// The name by which a tool or a file selects it.
    pub name: &'static str,
    /// G: the blocks of H rows in `weight_ih` and `weight_hh`.
    pub gates: usize,
    /// S: the blocks of H values per step and sequence that training keeps; at least G.
    pub slots: usize,
    /// The blocks of H gradients per step and sequence.
    pub gradient_slots: usize,
    /// True if there is a cell state c beside h.
    pub cell_state: bool,
    /// True if h is projected to fewer units than H.
    pub projected: bool,
    /// The kernels of a step, in their order.
    pub forward: &'static [Pass],
    /// The kernels of a step back, in their order.
    pub backward: &'static [Pass],
    /// The kernels that run all steps of a level, forward and back, if there are such.
    pub sequence: Option<[Pass; 2]>,
    /// The first kernel of a step forward, and that of a step back, in other forms than the plain one, if
    /// there are such.
    pub forms: [Option<Forms>; 2],
    /// True if those kernels, the ones for all steps among them, run several levels side by side: they find
    /// a level's weights, states and entries of the table where the lane says
    /// ([`Rows::lanes`](crate::kernels::step::Rows::lanes), `begin` in `shaders/shared/step.wgsl`), and each
    /// step, forward and back, is one kernel.
    pub side_by_side: bool,
    /// Its own activations; a layer may choose others in their places. Empty if the kernels do not
    /// import `gates`.
    pub activations: &'static [Activation],
    /// The options that its kernels have.
    pub options: &'static [CellOption],
    /// Where `dgates` has the gradients of W_ih x + b_ih.
    pub input_gradient: &'static [Blocks],
    /// Where it has those of W_hh's products and of b_hh.
    pub recurrent_gradient: &'static [Recurrent],
    /// The rows of `weight_p`.
    pub diagonal: &'static [Diagonal],
    /// The gate whose bias a layer may start at 1.
    pub forget_gate: Option<usize>,
}

/// Its name alone: the rest is the same in every run.
impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cell({})", self.name)
    }
}

/// A kernel of a step in the forms that [`StepForm`](crate::plan::sequence::StepForm) lists behind the plain
/// one. Their weights are bound as `weight_quads` and, back, `weight_quads_back`, and those of the kernels that
/// run all steps as `weight_blocks` and `weight_blocks_back`: floats, or 16-bit floats with the constant `HALF`.
#[derive(Debug, Clone, Copy)]
pub struct Forms {
    /// In registers alone.
    pub blocks: &'static Kernel,
    /// For few sequences.
    pub few: &'static Kernel,
    /// For many.
    pub tile: &'static Kernel,
}

/// A kernel of a step.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Which units its invocations are.
    pub units: Units,
    /// The constants that are this cell's.
    pub constants: &'static [Constant],
    /// True if the shader imports `gates`, so that activations, clipping and the cell's options are
    /// set as well.
    pub gates: bool,
    /// Bindings that stand for a buffer of another name: (binding, buffer).
    pub renamed: &'static [(&'static str, &'static str)],
}

/// The units over which a kernel of a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Units {
    /// H
    Hidden,
    /// P
    Output,
}

/// An option that a cell may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellOption {
    /// Pre-activations are limited (`CLIP`).
    Clip,
    /// c is limited (`CELL_CLIP`).
    CellClip,
    /// The forget gate is 1 minus the input gate (`COUPLED`).
    Coupled,
}

impl CellOption {
    /// Every option, with the constant that turns it on in a shader that imports `gates` (which
    /// declares the first of them itself).
    pub const ALL: [(Self, &'static str); 3] = [
        (Self::Clip, "CLIP"),
        (Self::CellClip, "CELL_CLIP"),
        (Self::Coupled, "COUPLED"),
    ];
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

impl Blocks {
    /// So many blocks from `slot` on, the gradients of as many gates from `gate` on.
    pub const fn new(slot: usize, gate: usize, count: usize) -> Self {
        Self { slot, gate, count }
    }

    /// The same blocks as gradients of products of W_hh with h.
    pub const fn of_state(self) -> Recurrent {
        Recurrent {
            blocks: self,
            operand: Operand::State,
        }
    }

    /// The same blocks as gradients of products of W_hh with `inner`.
    pub const fn of_inner(self) -> Recurrent {
        Recurrent {
            blocks: self,
            operand: Operand::Inner,
        }
    }
}

/// Blocks of gates and what their recurrent weights multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recurrent {
    /// The gates.
    pub blocks: Blocks,
    /// What W_hh multiplies.
    pub operand: Operand,
}

/// What recurrent weights multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// h before the step.
    State,
    /// What a kernel of the step left in `inner`.
    Inner,
}

/// A row of `weight_p`: its gradient is the sum over all steps of a gate's gradient times a kept value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diagonal {
    /// The block of `dgates`.
    pub gradient: usize,
    /// The block of `gates`.
    pub kept: usize,
}

impl Cell {
    /// How many states it carries: h, and c where it has one.
    pub fn states(&self) -> usize {
        1 + usize::from(self.cell_state)
    }

    /// The blocks through which h has a gradient.
    pub fn recurrent_blocks(&self) -> impl Iterator<Item = &Blocks> {
        let of_state = |r: &&Recurrent| r.operand == Operand::State;
        self.recurrent_gradient
            .iter()
            .filter(of_state)
            .map(|r| &r.blocks)
    }

    /// True if a kernel of its steps hands something to the next.
    pub fn hands_on(&self) -> bool {
        binds(self.forward, "inner")
    }

    /// True if a kernel of its steps back does.
    pub fn hands_back(&self) -> bool {
        binds(self.backward, "outer")
    }

    /// The cell with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|c| c.name == name).copied()
    }
}

impl Pass {
    /// A kernel over the H units of a cell, which imports `gates`.
    pub const fn new(kernel: &'static Kernel) -> Self {
        Self {
            kernel,
            units: Units::Hidden,
            constants: &[],
            gates: true,
            renamed: &[],
        }
    }

    /// The buffer that one of its bindings stands for.
    pub fn buffer(&self, binding: &'static str) -> &'static str {
        let renamed = self.renamed.iter().find(|(b, _)| *b == binding);
        renamed.map_or(binding, |(_, buffer)| buffer)
    }
}

fn binds(passes: &[Pass], buffer: &str) -> bool {
    let bound = |p: &Pass| p.kernel.bindings.iter().any(|b| p.buffer(b.name) == buffer);
    passes.iter().any(bound)
}
