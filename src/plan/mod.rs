//! The scheduler's data: a list of [`Step`]s over named buffers, built once and run by a backend.
//!
//! A [`Plan`] is plain data. It holds no device and no memory, so that the GPU backend can record
//! it, the CPU backend can run it, and `wgrnn plan` can print it. A [`Builder`] makes one; the
//! functions of [`crate::kernels`] each add one dispatch to it and [`sequence`] adds whole layers.

mod builder;
mod describe;
mod flow;
mod matrix;
mod memory;
mod names;
mod parts;
pub mod sequence;
mod target;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::kernel::{Access, Constant, Element, Kernel, Sample, Told};
use crate::rng::Rng;
use crate::tensor::Ids;

pub use builder::{Builder, Dispatch, Grid};
pub(crate) use builder::{MAX_GROUPS, MAX_STEPS};
pub use matrix::Matrix;
pub(crate) use matrix::injective;
pub use memory::Layout;
pub use parts::Portion;
pub(crate) use target::DISPATCH_STEPS;
#[cfg(feature = "gpu")]
pub(crate) use target::GROUPS;
pub use target::{Choice, Cooperative, Denied, DeviceKind, Force, Target};

/// The distance between two parameter blocks in [`Plan::params`]: the largest offset alignment
/// that a device may ask for.
pub const PARAMS_STRIDE: usize = 256;

/// A list of steps over named buffers. See the [module](self).
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) id: PlanId,
    pub(crate) name: String,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) steps: Vec<Step>,
    pub(crate) sections: Vec<Section>,
    pub(crate) params: Vec<u8>,
    pub(crate) choices: Vec<Choice>,
    pub(crate) contents: Vec<Contents>,
    pub(crate) needs: Needs,
    pub(crate) follows: Vec<Follows>,
    pub(crate) small: Vec<Small>,
}

/// What a plan's results depend on beside its steps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Needs {
    /// Steps that change what stands in a buffer: it must have been written before.
    pub(crate) before: HashSet<(usize, BufferId)>,
    /// Steps that do not read a buffer although they bind it for reading.
    pub(crate) unread: HashSet<(usize, BufferId)>,
    /// Buffers that some steps fill from others, and what they are filled from.
    pub(crate) packed: Vec<(BufferId, BufferId)>,
    /// Buffers of token ids.
    pub(crate) ids: BTreeMap<BufferId, Ids>,
}

/// A section that goes on from what another left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Follows {
    /// The section.
    pub(crate) section: &'static str,
    /// The one that must have run before it.
    pub(crate) after: &'static str,
    /// What both read, which may not be written in between.
    pub(crate) unchanged: Vec<BufferId>,
}

/// How to make a small plan with kernels of a plan, in the same specialisation, and numbers to run it on: the steps of a
/// layer over few sequences, or over as many.
#[derive(Clone)]
pub(crate) struct Small(Arc<Remake>);

type Remake = dyn Fn(Amount, &mut Rng) -> Result<Sample> + Send + Sync;

/// How much a small plan works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Two steps; else some more, of which one is neither the first nor the last.
    pub(crate) brief: bool,
    /// All sequences, on whose number specialisations depend; else few.
    pub(crate) all_sequences: bool,
}

impl Small {
    pub(crate) fn new(
        remake: impl Fn(Amount, &mut Rng) -> Result<Sample> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(remake))
    }

    /// The plan, and what is given to it.
    pub(crate) fn make(&self, amount: Amount, rng: &mut Rng) -> Result<Sample> {
        (self.0)(amount, rng)
    }
}

/// Nothing of the closure can be shown.
impl fmt::Debug for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Small")
    }
}

/// Numbers that a plan puts into a buffer before it runs, such as a table of its own steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) buffer: BufferId,
    pub(crate) start: usize,
    pub(crate) words: Vec<u32>,
}

/// The number of a buffer in its plan, and which plan that is: with another plan it is refused. The clone of a
/// plan has the same buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub(crate) usize, PlanId);

/// Tells plans apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PlanId(u64);

impl PlanId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
impl BufferId {
    /// A buffer of no plan.
    pub(crate) fn loose() -> Self {
        Self(0, PlanId(u64::MAX))
    }
}

