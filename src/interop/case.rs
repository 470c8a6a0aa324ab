//! Reference cases: a layer's inputs and weights with the outputs and gradients they must give.
//!
//! A case is a safetensors file in the format "rnn-case/1". Its metadata describe the layer;
//! inputs and weights are `f32`, expected results `f64`. With T steps, N sequences, I inputs,
//! H hidden units, P outputs per direction, D directions, L layers and G gates it holds
//!
//! - `x` `[T,N,I]`, `h0` `[L*D,N,P]`, for an LSTM `c0` `[L*D,N,H]`, the weights by PyTorch's
//!   names ([`Case::weight_names`]), and the loss gradients of the outputs `dy` `[T,N,D*P]`,
//!   `dhn`, for an LSTM `dcn`;
//! - where sequences differ in length `lengths` `[N]` (`i64`), where states are reset `reset`
//!   `[T,N]` (`u8`);
//! - `out.y`, `out.hn`, for an LSTM `out.cn`, and `grad.` followed by each input's and weight's
//!   name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};

use super::safetensors::{self, Archive, Array};
use crate::error::{Error, Result};

const FORMAT: &str = "rnn-case/1";
/// The largest size a case may state, so that no product of two sizes and a gate count can
/// overflow.
const MAX_SIZE: usize = 1 << 24;
const ACTIVATIONS: [&str; 8] = [
    "sigmoid",
    "tanh",
    "relu",
    "affine",
    "softsign",
    "softplus",
    "elu",
    "hardsigmoid",
];
const FIELDS: [&str; 13] = [
    "format",
    "cell",
    "input_size",
    "hidden_size",
    "num_layers",
    "proj_size",
    "bidirectional",
    "bias",
    "peephole",
    "coupled",
    "gru_reset",
    "clip",
    "cell_clip",
];

/// The cell of a case's layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaseCell {
    /// A plain recurrent cell whose activation is tanh unless the case names another.
    RnnTanh,
    /// A plain recurrent cell whose activation is max(0, v) unless the case names another.
    RnnRelu,
    /// Long short-term memory, gates in the order i, f, g, o.
    Lstm,
    /// Gated recurrent unit, gates in the order r, z, n.
    Gru,
}

impl CaseCell {
    /// The number of gates, G: how many blocks of H rows a weight has.
    pub fn gates(self) -> usize {
        match self {
            Self::RnnTanh | Self::RnnRelu => 1,
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }

    /// How many activations a case names if it names any.
    fn activations(self) -> usize {
        match self {
            Self::RnnTanh | Self::RnnRelu => 1,
            Self::Lstm => 3,
            Self::Gru => 2,
        }
    }
}

/// A reference case; [`load`] has checked that all of it fits together.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The file's name without its extension.
    pub name: String,
    /// The cell.
    pub cell: CaseCell,
    /// T, the number of steps.
    pub steps: usize,
    /// N, the number of sequences.
    pub batch: usize,
    /// I, the number of inputs, at least 1.
    pub input_size: usize,
    /// H, the number of hidden units, at least 1.
    pub hidden_size: usize,
    /// L, the number of layers, at least 1.
    pub num_layers: usize,
    /// The size that an LSTM's output is projected to, 0 for none.
    pub proj_size: usize,
    /// Whether there is a reverse direction.
    pub bidirectional: bool,
    /// Whether there are biases.
    pub bias: bool,
    /// Whether an LSTM's gates see its cell state.
    pub peephole: bool,
    /// Whether an LSTM's forget gate is one minus its input gate.
    pub coupled: bool,
    /// Whether a GRU's reset gate comes after the recurrent product; of no meaning otherwise.
    pub reset_after: bool,
    /// The bound on every gate before its activation.
    pub clip: Option<f64>,
    /// The bound on an LSTM's cell state after its update.
    pub cell_clip: Option<f64>,
    /// The activations in place of the cell's own (LSTM: gate, cell, hidden; GRU: gate, hidden;
    /// RNN: hidden), or none.
    pub activations: Vec<String>,
    /// Every array of the file.
    pub tensors: BTreeMap<String, Array>,
}

