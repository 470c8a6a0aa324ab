//! How many rounds the loops of a product's kernels make: over k, and beside it over what has a fixed size.

use super::form::Form;
use super::params::Product;
use super::shape::Shape;
use crate::error::Result;
use crate::kernel::Told;

/// What a form's kernel makes of k; a loop of n rounds counts n + 1, for the test that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rounds {
    /// Values of k that the loop takes at a time.
    at_once: u64,
    /// Rounds for them, with those of loops inside.
    each: u64,
    /// All others.
    beside: u64,
}

impl Rounds {
    /// One value of k at a time.
    pub(super) const NAIVE: Self = Self {
        at_once: 1,
        each: 1,
        beside: 1,
    };
    /// Four at a time, then up to three that are left.
    pub(super) const BLOCKS: Self = Self {
        at_once: 4,
        each: 1,
        beside: 1 + (3 + 1),
    };
    /// 64 invocations take four each; then sums of up to 64 subgroups, or of eight invocations twice.
    pub(super) const ALONG_K: Self = Self {
        at_once: 256,
        each: 1,
        beside: 1 + 64,
    };
    /// Eight invocations take four each, then one each; then the sums of eight.
    pub(super) const ACROSS_K: Self = Self {
        at_once: 32,
        each: 1,
        beside: 1 + (4 + 1) + (7 + 1),
    };
    /// The depth of a tile.
    pub(super) const TILE32: Self = Self::tile(16);
    /// As [`Self::TILE32`].
    pub(super) const TILE64: Self = Self::tile(32);
    /// As [`Self::TILE32`].
    pub(super) const TILE128: Self = Self::tile(16);
    /// Eight at a time, the rows and columns of the smaller matrices, brought by 32 invocations; before and after a tile of
    /// 32 x 32.
    pub(super) const COOPERATIVE: Self = Self {
        at_once: 8,
        each: 1 + 2 * (8 + 1),
        beside: 1 + (32 + 1) + (8 + 1),
    };

    const fn tile(depth: u64) -> Self {
        Self {
            at_once: depth,
            each: 1,
            beside: 1,
        }
    }

    /// Those of a form over a shape, for a form that has a kernel of its own.
    pub(super) fn of(form: Form, shape: &Shape) -> Self {
        match form {
            Form::Library | Form::Naive | Form::SplitK => Self::NAIVE,
            Form::Tile32 => Self::TILE32,
            Form::Tile64 => Self::TILE64,
            Form::Tile128 => Self::TILE128,
            Form::Rows | Form::RowsSubgroups if shape.upright().b_along_k => Self::ALONG_K,
            Form::Rows | Form::RowsSubgroups => Self::ACROSS_K,
            Form::Blocks => Self::BLOCKS,
            Form::Cooperative => Self::COOPERATIVE,
        }
    }

    /// The rounds for so many values of k.
    fn rounds(self, k: u64) -> u64 {
        k.div_ceil(self.at_once) * self.each + self.beside
    }

    /// The most values of k for which a kernel stays within a bound: whole fours.
    pub(super) fn longest(self, available: u64) -> usize {
        let runs = available.saturating_sub(self.beside) / self.each;
        let k = runs.saturating_mul(self.at_once) / 4 * 4;
        usize::try_from(k).unwrap_or(usize::MAX)
    }

    /// The rounds of a kernel with the parameters of a product.
    pub(super) fn of_told(self, told: &Told<'_>) -> Result<u64> {
        let product: Product = told.params()?;
        Ok(self.rounds(u64::from(product.chunk.min(product.k))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_k_is_within_the_bound() {
        let shapes = [
            Shape::new(4, 500, 1 << 20),
            Shape {
                b_along_k: true,
                ..Shape::new(4, 500, 1 << 20)
            },
        ];
        for form in Form::ALL {
            for shape in &shapes {
                let of = Rounds::of(form, shape);
                for available in [200, 65_535] {
                    let longest = of.longest(available) as u64;
                    assert!(longest >= 4 && of.rounds(longest) <= available, "{form:?}");
                    assert!(of.rounds(longest + 4 * of.at_once) > available, "{form:?}");
                }
                assert_eq!(of.longest(0), 0, "{form:?}");
                assert!(of.longest(u64::MAX) > 1 << 40, "{form:?}");
            }
        }
    }
}
