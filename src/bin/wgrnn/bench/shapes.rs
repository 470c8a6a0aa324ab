//! The layers to time, from a TOML file; `benches/shapes.toml` says what its fields mean.

use std::collections::HashSet;
use std::path::Path;

use clap::ValueEnum;
use serde::Deserialize;
use wgrnn::cell::{self, Cell};
use wgrnn::interop::regular::read_text;
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::{Call, Error, Precision, Result, Size};

/// What is timed without `--shapes`.
const BUNDLED: &str = include_str!("../../../../benches/shapes.toml");

/// The longest file of shapes that is read.
const MOST_BYTES: u64 = 16 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    shape: Vec<Shape>,
}

/// One layer and the size of its calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    pub(super) name: String,
    #[expect(dead_code, reason = "for those who read the file")]
    source: String,
    cell: CellName,
    input: usize,
    hidden: usize,
    layers: usize,
    bidirectional: bool,
    proj: usize,
    pub(super) batch: usize,
    pub(super) steps: usize,
    pub(super) mode: Vec<Mode>,
    pub(super) group: Group,
    /// What `--precision` says.
    #[serde(skip)]
    pub(super) precision: Precision,
    /// And `--activations`.
    #[serde(skip)]
    pub(super) activations: Precision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CellName {
    Lstm,
    Gru,
    RnnTanh,
    RnnRelu,
}

/// What is done with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// The forward pass
    Infer,
    /// The forward and the backward pass
    Train,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Train => "train",
        }
    }
}

/// What a shape is an example of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Group {
    /// One step of one sequence
    Stream,
    /// Up to 128 hidden units
    Small,
    /// Up to 512
    Medium,
    /// More
    Large,
    /// 512 steps or more
    Long,
}

/// Reads a file of shapes, or the bundled one.
///
/// # Errors
/// [`Error::Io`] or [`Error::Format`], which names the line and what is wrong with it.
pub(super) fn load(path: Option<&Path>) -> Result<Vec<Shape>> {
    let (path, text) = match path {
        None => (Path::new("benches/shapes.toml"), BUNDLED.to_owned()),
        Some(path) => (path, read_text(path, MOST_BYTES)?),
    };
    parse(&text).map_err(|reason| Error::Format {
        path: path.to_owned(),
        reason,
    })
}

pub(super) fn parse(text: &str) -> Result<Vec<Shape>, String> {
    let file: File = toml::from_str(text).map_err(|e| {
        let before = &text[..e.span().map_or(0, |span| span.start)];
        let line = 1 + before.matches('\n').count();
        format!("line {line}: {}", e.message())
    })?;
    let mut names = HashSet::new();
    for shape in &file.shape {
        let problem = shape.problem().or_else(|| {
            let new = names.insert(&shape.name);
            (!new).then(|| "the name comes twice".to_owned())
        });
        if let Some(problem) = problem {
            return Err(format!("shape '{}': {problem}", shape.name));
        }
    }
    if file.shape.is_empty() {
        return Err("no [[shape]] in it".to_owned());
    }
    Ok(file.shape)
}

impl Shape {
    /// What is wrong with it.
    fn problem(&self) -> Option<String> {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || !self.name.chars().all(letter) {
            return Some("a name is lower-case letters, digits and hyphens".to_owned());
        }
        let sizes = [
            ("input", self.input),
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("batch", self.batch),
            ("steps", self.steps),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Some(format!("{name} must be at least 1"));
        }
        if self.proj > 0 && self.cell != CellName::Lstm {
            return Some("only an lstm has a projection".to_owned());
        }
        if self.proj > self.hidden {
            return Some("proj must not be above hidden".to_owned());
        }
        let twice = (1..self.mode.len()).any(|i| self.mode[..i].contains(&self.mode[i]));
        if self.mode.is_empty() || twice {
            return Some("mode must list infer, train or both".to_owned());
        }
        None
    }

