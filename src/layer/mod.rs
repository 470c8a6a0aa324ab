//! Recurrent layers: [`Lstm`], [`Gru`] and [`Rnn`] describe one, [`Layer`] is one with its weights,
//! [`Sequence`] and [`Streams`] are calls of it over memory that is allocated once.
//!
//! ```
//! use wgrnn::{Context, Lstm, ndarray::Array3};
//!
//! # fn main() -> wgrnn::Result<()> {
//! let lstm = Lstm::new(8, 16).build(&Context::cpu())?;
//! let x = Array3::<f32>::zeros((20, 4, 8)); // T, N, I
//! let out = lstm.forward(x.view(), None)?;
//! assert_eq!(out.y.dim(), (20, 4, 16));
//! let next = lstm.forward(x.view(), Some(&out.state))?; // goes on where the first call ended
//! # let _ = next;
//! # Ok(())
//! # }
//! ```

mod config;
mod packing;
mod sequence;
mod state;
mod streams;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use ndarray::{Array3, ArrayView3};

use crate::cell::Cell;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::init::{Init, Layout};
use crate::interop::safetensors::Archive;
use crate::interop::state_dict::{matching, read_all};
use crate::kernel::Element;
use crate::memory::{Uses, lock};
use crate::plan::sequence::{self as driver, Call, LayerSpec, Size, Weights};
use crate::plan::{BufferId, Builder, Plan};
use crate::program::{PREPARE, Packing as WeightPacking, Program};
use crate::rng::Rng;
use crate::tensor::Tensor;

pub use config::{Gru, Lstm, Nonlinearity, Reset, Rnn};
pub use packing::Packing;
pub use sequence::Sequence;
pub use state::State;
pub use streams::Streams;

/// A recurrent layer, or several on top of each other, with their weights on a device.
///
/// The weights are tensors that a host or an optimizer may change at any time. The kernels read some of them
/// packed; after a change by any call of this crate, the next call packs them again. What a host does to the
/// buffers of a GPU by commands of its own nobody sees: [`Layer::prepare`] says it for calls of
/// inference, [`Streams::prepare`] for streams, and those for training pack them in every forward pass there.
///
/// Threads may share a layer and whatever is planned for it. Calls that use the same memory, where one of them
/// writes it, wait for each other; each sees the weights as another call left them, never some old and some new.
#[derive(Debug)]
pub struct Layer {
    context: Context,
    spec: LayerSpec,
    weights: Vec<(String, Tensor)>,
    /// What the kernels read beside them, packed or zero.
    packed: Vec<(String, Tensor)>,
    packing: Arc<WeightPacking>,
    /// See [`Self::dropout_clock`].
    clock: Option<Tensor>,
    latest: Mutex<Option<Sequence>>,
}

/// Under which name an archive's metadata has [`Layer::dropout_clock`].
const DROPOUT_CLOCK: &str = "dropout_clock";

/// The result of [`Layer::forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `[T, N, D·P]`: h of the last layer after every step.
    pub y: Array3<f32>,
    /// The state after the last step.
    pub state: State,
}

impl Layer {
    /// A layer of any [`Cell`], with PyTorch's initial weights, uniform in ±1/√H.
    ///
    /// # Errors
    /// If a size is 0, options contradict each other, or the device cannot hold the weights.
    pub fn new(context: &Context, spec: LayerSpec, seed: u64) -> Result<Self> {
        let layer = Self::zeros(context, spec)?;
        layer.initialise(seed)?;
        Ok(layer)
    }

    /// A layer whose weights are 0 and not packed.
    fn zeros(context: &Context, spec: LayerSpec) -> Result<Self> {
        spec.check()?;
        let mut b = Builder::on("prepare", context.target());
        let ids = driver::weights(&mut b, &spec);
        b.section(PREPARE);
        driver::prepare(&mut b, &ids)?;
        let of_training: HashSet<BufferId> = ids.trained.iter().copied().collect();
        let tensors = |trained: bool| -> Result<Vec<(String, Tensor)>> {
            let wanted = |(_, id): &&(String, BufferId)| of_training.contains(id) == trained;
            let named = ids.named.iter().filter(wanted);
            named
                .map(|(name, id)| {
                    let buffer = b.buffer(*id)?;
                    let zeros = Tensor::zeros(context, &buffer.shape, buffer.element)?;
                    Ok((name.clone(), zeros))
                })
                .collect()
        };
        let (weights, packed) = (tensors(true)?, tensors(false)?);
        let bound = bind(&ids, &weights, &packed);
        let packing = Program::new(context, b.finish(), &bound)?;
        let clock = (spec.dropout > 0.0).then(|| Tensor::zeros(context, &[1], Element::Uint));

        Ok(Self {
            context: context.clone(),
            spec,
            weights,
            packed,
            packing: Arc::new(WeightPacking::new(packing)?),
            clock: clock.transpose()?,
            latest: Mutex::new(None),
        })
    }

