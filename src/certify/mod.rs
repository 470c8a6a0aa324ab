//! Certificates: which kernels of a plan compute right on a device, found before their numbers are used.
//!
//! A driver may compute wrongly without a word. [`Certificates::context`] runs every kernel of a plan, specialised as in the
//! plan, once on small inputs and compares it with its reference on the CPU in double precision; what is wrong is not used
//! by plans for the context that comes back: another kernel takes its place and the plan's choices say so
//! ([`Plan::choices`]), or the plan is refused ([`Error::Denied`]). The kernels by which a layer packs its weights before
//! calls of the plan are among them, and so are kernels of a host's own cells, which are refused where they are wrong.
//!
//! Where a device is not known to end loops ([`Target::loop_rounds`](crate::plan::Target::loop_rounds)), kernels are also run
//! beyond 65,535 rounds where numbers of some 100 MB bring them there: products, sums, gradients of embeddings, losses,
//! layers over as many steps, streams of as many inputs. Not so loops over the units of a layer, of which 65,536 have
//! weights of 16 GiB.
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
//! What was found is kept in a file where a caller gives a path, by device, driver and version of this crate with a hash of its
//! shaders; kernels of a host's by a hash of their own texts. For Metal, which names no driver, the system's build stands. Where
//! neither is known nothing is kept ([`Certificates::keeps`]), since another driver would be taken for the same. What could
//! not be compared, such as steps of a layer so large that two of them take more than 2 GFLOP, is said and not kept.

mod file;
mod inputs;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::OnceLock;

use crate::compose::SHARED;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernel::{Constant, Kernel};
use crate::kernels::ALL;
use crate::plan::{Denied, Plan};

use inputs::{Swap, Wanted};

/// How often a plan may be made anew without what was found wrong in it.
const ATTEMPTS: usize = 8;
/// What a device is taken to end loops behind that ends them too early.
const FEW_ROUNDS: u64 = 65_535;
/// Where the verdict on a kernel's long loops is kept, in the place of its constants.
const LONG: &str = "long loops";
/// Stands before the hash of the text of a host's kernel, in no name of this crate's kernels or constants.
const TEXT: char = '@';

/// What was found about kernels on devices. See the [module](self).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Certificates {
    known: BTreeMap<Key, Verdict>,
    /// Devices of which the driver is not known: what was found there does not outlast the process.
    fleeting: BTreeSet<String>,
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

/// A kernel and what it is specialised to: `lstm.forward_few BACK=0 SEQUENCES=4 …`. Of a kernel that is none of this
/// crate's, whatever its name, also a hash of its text.
pub fn subject(kernel: &Kernel, constants: &[Constant]) -> String {
    let mut words: Vec<String> = constants.iter().map(|(n, v)| format!("{n}={v}")).collect();
    words.sort();
    words.insert(0, kernel.name.to_owned());
    if !is_own(kernel) {
        let hash = hash([kernel.wgsl, kernel.entry]);
        words.push(format!("{TEXT}{hash:016x}"));
    }
    words.join(" ")
}

fn is_own(kernel: &Kernel) -> bool {
    ALL.iter().any(|own| std::ptr::eq(*own, kernel))
}

/// The kernel of this crate that a subject is of, and what stands behind its name; nothing for a host's kernel.
fn of_own(subject: &str) -> Option<(&'static Kernel, &str)> {
    let (name, rest) = subject.split_once(' ').unwrap_or((subject, ""));
    let kernel = ALL.iter().find(|k| k.name == name)?;
    (!rest.contains(TEXT)).then_some((*kernel, rest))
}

