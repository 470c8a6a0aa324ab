//! `wgrnn`: checks, times, plans, trains and samples recurrent networks on the devices of this machine.
//!
//! Exit status 0: all that was asked for ran and passed. 1: a check failed. 2: an error, told in one
//! line. 3: nothing failed, but something is not supported. 130, 143: a training was interrupted.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::{Parser, Subcommand};

/// The standard macro panics where nobody reads (`wgrnn train | head`); in the modules below its name
/// stands for this one, which lets the work go on.
macro_rules! println {
    ($($text:tt)*) => { $crate::print_line(format_args!($($text)*)) };
}

/// The same for what goes beside the output.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::print_error(format_args!($($text)*)) };
}

mod bench;
mod certify;
mod check;
mod choices;
mod files;
mod floor;
mod info;
mod layer;
mod plan;
mod sample;
mod train;

/// Recurrent neural networks on the GPU: checks, benchmarks, plans, training.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Args),
    Certify(certify::Args),
    Check(check::Args),
    Info(info::Args),
    Plan(plan::Args),
    Train(Box<train::Args>),
    Sample(sample::Args),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(
        env_logger::Env::default().default_filter_or("error,wgpu_hal=off"),
    )
    .init();
    let done = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Certify(args) => certify::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Sample(args) => sample::run(&args),
    };
    let status = done.unwrap_or_else(|e| {
        // A reason from the system may have line ends; an error here is one line.
        let line = e.to_string().replace(['\n', '\r'], " ");
        eprintln!("wgrnn: {line}");
        ExitCode::from(2)
    });
    remember(io::stdout().flush());
    match failure().take() {
        Some(e) if e.kind() != ErrorKind::BrokenPipe => {
            eprintln!("wgrnn: standard output: {e}");
            ExitCode::from(2)
        }
        _ => status,
    }
}

fn print_line(line: Arguments<'_>) {
    remember(writeln!(io::stdout(), "{line}"));
}

fn print_error(line: Arguments<'_>) {
    // There is nowhere to report it.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Why the output could not be written: a full disk makes the status 2 at the end.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

fn failure() -> std::sync::MutexGuard<'static, Option<io::Error>> {
    FAILURE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember(written: io::Result<()>) {
    if let Err(e) = written {
        failure().get_or_insert(e);
    }
}

/// What an argument that may only be such a name stands for.
fn precision(name: &str) -> wgrnn::Precision {
    let mut all = wgrnn::Precision::ALL.into_iter();
    all.find(|p| p.name() == name).unwrap_or_default()
}
