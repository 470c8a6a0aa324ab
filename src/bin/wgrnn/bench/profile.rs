//! Where a call's time goes: the time of every step, added up for each kernel.

use serde_json::{Value, json};
use wgrnn::plan::Step;
use wgrnn::{Program, Result};

use super::measure::{self, Limits};
use super::report::rounded;

/// All dispatches of one kernel with the same constants.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KernelTime {
    pub(super) kernel: &'static str,
    /// The constants that are not 0.
    pub(super) constants: String,
    pub(super) count: usize,
    pub(super) seconds: f64,
    pub(super) flops: f64,
    pub(super) bytes: f64,
}

impl KernelTime {
    pub(super) fn gflops(&self) -> f64 {
        self.flops / self.seconds / 1e9
    }

    pub(super) fn gb_per_s(&self) -> f64 {
        self.bytes / self.seconds / 1e9
    }

    /// Operations for each byte that must be moved.
    pub(super) fn intensity(&self) -> f64 {
        self.flops / self.bytes
    }
}

/// The kernels of some sections, the one that takes longest first: those of the quickest run.
///
/// # Errors
/// As [`Program::profile`].
pub(super) fn profile(
    program: &Program,
    sections: &[&str],
    limits: Limits,
) -> Result<Vec<KernelTime>> {
    let mut best: Option<(f64, Vec<KernelTime>)> = None;
    measure::sample(limits, || {
        let mut kernels = Vec::new();
        for section in sections {
            let times = program.profile(section)?;
            let steps = &program.plan().steps()[program.plan().section(section)?];
            for (step, time) in steps.iter().zip(times) {
                add(&mut kernels, step, time.as_secs_f64());
            }
        }
        let total = total(&kernels);
        if best.as_ref().is_none_or(|(least, _)| total < *least) {
            best = Some((total, kernels));
        }
        Ok(total)
    })?;
    let mut kernels = best.map(|(_, kernels)| kernels).unwrap_or_default();
    kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(kernels)
}

/// The time of all kernels.
pub(super) fn total(kernels: &[KernelTime]) -> f64 {
    kernels.iter().map(|k| k.seconds).sum()
}

fn add(kernels: &mut Vec<KernelTime>, step: &Step, seconds: f64) {
    let constants: Vec<_> = step
        .constants
        .iter()
        .filter(|(_, value)| *value != 0)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let one = KernelTime {
        kernel: step.kernel.name,
        constants: constants.join(", "),
        count: 1,
        seconds,
        flops: step.cost.flops as f64,
        bytes: step.cost.bytes as f64,
    };
    let same = |k: &&mut KernelTime| k.kernel == one.kernel && k.constants == one.constants;
    match kernels.iter_mut().find(same) {
        None => kernels.push(one),
        Some(sum) => {
            sum.count += 1;
            sum.seconds += one.seconds;
            sum.flops += one.flops;
            sum.bytes += one.bytes;
        }
    }
}

/// A table of them, a line each.
pub(super) fn lines(kernels: &[KernelTime]) -> Vec<String> {
    let all = total(kernels);
    let line = |k: &KernelTime| {
        let text = format!(
            "{:>8} x {:<24}{:>11.3} ms{:>7.1} %{:>11.2} us{:>10.2} GFLOP/s{:>9.2} GB/s  {}",
            k.count,
            k.kernel,
            k.seconds * 1e3,
            100.0 * k.seconds / all,
            k.seconds * 1e6 / k.count as f64,
            k.gflops(),
            k.gb_per_s(),
            k.constants,
        );
        text.trim_end().to_owned()
    };
    kernels.iter().map(line).collect()
}

pub(super) fn json(kernels: &[KernelTime]) -> Value {
    let all = total(kernels);
    let of = |k: &KernelTime| {
        json!({
            "kernel": k.kernel,
            "constants": k.constants,
            "count": k.count,
            "total_ms": rounded(k.seconds * 1e3),
            "mean_us": rounded(k.seconds * 1e6 / k.count as f64),
            "share": rounded(k.seconds / all),
            "gflops": rounded(k.gflops()),
            "gb_per_s": rounded(k.gb_per_s()),
            "flop_per_byte": rounded(k.intensity()),
        })
    };
    kernels.iter().map(of).collect()
}
