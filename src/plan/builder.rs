//! Building a plan: buffers, sections and checked dispatches.

use std::collections::HashMap;

use bytemuck::NoUninit;

use super::sequence::Precision;
use super::{
    Buffer, BufferId, Choice, Contents, Cost, Follows, Needs, PARAMS_STRIDE, Plan, PlanId, Role,
    Section, Small, Step, Target,
};
use crate::error::{Error, Result};
use crate::kernel::{Access, Constant, Element, Kernel, MAX_BINDINGS, Told};
use crate::tensor::Ids;

/// The most workgroups in one dimension of a dispatch.
pub(crate) const MAX_GROUPS: u32 = 65_535;

/// The section of steps before which none was started.
const MAIN: &str = "main";
/// The most dispatches of a plan: each takes some hundred bytes and, when it runs, some microseconds.
pub(crate) const MAX_STEPS: usize = 1 << 22;

/// Collects buffers and steps, checks each step, and ends as a [`Plan`].
#[derive(Debug)]
pub struct Builder {
    plan: Plan,
    target: Target,
    /// The names that are taken, each with the number to be tried next behind it.
    names: HashMap<String, usize>,
    /// Where a choice stands among the plan's.
    choices: HashMap<(String, &'static str, String), usize>,
    /// The section of the forward pass that starts from a state.
    forward: HashMap<BufferId, &'static str>,
}

/// One dispatch on its way into a plan.
#[derive(Debug)]
pub struct Dispatch<'a, P> {
    /// Which kernel.
    pub kernel: &'static Kernel,
    /// The constants it is specialised to.
    pub constants: &'a [Constant],
    /// Its buffers, in the order of the kernel's bindings.
    pub bindings: &'a [BufferId],
    /// Its parameters.
    pub params: P,
    /// How many invocations there must be at least, one element each, for a kernel that indexes
    /// with `flat_index`; or the workgroups themselves.
    pub grid: Grid,
    /// What it costs.
    pub cost: Cost,
}

/// The size of a dispatch.
#[derive(Debug, Clone, Copy)]
pub enum Grid {
    /// At least this many invocations, folded over x and y (`flat_index` in the shader).
    Flat(usize),
    /// This many workgroups in x, y and z.
    Groups([usize; 3]),
}

impl Builder {
    /// An empty plan for a portable GPU, which every device can run.
    pub fn new(name: impl Into<String>) -> Self {
        Self::on(name, Target::default())
    }

    /// An empty plan for a device; [`Context::target`](crate::Context::target) says what one is.
    pub fn on(name: impl Into<String>, target: Target) -> Self {
        Self {
            target,
            names: HashMap::new(),
            choices: HashMap::new(),
            forward: HashMap::new(),
            plan: Plan {
                id: PlanId::new(),
                name: name.into(),
                buffers: Vec::new(),
                steps: Vec::new(),
                sections: Vec::new(),
                params: Vec::new(),
                choices: Vec::new(),
                contents: Vec::new(),
                needs: Needs::default(),
                follows: Vec::new(),
                small: Vec::new(),
            },
        }
    }

    /// Adds a buffer of floats. If its name is taken, a number is put behind it.
    pub fn float(&mut self, name: &str, shape: &[usize], role: Role) -> BufferId {
        self.add(name, shape, Element::Float, role)
    }

    /// Adds a buffer of unsigned integers.
    pub fn uint(&mut self, name: &str, shape: &[usize], role: Role) -> BufferId {
        self.add(name, shape, Element::Uint, role)
    }

    /// Adds a buffer of weights in a precision: floats, or 16-bit floats.
    pub fn stored(
        &mut self,
        precision: Precision,
        name: &str,
        shape: &[usize],
        role: Role,
    ) -> BufferId {
        self.add(name, shape, precision.element(), role)
    }

    fn add(&mut self, name: &str, shape: &[usize], element: Element, role: Role) -> BufferId {
        let name = self.unique(name);
        self.plan.buffers.push(Buffer {
            name,
            shape: shape.to_vec(),
            element,
            role,
        });
        BufferId(self.plan.buffers.len() - 1, self.plan.id)
    }

