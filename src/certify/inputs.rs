//! Inputs for the kernels of a plan, in the specialisation that it has: small plans of its layers, and test inputs of
//! kernels that happen to have the same constants.

use std::collections::BTreeMap;

use super::{FEW_ROUNDS, Verdict, subject};
use crate::check::{Outcome, Status, each_step, kernels};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernel::{Constant, Data, Kernel, Sample};
use crate::kernels::gemm;
use crate::plan::{Amount, Plan, Step};
use crate::program::Program;
use crate::rng::Rng;

/// What takes a kernel's place; itself, but in tests.
pub(super) type Swap<'a> = &'a dyn Fn(&'static Kernel) -> &'static Kernel;

/// Sizes of test inputs: one, tails, whole tiles, and enough multiplications for the largest blocks.
const SIZES: [[usize; 3]; 6] = [
    [3, 5, 4],
    [9, 20, 7],
    [37, 44, 33],
    [64, 65, 64],
    [2, 260, 9],
    [132, 264, 520],
];
/// Test inputs of each size that are looked at for constants.
const TRIES: u64 = 250;
/// Operations of a small plan over all sequences that are worth a comparison.
const MOST_FLOPS: u64 = 2_000_000_000;

/// Sizes at which the loops of a kernel make more than 65,535 rounds, for those that a few million numbers bring there.
const LONG: &[(&str, [usize; 3])] = &[
    ("gemm", [2, 1, 70_000]),
    ("gemm.blocks", [3, 2, 280_000]),
    ("gemm.tile32", [1, 1, 1_060_000]),
    ("gemm.tile64", [1, 1, 2_110_000]),
    ("gemm.tile128", [1, 1, 1_060_000]),
    ("gemm.across_k", [9, 1, 2_110_000]),
    ("reduce.columns", [70_000, 1, 0]),
    ("reduce.total", [12_700_000, 1, 0]),
    ("embedding.scatter", [140_000, 1, 1]),
    ("cross_entropy.count", [8_500_000, 1, 0]),
    ("cross_entropy.rows", [1, 2_850_000, 0]),
    ("clip.factor", [70_000, 1, 0]),
];

/// Compares the kernels of some steps of a plan.
pub(super) fn verdicts(
    context: &Context,
    plan: &Plan,
    steps: &[&Step],
    swap: Swap<'_>,
) -> Result<Vec<(String, Verdict)>> {
    let mut found: BTreeMap<String, Verdict> = BTreeMap::new();
    let named = |step: &&Step| subject(step.kernel, &step.constants);
    for amount in [Amount::Least, Amount::Batch] {
        for small in &plan.small {
            let open = |found: &BTreeMap<String, Verdict>| {
                steps.iter().any(|s| !found.contains_key(&named(s)))
            };
            if open(&found) {
                let sample = small.make(amount, &mut Rng::new(1))?;
                if sample.plan.cost(0..sample.plan.steps().len())?.flops <= MOST_FLOPS {
                    in_lockstep(context, sample, swap, &mut found)?;
                }
            }
        }
    }
    let mut all = Vec::new();
    for step in steps {
        let subject = named(step);
        let verdict = match found.remove(&subject) {
            Some(verdict) => verdict,
            None => match gemm::like(plan, step, &mut Rng::new(1))? {
                Some(sample) => judged(context, sample, swap)?,
                None => of_sample(context, step, swap)?,
            },
        };
        all.push((subject, verdict));
    }
    Ok(all)
}

/// Compares all kernels of a small plan, each with the numbers that those before it left.
fn in_lockstep(
    context: &Context,
    sample: Sample,
    swap: Swap<'_>,
    found: &mut BTreeMap<String, Verdict>,
) -> Result<()> {
    let Sample { mut plan, data } = sample;
    let subjects: Vec<String> = plan
        .steps()
        .iter()
        .map(|s| subject(s.kernel, &s.constants))
        .collect();
    plan.steps
        .iter_mut()
        .for_each(|s| s.kernel = swap(s.kernel));
    let program = Program::unchecked(context, plan, &[])?;
    for (id, data) in data {
        match data {
            Data::Float(values) => program.tensor(id)?.write(&values)?,
            Data::Uint(words) => program.tensor(id)?.write_uint(&words)?,
        }
    }
    for section in program.plan().sections() {
        each_step(&program, section.name, |step, errors| {
            let known = found
                .entry(subjects[step].clone())
                .or_insert(Verdict::Right { error: 0.0 });
            for e in errors {
                match known {
                    _ if e.differs() => {
                        *known = Verdict::Wrong {
                            reason: format!(
                                "{}[{}] is {}, its reference has {}",
                                e.buffer, e.element, e.got, e.want
                            ),
                        };
                    }
                    Verdict::Right { error } => *error = error.max(e.units()),
                    _ => {}
                }
            }
        })?;
    }
    Ok(())
}

/// Compares a kernel on a test input of its own that has the constants of a step.
fn of_sample(context: &Context, step: &Step, swap: Swap<'_>) -> Result<Verdict> {
    for (size, seed) in tries() {
        let Ok(sample) = (step.kernel.sample)(size, &mut Rng::new(seed)) else {
            return Ok(unchecked("it has no test inputs"));
        };
        if has(&sample, step) {
            return judged(context, sample, swap);
        }
    }
    Ok(unchecked("no test input has its constants"))
}

fn judged(context: &Context, sample: Sample, swap: Swap<'_>) -> Result<Verdict> {
    let outcomes = compared(context, sample, swap)?;
    Ok(verdict(&outcomes).unwrap_or_else(|| unchecked("the device cannot run it")))
}

fn unchecked(reason: &str) -> Verdict {
    Verdict::Unchecked {
        reason: reason.to_owned(),
    }
}

fn tries() -> impl Iterator<Item = ([usize; 3], u64)> {
    (0..TRIES).flat_map(|seed| {
        let vary = move |[m, n, k]: [usize; 3]| [m, n, k + seed as usize % 12];
        SIZES.into_iter().map(move |size| (vary(size), seed))
    })
}

fn has(sample: &Sample, step: &Step) -> bool {
    let sorted = |constants: &[Constant]| {
        let mut sorted = constants.to_vec();
        sorted.sort_unstable();
        sorted
    };
    let wanted = sorted(&step.constants);
    sample
        .plan
        .steps()
        .iter()
        .any(|s| std::ptr::eq(s.kernel, step.kernel) && sorted(&s.constants) == wanted)
}

fn compared(context: &Context, mut sample: Sample, swap: Swap<'_>) -> Result<Vec<Outcome>> {
    let steps = &mut sample.plan.steps;
    steps.iter_mut().for_each(|s| s.kernel = swap(s.kernel));
    kernels::check_sample(context, "certificate", sample)
}

fn verdict(outcomes: &[Outcome]) -> Option<Verdict> {
    let mut worst = None::<f64>;
    for o in outcomes {
        match o.status {
            Status::Unsupported => return None,
            Status::Fail => {
                return Some(Verdict::Wrong {
                    reason: format!(
                        "{}: error {:.1e}, at most {:.1e}",
                        o.tensor, o.error, o.tolerance
                    ),
                });
            }
            Status::Pass => {
                let units = o.error / o.tolerance.max(f64::MIN_POSITIVE);
                worst = Some(worst.unwrap_or(0.0).max(units));
            }
        }
    }
    worst.map(|error| Verdict::Right { error })
}

/// Compares a kernel in loops of more than 65,535 rounds, if it has such.
pub(super) fn long_loops(
    context: &Context,
    kernel: &'static Kernel,
    swap: Swap<'_>,
) -> Result<Option<Verdict>> {
    let Some((_, size)) = LONG.iter().find(|(name, _)| *name == kernel.name) else {
        return Ok(None);
    };
    let sample = (kernel.sample)(*size, &mut Rng::new(1))?;
    let own = |s: &&Step| std::ptr::eq(s.kernel, kernel);
    let step = sample.plan.steps().iter().find(own);
    let rounds = step.map_or(Ok(0), |s| (kernel.rounds)(&sample.plan.told(s)))?;
    if rounds <= FEW_ROUNDS {
        return Err(Error::value(kernel.name, "rounds", "above 65,535", rounds));
    }
    Ok(verdict(&compared(context, sample, swap)?))
}
