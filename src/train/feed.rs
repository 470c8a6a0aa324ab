//! How chunks of a text reach a plan: its inputs, its targets, and the state carried between them.

use super::batches::Chunk;
use crate::error::Result;
use crate::kernels::cross_entropy::IGNORE;
use crate::plan::sequence::{self as driver, Run, States};
use crate::plan::{BufferId, Builder, Role};
use crate::program::Program;
use crate::tensor::Ids;

/// The buffers through which chunks come in, in a plan with a section `carry`.
#[derive(Debug)]
pub(crate) struct Feed {
    /// `[T, N]`
    pub(crate) inputs: BufferId,
    /// `[T, N]`
    pub(crate) targets: BufferId,
    /// The initial h, and c where there is one.
    initial: Vec<BufferId>,
    /// The final ones.
    pub(crate) states: Vec<BufferId>,
    vocabulary: usize,
}

impl Feed {
    /// Adds the buffers and the section `carry`.
    ///
    /// # Errors
    /// If the plan cannot take them.
    pub(crate) fn new(b: &mut Builder, run: &Run, vocabulary: usize) -> Result<(Self, States)> {
        let shape = [run.steps(), run.batch()];
        let inputs = b.uint("inputs", &shape, Role::Input);
        let targets = b.uint("targets", &shape, Role::Input);
        let states = driver::states(b, run);
        b.section("carry");
        driver::carry_states(b, &states)?;
        let feed = Self {
            inputs,
            targets,
            initial: [Some(states.h0), states.c0].into_iter().flatten().collect(),
            states: [Some(states.hn), states.cn].into_iter().flatten().collect(),
            vocabulary,
        };
        Ok((feed, states))
    }

    /// Writes a chunk, and carries the state from the chunk before it, or zeroes it where the chunk
    /// starts the text anew.
    ///
    /// # Errors
    /// [`Error::Token`] for an id outside the vocabulary, or if the chunk has another size.
    pub(crate) fn write(&self, program: &Program, chunk: &Chunk) -> Result<()> {
        // Before either is written.
        check_tokens(&chunk.inputs, self.vocabulary, None)?;
        check_tokens(&chunk.targets, self.vocabulary, Some(IGNORE))?;
        program.own(self.inputs).write_uint(&chunk.inputs)?;
        program.own(self.targets).write_uint(&chunk.targets)?;
        if !chunk.starts {
            return program.run("carry");
        }
        self.initial.iter().try_for_each(|&id| {
            let state = program.own(id);
            state.write(&vec![0.0; state.len()])
        })
    }
}

/// Refuses ids that the embedding or the loss has no row for.
pub(crate) fn check_tokens(ids: &[u32], vocabulary: usize, except: Option<u32>) -> Result<()> {
    Ids { vocabulary, except }.check("tokens", ids)
}
