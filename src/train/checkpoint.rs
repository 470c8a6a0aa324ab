//! A model in a file: the weights under PyTorch's names, and in the metadata what is needed to
//! build the model and to read and write its text.
//!
//! The optimizer's state goes into a second file beside the first (`model.safetensors` and
//! `model.optimizer.safetensors`), so that the first holds just what a PyTorch module expects. Both
//! carry the iteration; training resumes with the optimizer's state only if they agree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::model::{LanguageModel, ModelSpec};
use super::text::{Tokens, Vocabulary};
use super::trainer::Trainer;
use crate::cell::Cell;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::interop::safetensors::{self, Archive};
use crate::plan::sequence::LayerSpec;

const FORMAT: &str = "wgrnn-language-model/1";

/// What a file says of its model beside the weights.
#[derive(Debug, Clone)]
pub struct Description {
    /// The cell of the recurrent layer.
    pub cell: &'static Cell,
    /// Whether it reads words or characters.
    pub unit: Tokens,
    /// Its tokens.
    pub vocabulary: Vocabulary,
    /// How many training steps it has seen.
    pub iteration: usize,
}

/// Writes a model, and the trainer's state beside it. Each file is whole or the old one.
///
/// # Errors
/// If the device or the file system fails.
pub fn save(
    path: &Path,
    model: &LanguageModel,
    trainer: &Trainer,
    description: &Description,
) -> Result<()> {
    let iteration = ("iteration", description.iteration.to_string());
    let mut archive = model.to_archive()?;
    archive.metadata = pairs([
        ("format", FORMAT.to_owned()),
        ("cell", description.cell.name.to_owned()),
        ("tokens", unit_name(description.unit).to_owned()),
        ("vocabulary", description.vocabulary.to_lines()),
        iteration.clone(),
    ]);
    let mut state = trainer.to_archive()?;
    state.metadata = pairs([iteration]);
    safetensors::save(&optimizer_path(path), &state)?;
    safetensors::save(path, &archive)
}

/// Reads a model.
///
/// # Errors
/// If the file is missing or not such a model, or the device cannot hold it.
pub fn load(path: &Path, context: &Context) -> Result<(LanguageModel, Description)> {
    let mut archive = safetensors::load(path)?;
    let metadata = std::mem::take(&mut archive.metadata);
    let field = |name: &str| {
        metadata
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| Error::format(path, format!("its metadata has no '{name}'")))
    };
    if field("format")? != FORMAT {
        return Err(Error::format(path, format!("its format is not '{FORMAT}'")));
    }
    let unknown = |name: &str, value: &str| {
        Error::format(
            path,
            format!("its metadata has {name} = '{value}', which is unknown"),
        )
    };
    let cell_name = field("cell")?;
    let cell = Cell::named(cell_name).ok_or_else(|| unknown("cell", cell_name))?;
    let unit = match field("tokens")? {
        "words" => Tokens::Words,
        "chars" => Tokens::Chars,
        other => return Err(unknown("tokens", other)),
    };
    let iteration = field("iteration")?;
    let description = Description {
        cell,
        unit,
        vocabulary: Vocabulary::from_lines(field("vocabulary")?)
            .map_err(|e| Error::format(path, e.to_string()))?,
        iteration: iteration
            .parse()
            .map_err(|_| unknown("iteration", iteration))?,
    };
    let columns = |name: &str| match archive.tensors.get(name).map(|a| a.shape.as_slice()) {
        Some(&[_, columns]) => Ok(columns),
        _ => Err(Error::format(path, format!("it has no matrix '{name}'"))),
    };
    let spec = ModelSpec {
        vocabulary: description.vocabulary.len(),
        layer: LayerSpec {
            cell,
            input_size: columns("embedding.weight")?,
            hidden_size: columns("linear.weight")?,
            bias: true,
        },
    };
    let model = LanguageModel::new(context, spec, 0)?;
    model
        .load(&archive)
        .map_err(|e| Error::format(path, e.to_string()))?;
    Ok((model, description))
}

/// Puts back the trainer's state that was saved beside a model; false if there is none of this
/// iteration.
///
/// # Errors
/// If the file is there and damaged, or belongs to another kind of training.
pub fn resume(path: &Path, trainer: &Trainer, description: &Description) -> Result<bool> {
    let path = optimizer_path(path);
    if !path.exists() {
        return Ok(false);
    }
    let mut archive: Archive = safetensors::load(&path)?;
    let metadata = std::mem::take(&mut archive.metadata);
    if metadata.get("iteration") != Some(&description.iteration.to_string()) {
        return Ok(false);
    }
    trainer
        .load(&archive)
        .map_err(|e| Error::format(&path, e.to_string()))?;
    Ok(true)
}

fn optimizer_path(path: &Path) -> PathBuf {
    path.with_extension("optimizer.safetensors")
}

fn unit_name(unit: Tokens) -> &'static str {
    match unit {
        Tokens::Words => "words",
        Tokens::Chars => "chars",
    }
}

fn pairs<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}
