//! What a plan is made for: a kind of device with its limits and features, and what the caller wants
//! to be chosen in any case.
//!
//! The rules that choose kernels read this and sizes alone, so that a plan can be made and printed
//! for a device that is not here.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use super::sequence::{Levels, StepForm, Strategy};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::kernels::ALL;
use crate::kernels::gemm::Form;

/// What a plan is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// What kind of device.
    pub kind: DeviceKind,
    /// The most invocations in a workgroup.
    pub invocations: u32,
    /// The most bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// The most storage buffers that a kernel may bind.
    pub storage_buffers: u32,
    /// The most bytes of a buffer that a kernel binds.
    pub buffer_bytes: u64,
    /// The fewest invocations of a subgroup, where kernels may use subgroup operations; else 0.
    pub subgroup_size: u32,
    /// And the most.
    pub subgroup_most: u32,
    /// Whether kernels may use 16-bit floats.
    pub f16: bool,
    /// The cooperative matrices that kernels may use.
    pub cooperative: Option<Cooperative>,
    /// About how many workgroups keep it busy. No API tells; rules that cut a step into tiles assume a
    /// large GPU.
    pub groups: usize,
    /// The most steps of a level in one dispatch, so that none runs into a driver's time-out.
    pub dispatch_steps: usize,
    /// The most rounds that an invocation may make through its loops, all of them together. Mesa's compiler for the CPU
    /// (llvmpipe) ends them behind 65,535, without a word; other devices have no such bound.
    pub loop_rounds: u64,
    /// Kernels that compute wrongly there, which no plan has: others take their places, or it is refused. See
    /// [`certify`](crate::certify).
    pub denied: Denied,
    /// What is chosen whatever the rules say.
    pub force: Force,
}

/// Some of the kernels of this crate ([`ALL`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Denied(u128);

/// Each has a bit.
const _: () = assert!(ALL.len() <= 128);

impl Denied {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// With one more of the crate's kernels; a kernel from elsewhere is none of them.
    #[must_use]
    pub fn with(self, kernel: &'static Kernel) -> Self {
        Self(self.0 | Self::bit(kernel))
    }

    /// Whether a kernel is among them.
    pub fn has(self, kernel: &'static Kernel) -> bool {
        self.0 & Self::bit(kernel) != 0
    }

    /// True if none is.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn bit(kernel: &'static Kernel) -> u128 {
        let place = ALL.iter().position(|k| std::ptr::eq(*k, kernel));
        place.map_or(0, |place| 1 << place)
    }
}

/// Square matrices of 16-bit floats with sums in `f32` that a subgroup multiplies together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cooperative {
    /// Their rows and columns: 8 or 16.
    pub size: u32,
    /// The most invocations of a subgroup.
    pub threads: u32,
}

/// Matrices of 8 x 8, and subgroups of 32.
impl Default for Cooperative {
    fn default() -> Self {
        Self {
            size: 8,
            threads: 32,
        }
    }
}

/// A kind of device, as far as the choice of kernels goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// This crate's CPU backend.
    Cpu,
    /// An adapter that runs shaders on the CPU.
    Software,
    /// A GPU, or an adapter that does not say what it is.
    Gpu,
}

impl DeviceKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Software, Self::Gpu];

    /// Its name, as a tool writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Software => "software",
            Self::Gpu => "gpu",
        }
    }
}

impl Display for DeviceKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Choices that a caller makes instead of the rules. Each is used wherever it can be; where it cannot,
/// the rules choose and the plan says so ([`Plan::choices`](super::Plan::choices)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Force {
    /// The form of matrix products.
    pub gemm: Option<Form>,
    /// How the steps of a layer are run.
    pub strategy: Option<Strategy>,
    /// The form of steps.
    pub step: Option<StepForm>,
    /// How the levels of a layer are run.
    pub levels: Option<Levels>,
}

/// One for each multiprocessor of a large GPU.
pub(crate) const GROUPS: usize = 128;
/// A step of a layer that fits a workgroup takes some microseconds, and drivers give a dispatch two
/// seconds.
pub(crate) const DISPATCH_STEPS: usize = 1 << 14;
/// `LP_MAX_TGSI_LOOP_ITERATIONS` of Mesa, which one counter of an invocation counts for all of its loops.
const SOFTWARE_ROUNDS: u64 = 65_535;