/// A buffer that a plan uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Its name, unique in the plan.
    pub name: String,
    /// Its logical shape, row-major.
    pub shape: Vec<usize>,
    /// What it holds.
    pub element: Element,
    /// What it is for.
    pub role: Role,
}

/// The most elements of a buffer: twice as many bytes, and sums of some such numbers, can be said.
const MOST_ELEMENTS: usize = usize::MAX / 64;

impl Buffer {
    /// Refuses more elements than can be counted.
    pub(crate) fn check_size(&self) -> Result<()> {
        if self.len() <= MOST_ELEMENTS {
            return Ok(());
        }
        Err(Error::Limit {
            what: format!("elements of buffer '{}' {:?}", self.name, self.shape),
            needed: self.len() as u64,
            available: MOST_ELEMENTS as u64,
        })
    }

    /// The number of elements; `usize::MAX` if there are more, in which case no plan takes the buffer.
    pub fn len(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        let all = self.shape.iter();
        all.fold(1, |n: usize, &size| n.saturating_mul(size))
    }

    /// Bytes of GPU memory.
    pub fn bytes(&self) -> usize {
        self.element.bytes(self.len().min(MOST_ELEMENTS))
    }

    /// True if the buffer holds no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a buffer is for, which decides how long its contents live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Written by the caller before a run.
    Input,
    /// Trained parameters.
    Weight,
    /// Read by the caller after a run.
    Output,
    /// Gradients of inputs or weights.
    Gradient,
    /// Carried from one run to the next: recurrent state, an optimizer's moments, counters.
    State,
    /// Kept by the forward pass for the backward pass.
    Saved,
    /// Dead after the section that wrote it; its memory may be shared.
    Scratch,
}

impl Role {
    /// Every role, in the order in which a plan prints them.
    pub const ALL: [Self; 7] = [
        Self::Input,
        Self::Weight,
        Self::Output,
        Self::Gradient,
        Self::State,
        Self::Saved,
        Self::Scratch,
    ];
}

/// One dispatch.
#[derive(Debug, Clone)]
pub struct Step {
    /// Which kernel.
    pub kernel: &'static Kernel,
    /// The constants it is specialised to.
    pub constants: Vec<Constant>,
    /// Its buffers, in the order of the kernel's bindings.
    pub bindings: Vec<BufferId>,
    /// Where its parameters stand in [`Plan::params`].
    pub params: Range<usize>,
    /// Workgroups in x, y and z; with a 0 there is nothing to do.
    pub grid: [u32; 3],
    /// What it costs.
    pub cost: Cost,
}

/// What a step costs, counted from its equation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add is two, a transcendental function is one.
    pub flops: u64,
    /// Bytes that must be read or written at least once.
    pub bytes: u64,
    /// The longest sum behind one result: the length in the tolerance's formula.
    pub length: usize,
}

impl Cost {
    fn total(steps: &[Step]) -> Self {
        steps.iter().fold(Self::default(), |sum, step| Self {
            flops: sum.flops.saturating_add(step.cost.flops),
            bytes: sum.bytes.saturating_add(step.cost.bytes),
            length: sum.length.max(step.cost.length),
        })
    }
}

/// A named run of steps that is recorded as a whole, such as `forward` or `backward`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Its steps.
    pub steps: Range<usize>,
}

impl Plan {
    /// The plan's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every buffer; a [`BufferId`] counts from 0 in this order.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Every step of every section.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The sections in the order of their steps.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The parameter blocks of all steps: what the GPU backend uploads once.
    pub fn params(&self) -> &[u8] {
        &self.params
    }

    /// What was chosen while the plan was made, in the order in which it was met first.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// Every buffer with its id.
    pub fn ids(&self) -> impl Iterator<Item = (BufferId, &Buffer)> {
        self.buffers
            .iter()
            .enumerate()
            .map(|(i, b)| (BufferId(i, self.id), b))
    }

    /// The buffer with this id.
    ///
    /// # Errors
    /// If the id is of another plan, or the buffer has more elements than any device.
    pub fn buffer(&self, id: BufferId) -> Result<&Buffer> {
        let buffer = self.own("Plan::buffer", "id", id)?;
        buffer.check_size()?;
        Ok(buffer)
    }

