//! Saving a model while it is trained.

use std::path::Path;

use wgrnn::Result;
use wgrnn::train::checkpoint::{self, Description};
use wgrnn::train::{LanguageModel, Trainer};

/// Where the model goes in the course of a training.
pub(super) struct Saver<'a> {
    pub(super) path: Option<&'a Path>,
    pub(super) every: Option<usize>,
    pub(super) model: &'a LanguageModel,
    pub(super) trainer: &'a Trainer,
    pub(super) description: Description,
    /// The iteration of the latest save.
    pub(super) saved: Option<usize>,
}

impl Saver<'_> {
    /// Saves the model as it is after so many iterations, if there is a file for it.
    pub(super) fn save(&mut self, iteration: usize) -> Result<()> {
        if let Some(path) = self.path {
            self.description.iteration = iteration;
            checkpoint::save(path, self.model, self.trainer, &self.description)?;
            self.saved = Some(iteration);
        }
        Ok(())
    }

    /// Saves where `--save-every` asks for it.
    pub(super) fn after(&mut self, iteration: usize) -> Result<()> {
        match self.every {
            Some(every) if iteration.is_multiple_of(every) => self.save(iteration),
            _ => Ok(()),
        }
    }
}