    /// The name, or if it is taken with the first number behind it that is not.
    fn unique(&mut self, name: &str) -> String {
        let Some(&next) = self.names.get(name) else {
            self.names.insert(name.to_owned(), 2);
            return name.to_owned();
        };
        let mut number = next;
        let unique = loop {
            let numbered = format!("{name}.{number}");
            number += 1;
            if !self.names.contains_key(&numbered) {
                break numbered;
            }
        };
        self.names.insert(name.to_owned(), number);
        self.names.insert(unique.clone(), 2);
        unique
    }

    /// What the plan is made for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Puts integers into a buffer from an element on, once, when the plan is given memory.
    ///
    /// # Errors
    /// If the buffer is of another plan, holds no integers, or is too short.
    pub fn contents(&mut self, id: BufferId, start: usize, words: Vec<u32>) -> Result<()> {
        const OP: &str = "Builder::contents";
        let buffer = self.buffer(id)?;
        if buffer.element != Element::Uint {
            let got = buffer.element;
            return Err(Error::shape(OP, &buffer.name, Element::Uint, got));
        }
        let end = start.saturating_add(words.len());
        if end > buffer.len() {
            let expected = format!("at least {end} elements long");
            return Err(Error::value(OP, &buffer.name, expected, buffer.len()));
        }
        self.plan.contents.push(Contents {
            buffer: id,
            start,
            words,
        });
        Ok(())
    }

    /// Notes how a small plan with kernels of this one is made.
    pub(crate) fn small(&mut self, small: Small) {
        self.plan.small.push(small);
    }

    /// Notes a choice for [`Plan::choices`].
    pub fn chose(&mut self, what: &str, chosen: &'static str, why: &str) {
        let all = &mut self.plan.choices;
        let key = (what.to_owned(), chosen, why.to_owned());
        let at = *self.choices.entry(key).or_insert(all.len());
        match all.get_mut(at) {
            Some(choice) => choice.count += 1,
            None => all.push(Choice {
                what: what.to_owned(),
                chosen,
                why: why.to_owned(),
                count: 1,
            }),
        }
    }

    /// The buffer with this id.
    ///
    /// # Errors
    /// If the id is of another plan, or the buffer has more elements than any device.
    pub fn buffer(&self, id: BufferId) -> Result<&Buffer> {
        self.plan.buffer(id)
    }

    /// Notes that the latest step changes what stands in a buffer rather than fill it anew: then
    /// [`Program::new`](crate::Program::new) refuses a plan in which nothing has filled it before. What a kernel
    /// writes counts as all of its buffer.
    pub fn changed(&mut self, id: BufferId) {
        if let Some(latest) = self.plan.steps.len().checked_sub(1) {
            self.plan.needs.before.insert((latest, id));
        }
    }

    /// Notes that the latest step does not read a buffer that it binds for reading.
    pub(crate) fn unread(&mut self, id: BufferId) {
        if let Some(latest) = self.plan.steps.len().checked_sub(1) {
            self.plan.needs.unread.insert((latest, id));
        }
    }

    /// Notes that a buffer holds what some steps make of another, and is stale once that has changed.
    pub(crate) fn packs(&mut self, packed: BufferId, source: BufferId) {
        self.plan.needs.packed.push((packed, source));
    }

    /// Notes that a buffer holds token ids. Of several uses the strictest counts.
    pub(crate) fn holds_ids(&mut self, buffer: BufferId, ids: Ids) {
        let all = &mut self.plan.needs.ids;
        let known = all.entry(buffer).or_insert(ids);
        known.vocabulary = known.vocabulary.min(ids.vocabulary);
        known.except = known.except.filter(|_| ids.except == known.except);
    }

    /// Starts a section; the steps that follow belong to it.
    pub fn section(&mut self, name: &'static str) {
        let at = self.plan.steps.len();
        self.plan.sections.push(Section {
            name,
            steps: at..at,
        });
    }

    /// Notes that the forward pass from a state ends in the current section.
    pub(crate) fn forward_from(&mut self, state: BufferId) {
        let section = self.current();
        self.forward.insert(state, section);
    }

