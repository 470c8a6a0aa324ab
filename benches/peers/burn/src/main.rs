//! Times one recurrent layer of Burn on its wgpu backend and prints the result as a line of JSON.
//! `../burn.py` runs it for each shape.

mod layers;

use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::{Device, DeviceKind};
use clap::{Parser, ValueEnum};
use serde_json::json;

use layers::Stack;

/// One layer and how to time it.
#[derive(Debug, Parser)]
pub struct Shape {
    #[arg(long, value_enum)]
    cell: CellName,
    #[arg(long)]
    input: usize,
    #[arg(long)]
    hidden: usize,
    #[arg(long)]
    layers: usize,
    #[arg(long)]
    bidirectional: bool,
    #[arg(long)]
    batch: usize,
    #[arg(long)]
    steps: usize,
    /// With the gradients
    #[arg(long)]
    train: bool,
    /// Which adapter
    #[arg(long, value_enum, default_value = "default")]
    device: Kind,
    /// Seconds of sampling
    #[arg(long, default_value_t = 1.0)]
    min_time: f64,
    /// Seconds after which it ends in any case
    #[arg(long, default_value_t = 15.0)]
    budget: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum CellName {
    Lstm,
    Gru,
    RnnTanh,
    RnnRelu,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// What Burn takes by itself
    Default,
    /// A software adapter
    Cpu,
    Discrete,
    Integrated,
}

fn main() -> ExitCode {
    match run(&Shape::parse()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(shape: &Shape) -> Result<serde_json::Value, String> {
    let device = Device::wgpu(match shape.device {
        Kind::Default => DeviceKind::DefaultDevice,
        Kind::Cpu => DeviceKind::Cpu,
        Kind::Discrete => DeviceKind::DiscreteGpu(0),
        Kind::Integrated => DeviceKind::IntegratedGpu(0),
    });
    let name = device.identity().map(|identity| identity.name);
    let stack = Stack::new(shape, shape.train, device);
    let once = || {
        let start = Instant::now();
        let sum = stack.run();
        (start.elapsed().as_secs_f64(), sum)
    };
    let start = Instant::now();
    let (cold, _) = once();
    stack.check()?;
    // Shaders are compiled and tuned over several calls.
    let warm = Instant::now();
    for call in 0.. {
        if call >= 3 && warm.elapsed().as_secs_f64() >= 0.2 * shape.min_time {
            break;
        }
        once();
    }
    let mut samples = Vec::new();
    let sampling = Instant::now();
    loop {
        let (seconds, sum) = once();
        if !sum.is_finite() {
            return Err(format!("the result sums up to {sum}"));
        }
        samples.push(seconds);
        let enough = sampling.elapsed().as_secs_f64() >= shape.min_time && samples.len() >= 5;
        if enough || start.elapsed().as_secs_f64() >= shape.budget {
            break;
        }
    }
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    let median = (samples[middle] + samples[(samples.len() - 1) / 2]) / 2.0;
    Ok(json!({
        "device": name,
        "median_ms": median * 1e3,
        "min_ms": samples[0] * 1e3,
        "cold_ms": cold * 1e3,
        "samples": samples.len(),
    }))
}
