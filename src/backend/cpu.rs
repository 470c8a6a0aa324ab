//! A plan on the CPU: every step calls its kernel's twin on the locked memory of its buffers.

use std::ops::Range;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::context::Dtype;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::kernel::{Access, Args, Element, MAX_BINDINGS, Slot, Twin};
use crate::plan::{Cost, Plan, Step};
use crate::real::Real;
use crate::tensor::{Storage, Tensor};
use crate::threads;

/// The twin and the memory for one precision.
pub(crate) trait Precision: Real {
    fn twin(twin: &Twin) -> fn(&mut Args<'_, Self>) -> Result<()>;
    fn cells(host: &Host) -> Option<&RwLock<Vec<Self>>>;
}

impl Precision for f32 {
    fn twin(twin: &Twin) -> fn(&mut Args<'_, Self>) -> Result<()> {
        twin.f32
    }

    fn cells(host: &Host) -> Option<&RwLock<Vec<Self>>> {
        match host {
            Host::F32(cells) => Some(cells),
            Host::F64(_) | Host::Uint(_) => None,
        }
    }
}

impl Precision for f64 {
    fn twin(twin: &Twin) -> fn(&mut Args<'_, Self>) -> Result<()> {
        twin.f64
    }

    fn cells(host: &Host) -> Option<&RwLock<Vec<Self>>> {
        match host {
            Host::F64(cells) => Some(cells),
            Host::F32(_) | Host::Uint(_) => None,
        }
    }
}

/// The lock on one buffer while a step runs.
enum Guard<'a, R> {
    Read(RwLockReadGuard<'a, Vec<R>>),
    Write(RwLockWriteGuard<'a, Vec<R>>),
    ReadUint(RwLockReadGuard<'a, Vec<u32>>),
    WriteUint(RwLockWriteGuard<'a, Vec<u32>>),
}

/// Nanoseconds of work for which other threads are kept awake: as long as it takes to wake one.
const WORTH_WAKING: u64 = 50_000;

/// Runs steps over `tensors`, one for each of the plan's buffers.
pub(crate) fn run(
    plan: &Plan,
    steps: Range<usize>,
    tensors: &[Tensor],
    dtype: Dtype,
) -> Result<()> {
    let steps = &plan.steps[steps];
    let all = || {
        steps.iter().try_for_each(|step| match dtype {
            Dtype::F32 => run_step::<f32>(plan, step, tensors),
            Dtype::F64 => run_step::<f64>(plan, step, tensors),
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
fn run_step<R: Precision>(plan: &Plan, step: &Step, tensors: &[Tensor]) -> Result<()> {
    if step.grid.contains(&0) {
        return Ok(());
    }
    let bound = step.bindings.iter().zip(step.kernel.bindings);
    let mut guards: [Option<Guard<'_, R>>; MAX_BINDINGS] = std::array::from_fn(|_| None);
    for (guard, (id, binding)) in guards.iter_mut().zip(bound) {
        let tensor = &tensors[id.0];
        *guard = lock(tensor, binding.element, binding.access);
        if guard.is_none() {
            return Err(Error::Value {
                op: step.kernel.name,
                arg: binding.name.to_owned(),
                expected: format!(
                    "CPU memory of {:?} that nothing else is using",
                    binding.element
                ),
                got: plan.buffers[id.0].name.clone(),
            });
        }
    }
    let mut args = Args {
        told: plan.told(step),
        slots: std::array::from_fn(|_| Slot::Taken),
    };
    for ((slot, guard), id) in args.slots.iter_mut().zip(&mut guards).zip(&step.bindings) {
        let range = tensors[id.0].range();
        *slot = match guard {
            None => Slot::Taken,
            Some(Guard::Read(g)) => Slot::Read(&g[range]),
            Some(Guard::Write(g)) => Slot::Write(&mut g[range]),
            Some(Guard::ReadUint(g)) => Slot::ReadUint(&g[range]),
            Some(Guard::WriteUint(g)) => Slot::WriteUint(&mut g[range]),
        };
    }
    R::twin(&step.kernel.twin)(&mut args)
}

fn lock<R: Precision>(tensor: &Tensor, element: Element, access: Access) -> Option<Guard<'_, R>> {
    match (tensor.storage(), element) {
        (Storage::Host(host), Element::Float | Element::Half) => {
            let cells = R::cells(host)?;
            match access {
                Access::Read => cells.try_read().ok().map(Guard::Read),
                Access::ReadWrite | Access::Write => cells.try_write().ok().map(Guard::Write),
            }
        }
        (Storage::Host(host), Element::Uint) => {
            let Host::Uint(cells) = &**host else {
                return None;
            };
            match access {
                Access::Read => cells.try_read().ok().map(Guard::ReadUint),
                Access::ReadWrite | Access::Write => cells.try_write().ok().map(Guard::WriteUint),
            }
        }
        #[cfg(feature = "gpu")]
        (Storage::Gpu(_), _) => None,
    }
}
