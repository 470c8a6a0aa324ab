//! Every kernel on a device against its twin in double precision.
//!
//! Buffers for which a sample gives no contents are filled with NaN first, so that a kernel which
//! reads what it should have written shows; behind every buffer stand guard cells, inside the
//! binding, that must survive.

use std::ops::Range;

use super::{Outcome, compare, tolerance};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernel::{Access, Data, Element, Kernel, Sample};
use crate::kernels::sample::OF_SUBGROUPS;
use crate::plan::sequence::subgroup;
use crate::plan::{BufferId, DeviceKind, Plan, Target};
use crate::program::Program;
use crate::real::Real;
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Sizes around the edges of tiles and workgroups, and primes.
pub const SIZES: &[[usize; 3]] = &[
    [1, 1, 1],
    [1, 2, 0],
    [2, 1, 1],
    [3, 4, 2],
    [4, 5, 3],
    [5, 63, 7],
    [7, 64, 8],
    [8, 65, 9],
    [15, 16, 17],
    [16, 17, 15],
    [17, 31, 16],
    [63, 64, 65],
    [64, 65, 63],
    [65, 63, 64],
    [13, 127, 31],
    [129, 11, 128],
    [1, 257, 5],
    [131, 1, 4],
    // For kernels that run all steps with several in their text: more steps, and fewer.
    [2, 20, 6],
    [1, 24, 18],
    [3, 16, 42],
    // For kernels that run all steps in which subgroups hand terms around.
    [5, 150, OF_SUBGROUPS + 2],
    [2, 260, OF_SUBGROUPS + 3],
    [33, 41, OF_SUBGROUPS + 7],
    [7, 13, OF_SUBGROUPS + 10],
];

const GUARD: usize = 67;
const GUARD_FLOAT: f32 = -12_345.75;
const GUARD_UINT: u32 = 0xdead_beef;

/// Runs a kernel's sample of this size on `context` and on the oracle. A kernel that needs a feature
/// which the device lacks is [`Status::Unsupported`](super::Status::Unsupported). Nothing is compared for a sample of
/// a form that is for subgroups of another size, since no plan for the device has it.
///
/// # Errors
/// If the sample cannot be made or the device fails.
pub fn check(context: &Context, kernel: &'static Kernel, size: [usize; 3]) -> Result<Vec<Outcome>> {
    let case = format!("{} {size:?}", kernel.name);
    if let Err(Error::Unsupported { needs, .. }) = context.check_kernel(kernel) {
        return Ok(vec![Outcome::unsupported(context, &case, needs)]);
    }
    check_sample(context, &case, sample(kernel, size)?)
}

/// Runs a sample on `context` and on the oracle, as [`check`].
///
/// # Errors
/// If the device fails.
pub(crate) fn check_sample(context: &Context, case: &str, sample: Sample) -> Result<Vec<Outcome>> {
    let own = guarded(sample);
    // Whose rules plans follow is nothing to a kernel.
    let target = Target {
        kind: context.kind(),
        ..context.target()
    };
    if !is_for(&target, &own.plan) {
        return Ok(Vec::new());
    }
    let got = match run(context, own.clone()) {
        // The sample may ask for more than every kernel of this kind.
        Err(Error::Unsupported { needs, .. }) => {
            return Ok(vec![Outcome::unsupported(context, case, needs)]);
        }
        other => other?,
    };
    let want = run(&Context::cpu_f64(), own)?;
    let plan = got.plan();
    let section = plan.sections()[0].name;
    let steps = plan.section(section)?;
    let limit = tolerance::kernel(context.dtype(), plan.cost(steps.clone())?.length);
    let mut outcomes = Vec::new();
    for id in written(plan) {
        let buffer = plan.buffer(id)?;
        let (got, want) = (values(got.own(id))?, values(want.own(id))?);
        let len = buffer.len() - GUARD;
        let intact = got[len..] == want[len..];
        let fits = |v: &f64| v.is_nan() || v.to_half() == *v;
        let rounding = rounding(plan, steps.clone(), id);
        let rounded = rounding == 0.0 || want[..len].iter().chain(&got[..len]).all(fits);
        let error = if intact && rounded {
            compare(&got[..len], &want[..len]).error
        } else {
            f64::INFINITY
        };
        let name = if intact {
            buffer.name.clone()
        } else {
            format!("{} (guard cells overwritten)", buffer.name)
        };
        outcomes.push(Outcome::new(context, case, name, error, limit + rounding));
    }
    Ok(outcomes)
}

