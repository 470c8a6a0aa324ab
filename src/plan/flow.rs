//! What must stand in a plan's buffers before its steps read them: otherwise they would compute with zeros, or
//! with what other buffers have left.

use std::collections::HashSet;

use super::{BufferId, Plan, Role, Section, Step};
use crate::error::{Error, Result};
use crate::kernel::Access;

const OP: &str = "Program::new";

impl Step {
    /// Whether it dispatches anything.
    fn runs(&self) -> bool {
        !self.grid.contains(&0)
    }

    fn accesses(&self) -> impl Iterator<Item = (BufferId, Access)> {
        let access = self.kernel.bindings.iter().map(|b| b.access);
        self.bindings.iter().copied().zip(access)
    }
}

impl Plan {
    /// Refuses a plan with scratch or weights that nothing fills, or packed weights that go stale. `bound` are the
    /// buffers to which the caller gives memory, with contents.
    pub(crate) fn check_flow(&self, bound: &HashSet<BufferId>) -> Result<()> {
        self.check_weights(bound)?;
        self.check_packed()?;
        let mut written = vec![0; self.buffers.len()];
        for (section, number) in self.sections.iter().zip(1..) {
            self.check_scratch(section, number, bound, &mut written)?;
        }
        Ok(())
    }

    /// Weights come from the caller, or from steps that fill them.
    fn check_weights(&self, bound: &HashSet<BufferId>) -> Result<()> {
        let mut filled = vec![false; self.buffers.len()];
        let mut used = vec![false; self.buffers.len()];
        for (at, step) in self.running() {
            for (id, access) in step.accesses() {
                if self.buffers[id.0].role == Role::Weight {
                    used[id.0] = true;
                    filled[id.0] |= access != Access::Read && !self.changes(at, id);
                }
            }
        }
        for (id, buffer) in self.ids() {
            let given = bound.contains(&id) || buffer.is_empty();
            if buffer.role == Role::Weight && used[id.0] && !filled[id.0] && !given {
                let packed = self.needs.packed.iter().find(|(packed, _)| *packed == id);
                let filled = match packed {
                    Some((_, source)) => format!(
                        "bound to a tensor, or filled by a step from '{}' (as sequence::prepare does)",
                        self.buffers[source.0].name
                    ),
                    None => "bound to a tensor, as it is a weight, or filled by a step".to_owned(),
                };
                return Err(Error::value(OP, named(&buffer.name), filled, "neither"));
            }
        }
        Ok(())
    }

    /// A plan that changes weights also packs them anew, in each section that reads them packed and before it does, or
    /// in the one that it follows.
    fn check_packed(&self) -> Result<()> {
        for (packed, source) in &self.needs.packed {
            let writes = |step: &Step, of: &BufferId| {
                let mut written = step
                    .accesses()
                    .filter(|(_, access)| *access != Access::Read);
                written.any(|(id, _)| id == *of)
            };
            if !self.running().any(|(_, step)| writes(step, source)) {
                continue;
            }
            let steps = |section: &Section| {
                self.steps[section.steps.clone()]
                    .iter()
                    .filter(|step| step.runs())
            };
            let packs = |name: &str| {
                let mut of = self.sections.iter().filter(|section| section.name == name);
                of.any(|section| steps(section).any(|step| writes(step, packed)))
            };
            for section in &self.sections {
                let first = steps(section).find(|step| step.bindings.contains(packed));
                let read = first.is_some_and(|step| !writes(step, packed));
                let mut before = self.follows.iter().filter(|f| f.section == section.name);
                if read && !before.any(|f| packs(f.after)) {
                    let [packed, source] = [packed, source].map(|id| &self.buffers[id.0].name);
                    let expected = format!(
                        "filled by a step of section '{}' before another reads it (as sequence::prepare does), since steps change '{source}', of which it is packed",
                        section.name
                    );
                    return Err(Error::value(OP, named(packed), expected, "no such step"));
                }
            }
        }
        Ok(())
    }

    /// Scratch is dead after its section, so each section fills what it reads. `written` has for each buffer the
    /// number of the latest section that wrote it.
    fn check_scratch(
        &self,
        section: &Section,
        number: usize,
        bound: &HashSet<BufferId>,
        written: &mut [usize],
    ) -> Result<()> {
        for at in section.steps.clone() {
            let step = &self.steps[at];
            if !step.runs() {
                continue;
            }
            for (id, access) in step.accesses() {
                let buffer = &self.buffers[id.0];
                let dead = buffer.role == Role::Scratch && written[id.0] != number;
                let needed = || match access {
                    Access::Read => !self.needs.unread.contains(&(at, id)),
                    _ => self.changes(at, id),
                };
                if dead && needed() && !bound.contains(&id) && !buffer.is_empty() {
                    let nth = at - section.steps.start;
                    let expected = format!(
                        "written in section '{}' before its step {nth} ({}) reads it, as it is scratch",
                        section.name, step.kernel.name
                    );
                    return Err(Error::value(
                        OP,
                        named(&buffer.name),
                        expected,
                        "no such step",
                    ));
                }
            }
            for (id, access) in step.accesses() {
                if access != Access::Read {
                    written[id.0] = number;
                }
            }
        }
        Ok(())
    }

    /// Whether a step changes what stands in a buffer.
    fn changes(&self, step: usize, id: BufferId) -> bool {
        self.needs.before.contains(&(step, id))
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Step)> {
        let all = self.steps.iter().enumerate();
        all.filter(|(_, step)| step.runs())
    }
}

fn named(buffer: &str) -> String {
    format!("'{buffer}'")
}