impl Case {
    /// D, the number of directions.
    pub fn directions(&self) -> usize {
        if self.bidirectional { 2 } else { 1 }
    }

    /// P, the outputs per direction: `proj_size` or else `hidden_size`.
    pub fn output_size(&self) -> usize {
        if self.proj_size > 0 {
            self.proj_size
        } else {
            self.hidden_size
        }
    }

    /// The array of this name.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if the case has none.
    pub fn tensor(&self, name: &str) -> Result<&Array> {
        self.tensors.get(name).ok_or_else(|| {
            let expected = format!("a tensor of the case {}", self.name);
            Error::value("Case::tensor", "name", expected, format!("'{name}'"))
        })
    }

    /// The elements of an input, a weight or a loss gradient, in row-major order.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if the case has no `f32` array of this name.
    pub fn input(&self, name: &str) -> Result<&[f32]> {
        self.tensor(name)?.as_f32().ok_or_else(|| {
            let expected = format!("an F32 tensor of the case {}", self.name);
            Error::value("Case::input", "name", expected, format!("'{name}'"))
        })
    }

    /// The valid steps of each sequence, `[N]`, each from 0 to T, if the case has them.
    pub fn lengths(&self) -> Option<&[i64]> {
        self.tensors.get("lengths")?.as_i64()
    }

    /// Which states are zeroed before which step, `[T,N]`, 1 = zeroed, if the case has any.
    pub fn resets(&self) -> Option<&[u8]> {
        self.tensors.get("reset")?.as_u8()
    }

    /// The weights' names and shapes in PyTorch's order: by layer, then by direction, then
    /// `weight_ih` `[G*H, I or D*P]`, `weight_hh` `[G*H,P]`, `bias_ih` and `bias_hh` `[G*H]`,
    /// `weight_hr` `[P,H]`; last the peepholes `weight_p` `[3,H]` of i, f and o, which PyTorch
    /// has not.
    pub fn weight_names(&self) -> Vec<(String, Vec<usize>)> {
        self.weights().collect()
    }

    /// What must come out, by name: the arrays called `out.*` and `grad.*`, all `f64`.
    pub fn expected(&self) -> impl Iterator<Item = (&str, &Array)> {
        self.tensors
            .iter()
            .map(|(name, array)| (name.as_str(), array))
            .filter(|(name, _)| name.starts_with("out.") || name.starts_with("grad."))
    }

    // Lazy, since the number of layers is not to be believed before the tensors are seen.
    fn weights(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let directions = self.directions();
        (0..self.num_layers).flat_map(move |layer| {
            (0..directions).flat_map(move |direction| self.weights_of(layer, direction))
        })
    }

    fn weights_of(&self, layer: usize, direction: usize) -> Vec<(String, Vec<usize>)> {
        let (hidden, output) = (self.hidden_size, self.output_size());
        let rows = self.cell.gates() * hidden;
        let input = if layer == 0 {
            self.input_size
        } else {
            self.directions() * output
        };
        let mut weights = vec![
            ("weight_ih", vec![rows, input]),
            ("weight_hh", vec![rows, output]),
        ];
        if self.bias {
            weights.push(("bias_ih", vec![rows]));
            weights.push(("bias_hh", vec![rows]));
        }
        if self.proj_size > 0 {
            weights.push(("weight_hr", vec![output, hidden]));
        }
        if self.peephole {
            weights.push(("weight_p", vec![3, hidden]));
        }
        let reverse = if direction == 0 { "" } else { "_reverse" };
        weights
            .into_iter()
            .map(|(name, shape)| (format!("{name}_l{layer}{reverse}"), shape))
            .collect()
    }