impl Force {
    /// Every way to change one choice of others.
    pub(crate) fn changes() -> Vec<Box<dyn Fn(Self) -> Self>> {
        let mut changes: Vec<Box<dyn Fn(Self) -> Self>> = Vec::new();
        for strategy in Strategy::ALL {
            changes.push(Box::new(move |force| Self {
                strategy: Some(strategy),
                ..force
            }));
        }
        for form in StepForm::ALL {
            changes.push(Box::new(move |force| Self {
                step: Some(form),
                ..force
            }));
        }
        for levels in Levels::ALL {
            changes.push(Box::new(move |force| Self {
                levels: Some(levels),
                ..force
            }));
        }
        // Cooperative matrices round what is multiplied: that is for the caller to choose.
        let exact = |form: &Form| *form != Form::Cooperative;
        for form in Form::ALL.into_iter().filter(exact) {
            changes.push(Box::new(move |force| Self {
                gemm: Some(form),
                ..force
            }));
        }
        changes
    }
}

/// `strategy=sequence product=tile64`, or `rules` where nothing is forced.
impl Display for Force {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = [
            ("strategy", self.strategy.map(Strategy::name)),
            ("step", self.step.map(StepForm::name)),
            ("levels", self.levels.map(Levels::name)),
            ("product", self.gemm.map(Form::name)),
        ]
        .into_iter()
        .filter_map(|(what, name)| Some(format!("{what}={}", name?)))
        .collect();
        match words.as_slice() {
            [] => f.write_str("rules"),
            words => f.write_str(&words.join(" ")),
        }
    }
}

/// The text that [`Display`] writes.
impl FromStr for Force {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut force = Self::default();
        for word in text.split_whitespace().filter(|w| *w != "rules") {
            let wrong = || Error::value("Force", "choice", "what=name, both known", word);
            let (what, name) = word.split_once('=').ok_or_else(wrong)?;
            let known = match what {
                "strategy" => {
                    force.strategy = Strategy::ALL.into_iter().find(|s| s.name() == name);
                    force.strategy.is_some()
                }
                "step" => {
                    force.step = StepForm::ALL.into_iter().find(|f| f.name() == name);
                    force.step.is_some()
                }
                "levels" => {
                    force.levels = Levels::ALL.into_iter().find(|d| d.name() == name);
                    force.levels.is_some()
                }
                "product" => {
                    force.gemm = Form::named(name);
                    force.gemm.is_some()
                }
                _ => false,
            };
            if !known {
                return Err(wrong());
            }
        }
        Ok(force)
    }
}

impl DeviceKind {
    /// The most rounds of an invocation's loops on a device of this kind.
    pub(crate) const fn loop_rounds(self) -> u64 {
        match self {
            Self::Software => SOFTWARE_ROUNDS,
            Self::Cpu | Self::Gpu => u64::MAX,
        }
    }
}

impl Target {
    /// A device of this kind with the limits that every WebGPU device has, and no feature; the CPU backend has
    /// 16-bit floats, and buffers of any size.
    pub const fn portable(kind: DeviceKind) -> Self {
        Self {
            kind,
            invocations: 256,
            workgroup_memory: 16 << 10,
            storage_buffers: 8,
            buffer_bytes: match kind {
                DeviceKind::Cpu => u64::MAX,
                _ => 128 << 20,
            },
            subgroup_size: 0,
            subgroup_most: 0,
            f16: matches!(kind, DeviceKind::Cpu),
            cooperative: None,
            groups: GROUPS,
            dispatch_steps: DISPATCH_STEPS,
            loop_rounds: kind.loop_rounds(),
            denied: Denied::NONE,
            force: Force {
                gemm: None,
                strategy: None,
                step: None,
                levels: None,
            },
        }
    }
}

/// A portable GPU.
impl Default for Target {
    fn default() -> Self {
        Self::portable(DeviceKind::Gpu)
    }
}

/// Something that was chosen while a plan was made, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What the choice was for.
    pub what: String,
    /// What was chosen.
    pub chosen: &'static str,
    /// The rule, or why a forced choice could not be used.
    pub why: String,
    /// How often it was met.
    pub count: usize,
}
