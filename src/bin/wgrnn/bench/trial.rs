//! One shape in one mode: planned, run once, compared with the oracle, then timed.

use std::time::{Duration, Instant};

use wgrnn::plan::{DeviceKind, Force, Plan, Role};
use wgrnn::{Context, Error, Result};

use super::measure::{self, Limits, Samples};
use super::profile::{self, KernelTime};
use super::shapes::{Mode, Shape};
use super::subject::{self, Call};
use crate::floor::{Floor, Peaks, floor};

/// The part of the time for wall samples that each further measurement gets.
const FURTHER: f64 = 0.3;
/// How long a GPU is kept busy before samples are taken.
const WARM_UP: Duration = Duration::from_millis(400);
/// How long calls in flight should take together, and how many there are at most.
const IN_FLIGHT: (Duration, f64) = (Duration::from_millis(200), 64.0);

/// Times in seconds and what belongs to them.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    /// From the call until the device is done.
    pub(super) wall: Samples,
    /// The time on the device by its own timestamps; none on the CPU, where it is the same.
    pub(super) device: Option<Samples>,
    /// Of one call with several submitted at once; none on the CPU.
    pub(super) throughput: Option<f64>,
    /// Of planning, building pipelines, allocating and the first call.
    pub(super) cold: f64,
    pub(super) flops: f64,
    /// What must be read or written at least once in each step.
    pub(super) bytes: f64,
    pub(super) steps: usize,
    pub(super) floor: Floor,
    /// The steps whose results were compared with the oracle.
    pub(super) verified: usize,
    pub(super) strategy: String,
    /// What was chosen whatever the rules say.
    pub(super) forced: Force,
    /// Bytes of the plan's buffers.
    pub(super) memory: Vec<(Role, u64)>,
    pub(super) kernels: Vec<KernelTime>,
    pub(super) notes: Vec<String>,
}

impl Trial {
    /// The time that is compared with the floor: the device's own where it is known.
    pub(super) fn on_device(&self) -> f64 {
        self.device.as_ref().unwrap_or(&self.wall).median()
    }
}

/// What all shapes of a run have in common.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) context: Context,
    pub(super) limits: Limits,
    pub(super) peaks: Peaks,
    /// Whether each kernel is timed too.
    pub(super) profiled: bool,
}

/// Runs a shape on `context`: the device of the setup, with choices for this shape perhaps.
///
/// # Errors
/// If a result is wrong, or the device fails or cannot hold it.
pub(super) fn run(setup: &Setup, context: &Context, shape: &Shape, mode: Mode) -> Result<Trial> {
    let limits = setup.limits;
    let layer = subject::layer(context, shape)?;
    let start = Instant::now();
    // It refuses what is too large before anything is drawn.
    let call = Call::new(&layer, shape, mode)?;
    let planned = start.elapsed();
    let sections = call.sections(mode);
    let inputs = subject::Inputs::draw(shape, mode, shape.steps)?;
    let start = Instant::now();
    inputs.write(&call, mode)?;
    let first = wall(&call, mode)?;
    let cold = (planned + start.elapsed()).as_secs_f64();
    let verified = subject::verify(&layer, &call, shape, mode, subject::ORACLE)?;

    let mut notes = Vec::new();
    if verified < shape.steps {
        let all = shape.steps;
        notes.push(format!("{verified} of {all} steps compared"));
    }
    let further = Limits {
        min_time: limits.min_time.mul_f64(FURTHER),
        budget: limits.budget.mul_f64(FURTHER),
    };
    let mut device = None;
    let mut throughput = None;
    let samples = if first < limits.budget.as_secs_f64() {
        if context.kind() == DeviceKind::Gpu {
            let long = WARM_UP.min(limits.budget.mul_f64(FURTHER));
            measure::warm_up(long, || wall(&call, mode))?;
        }
        let samples = measure::sample(limits, || wall(&call, mode))?;
        if context.is_gpu() {
            device = on_device(&call, sections, further, &mut notes)?;
            throughput = Some(in_flight(&call, mode, samples.median())?);
        }
        samples
    } else {
        // The first call may have compiled shaders, which is not to be taken for a sample.
        notes.push("one sample, as the first call used up the budget".to_owned());
        Samples::new(vec![wall(&call, mode)?])
    };
    let plan = call.program().plan();
    let mut bytes = 0;
    for section in sections {
        bytes += plan.cost(plan.section(section)?)?.bytes;
    }
    Ok(Trial {
        wall: samples,
        device,
        throughput,
        cold,
        flops: shape.flops(mode, shape.steps),
        bytes: bytes as f64,
        steps: shape.steps,
        floor: floor(
            &shape.spec(),
            shape.size(),
            shape.call(mode, shape.steps).mode,
            shape.activations,
            &setup.peaks,
        ),
        verified,
        strategy: strategy(plan, sections),
        forced: context.target().force,
        memory: Role::ALL.map(|role| (role, plan.bytes(role))).to_vec(),
        kernels: if setup.profiled {
            profile::profile(call.program(), sections, further)?
        } else {
            Vec::new()
        },
        notes,
    })
}

/// The time of one call until the device is done.
fn wall(call: &Call, mode: Mode) -> Result<f64> {
    measure::once(|| {
        call.submit(mode)?;
        call.program().context().wait()
    })
}

/// The device's own time; without timestamps a note says so.
fn on_device(
    call: &Call,
    sections: &[&str],
    limits: Limits,
    notes: &mut Vec<String>,
) -> Result<Option<Samples>> {
    let timed = || Ok(call.program().run_timed(sections)?.as_secs_f64());
    match measure::sample(limits, timed) {
        Ok(samples) => Ok(Some(samples)),
        Err(e @ Error::Unsupported { .. }) => {
            notes.push(e.to_string());
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// The time of a call when so many are submitted before the first wait that the device always has one
/// to go on with.
fn in_flight(call: &Call, mode: Mode, one: f64) -> Result<f64> {
    let (time, most) = IN_FLIGHT;
    let count = (time.as_secs_f64() / one).clamp(2.0, most).round();
    let seconds = measure::once(|| {
        for _ in 0..count as usize {
            call.submit(mode)?;
        }
        call.program().context().wait()
    })?;
    Ok(seconds / count)
}

/// How the plan runs the steps: its strategy, and its recurrent kernels with their number.
fn strategy(plan: &Plan, sections: &[&str]) -> String {
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
    // What stands around the steps.
    let around = ["gemm", "transpose", "pack", "copy", "state", "reduce"];
    let recurrent = |name: &str| !around.contains(&name.split('.').next().unwrap_or_default());
    let kept = counts.iter().filter(|(name, _)| recurrent(name));
    let kernels: Vec<_> = kept.map(|(name, n)| format!("{n} x {name}")).collect();
    let kernels = kernels.join(", ");
    let choices = plan.choices().iter();
    let mut chosen =
        choices.filter(|c| ["steps of the layer", "step of streams"].contains(&&*c.what));
    match chosen.next() {
        Some(choice) => format!("{}: {kernels}", choice.chosen),
        None => kernels,
    }
}
