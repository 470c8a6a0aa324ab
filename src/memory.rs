//! Memory that tensors share: which call may use it, and how often it was written.
//!
//! A call takes all memory that it touches before it begins, in one order for all calls, and holds it to
//! its end. So calls that share memory wait for each other, never for ever, and each sees what others
//! leave as a whole; calls that only read the same memory do not wait. On the CPU what is taken are the numbers
//! themselves; for a buffer of a GPU it is the right to send commands for it to the queue, which keeps their order.

use std::cell::{Ref, RefCell, RefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LockResult, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Error, Result};
use crate::host::Cells;

/// One allocation. See the [module](self).
#[derive(Debug)]
pub(crate) struct Memory {
    /// Its place in the order in which calls take memory.
    order: u64,
    version: AtomicU64,
    cells: RwLock<Cells>,
}

impl Memory {
    pub(crate) fn new(cells: Cells) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            order: NEXT.fetch_add(1, Ordering::Relaxed),
            version: AtomicU64::new(0),
            cells: RwLock::new(cells),
        })
    }

    /// A number that no other has.
    pub(crate) fn order(&self) -> u64 {
        self.order
    }

    /// How often it was written, or recorded to be written, by calls of this crate.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Notes that it is written.
    pub(crate) fn touch(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes it alone to read.
    pub(crate) fn read(&self) -> Result<RwLockReadGuard<'_, Cells>> {
        locked(self.cells.read())
    }

    /// Takes it alone to write.
    pub(crate) fn write(&self) -> Result<RwLockWriteGuard<'_, Cells>> {
        let guard = locked(self.cells.write())?;
        self.touch();
        Ok(guard)
    }
}

/// What a call does with some memory.
#[derive(Debug, Clone)]
struct Use {
    memory: Arc<Memory>,
    writes: bool,
}

/// The memory that a call takes: each once, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses(Vec<Use>);

impl Uses {
    /// Of memory and whether it is written, in any order and as often as one likes.
    pub(crate) fn new<'a>(all: impl IntoIterator<Item = (&'a Arc<Memory>, bool)>) -> Self {
        let each = all.into_iter().map(|(memory, writes)| Use {
            memory: memory.clone(),
            writes,
        });
        Self::of(each.collect())
    }

    fn of(mut all: Vec<Use>) -> Self {
        all.sort_by_key(|of| of.memory.order);
        all.dedup_by(|next, kept| {
            let same = Arc::ptr_eq(&next.memory, &kept.memory);
            kept.writes |= same && next.writes;
            same
        });
        Self(all)
    }

    /// How many memories there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is written of it, or what is only read.
    pub(crate) fn memories(&self, written: bool) -> impl Iterator<Item = &Arc<Memory>> {
        let these = self.0.iter().filter(move |of| of.writes == written);
        these.map(|of| &of.memory)
    }

    /// What another has not.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let only = self.0.iter().filter(|of| !other.has(&of.memory));
        Self(only.cloned().collect())
    }

    /// Whether a memory belongs to it.
    pub(crate) fn has(&self, memory: &Memory) -> bool {
        let order = |of: &Use| of.memory.order;
        self.0.binary_search_by_key(&memory.order, order).is_ok()
    }

    /// That of two calls.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self::of([&*self.0, &*other.0].concat())
    }

    /// Waits until all of it can be taken.
    ///
    /// # Errors
    /// [`Error::Device`] if a call panicked while it wrote some of it; nothing is written then.
    pub(crate) fn take(&self) -> Result<Held<'_>> {
        let mut guards = Vec::with_capacity(self.0.len());
        for Use { memory, writes } in &self.0 {
            let guard = match writes {
                true => Guard::Write(locked(memory.cells.write())?),
                false => Guard::Read(locked(memory.cells.read())?),
            };
            guards.push((memory.order, RefCell::new(Some(guard))));
        }
        self.touch();
        Ok(Held { guards })
    }

    /// Notes that what the call writes is written.
    pub(crate) fn touch(&self) {
        let written = self.0.iter().filter(|of| of.writes);
        written.for_each(|of| of.memory.touch());
    }
}

