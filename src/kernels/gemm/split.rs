//! Splitting k: partial products in one pass, their sum in another.

use super::choose::whole;
use super::form::Form;
use super::rounds::Rounds;
use super::shape::Shape;
use crate::plan::{MAX_GROUPS, Target};

/// How k is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// The form of every part.
    pub(super) form: Form,
    /// How many there are: at least two.
    pub(super) parts: usize,
    /// Values of k in each but the last: whole fours, so that vec4s stay whole.
    pub(super) chunk: usize,
}

impl Split {
    /// As many parts as fill a GPU twice, but none shorter than what is worth its partial sums, or longer than the device's
    /// loops may be; `None` where k is too short for two.
    pub(super) fn of(shape: &Shape, target: &Target) -> Option<Self> {
        let form = whole(shape, target);
        let groups: usize = form.grid(shape).iter().product();
        let wanted = (2 * target.groups).div_ceil(groups.max(1));
        let parts = wanted.min(shape.k / Self::shortest(form, shape)).max(2);
        let longest = Rounds::of(form, shape).longest(target.loop_rounds).max(4);
        let chunk = shape.k.div_ceil(parts).next_multiple_of(4).min(longest);
        let parts = shape.k.div_ceil(chunk.max(1));
        (parts > 1 && parts <= MAX_GROUPS as usize).then_some(Self { form, parts, chunk })
    }

    /// Rows along k need more of it to keep a workgroup busy.
    fn shortest(form: Form, shape: &Shape) -> usize {
        match form {
            Form::Rows | Form::RowsSubgroups if shape.upright().b_along_k => 512,
            _ => 128,
        }
    }

    /// True if whole the product would leave much of a GPU idle for long.
    pub(super) fn helps(shape: &Shape, target: &Target) -> bool {
        let form = whole(shape, target);
        let groups = |form: Form| form.grid(shape).iter().product::<usize>();
        let long = match form {
            Form::Tile64 if groups(Form::Tile32) >= target.groups => 1024,
            form => 4 * Self::shortest(form, shape),
        };
        shape.k >= long && groups(form) < target.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_k() {
        let target = Target::default();
        for k in [5, 8, 127, 512, 1000, 3200, 100_001] {
            for (m, n) in [(1, 1), (3, 2048), (64, 64), (512, 128), (2048, 512)] {
                let shape = Shape::new(m, n, k);
                let split = Split::of(&shape, &target).unwrap();
                let Split { parts, chunk, .. } = split;
                assert!(parts >= 2 && chunk.is_multiple_of(4), "{split:?}");
                assert!((parts - 1) * chunk < k && k <= parts * chunk, "{split:?}");
            }
        }
        for k in [0, 1, 4] {
            assert_eq!(Split::of(&Shape::new(64, 64, k), &target), None);
        }
    }

    #[test]
    fn weight_gradients_of_small_layers_are_split() {
        let target = Target::default();
        // dW_hh of an LSTM with H 128 over T·N = 3200: 16 tiles of 64 x 64.
        let split = Split::of(&Shape::new(512, 128, 3200), &target).unwrap();
        assert_eq!((split.form, split.parts), (Form::Tile64, 16));
        assert!(Split::helps(&Shape::new(512, 128, 3200), &target));
        // With more steps larger tiles fill a GPU.
        let split = Split::of(&Shape::new(512, 128, 93_440), &target).unwrap();
        assert_eq!((split.form, split.parts), (Form::Tile128, 64));
        assert!(Split::helps(&Shape::new(512, 128, 93_440), &target));
        // Not where they would be half empty.
        for (m, n) in [(520, 130), (512, 80), (66, 66)] {
            assert_eq!(whole(&Shape::new(m, n, 93_440), &target), Form::Tile64);
        }
        // What is to be so is split.
        for (m, n, k) in [
            (128, 128, 1 << 20),
            (384, 384, 15_000),
            (1_000, 128, 20_000),
        ] {
            let shape = Shape::new(m, n, k);
            assert_eq!(whole(&shape, &target), Form::Tile128);
            assert!(Split::helps(&shape, &target));
        }
        // H 512 has tiles enough.
        assert!(!Split::helps(&Shape::new(2048, 512, 3200), &target));
        assert!(!Split::helps(&Shape::new(512, 128, 256), &target));
    }
}
