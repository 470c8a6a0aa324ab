//! What a call of a layer is: how many steps of which sequences, in which order, kept how.

use super::spec::{LayerSpec, Precision};
use crate::error::{Error, Result};
use crate::kernel::{Binding, Element, Kernel};
use crate::kernels::step::ROWS;
use crate::plan::{MAX_GROUPS, MAX_STEPS, Target};

const OP: &str = "call";

/// The size of a call whose sequences are padded to the same length.
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
    /// Forward alone: of gates and states nothing is kept but what the next step needs.
    Inference,
    /// Forward, keeping what the backward pass needs.
    Training,
}

/// The sequences of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// All with room for the same number of steps.
    Padded(Size),
    /// For each step how many sequences still have it: PyTorch's `batch_sizes`. The sequences are
    /// sorted by length, the longest first.
    Packed(Vec<usize>),
}

/// The order of padded steps and sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// `[T, N, …]`
    #[default]
    TimeFirst,
    /// `[N, T, …]`
    BatchFirst,
}

/// One kind of call of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// How many steps of how many sequences.
    pub batch: Batch,
    /// What for.
    pub mode: Mode,
    /// Whether sequences have lengths of their own, which may change from run to run.
    pub lengths: bool,
    /// Whether states may be zeroed before some steps.
    pub resets: bool,
    /// The order of x, its gradient and the resets.
    pub input: Order,
    /// The order of y and its gradient.
    pub output: Order,
    /// Of every so many steps only the states before the first are kept; the rest is computed again
    /// in the backward pass. What a layer keeps then grows with T / k + k instead of T; what one layer
    /// hands to the next is kept for all T. At each of these steps the states of all N sequences are
    /// kept, also of packed ones that have ended.
    pub recompute: Option<usize>,
    /// The first steps, which carry the state and have no gradient; if these are all, every gradient
    /// is 0.
    pub burn_in: usize,
    /// Whether the backward pass adds to the weights' gradients instead of writing them.
    pub accumulate: bool,
    /// How the activations of every step are stored: what the input's products leave of the gates, and in
    /// training what is kept of them for the backward pass. States, outputs and gradients are floats in any
    /// case.
    pub activations: Precision,
}

impl Call {
    /// Forward alone.
    pub fn inference(size: Size) -> Self {
        Self::new(Batch::Padded(size), Mode::Inference)
    }

    /// Forward and backward.
    pub fn training(size: Size) -> Self {
        Self::new(Batch::Padded(size), Mode::Training)
    }

    /// Over packed sequences: for each step how many still have it.
    pub fn packed(batch_sizes: &[usize], mode: Mode) -> Self {
        Self::new(Batch::Packed(batch_sizes.to_vec()), mode)
    }

    fn new(batch: Batch, mode: Mode) -> Self {
        Self {
            batch,
            mode,
            lengths: false,
            resets: false,
            input: Order::TimeFirst,
            output: Order::TimeFirst,
            recompute: None,
            burn_in: 0,
            accumulate: false,
            activations: Precision::F32,
        }
    }

    /// With a length for each sequence, written before a run; T for all until then.
    #[must_use]
    pub fn lengths(mut self) -> Self {
        self.lengths = true;
        self
    }

    /// With a mask of steps before which the state is zeroed, written before a run.
    #[must_use]
    pub fn resets(mut self) -> Self {
        self.resets = true;
        self
    }

    /// Input and output as `[N, T, …]`.
    #[must_use]
    pub fn batch_first(self) -> Self {
        self.orders(Order::BatchFirst, Order::BatchFirst)
    }

    /// The orders of input and output.
    #[must_use]
    pub fn orders(mut self, input: Order, output: Order) -> Self {
        self.input = input;
        self.output = output;
        self
    }

    /// Keeps the states before every `k`-th step alone.
    #[must_use]
    pub fn recompute(mut self, k: usize) -> Self {
        self.recompute = Some(k);
        self
    }

    /// Runs the first steps for their state alone.
    #[must_use]
    pub fn burn_in(mut self, steps: usize) -> Self {
        self.burn_in = steps;
        self
    }

    /// With the activations stored in a precision. In 16 bits they take half of the memory and of the time of
    /// its transfers, in the kernels of LSTM, GRU and RNN, on devices with 16-bit floats in shaders; the CPU
    /// backend rounds alike, to the nearest, and saves nothing. Each is rounded to 11 bits: pre-activations beyond
    /// 65,504 become that or infinite, and of a gate that is within 2⁻¹² of 1 (or −1) the slope becomes 0.
    #[must_use]
    pub fn activations(mut self, precision: Precision) -> Self {
        self.activations = precision;
        self
    }