/// The sample of a kernel that [`check`] takes for a size.
///
/// # Errors
/// If it cannot be made.
pub fn sample(kernel: &Kernel, size: [usize; 3]) -> Result<Sample> {
    let seed = size.iter().fold(1, |s, &v| s * 1_009 + v as u64);
    (kernel.sample)(size, &mut Rng::new(seed))
}

/// Whether plans for a device may have such kernels.
fn is_for(target: &Target, plan: &Plan) -> bool {
    let mut constants = plan.steps().iter().flat_map(|s| &s.constants);
    constants.all(|(name, size)| match *name {
        "SUBGROUP_SIZE" if *size > 0 => {
            target.kind == DeviceKind::Cpu || subgroup(target) == *size as usize
        }
        _ => true,
    })
}

/// Makes room for guard cells behind every buffer.
fn guarded(mut sample: Sample) -> Sample {
    for buffer in &mut sample.plan.buffers {
        buffer.shape = vec![buffer.len() + GUARD];
    }
    sample
}

fn run(context: &Context, sample: Sample) -> Result<Program> {
    let Sample { plan, data } = sample;
    // Every buffer is given contents, whatever its role.
    let program = Program::unchecked(context, plan, &[])?;
    for (id, buffer) in program.plan().ids() {
        let len = buffer.len() - GUARD;
        let given = data.iter().find(|(d, _)| *d == id).map(|(_, d)| d);
        match buffer.element {
            Element::Float | Element::Half => {
                let mut values = match given {
                    Some(Data::Float(v)) => v.clone(),
                    _ => vec![f32::NAN; len],
                };
                values.resize(len + GUARD, GUARD_FLOAT);
                program.own(id).write(&values)?;
            }
            Element::Uint => {
                let mut values = match given {
                    Some(Data::Uint(v)) => v.clone(),
                    _ => vec![u32::MAX; len],
                };
                values.resize(len + GUARD, GUARD_UINT);
                program.own(id).write_uint(&values)?;
            }
        }
    }
    let section = program.plan().sections()[0].name;
    program.run(section)?;
    Ok(program)
}

/// What is added to the tolerance of a buffer for what some steps compute and store there as 16-bit floats, else 0:
/// results that are almost the same may be rounded up and down.
pub(crate) fn rounding(plan: &Plan, steps: Range<usize>, id: BufferId) -> f64 {
    let bound = plan.steps()[steps]
        .iter()
        .flat_map(|s| s.bindings.iter().zip(s.kernel.bindings));
    let mut own = bound.filter(|(of, _)| **of == id);
    let half = plan.buffers[id.0].element == Element::Half;
    match half && own.any(|(_, b)| b.f16 && b.access != Access::Read) {
        true => 2.0 * tolerance::UNIT_F16,
        false => 0.0,
    }
}

/// Every buffer that some step writes.
pub(crate) fn written(plan: &Plan) -> Vec<BufferId> {
    let mut ids: Vec<BufferId> = plan
        .steps()
        .iter()
        .flat_map(|s| s.bindings.iter().zip(s.kernel.bindings))
        .filter(|(_, b)| b.access != Access::Read)
        .map(|(&id, _)| id)
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The contents of a tensor of either kind.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    match tensor.element() {
        Element::Float | Element::Half => tensor.read_f64(),
        Element::Uint => Ok(tensor.read_uint()?.into_iter().map(f64::from).collect()),
    }
}
