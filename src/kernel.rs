//! What a kernel is: one descriptor with its WGSL, its bindings, its CPU twin and its test inputs.
//!
//! The text of a shader is put together by [`compose`](fn@compose): see [`crate::compose`].

use std::fmt;

pub use crate::compose::compose;
use crate::error::{Error, Result};
use crate::plan::BufferId;
use crate::plan::Plan;
use crate::real::Real;
use crate::rng::Rng;

/// The most storage buffers one kernel binds: what every WebGPU device offers.
pub const MAX_BINDINGS: usize = 8;

/// A kernel, described once: everything that records, checks, tests and times it reads this.
pub struct Kernel {
    /// `stem.entry`, such as `lstm.forward`: also the pipeline's label and the test's name.
    pub name: &'static str,
    /// The shader's text before [`compose`](fn@compose).
    pub wgsl: &'static str,
    /// The entry point in `wgsl`.
    pub entry: &'static str,
    /// Storage buffers in the order of `@binding(1)`, `@binding(2)`, …
    pub bindings: &'static [Binding],
    /// Bytes of the parameter struct at `@binding(0)`.
    pub params_size: usize,
    /// Invocations per workgroup.
    pub workgroup_size: u32,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// The most rounds that an invocation makes through all loops of the shader together, of a dispatch with these
    /// parameters and constants; each loop counts one more, for the test that ends it. Devices that bound them
    /// ([`Target::loop_rounds`](crate::plan::Target::loop_rounds)) are refused what is beyond. [`no_loops`] for a shader
    /// without.
    pub rounds: fn(&Told<'_>) -> Result<u64>,
    /// The same computation on the CPU.
    pub twin: Twin,
    /// Makes a one-step plan and its data for tests and benchmarks.
    pub sample: fn(size: [usize; 3], rng: &mut Rng) -> Result<Sample>,
}

impl Kernel {
    /// Invocations per workgroup with these constants: `THREADS`, where the kernel has it.
    pub fn threads(&self, constants: &[Constant]) -> u32 {
        of(constants, "THREADS").unwrap_or(self.workgroup_size)
    }

    /// True if it needs a device with subgroup operations: its text sets `SUBGROUPS`.
    pub fn uses_subgroups(&self) -> bool {
        self.wgsl.contains("const SUBGROUPS: u32 = 1u;")
    }

    /// True if it needs a device with cooperative matrices.
    pub fn uses_cooperative_matrices(&self) -> bool {
        self.wgsl.contains("enable wgpu_cooperative_matrix;")
    }

    /// Bytes of workgroup memory with these constants: `WORKGROUP_FLOATS`, where the kernel has it.
    pub fn shared_bytes(&self, constants: &[Constant]) -> u32 {
        of(constants, "WORKGROUP_FLOATS").map_or(self.workgroup_memory, |floats| 4 * floats)
    }
}

/// The rounds of a shader without loops, or with loops that the text writes out.
///
/// # Errors
/// None.
pub fn no_loops(_: &Told<'_>) -> Result<u64> {
    Ok(0)
}

fn of(constants: &[Constant], name: &str) -> Option<u32> {
    let found = constants.iter().find(|(n, _)| *n == name);
    found.map(|(_, value)| *value)
}

/// Its name alone, not its text.
impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

/// One storage buffer of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name in the shader.
    pub name: &'static str,
    /// What the kernel does with it.
    pub access: Access,
    /// What it holds.
    pub element: Element,
    /// The constant that is 1 where its floats are [`Element::Half`], for a kernel that takes both.
    pub half: Option<&'static str>,
    /// Whether the shader then declares them as `f16`, for which a device needs the feature, rather than as
    /// words of two that it unpacks.
    pub f16: bool,
}

impl Binding {
    /// A buffer of floats that is read only.
    pub const fn read(name: &'static str) -> Self {
        Self {
            name,
            access: Access::Read,
            element: Element::Float,
            half: None,
            f16: false,
        }
    }

    /// A buffer of floats whose old contents matter and which is changed.
    pub const fn update(name: &'static str) -> Self {
        Self {
            name,
            access: Access::ReadWrite,
            element: Element::Float,
            half: None,
            f16: false,
        }
    }

    /// A buffer of floats that is written without being read.
    pub const fn write(name: &'static str) -> Self {
        Self {
            name,
            access: Access::Write,
            element: Element::Float,
            half: None,
            f16: false,
        }
    }

    /// The same binding over unsigned integers.
    pub const fn uint(self) -> Self {
        Self {
            element: Element::Uint,
            ..self
        }
    }

    /// The same binding, which may also be over 16-bit floats: a plan then sets the constant to 1, and
    /// to 0 over floats.
    pub const fn or_half(self, constant: &'static str) -> Self {
        Self {
            half: Some(constant),
            ..self
        }
    }

    /// The same where the shader declares them as `f16`, so that it can write one without the other.
    pub const fn or_f16(self, constant: &'static str) -> Self {
        Self {
            f16: true,
            ..self.or_half(constant)
        }
    }

    /// Whether a buffer of this element may be bound.
    pub fn takes(&self, element: Element) -> bool {
        element == self.element || (element == Element::Half && self.half.is_some())
    }
}

/// What a kernel does with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only reads it.
    Read,
    /// Reads what was there and changes some of it.
    ReadWrite,
    /// Writes it without looking at what was there; tests fill it with NaN first.
    Write,
}

/// What a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// `f32` on a GPU, the context's own type on the CPU.
    Float,
    /// 16-bit floats: on a GPU two to a word, the first in the lower half; on the CPU the context's own
    /// type with numbers that were rounded to them.
    Half,
    /// `u32`: token ids, counters.
    Uint,
}

