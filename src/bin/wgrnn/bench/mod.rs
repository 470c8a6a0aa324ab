//! `wgrnn bench`: how long the layers of real models take on a device.

mod measure;
mod peaks;
mod profile;
mod report;
mod roofline;
mod shapes;
mod subject;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use regex::Regex;
use serde_json::{Value, json};
use wgrnn::interop::atomic::{check_replaceable, check_writable};
use wgrnn::tune::Tuning;
use wgrnn::{Context, Error, Precision, Result};

use crate::certify::{Certified, summary};
use crate::choices::{Choices, Rules};
use crate::files::{self, Named};
use crate::floor::{Bandwidth, Peaks};
use measure::Limits;
use report::{Report, Row, Status, rounded};
use roofline::Series;
use shapes::{Group, Mode, Shape};
use trial::Setup;

/// Times layers, after comparing their results with the CPU in double precision.
///
/// Exit status 0: all ran and were right; 1: a result was wrong or a shape failed; 2: an error; 3: nothing
/// failed, but something is not supported.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true, allow_negative_numbers = true)]
pub(crate) struct Args {
    /// The layers to time; 27 of real models and of DeepBench without it
    #[arg(long, value_name = "FILE")]
    shapes: Option<PathBuf>,
    /// Only shapes whose name matches
    #[arg(long, value_name = "REGEX", value_parser = Regex::new)]
    only: Option<Regex>,
    /// Only shapes of this group
    #[arg(long, value_enum)]
    group: Option<Group>,
    /// Only this; without it all that a shape lists
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Where to run; a hardware GPU without it, or else the CPU
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// The first adapter whose name or backend contains this, software adapters included
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// What the kernels read of the weights
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)))]
    precision: String,
    /// How the activations of every step are stored; streams store none
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)))]
    activations: String,
    #[command(flatten)]
    rules: Rules,
    #[command(flatten)]
    choices: Choices,
    /// Measure for each shape what is fastest, and keep that in this file for the next time
    #[arg(long, value_name = "FILE", conflicts_with_all = ["strategy", "step", "levels", "product"])]
    tune: Option<PathBuf>,
    #[command(flatten)]
    certified: Certified,
    /// For how many seconds each shape is sampled at least
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds)]
    min_time: f64,
    /// After how many seconds no more samples of a shape are taken
    #[arg(long, value_name = "S", default_value_t = 15.0, value_parser = seconds)]
    budget: f64,
    /// Where to write the results, as JSON; the file grows with every shape
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also show the time of each kernel, with a compute pass for every dispatch, which takes longer
    #[arg(long)]
    profile: bool,
    /// Where to draw each kernel under the roofs of the device, as SVG
    #[arg(long, value_name = "FILE")]
    roofline: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The CPU backend
    Cpu,
    /// A GPU: hardware, unless --adapter names another
    Gpu,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..=86_400.0).contains(&value) => Ok(value),
        _ => Err("expected seconds from 0 to 86400".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut shapes = shapes::load(args.shapes.as_deref())?;
    for shape in &mut shapes {
        shape.precision = crate::precision(&args.precision);
        shape.activations = crate::precision(&args.activations);
    }
    let selected = select(args, &shapes)?;
    let outputs = [
        ("--json", &args.json),
        ("--roofline", &args.roofline),
        ("--tune", &args.tune),
        ("--certificate", args.certified.path()),
    ];
    let outputs = outputs.into_iter().filter_map(Named::given);
    let outputs: Vec<_> = outputs.collect();
    let inputs: Vec<_> = Named::given(("--shapes", &args.shapes))
        .into_iter()
        .collect();
    files::keep("bench", &inputs, &outputs)?;
    for output in &outputs {
        match output.option {
            // What is read back.
            "--tune" | "--certificate" => check_replaceable(output.path)?,
            _ => check_writable(output.path)?,
        }
    }
    let mut tuning = args.tune.as_ref().map(Tuning::load).transpose()?;
    let mut known = args.certified.open()?;
    let device = context(args)?.forcing(args.choices.force());
    let context = args.rules.of(&device)?;
    println!("{}", context.name());
    let limits = Limits {
        min_time: Duration::from_secs_f64(args.min_time),
        budget: Duration::from_secs_f64(args.budget),
    };
    let setup = Setup {
        peaks: peaks::measure(&device, limits)?,
        profiled: args.profile || args.roofline.is_some(),
        context,
        limits,
    };
    println!("{}", peaks_line(&setup.peaks));
    let (name, peaks) = (setup.context.name(), &setup.peaks);
    if setup.profiled && setup.context.is_gpu() {
        println!("profiles: a compute pass for each dispatch, which takes longer than in the call");
    }
    let settings = settings(args, &setup.context, peaks);
    let json = args.json.as_deref();
    let mut report = Report::new(json, &name, &args.precision, settings);
    let mut series = Vec::new();
    for (shape, mode) in selected {
        let plans = |context: &Context| Ok(vec![subject::plan(context, shape, mode)?]);
        let trial = chosen(&setup, tuning.as_mut(), shape, mode)
            .and_then(|context| args.certified.context(&mut known, &context, plans))
            .and_then(|context| trial::run(&setup, &context, shape, mode));
        let row = match trial {
            Ok(trial) => Row::Ok(Box::new(trial)),
            // What a device cannot hold is not wrong.
            Err(e @ (Error::Limit { .. } | Error::Unsupported { .. })) => {
                Row::Failed(Status::Unsupported, e.to_string())
            }
            Err(e) => Row::Failed(Status::Error, e.to_string()),
        };
        report.add(shape, mode, &row)?;
        if let (Some(path), Some(tuning)) = (&args.tune, &tuning) {
            tuning.save(path)?;
        }
        if let Row::Ok(trial) = row {
            series.push(Series {
                name: format!("{} {}", shape.name, mode.name()),
                kernels: trial.kernels,
            });
        }
    }
    if args.certified.wanted() {
        println!("{}", summary(&known, &setup.context));
    }
    if let Some(path) = &args.roofline {
        roofline::draw(path, &name, peaks, &series)?;
    }
    report.end()
}