/// FNV-1a.
fn hash<'a>(texts: impl IntoIterator<Item = &'a str>) -> u64 {
    // So that what ends one text begins no other.
    let bytes = texts.into_iter().flat_map(|t| t.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
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
        match of_own(subject) {
            Some((_, LONG)) => all.1 = FEW_ROUNDS,
            Some((kernel, _)) => all.0 = all.0.with(kernel),
            None => {}
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

    /// Whether what is found on a device is kept in files: not where neither the API nor the system says what drives it.
    pub fn keeps(context: &Context) -> bool {
        context.has_known_driver()
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
        self.context_for_all(context, |context| Ok(vec![plan(context)?]))
    }

    /// [`Self::context`] for several plans, such as those that train a model, validate it and draw from it.
    ///
    /// # Errors
    /// As [`Self::context`].
    pub fn context_for_all(
        &mut self,
        context: &Context,
        plans: impl Fn(&Context) -> Result<Vec<Plan>>,
    ) -> Result<Context> {
        let mut context = context.trusting(&self.of(context));
        for _ in 0..ATTEMPTS {
            let mut is_right = true;
            for plan in plans(&context)? {
                let certificate = self.certify(&context, &plan)?;
                let mut wrong = certificate.wrong();
                if let Some((subject, _)) = wrong.find(|(s, _)| of_own(s).is_none()) {
                    return Err(refused(&certificate, subject));
                }
                is_right &= certificate.wrong().next().is_none();
            }
            if is_right {
                return Ok(context);
            }
            context = context.trusting(&self.of(&context));
        }
        // Each attempt denies a kernel, and there are not that many for one purpose.
        let certificate = self.of(&context);
        let subject = certificate
            .wrong()
            .next()
            .map_or("", |(subject, _)| subject);
        Err(refused(&certificate, subject))
    }

    /// Compares the kernels of a plan that are not known yet, and those that pack its weights, and says what is known of all
    /// of them.
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
        if !Self::keeps(context) {
            self.fleeting.insert(device.clone());
        }
        let least = inputs::least(plan)?;
        let small: Vec<Plan> = least.iter().map(|sample| sample.plan.clone()).collect();
        let packing = small
            .iter()
            .flat_map(|plan| inputs::packing(plan).iter().map(move |step| (plan, step)));
        let own = plan.steps().iter().map(|step| (plan, step));
        let mut wanted: BTreeMap<String, Wanted<'_>> = BTreeMap::new();
        for (plan, step) in own.chain(packing) {
            let subject = subject(step.kernel, &step.constants);
            wanted.entry(subject).or_insert(Wanted { plan, step });
        }
        let mut unknown = wanted.clone();
        unknown.retain(|s, _| !self.known.contains_key(&(device.clone(), s.clone())));
        if !unknown.is_empty() {
            for (subject, verdict) in inputs::verdicts(context, plan, least, &unknown, swap)? {
                self.known.insert((device.clone(), subject), verdict);
            }
        }
        let mut subjects: Vec<String> = wanted.keys().cloned().collect();
        if context.target().loop_rounds > FEW_ROUNDS && context.is_gpu() {
            let kernels = wanted.values().map(|w| w.step.kernel);
            let mut kernels: Vec<&'static Kernel> = kernels.filter(|k| is_own(k)).collect();
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

/// What refuses a kernel of a host's, which this crate's rules cannot leave out, or one that nothing takes the place of.
fn refused(certificate: &Certificate, subject: &str) -> Error {
    let reason = certificate.wrong().find(|(s, _)| *s == subject);
    Error::Device {
        op: format!("certifying {subject}"),
        reason: reason
            .map_or("it computes wrongly", |(_, reason)| reason)
            .to_owned(),
    }
}

/// What verdicts are filed under: a shader that was edited is another.
fn device(context: &Context) -> String {
    static SHADERS: OnceLock<u64> = OnceLock::new();
    let shaders = SHADERS.get_or_init(|| {
        let shared = SHARED.iter().map(|(_, text)| *text);
        hash(shared.chain(ALL.iter().flat_map(|k| [k.wgsl, k.entry])))
    });
    format!(
        "{}, wgrnn {} {shaders:016x}",
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
