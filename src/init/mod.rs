//! Initial weights of a recurrent layer, drawn on the host from a seeded [`Rng`].
//!
//! An [`Init`] names a [`Scheme`] for each kind of weight. A layer is built with one
//! ([`Lstm::init`](crate::Lstm::init) and its like) or drawn anew
//! ([`Layer::initialise_with`](crate::Layer::initialise_with)), and [`Init::values`] draws one weight by
//! its PyTorch name. The same seed, weights and order of calls give the same values.
//!
//! A scheme works on one block at a time, which is what one gate has: `weight_ih` `[G*H, I]` is G blocks
//! `[H, I]`, `weight_hh` `[G*H, P]` is G blocks `[H, P]`, and `weight_hr` is one, `[P, H]`. A block
//! `[rows, columns]` has fan_in = columns and fan_out = rows. (Keras takes the G blocks as one matrix
//! with fan_out = G*H, and makes that orthogonal.)
//!
//! ```
//! use wgrnn::init::Init;
//! use wgrnn::{Context, Lstm};
//!
//! # fn main() -> wgrnn::Result<()> {
//! let init = Init::pytorch().forget_bias(1.0);
//! let lstm = Lstm::new(3, 2).init(init).seed(7).build(&Context::cpu())?;
//! let bias = lstm.weight("bias_ih_l0")?.read()?;
//! assert_eq!(bias[2..4], [1.0, 1.0]); // the forget gate's: the second of four blocks of two
//! # Ok(())
//! # }
//! ```

mod orthogonal;
mod scheme;

use crate::error::{Error, Result};
use crate::host::zeroed;
use crate::interop::archive::elements;
use crate::rng::Rng;

pub use scheme::Scheme;
use scheme::{MAX_VALUE, check_number};

const OP: &str = "Init::values";
/// How the weights of a layer begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Init {
    /// `weight_ih`, and the projection `weight_hr`.
    pub input: Scheme,
    /// `weight_hh`.
    pub recurrent: Scheme,
    /// `bias_ih` and `bias_hh`; a scheme for vectors.
    pub bias: Scheme,
    /// `weight_p`, whose rows are vectors; a scheme for vectors.
    pub peephole: Scheme,
    /// What `bias_ih` and `bias_hh` of a forget gate add up to, in place of `bias`: the first holds it, the
    /// second is 0. It makes an LSTM remember from the start (Gers, Schmidhuber, Cummins 2000; Jozefowicz,
    /// Zaremba, Sutskever 2015). Of no meaning for cells without a forget gate. A [`Layer`](crate::Layer)
    /// whose forget gate has no bias or is coupled to the input gate refuses it.
    pub forget_bias: Option<f32>,
}

/// How the rows of a layer's weights divide into gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// G
    pub gates: usize,
    /// H
    pub hidden_size: usize,
    /// Which block of rows is the forget gate's, of cells that have one: in an LSTM 1.
    pub forget_gate: Option<usize>,
}

impl Default for Init {
    fn default() -> Self {
        Self::pytorch()
    }
}

impl Init {
    /// Everything uniform in ±1/√H, as PyTorch's recurrent layers do.
    pub fn pytorch() -> Self {
        Self {
            input: Scheme::PyTorch,
            recurrent: Scheme::PyTorch,
            bias: Scheme::PyTorch,
            peephole: Scheme::PyTorch,
            forget_bias: None,
        }
    }

    /// Matrices by [`Scheme::XavierUniform`]; biases and peepholes 0.
    pub fn xavier() -> Self {
        Self {
            input: Scheme::XavierUniform,
            recurrent: Scheme::XavierUniform,
            bias: Scheme::ZERO,
            peephole: Scheme::ZERO,
            forget_bias: None,
        }
    }

    /// As Keras: [`Scheme::XavierUniform`] from the input, [`Scheme::Orthogonal`] from the state, biases 0
    /// but the forget gate's 1; peepholes 0. See the [module](self) for what differs.
    pub fn orthogonal() -> Self {
        Self {
            recurrent: Scheme::Orthogonal { gain: 1.0 },
            forget_bias: Some(1.0),
            ..Self::xavier()
        }
    }

    /// For plain RNNs with ReLU, the IRNN of Le, Jaitly, Hinton 2015 (arXiv:1504.00941): the state goes
    /// on through the identity, the input comes in through normal numbers of standard deviation 0.001, and
    /// biases are 0.
    pub fn identity() -> Self {
        Self {
            input: Scheme::Normal { std: 0.001 },
            recurrent: Scheme::Identity { scale: 1.0 },
            bias: Scheme::ZERO,
            peephole: Scheme::ZERO,
            forget_bias: None,
        }
    }

    /// With this [`Self::forget_bias`]; 1 is usual.
    #[must_use]
    pub fn forget_bias(mut self, value: f32) -> Self {
        self.forget_bias = Some(value);
        self
    }

