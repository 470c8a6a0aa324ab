//! `wgrnn bench`: how long the layers of real models take on a device.

mod measure;
mod report;
mod shapes;
mod subject;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use regex::Regex;
use serde_json::json;
use wgrnn::interop::atomic::check_writable;
use wgrnn::plan::Plan;
use wgrnn::{Context, Error, Result};

use measure::Limits;
use report::{Report, Row, Status, Times};
use shapes::{Group, Mode, Shape};

/// Times layers, after comparing their results with the CPU in double precision.
///
/// Exit status 0: all ran and were right; 1: a result was wrong or a shape failed; 2: an error; 3: nothing
/// failed, but something is not supported.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The layers to time; the layers of 27 real models without it
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
    /// For how many seconds each shape is sampled at least
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds)]
    min_time: f64,
    /// After how many seconds no more samples of a shape are taken
    #[arg(long, value_name = "S", default_value_t = 15.0, value_parser = seconds)]
    budget: f64,
    /// Where to write the results, as JSON; the file grows with every shape
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
    let shapes = shapes::load(args.shapes.as_deref())?;
    let selected = select(args, &shapes)?;
    if let Some(path) = &args.json {
        check_writable(path)?;
    }
    let context = context(args)?;
    println!("{}", context.name());
    let settings = json!({
        "min_time_s": args.min_time,
        "budget_s": args.budget,
    });
    let limits = Limits {
        min_time: Duration::from_secs_f64(args.min_time),
        budget: Duration::from_secs_f64(args.budget),
    };
    let mut report = Report::new(args.json.as_deref(), &context, settings);
    for (shape, mode) in selected {
        let row = match time(&context, shape, mode, limits) {
            Ok(times) => Row::Ok(Box::new(times)),
            // What a device cannot hold is not wrong.
            Err(e @ (Error::Limit { .. } | Error::Unsupported { .. })) => {
                Row::Failed(Status::Unsupported, e.to_string())
            }
            Err(e) => Row::Failed(Status::Error, e.to_string()),
        };
        report.add(shape, mode, &row)?;
    }
    let failures = report.failures();
    Ok(match failures {
        [] => ExitCode::SUCCESS,
        _ if failures.contains(&Status::Error) => ExitCode::from(1),
        _ => ExitCode::from(3),
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

fn time(context: &Context, shape: &Shape, mode: Mode, limits: Limits) -> Result<Times> {
    let layer = subject::layer(context, shape)?;
    let inputs = subject::Inputs::draw(shape, mode, shape.steps);
    let start = Instant::now();
    let call = layer.sequence(&shape.call(mode, shape.steps))?;
    inputs.write(&call, mode)?;
    subject::submit(&call, mode)?;
    context.wait()?;
    let cold = start.elapsed().as_secs_f64();
    let verified = subject::verify(&layer, &call, shape, mode)?;
    let samples = measure::sample(limits, || {
        measure::once(|| {
            subject::submit(&call, mode)?;
            context.wait()
        })
    })?;
    let median = samples.median();
    Ok(Times {
        median_ms: median * 1e3,
        min_ms: samples.min() * 1e3,
        cold_ms: cold * 1e3,
        samples: samples.len(),
        gflops: shape.flops(mode, shape.steps) / median / 1e9,
        us_per_step: median * 1e6 / shape.steps as f64,
        verified,
        strategy: strategy(call.program().plan(), mode),
        note: if verified < shape.steps {
            format!("results compared over {verified} of {} steps", shape.steps)
        } else {
            String::new()
        },
    })
}

/// How the plan runs the steps: the kernels that take the most dispatches, with their number.
fn strategy(plan: &Plan, mode: Mode) -> String {
    let sections: &[&str] = match mode {
        Mode::Infer => &["forward"],
        Mode::Train => &["forward", "backward"],
    };
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for section in sections {
        let steps = plan.section(section).unwrap_or_default();
        for step in &plan.steps()[steps] {
            let name = step.kernel.name;
            match counts.iter_mut().find(|(n, _)| *n == name) {
                Some((_, count)) => *count += 1,
                None => counts.push((name, 1)),
            }
        }
    }
    let recurrent = |name: &str| {
        !["gemm", "transpose", "copy", "state", "reduce"]
            .iter()
            .any(|stem| name.split('.').next() == Some(stem))
    };
    let kept = counts.iter().filter(|(name, _)| recurrent(name));
    let parts: Vec<_> = kept.map(|(name, n)| format!("{n} x {name}")).collect();
    parts.join(", ")
}