    /// Every tensor that the case must have: name, shape and element type.
    fn required(&self) -> impl Iterator<Item = (String, Vec<usize>, &'static str)> {
        let (steps, batch) = (self.steps, self.batch);
        let states = self.num_layers * self.directions();
        let y = vec![steps, batch, self.directions() * self.output_size()];
        let h = vec![states, batch, self.output_size()];
        let c = vec![states, batch, self.hidden_size];
        let lstm = self.cell == CaseCell::Lstm;
        let of_lstm = move |name: &str| lstm || !matches!(name, "c0" | "dcn" | "out.cn");

        let states = [("h0", h.clone()), ("c0", c.clone())];
        let x = ("x", vec![steps, batch, self.input_size]);
        let inputs = iter::once(x)
            .chain(states)
            .filter(move |(name, _)| of_lstm(name))
            .map(|(name, shape)| (name.to_owned(), shape))
            .chain(self.weights());
        let losses = [("dy", y.clone()), ("dhn", h.clone()), ("dcn", c.clone())];
        let outputs = [("out.y", y), ("out.hn", h), ("out.cn", c)];
        let with_dtype = move |dtype: &'static str| {
            move |(name, shape): (&str, Vec<usize>)| {
                of_lstm(name).then(|| (name.to_owned(), shape, dtype))
            }
        };
        inputs
            .flat_map(|(name, shape)| {
                let gradient = (format!("grad.{name}"), shape.clone(), "F64");
                [(name, shape, "F32"), gradient]
            })
            .chain(losses.into_iter().filter_map(with_dtype("F32")))
            .chain(outputs.into_iter().filter_map(with_dtype("F64")))
    }

    fn check_tensors(&self) -> Result<(), String> {
        let mut known = BTreeSet::new();
        for (name, shape, dtype) in self.required() {
            let array = self
                .tensors
                .get(&name)
                .ok_or_else(|| format!("tensor {name:?} is missing"))?;
            check_array(&name, array, &shape, dtype)?;
            known.insert(name);
        }
        for (name, array) in &self.tensors {
            match name.as_str() {
                "lengths" => check_array(name, array, &[self.batch], "I64")?,
                "reset" => check_array(name, array, &[self.steps, self.batch], "U8")?,
                _ if known.contains(name) => {}
                _ => return Err(format!("tensor {name:?} does not belong to this layer")),
            }
        }
        let valid = |&length: &i64| usize::try_from(length).is_ok_and(|n| n <= self.steps);
        if let Some(bad) = find_invalid(self.lengths(), valid) {
            let steps = self.steps;
            return Err(format!(
                "tensor \"lengths\": values must be 0 to {steps}, got {bad}"
            ));
        }
        if let Some(bad) = find_invalid(self.resets(), |&mark: &u8| mark <= 1) {
            return Err(format!(
                "tensor \"reset\": values must be 0 or 1, got {bad}"
            ));
        }
        Ok(())
    }
}

fn find_invalid<T: Copy>(values: Option<&[T]>, valid: impl Fn(&T) -> bool) -> Option<T> {
    values?.iter().copied().find(|value| !valid(value))
}

fn check_array(name: &str, array: &Array, shape: &[usize], dtype: &str) -> Result<(), String> {
    if array.data.dtype() != dtype {
        let got = array.data.dtype();
        return Err(format!("tensor {name:?}: dtype must be {dtype}, got {got}"));
    }
    if array.shape != shape {
        let got = &array.shape;
        return Err(format!(
            "tensor {name:?}: shape must be {shape:?}, got {got:?}"
        ));
    }
    Ok(())
}

/// Reads the case at `path` and checks it against its own description.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be read; [`Error::Format`], naming the field or tensor, if a
/// metadata field is missing, unknown or out of range, or a tensor is missing, surplus, or of
/// another shape or element type than the layer asks for.
pub fn load(path: &Path) -> Result<Case> {
    let archive = safetensors::load(path)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    read(&name, archive).map_err(|reason| Error::format(path, reason))
}

