//! What a layer is: its cell, its sizes and its options, as plain data.

use std::fmt;

use crate::activation::Activation;
use crate::cell::{Cell, CellOption};
use crate::error::{Error, Result};
use crate::kernel::Element;
use crate::kernels::gates::ACTIVATIONS;

const OP: &str = "layer";
/// More than anybody stacks, and few enough to list the weights of all.
const MOST_LAYERS: usize = 4096;

/// What the kernels read of a layer's weights. Sums, activations, states and gradients are `f32` in any
/// case, and so are the weights that a caller reads and writes and an optimizer changes.
///
/// With [`Precision::F16`] [`prepare`](super::prepare) rounds a copy of W_hh, of W_ih and of b_ih, which
/// [`streams`](super::streams) pack with it, to the nearest 16-bit floats, ties to even, and all products of a
/// call read that copy: half the bytes of every step. b_hh and peepholes are not rounded. The gradients
/// are those of the rounded weights. Weights from 65520 on become infinite.
///
/// No optional feature of the device is needed; only Mesa's Vulkan drivers for hardware without 16-bit
/// floats cannot. They refuse such a layer with [`Error::Unsupported`], and so do cells without kernels
/// for it: GRU with the reset before the product, and LSTM with a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// 32-bit floats, the weights themselves.
    #[default]
    F32,
    /// 16-bit floats.
    F16,
}