    /// Notes that the current section goes on from the forward pass from a state, and that what both read may not be
    /// written in between.
    ///
    /// # Errors
    /// If the plan has no such forward pass.
    pub(crate) fn backward_from(
        &mut self,
        state: BufferId,
        unchanged: Vec<BufferId>,
    ) -> Result<()> {
        let section = self.current();
        let Some(&after) = self.forward.get(&state) else {
            let expected = "those of a forward pass in the same plan";
            return Err(Error::value("backward", "states", expected, "others"));
        };
        if after != section {
            self.plan.follows.push(Follows {
                section,
                after,
                unchanged,
            });
        }
        Ok(())
    }

    /// The name of the current section.
    fn current(&self) -> &'static str {
        self.plan
            .sections
            .last()
            .map_or(MAIN, |section| section.name)
    }

    /// Adds a dispatch to the current section (`main` if none was started).
    ///
    /// # Errors
    /// If its buffers do not fit the kernel's bindings or are of another plan, if one buffer is bound twice
    /// and written, if the grid is too large for any device, or if the plan has too many steps.
    pub fn push<P: NoUninit>(&mut self, dispatch: Dispatch<'_, P>) -> Result<()> {
        let Dispatch {
            kernel,
            constants,
            bindings,
            params,
            grid,
            cost,
        } = dispatch;
        if self.target.denied.has(kernel) {
            return Err(Error::Denied {
                kernel: kernel.name,
            });
        }
        self.check_bindings(kernel, bindings)?;
        if self.plan.steps.len() >= MAX_STEPS {
            return Err(Error::Limit {
                what: format!("dispatches of the plan '{}'", self.plan.name),
                needed: MAX_STEPS as u64 + 1,
                available: MAX_STEPS as u64,
            });
        }
        let grid = grid.groups(kernel)?;
        let bytes = bytemuck::bytes_of(&params);
        if bytes.len() != kernel.params_size || bytes.len() > PARAMS_STRIDE {
            let expected = format!(
                "the kernel's {} bytes, of {PARAMS_STRIDE} at most",
                kernel.params_size
            );
            return Err(Error::value(kernel.name, "params", expected, bytes.len()));
        }
        // What a kernel is told of a buffer's elements cannot differ from what they are.
        let halves = bindings.iter().zip(kernel.bindings).filter_map(|(&id, b)| {
            let half = self.plan.buffers[id.0].element == Element::Half;
            Some((b.half?, u32::from(half)))
        });
        let constants: Vec<Constant> = constants.iter().copied().chain(halves).collect();
        let told = Told {
            kernel,
            params: bytes,
            constants: &constants,
        };
        told.check_rounds(self.target.loop_rounds)?;
        let start = self.plan.params.len();
        self.plan.params.extend_from_slice(bytes);
        self.plan.params.resize(start + PARAMS_STRIDE, 0);
        if self.plan.sections.is_empty() {
            self.section(MAIN);
        }
        self.plan.steps.push(Step {
            kernel,
            constants,
            bindings: bindings.to_vec(),
            params: start..start + bytes.len(),
            grid,
            cost,
        });
        let end = self.plan.steps.len();
        if let Some(section) = self.plan.sections.last_mut() {
            section.steps.end = end;
        }
        Ok(())
    }

    fn check_bindings(&self, kernel: &'static Kernel, bindings: &[BufferId]) -> Result<()> {
        let expected = kernel.bindings.len();
        if bindings.len() != expected || expected > MAX_BINDINGS {
            let expected = format!("the kernel's {expected}, of {MAX_BINDINGS} at most");
            let got = bindings.len();
            return Err(Error::value(
                kernel.name,
                "number of bindings",
                expected,
                got,
            ));
        }
        for (i, (&id, binding)) in bindings.iter().zip(kernel.bindings).enumerate() {
            let buffer = self.plan.own(kernel.name, binding.name, id)?;
            buffer.check_size()?;
            if !binding.takes(buffer.element) {
                let (expected, got) = (binding.element, buffer.element);
                return Err(Error::shape(kernel.name, binding.name, expected, got));
            }
            let clash = bindings[..i].iter().zip(kernel.bindings).any(|(&o, b)| {
                o == id && (b.access != Access::Read || binding.access != Access::Read)
            });
            if clash {
                return Err(Error::value(
                    kernel.name,
                    binding.name,
                    "a buffer that no other binding of the step writes or reads",
                    &buffer.name,
                ));
            }
        }
        Ok(())
    }

    /// The finished plan.
    pub fn finish(self) -> Plan {
        self.plan
    }
}

