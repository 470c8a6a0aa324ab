//! What a plan is made for: a kind of device with its limits and features, and what the caller wants
//! to be chosen in any case.
//!
//! The rules that choose kernels read this and sizes alone, so that a plan can be made and printed
//! for a device that is not here.

use std::fmt::{self, Display, Formatter};

use super::sequence::Strategy;
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
    /// Whether kernels may use subgroup operations.
    pub subgroups: bool,
    /// Whether kernels may use 16-bit floats.
    pub f16: bool,
    /// The most steps of a level in one dispatch, so that none runs into a driver's time-out.
    pub dispatch_steps: usize,
    /// What is chosen whatever the rules say.
    pub force: Force,
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
}

/// A step of a layer that fits a workgroup takes some microseconds, and drivers give a dispatch two
/// seconds.
pub(crate) const DISPATCH_STEPS: usize = 1 << 14;

impl Target {
    /// A device of this kind with the limits that every WebGPU device has, and no feature.
    pub const fn portable(kind: DeviceKind) -> Self {
        Self {
            kind,
            invocations: 256,
            workgroup_memory: 16 << 10,
            storage_buffers: 8,
            subgroups: false,
            f16: false,
            dispatch_steps: DISPATCH_STEPS,
            force: Force {
                gemm: None,
                strategy: None,
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
