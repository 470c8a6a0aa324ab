//! The options that describe a layer and a call of it.

use clap::builder::PossibleValuesParser;
use wgrnn::cell::{self, Cell};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::{Call, Error, Mode, Precision, Result, Size};

/// A layer and a call.
#[derive(Debug, clap::Args)]
pub(crate) struct LayerArgs {
    /// The cell
    #[arg(long, default_value = "lstm", value_parser = PossibleValuesParser::new(cell::ALL.iter().map(|c| c.name)))]
    pub(crate) cell: String,
    /// What the kernels read of the weights
    #[arg(long, default_value = "f32", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)))]
    pub(crate) precision: String,
    /// How the activations of every step are stored
    #[arg(long, default_value = "f32", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)))]
    pub(crate) activations: String,
    /// I, the size of a step's input
    #[arg(long, default_value_t = 128)]
    pub(crate) input: usize,
    /// H, the hidden units
    #[arg(long, default_value_t = 256)]
    pub(crate) hidden: usize,
    /// P, the units that cells with a projection put out; half of H by default
    #[arg(long, value_name = "P")]
    pub(crate) projection: Option<usize>,
    /// L, layers on top of each other
    #[arg(long, default_value_t = 1)]
    pub(crate) layers: usize,
    /// With a second direction that runs from the end
    #[arg(long)]
    pub(crate) bidirectional: bool,
    /// Without biases
    #[arg(long)]
    pub(crate) no_bias: bool,
    /// In training, the probability with which outputs are dropped between layers
    #[arg(long, default_value_t = 0.0)]
    pub(crate) dropout: f32,
    /// T, the steps
    #[arg(long, default_value_t = 32)]
    pub(crate) steps: usize,
    /// N, the sequences
    #[arg(long, default_value_t = 32)]
    pub(crate) batch: usize,
    /// Packed sequences instead: for each step how many still have it, separated by commas
    #[arg(long, value_name = "SIZES", value_delimiter = ',', conflicts_with_all = ["steps", "batch"])]
    pub(crate) packed: Vec<usize>,
    /// With a length for each sequence
    #[arg(long)]
    pub(crate) lengths: bool,
    /// With steps before which the state is zeroed
    #[arg(long)]
    pub(crate) resets: bool,
    /// Input and output as [N, T, …]
    #[arg(long)]
    pub(crate) batch_first: bool,
    /// With the backward pass
    #[arg(long)]
    pub(crate) train: bool,
    /// Keep only the states before every K-th step and compute the rest again; the memory without
    /// is printed beside
    #[arg(long, value_name = "K")]
    pub(crate) recompute: Option<usize>,
    /// The first steps carry the state and have no gradient
    #[arg(long, default_value_t = 0)]
    pub(crate) burn_in: usize,
}

impl LayerArgs {
    /// The layer.
    pub(crate) fn spec(&self) -> Result<LayerSpec> {
        let cell = Cell::named(&self.cell).ok_or_else(|| Error::Value {
            op: "layer",
            arg: "--cell".to_owned(),
            expected: "the name of a cell".to_owned(),
            got: self.cell.clone(),
        })?;
        let own = LayerSpec::new(cell, self.input, self.hidden);
        Ok(LayerSpec {
            proj_size: self.projection.unwrap_or(own.proj_size),
            num_layers: self.layers,
            bidirectional: self.bidirectional,
            bias: !self.no_bias,
            dropout: self.dropout,
            precision: crate::precision(&self.precision),
            ..own
        })
    }

    /// The call.
    pub(crate) fn call(&self) -> Call {
        let mode = if self.train {
            Mode::Training
        } else {
            Mode::Inference
        };
        let size = Size {
            steps: self.steps,
            batch: self.batch,
        };
        let mut call = match (self.packed.is_empty(), mode) {
            (false, mode) => Call::packed(&self.packed, mode),
            (true, Mode::Training) => Call::training(size),
            (true, Mode::Inference) => Call::inference(size),
        };
        if self.batch_first {
            call = call.batch_first();
        }
        call.lengths = self.lengths;
        call.resets = self.resets;
        call.recompute = self.recompute;
        call.burn_in = self.burn_in;
        call.activations(crate::precision(&self.activations))
    }
}
