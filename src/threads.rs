//! Work for the threads of rayon's pool, in pieces of some microseconds.
//!
//! A thread of the pool that has nothing to do sleeps, and waking it takes tens of microseconds, at both
//! ends of a piece of work: longer than many a step of a stream. So the thread that runs a plan does its
//! share itself instead of waiting for the pool to do all, and others are [kept awake](awake) as long as
//! a plan with enough work runs.
//!
//! That thread holds the memory of the plan, for which tasks of the host in the same pool may wait. So it waits for
//! nobody who has not begun with its work, and never does a task of the pool meanwhile: where all threads of the pool
//! wait for the memory, it does the work alone.

use std::any::Any;
use std::cell::Cell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Thread, current, park};

use crate::kernels::simd::team::Team;

/// So many looks before a thread sleeps until another is done.
const LOOKS: usize = 4000;

/// Calls `work` with each number below `workers`: with 0 on this thread, with the others on those threads of the
/// pool that come meanwhile, and with those that are left on this thread again.
pub(crate) fn crew(workers: usize, work: impl Fn(usize) + Sync) {
    if workers < 2 {
        return (0..workers).for_each(work);
    }
    let place = Arc::new(Place::new(workers, &work));
    for _ in 1..workers {
        let place = place.clone();
        rayon::spawn(move || place.join());
    }
    // Whatever happens, nobody is at work when this function ends.
    let closes = Closes(&place);
    work(0);
    while let Some(number) = place.take() {
        work(number);
    }
    drop(closes);
    if let Some(panic) = place.panic() {
        resume_unwind(panic);
    }
}

/// Where threads join in with some work until the one that called them leaves.
struct Place {
    work: Work,
    workers: usize,
    /// The first number that nobody has taken.
    next: AtomicUsize,
    /// How many others are at work, and [`CLOSED`].
    inside: AtomicUsize,
    caller: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Added to those inside when nobody may join any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Borrowed work, whoever holds it.
struct Work(*const (dyn Fn(usize) + Sync));

// SAFETY: it points to what is `Sync`, which threads may call at the same time.
#[allow(unsafe_code, reason = "a pool's tasks may not borrow")]
unsafe impl Send for Work {}
// SAFETY: as for `Send`.
#[allow(unsafe_code, reason = "a pool's tasks may not borrow")]
unsafe impl Sync for Work {}

impl Place {
    fn new<'a>(workers: usize, work: &'a (dyn Fn(usize) + Sync + 'a)) -> Self {
        let work: *const (dyn Fn(usize) + Sync + 'a) = work;
        // SAFETY: a pointer to the same thing; it is used by `join` alone, while the borrow lasts.
        #[allow(unsafe_code, reason = "a pool's tasks may not borrow")]
        let work = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize) + Sync + 'a),
                *const (dyn Fn(usize) + Sync + 'static),
            >(work)
        };
        Self {
            work: Work(work),
            workers,
            next: AtomicUsize::new(1),
            inside: AtomicUsize::new(0),
            caller: current(),
            panic: Mutex::new(None),
        }
    }

    /// A number that nobody has taken.
    fn take(&self) -> Option<usize> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.workers).then_some(number)
    }

    /// Works until nothing is left, unless it is closed.
    fn join(&self) {
        let enter = |inside| (inside & CLOSED == 0).then_some(inside + 1);
        let inside = &self.inside;
        if inside
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, enter)
            .is_err()
        {
            return;
        }
        // SAFETY: who has entered is waited for by `Closes`, before the end of the function that lends the work.
        #[allow(unsafe_code, reason = "a pool's tasks may not borrow")]
        let work = unsafe { &*self.work.0 };
        let done = catch_unwind(AssertUnwindSafe(|| {
            while let Some(number) = self.take() {
                work(number);
            }
        }));
        if let Err(panic) = done {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(panic);
        }
        if inside.fetch_sub(1, Ordering::AcqRel) == CLOSED + 1 {
            self.caller.unpark();
        }
    }

    fn panic(&self) -> Option<Box<dyn Any + Send>> {
        let mut panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
        panic.take()
    }
}

/// Lets nobody join any more when it is dropped, and waits for those who have.
struct Closes<'a>(&'a Place);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        let inside = &self.0.inside;
        inside.fetch_or(CLOSED, Ordering::AcqRel);
        let mut looks = 0;
        while inside.load(Ordering::Acquire) != CLOSED {
            looks += 1;
            match looks < LOOKS {
                true => spin_loop(),
                false => park(),
            }
        }
    }
}

/// Hands out parts that need nothing of each other. Workers begin in different places, always the
/// same for a number of parts, so that what they read may still be in their caches.
pub(crate) fn share_out<T: Send>(workers: usize, parts: Vec<T>, work: impl Fn(T) + Sync) {
    let team = Team::new(workers, parts.len());
    let parts: Vec<_> = parts.into_iter().map(|p| Mutex::new(Some(p))).collect();
    crew(workers, |worker| {
        for (_, part) in team.shift(worker, 1) {
            // A part is begun by one worker, so nobody waits here.
            let mut part = parts[part].lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(part) = part.take() {
                work(part);
            }
        }
    });
}

