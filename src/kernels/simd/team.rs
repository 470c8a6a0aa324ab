//! Workers that take the steps of a sequence together.
//!
//! A step has parts. A worker takes those parts that are its own and then what others have not
//! begun; when all parts of a step are done, the next begins. So no step waits for a worker that
//! never came (a pool may have other work), and one worker alone does everything.

use std::ops::Range;

#[cfg(loom)]
use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::yield_now,
};
#[cfg(not(loom))]
use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::yield_now,
};

/// See the [module](self).
pub(crate) struct Team {
    workers: usize,
    /// For each part the first step in which nobody has taken it.
    taken: Vec<Line<AtomicUsize>>,
    /// Parts of all steps that are done.
    done: Line<AtomicUsize>,
    /// A worker panicked.
    failed: AtomicBool,
}

/// In a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

/// So many looks before a worker that waits lets others run.
const LOOKS: usize = 2000;

impl Team {
    pub(crate) fn new(workers: usize, parts: usize) -> Self {
        Self {
            workers,
            taken: (0..parts).map(|_| Line::default()).collect(),
            done: Line::default(),
            failed: AtomicBool::new(false),
        }
    }

    pub(crate) fn parts(&self) -> usize {
        self.taken.len()
    }

    /// What a worker does of so many steps.
    pub(crate) fn shift(&self, worker: usize, steps: usize) -> Shift<'_> {
        let first = worker * self.parts() / self.workers;
        Shift {
            team: self,
            own: first..(worker + 1) * self.parts() / self.workers,
            steps,
            step: 0,
            looked_at: 0,
            busy: false,
        }
    }

    fn take(&self, step: usize, part: usize) -> bool {
        let taken = &self.taken[part].0;
        taken.load(Ordering::Relaxed) == step
            && taken
                .compare_exchange(step, step + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Waits until so many parts are done; false if that will not be.
    fn wait(&self, parts: usize) -> bool {
        let mut looks = 0;
        while self.done.0.load(Ordering::Acquire) < parts {
            if self.failed.load(Ordering::Relaxed) {
                return false;
            }
            looks += 1;
            if looks % LOOKS == 0 {
                yield_now();
            } else {
                spin_loop();
            }
        }
        true
    }
}

/// The parts that a worker does, as (step, part), from when it is given one until it asks for the
/// next. Whatever was written in a step can be read in the next ones.
pub(crate) struct Shift<'a> {
    team: &'a Team,
    own: Range<usize>,
    steps: usize,
    step: usize,
    /// Parts of the step.
    looked_at: usize,
    /// It has a part.
    busy: bool,
}

impl Shift<'_> {
    /// Its own parts from the first on, then others' from the end, where they come last.
    fn part(&self, nth: usize) -> usize {
        let Range { start, end } = self.own;
        match nth {
            _ if nth < end - start => start + nth,
            _ if nth < end => end - 1 - nth,
            _ => self.team.parts() + end - 1 - nth,
        }
    }
}

impl Iterator for Shift<'_> {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        let (team, parts) = (self.team, self.team.parts());
        let alone = team.workers == 1;
        if self.busy && !alone {
            team.done.0.fetch_add(1, Ordering::Release);
        }
        self.busy = false;
        while self.step < self.steps {
            while self.looked_at < parts {
                let part = self.part(self.looked_at);
                self.looked_at += 1;
                if alone || team.take(self.step, part) {
                    self.busy = true;
                    return Some((self.step, part));
                }
            }
            if !alone && !team.wait((self.step + 1) * parts) {
                return None;
            }
            self.step += 1;
            self.looked_at = 0;
        }
        None
    }
}

impl Drop for Shift<'_> {
    /// Tells the others if the worker has panicked over a part.
    fn drop(&mut self) {
        if self.busy {
            self.team.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// The orders of what two workers do that memory orders allow, with at most three preemptions.
#[cfg(all(test, loom))]
mod orders {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    const PARTS: usize = 2;
    const STEPS: usize = 2;

    /// A worker that never comes leaves all to the other.
    fn sees_what_was_written(present: usize) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let team = Arc::new(Team::new(2, PARTS));
            // What each part writes in each step: loom finds who does so while another reads or writes it.
            let cells: Arc<Vec<UnsafeCell<()>>> =
                Arc::new((0..STEPS * PARTS).map(|_| UnsafeCell::new(())).collect());
            let work = move |worker: usize| {
                let mut done = 0;
                for (step, part) in team.shift(worker, STEPS) {
                    if let Some(before) = step.checked_sub(1) {
                        let read = |part: usize| cells[before * PARTS + part].with(|_| ());
                        (0..PARTS).for_each(read);
                    }
                    cells[step * PARTS + part].with_mut(|_| done += 1);
                }
                done
            };
            let others: Vec<_> = (1..present)
                .map(|worker| {
                    loom::thread::spawn({
                        let work = work.clone();
                        move || work(worker)
                    })
                })
                .collect();
            let own = work(0);
            let others = others.into_iter().map(|other| other.join().unwrap());
            assert_eq!(own + others.sum::<usize>(), STEPS * PARTS);
        });
    }

    #[test]
    fn two_workers() {
        sees_what_was_written(2);
    }

    #[test]
    fn one_of_two() {
        sees_what_was_written(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Every step reads what all parts of the one before wrote.
    fn sums(workers: usize, parts: usize, steps: usize, present: usize) -> Vec<usize> {
        let team = Team::new(workers, parts);
        let cells: Vec<Vec<AtomicUsize>> = (0..=steps)
            .map(|_| (0..parts).map(|_| AtomicUsize::new(0)).collect())
            .collect();
        cells[0].iter().for_each(|c| c.store(1, Ordering::Relaxed));
        std::thread::scope(|scope| {
            for worker in 0..present {
                let (team, cells) = (&team, &cells);
                scope.spawn(move || {
                    for (step, part) in team.shift(worker, steps) {
                        let sum = cells[step].iter().map(|c| c.load(Ordering::Relaxed)).sum();
                        let before = cells[step + 1][part].swap(sum, Ordering::Relaxed);
                        assert_eq!(before, 0, "done twice");
                    }
                });
            }
        });
        let last = cells[steps].iter();
        last.map(|c| c.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn steps_follow_each_other() {
        for (workers, parts) in [(1, 1usize), (2, 2), (2, 3), (3, 7), (4, 2)] {
            // However many of them come.
            for present in 1..=workers {
                let want = vec![parts.pow(10); parts];
                assert_eq!(sums(workers, parts, 10, present), want);
            }
        }
    }

    #[test]
    fn long_runs_with_little_work() {
        assert_eq!(sums(2, 1, 20_000, 2), [1]);
    }

    #[test]
    fn a_panic_ends_all() {
        let team = Team::new(2, 2);
        let ended = std::thread::scope(|scope| {
            [0, 1]
                .map(|worker| {
                    let team = &team;
                    scope.spawn(move || {
                        for (step, part) in team.shift(worker, 100) {
                            assert!((step, part) != (3, 1), "as intended");
                        }
                    })
                })
                .map(|thread| thread.join().is_ok())
        });
        assert!(ended.contains(&false));
    }
}
