//! `wgrnn check`: kernels and layers of this machine's backends against what they must give.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::{Value, json};
use wgrnn::cell::{self, Cell};
use wgrnn::check::{Outcome, Status, cases, kernels, lockstep};
use wgrnn::interop::atomic::{check_writable, write_atomically};
use wgrnn::interop::case::{self, Case};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::rng::Rng;
use wgrnn::{Context, Dtype, Error, Layer, Result, Sequence, Size, Tensor, kernels::ALL};

use crate::choices::Rules;
use crate::files::{self, Named};

/// Compares every kernel with its twin in double precision, or layers with solved cases.
///
/// Exit status 0: all that was asked for ran and passed; 1: something failed; 2: an error; 3: nothing
/// failed, but something is not supported.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Reference cases (.safetensors) or folders of them; every kernel without any
    #[arg(value_name = "FILE|FOLDER")]
    paths: Vec<PathBuf>,
    /// Also run whole layers step by step beside their twin, and name the first step that differs
    #[arg(long)]
    lockstep: bool,
    /// What to check
    #[arg(long, value_enum, default_value_t = Backend::All)]
    backend: Backend,
    /// Of the GPU adapters only the first whose name or backend contains this
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    #[command(flatten)]
    rules: Rules,
    /// Where to write the results, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The CPU backend
    Cpu,
    /// Every GPU adapter, software adapters included
    Gpu,
    /// Both
    All,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let cases = if args.paths.is_empty() {
        None
    } else {
        let paths = case::paths(&args.paths)?;
        if let Some(json) = &args.json {
            let inputs: Vec<_> = paths.iter().map(|p| Named::new("a case", p)).collect();
            files::keep("check", &inputs, &[Named::new("--json", json)])?;
        }
        let cases: Result<Vec<Case>> = paths.iter().map(|p| case::load(p)).collect();
        Some(cases?)
    };
    // Not at the end, after minutes of work.
    if let Some(path) = &args.json {
        check_writable(path)?;
    }
    let contexts = contexts(args, cases.is_some())?;
    let contexts: Result<Vec<_>> = contexts.iter().map(|c| args.rules.of(c)).collect();
    let contexts = contexts?;
    for (i, context) in contexts.iter().enumerate() {
        println!("[{}] {}", i + 1, context.name());
    }
    let no_adapter = args.backend == Backend::All && !contexts.iter().any(Context::is_gpu);
    let mut report = Report {
        contexts,
        results: Vec::new(),
    };
    match &cases {
        None => report.kernels()?,
        Some(cases) => report.cases(cases)?,
    }
    if args.lockstep {
        report.lockstep(cases.as_deref())?;
    }
    let [passed, failed, unsupported] = report.counts();
    if no_adapter {
        println!("\nno GPU adapter: only the CPU was checked");
    }
    println!("\n{passed} passed, {failed} failed, {unsupported} unsupported");
    if let Some(path) = &args.json {
        let value = report.json();
        write_atomically(path, |w| writeln!(w, "{value:#}"))?;
    }
    Ok(match (failed, unsupported) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(3),
        _ => ExitCode::from(1),
    })
}

/// The devices that were asked for. The oracle itself is checked only against cases.
fn contexts(args: &Args, with_oracle: bool) -> Result<Vec<Context>> {
    if let (Backend::Cpu, Some(name)) = (args.backend, &args.adapter) {
        return Err(Error::Value {
            op: "check",
            arg: "--adapter".to_owned(),
            expected: "given with a backend that has adapters".to_owned(),
            got: format!("{name} with --backend cpu"),
        });
    }
    let mut contexts = Vec::new();
    if args.backend != Backend::Gpu {
        if with_oracle {
            contexts.push(Context::cpu_f64());
        }
        contexts.push(Context::cpu());
    }
    if args.backend == Backend::Cpu {
        return Ok(contexts);
    }
    let mut adapters = pollster::block_on(Context::adapters());
    let available: Vec<_> = adapters.iter().map(Context::adapter_name).collect();
    if let Some(name) = &args.adapter {
        let wanted = name.to_lowercase();
        adapters.retain(|a| Context::adapter_name(a).to_lowercase().contains(&wanted));
        adapters.truncate(1);
    }
    if adapters.is_empty() && (args.adapter.is_some() || args.backend == Backend::Gpu) {
        let asked = args.adapter.clone();
        return Err(Error::NoAdapter {
            asked: asked.unwrap_or_else(|| "gpu".to_owned()),
            available,
        });
    }
    for adapter in &adapters {
        contexts.push(pollster::block_on(Context::from_adapter(adapter))?);
    }
    Ok(contexts)
}

