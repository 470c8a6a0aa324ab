//! One training step as a plan: forward, loss, backward, clipping, optimizer, all on the device.
//!
//! What changes from step to step lives in the device's memory: the counter that dropout masks and
//! the optimizer's bias correction read is advanced by a kernel, and the learning rate is a tensor.

use super::batches::Chunk;
use super::feed::Feed;
use super::model::{Drop, LanguageModel};
use crate::error::{Error, Result};
use crate::interop::safetensors::{Archive, Array, Data};
use crate::interop::state_dict::{read_all, write_all};
use crate::kernels::adam::{self, Adam};
use crate::kernels::clip::clip_by_global_norm;
use crate::kernels::clock;
use crate::kernels::cross_entropy::{CrossEntropy, cross_entropy};
use crate::kernels::embedding;
use crate::kernels::gemm::Gemm;
use crate::kernels::reduce::columns;
use crate::kernels::sgd::{self, Sgd};
use crate::plan::sequence::{self as driver, BackwardArgs, Mode, Size};
use crate::plan::{BufferId, Builder, Matrix, Role};
use crate::program::Program;
use crate::tensor::Tensor;

/// How the weights follow their gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd {
        /// 0 for none.
        momentum: f32,
        /// The factor of the L2 penalty.
        weight_decay: f32,
    },
    /// Adam, or AdamW where the weight decay is decoupled from the gradient.
    Adam {
        /// Decay of the mean of gradients; 0.9 is usual.
        beta1: f64,
        /// Decay of the mean of their squares; 0.999 is usual.
        beta2: f64,
        /// Added to the root in the denominator; 1e-8 is usual.
        epsilon: f32,
        /// The factor of the decay.
        weight_decay: f32,
        /// True for AdamW.
        decoupled: bool,
    },
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::Adam {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
        }
    }
}

/// How to train.
#[derive(Debug, Clone, Copy)]
pub struct TrainerSpec {
    /// T steps of truncated BPTT, N streams.
    pub size: Size,
    /// How the weights follow their gradients.
    pub optimizer: Optimizer,
    /// The largest global norm of the gradients; larger ones are scaled down. Infinity only measures.
    pub clip: f32,
    /// The probability with which inputs and outputs of the recurrent layers are dropped, and what they
    /// pass to each other; below 1.
    pub dropout: f32,
    /// The seed of the dropout masks.
    pub seed: u64,
}

/// A model's training step with its memory. See the [module](self).
#[derive(Debug)]
pub struct Trainer {
    program: Program,
    spec: TrainerSpec,
    feed: Feed,
    loss: BufferId,
    norm: BufferId,
    rate: BufferId,
    clock: BufferId,
    moments: Vec<(String, BufferId)>,
}

impl Trainer {
    /// Plans a training step of the model and allocates its memory.
    ///
    /// # Errors
    /// If an option is out of range, or something is too large for the device.
    pub fn new(model: &LanguageModel, spec: TrainerSpec) -> Result<Self> {
        let TrainerSpec { size, .. } = spec;
        let mut model_spec = *model.spec();
        if model_spec.layer.num_layers > 1 {
            model_spec.layer.dropout = spec.dropout;
            model_spec.layer.dropout_seed = spec.seed;
        }
        let layer = model_spec.layer;
        let (e, h, v) = (layer.input_size, layer.features(), model_spec.vocabulary);
        let run = model_spec.run(size, Mode::Training, &model.context().target())?;
        let rows = run.rows();

        let mut b = Builder::on("train", model.context().target());
        let (feed, states) = Feed::new(&mut b, &run, v)?;
        let rate = b.float("learning rate", &[1], Role::Input);
        let clock = b.uint("clock", &[1], Role::State);
        let loss = b.float("loss", &[1], Role::Output);
        let weights = model_spec.weights(&mut b);

        b.section("step");
        let drop = (spec.dropout != 0.0).then_some(Drop {
            probability: spec.dropout,
            seed: spec.seed,
            clock,
        });
        driver::prepare(&mut b, &weights.layer)?;
        let out = model_spec.forward(&mut b, &run, feed.inputs, &weights, &states, drop)?;
        cross_entropy(
            &mut b,
            CrossEntropy {
                logits: out.logits,
                targets: feed.targets,
                loss,
                gradient: true,
            },
        )?;

        // The logits have become their gradient.
        let dlogits = Matrix::dense(out.logits, rows, v);
        let dlinear = b.float("dlinear.weight", &[v, h], Role::Gradient);
        Gemm::new(dlogits.t(), out.features, Matrix::dense(dlinear, v, h)).push(&mut b)?;
        let dlinear_bias = b.float("dlinear.bias", &[v], Role::Gradient);
        columns(&mut b, dlogits, (dlinear_bias, 0))?;
        let dy = b.float("dy", &[rows, h], Role::Scratch);
        let linear = Matrix::dense(weights.linear_weight, v, h);
        Gemm::new(dlogits, linear, Matrix::dense(dy, rows, h)).push(&mut b)?;
        if let Some(drop) = drop {
            drop.apply(&mut b, dy, 1)?;
        }
        let args = BackwardArgs {
            ends: out.ends,
            dy,
            dhn: None,
            dcn: None,
            dx: true,
        };
        let layer_gradients = driver::backward(&mut b, &run, &weights.layer, &states, args)?;
        let dembedding = b.float("dembedding.weight", &[v, e], Role::Gradient);
        if let Some(dx) = layer_gradients.x {
            if let Some(drop) = drop {
                drop.apply(&mut b, dx, 0)?;
            }
            embedding::scatter(&mut b, feed.inputs, dx, dembedding)?;
        }

        let mut pairs = vec![(weights.embedding, dembedding)];
        let of_layer = weights.layer.trained.iter().copied();
        pairs.extend(of_layer.zip(layer_gradients.weights));
        pairs.push((weights.linear_weight, dlinear));
        pairs.push((weights.linear_bias, dlinear_bias));

        let gradients: Vec<BufferId> = pairs.iter().map(|(_, g)| *g).collect();
        let norm = clip_by_global_norm(&mut b, &gradients, spec.clip)?;
        clock::advance(&mut b, clock)?;
        let mut moments = Vec::new();
        for (weight, gradient) in pairs {
            let step = Update {
                weight,
                gradient,
                rate,
                clock,
            };
            step.push(&mut b, spec.optimizer, &mut moments)?;
        }

        let program = model.program(b.finish(), &weights)?;
        Ok(Self {
            program,
            spec,
            feed,
            loss,
            norm,
            rate,
            clock,
            moments,
        })
    }