/// Expands `inputs` to files: a file stands for itself, a folder for the `.safetensors` files
/// in it, sorted by name. The order of `inputs` is kept.
///
/// # Errors
///
/// [`Error::Value`] if `inputs` is empty, [`Error::Io`] if a path is missing or unreadable,
/// [`Error::Format`] if a folder has no such file.
pub fn paths(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if inputs.is_empty() {
        let expected = "at least one file or folder";
        return Err(Error::value("case::paths", "inputs", expected, "none"));
    }
    let mut files = Vec::new();
    for input in inputs {
        let there = fs::metadata(input).map_err(|source| Error::io(input, source))?;
        if there.is_dir() {
            files.append(&mut files_in(input)?);
        } else {
            files.push(input.clone());
        }
    }
    Ok(files)
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| Error::io(folder, source))? {
        let path = entry.map_err(|source| Error::io(folder, source))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") && !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::format(folder, "no .safetensors file in this folder"));
    }
    files.sort();
    Ok(files)
}

fn read(name: &str, archive: Archive) -> Result<Case, String> {
    let Archive { tensors, metadata } = archive;
    let fields = Fields(&metadata);
    fields.one_of("format", &[(FORMAT, ())])?;
    let known = |key: &str| FIELDS.contains(&key) || key == "activations";
    if let Some(key) = metadata.keys().find(|key| !known(key)) {
        // An option that this reader does not know would change the results.
        return Err(format!("metadata {key:?} is not a field of {FORMAT}"));
    }
    let cell = fields.one_of(
        "cell",
        &[
            ("rnn_tanh", CaseCell::RnnTanh),
            ("rnn_relu", CaseCell::RnnRelu),
            ("lstm", CaseCell::Lstm),
            ("gru", CaseCell::Gru),
        ],
    )?;
    let &[steps, batch, _] = tensors
        .get("x")
        .ok_or("tensor \"x\" is missing")?
        .shape
        .as_slice()
    else {
        return Err("tensor \"x\": shape must be [T, N, I]".to_owned());
    };
    let case = Case {
        name: name.to_owned(),
        cell,
        steps,
        batch,
        input_size: fields.size("input_size", 1)?,
        hidden_size: fields.size("hidden_size", 1)?,
        num_layers: fields.size("num_layers", 1)?,
        proj_size: fields.size("proj_size", 0)?,
        bidirectional: fields.flag("bidirectional")?,
        bias: fields.flag("bias")?,
        peephole: fields.flag("peephole")?,
        coupled: fields.flag("coupled")?,
        reset_after: fields.one_of("gru_reset", &[("after", true), ("before", false)])?,
        clip: fields.bound("clip")?,
        cell_clip: fields.bound("cell_clip")?,
        activations: fields.activations(cell.activations())?,
        tensors,
    };
    let of_lstm = [
        ("proj_size", case.proj_size > 0),
        ("peephole", case.peephole),
        ("coupled", case.coupled),
        ("cell_clip", case.cell_clip.is_some()),
    ];
    match of_lstm.into_iter().find(|&(_, used)| used) {
        Some((key, _)) if cell != CaseCell::Lstm => {
            return Err(format!("metadata {key:?} is for lstm only"));
        }
        _ => {}
    }
    case.check_tensors()?;
    Ok(case)
}

/// The metadata of a case.
struct Fields<'a>(&'a BTreeMap<String, String>);

