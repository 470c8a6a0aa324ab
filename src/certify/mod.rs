//! Certificates: which kernels of a plan compute right on a device, found before their numbers are used.
//!
//! A driver may compute wrongly without a word. [`Certificates::context`] runs every kernel of a plan, specialised as in the
//! plan, once on small inputs and compares it with its reference on the CPU in double precision; what is wrong is not used
//! by plans for the context that comes back: another kernel takes its place and the plan's choices say so
//! ([`Plan::choices`]), or the plan is refused ([`Error::Denied`]). Kernels whose loops depend on a size
//! are also run beyond 65,535 rounds, where a device is not known to end them ([`Target::loop_rounds`](crate::plan::Target::loop_rounds)).
//!
//! ```
//! # use wgrnn::{Call, Context, Lstm, Sequence, Size, certify::Certificates};
//! # fn main() -> wgrnn::Result<()> {
//! let mut certificates = Certificates::new(); // or Certificates::load(path)?
//! let (lstm, call) = (Lstm::new(3, 8), Call::inference(Size { steps: 10, batch: 2 }));
//! let context = certificates.context(&Context::cpu(), |context| {
//!     Sequence::plan(&lstm.spec(), &call, &context.target())
//! })?;
//! let layer = lstm.build(&context)?; // of kernels that compute right here
//! // certificates.save(path)?;
//! # let _ = layer;
//! # Ok(())
//! # }
//! ```
//!
//! What was found is kept in a file where a caller gives a path, by device, driver and version of this crate.

mod file;
mod inputs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernel::{Constant, Kernel};
use crate::kernels::ALL;
use crate::plan::{Denied, Plan, Step};

use inputs::Swap;

/// How often a plan may be made anew without what was found wrong in it.
const ATTEMPTS: usize = 8;
/// What a device is taken to end loops behind that ends them too early.
const FEW_ROUNDS: u64 = 65_535;
/// Where the verdict on a kernel's long loops is kept, in the place of its constants.
const LONG: &str = "long loops";

/// What was found about kernels on devices. See the [module](self).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Certificates {
    known: BTreeMap<Key, Verdict>,
}

/// The device with its driver and the version of this crate, and the kernel with its constants.
type Key = (String, String);

/// What was found about a kernel with its constants on a device.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It agrees with its reference.
    Right {
        /// Its largest error, in units of the tolerance.
        error: f64,
    },
    /// It does not.
    Wrong {
        /// What differs, and by how much.
        reason: String,
    },
    /// It could not be compared.
    Unchecked {
        /// Why not.
        reason: String,
    },
}

/// What was found about the kernels of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Certificate {
    /// The device with its driver and the version of this crate.
    pub device: String,
    /// Each kernel with its constants, as [`subject`] writes them.
    pub verdicts: Vec<(String, Verdict)>,
}

/// A kernel and what it is specialised to: `lstm.forward_few BACK=0 SEQUENCES=4 …`.
pub fn subject(kernel: &Kernel, constants: &[Constant]) -> String {
    let mut words: Vec<String> = constants.iter().map(|(n, v)| format!("{n}={v}")).collect();
    words.sort();
    words.insert(0, kernel.name.to_owned());
    words.join(" ")
}

impl Certificate {
    /// The kernels that compute wrongly.
    pub fn wrong(&self) -> impl Iterator<Item = (&str, &str)> {
        self.verdicts
            .iter()
            .filter_map(|(subject, verdict)| match verdict {
                Verdict::Wrong { reason } => Some((subject.as_str(), reason.as_str())),
                _ => None,
            })
    }

    /// The kernels that could not be compared.
    pub fn unchecked(&self) -> impl Iterator<Item = (&str, &str)> {
        self.verdicts
            .iter()
            .filter_map(|(subject, verdict)| match verdict {
                Verdict::Unchecked { reason } => Some((subject.as_str(), reason.as_str())),
                _ => None,
            })
    }

    fn denied(&self) -> (Denied, u64) {
        denied(self.verdicts.iter().map(|(s, v)| (s.as_str(), v)))
    }
}

/// A line: how many kernels are right, and which are not.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wrong, unchecked) = (self.wrong().count(), self.unchecked().count());
        let right = self.verdicts.len() - wrong - unchecked;
        write!(f, "certificate: {right} kernels right")?;
        if unchecked > 0 {
            write!(f, ", {unchecked} not checked")?;
        }
        for (nth, (subject, reason)) in self.wrong().enumerate() {
            let before = if nth == 0 { ", wrong: " } else { "; " };
            write!(f, "{before}{subject} ({reason})")?;
        }
        Ok(())
    }
}

/// The kernels that some verdicts deny, and the rounds that they leave to loops.
fn denied<'a>(verdicts: impl Iterator<Item = (&'a str, &'a Verdict)>) -> (Denied, u64) {
    let mut all = (Denied::NONE, u64::MAX);
    for (subject, verdict) in verdicts {
        if !matches!(verdict, Verdict::Wrong { .. }) {
            continue;
        }
        let (name, constants) = subject.split_once(' ').unwrap_or((subject, ""));
        if constants == LONG {
            all.1 = FEW_ROUNDS;
        } else if let Some(kernel) = ALL.iter().find(|k| k.name == name) {
            all.0 = all.0.with(kernel);
        }
    }
    all
}