/// Keeps the threads of the pool awake while `work` runs. They do whatever the pool has for them.
///
/// Nobody waits for the watches: one that has come to run a longer job ends when that does. While one is
/// still there no other begins, since those that are awake serve all callers. On a thread of the pool
/// itself `work` just runs, as there the caller has the pool for its own ends.
pub(crate) fn awake<T>(work: impl FnOnce() -> T) -> T {
    static WATCHES: AtomicUsize = AtomicUsize::new(0);
    let others = rayon::current_num_threads() - 1;
    let free = || WATCHES.compare_exchange(0, others, Ordering::Relaxed, Ordering::Relaxed);
    if others == 0 || rayon::current_thread_index().is_some() || free().is_err() {
        return work();
    }
    let over = Arc::new(AtomicBool::new(false));
    for _ in 0..others {
        let over = over.clone();
        rayon::spawn(move || {
            watch(&over);
            WATCHES.fetch_sub(1, Ordering::Relaxed);
        });
    }
    let _ends = OnDrop(over);
    work()
}

thread_local! {
    /// Whether this thread of the pool has a watch.
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Does what the pool has to do until it is over. A second watch on top of one is none.
fn watch(over: &AtomicBool) {
    if WATCHING.replace(true) {
        return;
    }
    let mut looks = 0;
    while !over.load(Ordering::Relaxed) {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => looks = 0,
            _ => looks += 1,
        }
        match looks % LOOKS {
            // Others may need the core more.
            0 => std::thread::yield_now(),
            _ => spin_loop(),
        }
    }
    WATCHING.set(false);
}

/// Sets it at the end, also of a panic.
struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_once() {
        for (workers, count) in [(1, 3), (2, 1), (2, 7), (3, 0), (4, 9)] {
            let seen: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            awake(|| {
                share_out(workers, (0..count).collect(), |part: usize| {
                    seen[part].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn all_of_a_crew_come() {
        let came = AtomicUsize::new(0);
        crew(4, |worker| {
            came.fetch_add(1 << (8 * worker), Ordering::Relaxed);
        });
        assert_eq!(came.into_inner(), 0x0101_0101);
    }

    #[test]
    fn all_of_a_crew_are_gone_in_the_end() {
        for workers in 1..6 {
            for _ in 0..200 {
                let here = AtomicUsize::new(0);
                let began = AtomicUsize::new(0);
                crew(workers, |_| {
                    began.fetch_add(1, Ordering::Relaxed);
                    here.fetch_add(1, Ordering::Relaxed);
                    std::thread::yield_now();
                    here.fetch_sub(1, Ordering::Relaxed);
                });
                assert_eq!((here.into_inner(), began.into_inner()), (0, workers));
            }
        }
    }

    /// Whoever panics, the others are waited for.
    #[test]
    fn a_panic_of_a_crew_passes_through() {
        for panics in 0..3 {
            let crew = || crew(3, |worker| assert!(worker != panics, "as intended"));
            assert!(catch_unwind(crew).is_err(), "{panics}");
        }
    }

    /// A pool that has no thread left for the work: all wait for what the caller has.
    #[test]
    fn a_crew_of_one_where_nobody_comes() {
        static TAKEN: Mutex<()> = Mutex::new(());
        static WAITING: AtomicUsize = AtomicUsize::new(0);
        let taken = TAKEN.lock().unwrap();
        rayon::spawn_broadcast(|_| {
            WAITING.fetch_add(1, Ordering::Relaxed);
            drop(TAKEN.lock());
        });
        while WAITING.load(Ordering::Relaxed) < rayon::current_num_threads() {
            std::thread::yield_now();
        }
        let came = AtomicUsize::new(0);
        crew(3, |_| {
            came.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(came.into_inner(), 3);
        drop(taken);
    }

    #[test]
    fn a_panic_passes_through() {
        for _ in 0..2 {
            let caught = catch_unwind(|| awake(|| panic!("as intended")));
            assert!(caught.is_err());
        }
    }

    /// A short call does not wait for a long job that a watch has come to run.
    #[test]
    fn nobody_waits_for_a_watch() {
        let (begun, over) = &(AtomicBool::new(false), AtomicBool::new(false));
        let long = || {
            begun.store(true, Ordering::Relaxed);
            while !over.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|threads| {
            awake(|| {
                threads.spawn(move || {
                    rayon::scope(|scope| scope.spawn(|_| long()));
                });
                while !begun.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            });
            // It would hang before this.
            over.store(true, Ordering::Relaxed);
        });
        rayon::scope(|_| awake(|| crew(2, |_| ())));
    }
}
