//! `wgrnn plan`: what a layer's passes dispatch, cost and keep in memory. It needs no device.

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use wgrnn::cell::{self, Cell};
use wgrnn::plan::sequence::{LayerSpec, Mode};
use wgrnn::{Error, Result, Sequence, Size};

/// Prints the plan of a layer: steps, dispatches, barriers, FLOPs, bytes, memory by purpose.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The cell
    #[arg(long, default_value = "lstm", value_parser = PossibleValuesParser::new(cell::ALL.iter().map(|c| c.name)))]
    cell: String,
    /// I, the size of a step's input
    #[arg(long, default_value_t = 128)]
    input: usize,
    /// H, the hidden units
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    /// T, the steps
    #[arg(long, default_value_t = 32)]
    steps: usize,
    /// N, the sequences
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Without biases
    #[arg(long)]
    no_bias: bool,
    /// With the backward pass
    #[arg(long)]
    train: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let cell = Cell::named(&args.cell).ok_or_else(|| Error::Value {
        op: "plan",
        arg: "--cell".to_owned(),
        expected: "the name of a cell".to_owned(),
        got: args.cell.clone(),
    })?;
    let spec = LayerSpec {
        cell,
        input_size: args.input,
        hidden_size: args.hidden,
        bias: !args.no_bias,
    };
    let size = Size {
        steps: args.steps,
        batch: args.batch,
    };
    let mode = if args.train {
        Mode::Training
    } else {
        Mode::Inference
    };
    let text = Sequence::plan(&spec, size, mode)?.to_string();
    println!("{}", text.trim_end());
    Ok(ExitCode::SUCCESS)
}
