//! Wall times: repeating something until there are enough samples.

use std::time::{Duration, Instant};

use wgrnn::Result;

/// The fewest samples of a median, unless the budget ends before.
const FEWEST: usize = 5;
/// The most that are taken.
const MOST: usize = 20_000;
/// The part of the sampling time that goes to warming up.
const WARM_UP: f64 = 0.2;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For how long to take samples at least.
    pub(super) min_time: Duration,
    /// After how long to take no more, warm-up included.
    pub(super) budget: Duration,
}

/// Some samples of the same time, in seconds; there is at least one.
#[derive(Debug, Clone)]
pub(super) struct Samples {
    sorted: Vec<f64>,
}

impl Samples {
    /// Of these, of which there must be one.
    pub(super) fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { sorted: seconds }
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    pub(super) fn min(&self) -> f64 {
        self.sorted[0]
    }

    /// The one in the middle, or the mean of the two there.
    pub(super) fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        if self.sorted.len() % 2 == 1 {
            self.sorted[middle]
        } else {
            (self.sorted[middle - 1] + self.sorted[middle]) / 2.0
        }
    }
}

/// The time that `run` takes.
///
/// # Errors
/// If it fails.
pub(super) fn once(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Repeats `run` for so long, unless one more would end after it: a device that had nothing to do, while a result was
/// checked on the CPU, takes some tenths of a second to raise its clock.
///
/// # Errors
/// If it fails.
pub(super) fn warm_up(long: Duration, mut run: impl FnMut() -> Result<f64>) -> Result<()> {
    let start = Instant::now();
    let mut latest = Duration::ZERO;
    while start.elapsed() + latest < long {
        let before = Instant::now();
        run()?;
        latest = before.elapsed();
    }
    Ok(())
}

/// Samples of `run`, which says itself how many seconds it took; the first ones, to warm up, are not
/// kept. One sample is taken whatever the budget is.
///
/// # Errors
/// If `run` fails.
pub(super) fn sample(limits: Limits, mut run: impl FnMut() -> Result<f64>) -> Result<Samples> {
    let start = Instant::now();
    let warm = limits.min_time.min(limits.budget).mul_f64(WARM_UP);
    warm_up(warm, &mut run)?;
    let mut seconds = Vec::new();
    let sampling = Instant::now();
    loop {
        seconds.push(run()?);
        let enough = sampling.elapsed() >= limits.min_time && seconds.len() >= FEWEST;
        if enough || seconds.len() >= MOST || start.elapsed() >= limits.budget {
            return Ok(Samples::new(seconds));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_ends_in_time() {
        let mut count = 0;
        let nap = || {
            count += 1;
            std::thread::sleep(Duration::from_millis(4));
            Ok(0.0)
        };
        warm_up(Duration::from_millis(20), nap).unwrap();
        assert!((1..=5).contains(&count), "{count}");
    }

    #[test]
    fn middle_and_least() {
        let of = |seconds: &[f64]| {
            let samples = Samples::new(seconds.to_vec());
            (samples.median(), samples.min(), samples.len())
        };
        assert_eq!(of(&[3.0]), (3.0, 3.0, 1));
        assert_eq!(of(&[4.0, 1.0]), (2.5, 1.0, 2));
        assert_eq!(of(&[9.0, 1.0, 2.0]), (2.0, 1.0, 3));
        assert_eq!(of(&[9.0, 1.0, 2.0, 4.0]), (3.0, 1.0, 4));
    }

    #[test]
    fn at_least_five_unless_the_budget_ends() {
        let count = |min_time: f64, budget: f64, nap: u64| {
            let limits = Limits {
                min_time: Duration::from_secs_f64(min_time),
                budget: Duration::from_secs_f64(budget),
            };
            let run = || {
                std::thread::sleep(Duration::from_millis(nap));
                Ok(1.0)
            };
            sample(limits, run).unwrap().len()
        };
        assert_eq!(count(0.0, 10.0, 1), FEWEST);
        assert_eq!(count(0.0, 0.0, 1), 1);
        assert!(count(0.05, 10.0, 1) > FEWEST);
    }
}
