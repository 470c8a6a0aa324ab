//! Lockstep: a program and its twin in double precision, one step at a time, from the same numbers.
//!
//! Before every step the twin is given what the program has in the buffers of that step; both run
//! it; every buffer that the step writes is compared. So the rounding of earlier steps is on both
//! sides and each step shows its own error alone, in units of [`tolerance::kernel`] for the length of
//! that step's sums: the first step that differs is the one to look at.
//!
//! Compared are the elements that the step changed on either side, relative to the largest of them;
//! all others are equal before it and stay so. The twin of a [`Program`] shares no memory between its
//! buffers, while the program's scratch buffers do, and whoever made the program may have bound one
//! tensor to several buffers. What of the twin is out of date is therefore found by memory, not by
//! buffer.
//!
//! A step costs one submission and one read of each buffer that it writes, as a whole. For a layer
//! over T steps, whose buffers hold all T of them, this grows with T²: some hundred steps take
//! seconds; for longer sequences plan a shorter one of the same layer.

use super::{
    Difference, Outcome, compare,
    kernels::{rounding, values},
    tolerance,
};
use crate::context::Context;
use crate::error::Result;
use crate::kernel::{Access, Element};
use crate::plan::{BufferId, Plan, Role};
use crate::program::Program;
use crate::tensor::Tensor;

/// What a lockstep run saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Lockstep {
    /// The section that ran.
    pub section: String,
    /// How many steps were compared.
    pub steps: usize,
    /// Where the error is largest in units of the tolerance; `None` if no step changed anything.
    pub largest: Option<StepError>,
    /// The first step outside the tolerance. Later ones are compared too, since each starts from the
    /// program's own numbers.
    pub first: Option<StepError>,
}

/// How far a step's result is from its twin's, in the buffer where it is farthest.
#[derive(Debug, Clone, PartialEq)]
pub struct StepError {
    /// The step's place in the plan.
    pub step: usize,
    /// Its kernel.
    pub kernel: &'static str,
    /// The name of the buffer.
    pub buffer: String,
    /// The element that differs most.
    pub element: usize,
    /// What the program has there.
    pub got: f64,
    /// What the twin has there.
    pub want: f64,
    /// The difference, relative to the largest value that the step wrote to the buffer.
    pub error: f64,
    /// The largest that is allowed.
    pub tolerance: f64,
}

impl StepError {
    /// The error in units of the tolerance.
    pub fn units(&self) -> f64 {
        self.error / self.tolerance
    }

    pub(crate) fn differs(&self) -> bool {
        self.error > self.tolerance
    }
}

impl std::fmt::Display for StepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            step,
            kernel,
            buffer,
            element,
            got,
            want,
            ..
        } = self;
        write!(
            f,
            "step {step} {kernel}: {buffer}[{element}] is {got}, its twin has {want} ({:.3} of the tolerance {:.2e})",
            self.units(),
            self.tolerance
        )
    }
}

impl Lockstep {
    /// The run as one comparison, named after the first step that differs, or else the worst.
    pub fn outcome(&self, context: &Context, case: &str) -> Outcome {
        let section = &self.section;
        match self.first.as_ref().or(self.largest.as_ref()) {
            Some(e) => {
                let (step, kernel, buffer, at) = (e.step, e.kernel, &e.buffer, e.element);
                let place = format!("lockstep {section}: step {step} {kernel} {buffer}[{at}]");
                Outcome::new(context, case, place, e.error, e.tolerance)
            }
            None => Outcome::new(context, case, format!("lockstep {section}"), 0.0, 0.0),
        }
    }
}

/// Runs a section of a program step by step beside its twin on [`Context::cpu_f64`]. The program's
/// buffers hold afterwards what the section leaves in them.
///
/// # Errors
/// If the plan has no such section, a kernel's twin refuses its arguments, or the device fails.
pub fn lockstep(program: &Program, section: &str) -> Result<Lockstep> {
    let mut report = Lockstep {
        section: section.to_owned(),
        steps: program.plan().section(section)?.len(),
        largest: None,
        first: None,
    };
    each_step(
        program,
        section,
        |_| true,
        |_, errors| {
            for error in errors {
                if error.differs() && report.first.is_none() {
                    report.first = Some(error.clone());
                }
                let largest = report.largest.as_ref().map_or(-1.0, StepError::units);
                if error.units() > largest {
                    report.largest = Some(error);
                }
            }
        },
    )?;
    Ok(report)
}

/// Runs a section step by step, those that are wanted beside their twins, and hands out the number of each of these with
/// the errors in the buffers that it changed.
///
/// # Errors
/// As [`lockstep`].
pub(crate) fn each_step(
    program: &Program,
    section: &str,
    mut wanted: impl FnMut(usize) -> bool,
    mut of: impl FnMut(usize, Vec<StepError>),
) -> Result<()> {
    let mut pair = Pair::new(program)?;
    for step in program.plan().section(section)? {
        match wanted(step) {
            true => of(step, pair.step(step)?),
            false => pair.pass(step)?,
        }
    }
    Ok(())
}