impl Grid {
    fn groups(self, kernel: &Kernel) -> Result<[u32; 3]> {
        let groups = match self {
            Self::Flat(n) => {
                let groups = n.div_ceil(kernel.workgroup_size as usize);
                let y = groups.div_ceil(MAX_GROUPS as usize).max(1);
                [groups.div_ceil(y), y, 1]
            }
            Self::Groups(groups) => groups,
        };
        let mut out = [0; 3];
        for (o, &g) in out.iter_mut().zip(&groups) {
            *o = u32::try_from(g)
                .ok()
                .filter(|g| *g <= MAX_GROUPS)
                .ok_or_else(|| Error::Limit {
                    what: format!("{}: workgroups per dimension", kernel.name),
                    needed: g as u64,
                    available: u64::from(MAX_GROUPS),
                })?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::copy;

    #[test]
    fn names_stay_unique() {
        let mut b = Builder::new("p");
        let one = b.float("x", &[1], Role::Input);
        let two = b.float("x", &[1], Role::Input);
        let name = |b: &Builder, id| b.buffer(id).unwrap().name.clone();
        assert_eq!(name(&b, one), "x");
        assert_eq!(name(&b, two), "x.2");
        // A number that is taken by itself is passed over.
        let more = ["y", "y.2", "y", "y", "y.2"].map(|n| b.float(n, &[1], Role::Input));
        let names = more.map(|id| name(&b, id));
        assert_eq!(names, ["y", "y.2", "y.3", "y.4", "y.2.2"]);
    }

    /// What [`Builder::unique`] gives is what trying all numbers from 2 on would.
    #[test]
    fn names_are_the_first_that_are_free() {
        let mut b = Builder::new("p");
        let mut taken: Vec<String> = Vec::new();
        for nth in 0..200_usize {
            let wanted = ["a", "a.2", "a.2.2", "b", "a.3"][nth * nth % 5];
            let mut free = wanted.to_owned();
            let mut number = 2;
            while taken.contains(&free) {
                free = format!("{wanted}.{number}");
                number += 1;
            }
            let id = b.float(wanted, &[1], Role::Input);
            assert_eq!(b.buffer(id).unwrap().name, free);
            taken.push(free);
        }
    }

    #[test]
    fn choices_are_counted() {
        let mut b = Builder::new("p");
        for (what, why) in [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("a", "x")] {
            b.chose(what, "c", why);
        }
        let plan = b.finish();
        let all = plan
            .choices()
            .iter()
            .map(|c| (c.what.as_str(), c.why.as_str(), c.count));
        let all: Vec<_> = all.collect();
        assert_eq!(all, [("a", "x", 3), ("b", "x", 1), ("a", "y", 1)]);
    }

    #[test]
    fn a_written_buffer_is_bound_once() {
        let mut b = Builder::new("p");
        let x = b.float("x", &[4], Role::Input);
        assert!(copy::copy(&mut b, (x, 0), (x, 0), 4).is_err());
    }

    #[test]
    fn an_element_of_another_kind_is_refused() {
        let mut b = Builder::new("p");
        let x = b.uint("x", &[4], Role::Input);
        let y = b.float("y", &[4], Role::Output);
        assert!(copy::copy(&mut b, (x, 0), (y, 0), 4).is_err());
    }

    #[test]
    fn large_grids_fold() {
        let kernel = &copy::COPY;
        let size = kernel.workgroup_size as usize;
        let most = MAX_GROUPS as usize * size;
        assert_eq!(Grid::Flat(0).groups(kernel).unwrap(), [0, 1, 1]);
        assert_eq!(Grid::Flat(most).groups(kernel).unwrap(), [65_535, 1, 1]);
        let [x, y, z] = Grid::Flat(most + 1).groups(kernel).unwrap();
        assert_eq!((y, z), (2, 1));
        assert!(x as usize * 2 * size > most);
        let e = Grid::Groups([1, 65_536, 1]).groups(kernel).unwrap_err();
        assert!(matches!(e, Error::Limit { needed: 65_536, .. }));
    }
}