    /// Where it runs.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Its cell.
    pub fn cell(&self) -> &'static Cell {
        self.spec.cell
    }

    /// I
    pub fn input_size(&self) -> usize {
        self.spec.input_size
    }

    /// H
    pub fn hidden_size(&self) -> usize {
        self.spec.hidden_size
    }

    /// D·P: the size of an output.
    pub fn output_size(&self) -> usize {
        self.spec.features()
    }

    /// What kind of layer it is, for building larger plans around it.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// The weights under PyTorch's names (`weight_ih_l0`, …), layout and gate order.
    pub fn weights(&self) -> &[(String, Tensor)] {
        &self.weights
    }

    /// The weight with this name.
    ///
    /// # Errors
    /// If the layer has no such weight.
    pub fn weight(&self, name: &str) -> Result<&Tensor> {
        self.weights
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, t)| t)
            .ok_or_else(|| {
                let names: Vec<_> = self.weights.iter().map(|(n, _)| n.as_str()).collect();
                Error::value("Layer::weight", "name", format!("one of {names:?}"), name)
            })
    }

    /// Replaces one weight; its values in row-major order. The next call packs it for the kernels.
    ///
    /// # Errors
    /// If the layer has no such weight, or it has another number of values.
    pub fn set_weight(&self, name: &str, values: &[f32]) -> Result<()> {
        self.weight(name)?.write(values)
    }

    /// The counter of dropout masks `[1]`, integer, of a layer with dropout: every forward pass in training, of
    /// whichever [`Sequence`] of the layer, adds 1 to it and drops what [`crate::kernels::dropout`] says for this
    /// number; its backward pass drops the same. So no two passes drop the same, however often calls are planned anew.
    /// Writing n makes the next forward pass one with number n + 1 again.
    pub fn dropout_clock(&self) -> Option<&Tensor> {
        self.clock.as_ref()
    }

    /// Reads the weights back, under the names of [`Self::weights`], rounded to `f32`. With dropout the archive's
    /// metadata has the [counter of masks](Self::dropout_clock) as `dropout_clock`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_archive(&self) -> Result<Archive> {
        Ok(Archive {
            tensors: read_all(&self.weights)?,
            metadata: self.metadata()?,
        })
    }

    /// What an archive says beside the weights.
    pub(crate) fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let Some(clock) = &self.clock else {
            return Ok(BTreeMap::new());
        };
        let now = clock.read_uint()?[0].to_string();
        Ok([(DROPOUT_CLOCK.to_owned(), now)].into())
    }

    /// The counter of masks and what an archive says of it.
    pub(crate) fn clock_in(
        &self,
        op: &'static str,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Option<(&Tensor, u32)>> {
        let Some((clock, text)) = self.clock.as_ref().zip(metadata.get(DROPOUT_CLOCK)) else {
            return Ok(None);
        };
        let now = text.parse().map_err(|_| Error::Weights {
            op,
            reason: format!("'{DROPOUT_CLOCK}' must be a number of 32 bits, got '{text}'"),
        })?;
        Ok(Some((clock, now)))
    }

    /// Replaces the weights by those of an archive, which must have just these names and shapes, in
    /// `f32`, and packs them. A layer inside a model's archive is its part [`Archive::under`] a prefix. A layer with
    /// dropout goes on counting masks where the metadata says, if it does.
    ///
    /// ```
    /// # use std::path::Path;
    /// # use wgrnn::{Context, Gru, Result, interop::safetensors};
    /// # fn main() -> Result<()> {
    /// let gru = Gru::new(5, 7).num_layers(2).bidirectional(true);
    /// let layer = gru.build(&Context::cpu())?;
    /// let path = Path::new("tests/data/state_dict/gru.safetensors"); // made by torch
    /// let archive = safetensors::load(path)?;
    /// layer.load(&archive.under("rnn."))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Weights`] naming what is missing, surplus or of another shape or type, or if the metadata has a
    /// `dropout_clock` that is no number of 32 bits; nothing is changed then.
    pub fn load(&self, archive: &Archive) -> Result<()> {
        const OP: &str = "Layer::load";
        let values = matching(OP, &self.weights, &archive.tensors)?;
        self.replace(&values, self.clock_in(OP, &archive.metadata)?)
    }

    /// Writes all weights and packs them as one call.
    fn replace(&self, values: &[(&Tensor, &[f32])], clock: Option<(&Tensor, u32)>) -> Result<()> {
        let written = values.iter().map(|(tensor, _)| *tensor);
        let written = written.chain(clock.map(|(tensor, _)| tensor));
        let uses = Uses::new(written.map(|tensor| (tensor.memory(), true)));
        let uses = uses.and(self.packing.uses());
        let held = uses.take()?;
        for (tensor, values) in values {
            tensor.write_held(&held, values)?;
        }
        if let Some((tensor, now)) = clock {
            tensor.write_uint_held(&held, &[now])?;
        }
        self.packing.pack(&held)
    }

    /// Draws all weights anew, uniform in ±1/√H as PyTorch does.
    ///
    /// # Errors
    /// If the device fails.
    pub fn initialise(&self, seed: u64) -> Result<()> {
        self.initialise_with(&Init::pytorch(), seed)
    }

    /// Draws all weights anew, one after another in the order of [`Self::weights`], and packs them.
    ///
    /// # Errors
    /// [`Error::Value`] as [`Init::values`], or for a forget bias of a forget gate that has no bias or no
    /// effect; then nothing is changed. [`Error::Device`] if the device fails.
    pub fn initialise_with(&self, init: &Init, seed: u64) -> Result<()> {
        let layout = self.layout(init)?;
        let mut rng = Rng::new(seed);
        let draw = |(name, tensor): &(String, Tensor)| {
            init.values(&layout, name, tensor.shape(), &mut rng)
        };
        // All are drawn before one is written.
        let drawn: Vec<_> = self.weights.iter().map(draw).collect::<Result<_>>()?;
        let weights = self.weights.iter().map(|(_, tensor)| tensor);
        let all: Vec<_> = weights.zip(drawn.iter().map(Vec::as_slice)).collect();
        self.replace(&all, None)
    }

    /// The layer as an [`Init`] sees it, if that does not contradict it.
    fn layout(&self, init: &Init) -> Result<Layout> {
        let LayerSpec { cell, .. } = self.spec;
        if let (Some(value), Some(_)) = (init.forget_bias, cell.forget_gate) {
            let refused = |expected| Err(Error::value("layer", "forget_bias", expected, value));
            if !self.spec.bias {
                return refused("none in a layer without biases");
            }
            if self.spec.coupled {
                return refused(
                    "none in a coupled layer, whose forget gate is 1 minus the input gate",
                );
            }
        }
        Ok(Layout {
            gates: cell.gates,
            hidden_size: self.spec.hidden_size,
            forget_gate: cell.forget_gate,
        })
    }

    /// Packs the weights for the kernels, by a submission of its own. Needed only after a host has changed their
    /// buffers on a GPU by commands of its own, and before the submission of calls that were recorded before a
    /// change. Where a program that changes weights was recorded ([`Program::record`]), nobody knows when that runs, and
    /// every call packs them first, until this one says that all of it was submitted.
    ///
    /// # Errors
    /// If the device fails.
    pub fn prepare(&self) -> Result<()> {
        for (_, weight) in &self.weights {
            weight.memory().submitted();
        }
        self.packing.prepare()
    }

    /// [`Self::prepare`] in the host's encoder.
    ///
    /// # Errors
    /// If the layer is on the CPU.
    #[cfg(feature = "gpu")]
    pub fn record_prepare(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.packing.record(encoder)
    }

    /// Plans forward calls of one size and allocates their memory.
    ///
    /// # Errors
    /// If a size is 0 or too large for the device.
    pub fn inference(&self, size: Size) -> Result<Sequence> {
        self.sequence(&Call::inference(size))
    }

    /// Plans forward and backward calls of one size and allocates their memory.
    ///
    /// # Errors
    /// If a size is 0 or too large for the device.
    pub fn training(&self, size: Size) -> Result<Sequence> {
        self.sequence(&Call::training(size))
    }

    /// Plans calls of any kind and allocates their memory.
    ///
    /// # Errors
    /// If options contradict each other, or something is too large for the device.
    pub fn sequence(&self, call: &Call) -> Result<Sequence> {
        Sequence::new(self, call, &[])
    }

    /// Like [`Self::sequence`], for training that leaves the weights' gradients in tensors that exist
    /// already, under the names of the weights: those of another sequence, or the host's own.
    ///
    /// # Errors
    /// As [`Self::sequence`]; if a name or a shape is not that of a weight, a name comes twice, or a
    /// tensor is on another device or overlaps another or a weight.
    pub fn sequence_into(&self, call: &Call, gradients: &[(String, Tensor)]) -> Result<Sequence> {
        Sequence::new(self, call, gradients)
    }

    /// Plans single steps of `count` independent streams, each with a state of its own.
    ///
    /// # Errors
    /// If `count` is 0 or too large for the device, or the layer has two directions.
    pub fn streams(&self, count: usize) -> Result<Streams> {
        Streams::new(self, count)
    }

    /// Runs the layer over `x` `[T, N, I]` and waits for the result. The plan and memory of the
    /// latest size are kept for the next call; calls from several threads wait for each other. Without
    /// an initial state it starts from zeros.
    ///
    /// # Errors
    /// If a shape does not fit the layer, T or N is 0, or the device fails.
    pub fn forward(&self, x: ArrayView3<'_, f32>, initial: Option<&State>) -> Result<Output> {
        let (steps, batch, input) = x.dim();
        if input != self.spec.input_size {
            let expected = [steps, batch, self.spec.input_size];
            return Err(Error::shape("Layer::forward", "x", expected, x.shape()));
        }
        // Held to the end: other threads' calls would use the same memory.
        let mut latest = lock(&self.latest)?;
        let sequence = self.kept(&mut latest, Size { steps, batch })?;
        sequence.x().write(&x.iter().copied().collect::<Vec<_>>())?;
        sequence.set_initial(initial)?;
        sequence.forward()?;
        let features = self.spec.features();
        let y = Array3::from_shape_vec((steps, batch, features), sequence.y().read()?)
            .map_err(|e| Error::shape("Layer::forward", "y", x.shape(), e.to_string()))?;
        Ok(Output {
            y,
            state: sequence.state()?,
        })
    }

    /// The kept sequence if it has this size, else a new one in its place.
    fn kept<'a>(&self, latest: &'a mut Option<Sequence>, size: Size) -> Result<&'a Sequence> {
        let call = Call::inference(size);
        let kept = match latest.take().filter(|s| *s.call() == call) {
            Some(kept) => kept,
            None => self.sequence(&call)?,
        };
        Ok(latest.insert(kept))
    }

    /// A program of a plan of one's own over the layer's weights, for which [`driver::weights`] has added `weights` to
    /// the plan; `bound` is what else is to have memory. What kernels read packed of the weights is the layer's, and is
    /// packed again when they have changed, before a section that does not do it itself.
    ///
    /// # Errors
    /// [`Error::Value`] if the plan is for other choices or rules than the layer's context has, so that it
    /// would read weights that are packed otherwise; else those of [`Program::new`].
    pub fn program(
        &self,
        plan: Plan,
        weights: &Weights,
        bound: &[(BufferId, Tensor)],
    ) -> Result<Program> {
        let mut all = self.bind_all(weights)?;
        all.extend_from_slice(bound);
        let program = Program::new(&self.context, plan, &all)?;
        program.with_packing(self.packing.clone())
    }

    /// The layer's weights for the buffers that [`driver::weights`] added to a plan which packs them itself, with
    /// [`driver::prepare`]. For others there is [`Self::program`].
    ///
    /// # Errors
    /// [`Error::Value`] if the plan is for other choices or rules than the layer's context has.
    pub fn bind(&self, ids: &Weights) -> Result<Vec<(BufferId, Tensor)>> {
        driver::check_weights(&self.spec, &self.context.target(), ids)?;
        Ok(bind(ids, &self.weights, &[]))
    }

    /// [`Self::bind`] with what is packed.
    pub(crate) fn bind_all(&self, ids: &Weights) -> Result<Vec<(BufferId, Tensor)>> {
        driver::check_weights(&self.spec, &self.context.target(), ids)?;
        Ok(bind(ids, &self.weights, &self.packed))
    }
}

fn bind(
    ids: &Weights,
    weights: &[(String, Tensor)],
    packed: &[(String, Tensor)],
) -> Vec<(BufferId, Tensor)> {
    let all = weights.iter().chain(packed);
    let tensors: HashMap<&str, &Tensor> = all.map(|(name, t)| (name.as_str(), t)).collect();
    let named = ids.named.iter();
    named
        .filter_map(|(name, id)| Some((*id, (*tensors.get(name.as_str())?).clone())))
        .collect()
}
