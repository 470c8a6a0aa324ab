//! Work for the threads of rayon's pool, in pieces of some microseconds.
//!
//! A thread of the pool that has nothing to do sleeps, and waking it takes tens of microseconds, at both
//! ends of a piece of work: longer than many a step of a stream. So the thread that runs a plan does its
//! share itself instead of waiting for the pool to do all, and others are [kept awake](awake) as long as
//! a plan with enough work runs.

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::kernels::simd::team::Team;

/// So many looks before a thread sleeps until another is done.
const LOOKS: usize = 4000;
/// As many as it takes the pool to notice that a piece of work is done.
const NOTICED: usize = 32;

/// Calls `work` with each number below `workers`: with 0 on this thread, with the others on those of the
/// pool.
pub(crate) fn crew(workers: usize, work: impl Fn(usize) + Sync) {
    beside(workers.saturating_sub(1), |nth| work(nth + 1), || work(0));
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

/// Runs `own` here and `other` with each number on threads of the pool.
fn beside<T>(others: usize, other: impl Fn(usize) + Sync, own: impl FnOnce() -> T) -> T {
    if others == 0 {
        return own();
    }
    let (other, done) = (&other, &AtomicUsize::new(0));
    rayon::in_place_scope(|scope| {
        for nth in 0..others {
            scope.spawn(move |_| {
                other(nth);
                done.fetch_add(1, Ordering::Release);
            });
        }
        let result = own();
        // The end of the scope would put this thread to sleep at once.
        let mut looks = 0;
        while done.load(Ordering::Acquire) < others && looks < LOOKS {
            looks += 1;
            spin_loop();
        }
        (0..NOTICED).for_each(|_| spin_loop());
        result
    })
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
    fn a_panic_passes_through() {
        for _ in 0..2 {
            let caught = std::panic::catch_unwind(|| awake(|| panic!("as intended")));
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
