//! A plan on the CPU: every step calls its kernel's twin on the locked memory of its buffers.

use std::cell::{Ref, RefMut};
use std::ops::Range;

use crate::context::Dtype;
use crate::error::{Error, Result};
use crate::host::Cells;
use crate::kernel::{Access, Args, Element, MAX_BINDINGS, Slot, Twin};
use crate::memory::Held;
use crate::plan::{Cost, Plan, Step};
use crate::real::Real;
use crate::tensor::Tensor;
use crate::threads;

/// The twin and the memory for one precision.
pub(crate) trait Precision: Real {
    fn twin(twin: &Twin) -> fn(&mut Args<'_, Self>) -> Result<()>;
    fn numbers(cells: &Cells) -> Option<&[Self]>;
    fn numbers_mut(cells: &mut Cells) -> Option<&mut [Self]>;
}

impl Precision for f32 {
    fn twin(twin: &Twin) -> fn(&mut Args<'_, Self>) -> Result<()> {
        twin.f32
    }

    fn numbers(cells: &Cells) -> Option<&[Self]> {
        match cells {
            Cells::F32(cells) => Some(cells),
            _ => None,
        }
    }

    fn numbers_mut(cells: &mut Cells) -> Option<&mut [Self]> {
        match cells {
            Cells::F32(cells) => Some(cells),
            _ => None,
        }
    }
}

impl Precision for f64 {
    fn twin(twin: &Twin) -> fn(&mut Args<'_, Self>) -> Result<()> {
        twin.f64
    }

    fn numbers(cells: &Cells) -> Option<&[Self]> {
        match cells {
            Cells::F64(cells) => Some(cells),
            _ => None,
        }
    }

    fn numbers_mut(cells: &mut Cells) -> Option<&mut [Self]> {
        match cells {
            Cells::F64(cells) => Some(cells),
            _ => None,
        }
    }
}

/// The memory of one buffer while a step runs.
enum Bound<'a> {
    Read(Ref<'a, Cells>),
    Write(RefMut<'a, Cells>),
}

/// Nanoseconds of work for which other threads are kept awake: as long as it takes to wake one.
const WORTH_WAKING: u64 = 50_000;

/// Runs steps over `tensors`, one for each of the plan's buffers, whose memory was taken for them.
pub(crate) fn run(
    plan: &Plan,
    steps: Range<usize>,
    tensors: &[Tensor],
    held: &Held<'_>,
    dtype: Dtype,
) -> Result<()> {
    let steps = &plan.steps[steps];
    let all = || {
        steps.iter().try_for_each(|step| match dtype {
            Dtype::F32 => run_step::<f32>(plan, step, tensors, held),
            Dtype::F64 => run_step::<f64>(plan, step, tensors, held),
        })
    };
    match steps.iter().map(|step| nanoseconds(step.cost)).sum::<u64>() >= WORTH_WAKING {
        true => threads::awake(all),
        false => all(),
    }
}

/// What a core takes about: 100 GFLOP/s of them, and 25 GB/s.
fn nanoseconds(cost: Cost) -> u64 {
    cost.flops / 100 + cost.bytes / 25
}

/// Runs one step.
fn run_step<R: Precision>(
    plan: &Plan,
    step: &Step,
    tensors: &[Tensor],
    held: &Held<'_>,
) -> Result<()> {
    if step.grid.contains(&0) {
        return Ok(());
    }
    let mut all: [Option<Bound<'_>>; MAX_BINDINGS] = std::array::from_fn(|_| None);
    let bindings = step.bindings.iter().zip(step.kernel.bindings);
    for (bound, (id, binding)) in all.iter_mut().zip(bindings) {
        let memory = tensors[id.0].memory();
        *bound = Some(match binding.access {
            Access::Read => Bound::Read(held.read(memory)?),
            Access::ReadWrite | Access::Write => Bound::Write(held.write(memory)?),
        });
    }
    let mut args = Args {
        told: plan.told(step),
        slots: std::array::from_fn(|_| Slot::Taken),
    };
    let bindings = step.bindings.iter().zip(step.kernel.bindings);
    for ((to, bound), (id, binding)) in args.slots.iter_mut().zip(&mut all).zip(bindings) {
        let range = tensors[id.0].range();
        let slot = bound
            .as_mut()
            .and_then(|bound| slot(bound, binding.element, range));
        *to = slot.ok_or_else(|| {
            let (op, arg) = (step.kernel.name, binding.name);
            let got = &plan.buffers[id.0].name;
            Error::value(op, arg, format!("CPU memory of {:?}", binding.element), got)
        })?;
    }
    R::twin(&step.kernel.twin)(&mut args)
}

/// What the twin sees of it.
fn slot<'a, R: Precision>(
    bound: &'a mut Bound<'_>,
    element: Element,
    range: Range<usize>,
) -> Option<Slot<'a, R>> {
    Some(match (bound, element) {
        (Bound::Read(cells), Element::Uint) => Slot::ReadUint(&cells.uints().ok()?[range]),
        (Bound::Write(cells), Element::Uint) => {
            Slot::WriteUint(&mut cells.uints_mut().ok()?[range])
        }
        (Bound::Read(cells), _) => Slot::Read(&R::numbers(cells)?[range]),
        (Bound::Write(cells), _) => Slot::Write(&mut R::numbers_mut(cells)?[range]),
    })
}