    /// The plan and its memory; its sections are `carry` and `step`.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// How it trains.
    pub fn spec(&self) -> &TrainerSpec {
        &self.spec
    }

    /// Sets the learning rate of the steps from here on.
    ///
    /// # Errors
    /// If the device fails.
    pub fn set_learning_rate(&self, rate: f32) -> Result<()> {
        self.program.own(self.rate).write(&[rate])
    }

    /// Runs one training step. The recurrent state is carried from the step before, or zeroed where
    /// the chunk starts the text anew.
    ///
    /// # Errors
    /// [`Error::Token`] for an id outside the vocabulary, or if the chunk has another size.
    pub fn step(&self, chunk: &Chunk) -> Result<()> {
        self.feed.write(&self.program, chunk)?;
        self.program.run("step")
    }

    /// The mean loss of the latest step, in nats per token; waits for it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn loss(&self) -> Result<f32> {
        Ok(self.program.own(self.loss).read()?[0])
    }

    /// The global norm of the latest step's gradients before clipping; waits for it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn gradient_norm(&self) -> Result<f32> {
        Ok(self.program.own(self.norm).read()?[0])
    }

    fn kept(&self) -> Vec<(String, Tensor)> {
        let named = self.moments.iter().cloned();
        let states = self.feed.states.iter().map(|&id| {
            let name = format!("state.{}", self.program.plan().buffers[id.0].name);
            (name, id)
        });
        named
            .chain(states)
            .map(|(name, id)| (name, self.program.own(id).clone()))
            .collect()
    }

    /// Everything beside the weights that the next step depends on: moments, counter, states.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_archive(&self) -> Result<Archive> {
        let mut tensors = read_all(&self.kept())?;
        let clock = Array {
            shape: vec![1],
            data: Data::U32(self.program.own(self.clock).read_uint()?),
        };
        tensors.insert(CLOCK.to_owned(), clock);
        Ok(tensors.into())
    }

    /// Puts back what [`Self::to_archive`] took.
    ///
    /// # Errors
    /// [`Error::Weights`] naming what is missing, surplus or of another shape; nothing is changed then.
    pub fn load(&self, archive: &Archive) -> Result<()> {
        const OP: &str = "Trainer::load";
        let mut tensors = archive.tensors.clone();
        let clock = tensors.remove(CLOCK);
        let Some([clock]) = clock.as_ref().and_then(Array::as_u32) else {
            let reason = format!("'{CLOCK}' must be one u32");
            return Err(Error::Weights { op: OP, reason });
        };
        write_all(OP, &self.kept(), &tensors)?;
        self.program.own(self.clock).write_uint(&[*clock])
    }
}

const CLOCK: &str = "clock";

/// The optimizer's step for one weight.
struct Update {
    weight: BufferId,
    gradient: BufferId,
    rate: BufferId,
    clock: BufferId,
}

impl Update {
    fn push(
        self,
        b: &mut Builder,
        optimizer: Optimizer,
        moments: &mut Vec<(String, BufferId)>,
    ) -> Result<()> {
        let Self {
            weight,
            gradient,
            rate,
            clock,
        } = self;
        let (name, shape) = (
            b.buffer(weight)?.name.clone(),
            b.buffer(weight)?.shape.clone(),
        );
        let mut moment = |b: &mut Builder, kind: &str| {
            let name = format!("{kind}.{name}");
            let id = b.float(&name, &shape, Role::State);
            moments.push((name, id));
            id
        };
        match optimizer {
            Optimizer::Sgd {
                momentum,
                weight_decay,
            } => {
                let velocity = moment(b, "velocity");
                let args = Sgd {
                    weight,
                    gradient,
                    velocity,
                    rate,
                    momentum,
                    weight_decay,
                };
                sgd::step(b, args)
            }
            Optimizer::Adam {
                beta1,
                beta2,
                epsilon,
                weight_decay,
                decoupled,
            } => {
                let (m, v) = (moment(b, "mean"), moment(b, "square"));
                let args = Adam {
                    weight,
                    gradient,
                    m,
                    v,
                    rate,
                    clock,
                    beta1,
                    beta2,
                    epsilon,
                    weight_decay,
                    decoupled,
                };
                adam::step(b, args)
            }
        }
    }
}