impl Fields<'_> {
    fn get(&self, key: &str) -> Result<&str, String> {
        let value = self.0.get(key);
        value.map_or_else(
            || Err(format!("metadata {key:?} is missing")),
            |value| Ok(value.as_str()),
        )
    }

    fn one_of<T: Copy>(&self, key: &str, allowed: &[(&str, T)]) -> Result<T, String> {
        let got = self.get(key)?;
        let found = allowed.iter().find(|(text, _)| *text == got);
        found.map(|&(_, value)| value).ok_or_else(|| {
            let texts: Vec<_> = allowed.iter().map(|(text, _)| *text).collect();
            invalid(key, &texts.join(" or "), got)
        })
    }

    fn flag(&self, key: &str) -> Result<bool, String> {
        self.one_of(key, &[("true", true), ("false", false)])
    }

    fn size(&self, key: &str, least: usize) -> Result<usize, String> {
        let got = self.get(key)?;
        let size = got.parse().ok();
        size.filter(|size| (least..=MAX_SIZE).contains(size))
            .ok_or_else(|| invalid(key, &format!("a number from {least} to {MAX_SIZE}"), got))
    }

    fn bound(&self, key: &str) -> Result<Option<f64>, String> {
        let got = self.get(key)?;
        if got.is_empty() {
            return Ok(None);
        }
        let bound = got.parse::<f64>().ok();
        let bound = bound.filter(|bound| bound.is_finite() && *bound > 0.0);
        bound.map_or_else(
            || Err(invalid(key, "empty or a positive number", got)),
            |bound| Ok(Some(bound)),
        )
    }

    fn activations(&self, count: usize) -> Result<Vec<String>, String> {
        let got = self.get("activations")?;
        if got.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<_> = got.split(',').map(str::to_owned).collect();
        if names.len() != count || !names.iter().all(|n| ACTIVATIONS.contains(&n.as_str())) {
            let known = ACTIVATIONS.join(", ");
            let expected = format!("empty or {count} of {known}");
            return Err(invalid("activations", &expected, got));
        }
        Ok(names)
    }
}

fn invalid(key: &str, expected: &str, got: &str) -> String {
    format!("metadata {key:?} must be {expected}, got {got:?}")
}

#[cfg(test)]
mod tests {
    use super::super::safetensors::Data;
    use super::*;

