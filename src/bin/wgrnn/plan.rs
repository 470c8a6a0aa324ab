//! `wgrnn plan`: what a layer's passes dispatch, cost and keep in memory, and what was chosen for
//! them. It needs no device.

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use wgrnn::cell::{self, Cell};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::plan::{DeviceKind, Role, Target};
use wgrnn::{Call, Context, Error, Mode, Precision, Result, Sequence, Size};

use crate::choices::Choices;
use crate::floor::{Bandwidth, Peaks, floor};

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
    #[command(flatten)]
    choices: Choices,
    /// What the kernels read of the weights
    #[arg(long, default_value = "f32", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)))]
    precision: String,
    /// How the activations of every step are stored
    #[arg(long, default_value = "f32", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)))]
    activations: String,
    /// What the device does at most, for the floor as a time: GFLOP/s, GB/s and the microseconds of a
    /// dispatch that waits for the one before. `wgrnn bench` measures them.
    #[arg(long, value_name = "GFLOPS,GBS,US", value_delimiter = ',')]
    peaks: Vec<f64>,
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
        precision: crate::precision(&args.precision),
        ..own
    };
    let call = call(args);
    let target = target(args)?;
    let peaks = peaks(args)?;
    let plan = Sequence::plan(&spec, &call, &target)?;
    println!("{}", plan.to_string().trim_end());
    print_floor(args, &spec, call.mode, peaks.as_ref());
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
    let named = |k: &DeviceKind| k.name() == args.device;
    let kind = DeviceKind::ALL.into_iter().find(named);
    let target = match &args.adapter {
        Some(name) => Context::open(name)?.target(),
        None => kind.map_or_else(Target::default, Target::portable),
    };
    Ok(Target {
        force: args.choices.force(),
        // A device that is not here has what it is asked for.
        f16: target.f16 || args.adapter.is_none(),
        ..target
    })
}

fn peaks(args: &Args) -> Result<Option<Peaks>> {
    match args.peaks[..] {
        [] => Ok(None),
        [flops, rate, dispatch] if args.peaks.iter().all(|v| v.is_finite() && *v >= 0.0) => {
            Ok(Some(Peaks {
                flops: 1e9 * flops,
                bandwidths: vec![Bandwidth {
                    bytes: f64::MAX,
                    rate: 1e9 * rate,
                }],
                dispatch: 1e-6 * dispatch,
            }))
        }
        _ => Err(Error::Value {
            op: "plan",
            arg: "--peaks".to_owned(),
            expected: "three numbers from 0 on: GFLOP/s, GB/s, microseconds".to_owned(),
            got: format!("{:?}", args.peaks),
        }),
    }
}

/// The least that any way to run the call has to do, and the time of it on a device with these peaks.
fn print_floor(args: &Args, spec: &LayerSpec, mode: Mode, peaks: Option<&Peaks>) {
    let size = Size {
        steps: args.steps,
        batch: args.batch,
    };
    if !args.packed.is_empty() {
        println!("\nfloor: said for padded calls alone");
        return;
    }
    let stored = crate::precision(&args.activations);
    // One operation, or one byte, per second: then the time is their number.
    let only = |flops, rate| Peaks {
        flops,
        bandwidths: vec![Bandwidth {
            bytes: f64::MAX,
            rate,
        }],
        dispatch: 0.0,
    };
    let flops = floor(spec, size, mode, stored, &only(1.0, f64::INFINITY)).work;
    let bytes = floor(spec, size, mode, stored, &only(f64::INFINITY, 1.0)).work;
    println!(
        "\nfloor: {:.3} GFLOP of products, {:.3} GB with the recurrent weights read in every step",
        flops / 1e9,
        bytes / 1e9
    );
    if let Some(peaks) = peaks {
        let least = floor(spec, size, mode, stored, peaks);
        println!(
            "       {:.1} us with a dispatch for every step, {:.1} us without their latency",
            1e6 * least.stepwise,
            1e6 * least.work
        );
    }
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
    call.activations(crate::precision(&args.activations))
}