impl Certificates {
    /// Nothing found yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many verdicts there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// What is known of a device.
    pub fn of(&self, context: &Context) -> Certificate {
        let device = device(context);
        let own = self.known.iter().filter(|((of, _), _)| *of == device);
        let verdicts = own.map(|((_, subject), verdict)| (subject.clone(), verdict.clone()));
        Certificate {
            verdicts: verdicts.collect(),
            device,
        }
    }

    /// The device for plans without the kernels that compute wrongly on it: those known already, and what `plan` makes is
    /// compared, and made anew as long as something in it is wrong. A layer must be built on it, since its weights are packed
    /// for its choices.
    ///
    /// # Errors
    /// As `plan`; [`Error::Denied`] where nothing takes a wrong kernel's place; if the device fails or
    /// may not block.
    pub fn context(
        &mut self,
        context: &Context,
        plan: impl Fn(&Context) -> Result<Plan>,
    ) -> Result<Context> {
        let mut context = context.trusting(&self.of(context));
        for _ in 0..ATTEMPTS {
            let certificate = self.certify(&context, &plan(&context)?)?;
            if let Some((subject, _)) = certificate.wrong().find(|(s, _)| of_elsewhere(s)) {
                return Err(refused(&certificate, subject));
            }
            if certificate.wrong().next().is_none() {
                return Ok(context);
            }
            context = context.trusting(&certificate);
        }
        // Each attempt denies a kernel, and there are not that many for one purpose.
        let certificate = self.of(&context);
        let subject = certificate
            .wrong()
            .next()
            .map_or("", |(subject, _)| subject);
        Err(refused(&certificate, subject))
    }

    /// Compares the kernels of a plan that are not known yet, and says what is known of all of them.
    ///
    /// # Errors
    /// If the device fails, or may not block.
    pub fn certify(&mut self, context: &Context, plan: &Plan) -> Result<Certificate> {
        self.certify_as(context, plan, &|kernel| kernel)
    }

    /// The same with other kernels in the place of some.
    fn certify_as(
        &mut self,
        context: &Context,
        plan: &Plan,
        swap: Swap<'_>,
    ) -> Result<Certificate> {
        let device = device(context);
        let mut wanted: BTreeMap<String, &Step> = BTreeMap::new();
        for step in plan.steps() {
            wanted
                .entry(subject(step.kernel, &step.constants))
                .or_insert(step);
        }
        let unknown: Vec<&Step> = wanted
            .iter()
            .filter(|(subject, _)| {
                !self
                    .known
                    .contains_key(&(device.clone(), (*subject).clone()))
            })
            .map(|(_, step)| *step)
            .collect();
        for (subject, verdict) in inputs::verdicts(context, plan, &unknown, swap)? {
            self.known.insert((device.clone(), subject), verdict);
        }
        let mut subjects: Vec<String> = wanted.keys().cloned().collect();
        if context.target().loop_rounds > FEW_ROUNDS && context.is_gpu() {
            let mut kernels: Vec<&'static Kernel> = wanted.values().map(|s| s.kernel).collect();
            kernels.dedup_by_key(|k| k.name);
            for kernel in kernels {
                let key = (device.clone(), format!("{} {LONG}", kernel.name));
                if !self.known.contains_key(&key) {
                    let Some(verdict) = inputs::long_loops(context, kernel, swap)? else {
                        continue;
                    };
                    self.known.insert(key.clone(), verdict);
                }
                subjects.push(key.1);
            }
        }
        let verdict = |subject: String| {
            let verdict = self.known.get(&(device.clone(), subject.clone()))?;
            Some((subject, verdict.clone()))
        };
        let verdicts = subjects.into_iter().filter_map(verdict).collect();
        Ok(Certificate { device, verdicts })
    }
}

/// A kernel that is none of this crate's cannot be left out by its rules.
fn of_elsewhere(subject: &str) -> bool {
    let name = subject.split(' ').next().unwrap_or_default();
    ALL.iter().all(|k| k.name != name)
}

fn refused(certificate: &Certificate, subject: &str) -> Error {
    let reason = certificate.wrong().find(|(s, _)| *s == subject);
    Error::Device {
        op: format!("certifying {subject}"),
        reason: reason
            .map_or("it computes wrongly", |(_, reason)| reason)
            .to_owned(),
    }
}

/// What verdicts are filed under.
fn device(context: &Context) -> String {
    format!(
        "{}, wgrnn {}",
        context.identity(),
        env!("CARGO_PKG_VERSION")
    )
}

impl Context {
    /// Runs every kernel of a plan once on small inputs, as specialised there, and compares it with its reference. See
    /// [`certify`](crate::certify).
    ///
    /// # Errors
    /// If the device fails, or may not block.
    pub fn certify(&self, plan: &Plan) -> Result<Certificate> {
        Certificates::new().certify(self, plan)
    }

    /// The same device, for which plans have none of the kernels that a certificate found wrong.
    #[must_use]
    pub fn trusting(&self, certificate: &Certificate) -> Self {
        let (denied, loop_rounds) = certificate.denied();
        self.without(denied, loop_rounds)
    }
}
