//! A section that goes on from what another left: a backward pass from its forward pass.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::memory::Uses;
use crate::plan::{Follows, Plan};
use crate::tensor::Tensor;

/// What was seen of the section that another follows, one for each of a plan's [`Follows`].
#[derive(Debug)]
pub(super) struct Seen {
    /// Whether it ran to its end.
    ran: AtomicBool,
    /// How often each of what may not change had been written when it began.
    versions: Vec<AtomicU64>,
}

impl Seen {
    pub(super) fn new(follows: &Follows) -> Self {
        let unchanged = follows.unchanged.iter();
        Self {
            ran: AtomicBool::new(false),
            versions: unchanged.map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Notes that the section begins.
    pub(super) fn begin(&self, follows: &Follows, tensors: &[Tensor]) {
        self.ran.store(false, Ordering::Release);
        for (seen, id) in self.versions.iter().zip(&follows.unchanged) {
            seen.store(tensors[id.0].memory().version(), Ordering::Relaxed);
        }
    }

    /// Notes that it has run.
    pub(super) fn end(&self) {
        self.ran.store(true, Ordering::Release);
    }

    /// Refuses the section that follows if the first has not run, or what both read has been written since; the call
    /// may have taken some of it to write itself.
    pub(super) fn check(
        &self,
        follows: &Follows,
        plan: &Plan,
        tensors: &[Tensor],
        taken: &Uses,
    ) -> Result<()> {
        let Follows { section, after, .. } = follows;
        if !self.ran.load(Ordering::Acquire) {
            let expected = format!("preceded by the {after} pass");
            return Err(Error::value(section, "call", expected, "none"));
        }
        let mut each = self.versions.iter().zip(&follows.unchanged);
        let changed = each.find(|(seen, id)| {
            let memory = tensors[id.0].memory();
            let own = u64::from(taken.writes(memory));
            seen.load(Ordering::Relaxed) + own != memory.version()
        });
        match changed {
            None => Ok(()),
            Some((_, id)) => {
                let arg = &plan.buffers[id.0].name;
                let expected = format!("what the latest {after} pass read");
                Err(Error::value(
                    section,
                    arg,
                    expected,
                    "values that were written since",
                ))
            }
        }
    }
}
