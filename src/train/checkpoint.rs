//! A model in a file: the weights under PyTorch's names, and in the metadata what is needed to
//! build the model and to read and write its text.
//!
//! The optimizer's state goes into a second file beside the first (`model.safetensors` and
//! `model.optimizer.safetensors`), so that the first holds just what a PyTorch module expects. The
//! second knows the first by a hash: training resumes with the optimizer's state only if it belongs
//! to these weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::model::{LanguageModel, ModelSpec};
use super::text::{Tokens, Vocabulary};
use super::trainer::Trainer;
use crate::cell::Cell;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::interop::atomic;
use crate::interop::safetensors::{self, Archive, Array};
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
    let mut archive = model.to_archive()?;
    let fingerprint = fingerprint(&archive);
    archive.metadata = pairs([
        ("format", FORMAT.to_owned()),
        ("cell", description.cell.name.to_owned()),
        ("tokens", unit_name(description.unit).to_owned()),
        ("vocabulary", description.vocabulary.to_lines()),
        ("iteration", description.iteration.to_string()),
    ]);
    let mut state = trainer.to_archive()?;
    state.metadata = pairs([("weights", fingerprint)]);
    // Both are on the disk before either takes its place.
    let weights = safetensors::prepare(path, &archive)?;
    let state = safetensors::prepare(&optimizer_path(path), &state)?;
    weights.commit()?;
    state.commit()
}

/// Whether [`save`] could write its two files now.
///
/// # Errors
/// If a folder is missing or read-only, or what is there is no file.
pub fn check_writable(path: &Path) -> Result<()> {
    for path in [path, &optimizer_path(path)] {
        if path.exists() && !path.is_file() {
            return Err(Error::format(path, "it is there and is no file"));
        }
        atomic::check_writable(path)?;
    }
    Ok(())
}

/// A number by which an optimizer's state knows its weights (FNV-1a of their bits).
fn fingerprint(archive: &Archive) -> String {
    let values = archive.tensors.values().filter_map(Array::as_f32).flatten();
    let hash = values.fold(0xcbf2_9ce4_8422_2325u64, |hash, v| {
        (hash ^ u64::from(v.to_bits())).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
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
    let rows = |name: &str| match archive.tensors.get(name).map(|a| a.shape.as_slice()) {
        Some(&[rows, _]) => Ok(rows),
        _ => Err(Error::format(path, format!("it has no matrix '{name}'"))),
    };
    let layers = (0..)
        .take_while(|k| archive.tensors.contains_key(&format!("rnn.weight_ih_l{k}")))
        .count();
    let hidden = rows("rnn.weight_hh_l0")? / cell.gates;
    let own = LayerSpec::new(cell, columns("embedding.weight")?, hidden);
    let spec = ModelSpec {
        vocabulary: description.vocabulary.len(),
        layer: LayerSpec {
            num_layers: layers.max(1),
            proj_size: if cell.projected {
                columns("rnn.weight_hh_l0")?
            } else {
                own.proj_size
            },
            ..own
        },
    };
    let model = LanguageModel::new(context, spec, 0)?;
    model
        .load(&archive)
        .map_err(|e| Error::format(path, e.to_string()))?;
    Ok((model, description))
}

/// Puts back the trainer's state that was saved beside a model; false if there is none that belongs
/// to these weights.
///
/// # Errors
/// If the file is there and damaged, or belongs to another kind of training.
pub fn resume(path: &Path, trainer: &Trainer, model: &LanguageModel) -> Result<bool> {
    let path = optimizer_path(path);
    if !path.exists() {
        return Ok(false);
    }
    let mut archive: Archive = safetensors::load(&path)?;
    let metadata = std::mem::take(&mut archive.metadata);
    if metadata.get("weights") != Some(&fingerprint(&model.to_archive()?)) {
        return Ok(false);
    }
    trainer
        .load(&archive)
        .map_err(|e| Error::format(&path, e.to_string()))?;
    Ok(true)
}

fn optimizer_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if path.extension().is_some_and(|e| e == "safetensors") {
        name = path.with_extension("").into_os_string();
    }
    name.push(".optimizer.safetensors");
    PathBuf::from(name)
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