    /// Draws the weight with PyTorch's `name` (`weight_ih_l0`, `bias_hh_l1_reverse`, …) and this shape,
    /// row-major.
    ///
    /// # Errors
    /// [`Error::Value`] if the name is none of PyTorch's, if `layout` has no gates or units or a forget gate
    /// that is not one of the gates, if a number in a scheme is NaN, too large, or negative where that has
    /// no meaning, or if a scheme does not fit the weight: one for matrices for a vector, or
    /// [`Scheme::Identity`] for anything but a square `weight_hh` of one gate. [`Error::Shape`] if the shape
    /// does not fit name and layout. [`Error::Device`] if the machine has not that much memory.
    pub fn values(
        &self,
        layout: &Layout,
        name: &str,
        shape: &[usize],
        rng: &mut Rng,
    ) -> Result<Vec<f32>> {
        layout.check()?;
        let weight = Weight::new(layout, name, shape)?;
        let scheme = match weight.kind {
            Kind::Input | Kind::Projection => self.input,
            Kind::Recurrent => self.recurrent,
            Kind::BiasIh | Kind::BiasHh => self.bias,
            Kind::Peepholes => self.peephole,
        };
        let mut values = zeroed(weight.len)?;
        scheme.fill(&weight, &mut values, rng)?;

        let forget_bias = match weight.kind {
            Kind::BiasIh => self.forget_bias,
            Kind::BiasHh => self.forget_bias.map(|_| 0.0),
            _ => None,
        };
        if let (Some(value), Some(gate)) = (forget_bias, layout.forget_gate) {
            check_number("forget_bias", value, -MAX_VALUE)?;
            values[gate * layout.hidden_size..][..layout.hidden_size].fill(value);
        }
        Ok(values)
    }
}

impl Layout {
    fn check(&self) -> Result<()> {
        for (arg, size) in [("gates", self.gates), ("hidden_size", self.hidden_size)] {
            if size == 0 {
                return Err(Error::value(OP, arg, "at least 1", size));
            }
        }
        match self.forget_gate {
            Some(gate) if gate >= self.gates => {
                let expected = format!("below gates, {}", self.gates);
                Err(Error::value(OP, "forget_gate", expected, gate))
            }
            _ => Ok(()),
        }
    }
}

/// What a weight is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Input,
    Recurrent,
    BiasIh,
    BiasHh,
    Projection,
    Peepholes,
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        let (weight, suffix) = name.rsplit_once("_l")?;
        let layer = suffix.strip_suffix("_reverse").unwrap_or(suffix);
        if layer.is_empty() || !layer.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        match weight {
            "weight_ih" => Some(Self::Input),
            "weight_hh" => Some(Self::Recurrent),
            "bias_ih" => Some(Self::BiasIh),
            "bias_hh" => Some(Self::BiasHh),
            "weight_hr" => Some(Self::Projection),
            "weight_p" => Some(Self::Peepholes),
            _ => None,
        }
    }
}

/// A weight whose name, shape and layout fit together.
#[derive(Debug)]
struct Weight<'a> {
    name: &'a str,
    layout: &'a Layout,
    kind: Kind,
    /// How many values it has.
    len: usize,
    /// One gate's part, if it is a matrix.
    block: Option<Block>,
}

/// The matrix of one gate.
#[derive(Debug, Clone, Copy)]
struct Block {
    rows: usize,
    columns: usize,
}

impl<'a> Weight<'a> {
    fn new(layout: &'a Layout, name: &'a str, shape: &[usize]) -> Result<Self> {
        let Some(kind) = Kind::named(name) else {
            let expected = "a PyTorch name such as weight_ih_l0 or bias_hh_l1_reverse";
            return Err(Error::value(OP, "name", expected, format!("'{name}'")));
        };
        let hidden = layout.hidden_size;
        let all_gates = |rows| layout.gates.checked_mul(hidden) == Some(rows);
        let (expected, fits, block) = match (kind, shape) {
            (Kind::Input | Kind::Recurrent, &[rows, columns]) => {
                ("[G*H, any]", all_gates(rows), Some((hidden, columns)))
            }
            (Kind::Input | Kind::Recurrent, _) => ("[G*H, any]", false, None),
            (Kind::BiasIh | Kind::BiasHh, _) => {
                ("[G*H]", shape.len() == 1 && all_gates(shape[0]), None)
            }
            (Kind::Projection, &[rows, columns]) => {
                ("[any, H]", columns == hidden, Some((rows, columns)))
            }
            (Kind::Projection, _) => ("[any, H]", false, None),
            (Kind::Peepholes, &[_, columns]) => ("[any, H]", columns == hidden, None),
            (Kind::Peepholes, _) => ("[any, H]", false, None),
        };
        match elements(shape) {
            Some(len) if fits => Ok(Self {
                name,
                layout,
                kind,
                len,
                block: block.map(|(rows, columns)| Block { rows, columns }),
            }),
            _ => Err(Error::Shape {
                op: OP,
                arg: name.to_owned(),
                expected: format!("{expected} with G = {} and H = {hidden}", layout.gates),
                got: format!("{shape:?}"),
            }),
        }
    }

    /// Whether it is `weight_hh` of one gate that takes the state to a vector of the same size.
    fn is_square_recurrence(&self) -> bool {
        let square = self.block.is_some_and(|b| b.rows == b.columns);
        self.kind == Kind::Recurrent && self.layout.gates == 1 && square
    }
}

impl Block {
    fn len(self) -> usize {
        self.rows * self.columns
    }

    /// fan_in + fan_out
    fn fans(self) -> f64 {
        self.columns as f64 + self.rows as f64
    }
}
