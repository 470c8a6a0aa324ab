//! The loss of a model on a text that it does not learn from.

use super::batches::Batches;
use super::model::LanguageModel;
use super::trainer::check_tokens;
use crate::error::Result;
use crate::kernels::cross_entropy::{CrossEntropy, cross_entropy};
use crate::plan::sequence::{self as driver, Mode, Size};
use crate::plan::{BufferId, Builder, Role};
use crate::program::Program;

/// A model's forward pass and loss over a text, with its memory.
#[derive(Debug)]
pub struct Evaluator {
    program: Program,
    size: Size,
    vocabulary: usize,
    inputs: BufferId,
    targets: BufferId,
    loss: BufferId,
    states: Vec<BufferId>,
}

impl Evaluator {
    /// Plans forward passes of T steps of N streams and allocates their memory.
    ///
    /// # Errors
    /// If a size is 0 or too large for the device.
    pub fn new(model: &LanguageModel, size: Size) -> Result<Self> {
        let spec = *model.spec();
        spec.layer.check(size)?;
        let call = spec.call(size, Mode::Inference);
        let mut b = Builder::new("evaluate");
        let inputs = b.uint("inputs", &[size.steps, size.batch], Role::Input);
        let targets = b.uint("targets", &[size.steps, size.batch], Role::Input);
        let loss = b.float("loss", &[1], Role::Output);
        let weights = spec.weights(&mut b);
        let states = driver::states(&mut b, &call);
        b.section("carry");
        driver::carry_states(&mut b, &call, &states)?;
        b.section("loss");
        // The weights change between evaluations.
        driver::prepare(&mut b, &weights.layer)?;
        let out = spec.forward(&mut b, &call, inputs, &weights, states, None)?;
        cross_entropy(
            &mut b,
            CrossEntropy {
                logits: out.logits,
                targets,
                loss,
                gradient: false,
            },
        )?;
        let states = [Some(states.h), states.c].into_iter().flatten().collect();
        Ok(Self {
            program: Program::new(model.context(), b.finish(), &model.bind(&weights))?,
            size,
            vocabulary: spec.vocabulary,
            inputs,
            targets,
            loss,
            states,
        })
    }

    /// The perplexity over all tokens but the first: e to the mean loss. Every stream starts from a
    /// zero state and goes on through the text.
    ///
    /// # Errors
    /// [`crate::Error::Token`] for an id outside the vocabulary, or if the text is too short.
    pub fn perplexity(&self, tokens: &[u32]) -> Result<f64> {
        check_tokens(tokens, self.vocabulary, None)?;
        let batches = Batches::new(tokens, self.size)?;
        let (mut sum, mut counted) = (0.0, 0);
        for number in 0..batches.len() {
            let chunk = batches.chunk(number);
            self.program.tensor(self.inputs).write_uint(&chunk.inputs)?;
            self.program
                .tensor(self.targets)
                .write_uint(&chunk.targets)?;
            if chunk.starts {
                for &id in &self.states {
                    let first = self.program.tensor(id).rows(0..1)?;
                    first.write(&vec![0.0; first.len()])?;
                }
            } else {
                self.program.run("carry")?;
            }
            self.program.run("loss")?;
            let mean = f64::from(self.program.tensor(self.loss).read()?[0]);
            sum += mean * chunk.counted as f64;
            counted += chunk.counted;
        }
        Ok((sum / counted as f64).exp())
    }
}
