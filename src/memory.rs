//! Memory that tensors share: which call may use it, and how often it was written.
//!
//! A call takes all memory that it touches before it begins, in one order for all calls, and holds it to
//! its end. So calls that share memory wait for each other, never for ever, and each sees what others
//! leave as a whole; calls that only read the same memory do not wait. On the CPU what is taken are the numbers
//! themselves; for a buffer of a GPU it is the right to send commands for it to the queue, which keeps their order.
//!
//! A thread that holds memory may begin another call, unknowingly: wgpu runs a host's callbacks inside a submission, and
//! a task that waits for others in rayon's pool runs what else waits there. Such a call waits only for memory that comes
//! later in the order than all that its thread holds; what else is not free at once is an error, since waiting for it
//! could last for ever.

use std::cell::{Ref, RefCell, RefMut};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{
    Arc, LockResult, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    TryLockError, TryLockResult,
};

use crate::error::{Error, Result};
use crate::host::Cells;

/// One allocation. See the [module](self).
#[derive(Debug)]
pub(crate) struct Memory {
    /// Its place in the order in which calls take memory.
    order: u64,
    version: AtomicU64,
    recorded: AtomicBool,
    cells: RwLock<Cells>,
}

impl Memory {
    pub(crate) fn new(cells: Cells) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            order: NEXT.fetch_add(1, Ordering::Relaxed),
            version: AtomicU64::new(0),
            recorded: AtomicBool::new(false),
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

    /// Whether a host has commands that write it, which it may submit whenever it likes: then
    /// [`Self::version`] does not tell all.
    pub(crate) fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Acquire)
    }

    /// Notes that a host was given commands that write it.
    #[cfg(feature = "gpu")]
    fn record(&self) {
        self.recorded.store(true, Ordering::Release);
    }

    /// Notes that a host has submitted all commands that write it: now it is written.
    pub(crate) fn submitted(&self) {
        if self.recorded.swap(false, Ordering::AcqRel) {
            self.touch();
        }
    }

    /// Takes it alone to read.
    pub(crate) fn read(&self) -> Result<Reading<'_>> {
        let guard = self.lock(|| self.cells.read(), || self.cells.try_read())?;
        Ok(Reading(guard, Mark::new(self.order)))
    }

    /// Takes it alone to write.
    pub(crate) fn write(&self) -> Result<Writing<'_>> {
        let guard = self.take_to_write()?;
        self.touch();
        Ok(guard)
    }

    fn take_to_write(&self) -> Result<Writing<'_>> {
        let guard = self.lock(|| self.cells.write(), || self.cells.try_write())?;
        Ok(Writing(guard, Mark::new(self.order)))
    }

    /// Waits for it only where that cannot last for ever.
    fn lock<G>(
        &self,
        wait: impl FnOnce() -> LockResult<G>,
        at_once: impl FnOnce() -> TryLockResult<G>,
    ) -> Result<G> {
        let waits = HELD.with_borrow(|held| held.iter().all(|order| *order < self.order));
        let poisoned = |e: &dyn std::fmt::Display| e.to_string();
        let reason = match waits {
            // A lock is poisoned only if a twin panicked, which is reported as a failed device.
            true => match wait() {
                Ok(guard) => return Ok(guard),
                Err(e) => poisoned(&e),
            },
            false => match at_once() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(e)) => poisoned(&e),
                Err(TryLockError::WouldBlock) => BUSY.to_owned(),
            },
        };
        Err(failed(reason))
    }
}

const BUSY: &str = "it is in use, and this thread is in a call already: a callback of wgpu and a task of rayon run inside other \
     calls";

fn failed(reason: String) -> Error {
    Error::Device {
        op: "taking memory".to_owned(),
        reason,
    }
}

/// Takes what is held around calls that take memory. A thread that is in a call already does not wait for it.
///
/// # Errors
/// [`Error::Device`] if such a thread would have to wait.
pub(crate) fn lock<T>(around: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    match HELD.with_borrow(Vec::is_empty) {
        true => Ok(around.lock().unwrap_or_else(PoisonError::into_inner)),
        false => match around.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(e)) => Ok(e.into_inner()),
            Err(TryLockError::WouldBlock) => Err(failed(BUSY.to_owned())),
        },
    }
}