impl Element {
    /// Bytes of so many elements on a GPU: whole words.
    pub const fn bytes(self, len: usize) -> usize {
        match self {
            Self::Float | Self::Uint => len.saturating_mul(4),
            Self::Half => len.div_ceil(2).saturating_mul(4),
        }
    }
}

/// The CPU's version of a kernel, in both precisions.
#[derive(Debug, Clone, Copy)]
pub struct Twin {
    /// In the CPU backend's own precision.
    pub f32: fn(&mut Args<'_, f32>) -> Result<()>,
    /// In the oracle's.
    pub f64: fn(&mut Args<'_, f64>) -> Result<()>,
}

/// Names the two instances of a twin that is generic over [`Real`].
#[macro_export]
macro_rules! twin {
    ($f:ident) => {
        $crate::kernel::Twin {
            f32: $f::<f32>,
            f64: $f::<f64>,
        }
    };
}

/// One buffer as a twin sees it.
#[derive(Debug, Default)]
pub enum Slot<'a, R> {
    /// Floats to read.
    Read(&'a [R]),
    /// Floats to change.
    Write(&'a mut [R]),
    /// Integers to read.
    ReadUint(&'a [u32]),
    /// Integers to change.
    WriteUint(&'a mut [u32]),
    /// Not bound, or already taken.
    #[default]
    Taken,
}

/// What a dispatch tells its kernel: parameters and constants, as the shader has them.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    pub(crate) kernel: &'static Kernel,
    pub(crate) params: &'a [u8],
    pub(crate) constants: &'a [Constant],
}

/// A named constant of a shader and the value it is specialised to.
pub type Constant = (&'static str, u32);

impl Told<'_> {
    /// The parameter struct.
    ///
    /// # Errors
    /// If `P` is not as long as the kernel's parameters.
    pub fn params<P: bytemuck::AnyBitPattern>(&self) -> Result<P> {
        bytemuck::try_pod_read_unaligned(self.params).map_err(|e| Error::Compose {
            kernel: self.kernel.name.to_owned(),
            reason: format!("its parameters are {} bytes: {e}", self.params.len()),
        })
    }

    /// The value of a specialised constant.
    ///
    /// # Errors
    /// If the step does not set it.
    pub fn constant(&self, name: &str) -> Result<u32> {
        of(self.constants, name).ok_or_else(|| Error::Compose {
            kernel: self.kernel.name.to_owned(),
            reason: format!("the step sets no constant {name}"),
        })
    }

    /// Refuses a dispatch in which an invocation's loops would make more rounds than a device lets them.
    pub(crate) fn check_rounds(&self, available: u64) -> Result<()> {
        let needed = (self.kernel.rounds)(self)?;
        if needed > available {
            return Err(Error::Limit {
                what: format!("{}: rounds of an invocation's loops", self.kernel.name),
                needed,
                available,
            });
        }
        Ok(())
    }
}

/// What a twin is called with: parameters, constants and buffers, as the shader has them.
#[derive(Debug)]
pub struct Args<'a, R> {
    pub(crate) told: Told<'a>,
    pub(crate) slots: [Slot<'a, R>; MAX_BINDINGS],
}

impl<'a, R: Real> Args<'a, R> {
    /// The parameter struct.
    ///
    /// # Errors
    /// If `P` is not as long as the kernel's parameters.
    pub fn params<P: bytemuck::AnyBitPattern>(&self) -> Result<P> {
        self.told.params()
    }

    /// The value of a specialised constant.
    ///
    /// # Errors
    /// If the step does not set it.
    pub fn constant(&self, name: &str) -> Result<u32> {
        self.told.constant(name)
    }

    /// Floats that the kernel only reads. Each binding can be taken once.
    ///
    /// # Errors
    /// If the binding is of another kind or was taken before.
    pub fn read(&mut self, binding: usize) -> Result<&'a [R]> {
        match self.take(binding) {
            Slot::Read(s) => Ok(s),
            other => Err(self.mismatch(binding, &other)),
        }
    }

    /// Floats that the kernel changes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&mut self, binding: usize) -> Result<&'a mut [R]> {
        match self.take(binding) {
            Slot::Write(s) => Ok(s),
            other => Err(self.mismatch(binding, &other)),
        }
    }

    /// Integers that the kernel only reads.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_uint(&mut self, binding: usize) -> Result<&'a [u32]> {
        match self.take(binding) {
            Slot::ReadUint(s) => Ok(s),
            other => Err(self.mismatch(binding, &other)),
        }
    }

    /// Integers that the kernel changes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write_uint(&mut self, binding: usize) -> Result<&'a mut [u32]> {
        match self.take(binding) {
            Slot::WriteUint(s) => Ok(s),
            other => Err(self.mismatch(binding, &other)),
        }
    }

    fn take(&mut self, binding: usize) -> Slot<'a, R> {
        self.slots
            .get_mut(binding)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn mismatch(&self, binding: usize, got: &Slot<'a, R>) -> Error {
        let got = match got {
            Slot::Read(_) => "floats to read",
            Slot::Write(_) => "floats to write",
            Slot::ReadUint(_) => "integers to read",
            Slot::WriteUint(_) => "integers to write",
            Slot::Taken => "nothing (taken before, or not bound)",
        };
        Error::Compose {
            kernel: self.told.kernel.name.to_owned(),
            reason: format!("its CPU twin asked for binding {binding} and found {got}"),
        }
    }
}

/// A one-step plan with the contents of its buffers: the input of a test or a benchmark.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The plan; its only section is the kernel's step.
    pub plan: Plan,
    /// What to write into its buffers before it runs.
    pub data: Vec<(BufferId, Data)>,
}

/// The contents of a buffer.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// For [`Element::Float`] and [`Element::Half`].
    Float(Vec<f32>),
    /// For [`Element::Uint`].
    Uint(Vec<u32>),
}