    /// The buffer with an id that must be of this plan.
    pub(crate) fn own(&self, op: &'static str, arg: &str, id: BufferId) -> Result<&Buffer> {
        let own = self.buffers.get(id.0).filter(|_| id.1 == self.id);
        own.ok_or_else(|| {
            let expected = format!("a buffer of the plan '{}'", self.name);
            let got = format!("buffer {} of another plan", id.0);
            Error::value(op, arg, expected, got)
        })
    }

    /// Some of the steps.
    fn some(&self, op: &'static str, steps: Range<usize>) -> Result<&[Step]> {
        self.steps.get(steps.clone()).ok_or_else(|| {
            let expected = format!("a range within the plan's {}", self.steps.len());
            Error::value(op, "steps", expected, format!("{steps:?}"))
        })
    }

    /// The steps of a section.
    ///
    /// # Errors
    /// If the plan has no such section.
    pub fn section(&self, name: &str) -> Result<Range<usize>> {
        self.sections
            .iter()
            .find(|s| s.name == name)
            .map(|s| s.steps.clone())
            .ok_or_else(|| {
                let names: Vec<_> = self.sections.iter().map(|s| s.name).collect();
                Error::value("Plan::section", "name", format!("one of {names:?}"), name)
            })
    }

    /// The plan with one of its sections alone.
    pub(crate) fn only(&self, section: &str) -> Result<Self> {
        let steps = self.section(section)?;
        let of = |s: &&Section| s.name == section;
        let sections = self.sections.iter().filter(of).map(|s| Section {
            name: s.name,
            steps: 0..steps.len(),
        });
        Ok(Self {
            sections: sections.collect(),
            steps: self.steps[steps.clone()].to_vec(),
            contents: Vec::new(),
            needs: Needs::default(),
            follows: Vec::new(),
            ..self.clone()
        })
    }

    /// The buffer with this name.
    ///
    /// # Errors
    /// If the plan has no such buffer.
    pub fn find(&self, name: &str) -> Result<BufferId> {
        self.buffers
            .iter()
            .position(|b| b.name == name)
            .map(|i| BufferId(i, self.id))
            .ok_or_else(|| {
                let all = names::listed(self.buffers.iter().map(|b| b.name.as_str()), name);
                Error::value(
                    "Plan::find",
                    "name",
                    format!("one of {all}"),
                    format!("'{name}'"),
                )
            })
    }

    /// The most rounds that an invocation of a step makes through its loops; see [`Target::loop_rounds`].
    ///
    /// # Errors
    /// If the plan has no such step, or its parameters are not those of its kernel.
    pub fn rounds(&self, step: usize) -> Result<u64> {
        let Some(of) = self.steps.get(step) else {
            let expected = format!("below the plan's {}", self.steps.len());
            return Err(Error::value("Plan::rounds", "step", expected, step));
        };
        (of.kernel.rounds)(&self.told(of))
    }

    /// What a step tells its kernel.
    pub(crate) fn told<'a>(&'a self, step: &'a Step) -> Told<'a> {
        Told {
            kernel: step.kernel,
            params: &self.params[step.params.clone()],
            constants: &step.constants,
        }
    }

    /// Total cost of some steps; `length` is the longest.
    ///
    /// # Errors
    /// If the plan has not so many steps.
    pub fn cost(&self, steps: Range<usize>) -> Result<Cost> {
        Ok(Cost::total(self.some("Plan::cost", steps)?))
    }

    /// How many of the steps need a barrier before them: those that touch a buffer which an
    /// earlier step, since the last barrier, wrote, or that write one which it read.
    ///
    /// # Errors
    /// If the plan has not so many steps.
    pub fn barriers(&self, steps: Range<usize>) -> Result<usize> {
        // Whether a buffer was written.
        let mut touched: HashMap<BufferId, bool> = HashMap::new();
        let mut count = 0;
        for step in self.some("Plan::barriers", steps)? {
            let uses = || {
                let access = step.kernel.bindings.iter();
                step.bindings
                    .iter()
                    .zip(access)
                    .map(|(&id, b)| (id, b.access != Access::Read))
            };
            if uses().any(|(id, w)| touched.get(&id).is_some_and(|&written| w || written)) {
                count += 1;
                touched.clear();
            }
            for (id, writes) in uses() {
                *touched.entry(id).or_default() |= writes;
            }
        }
        Ok(count)
    }
}
