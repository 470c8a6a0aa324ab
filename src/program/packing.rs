//! What kernels read of weights, packed anew whenever the weights have changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Program;
use crate::error::Result;
use crate::memory::{Held, Memory, Uses};

/// The section of a plan that packs.
pub(crate) const PREPARE: &str = "prepare";

/// A program that packs weights, and which state of them it packed last.
#[derive(Debug)]
pub(crate) struct Packing {
    program: Program,
    sources: Vec<Arc<Memory>>,
    packed: Uses,
    /// How often the sources and what is packed had been written when they were packed last.
    latest: AtomicU64,
}

impl Packing {
    /// Of a program whose section [`PREPARE`] writes what it packs and reads nothing else but its sources.
    ///
    /// # Errors
    /// If the program has no such section.
    pub(crate) fn new(program: Program) -> Result<Self> {
        let at = program.place(PREPARE)?;
        let uses = program.uses(at);
        Ok(Self {
            sources: uses.memories(false).cloned().collect(),
            packed: Uses::new(uses.memories(true).map(|memory| (memory, true))),
            program,
            latest: AtomicU64::new(u64::MAX),
        })
    }

    /// What it writes.
    pub(super) fn packed(&self) -> &Uses {
        &self.packed
    }

    /// Whether a call changes what it packs.
    pub(super) fn is_changed_by(&self, uses: &Uses) -> bool {
        self.sources.iter().any(|memory| uses.writes(memory))
    }

    /// What a call takes that packs.
    pub(crate) fn uses(&self) -> &Uses {
        // It has this section alone.
        self.program.uses(0)
    }

    /// Counts never fall, so that their sum stays only where nothing was written.
    fn written(&self) -> u64 {
        let all = self.sources.iter().chain(self.packed.memories(true));
        all.fold(0, |sum, memory| sum.wrapping_add(memory.version()))
    }

    /// Whether a host has commands that write the sources, so that nobody knows when they are written.
    fn is_recorded(&self) -> bool {
        self.sources.iter().any(|memory| memory.is_recorded())
    }

    fn is_stale(&self) -> bool {
        self.is_recorded() || self.latest.load(Ordering::Acquire) != self.written()
    }

    /// Notes that a call which has taken the sources has packed them.
    pub(super) fn mark(&self) {
        self.latest.store(self.written(), Ordering::Release);
    }

    /// Packs in a call that has taken all it [uses](Self::uses).
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn pack(&self, held: &Held<'_>) -> Result<()> {
        self.program.run_held(0, held)?;
        self.mark();
        Ok(())
    }

    /// Packs, whether it seems to be necessary or not: a host may have written buffers of a GPU itself.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.pack(&self.uses().take_again()?)
    }

    /// Takes what a call uses, of which some is what is packed, as the weights are now, and does the call's work.
    ///
    /// # Errors
    /// Those of the work, or if the device fails.
    pub(super) fn fresh<T>(
        &self,
        uses: &Uses,
        work: impl FnOnce(&Held<'_>) -> Result<T>,
    ) -> Result<T> {
        // Packing takes the sources alone, so that calls of other threads which pack them too wait no longer than that.
        if self.is_stale() && !self.is_recorded() {
            let held = self.uses().take_again()?;
            // Another call may have been faster.
            if self.is_stale() {
                self.pack(&held)?;
            }
        }
        let held = uses.take()?;
        if !self.is_stale() {
            return work(&held);
        }
        // Another thread has written weights in between, and may do so again, or a host at any time.
        drop(held);
        let both = uses.and(self.uses());
        let held = both.take()?;
        self.pack(&held)?;
        work(&held)
    }

    /// Records the packing. It runs when the host submits, which it need not do: to other calls the packing is as
    /// it was.
    ///
    /// # Errors
    /// If the program is on the CPU.
    #[cfg(feature = "gpu")]
    pub(crate) fn record(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.program.record(encoder, PREPARE)
    }

    /// Records it if it is necessary.
    ///
    /// # Errors
    /// If the program is on the CPU.
    #[cfg(feature = "gpu")]
    pub(super) fn record_refresh(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        match self.is_stale() {
            true => self.record(encoder),
            false => Ok(()),
        }
    }
}
