//! What is printed and what the JSON file holds.

use std::path::Path;

use serde_json::{Map, Number, Value, json};
use wgrnn::interop::atomic::write_atomically;
use wgrnn::{Context, Result};

use super::shapes::{Mode, Shape};

/// What came of one shape in one mode.
pub(super) enum Row {
    Ok(Box<Times>),
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

/// Times in milliseconds and what follows from them.
#[derive(Debug, Clone)]
pub(super) struct Times {
    pub(super) median_ms: f64,
    pub(super) min_ms: f64,
    pub(super) cold_ms: f64,
    pub(super) samples: usize,
    pub(super) gflops: f64,
    pub(super) us_per_step: f64,
    /// The steps whose results were compared with the oracle.
    pub(super) verified: usize,
    pub(super) strategy: String,
    pub(super) note: String,
}

/// All rows of a run, and the file that they are written to.
pub(super) struct Report<'a> {
    pub(super) json: Option<&'a Path>,
    head: Map<String, Value>,
    rows: Vec<Value>,
    failures: Vec<Status>,
}

impl<'a> Report<'a> {
    pub(super) fn new(json: Option<&'a Path>, context: &Context, settings: Value) -> Self {
        let mut head = Map::new();
        head.insert("tool".to_owned(), "wgrnn".into());
        head.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        head.insert("device".to_owned(), context.name().into());
        head.insert("dtype".to_owned(), context.dtype().to_string().into());
        head.insert("settings".to_owned(), settings);
        Self {
            json,
            head,
            rows: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Prints a row and writes the file anew, so that nothing is lost if a later shape fails.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn add(&mut self, shape: &Shape, mode: Mode, row: &Row) -> Result<()> {
        println!("{:<22} {:<5} {}", shape.name, mode.name(), line(row));
        if let Row::Failed(status, _) = row {
            self.failures.push(*status);
        }
        self.rows.push(object(shape, mode, row));
        let Some(path) = self.json else {
            return Ok(());
        };
        let mut all = self.head.clone();
        all.insert("results".to_owned(), self.rows.clone().into());
        let all = Value::from(all);
        write_atomically(path, |w| writeln!(w, "{all:#}"))
    }

    pub(super) fn failures(&self) -> &[Status] {
        &self.failures
    }
}

fn line(row: &Row) -> String {
    match row {
        Row::Failed(status, note) => format!("{}: {note}", status.name()),
        Row::Ok(t) => format!(
            "{:>10.3} ms, least {:>10.3}  {:>9.2} us/step  {:>8.2} GFLOP/s  {}",
            t.median_ms, t.min_ms, t.us_per_step, t.gflops, t.strategy
        ),
    }
}

fn object(shape: &Shape, mode: Mode, row: &Row) -> Value {
    let (times, status, note) = match row {
        Row::Ok(times) => (Some(times), "ok", times.note.as_str()),
        Row::Failed(status, note) => (None, status.name(), note.as_str()),
    };
    let number = |of: fn(&Times) -> f64| times.map(|t| rounded(of(t)));
    json!({
        "name": shape.name,
        "mode": mode.name(),
        "median_ms": number(|t| t.median_ms),
        "min_ms": number(|t| t.min_ms),
        "gflops": number(|t| t.gflops),
        "us_per_step": number(|t| t.us_per_step),
        "cold_ms": number(|t| t.cold_ms),
        "samples": times.map(|t| t.samples),
        "verified": times.map(|t| t.verified),
        "strategy": times.map(|t| t.strategy.as_str()),
        "status": status,
        "note": note,
    })
}

/// Six digits are more than a clock gives.
fn rounded(value: f64) -> Option<Number> {
    let text = format!("{value:.5e}");
    text.parse().ok().and_then(Number::from_f64)
}
