//! What is printed and what the JSON file holds.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Number, Value, json};
use wgrnn::Result;
use wgrnn::interop::atomic::write_atomically;

use super::profile;
use super::shapes::{Mode, Shape};
use super::trial::Trial;

/// What came of one shape in one mode.
pub(super) enum Row {
    Ok(Box<Trial>),
    /// Why there are no times.
    Failed(Status, String),
}

/// Why there are no times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// This version or this device cannot do it.
    Unsupported,
    /// A result is wrong, or the device failed.
    Error,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Error => "error",
        }
    }
}

/// All rows of a run, and the file that they are written to.
pub(super) struct Report<'a> {
    json: Option<&'a Path>,
    head: Map<String, Value>,
    rows: Vec<Value>,
    failures: Vec<Status>,
}

impl<'a> Report<'a> {
    pub(super) fn new(json: Option<&'a Path>, device: &str, dtype: &str, settings: Value) -> Self {
        let head = [
            ("tool", json!("wgrnn")),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("device", json!(device)),
            ("dtype", json!(dtype)),
            ("settings", settings),
        ];
        Self {
            json,
            head: head
                .map(|(key, value)| (key.to_owned(), value))
                .into_iter()
                .collect(),
            rows: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Prints a row and writes the file anew, so that nothing is lost if a later shape fails. What is no file, such as a
    /// pipe, is written by [`Self::end`], since it cannot be written anew.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn add(&mut self, shape: &Shape, mode: Mode, row: &Row) -> Result<()> {
        if self.rows.is_empty() {
            println!("{}", heading());
        }
        println!("{:<22} {:<5} {}", shape.name, mode.name(), line(row));
        match row {
            Row::Failed(status, _) => self.failures.push(*status),
            Row::Ok(trial) => {
                for line in profile::lines(&trial.kernels) {
                    println!("{line}");
                }
            }
        }
        self.rows.push(object(shape, mode, row));
        match self.json {
            Some(path) if is_file_or_free(path) => self.write(path),
            _ => Ok(()),
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut all = self.head.clone();
        all.insert("results".to_owned(), self.rows.clone().into());
        let all = Value::from(all);
        write_atomically(path, |w| writeln!(w, "{all:#}"))
    }

    /// Writes to what is no file; the exit status that says it all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn end(&self) -> Result<ExitCode> {
        if let Some(path) = self.json
            && !is_file_or_free(path)
        {
            self.write(path)?;
        }
        Ok(self.status())
    }

    fn status(&self) -> ExitCode {
        match self.failures.as_slice() {
            [] => ExitCode::SUCCESS,
            failures if failures.contains(&Status::Error) => ExitCode::from(1),
            _ => ExitCode::from(3),
        }
    }
}

fn is_file_or_free(path: &Path) -> bool {
    path.is_file() || !path.exists()
}

fn heading() -> String {
    format!(
        "\n{:<22} {:<5} {:>10} {:>10} {:>10} {:>10} {:>9} {:>8} {:>8}  strategy",
        "milliseconds", "", "median", "least", "device", "us/step", "GFLOP/s", "GB/s", "% floor"
    )
}

fn line(row: &Row) -> String {
    let trial = match row {
        Row::Failed(status, note) => return format!("{}: {note}", status.name()),
        Row::Ok(trial) => trial,
    };
    let median = trial.wall.median();
    let device = trial.device.as_ref();
    let notes = trial.notes.join("; ");
    let line = format!(
        "{:>10.3} {:>10.3} {:>10} {:>10.2} {:>9.2} {:>8.2} {:>8.1}  {}",
        median * 1e3,
        trial.wall.min() * 1e3,
        device.map_or_else(|| "-".to_owned(), |d| format!("{:.3}", d.median() * 1e3)),
        median * 1e6 / trial.steps as f64,
        trial.flops / median / 1e9,
        trial.bytes / median / 1e9,
        100.0 * trial.floor.stepwise / trial.on_device(),
        trial.strategy,
    );
    if notes.is_empty() {
        line
    } else {
        format!("{line} ({notes})")
    }
}

fn object(shape: &Shape, mode: Mode, row: &Row) -> Value {
    let (trial, status, note) = match row {
        Row::Ok(trial) => (Some(trial), "ok", trial.notes.join("; ")),
        Row::Failed(status, note) => (None, status.name(), note.clone()),
    };
    let number = |of: fn(&Trial) -> f64| trial.and_then(|t| rounded(of(t)));
    let maybe = |of: fn(&Trial) -> Option<f64>| trial.and_then(|t| rounded(of(t)?));
    let memory = trial.map(|t| {
        let of_role = t.memory.iter().map(|(role, bytes)| {
            let name = format!("{role:?}").to_lowercase();
            (name, json!(rounded(*bytes as f64 / 1e6)))
        });
        Value::Object(of_role.collect())
    });
    let kernels = trial.map(|t| &t.kernels).filter(|k| !k.is_empty());
    json!({
        "name": shape.name,
        "mode": mode.name(),
        "median_ms": number(|t| t.wall.median() * 1e3),
        "min_ms": number(|t| t.wall.min() * 1e3),
        "samples": trial.map(|t| t.wall.len()),
        "device_ms": maybe(|t| Some(t.device.as_ref()?.median() * 1e3)),
        "device_min_ms": maybe(|t| Some(t.device.as_ref()?.min() * 1e3)),
        "throughput_ms": maybe(|t| Some(t.throughput? * 1e3)),
        "cold_ms": number(|t| t.cold * 1e3),
        "us_per_step": number(|t| t.wall.median() * 1e6 / t.steps as f64),
        "gflops": number(|t| t.flops / t.wall.median() / 1e9),
        "gb_per_s": number(|t| t.bytes / t.wall.median() / 1e9),
        "floor_ms": number(|t| t.floor.stepwise * 1e3),
        "floor_work_ms": number(|t| t.floor.work * 1e3),
        "percent_of_floor": number(|t| 100.0 * t.floor.stepwise / t.on_device()),
        "plan_mb": number(|t| t.memory.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>() / 1e6),
        "memory_mb": memory,
        "strategy": trial.map(|t| t.strategy.as_str()),
        "forced": trial.map(|t| t.forced.to_string()),
        "verified": trial.map(|t| t.verified),
        "profile": kernels.map(|kernels| profile::json(kernels)),
        "status": status,
        "note": note,
    })
}

/// Six digits, which is more than a clock gives; nothing for what is not finite.
pub(super) fn rounded(value: f64) -> Option<Number> {
    let text = format!("{value:.5e}");
    text.parse().ok().and_then(Number::from_f64)
}
