//! A model in a file: the weights under PyTorch's names, and in the metadata what is needed to
//! build the model and to read and write its text.
//!
//! The optimizer's state goes into a second file beside the first, so that the first holds just what a
//! PyTorch module expects: beside `model.safetensors` lies `model.optimizer-0123456789abcdef.safetensors`.
//! The number is a hash of all that both hold, and the first file names it in its metadata. The second is on
//! the disk before the first takes the place of an older one, and the older second is removed after that: a
//! process that ends at any moment leaves weights with the state that belongs to them. A model beside `m.safetensors` that is
//! called `m` has its second file under names of the same kind; neither removes the other's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::model::{LanguageModel, ModelSpec};
use super::text::{Tokens, Vocabulary};
use super::trainer::Trainer;
use crate::cell::Cell;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::interop::atomic;
use crate::interop::safetensors::{self, Archive, Data, Reader};
use crate::plan::sequence::LayerSpec;

const FORMAT: &str = "wgrnn-language-model/1";
/// The metadata by which the weights' file names the optimizer's, and that one the weights.
const OPTIMIZER: &str = "optimizer";
const WEIGHTS: &str = "weights";

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

/// Writes a model, and the trainer's state beside it. Whatever ends the process meanwhile, the file then
/// holds the old model with its state or the new one with its own.
///
/// # Errors
/// If the device or the file system fails; the old model and its state are whole then.
pub fn save(
    path: &Path,
    model: &LanguageModel,
    trainer: &Trainer,
    description: &Description,
) -> Result<()> {
    let mut weights = model.to_archive()?;
    let mut state = trainer.to_archive()?;
    let id = fingerprint([&weights, &state]);
    state.metadata = pairs([(WEIGHTS, fingerprint([&weights]))]);
    weights.metadata = pairs([
        ("format", FORMAT.to_owned()),
        ("cell", description.cell.name.to_owned()),
        ("tokens", unit_name(description.unit).to_owned()),
        ("vocabulary", description.vocabulary.to_lines()),
        ("iteration", description.iteration.to_string()),
        (OPTIMIZER, id.clone()),
    ]);
    let files = Files::of(path)?;
    let weights = safetensors::prepare(path, &weights)?;
    let own = files.optimizer(&id);
    let new = !own.exists();
    safetensors::save(&own, &state)?;
    // Up to here all is as it was, and from here on all is new.
    if let Err(e) = weights.commit() {
        if new {
            // The failure that led here is the one worth reporting.
            let _ = fs::remove_file(own);
        }
        return Err(e);
    }
    let Ok(kept) = neighbours_optimizer(path, &files) else {
        // It may name any of them.
        return Ok(());
    };
    for other in files.optimizers()? {
        if other != own && Some(&other) != kept.as_ref() {
            // Nothing names it any more; what cannot be removed is removed by the next save.
            let _ = fs::remove_file(other);
        }
    }
    Ok(())
}

