//! Cutting a section into submissions.
//!
//! A driver resets a device whose submission takes too long (on Windows two seconds), and a host that
//! draws wants its queue back. What a submission takes is not known before it ran, so it is bounded by
//! counts that even a slow GPU gets through in a fraction of that.

use std::ops::Range;

use super::Plan;
use crate::error::Result;

/// What one submission may hold; a single step that is more has one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portion {
    /// Dispatches: each takes some microseconds, whatever it does.
    pub dispatches: usize,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read or written.
    pub bytes: u64,
}

/// A tenth of a second or so of a GPU with 500 GFLOP/s and 50 GB/s, as the integrated ones of laptops
/// have at least.
impl Default for Portion {
    fn default() -> Self {
        Self {
            dispatches: 8192,
            flops: 50_000_000_000,
            bytes: 5_000_000_000,
        }
    }
}

impl Plan {
    /// Cuts some steps into runs that a submission may hold, in their order.
    ///
    /// # Errors
    /// If the plan has not so many steps.
    pub fn parts(&self, steps: Range<usize>, portion: Portion) -> Result<Vec<Range<usize>>> {
        self.growing_parts(steps, portion.dispatches, portion)
    }

    /// Cuts some steps as [`Self::parts`] with at most `first` dispatches in the first run and twice as many in
    /// each that follows, so that a device begins while its host still records the rest.
    ///
    /// # Errors
    /// If the plan has not so many steps.
    pub fn growing_parts(
        &self,
        steps: Range<usize>,
        first: usize,
        portion: Portion,
    ) -> Result<Vec<Range<usize>>> {
        let some = self.some("Plan::parts", steps.clone())?;
        let mut most = first.min(portion.dispatches).max(1);
        let mut parts = Vec::new();
        let mut start = steps.start;
        let (mut flops, mut bytes) = (0u64, 0u64);
        for (at, step) in steps.clone().zip(some) {
            let cost = step.cost;
            let full = at - start >= most
                || flops.saturating_add(cost.flops) > portion.flops
                || bytes.saturating_add(cost.bytes) > portion.bytes;
            if full && at > start {
                parts.push(start..at);
                start = at;
                (flops, bytes) = (0, 0);
                most = most.saturating_mul(2).min(portion.dispatches.max(1));
            }
            flops = flops.saturating_add(cost.flops);
            bytes = bytes.saturating_add(cost.bytes);
        }
        if start < steps.end {
            parts.push(start..steps.end);
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::copy::copy;
    use crate::plan::{Builder, Role};

    #[test]
    fn parts_keep_order_and_bounds() {
        let mut b = Builder::new("copies");
        let x = b.float("x", &[64], Role::Input);
        let y = b.float("y", &[64], Role::Output);
        // 8 bytes for each number.
        for len in [1, 2, 3, 60, 1, 1] {
            copy(&mut b, (x, 0), (y, 0), len).unwrap();
        }
        let plan = b.finish();
        let of = |dispatches, bytes| {
            let portion = Portion {
                dispatches,
                bytes,
                ..Portion::default()
            };
            plan.parts(0..6, portion).unwrap()
        };
        assert_eq!(of(100, 10_000), vec![0..6; 1]);
        assert_eq!(of(4, 10_000), [0..4, 4..6]);
        assert_eq!(of(0, 10_000), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
        // The fourth is too large for itself.
        assert_eq!(of(100, 48), [0..3, 3..4, 4..6]);
        assert_eq!(of(100, 47), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(plan.parts(2..2, Portion::default()).unwrap(), [0..0; 0]);
        let growing = |first, dispatches| {
            let portion = Portion {
                dispatches,
                ..Portion::default()
            };
            plan.growing_parts(0..6, first, portion).unwrap()
        };
        assert_eq!(growing(1, 100), [0..1, 1..3, 3..6]);
        assert_eq!(growing(1, 2), [0..1, 1..3, 3..5, 5..6]);
        assert_eq!(growing(0, 0), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
    }
}