thread_local! {
    /// The [order](Memory::order) of what this thread holds.
    static HELD: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// An entry of [`HELD`].
#[derive(Debug)]
struct Mark(u64);

impl Mark {
    fn new(order: u64) -> Self {
        HELD.with_borrow_mut(|held| held.push(order));
        Self(order)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            if let Some(at) = held.iter().rposition(|order| *order == self.0) {
                held.swap_remove(at);
            }
        });
    }
}

/// Memory that was taken to read.
#[derive(Debug)]
pub(crate) struct Reading<'a>(
    RwLockReadGuard<'a, Cells>,
    #[expect(dead_code, reason = "it is dropped with it")] Mark,
);

impl Deref for Reading<'_> {
    type Target = Cells;

    fn deref(&self) -> &Cells {
        &self.0
    }
}

/// Memory that was taken to write.
#[derive(Debug)]
pub(crate) struct Writing<'a>(
    RwLockWriteGuard<'a, Cells>,
    #[expect(dead_code, reason = "it is dropped with it")] Mark,
);

impl Deref for Writing<'_> {
    type Target = Cells;

    fn deref(&self) -> &Cells {
        &self.0
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut Cells {
        &mut self.0
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

    /// Whether a memory is written.
    pub(crate) fn writes(&self, memory: &Memory) -> bool {
        let order = |of: &Use| of.memory.order;
        let found = self.0.binary_search_by_key(&memory.order, order);
        found.is_ok_and(|at| self.0[at].writes)
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
    /// [`Error::Device`] if a call panicked while it wrote some of it, or if this thread is in a call already and would
    /// have to wait; nothing is written then.
    pub(crate) fn take(&self) -> Result<Held<'_>> {
        let held = self.take_again()?;
        self.touch();
        Ok(held)
    }

    /// [`Self::take`] by a call that writes what stands there already, unless it is stale: that is no change to others.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(crate) fn take_again(&self) -> Result<Held<'_>> {
        let mut guards = Vec::with_capacity(self.0.len());
        for Use { memory, writes } in &self.0 {
            let guard = match writes {
                true => Guard::Write(memory.take_to_write()?),
                false => Guard::Read(memory.read()?),
            };
            guards.push((memory.order, RefCell::new(Some(guard))));
        }
        Ok(Held { guards })
    }

    /// Notes that what the call writes is written.
    pub(crate) fn touch(&self) {
        self.memories(true).for_each(|memory| memory.touch());
    }

    /// Notes that what the call writes is written by commands that a host was given.
    #[cfg(feature = "gpu")]
    pub(crate) fn touch_recorded(&self) {
        self.touch();
        let written = self.memories(true);
        written.for_each(|memory| memory.record());
    }
}

#[derive(Debug)]
enum Guard<'a> {
    Read(Reading<'a>),
    Write(Writing<'a>),
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

    /// A callback that runs inside a call.
    #[test]
    fn inside_another_call() -> Result<()> {
        let [a, b] = [memory(), memory()];
        let both = Uses::new([(&a, false), (&b, true)]);
        let held = both.take()?;
        // It would wait for its own thread.
        assert!(b.read().is_err() && b.write().is_err() && both.take().is_err());
        assert!(a.write().is_err());
        // Nobody keeps it from reading what is read.
        drop(a.read()?);
        drop(held);
        drop(both.take()?);

        // Two that would wait for each other.
        let held = b.write()?;
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let held = a.write()?;
                // What comes later in the order is waited for.
                drop(b.read()?);
                drop(held);
                Ok(())
            });
            while a.cells.try_read().is_ok() && !other.is_finished() {
                std::thread::yield_now();
            }
            assert!(a.read().is_err());
            drop(held);
            other.join().expect("no panic")
        })
    }
}
