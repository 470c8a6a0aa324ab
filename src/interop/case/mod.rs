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
//!
//! `read` reads the description, `tensors` checks the tensors against it.

mod read;
mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::safetensors::Array;
use crate::error::{Error, Result};

pub use read::load;

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

    /// The activations of a layer whose case names none: LSTM gate, cell, hidden; GRU gate,
    /// hidden; RNN hidden.
    pub fn own_activations(self) -> &'static [&'static str] {
        match self {
            Self::RnnTanh => &["tanh"],
            Self::RnnRelu => &["relu"],
            Self::Lstm => &["sigmoid", "tanh", "tanh"],
            Self::Gru => &["sigmoid", "tanh"],
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
    ///
    /// ```text
    /// sigmoid           1 / (1 + exp(-v))             softplus         ln(1 + exp(v))
    /// tanh              tanh(v)                       softsign         v / (1 + |v|)
    /// relu              max(0, v)                     elu              v, below 0: α (exp(v) - 1)
    /// affine            α v + β                       leakyrelu        v, below 0: α v
    /// scaledtanh        α tanh(β v)                   thresholdedrelu  v, up to and with α: 0
    /// hardsigmoid       α v + β, clamped to 0..1
    /// ```
    pub activations: Vec<String>,
    /// α of each activation, `None` for its default: 1, but 0.2 for hardsigmoid and 0.01 for
    /// leakyrelu. Empty if the case gives none; otherwise one entry for each activation that the
    /// layer has, and `None` where an activation has no α.
    pub alpha: Vec<Option<f64>>,
    /// β of each activation as `alpha`; the defaults are 0 for affine, 1 for scaledtanh and 0.5
    /// for hardsigmoid.
    pub beta: Vec<Option<f64>>,
    /// How many of the first steps carry the state and give no gradient, from 0 to T, and 0 with
    /// two directions. The loss gradients `dy` of these steps do not count, and no gradient flows
    /// from a later step into the state that they leave: with any of them the gradients of the
    /// initial state are 0, and so are those of `x` in these steps.
    pub burn_in: usize,
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

#[cfg(test)]
mod tests {
    use super::super::safetensors::{self, Archive};
    use super::read::read;
    use super::*;

    fn data() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
    }

    pub(super) fn archive(name: &str) -> Archive {
        safetensors::load(&data().join(name).with_extension("safetensors")).unwrap()
    }

    /// What reading says of a case after a change, through a file so that its path is tested.
    pub(super) fn refusal(name: &str, change: impl FnOnce(&mut Archive)) -> String {
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
        assert_eq!(files.len(), 74);
        assert!(files.is_sorted());
        for file in files {
            let case = load(&file).unwrap();
            assert_eq!(case.name, file.file_stem().unwrap().to_str().unwrap());
            let inputs = case.tensors.len() - case.expected().count();
            assert!(inputs > 5 && case.expected().count() > 5, "{}", case.name);
        }
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