/// The device with what was chosen for all shapes, or with what is fastest for this one.
fn chosen(
    setup: &Setup,
    tuning: Option<&mut Tuning>,
    shape: &Shape,
    mode: Mode,
) -> Result<Context> {
    match tuning {
        None => Ok(setup.context.clone()),
        Some(tuning) => {
            let call = shape.call(mode, shape.steps);
            tuning.context(&setup.context, &shape.spec(), &call)
        }
    }
}

fn peaks_line(peaks: &Peaks) -> String {
    format!(
        "measured here: {:.1} GFLOP/s at most, {:.1} GB/s from memory, {:.1} GB/s from caches, {:.2} us a dispatch",
        peaks.flops / 1e9,
        peaks.memory() / 1e9,
        peaks.bandwidth(0.0) / 1e9,
        peaks.dispatch * 1e6,
    )
}

/// What the results were measured with and on.
fn settings(args: &Args, context: &Context, peaks: &Peaks) -> Value {
    let adapter = context.wgpu().map(|(device, _)| {
        let info = device.adapter_info();
        json!({
            "name": info.name,
            "backend": info.backend.to_string(),
            "type": format!("{:?}", info.device_type),
            "driver": format!("{} {}", info.driver, info.driver_info).trim(),
        })
    });
    let of =
        |b: &Bandwidth| json!({ "mb": rounded(b.bytes / 1e6), "gb_per_s": rounded(b.rate / 1e9) });
    let peaks = json!({
        "gflops": rounded(peaks.flops / 1e9),
        "bandwidth": peaks.bandwidths.iter().map(of).collect::<Vec<_>>(),
        "dispatch_us": rounded(peaks.dispatch * 1e6),
    });
    json!({
        "activations": args.activations,
        "min_time_s": args.min_time,
        "budget_s": args.budget,
        "adapter": adapter,
        "cpus": std::thread::available_parallelism().ok(),
        "data": "x and the weights are on the device before the call; results stay there",
        "measured_peak": peaks,
    })
}

fn select<'a>(args: &Args, shapes: &'a [Shape]) -> Result<Vec<(&'a Shape, Mode)>> {
    let wanted = |shape: &&Shape| {
        let named = args.only.as_ref().is_none_or(|r| r.is_match(&shape.name));
        named && args.group.is_none_or(|group| group == shape.group)
    };
    let modes = |shape: &'a Shape| {
        let modes = shape.mode.iter().map(move |&mode| (shape, mode));
        modes.filter(|(_, mode)| args.mode.is_none_or(|wanted| wanted == *mode))
    };
    let selected: Vec<_> = shapes.iter().filter(wanted).flat_map(modes).collect();
    if selected.is_empty() {
        return Err(Error::Value {
            op: "bench",
            arg: "--only, --group and --mode".to_owned(),
            expected: "such that a shape is left".to_owned(),
            got: format!("none of {}", shapes.len()),
        });
    }
    Ok(selected)
}

fn context(args: &Args) -> Result<Context> {
    match (args.backend, &args.adapter) {
        (Some(Backend::Cpu), Some(name)) => Err(Error::Value {
            op: "bench",
            arg: "--adapter".to_owned(),
            expected: "given with a backend that has adapters".to_owned(),
            got: format!("{name} with --backend cpu"),
        }),
        (Some(Backend::Cpu), None) => Ok(Context::cpu()),
        // To an adapter's name they would not be words but devices.
        (_, Some(name)) if matches!(name.as_str(), "cpu" | "auto") => Err(Error::NoAdapter {
            asked: name.clone(),
            available: pollster::block_on(Context::adapters())
                .iter()
                .map(Context::adapter_name)
                .collect(),
        }),
        (_, Some(name)) => Context::open(name),
        (Some(Backend::Gpu), None) => Context::open("gpu"),
        (None, None) => Context::open("auto"),
    }
}
