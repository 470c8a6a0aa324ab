//! Inputs for the kernels of a plan, in the specialisation that it has: small plans of its layers, and test inputs of
//! kernels that happen to have the same constants.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use super::{FEW_ROUNDS, Verdict, subject};
use crate::cell::{self, Cell};
use crate::check::{Outcome, Status, each_step, kernels};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::kernel::{Constant, Data, Element, Kernel, Sample};
use crate::kernels::gemm;
use crate::plan::sequence::{LAYER, many_inputs, many_steps};
use crate::plan::{Amount, BufferId, Plan, Role, Small, Step, Target};
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
/// Kernels of steps are not in it: see [`Long`].
const LONG: &[(&str, [usize; 3])] = &[
    ("gemm", [2, 1, 70_000]),
    ("gemm.blocks", [3, 2, 280_000]),
    ("gemm.tile32", [1, 1, 1_060_000]),
    ("gemm.tile64", [1, 1, 2_110_000]),
    ("gemm.tile128", [1, 1, 1_060_000]),
    ("gemm.across_k", [9, 1, 2_110_000]),
    ("gemm.cooperative", [1, 1, 28_000]),
    ("reduce.columns", [70_000, 1, 0]),
    ("reduce.total", [12_700_000, 1, 0]),
    ("embedding.scatter", [140_000, 1, 1]),
    ("cross_entropy.count", [8_500_000, 1, 0]),
    ("cross_entropy.rows", [1, 2_850_000, 0]),
    ("clip.factor", [70_000, 1, 0]),
];
/// Steps of a layer, or inputs of a stream, with which a loop over them makes more than 65,535 rounds.
const MANY: usize = 70_000;

/// What brings the loops of a kernel beyond 65,535 rounds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Long {
    /// A test input of this size.
    Sample([usize; 3]),
    /// All steps of a layer of one unit, for a kernel that runs them in one dispatch.
    Steps(&'static Cell),
    /// The inputs of a stream of one unit, for a kernel of a plain step.
    Inputs(&'static Cell),
}

impl Long {
    /// Of a kernel of this crate, if it has such.
    pub(super) fn of(kernel: &'static Kernel) -> Option<Self> {
        let is = |other: &'static Kernel| std::ptr::eq(other, kernel);
        let mut cells = cell::ALL.iter().copied();
        let runs = |c: &&'static Cell| c.sequence.iter().flatten().any(|pass| is(pass.kernel));
        let steps = |c: &&'static Cell| c.forward.iter().any(|pass| is(pass.kernel));
        let sized = LONG.iter().find(|(name, _)| *name == kernel.name);
        sized
            .map(|(_, size)| Self::Sample(*size))
            .or_else(|| cells.clone().find(runs).map(Self::Steps))
            .or_else(|| cells.find(steps).map(Self::Inputs))
    }

    /// A plan with a dispatch of the kernel that has as many rounds, and its data.
    ///
    /// # Errors
    /// If it has less.
    pub(super) fn make(self, kernel: &'static Kernel, target: &Target) -> Result<Option<Sample>> {
        let sample = match self {
            Self::Sample(size) => (kernel.sample)(size, &mut Rng::new(1))?,
            Self::Steps(cell) => many_steps(cell, MANY, target)?,
            Self::Inputs(cell) => many_inputs(cell, MANY, target)?,
        };
        let plan = &sample.plan;
        let own = plan
            .steps()
            .iter()
            .filter(|s| std::ptr::eq(s.kernel, kernel));
        let rounds = own.map(|s| (kernel.rounds)(&plan.told(s)));
        let most = rounds.collect::<Result<Vec<u64>>>()?.into_iter().max();
        match most.unwrap_or(0) {
            // A second kernel of a step may read no inputs.
            ..=FEW_ROUNDS if matches!(self, Self::Inputs(_)) => Ok(None),
            rounds @ ..=FEW_ROUNDS => {
                Err(Error::value(kernel.name, "rounds", "above 65,535", rounds))
            }
            _ => Ok(Some(sample)),
        }
    }
}

/// What is to be compared of a plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) plan: &'a Plan,
    pub(super) step: &'a Step,
}

/// The small plans of a plan at their least.
pub(super) fn least(plan: &Plan) -> Result<Vec<Sample>> {
    let amount = Amount {
        brief: false,
        all_sequences: false,
    };
    let small = plan.small.iter();
    small.map(|s| s.make(amount, &mut Rng::new(1))).collect()
}

/// The steps of a small plan by which a layer packs its weights before a call.
pub(super) fn packing(plan: &Plan) -> &[Step] {
    let section = plan.sections().iter().find(|s| s.name == LAYER);
    section.map_or(&[], |s| &plan.steps()[s.steps.clone()])
}