/// Every comparison so far, and the table of them as it is printed.
struct Report {
    contexts: Vec<Context>,
    results: Vec<Outcome>,
}

impl Report {
    fn kernels(&mut self) -> Result<()> {
        self.head("kernel, over all sizes");
        for kernel in ALL {
            self.row(kernel.name, |context| {
                let mut outcomes = Vec::new();
                for &size in kernels::SIZES {
                    outcomes.append(&mut kernels::check(context, kernel, size)?);
                }
                Ok(outcomes)
            })?;
        }
        Ok(())
    }

    fn cases(&mut self, cases: &[Case]) -> Result<()> {
        self.head("case");
        for case in cases {
            self.row(&case.name, |context| cases::check(context, case))?;
        }
        Ok(())
    }

    /// The cases' layers, or without cases one of each cell, through their plans step by step.
    fn lockstep(&mut self, cases: Option<&[Case]>) -> Result<()> {
        self.head("lockstep");
        let mut differing = 0;
        match cases {
            Some(cases) => {
                for case in cases.iter().filter(|c| cases::unsupported(c).is_empty()) {
                    differing +=
                        self.steps(&case.name, |context| cases::training(context, case))?;
                }
            }
            None => {
                for cell in cell::ALL {
                    differing += self.steps(cell.name, |context| sequence(context, cell))?;
                }
            }
        }
        if differing == 0 {
            println!("no step differs from its twin in double precision");
        }
        Ok(())
    }

    fn steps(&mut self, name: &str, plan: impl Fn(&Context) -> Result<Sequence>) -> Result<usize> {
        let mut first = Vec::new();
        self.row(name, |context| {
            // The oracle would be compared with itself.
            if context.dtype() == Dtype::F64 {
                return Ok(Vec::new());
            }
            let sequence = plan(context)?;
            let mut outcomes = Vec::new();
            for section in ["forward", "backward"] {
                let report = lockstep(sequence.program(), section)?;
                outcomes.push(report.outcome(context, name));
                if let Some(step) = report.first {
                    first.push(format!("{section} on {}: {step}", context.name()));
                }
            }
            Ok(outcomes)
        })?;
        for line in &first {
            println!("    the first step that differs, {line}");
        }
        Ok(first.len())
    }

    fn head(&self, subject: &str) {
        let columns = (1..=self.contexts.len()).map(|i| format!("{:>16}", format!("[{i}]")));
        println!("\n{subject:<26}{}", columns.collect::<String>());
    }

    /// Runs one subject on every device and prints the worst error of each, in units of the tolerance.
    fn row(
        &mut self,
        name: &str,
        mut run: impl FnMut(&Context) -> Result<Vec<Outcome>>,
    ) -> Result<()> {
        let start = self.results.len();
        let mut cells = String::new();
        let mut notes = Vec::new();
        for (i, context) in self.contexts.iter().enumerate() {
            let mut outcomes = match run(context) {
                // What a device cannot hold is not wrong.
                Err(e @ (Error::Limit { .. } | Error::Unsupported { .. })) => {
                    vec![Outcome::unsupported(context, name, e.to_string())]
                }
                other => other?,
            };
            cells.push_str(&format!("{:>16}", summary(&outcomes)));
            let lines = outcomes.iter().filter_map(note);
            notes.extend(lines.map(|line| format!("    [{}] {line}", i + 1)));
            self.results.append(&mut outcomes);
        }
        if let Some(options) = never_run(&self.results[start..]) {
            println!("{name:<26}  not supported: {options}");
            return Ok(());
        }
        println!("{name:<26}{cells}");
        for line in notes.iter().take(MOST_NOTES) {
            println!("{line}");
        }
        if notes.len() > MOST_NOTES {
            println!("    and {} more", notes.len() - MOST_NOTES);
        }
        Ok(())
    }

