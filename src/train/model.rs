//! A language model: embedding, recurrent layer, linear output layer.
//!
//! Its weights have the names of a PyTorch module with the attributes `embedding`
//! (`nn.Embedding`), `rnn` (`nn.LSTM`, `nn.GRU` or `nn.RNN`) and `linear` (`nn.Linear`).

use crate::context::Context;
use crate::error::{Error, Result};
use crate::interop::safetensors::Archive;
use crate::interop::state_dict::{read_all, write_all};
use crate::kernel::Element;
use crate::kernels::dropout::{self, Dropout};
use crate::kernels::embedding;
use crate::kernels::gemm::Gemm;
use crate::layer::Layer;
use crate::plan::sequence::{
    self as driver, Call, Ends, LayerSpec, Mode, Run, Size, States, Weights,
};
use crate::plan::{BufferId, Builder, Matrix, Plan, Role, Target};
use crate::program::Program;
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Before the names of the recurrent layer's weights.
const RNN: &str = "rnn.";

/// The size of a model.
#[derive(Debug, Clone, Copy)]
pub struct ModelSpec {
    /// V: the number of tokens.
    pub vocabulary: usize,
    /// The recurrent layer; its input size is the size of the embedding.
    pub layer: LayerSpec,
}

/// A model with its weights on a device. See the [module](self).
#[derive(Debug)]
pub struct LanguageModel {
    context: Context,
    spec: ModelSpec,
    layer: Layer,
    embedding: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor,
}

/// A model's weights as buffers of a plan.
#[derive(Debug, Clone)]
pub(crate) struct ModelIds {
    pub(crate) embedding: BufferId,
    pub(crate) layer: Weights,
    pub(crate) linear_weight: BufferId,
    pub(crate) linear_bias: BufferId,
}

/// What a forward pass leaves for the loss and the backward pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activations {
    /// Where the recurrent layer read the embedding, after dropout, and wrote its outputs.
    pub(crate) ends: Ends,
    /// `[T·N, F]`: those outputs, after dropout; what the linear layer reads.
    pub(crate) features: Matrix,
    /// `[T·N, V]`
    pub(crate) logits: BufferId,
}

/// Dropout on the embedding and before the linear layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drop {
    pub(crate) probability: f32,
    pub(crate) seed: u64,
    /// `[1]`: the training step, which gives every step another mask.
    pub(crate) clock: BufferId,
}

impl Drop {
    /// Applies the mask of one of the two places; forward and backward alike.
    pub(crate) fn apply(&self, b: &mut Builder, values: BufferId, place: u32) -> Result<()> {
        dropout::apply(
            b,
            Dropout {
                values,
                clock: self.clock,
                probability: self.probability,
                seed: self.seed,
                stream: place,
            },
        )
    }
}

impl ModelSpec {
    /// Adds the model's weights to a plan.
    pub(crate) fn weights(&self, b: &mut Builder) -> ModelIds {
        let (e, h) = (self.layer.input_size, self.layer.features());
        ModelIds {
            embedding: b.float("embedding.weight", &[self.vocabulary, e], Role::Weight),
            layer: driver::weights(b, &self.layer),
            linear_weight: b.float("linear.weight", &[self.vocabulary, h], Role::Weight),
            linear_bias: b.float("linear.bias", &[self.vocabulary], Role::Weight),
        }
    }

    /// A call of the model's recurrent layer.
    pub(crate) fn run(&self, size: Size, mode: Mode, target: &Target) -> Result<Run> {
        let call = match mode {
            Mode::Training => Call::training(size),
            Mode::Inference => Call::inference(size),
        };
        Run::new(&self.layer, &call, target)
    }

