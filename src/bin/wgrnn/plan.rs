//! `wgrnn plan`: what a layer's passes dispatch, cost and keep in memory, and what was chosen for
//! them. It needs no device.

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::plan::{DeviceKind, Role, Target};
use wgrnn::{Call, Context, Error, Mode, Result, Sequence, Size};

use crate::choices::Choices;
use crate::floor::{Bandwidth, Peaks, floor};
use crate::layer::LayerArgs;

/// Prints the plan of a layer: steps, dispatches, barriers, FLOPs, bytes, memory by purpose.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The kind of device that it is for, with the limits that every one has, unless --adapter says
    /// which
    #[arg(long, default_value = "gpu", value_parser = PossibleValuesParser::new(DeviceKind::ALL.map(DeviceKind::name)))]
    device: String,
    /// The device that it is for: 'auto', 'cpu', 'gpu' or part of an adapter's name
    #[arg(long, value_name = "NAME", conflicts_with = "device")]
    adapter: Option<String>,
    #[command(flatten)]
    choices: Choices,
    /// What the device does at most, for the floor as a time: GFLOP/s, GB/s and the microseconds of a
    /// dispatch that waits for the one before. `wgrnn bench` measures them.
    #[arg(long, value_name = "GFLOPS,GBS,US", value_delimiter = ',')]
    peaks: Vec<f64>,
    #[command(flatten)]
    layer: LayerArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (spec, call) = (args.layer.spec()?, args.layer.call());
    let target = target(args)?;
    let peaks = peaks(args)?;
    let plan = Sequence::plan(&spec, &call, &target)?;
    println!("{}", plan.to_string().trim_end());
    print_floor(args, &spec, call.mode, peaks.as_ref());
    if let Some(k) = args.layer.recompute {
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
        steps: args.layer.steps,
        batch: args.layer.batch,
    };
    if !args.layer.packed.is_empty() {
        println!("\nfloor: said for padded calls alone");
        return;
    }
    let stored = crate::precision(&args.layer.activations);
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