#[derive(Debug)]
enum Guard<'a> {
    Read(RwLockReadGuard<'a, Cells>),
    Write(RwLockWriteGuard<'a, Cells>),
}

/// The memory that a call has taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    /// In order.
    guards: Vec<(u64, RefCell<Option<Guard<'a>>>)>,
}

impl<'a> Held<'a> {
    fn find(&self, memory: &Memory) -> Result<&RefCell<Option<Guard<'a>>>> {
        let found = self
            .guards
            .binary_search_by_key(&memory.order, |(order, _)| *order);
        found.map(|at| &self.guards[at].1).map_err(|_| not_taken())
    }

    /// Some of it to read.
    pub(crate) fn read(&self, memory: &Memory) -> Result<Ref<'_, Cells>> {
        let guard = self.find(memory)?.try_borrow().map_err(|_| not_taken())?;
        let cells = Ref::filter_map(guard, |guard| match guard {
            Some(Guard::Read(cells)) => Some(&**cells),
            Some(Guard::Write(cells)) => Some(&**cells),
            None => None,
        });
        cells.map_err(|_| not_taken())
    }

    /// Some of it to write.
    pub(crate) fn write(&self, memory: &Memory) -> Result<RefMut<'_, Cells>> {
        let guard = self.find(memory)?.try_borrow_mut();
        let guard = guard.map_err(|_| not_taken())?;
        let cells = RefMut::filter_map(guard, |guard| match guard {
            Some(Guard::Write(cells)) => Some(&mut **cells),
            Some(Guard::Read(_)) | None => None,
        });
        cells.map_err(|_| not_taken())
    }

    /// Gives back what the rest of the call does not use. That is no less in order than giving back all in the end, as
    /// nothing is taken any more.
    pub(crate) fn give_back(&self, early: &Uses) {
        for memory in early.0.iter().map(|of| &of.memory) {
            if let Ok(mut guard) = self.find(memory).map(RefCell::borrow_mut) {
                *guard = None;
            }
        }
    }
}

fn not_taken() -> Error {
    Error::Device {
        op: "a call".to_owned(),
        reason: "it uses memory otherwise than it took it".to_owned(),
    }
}

/// A lock is poisoned only if a twin panicked, which is reported as a failed device.
fn locked<G>(guard: LockResult<G>) -> Result<G> {
    guard.map_err(|e| Error::Device {
        op: "taking memory".to_owned(),
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Arc<Memory> {
        Memory::new(Cells::F32(vec![0.0; 4]))
    }

    #[test]
    fn each_is_taken_once_as_strongly_as_it_is_used() -> Result<()> {
        let [a, b] = [memory(), memory()];
        let uses = Uses::new([(&b, false), (&a, false), (&b, true), (&b, false)]);
        let held = uses.take()?;
        assert_eq!(held.guards.len(), 2);
        assert_eq!([a.version(), b.version()], [0, 1]);
        held.write(&b)?.write(0..4, &[1.0; 4], |v| v, f64::from)?;
        assert!(held.write(&a).is_err());
        let both = (held.read(&b)?, held.read(&b)?);
        assert!(held.write(&b).is_err());
        drop(both);
        assert!(held.read(&memory()).is_err());
        held.give_back(&Uses::new([(&b, true)]));
        assert!(held.read(&b).is_err() && held.read(&a).is_ok());
        drop(b.write()?);
        Ok(())
    }

    #[test]
    fn in_one_order_however_it_is_named() {
        let all: Vec<_> = (0..5).map(|_| memory()).collect();
        let uses = [
            Uses::new(all.iter().map(|m| (m, true))),
            Uses::new(all.iter().rev().map(|m| (m, true))),
        ];
        std::thread::scope(|scope| {
            for uses in &uses {
                scope.spawn(|| (0..2_000).for_each(|_| drop(uses.take().unwrap())));
            }
        });
        assert!(all.iter().all(|m| m.version() == 4_000));
    }
}