    /// Adds the forward pass from token ids `[T, N]` to logits.
    pub(crate) fn forward(
        &self,
        b: &mut Builder,
        run: &Run,
        ids: BufferId,
        weights: &ModelIds,
        states: &States,
        drop: Option<Drop>,
    ) -> Result<Activations> {
        let (e, h, v) = (
            self.layer.input_size,
            self.layer.features(),
            self.vocabulary,
        );
        let rows = run.rows();
        let kept = match run.call().mode {
            Mode::Training => Role::Saved,
            Mode::Inference => Role::Scratch,
        };
        let embedded = b.float("embedded", &[rows, e], kept);
        embedding::gather(b, ids, weights.embedding, embedded)?;
        if let Some(drop) = drop {
            drop.apply(b, embedded, 0)?;
        }
        let ends = Ends {
            x: Matrix::dense(embedded, rows, e),
            y: b.float("features", &[rows, h], kept),
            clock: drop.map(|d| d.clock),
        };
        driver::forward(b, run, ends, &weights.layer, states)?;
        if let Some(drop) = drop {
            drop.apply(b, ends.y, 1)?;
        }
        let features = Matrix::dense(ends.y, rows, h);
        let logits = b.float("logits", &[rows, v], Role::Scratch);
        Gemm {
            bias: Some(weights.linear_bias),
            ..Gemm::new(
                features,
                Matrix::dense(weights.linear_weight, v, h).t(),
                Matrix::dense(logits, rows, v),
            )
        }
        .push(b)?;
        Ok(Activations {
            ends,
            features,
            logits,
        })
    }
}

impl LanguageModel {
    /// A model with random weights: the embedding uniform in ±0.1, the rest as PyTorch draws them.
    ///
    /// # Errors
    /// If a size is 0, or the device cannot hold the weights.
    pub fn new(context: &Context, spec: ModelSpec, seed: u64) -> Result<Self> {
        if spec.vocabulary < 2 {
            let expected = "at least 2 tokens";
            return Err(Error::value(
                "LanguageModel",
                "vocabulary",
                expected,
                spec.vocabulary,
            ));
        }
        let (e, h, v) = (
            spec.layer.input_size,
            spec.layer.features(),
            spec.vocabulary,
        );
        let layer = Layer::new(context, spec.layer, seed)?;
        let float = |shape: &[usize]| Tensor::zeros(context, shape, Element::Float);
        let model = Self {
            context: context.clone(),
            spec,
            layer,
            embedding: float(&[v, e])?,
            linear_weight: float(&[v, h])?,
            linear_bias: float(&[v])?,
        };
        // The layer drew from this seed's stream already.
        let mut rng = Rng::new(seed ^ 0x9E37_79B9_7F4A_7C15);
        let bound = 1.0 / (h as f32).sqrt();
        for (tensor, bound) in [
            (&model.embedding, 0.1),
            (&model.linear_weight, bound),
            (&model.linear_bias, bound),
        ] {
            tensor.write(&rng.try_uniforms(tensor.len(), -bound, bound)?)?;
        }
        Ok(model)
    }

    /// Where it runs.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Its sizes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Its recurrent layer.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// The weights under their names in PyTorch.
    pub fn weights(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![("embedding.weight".to_owned(), self.embedding.clone())];
        for (name, tensor) in self.layer.weights() {
            all.push((format!("{RNN}{name}"), tensor.clone()));
        }
        all.push(("linear.weight".to_owned(), self.linear_weight.clone()));
        all.push(("linear.bias".to_owned(), self.linear_bias.clone()));
        all
    }

    /// Reads the weights back, for saving, with the layer's metadata, whose names begin with `rnn.`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_archive(&self) -> Result<Archive> {
        let of_layer = self.layer.metadata()?.into_iter();
        Ok(Archive {
            tensors: read_all(&self.weights())?,
            metadata: of_layer
                .map(|(name, text)| (format!("{RNN}{name}"), text))
                .collect(),
        })
    }

    /// Replaces the weights by those of an archive, which must have just these names and shapes.
    ///
    /// # Errors
    /// [`Error::Weights`] naming what is missing, surplus or of another shape; nothing is changed then.
    pub fn load(&self, archive: &Archive) -> Result<()> {
        const OP: &str = "LanguageModel::load";
        let of_layer = archive.under(RNN).metadata;
        let clock = self.layer.clock_in(OP, &of_layer)?;
        write_all(OP, &self.weights(), &archive.tensors)?;
        match clock {
            Some((clock, now)) => clock.write_uint(&[now]),
            None => Ok(()),
        }
    }

    /// A program over the model's tensors, for which [`ModelSpec::weights`] has added `ids` to its plan.
    pub(crate) fn program(&self, plan: Plan, ids: &ModelIds) -> Result<Program> {
        let own = [
            (ids.embedding, self.embedding.clone()),
            (ids.linear_weight, self.linear_weight.clone()),
            (ids.linear_bias, self.linear_bias.clone()),
        ];
        self.layer.program(plan, &ids.layer, &own)
    }
}
