//! How many rounds the loops of a step's kernels make: what bounds each of them, as the shaders have them.
//!
//! A loop of n rounds counts n + 1, for the test that ends it. See [`Kernel::rounds`](crate::kernel::Kernel::rounds).

use super::StepParams;
use crate::error::Result;
use crate::kernel::{Constant, Told};

/// The terms of a sum, by the kernel's parameters.
pub(crate) type Terms = fn(&StepParams) -> u64;

fn is_set(told: &Told<'_>, constant: &str) -> bool {
    told.constant(constant).is_ok_and(|value| value == 1)
}

/// The loops of a step with an invocation for each unit: over I in streams, then over the terms of its sums.
///
/// # Errors
/// If the parameters are not those of a step.
pub(crate) fn of_unit(told: &Told<'_>, terms: Terms) -> Result<u64> {
    let params: StepParams = told.params()?;
    let input = match is_set(told, "STREAM") {
        true => u64::from(params.input) + 1,
        false => 0,
    };
    Ok(input + terms(&params) + 1)
}

/// What bounds the loops of a step's kernel that says nothing else: over I in streams, and over the units of four
/// gates.
///
/// # Errors
/// If the parameters are not those of a step.
pub fn of_four_gates(told: &Told<'_>) -> Result<u64> {
    of_unit(told, |p| 4 * u64::from(p.hidden.max(p.output)))
}

/// The terms of a quad forward: I and 1 in streams, and P.
fn of_quad(told: &Told<'_>, back: Terms) -> Result<u64> {
    let params: StepParams = told.params()?;
    let (input, output) = (u64::from(params.input), u64::from(params.output));
    Ok(match is_set(told, "BACK") {
        true => back(&params),
        false if is_set(told, "STREAM") => input + 1 + output,
        false => output,
    })
}

/// The loops of `shaders/shared/blocks.wgsl`: eight terms at a time with subgroups, else four; those that are left; the units
/// of the quad of each sequence. `back` has the terms of the way back.
pub(crate) fn of_blocks(told: &Told<'_>, back: Terms) -> Result<u64> {
    let terms = of_quad(told, back)?;
    let at_once = if is_set(told, "SUBGROUPS") { 8 } else { 4 };
    let units = 4 * u64::from(told.constant("SEQUENCES")?);
    Ok((terms / at_once + 1) + (terms % at_once + 1) + (units + 1))
}

/// The loops of `shaders/shared/few.wgsl`: every `THREADS`-th term, four at a time and then one; the partial sums that are
/// left of sixteen each.
pub(crate) fn of_few(told: &Told<'_>, back: Terms) -> Result<u64> {
    let (terms, threads) = (of_quad(told, back)?, u64::from(told.constant("THREADS")?));
    Ok((terms.div_ceil(4 * threads) + 1) + (4 + 1) + (threads.div_ceil(16) + 1))
}

/// The loops of `shaders/shared/tile.wgsl`: `DEPTH` terms at a time; the units that an invocation finishes, and in each the
/// slices' sums.
pub(crate) fn of_tile(told: &Told<'_>, back: Terms) -> Result<u64> {
    let terms = of_quad(told, back)?;
    let of = |name| told.constant(name).map(u64::from);
    let units = 4 * of("SEQUENCES")? * of("TILE_QUADS")? * 4;
    let finished = units.div_ceil(256);
    Ok((terms.div_ceil(of("DEPTH")?) + 1) + 1 + finished * (of("SLICES")? / 2 + 2))
}

/// The rounds of a kernel that runs all steps: `before` the first, and of `each` run of as many steps as the text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AllSteps {
    before: u64,
    each: u64,
    /// Steps in the text.
    steps: u64,
}

impl AllSteps {
    /// Those of `shaders/shared/sequence.wgsl`: before the first step each weight that is kept, where a subgroup hands terms
    /// around, and the gradients of the step after the last; in each the terms whose weights are not kept, four at a time.
    pub(crate) fn of(constants: &[Constant]) -> Self {
        let of = |name: &str| {
            let found = constants.iter().find(|(n, _)| *n == name);
            found.map_or(0, |(_, value)| u64::from(*value))
        };
        let kept = match of("SUBGROUP_SIZE") {
            0 => 0,
            _ => of("QUADS") * (of("KEPT") + 1),
        };
        let handed = match of("BACK") {
            0 => 0,
            // The terms of four gates, or of all in one.
            _ => (of("TILE") * 4 * of("HIDDEN")).div_ceil(of("THREADS").max(1)) + 1,
        };
        let steps = of("STEPS").max(1);
        let left = of("CHUNK").saturating_sub(of("KEPT") + of("NEAR"));
        Self {
            before: kept + handed + 1,
            each: 1 + steps * (left.div_ceil(4) + 1),
            steps,
        }
    }

    /// Those of so many steps.
    fn rounds(self, steps: u64) -> u64 {
        self.before + self.each * steps.div_ceil(self.steps)
    }

    /// The most steps of a dispatch that stays within a bound, at least one.
    pub(crate) fn most_steps(self, available: u64) -> u64 {
        let runs = available.saturating_sub(self.before) / self.each;
        runs.saturating_mul(self.steps).max(1)
    }
}

/// The rounds of a kernel that runs all steps.
pub(crate) fn of_all_steps(told: &Told<'_>) -> Result<u64> {
    let params: StepParams = told.params()?;
    Ok(AllSteps::of(told.constants).rounds(u64::from(params.steps)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_steps_as_a_bound_allows() {
        let lstm = [
            ("BACK", 1),
            ("TILE", 4),
            ("HIDDEN", 16),
            ("THREADS", 16),
            ("QUADS", 1),
            ("CHUNK", 64),
            ("KEPT", 40),
            ("SUBGROUP_SIZE", 8),
        ];
        let ring = [("STEPS", 4), ("CHUNK", 16), ("KEPT", 16)];
        for constants in [&lstm[..], &ring[..]] {
            let all = AllSteps::of(constants);
            for available in [100, 1_000, 65_535] {
                let most = all.most_steps(available);
                assert!(all.rounds(most) <= available && most > 1, "{all:?} {most}");
                assert!(all.rounds(most + 1) > available, "{all:?} {most}");
            }
            assert_eq!(all.most_steps(0), 1);
            assert!(all.most_steps(u64::MAX) > 1 << 32);
        }
    }
}
