//! The loss of a model on a text that it does not learn from.

use super::batches::Batches;
use super::feed::{Feed, check_tokens};
use super::model::LanguageModel;

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
    feed: Feed,
    loss: BufferId,
}

impl Evaluator {
    /// Plans forward passes of T steps of N streams and allocates their memory.
    ///
    /// # Errors
    /// If a size is 0 or too large for the device.
    pub fn new(model: &LanguageModel, size: Size) -> Result<Self> {
        let spec = *model.spec();
        let run = spec.run(size, Mode::Inference, &model.context().target())?;
        let mut b = Builder::on("evaluate", model.context().target());
        let (feed, states) = Feed::new(&mut b, &run, spec.vocabulary)?;
        let loss = b.float("loss", &[1], Role::Output);
        let weights = spec.weights(&mut b);
        b.section("loss");
        // The weights change between evaluations.
        driver::prepare(&mut b, &weights.layer)?;
        let out = spec.forward(&mut b, &run, feed.inputs, &weights, &states, None)?;
        cross_entropy(
            &mut b,
            CrossEntropy {
                logits: out.logits,
                targets: feed.targets,
                loss,
                gradient: false,
            },
        )?;
        Ok(Self {
            program: model.program(b.finish(), &weights)?,
            size,
            vocabulary: spec.vocabulary,
            feed,
            loss,
        })
    }

    /// The plan and its memory; its section is `loss`.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The perplexity over all tokens but the first: e to the mean loss. Every stream starts from a
    /// zero state and goes on through the text.
    ///
    /// # Errors
    /// [`crate::Error::Token`] for an id outside the vocabulary, or if the text is too short.
    pub fn perplexity(&self, tokens: &[u32]) -> Result<f64> {
        let all = self.perplexity_while(tokens, || true)?;
        // It always goes on.
        Ok(all.unwrap_or(f64::NAN))
    }

    /// [`Self::perplexity`] as long as `go_on` says so, which is asked before every T steps; else nothing.
    ///
    /// # Errors
    /// As [`Self::perplexity`].
    pub fn perplexity_while(
        &self,
        tokens: &[u32],
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<f64>> {
        check_tokens(tokens, self.vocabulary, None)?;
        let batches = Batches::new(tokens, self.size)?;
        let (mut sum, mut counted) = (0.0, 0);
        for number in 0..batches.len() {
            if !go_on() {
                return Ok(None);
            }
            let chunk = batches.chunk(number);
            self.feed.write(&self.program, &chunk)?;
            self.program.run("loss")?;
            let mean = f64::from(self.program.own(self.loss).read()?[0]);
            sum += mean * chunk.counted as f64;
            counted += chunk.counted;
        }
        Ok(Some((sum / counted as f64).exp()))
    }
}