    /// How many passed, failed and are unsupported.
    fn counts(&self) -> [usize; 3] {
        [Status::Pass, Status::Fail, Status::Unsupported]
            .map(|status| self.results.iter().filter(|o| o.status == status).count())
    }

    fn json(&self) -> Value {
        let [passed, failed, unsupported] = self.counts();
        let results: Vec<_> = self.results.iter().map(result).collect();
        json!({
            "results": results,
            "passed": passed,
            "failed": failed,
            "unsupported": unsupported,
        })
    }
}

/// The most lines under a row of the table; the JSON has them all.
const MOST_NOTES: usize = 8;

/// What there is to say about an outcome that is not a pass.
fn note(o: &Outcome) -> Option<String> {
    match o.status {
        Status::Pass => None,
        Status::Unsupported => Some(format!("not supported: {}", o.tensor)),
        Status::Fail => Some(format!(
            "{} {}: error {:.3e}, tolerance {:.3e}",
            o.case, o.tensor, o.error, o.tolerance
        )),
    }
}

/// Why no device ran a subject, if all have the same reason.
fn never_run(outcomes: &[Outcome]) -> Option<&str> {
    let (first, rest) = outcomes.split_first()?;
    let same = |o: &Outcome| o.status == Status::Unsupported && o.tensor == first.tensor;
    (same(first) && rest.iter().all(same)).then_some(&first.tensor)
}

/// The worst error in units of the tolerance.
fn summary(outcomes: &[Outcome]) -> String {
    let has = |status| outcomes.iter().any(|o| o.status == status);
    if has(Status::Unsupported) && !has(Status::Fail) {
        return "unsupported".to_owned();
    }
    let units = outcomes
        .iter()
        .filter(|o| o.error > 0.0)
        .map(|o| o.error / o.tolerance)
        .fold(0.0, f64::max);
    match outcomes {
        [] => "-".to_owned(),
        _ if has(Status::Fail) => format!("{units:.3} FAIL"),
        _ => format!("{units:.3}"),
    }
}

/// An infinite error (NaN, or arrays of unequal length) is null, as JSON has no number for it, and so
/// are both numbers where nothing was measured.
fn result(o: &Outcome) -> Value {
    let measured = o.status != Status::Unsupported;
    json!({
        "case": o.case,
        "backend": o.backend,
        "adapter": o.adapter,
        "dtype": o.dtype.to_string(),
        "tensor": o.tensor,
        "error": (measured && o.error.is_finite()).then_some(o.error),
        "tolerance": measured.then_some(o.tolerance),
        "status": o.status.to_string(),
    })
}

/// A training sequence of one cell with random input, of sizes that fit no tile.
fn sequence(context: &Context, cell: &'static Cell) -> Result<Sequence> {
    let spec = LayerSpec::new(cell, 7, 67);
    let size = Size {
        steps: 17,
        batch: 5,
    };
    let sequence = Layer::new(context, spec, 1)?.training(size)?;
    let mut rng = Rng::new(2);
    let mut random = |tensor: &Tensor| tensor.write(&rng.uniforms(tensor.len(), -1.0, 1.0));
    random(sequence.x())?;
    random(sequence.h0())?;
    random(sequence.dy()?)?;
    random(sequence.dhn()?)?;
    if cell.cell_state {
        random(sequence.c0()?)?;
        random(sequence.dcn()?)?;
    }
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgrnn::Dtype;

    fn outcome(status: Status, error: f64) -> Outcome {
        Outcome {
            case: "a kernel".to_owned(),
            backend: "gpu",
            adapter: "a device".to_owned(),
            dtype: Dtype::F32,
            tensor: "y".to_owned(),
            error,
            tolerance: 2.0,
            status,
        }
    }

    /// A failure is not hidden by what the device does not support.
    #[test]
    fn a_failure_comes_first() {
        let [pass, fail, unsupported] = [
            outcome(Status::Pass, 1.0),
            outcome(Status::Fail, 3.0),
            outcome(Status::Unsupported, 0.0),
        ];
        assert_eq!(summary(&[]), "-");
        assert_eq!(summary(std::slice::from_ref(&pass)), "0.500");
        assert_eq!(summary(&[pass.clone(), unsupported.clone()]), "unsupported");
        assert_eq!(summary(&[unsupported, fail, pass]), "1.500 FAIL");
    }
}