/// Compares some of the kernels that run for a plan, of which the small plans at their [`least`] are given.
pub(super) fn verdicts(
    context: &Context,
    plan: &Plan,
    least: Vec<Sample>,
    wanted: &BTreeMap<String, Wanted<'_>>,
    swap: Swap<'_>,
) -> Result<Vec<(String, Verdict)>> {
    let mut found: BTreeMap<String, Verdict> = BTreeMap::new();
    let open = |found: &BTreeMap<String, Verdict>| wanted.keys().any(|s| !found.contains_key(s));
    for (small, sample) in plan.small.iter().zip(least) {
        if open(&found)
            && let Some(sample) = affordable(small, sample, false)?
        {
            in_lockstep(context, sample, swap, &mut found)?;
        }
    }
    for small in &plan.small {
        if open(&found) {
            let amount = Amount {
                brief: false,
                all_sequences: true,
            };
            let sample = small.make(amount, &mut Rng::new(1))?;
            if let Some(sample) = affordable(small, sample, true)? {
                in_lockstep(context, sample, swap, &mut found)?;
            }
        }
    }
    let mut all = Vec::new();
    for (subject, Wanted { plan, step }) in wanted {
        let verdict = match found.remove(subject) {
            Some(verdict) => verdict,
            None => match gemm::like(plan, step, &mut Rng::new(1))? {
                Some(sample) => judged(context, sample, swap)?,
                None => of_sample(context, step, swap)?,
            },
        };
        all.push((subject.clone(), verdict));
    }
    Ok(all)
}

/// A small plan, or a brief one in its place where it has too much to compute; none where that has too.
pub(super) fn affordable(
    small: &Small,
    sample: Sample,
    all_sequences: bool,
) -> Result<Option<Sample>> {
    let is_cheap =
        |plan: &Plan| -> Result<bool> { Ok(plan.cost(0..plan.steps().len())?.flops <= MOST_FLOPS) };
    if is_cheap(&sample.plan)? {
        return Ok(Some(sample));
    }
    let amount = Amount {
        brief: true,
        all_sequences,
    };
    let sample = small.make(amount, &mut Rng::new(1))?;
    Ok(is_cheap(&sample.plan)?.then_some(sample))
}

/// How often a kernel is compared on the same buffers, beside the last time: in the first step of a sequence, which
/// differs, and in one between.
const OCCURRENCES: usize = 2;

/// Compares all kernels of a small plan, each with the numbers that those before it left. Of one that changed nothing
/// nothing is found.
pub(super) fn in_lockstep(
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
    fill(&program)?;
    for (id, data) in data {
        match data {
            Data::Float(values) => program.tensor(id)?.write(&values)?,
            Data::Uint(words) => program.tensor(id)?.write_uint(&words)?,
        }
    }
    // A loop over the steps of a sequence repeats its kernels on the same buffers.
    let compared: RefCell<HashMap<(&str, &[BufferId]), usize>> = RefCell::default();
    let steps = program.plan().steps();
    let key = |step: usize| (subjects[step].as_str(), steps[step].bindings.as_slice());
    let last: HashMap<_, usize> = (0..steps.len()).map(|step| (key(step), step)).collect();
    let wanted = |step: usize| {
        let compared = compared.borrow();
        let few = compared.get(&key(step)).is_none_or(|n| *n < OCCURRENCES);
        few || last.get(&key(step)) == Some(&step)
    };
    for section in program.plan().sections() {
        each_step(&program, section.name, wanted, |step, errors| {
            if !errors.is_empty() {
                *compared.borrow_mut().entry(key(step)).or_default() += 1;
            }
            for e in errors {
                let known = found
                    .entry(subjects[step].clone())
                    .or_insert(Verdict::Right { error: 0.0 });
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

/// Puts numbers into all that kernels write, so that what one leaves alone shows, zeros too.
fn fill(program: &Program) -> Result<()> {
    let plan = program.plan();
    let mut rng = Rng::new(2);
    for (id, buffer) in plan.ids() {
        let written = matches!(
            buffer.role,
            Role::Output | Role::Gradient | Role::Saved | Role::Scratch
        );
        // What the plan puts there itself stays.
        if !written || plan.contents.iter().any(|c| c.buffer == id) {
            continue;
        }
        let (tensor, len) = (program.own(id), buffer.len());
        match buffer.element {
            Element::Uint => tensor.write_uint(&vec![1; len])?,
            Element::Float | Element::Half => tensor.write(&rng.uniforms(len, 1.0, 2.0))?,
        }
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

/// Compares a kernel of this crate in loops of more than 65,535 rounds, if it has such.
pub(super) fn long_loops(
    context: &Context,
    kernel: &'static Kernel,
    swap: Swap<'_>,
) -> Result<Option<Verdict>> {
    let Some(long) = Long::of(kernel) else {
        return Ok(None);
    };
    let Some(sample) = long.make(kernel, &context.target())? else {
        return Ok(None);
    };
    if let Long::Sample(_) = long {
        return Ok(verdict(&compared(context, sample, swap)?));
    }
    let mut found = BTreeMap::new();
    let own = |s: &&Step| std::ptr::eq(s.kernel, kernel);
    let subjects = sample.plan.steps().iter().filter(own);
    let subjects: Vec<String> = subjects.map(|s| subject(kernel, &s.constants)).collect();
    in_lockstep(context, sample, swap, &mut found)?;
    let verdicts = subjects.iter().filter_map(|s| found.remove(s));
    let (wrong, right): (Vec<_>, Vec<_>) =
        verdicts.partition(|v| matches!(v, Verdict::Wrong { .. }));
    Ok(wrong.into_iter().chain(right).next())
}