    fn cell(&self) -> &'static Cell {
        match (self.cell, self.proj > 0) {
            (CellName::Lstm, false) => &cell::LSTM,
            (CellName::Lstm, true) => &cell::LSTM_PROJECTED,
            (CellName::Gru, _) => &cell::GRU,
            (CellName::RnnTanh, _) => &cell::RNN_TANH,
            (CellName::RnnRelu, _) => &cell::RNN_RELU,
        }
    }

    /// The layer.
    pub(super) fn spec(&self) -> LayerSpec {
        LayerSpec {
            proj_size: self.proj,
            num_layers: self.layers,
            bidirectional: self.bidirectional,
            precision: self.precision,
            ..LayerSpec::new(self.cell(), self.input, self.hidden)
        }
    }

    /// T and N.
    pub(super) fn size(&self) -> Size {
        Size {
            steps: self.steps,
            batch: self.batch,
        }
    }

    /// A call of it over so many steps.
    pub(super) fn call(&self, mode: Mode, steps: usize) -> Call {
        let size = Size {
            steps,
            batch: self.batch,
        };
        let call = match mode {
            Mode::Infer => Call::inference(size),
            Mode::Train => Call::training(size),
        };
        call.activations(self.activations)
    }

    /// The floating-point operations by which rates are stated, the same for every library: those of
    /// the products with W_ih and W_hh, 2·T·N·G·H·(I + P) for each level, three times as many in
    /// training. Element-wise work and the projection are not counted.
    pub(super) fn flops(&self, mode: Mode, steps: usize) -> f64 {
        let spec = self.spec();
        let rows = 2.0 * steps as f64 * self.batch as f64 * spec.width() as f64;
        let levels = spec.levels().map(|level| {
            let terms = level.input_size as f64 + spec.output_size() as f64;
            rows * terms
        });
        let forward: f64 = levels.sum();
        let passes = match mode {
            Mode::Infer => 1.0,
            Mode::Train => 3.0,
        };
        passes * forward
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[shape]]\nname = \"a-1\"\nsource = \"here\"\ncell = \"lstm\"\ninput = 3\n\
        hidden = 5\nlayers = 2\nbidirectional = true\nproj = 4\nbatch = 7\nsteps = 11\n\
        mode = [\"infer\"]\ngroup = \"small\"\n";

    #[test]
    fn the_bundled_shapes() {
        let shapes = load(None).unwrap();
        assert_eq!(shapes.len(), 27);
        assert_eq!(shapes.iter().map(|s| s.mode.len()).sum::<usize>(), 35);
        for shape in &shapes {
            let group = match shape {
                s if s.batch * s.steps == 1 => Group::Stream,
                s if s.steps >= 512 => Group::Long,
                s if s.hidden <= 128 => Group::Small,
                s if s.hidden <= 512 => Group::Medium,
                _ => Group::Large,
            };
            assert_eq!(shape.group, group, "{}", shape.name);
            shape.spec().check().unwrap();
        }
    }

    #[test]
    fn a_shape_is_a_layer() {
        let shape = &parse(ONE).unwrap()[0];
        let spec = shape.spec();
        assert_eq!(spec.cell.name, "lstm_projected");
        assert_eq!((spec.features(), spec.width()), (8, 20));
        // Both directions of layer 0 read 3, those of layer 1 read 2 · 4; h has 4.
        let sums = 2 * (3 + 4) + 2 * (8 + 4);
        let flops = (2 * 11 * 7 * 20 * sums) as f64;
        assert_eq!(shape.flops(Mode::Infer, 11), flops);
        assert_eq!(shape.flops(Mode::Train, 11), 3.0 * flops);
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        let refused = |from: &str, to: &str, part: &str| {
            assert!(ONE.contains(from), "{from}");
            let reason = parse(&ONE.replace(from, to)).unwrap_err();
            assert!(reason.contains(part), "{reason}");
            assert!(!reason.contains('\n'), "{reason}");
        };
        refused("input = 3", "inputs = 3", "line 5: unknown field `inputs`");
        refused("hidden = 5\n", "", "missing field `hidden`");
        refused("hidden = 5", "hidden = -5", "line 6: ");
        refused("hidden = 5", "hidden = 0", "shape 'a-1': hidden must be");
        refused("\"lstm\"", "\"lstn\"", "line 4: unknown variant `lstn`");
        refused("\"lstm\"", "\"gru\"", "only an lstm has a projection");
        refused("proj = 4", "proj = 6", "not be above hidden");
        refused("[\"infer\"]", "[]", "mode must list");
        refused("[\"infer\"]", "[\"infer\", \"infer\"]", "mode must list");
        refused("\"a-1\"", "\"A 1\"", "a name is");
        refused("true", "yes", "line 8: ");
        assert!(parse(&ONE.repeat(2)).unwrap_err().contains("comes twice"));
        assert!(parse("").unwrap_err().contains("no [[shape]]"));
    }
}