    /// Adds to the weights' gradients.
    #[must_use]
    pub fn accumulate(mut self) -> Self {
        self.accumulate = true;
        self
    }
}

/// Refuses options that contradict each other or the layer, and sizes of 0.
pub(super) fn check(spec: &LayerSpec, call: &Call) -> Result<()> {
    let steps = match &call.batch {
        Batch::Padded(size) => {
            for (arg, value) in [("steps", size.steps), ("batch", size.batch)] {
                if value == 0 {
                    return Err(Error::value(OP, arg, "at least 1", value));
                }
            }
            check_sequences(OP, "batch", size.batch)?;
            size.steps
        }
        Batch::Packed(sizes) => {
            check_packed(call, sizes)?;
            sizes.len()
        }
    };
    if steps > MAX_STEPS {
        let expected = format!("at most {MAX_STEPS} in one call; another can carry the state on");
        return Err(Error::value(OP, "steps", expected, steps));
    }
    if call.mode == Mode::Inference {
        let of_training = [
            ("recompute", call.recompute.map(|k| k.to_string())),
            (
                "burn_in",
                (call.burn_in > 0).then(|| call.burn_in.to_string()),
            ),
            ("accumulate", call.accumulate.then(|| true.to_string())),
        ];
        for (arg, used) in of_training {
            if let Some(got) = used {
                return Err(Error::value(OP, arg, "left out in inference", got));
            }
        }
    }
    if call.recompute == Some(0) {
        return Err(Error::value(OP, "recompute", "at least 1", 0));
    }
    if call.burn_in > steps {
        let expected = format!("at most the {steps} steps");
        return Err(Error::value(OP, "burn_in", expected, call.burn_in));
    }
    if call.burn_in > 0 && spec.bidirectional {
        let expected = "0 where a direction runs from the end";
        return Err(Error::value(OP, "burn_in", expected, call.burn_in));
    }
    Ok(())
}

/// Refuses activations in 16 bits where a kernel of the cell or the device has none.
pub(super) fn check_activations(spec: &LayerSpec, call: &Call, target: &Target) -> Result<()> {
    if call.activations == Precision::F32 {
        return Ok(());
    }
    let cell = spec.cell;
    let steps = cell.forward.iter().chain(cell.backward);
    let passes = steps.chain(cell.sequence.iter().flatten());
    let forms = cell.forms.iter().flatten();
    let kernels = forms.flat_map(|forms| [forms.blocks, forms.few, forms.tile]);
    let takes = |kernel: &Kernel| {
        let gates = |b: &&Binding| ["gates", "saved_gates"].contains(&b.name);
        let mut bound = kernel.bindings.iter().filter(gates);
        bound.all(|b| b.takes(Element::Half))
    };
    let mut all = passes.map(|pass| pass.kernel).chain(kernels);
    let needs = if !all.all(takes) {
        "kernels that store 16-bit activations"
    } else if !target.f16 {
        "a device with 16-bit floats in shaders, for 16-bit activations"
    } else {
        return Ok(());
    };
    Err(Error::Unsupported {
        op: spec.cell.name,
        needs: needs.to_owned(),
    })
}

/// A dispatch has a workgroup for every four sequences, and a limited number of workgroups.
pub(crate) fn check_sequences(op: &'static str, arg: &str, count: usize) -> Result<()> {
    let most = ROWS * MAX_GROUPS as usize;
    if count > most {
        let expected = format!("at most {most} sequences");
        return Err(Error::value(op, arg, expected, count));
    }
    Ok(())
}

fn check_packed(call: &Call, sizes: &[usize]) -> Result<()> {
    const ARG: &str = "batch_sizes";
    if sizes.is_empty() {
        return Err(Error::value(OP, ARG, "at least one step", "none"));
    }
    if let Some(t) = sizes.iter().position(|&s| s == 0) {
        return Err(Error::value(
            OP,
            ARG,
            "at least 1 in every step",
            format!("0 in step {t}"),
        ));
    }
    check_sequences(OP, ARG, sizes[0])?;
    if let Some(t) = (1..sizes.len()).find(|&t| sizes[t] > sizes[t - 1]) {
        let got = format!("{} after {} in step {t}", sizes[t], sizes[t - 1]);
        return Err(Error::value(
            OP,
            ARG,
            "falling or equal from step to step",
            got,
        ));
    }
    if call.lengths {
        let expected = "left out for packed sequences, whose batch sizes say them";
        return Err(Error::value(OP, "lengths", expected, true));
    }
    if (call.input, call.output) != (Order::TimeFirst, Order::TimeFirst) {
        let got = format!("{:?}, {:?}", call.input, call.output);
        return Err(Error::value(
            OP,
            "orders",
            "TimeFirst for packed sequences",
            got,
        ));
    }
    Ok(())
}