impl Precision {
    /// Both.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// Its name, as a tool writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// What a buffer of weights holds.
    pub fn element(self) -> Element {
        match self {
            Self::F32 => Element::Float,
            Self::F16 => Element::Half,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What kind of layer, and how large: one or more layers of the same cell on top of each other, each
/// with one direction or two.
#[derive(Debug, Clone, Copy)]
pub struct LayerSpec {
    /// Its cell.
    pub cell: &'static Cell,
    /// I
    pub input_size: usize,
    /// H
    pub hidden_size: usize,
    /// P, for cells with a projection; else 0.
    pub proj_size: usize,
    /// L: layers on top of each other; every one but the first reads the outputs below it.
    pub num_layers: usize,
    /// Whether each layer also runs from the end; its outputs stand behind the forward ones.
    pub bidirectional: bool,
    /// Whether it has biases; without them zeros stand in.
    pub bias: bool,
    /// The probability with which outputs are dropped between layers, in training.
    pub dropout: f32,
    /// The seed of the dropped outputs; see [`crate::kernels::dropout`].
    pub dropout_seed: u64,
    /// The cell's activations, or others in their places; those that it has not are not looked at.
    pub activations: [Activation; ACTIVATIONS],
    /// The bound of every gate's pre-activation.
    pub clip: Option<f64>,
    /// The bound of c.
    pub cell_clip: Option<f64>,
    /// Whether the forget gate is 1 minus the input gate.
    pub coupled: bool,
    /// What the kernels read of the weights.
    pub precision: Precision,
}

/// One direction of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Which layer, from 0.
    pub layer: usize,
    /// True for the direction that runs from the end.
    pub reverse: bool,
    /// The size of what it reads.
    pub input_size: usize,
}

impl Level {
    /// PyTorch's suffix of its weights.
    pub fn suffix(&self) -> String {
        let reverse = if self.reverse { "_reverse" } else { "" };
        format!("l{}{reverse}", self.layer)
    }
}

impl LayerSpec {
    /// One layer, one direction, with biases and without any option. Cells with a projection project
    /// to half of H unless `proj_size` is set.
    pub fn new(cell: &'static Cell, input_size: usize, hidden_size: usize) -> Self {
        let mut activations = [Activation::TANH; ACTIVATIONS];
        for (to, own) in activations.iter_mut().zip(cell.activations) {
            *to = *own;
        }
        Self {
            cell,
            input_size,
            hidden_size,
            proj_size: if cell.projected {
                hidden_size.div_ceil(2)
            } else {
                0
            },
            num_layers: 1,
            bidirectional: false,
            bias: true,
            dropout: 0.0,
            dropout_seed: 0,
            activations,
            clip: None,
            cell_clip: None,
            coupled: false,
            precision: Precision::F32,
        }
    }

    /// D
    pub fn directions(&self) -> usize {
        1 + usize::from(self.bidirectional)
    }

    /// G·H; `usize::MAX` if that is more, which [`Self::check`] refuses.
    pub fn width(&self) -> usize {
        self.cell.gates.saturating_mul(self.hidden_size)
    }

    /// P: units of h.
    pub fn output_size(&self) -> usize {
        if self.cell.projected {
            self.proj_size
        } else {
            self.hidden_size
        }
    }

    /// D·P: the size of an output; `usize::MAX` if that is more, which [`Self::check`] refuses.
    pub fn features(&self) -> usize {
        self.directions().saturating_mul(self.output_size())
    }

    /// Every direction of every layer, in the order of PyTorch's weights and states.
    pub fn levels(&self) -> impl Iterator<Item = Level> + use<> {
        let (directions, features, input) = (self.directions(), self.features(), self.input_size);
        (0..self.num_layers * directions).map(move |at| Level {
            layer: at / directions,
            reverse: at % directions == 1,
            input_size: if at < directions { input } else { features },
        })
    }

    /// Names without suffix and shapes of one level's weights, in PyTorch's order; behind them
    /// `weight_p`, which PyTorch has not.
    pub fn level_shapes(&self, level: &Level) -> Vec<(&'static str, Vec<usize>)> {
        let (width, hidden, output) = (self.width(), self.hidden_size, self.output_size());
        let mut shapes = vec![
            ("weight_ih", vec![width, level.input_size]),
            ("weight_hh", vec![width, output]),
        ];
        if self.bias {
            shapes.extend([("bias_ih", vec![width]), ("bias_hh", vec![width])]);
        }
        if self.cell.projected {
            shapes.push(("weight_hr", vec![output, hidden]));
        }
        if !self.cell.diagonal.is_empty() {
            shapes.push(("weight_p", vec![self.cell.diagonal.len(), hidden]));
        }
        shapes
    }

    /// Names and shapes of all weights that training changes, in PyTorch's order.
    pub fn weight_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let of_level = |level: Level| {
            let shapes = self.level_shapes(&level).into_iter();
            shapes.map(move |(name, shape)| (format!("{name}_{}", level.suffix()), shape))
        };
        self.levels().flat_map(of_level).collect()
    }

    /// True if pre-activations are kept for the backward pass rather than the gates themselves.
    pub(crate) fn keeps_raw(&self) -> bool {
        let own = self.activations.iter().take(self.cell.activations.len());
        // c's activation is computed from c, which is kept in any case.
        let gates = own.take(if self.cell.cell_state { 2 } else { ACTIVATIONS });
        self.clip.is_some() || gates.into_iter().any(|a| !a.slope_from_value())
    }

    /// Whether an option of the cell is used.
    pub(crate) fn uses(&self, option: CellOption) -> bool {
        match option {
            CellOption::Clip => self.clip.is_some(),
            CellOption::CellClip => self.cell_clip.is_some(),
            CellOption::Coupled => self.coupled,
        }
    }

    /// Refuses sizes of 0, options that the cell has not or that contradict each other, and weights
    /// whose elements a shader could not index with 32 bits.
    ///
    /// # Errors
    /// [`Error::Value`] naming the option, [`Error::Unsupported`] for one that the cell has not,
    /// [`Error::Limit`] for weights that are too large.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("input_size", self.input_size),
            ("hidden_size", self.hidden_size),
            ("num_layers", self.num_layers),
        ];
        for (arg, value) in sizes {
            if value == 0 {
                return Err(Error::value(OP, arg, "at least 1", value));
            }
        }
        if self.num_layers > MOST_LAYERS {
            let expected = format!("at most {MOST_LAYERS}");
            return Err(Error::value(OP, "num_layers", expected, self.num_layers));
        }
        self.check_options()?;
        self.check_weights()
    }

    /// Refuses weights whose elements a shader could not index with 32 bits.
    pub(super) fn check_weights(&self) -> Result<()> {
        let (gates, hidden, output) = (self.cell.gates, self.hidden_size, self.output_size());
        let input = self
            .input_size
            .max(self.directions().saturating_mul(output));
        let largest: [(&str, &[usize]); 2] = [
            ("weight_ih", &[gates, hidden, input]),
            ("weight_hh", &[gates, hidden, output]),
        ];
        check_elements(self.cell.name, &largest)
    }

    fn check_options(&self) -> Result<()> {
        let cell = self.cell;
        let (proj, hidden) = (self.proj_size, self.hidden_size);
        if cell.projected && !(1..=hidden).contains(&proj) {
            let expected = format!("from 1 to hidden_size {hidden}");
            return Err(Error::value(OP, "proj_size", expected, proj));
        }
        if !cell.projected && proj != 0 {
            let needs = format!(
                "proj_size {proj} (cells with a projection are lstm_projected and lstm_peephole_projected)"
            );
            return Err(Error::Unsupported {
                op: cell.name,
                needs,
            });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::value(OP, "dropout", "in [0, 1)", self.dropout));
        }
        if self.dropout > 0.0 && self.num_layers == 1 {
            let expected = "0 in a single layer, since it drops what passes between layers";
            return Err(Error::value(OP, "dropout", expected, self.dropout));
        }
        for (arg, bound) in [("clip", self.clip), ("cell_clip", self.cell_clip)] {
            if let Some(bound) = bound
                && !(bound as f32 > 0.0 && (bound as f32).is_finite())
            {
                return Err(Error::value(OP, arg, "above 0 and finite", bound));
            }
        }
        for (option, name) in CellOption::ALL {
            if self.uses(option) && !cell.options.contains(&option) {
                let needs = format!("the option {}", name.to_lowercase());
                return Err(Error::Unsupported {
                    op: cell.name,
                    needs,
                });
            }
        }
        // The plain form of a step, which cells without another have, reads the weights as they are.
        if self.precision == Precision::F16 && cell.forms.iter().any(Option::is_none) {
            let needs =
                "kernels that read 16-bit weights (precision f16), forward and back".to_owned();
            return Err(Error::Unsupported {
                op: cell.name,
                needs,
            });
        }
        let used = self.activations.iter().take(cell.activations.len());
        used.into_iter().try_for_each(|a| a.check(OP))
    }
}

/// Refuses arrays whose elements a shader could not index with 32 bits, before any product of their
/// sizes is taken.
pub(crate) fn check_elements(cell: &str, arrays: &[(&str, &[usize])]) -> Result<()> {
    for (name, shape) in arrays {
        let needed = shape.iter().fold(1u64, |n, &v| n.saturating_mul(v as u64));
        if needed > u64::from(u32::MAX) {
            return Err(Error::Limit {
                what: format!("{cell}: elements of {name}"),
                needed,
                available: u64::from(u32::MAX),
            });
        }
    }
    Ok(())
}
