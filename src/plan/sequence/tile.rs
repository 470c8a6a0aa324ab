//! The tile of a step: which quads, sequences and terms a workgroup holds. `shaders/shared/tile.wgsl` says what it does.

use super::form::Shape;
use crate::plan::Target;

/// Invocations of a workgroup.
pub(super) const THREADS: usize = 256;

/// A tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    /// A fourth of the sequences of an invocation.
    fours: usize,
    quads: usize,
    /// Whether the fourth sum of a quad is empty.
    three: bool,
    /// Terms that are staged at once.
    depth: usize,
}

impl Tile {
    /// That of a step: no more sequences than there are, and fewer quads where larger tiles would be too few to fill a
    /// GPU.
    pub(super) fn new(shape: &Shape, target: &Target) -> Self {
        let enough = |quads: &usize| count(shape, *quads) >= target.groups;
        let (fours, quads) = (fours(shape), [8, 4].into_iter().find(enough).unwrap_or(2));
        let depth = depth(shape, target, [fours, quads]);
        Self {
            fours,
            quads,
            three: shape.sums == 3,
            depth,
        }
    }

    /// Quads and sequences of a workgroup.
    pub(super) fn of_group(&self) -> [usize; 2] {
        [self.quads, 16 * self.fours]
    }

    /// What its kernel is specialised to.
    pub(super) fn constants(&self) -> Vec<(&'static str, usize)> {
        let Self {
            fours,
            quads,
            three,
            depth,
        } = *self;
        let slices = THREADS / 4 / quads;
        vec![
            ("SEQUENCES", 4 * fours),
            ("FOURS", fours),
            ("THREE", usize::from(three)),
            ("TILE_QUADS", quads),
            ("DEPTH", depth),
            ("STAGED", (depth * quads / THREADS).max(1)),
            ("OPERANDS", depth * 4 * fours / THREADS),
            ("SLICES", slices),
            ("TERMS", depth / slices),
            ("THREADS", THREADS),
            ("WORKGROUP_FLOATS", 4 * vectors(fours, quads, depth)),
        ]
    }
}

fn fours(shape: &Shape) -> usize {
    if shape.count <= 16 { 1 } else { 2 }
}

/// Workgroups with so many quads.
pub(super) fn count(shape: &Shape, quads: usize) -> usize {
    let rows = shape.count.div_ceil(16 * fours(shape));
    shape.quads.div_ceil(quads) * rows * shape.lanes
}

/// Terms that a tile stages at once: more where there are few tiles, so that enough is on its way; with
/// more sums in registers only where the terms are many times as many.
///
/// On an NVIDIA H200, of whose 132 multiprocessors `groups` keeps about all busy, and before loads were without
/// conditions and GRUs multiplied three sums, microseconds a step with 64, 128
/// and 256 terms: LSTM 1024 x 16 back 42.8, 30.8 and 26.0; GRU 1024 x 32 back 45.4, 33.4 and 30.5; LSTM 256 x 32
/// back, two levels, 21.5, 17.4 and 20.5; GRU 384 x 128 back, three levels, 42.9, 51.9 and 51.7; GRU 2816 x 32 back
/// 173, 145 and 181, forward 146 and 165.
fn depth(shape: &Shape, target: &Target, [fours, quads]: [usize; 2]) -> usize {
    let (most, of_terms) = match count(shape, quads) {
        few if few <= target.groups => (256, 8),
        some if some < 2 * target.groups => (128, 32),
        _ => (64, 1),
    };
    let enough = |depth: &usize| fours == 1 || depth * of_terms <= shape.terms;
    let room = target.workgroup_memory as usize / 16;
    let fits = |depth: &usize| vectors(fours, quads, *depth) <= room;
    [256, 128]
        .into_iter()
        .find(|depth| *depth <= most && enough(depth) && fits(depth))
        .unwrap_or(64)
}

/// The vec4s of workgroup memory: those that are staged, or the sums of half of the slices.
fn vectors(fours: usize, quads: usize, depth: usize) -> usize {
    (depth * (quads + 4 * fours)).max(2 * THREADS * fours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::LSTM;
    use crate::plan::sequence::LayerSpec;
    use crate::plan::sequence::form::Way;

    #[test]
    fn few_tiles_stage_more_terms() {
        let of = |hidden, way, count, workgroup_memory| {
            let target = Target {
                workgroup_memory,
                ..Target::default()
            };
            let shape = Shape::new(&LayerSpec::new(&LSTM, 3, hidden), way, count);
            Tile::new(&shape, &target).depth
        };
        let (small, large) = (16 << 10, 48 << 10);
        assert_eq!(of(1024, Way::Back, 16, large), 256);
        assert_eq!(of(1024, Way::Back, 16, small), 128);
        // With more sums, an eighth of the terms at most; with enough tiles, fewer.
        assert_eq!(of(256, Way::Back, 32, large), 128);
        assert_eq!(of(64, Way::Back, 32, large), 64);
        assert_eq!(of(1024, Way::Forward, 64, large), 64);
        assert_eq!(of(2048, Way::Forward, 128, large), 64);
    }
}