/// The optimizer's file of the other model whose files have the names of this one's: `m` and `m.safetensors` are such a pair.
///
/// # Errors
/// If the other file cannot be read.
fn neighbours_optimizer(path: &Path, files: &Files) -> Result<Option<PathBuf>> {
    let own = atomic::link_target(path).map_err(|e| Error::io(path, e))?;
    let other = match own.extension() {
        Some(extension) if extension == "safetensors" => own.with_extension(""),
        _ => {
            let mut name = own.clone().into_os_string();
            name.push(".safetensors");
            PathBuf::from(name)
        }
    };
    if !other.is_file() {
        return Ok(None);
    }
    let reader = match Reader::open(&other) {
        Ok(reader) => reader,
        // No model, whatever its name.
        Err(Error::Format { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let id = reader.metadata().get(OPTIMIZER);
    Ok(id.map(|id| files.optimizer(id)))
}

/// Whether [`save`] could write its two files now.
///
/// # Errors
/// If a folder is missing or read-only, or what is there is no file.
pub fn check_writable(path: &Path) -> Result<()> {
    atomic::check_replaceable(path)?;
    atomic::check_writable(&Files::of(path)?.optimizer(&fingerprint([])))
}

/// Whether [`save`] to `path` would write or remove `other`, under whatever name.
///
/// # Errors
/// If the system does not say which files these are.
pub fn touches(path: &Path, other: &Path) -> Result<bool> {
    if atomic::same_file(path, other)? {
        return Ok(true);
    }
    let files = Files::of(path)?;
    for optimizer in files.optimizers()? {
        if atomic::same_file(&optimizer, other)? {
            return Ok(true);
        }
    }
    // A file that is not there yet.
    let target = atomic::link_target(other).map_err(|e| Error::io(other, e))?;
    match target.file_name().and_then(|name| files.id_in(name)) {
        Some(id) => atomic::same_file(&files.optimizer(id), &target),
        None => Ok(false),
    }
}

/// A hash of names and numbers by which files know each other (FNV-1a over 32 bits at a time).
fn fingerprint<const N: usize>(archives: [&Archive; N]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |word: u32| hash = (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
    for (name, array) in archives.iter().flat_map(|archive| &archive.tensors) {
        name.bytes().for_each(|byte| add(u32::from(byte)));
        match &array.data {
            Data::F32(values) => values.iter().for_each(|v| add(v.to_bits())),
            Data::U32(values) => values.iter().for_each(|v| add(*v)),
            // Neither a model nor a trainer has others.
            Data::F64(_) | Data::I64(_) | Data::U8(_) => {}
        }
    }
    format!("{hash:016x}")
}

/// Reads a model.
///
/// # Errors
/// If the file is missing or not such a model, or the device cannot hold it.
pub fn load(path: &Path, context: &Context) -> Result<(LanguageModel, Description)> {
    let reader = Reader::open(path)?;
    let metadata = reader.metadata().clone();
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
    let archive = reader.read()?;
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
/// If a file is there and damaged, or belongs to another kind of training.
pub fn resume(path: &Path, trainer: &Trainer, model: &LanguageModel) -> Result<bool> {
    let reader = Reader::open(path)?;
    let Some(id) = reader.metadata().get(OPTIMIZER) else {
        return Ok(false);
    };
    let path = Files::of(path)?.optimizer(id);
    // The name comes out of a file.
    if !is_id(id) || !path.exists() {
        return Ok(false);
    }
    let mut state = safetensors::load(&path)?;
    let metadata = std::mem::take(&mut state.metadata);
    let weights = model.to_archive()?;
    if metadata.get(WEIGHTS) != Some(&fingerprint([&weights])) {
        return Ok(false);
    }
    if *id != fingerprint([&weights, &state]) {
        return Err(Error::format(
            &path,
            "it has been changed since it was saved",
        ));
    }
    trainer
        .load(&state)
        .map_err(|e| Error::format(&path, e.to_string()))?;
    Ok(true)
}

/// The names of a model's files.
struct Files {
    folder: PathBuf,
    /// What comes before the optimizer's number.
    stem: OsString,
}

impl Files {
    /// Of the file behind a path, so that all links to a model find one state.
    fn of(path: &Path) -> Result<Self> {
        let target = atomic::link_target(path).map_err(|e| Error::io(path, e))?;
        let whole = target.extension().is_none_or(|e| e != "safetensors");
        let name = if whole {
            target.file_name()
        } else {
            target.file_stem()
        };
        let mut stem = name.unwrap_or_default().to_owned();
        stem.push(".optimizer-");
        let folder = atomic::folder_of(&target).to_owned();
        Ok(Self { folder, stem })
    }

    fn optimizer(&self, id: &str) -> PathBuf {
        let mut name = self.stem.clone();
        name.push(id);
        name.push(".safetensors");
        self.folder.join(name)
    }

    /// The number in the name of an optimizer's file.
    fn id_in<'a>(&self, name: &'a OsStr) -> Option<&'a str> {
        let name = name.as_encoded_bytes();
        let id = name.strip_prefix(self.stem.as_encoded_bytes())?;
        let id = str::from_utf8(id.strip_suffix(b".safetensors")?).ok()?;
        is_id(id).then_some(id)
    }

    /// The optimizer's files that there are.
    fn optimizers(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&self.folder, e)),
        };
        let named = entries
            .flatten()
            .filter(|entry| self.id_in(&entry.file_name()).is_some());
        Ok(named
            .map(|entry| self.folder.join(entry.file_name()))
            .collect())
    }
}

/// Whether a text is one that [`fingerprint`] gives.
fn is_id(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 16 && text.bytes().all(digit)
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