/// A program and its twin.
struct Pair<'a> {
    program: &'a Program,
    twin: Program,
    /// For each buffer the first one that lies in the same memory.
    memory: Vec<usize>,
    /// How often that memory was written.
    written: Vec<usize>,
    /// What `written` was when the twin's buffer was last given the program's contents.
    given: Vec<Option<usize>>,
}

impl<'a> Pair<'a> {
    fn new(program: &'a Program) -> Result<Self> {
        let plan = program.plan();
        let tensors: Vec<_> = plan.ids().map(|(id, _)| program.own(id)).collect();
        let memory = tensors
            .iter()
            .map(|t| {
                let shares = |o: &&Tensor| o.shares_memory(t);
                tensors.iter().position(shares).unwrap_or_default()
            })
            .collect();
        Ok(Self {
            twin: Program::unchecked(&Context::cpu_f64(), without_sharing(plan), &[])?,
            memory,
            written: vec![0; tensors.len()],
            given: vec![None; tensors.len()],
            program,
        })
    }

    /// Runs a step on both sides; the error in each buffer that it wrote.
    fn step(&mut self, at: usize) -> Result<Vec<StepError>> {
        let plan = self.program.plan();
        let step = &plan.steps()[at];
        for &id in &step.bindings {
            let latest = self.written[self.memory[id.0]];
            if self.given[id.0] != Some(latest) {
                self.give(id, &values(self.program.own(id))?)?;
            }
        }
        let changed: Vec<BufferId> = step
            .bindings
            .iter()
            .zip(step.kernel.bindings)
            .filter(|(_, b)| b.access != Access::Read)
            .map(|(&id, _)| id)
            .collect();
        let before = changed
            .iter()
            .map(|&id| values(self.twin.own(id)))
            .collect::<Result<Vec<_>>>()?;
        self.program.run_steps(at..at + 1)?;
        self.twin.run_steps(at..at + 1)?;

        let limit = tolerance::kernel(self.program.context().dtype(), step.cost.length);
        let mut errors = Vec::new();
        for (&id, before) in changed.iter().zip(before) {
            let got = values(self.program.own(id))?;
            let want = values(self.twin.own(id))?;
            let tolerance = limit + rounding(plan, at..at + 1, id);
            if let Some(d) = difference(&before, &got, &want) {
                errors.push(StepError {
                    step: at,
                    kernel: step.kernel.name,
                    buffer: plan.buffer(id)?.name.clone(),
                    element: d.at,
                    got: d.got,
                    want: d.want,
                    error: d.error,
                    tolerance,
                });
            }
            self.written[self.memory[id.0]] += 1;
            self.give(id, &got)?;
        }
        Ok(errors)
    }

    /// Runs a step of the program alone.
    fn pass(&mut self, at: usize) -> Result<()> {
        let step = &self.program.plan().steps()[at];
        self.program.run_steps(at..at + 1)?;
        let accesses = step.kernel.bindings.iter().map(|b| b.access);
        for (id, access) in step.bindings.iter().zip(accesses) {
            if access != Access::Read {
                self.written[self.memory[id.0]] += 1;
            }
        }
        Ok(())
    }

    /// Gives the twin the program's contents of a buffer.
    fn give(&mut self, id: BufferId, contents: &[f64]) -> Result<()> {
        let tensor = self.twin.own(id);
        match tensor.element() {
            Element::Float | Element::Half => tensor.write_f64(contents)?,
            // Exact: they were integers before `values` widened them.
            Element::Uint => {
                tensor.write_uint(&contents.iter().map(|&v| v as u32).collect::<Vec<_>>())?;
            }
        }
        self.given[id.0] = Some(self.written[self.memory[id.0]]);
        Ok(())
    }
}

/// The largest difference among the elements that either side changed, if any was.
fn difference(before: &[f64], got: &[f64], want: &[f64]) -> Option<Difference> {
    let moved = |now: &f64, then: &f64| now.to_bits() != then.to_bits();
    let touched: Vec<usize> = (0..before.len())
        .filter(|&i| moved(&got[i], &before[i]) || moved(&want[i], &before[i]))
        .collect();
    let pick = |values: &[f64]| touched.iter().map(|&i| values[i]).collect::<Vec<_>>();
    let d = compare(&pick(got), &pick(want));
    touched.get(d.at).map(|&at| Difference { at, ..d })
}

/// The same plan with memory of its own for every buffer.
fn without_sharing(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    // It is given whatever a step needs.
    plan.follows.clear();
    for buffer in &mut plan.buffers {
        if buffer.role == Role::Scratch {
            buffer.role = Role::Saved;
        }
    }
    plan
}