    fn data() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
    }

    fn archive(name: &str) -> Archive {
        safetensors::load(&data().join(name).with_extension("safetensors")).unwrap()
    }

    /// What reading says of a case after a change, through a file so that its path is tested.
    fn refusal(name: &str, change: impl FnOnce(&mut Archive)) -> String {
        let mut changed = archive(name);
        change(&mut changed);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("changed.safetensors");
        safetensors::save(&path, &changed).unwrap();
        match load(&path).unwrap_err() {
            Error::Format {
                path: named,
                reason,
            } => {
                assert_eq!(named, path);
                assert!(!reason.contains('\n'), "{reason}");
                reason
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_case_of_the_set_loads() {
        let files = paths(&[data()]).unwrap();
        assert_eq!(files.len(), 49);
        assert!(files.is_sorted());
        for file in files {
            let case = load(&file).unwrap();
            assert_eq!(case.name, file.file_stem().unwrap().to_str().unwrap());
            let inputs = case.tensors.len() - case.expected().count();
            assert!(inputs > 5 && case.expected().count() > 5, "{}", case.name);
        }
    }

    #[test]
    fn options_are_read() {
        let case = read("a", archive("lstm_peephole_proj_clip")).unwrap();
        assert_eq!(case.cell, CaseCell::Lstm);
        let sizes = (case.input_size, case.hidden_size, case.num_layers);
        assert_eq!((case.steps, case.batch, sizes), (5, 3, (4, 6, 1)));
        assert_eq!((case.proj_size, case.output_size()), (4, 4));
        assert!(case.peephole && case.bias && !case.bidirectional && !case.coupled);
        assert_eq!((case.clip, case.cell_clip), (Some(0.8), None));
        assert!(case.activations.is_empty());
        assert_eq!((case.lengths(), case.resets()), (None, None));

        let case = read("a", archive("gru_before_nobias")).unwrap();
        assert!(case.cell == CaseCell::Gru && !case.reset_after && !case.bias);
        assert!(read("a", archive("gru_basic")).unwrap().reset_after);
        assert!(read("a", archive("lstm_coupled")).unwrap().coupled);
        let case = read("a", archive("lstm_cell_clip")).unwrap();
        assert_eq!(case.cell_clip, Some(0.4));
        let case = read("a", archive("gru_activations")).unwrap();
        assert_eq!(case.activations, ["hardsigmoid", "softsign"]);
        let case = read("a", archive("rnn_relu_basic")).unwrap();
        assert_eq!(case.cell, CaseCell::RnnRelu);
        let case = read("a", archive("rnn_activation_elu")).unwrap();
        assert_eq!(case.cell, CaseCell::RnnTanh);
        let case = read("a", archive("lstm_lengths_unsorted_bi")).unwrap();
        assert_eq!(case.lengths(), Some(&[2, 7, 1, 4, 7][..]));
        let case = read("a", archive("rnn_resets")).unwrap();
        assert_eq!(case.resets().map(<[u8]>::len), Some(9 * 4));
    }

    #[test]
    fn weights_come_in_pytorchs_order() {
        let case = read("a", archive("lstm_proj_bi_two_layers")).unwrap();
        let weights = case.weight_names();
        let first: Vec<_> = weights.iter().take(6).collect();
        assert_eq!(
            first,
            [
                &("weight_ih_l0".to_owned(), vec![24, 4]),
                &("weight_hh_l0".to_owned(), vec![24, 3]),
                &("bias_ih_l0".to_owned(), vec![24]),
                &("bias_hh_l0".to_owned(), vec![24]),
                &("weight_hr_l0".to_owned(), vec![3, 6]),
                &("weight_ih_l0_reverse".to_owned(), vec![24, 4]),
            ]
        );
        assert_eq!(weights.len(), 20);
        assert_eq!(
            weights[15],
            ("weight_ih_l1_reverse".to_owned(), vec![24, 6])
        );
        let peepholes = read("a", archive("lstm_peephole")).unwrap().weight_names();
        assert_eq!(peepholes[4], ("weight_p_l0".to_owned(), vec![3, 6]));
    }

    #[test]
    fn accessors_name_what_is_not_there() {
        let case = read("a_case", archive("gru_basic")).unwrap();
        assert_eq!(case.tensor("x").unwrap().shape, [5, 3, 4]);
        assert_eq!(case.input("x").unwrap().len(), 60);
        for error in [
            case.tensor("c0").unwrap_err(),
            case.input("out.y").unwrap_err(),
        ] {
            assert!(matches!(error, Error::Value { .. }));
            assert!(error.to_string().contains("a_case"), "{error}");
        }
        let expected: Vec<_> = case.expected().map(|(name, _)| name).collect();
        assert_eq!(expected.len(), 8);
        assert!(expected.contains(&"out.hn") && expected.contains(&"grad.bias_hh_l0"));
        assert!(case.expected().all(|(_, array)| array.as_f64().is_some()));
    }

    #[test]
    fn every_tensor_is_needed() {
        for case in ["lstm_peephole_proj_clip", "gru_bi", "rnn_two_layers_bi"] {
            for name in archive(case).tensors.keys() {
                let reason = refusal(case, |a| drop(a.tensors.remove(name)));
                assert_eq!(reason, format!("tensor {name:?} is missing"));
            }
        }
    }

    #[test]
    fn every_shape_and_element_type_is_checked() {
        for case in ["lstm_proj", "gru_resets_lengths"] {
            for (name, array) in archive(case).tensors {
                let reason = refusal(case, |a| {
                    a.tensors.get_mut(&name).unwrap().shape.push(1);
                });
                assert!(
                    reason.starts_with(&format!("tensor {name:?}: shape")),
                    "{reason}"
                );
                let reason = refusal(case, |a| {
                    let data = Data::U32(vec![0; array.data.len()]);
                    a.tensors.get_mut(&name).unwrap().data = data;
                });
                assert!(
                    reason.starts_with(&format!("tensor {name:?}: dtype")),
                    "{reason}"
                );
            }
        }
    }

    #[test]
    fn surplus_tensors_are_refused() {
        for (case, name) in [
            ("gru_basic", "c0"),
            ("gru_basic", "y"),
            ("lstm_nobias", "bias_ih_l0"),
        ] {
            let reason = refusal(case, |a| {
                let x = a.tensors["x"].clone();
                a.tensors.insert(name.to_owned(), x);
            });
            assert_eq!(
                reason,
                format!("tensor {name:?} does not belong to this layer")
            );
        }
    }

    #[test]
    fn lengths_and_resets_are_checked() {
        for bad in [-1, 8, i64::MAX] {
            let reason = refusal("lstm_lengths", |a| {
                a.tensors.get_mut("lengths").unwrap().data = Data::I64(vec![7, 0, bad, 1]);
            });
            assert!(
                reason.contains("\"lengths\": values must be 0 to 7"),
                "{reason}"
            );
        }
        let reason = refusal("rnn_resets", |a| {
            a.tensors.get_mut("reset").unwrap().data = Data::U8(vec![2; 36]);
        });
        assert!(
            reason.contains("\"reset\": values must be 0 or 1, got 2"),
            "{reason}"
        );
    }

    #[test]
    fn every_metadata_field_is_needed_and_no_other() {
        for key in FIELDS.iter().chain(&["activations"]) {
            let reason = refusal("gru_basic", |a| drop(a.metadata.remove(*key)));
            assert_eq!(reason, format!("metadata {key:?} is missing"));
        }
        let reason = refusal("gru_basic", |a| {
            drop(a.metadata.insert("dropout".into(), "1".into()));
        });
        assert!(reason.contains("\"dropout\" is not a field"), "{reason}");
    }

    #[test]
    fn bad_metadata_are_refused_by_name() {
        for (key, value) in [
            ("format", "rnn-case/2"),
            ("cell", "LSTM"),
            ("input_size", "0"),
            ("hidden_size", "-1"),
            ("hidden_size", "18446744073709551615"),
            ("num_layers", ""),
            ("num_layers", "0"),
            ("proj_size", "x"),
            ("bidirectional", "True"),
            ("bias", "1"),
            ("peephole", ""),
            ("coupled", "no"),
            ("gru_reset", "middle"),
            ("clip", "0"),
            ("clip", "inf"),
            ("cell_clip", "nan"),
            ("cell_clip", "-1"),
            ("activations", "tanh"),
            ("activations", "sigmoid,tanh,swish"),
        ] {
            let reason = refusal("lstm_basic", |a| {
                a.metadata.insert(key.to_owned(), value.to_owned());
            });
            assert!(
                reason.starts_with(&format!("metadata {key:?} must be")),
                "{reason}"
            );
            assert!(reason.ends_with(&format!("got {value:?}")), "{reason}");
        }
    }

    #[test]
    fn what_only_an_lstm_has_is_refused_for_others() {
        for (key, value) in [
            ("proj_size", "3"),
            ("peephole", "true"),
            ("coupled", "true"),
            ("cell_clip", "1.5"),
        ] {
            let reason = refusal("gru_basic", |a| {
                a.metadata.insert(key.to_owned(), value.to_owned());
            });
            assert_eq!(reason, format!("metadata {key:?} is for lstm only"));
        }
    }

    #[test]
    fn a_false_number_of_layers_costs_nothing() {
        let reason = refusal("lstm_basic", |a| {
            a.metadata.insert("num_layers".into(), MAX_SIZE.to_string());
        });
        assert!(reason.contains("\"h0\": shape"), "{reason}");
    }

    #[test]
    fn paths_expands_folders_and_refuses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        fs::create_dir(at("d/folder.safetensors")).unwrap();
        for name in ["z", "d/b.safetensors", "d/a.safetensors", "d/c.txt"] {
            fs::write(at(name), "").unwrap();
        }
        assert_eq!(
            paths(&[at("z"), at("d")]).unwrap(),
            [at("z"), at("d/a.safetensors"), at("d/b.safetensors")]
        );
        assert!(matches!(paths(&[]).unwrap_err(), Error::Value { .. }));
        let error = paths(&[at("z"), at("missing")]).unwrap_err();
        assert!(
            matches!(&error, Error::Io { path, .. } if *path == at("missing")),
            "{error}"
        );
        let error = paths(&[at("empty")]).unwrap_err();
        assert!(
            matches!(&error, Error::Format { path, .. } if *path == at("empty")),
            "{error}"
        );
    }
}
