//! How the steps of a call are divided among workers.
//!
//! Groups of sequences need nothing of each other and run all their steps apart, each reading all
//! weights. The workers of a group share the units: each reads its part of the weights, and after
//! every step all of a group wait for each other.

use std::ops::Range;

/// How the work is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    /// Groups of sequences.
    pub(crate) groups: usize,
    /// Workers of a group.
    pub(crate) workers: usize,
}

/// What there is to divide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// N
    pub(crate) sequences: usize,
    /// Blocks of units.
    pub(crate) blocks: usize,
    /// Numbers in the packed weights.
    pub(crate) weights: usize,
    /// T
    pub(crate) steps: usize,
}

/// Multiplications below which a call is not worth a second thread: they take some microseconds.
const SMALL_CALL: usize = 1 << 18;
/// Multiplications of a step below which its workers would mostly wait for each other.
const SMALL_STEP: usize = 1 << 16;
/// Weights of which every core can keep all in its own cache: 1 MiB.
const KEPT_WEIGHTS: usize = 1 << 18;
/// Sequences that make good use of the weights.
const GOOD_GROUP: usize = 4;

impl Work {
    /// Multiplications of a step.
    fn step(&self) -> usize {
        self.sequences * self.weights
    }

    /// True if it is not worth a second thread.
    pub(crate) fn is_small(&self) -> bool {
        self.step().saturating_mul(self.steps) < SMALL_CALL
    }
}

impl Split {
    pub(crate) const ALONE: Self = Self {
        groups: 1,
        workers: 1,
    };

    /// The rule, for so many threads.
    pub(crate) fn new(work: Work, threads: usize) -> Self {
        if threads < 2 || work.is_small() {
            return Self::ALONE;
        }
        let groups = match work.weights <= KEPT_WEIGHTS {
            true => threads.min(work.sequences / GOOD_GROUP).max(1),
            false => 1,
        };
        let workers = match work.step() / groups >= SMALL_STEP {
            true => (threads / groups).min(work.blocks),
            false => 1,
        };
        Self { groups, workers }
    }

    /// The sequences of a group.
    pub(crate) fn sequences(&self, group: usize, all: usize) -> Range<usize> {
        share(all, group, self.groups)
    }
}

/// One of `parts` nearly equal parts of `all`.
pub(crate) fn share(all: usize, part: usize, parts: usize) -> Range<usize> {
    all * part / parts..all * (part + 1) / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(sequences: usize, hidden: usize, steps: usize, threads: usize) -> [usize; 2] {
        let work = Work {
            sequences,
            blocks: hidden.div_ceil(16),
            weights: 4 * hidden * hidden,
            steps,
        };
        let split = Split::new(work, threads);
        [split.groups, split.workers]
    }

    #[test]
    fn rule() {
        // One thread, a single step, one short sequence.
        assert_eq!(split(64, 256, 100, 1), [1, 1]);
        assert_eq!(split(1, 128, 1, 2), [1, 1]);
        assert_eq!(split(1, 16, 4096, 2), [1, 1]);
        // Weights that fit a core's cache.
        assert_eq!(split(64, 128, 100, 2), [2, 1]);
        assert_eq!(split(64, 128, 100, 64), [16, 4]);
        assert_eq!(split(16, 24, 512, 2), [2, 1]);
        // A single step of many.
        assert_eq!(split(1, 256, 1, 2), [1, 2]);
        // Weights that do not, and few sequences.
        assert_eq!(split(64, 1024, 25, 2), [1, 2]);
        assert_eq!(split(1, 256, 500, 2), [1, 2]);
        // No more workers than blocks.
        assert_eq!(split(4, 128, 500, 64), [1, 8]);
    }

    #[test]
    fn shares_are_all() {
        for (all, parts) in [(10, 3), (2, 5), (7, 1), (0, 2)] {
            let mut end = 0;
            for part in 0..parts {
                let share = share(all, part, parts);
                assert_eq!(share.start, end);
                end = share.end;
            }
            assert_eq!(end, all);
        }
    }
}
