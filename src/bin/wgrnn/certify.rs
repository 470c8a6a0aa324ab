//! `wgrnn certify`: which kernels of a layer's plan compute right on a device.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use wgrnn::certify::{Certificates, Verdict};
use wgrnn::interop::atomic::check_replaceable;
use wgrnn::plan::Plan;
use wgrnn::{Context, Result, Sequence};

use crate::choices::{Choices, Rules};
use crate::layer::LayerArgs;

/// Runs every kernel of a layer's plan, as specialised there, on small inputs and compares it with its reference.
///
/// Exit status 0: all are right; 1: one computes wrongly; 2: an error; 3: none is wrong, but one could not be compared.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The device: 'auto', 'cpu', 'gpu' or part of an adapter's name
    #[arg(long, value_name = "NAME", default_value = "auto")]
    adapter: String,
    #[command(flatten)]
    certified: Certified,
    #[command(flatten)]
    rules: Rules,
    #[command(flatten)]
    choices: Choices,
    #[command(flatten)]
    layer: LayerArgs,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (spec, call) = (args.layer.spec()?, args.layer.call());
    let mut known = args.certified.open()?;
    let context = Context::open(&args.adapter)?.forcing(args.choices.force());
    let context = args.rules.of(&context)?;
    let plan = Sequence::plan(&spec, &call, &context.target())?;
    println!("{}", context.name());
    let start = Instant::now();
    let certificate = known.certify(&context, &plan)?;
    let took = start.elapsed();
    for (kernel, verdict) in &certificate.verdicts {
        println!("  {}", line(kernel, verdict));
    }
    println!("{certificate}, in {:.2} s", took.as_secs_f64());
    args.certified.save(&known)?;
    if args.certified.wanted() && !Certificates::keeps(&context) {
        println!("{UNKNOWN_DRIVER}");
    }
    Ok(ExitCode::from(match () {
        () if certificate.wrong().next().is_some() => 1,
        () if certificate.unchecked().next().is_some() => 3,
        () => 0,
    }))
}

fn line(kernel: &str, verdict: &Verdict) -> String {
    match verdict {
        Verdict::Right { error } => format!("right      {error:>8.4}  {kernel}"),
        Verdict::Wrong { reason } => format!("wrong                {kernel}: {reason}"),
        Verdict::Unchecked { reason } => format!("unchecked            {kernel}: {reason}"),
    }
}

/// A file of certificates.
#[derive(Debug, clap::Args)]
pub(crate) struct Certified {
    /// Use no kernel that computes wrongly on the device: what was found is kept in this file, and what is not in it is
    /// compared first
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

impl Certified {
    /// What the file holds, which can be written.
    pub(crate) fn open(&self) -> Result<Certificates> {
        let Some(path) = &self.certificate else {
            return Ok(Certificates::new());
        };
        check_replaceable(path)?;
        Certificates::load(path)
    }

    pub(crate) fn save(&self, certificates: &Certificates) -> Result<()> {
        match &self.certificate {
            Some(path) => certificates.save(path),
            None => Ok(()),
        }
    }

    /// Whether a file was given.
    pub(crate) fn wanted(&self) -> bool {
        self.certificate.is_some()
    }

    /// The file, if one was given.
    pub(crate) fn path(&self) -> &Option<PathBuf> {
        &self.certificate
    }

    /// The device for plans of kernels that compute right there, if a file was given.
    pub(crate) fn context(
        &self,
        known: &mut Certificates,
        context: &Context,
        plans: impl Fn(&Context) -> Result<Vec<Plan>>,
    ) -> Result<Context> {
        if !self.wanted() {
            return Ok(context.clone());
        }
        let certified = known.context_for_all(context, plans);
        // Also what makes it an error.
        self.save(known)?;
        certified
    }
}

const UNKNOWN_DRIVER: &str = "not kept in the file, since nothing says what drives this device";

/// What is known of a device, in a line.
pub(crate) fn summary(known: &Certificates, context: &Context) -> String {
    let certificate = known.of(context);
    let line = match certificate.verdicts.is_empty() {
        true => "certificate: nothing was compared on this device".to_owned(),
        false => certificate.to_string(),
    };
    match Certificates::keeps(context) {
        true => line,
        false => format!("{line}; {UNKNOWN_DRIVER}"),
    }
}
