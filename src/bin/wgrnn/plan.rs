//! `wgrnn plan`: what a layer's passes dispatch, cost and keep in memory, and what was chosen for
//! them. It needs no device.

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use wgrnn::cell::{self, Cell};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::plan::{DeviceKind, Role, Target};
use wgrnn::{Call, Context, Error, Mode, Result, Sequence, Size};

/// Prints the plan of a layer: steps, dispatches, barriers, FLOPs, bytes, memory by purpose.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The cell
    #[arg(long, default_value = "lstm", value_parser = PossibleValuesParser::new(cell::ALL.iter().map(|c| c.name)))]
    cell: String,
    /// The kind of device that it is for, with the limits that every one has, unless --adapter says
    /// which
    #[arg(long, default_value = "gpu", value_parser = PossibleValuesParser::new(DeviceKind::ALL.map(DeviceKind::name)))]
    device: String,
    /// The device that it is for: 'auto', 'cpu', 'gpu' or part of an adapter's name
    #[arg(long, value_name = "NAME", conflicts_with = "device")]
    adapter: Option<String>,
    /// I, the size of a step's input
    #[arg(long, default_value_t = 128)]
    input: usize,
    /// H, the hidden units
    #[arg(long, default_value_t = 256)]
    hidden: usize,
    /// P, the units that cells with a projection put out; half of H by default
    #[arg(long, value_name = "P")]
    projection: Option<usize>,
    /// L, layers on top of each other
    #[arg(long, default_value_t = 1)]
    layers: usize,
    /// With a second direction that runs from the end
    #[arg(long)]
    bidirectional: bool,
    /// Without biases
    #[arg(long)]
    no_bias: bool,
    /// In training, the probability with which outputs are dropped between layers
    #[arg(long, default_value_t = 0.0)]
    dropout: f32,
    /// T, the steps
    #[arg(long, default_value_t = 32)]
    steps: usize,
    /// N, the sequences
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Packed sequences instead: for each step how many still have it, separated by commas
    #[arg(long, value_name = "SIZES", value_delimiter = ',', conflicts_with_all = ["steps", "batch"])]
    packed: Vec<usize>,
    /// With a length for each sequence
    #[arg(long)]
    lengths: bool,
    /// With steps before which the state is zeroed
    #[arg(long)]
    resets: bool,
    /// Input and output as [N, T, …]
    #[arg(long)]
    batch_first: bool,
    /// With the backward pass
    #[arg(long)]
    train: bool,
    /// Keep only the states before every K-th step and compute the rest again; the memory without
    /// is printed beside
    #[arg(long, value_name = "K")]
    recompute: Option<usize>,
    /// The first steps carry the state and have no gradient
    #[arg(long, default_value_t = 0)]
    burn_in: usize,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let cell = Cell::named(&args.cell).ok_or_else(|| Error::Value {
        op: "plan",
        arg: "--cell".to_owned(),
        expected: "the name of a cell".to_owned(),
        got: args.cell.clone(),
    })?;
    let own = LayerSpec::new(cell, args.input, args.hidden);
    let spec = LayerSpec {
        proj_size: args.projection.unwrap_or(own.proj_size),
        num_layers: args.layers,
        bidirectional: args.bidirectional,
        bias: !args.no_bias,
        dropout: args.dropout,
        ..own
    };
    let call = call(args);
    let target = target(args)?;
    let plan = Sequence::plan(&spec, &call, &target)?;
    println!("{}", plan.to_string().trim_end());
    if let Some(k) = args.recompute {
        let whole = Sequence::plan(
            &spec,
            &Call {
                recompute: None,
                ..call
            },
            &target,
        )?;
        let of = |plan: &wgrnn::plan::Plan| -> u64 {
            [Role::Saved, Role::Scratch]
                .map(|role| plan.bytes(role))
                .iter()
                .sum()
        };
        let (with, without) = (of(&plan), of(&whole));
        println!(
            "\nsaved and scratch: {:.2} MB with recompute {k}, {:.2} MB without ({:.2} of it)",
            with as f64 / 1e6,
            without as f64 / 1e6,
            with as f64 / without as f64
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn target(args: &Args) -> Result<Target> {
    if let Some(name) = &args.adapter {
        return Ok(Context::open(name)?.target());
    }
    let named = |k: &DeviceKind| k.name() == args.device;
    let kind = DeviceKind::ALL.into_iter().find(named);
    Ok(kind.map_or_else(Target::default, Target::portable))
}

fn call(args: &Args) -> Call {
    let mode = if args.train {
        Mode::Training
    } else {
        Mode::Inference
    };
    let size = Size {
        steps: args.steps,
        batch: args.batch,
    };
    let mut call = match (args.packed.is_empty(), mode) {
        (false, mode) => Call::packed(&args.packed, mode),
        (true, Mode::Training) => Call::training(size),
        (true, Mode::Inference) => Call::inference(size),
    };
    if args.batch_first {
        call = call.batch_first();
    }
    call.lengths = args.lengths;
    call.resets = args.resets;
    call.recompute = args.recompute;
    call.burn_in = args.burn_in;
    call
}
