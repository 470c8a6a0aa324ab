//! `wgrnn info`: the adapters of this machine, the device that is taken, and the kernels.

use std::path::PathBuf;
use std::process::ExitCode;

use wgrnn::certify::Certificates;
use wgrnn::kernels::ALL;
use wgrnn::wgpu::{self, Adapter, DeviceType};
use wgrnn::{Context, Error, Result};

use crate::certify::summary;

/// Shows adapters, limits, features, which device is taken and which kernels run where.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also show what this file of `certify`, `bench` or `train` says of each device
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

/// Features that a kernel may use; those that an adapter has are turned on when it is opened.
const FEATURES: [(wgpu::Features, &str); 3] = [
    (wgpu::Features::SUBGROUP, "subgroups"),
    (wgpu::Features::SHADER_F16, "f16 in shaders"),
    (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let known = args
        .certificate
        .as_ref()
        .map(Certificates::load)
        .transpose()?;
    let adapters = pollster::block_on(Context::adapters());
    let mut opened = Vec::new();
    println!("adapters");
    if adapters.is_empty() {
        println!("  none: wgpu finds no Vulkan, Metal, DirectX 12 or WebGPU driver");
    }
    for (i, adapter) in adapters.iter().enumerate() {
        match pollster::block_on(Context::from_adapter(adapter)) {
            Ok(context) => {
                println!("  [{}] {}", i + 1, context.name());
                opened.push((i + 1, context));
            }
            Err(e) => println!("  [{}] {}: {e}", i + 1, adapter.get_info().name),
        }
        for (name, value) in properties(adapter) {
            println!("      {name:<26}{value}");
        }
    }
    if let Some(known) = &known {
        println!("\ncertificates");
        let opened = opened.iter().map(|(_, context)| context.clone());
        for context in std::iter::once(Context::cpu()).chain(opened) {
            println!("  {}: {}", context.name(), summary(known, &context));
        }
    }
    println!("\ndevice");
    let (taken, why) = choice(&adapters)?;
    println!("  auto takes {taken}: {why}");
    println!(
        "\nkernels: portable WGSL; only those named so need subgroups or cooperative matrices"
    );
    println!(
        "  {:<24}{:>11}{:>13}{:>10}  runs on the CPU and",
        "", "invocations", "shared bytes", "bindings"
    );
    for kernel in ALL {
        let on = opened.iter().map(|(i, context)| {
            let able = context.check_kernel(kernel);
            able.map_or_else(|e| format!("not [{i}] ({e})"), |()| format!("[{i}]"))
        });
        let on: Vec<_> = on.collect();
        println!(
            "  {:<24}{:>11}{:>13}{:>10}  {}",
            kernel.name,
            kernel.workgroup_size,
            kernel.workgroup_memory,
            kernel.bindings.len(),
            if on.is_empty() {
                "no adapter".to_owned()
            } else {
                on.join(", ")
            }
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn properties(adapter: &Adapter) -> Vec<(&'static str, String)> {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => "hardware, discrete",
        DeviceType::IntegratedGpu => "hardware, integrated",
        DeviceType::VirtualGpu => "hardware, virtual",
        DeviceType::Cpu => "software",
        DeviceType::Other => "unknown, taken for hardware",
    };
    let have = FEATURES
        .iter()
        .filter(|(feature, _)| adapter.features().contains(*feature))
        .map(|(_, name)| *name);
    vec![
        ("type", kind.to_owned()),
        (
            "driver",
            format!("{} {}", info.driver, info.driver_info)
                .trim()
                .to_owned(),
        ),
        (
            "invocations per workgroup",
            limits.max_compute_invocations_per_workgroup.to_string(),
        ),
        (
            "workgroup memory",
            format!("{} bytes", limits.max_compute_workgroup_storage_size),
        ),
        (
            "storage buffers per stage",
            limits.max_storage_buffers_per_shader_stage.to_string(),
        ),
        (
            "one binding",
            format!("{} bytes", limits.max_storage_buffer_binding_size),
        ),
        ("one buffer", format!("{} bytes", limits.max_buffer_size)),
        (
            "workgroups per dimension",
            limits.max_compute_workgroups_per_dimension.to_string(),
        ),
        ("features", have.collect::<Vec<_>>().join(", ")),
    ]
}

/// What the name `auto` stands for here.
fn choice(adapters: &[Adapter]) -> Result<(String, String)> {
    let hardware = adapters
        .iter()
        .any(|a| a.get_info().device_type != DeviceType::Cpu);
    let context = Context::open("auto")?;
    let why = if context.is_gpu() {
        "the first hardware adapter".to_owned()
    } else if hardware {
        // `auto` falls back to the CPU only if the hardware does not open.
        match Context::open("gpu") {
            Err(e @ (Error::Device { .. } | Error::NoAdapter { .. })) => e.to_string(),
            _ => "the hardware adapter did not open".to_owned(),
        }
    } else if adapters.is_empty() {
        "there is no adapter".to_owned()
    } else {
        "there is no hardware adapter, and a software adapter, slower than the CPU backend, is \
         used only when named"
            .to_owned()
    };
    Ok((context.name(), why))
}
