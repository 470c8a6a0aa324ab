//! The workgroup that runs all steps of some sequences: `shaders/shared/sequence.wgsl` says what it does.

use super::form::Way;
use super::spec::LayerSpec;
use crate::kernel::{Constant, Element};
use crate::plan::{DeviceKind, Target};

/// Invocations that have the most registers together: a multiprocessor of a large GPU has 65,536, and an
/// invocation at most 255.
const MOST_THREADS: usize = 256;
/// Weights of an invocation where there are few of them: fewer would leave more sums to be joined.
const FEW_WEIGHTS: usize = 128;
/// Weights of an invocation up to which the text of a step forward is short enough for four. On an NVIDIA H200 those took 0.75
/// to 0.91 of the time of one for LSTM 16, LSTM 24 and GRU 24, and 1.17 for LSTM 32; back 0.60 for LSTM 32.
const RING_WEIGHTS: usize = 96;
/// Registers of an invocation for what is not an address or a value on its way: weights and sums.
const LARGE: usize = 240;
/// The same where workgroups are small, which is how devices with fewer registers may be told.
const SMALL: usize = 132;
/// Terms whose weights an invocation keeps where a subgroup hands terms around: the kernel's text has all of them,
/// and a software adapter compiles 128 of them for four sequences in one or two seconds, 256 in five.
const MOST_TERMS: usize = 128;
/// Sequences of a workgroup at most.
const MOST_SEQUENCES: usize = 4;

/// The shape of a workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Team {
    way: Way,
    /// Sequences.
    pub(crate) tile: usize,
    /// Quads of an invocation, and invocations for all of them.
    quads: usize,
    columns: usize,
    /// Whether each takes its own sums through the gates.
    alone: bool,
    /// Whether the text has several steps.
    ring: bool,
    /// Parts that the terms are divided into, and terms of each.
    parts: usize,
    chunk: usize,
    /// Of these the terms whose weights are kept in registers.
    kept: usize,
    /// And in workgroup memory, with the words that a term's weights take there.
    near: usize,
    near_words: usize,
    /// Invocations of a subgroup that hand terms around, or 0.
    subgroup: usize,
    /// Units of a level.
    hidden: usize,
    sums: Sums,
}

/// A level's sums in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sums {
    quads: usize,
    /// Those of a quad that are not empty.
    of_quad: usize,
    terms: usize,
}

impl Sums {
    fn new(spec: &LayerSpec, way: Way) -> Self {
        let (gates, hidden) = (spec.cell.gates, spec.hidden_size);
        match way {
            Way::Forward if gates > 1 => Self {
                quads: hidden,
                of_quad: gates,
                terms: hidden,
            },
            Way::Forward => Self {
                quads: hidden.div_ceil(4),
                of_quad: 4,
                terms: hidden,
            },
            Way::Back => Self {
                quads: hidden.div_ceil(4),
                of_quad: 4,
                terms: gates * hidden,
            },
        }
    }

    /// Those of invocations that each take their own sums through the gates, in either direction: a quad is a unit.
    fn alone(spec: &LayerSpec) -> Self {
        let (gates, hidden) = (spec.cell.gates, spec.hidden_size);
        Self {
            quads: hidden,
            of_quad: gates,
            terms: hidden,
        }
    }

    fn weights(&self) -> usize {
        self.quads * self.of_quad * self.terms
    }
}

impl Team {
    /// The workgroup for a call of so many sequences, all lanes' together.
    pub(crate) fn new(spec: &LayerSpec, target: &Target, batch: usize, way: Way) -> Self {
        let wanted = batch
            .div_ceil(target.groups.max(1))
            .clamp(1, MOST_SEQUENCES);
        let of = |tile| Self::of(spec, target, tile, way);
        // The CPU backend has none, and needs none.
        let fits = |tile: &usize| {
            target.kind == DeviceKind::Cpu
                || 4 * of(*tile).floats() <= target.workgroup_memory as usize
        };
        of((1..=wanted).rev().find(fits).unwrap_or(1))
    }

    fn of(spec: &LayerSpec, target: &Target, tile: usize, way: Way) -> Self {
        match subgroup(target) {
            0 => Self::in_registers(spec, target, tile, way),
            size => Self::in_subgroups(size, spec, target, tile, way),
        }
    }

    /// On an adapter that runs shaders on a CPU: the fewest parts, since their sums are joined lane by lane, of whole
    /// subgroups.
    fn in_subgroups(size: usize, spec: &LayerSpec, target: &Target, tile: usize, way: Way) -> Self {
        let sums = Sums::new(spec, way);
        let most = (MOST_THREADS.min(target.invocations as usize) / size * size).max(size);
        let quads = sums.quads.div_ceil(most);
        let columns = sums.quads.div_ceil(quads).next_multiple_of(size);
        let parts = sums.terms.div_ceil(MOST_TERMS).min(most / columns).max(1);
        let chunk = sums.terms.div_ceil(parts).next_multiple_of(size);
        Self {
            way,
            tile,
            quads,
            columns,
            alone: false,
            ring: false,
            parts: sums.terms.div_ceil(chunk),
            chunk,
            kept: (MOST_TERMS / quads / size * size).clamp(size, chunk),
            near: 0,
            near_words: 0,
            subgroup: size,
            hidden: spec.hidden_size,
            sums,
        }
    }

    fn in_registers(spec: &LayerSpec, target: &Target, tile: usize, way: Way) -> Self {
        let most = MOST_THREADS.min(target.invocations as usize).max(1);
        let single = Sums::alone(spec);
        let own_weights = single.of_quad * single.terms.next_multiple_of(4);
        let alone = spec.cell.gates > 1 && single.quads <= most && own_weights <= FEW_WEIGHTS;
        let sums = match alone {
            true => single,
            false => Sums::new(spec, way),
        };
        let wanted = sums.weights() / FEW_WEIGHTS;
        let wanted = wanted.next_power_of_two().clamp(most.min(32), most);
        // Two quads of an invocation take half of the accesses to terms.
        let several = if sums.weights() >= FEW_WEIGHTS * most {
            2
        } else {
            1
        };
        let quads = match alone {
            true => 1,
            false => sums.quads.div_ceil(most).max(several.min(sums.quads)),
        };
        let columns = sums.quads.div_ceil(quads);
        let room = most_of(target).saturating_sub(4 * quads * tile);
        // What is on its way takes registers, and a text of four steps of several sequences is long.
        let short = way == Way::Back || own_weights <= RING_WEIGHTS;
        let many = target.kind == DeviceKind::Gpu && most_of(target) == LARGE;
        let of_term = registers_of_term(spec, &sums, quads);
        let most_kept = room / of_term / 4 * 4;
        let parts = match alone {
            true => 1,
            // As many more as keep all weights in registers.
            false => (wanted / columns).max(sums.terms.div_ceil(most_kept.max(4))),
        };
        let parts = parts.min(most / columns).clamp(1, sums.terms.div_ceil(4));
        let chunk = sums.terms.div_ceil(parts).next_multiple_of(4);
        let kept = most_kept.min(chunk);
        let near_words = columns * parts * quads * Element::bytes(spec.precision.element(), 4) / 4;
        let mut team = Self {
            way,
            tile,
            quads,
            columns,
            alone,
            ring: alone && tile == 1 && short && many,
            parts: sums.terms.div_ceil(chunk),
            chunk,
            kept,
            near: 0,
            near_words,
            subgroup: 0,
            hidden: spec.hidden_size,
            sums,
        };
        let left = (target.workgroup_memory as usize / 4).saturating_sub(team.floats());
        team.near = (left / near_words / 4 * 4).min(chunk - kept);
        team
    }

    /// Floats of workgroup memory: the terms, the sums of the parts, and weights.
    fn floats(&self) -> usize {
        let of_part = match (self.alone, self.way) {
            (true, Way::Forward) => 2 * self.chunk,
            // A term has the gradients of all gates.
            (true, Way::Back) => 2 * 4 * self.chunk,
            (false, _) => self.chunk + 4 * self.sums.quads,
        };
        self.tile * self.parts * of_part + self.near * self.near_words
    }

    /// What the kernel is specialised to.
    pub(crate) fn constants(&self) -> Vec<Constant> {
        let threads = self.columns * self.parts;
        [
            ("BACK", self.way as usize),
            ("THREADS", threads),
            ("TILE", self.tile),
            ("HIDDEN", self.hidden),
            ("QUADS", self.quads),
            ("COLUMNS", self.columns),
            ("ALONE", usize::from(self.alone)),
            ("SIDES", 1 + usize::from(self.alone)),
            ("RING", 4 * usize::from(self.ring)),
            ("STEPS", if self.ring { 4 } else { 1 }),
            ("PARTS", self.parts),
            ("CHUNK", self.chunk),
            ("KEPT", self.kept),
            ("NEAR", self.near),
            ("SUBGROUP_SIZE", self.subgroup),
            ("LINES", self.kept.checked_div(self.subgroup).unwrap_or(0)),
            ("OWNED", (self.tile * self.hidden).div_ceil(threads)),
            ("WORKGROUP_FLOATS", self.floats()),
        ]
        .map(|(name, value)| (name, value as u32))
        .to_vec()
    }
}

/// The invocations of a subgroup that hand terms around, or 0 where that is not possible or does not pay. On a GPU
/// workgroup memory serves a whole subgroup with one access.
pub(crate) fn subgroup(target: &Target) -> usize {
    let size = target.subgroup_size;
    let usable = size == target.subgroup_most && size <= target.invocations;
    match (target.kind, size as usize) {
        (DeviceKind::Software, size @ (4 | 8 | 16)) if usable => size,
        _ => 0,
    }
}

/// Whether a subgroup hands terms around, and invocations keep all weights of a layer.
pub(crate) fn keeps_in_subgroups(spec: &LayerSpec, target: &Target) -> bool {
    let keeps = |way| {
        let team = Team::of(spec, target, 1, way);
        team.subgroup > 0 && team.kept == team.chunk
    };
    keeps(Way::Forward) && keeps(Way::Back)
}

/// Registers that the weights of a term take.
fn registers_of_term(spec: &LayerSpec, sums: &Sums, quads: usize) -> usize {
    let each = match spec.precision.element() {
        Element::Half => sums.of_quad.div_ceil(2),
        _ => sums.of_quad,
    };
    quads * each
}

fn most_of(target: &Target) -> usize {
    match target.invocations {
        1024.. => LARGE,
        _ => SMALL,
    }
}

/// The registers that an invocation would need for all of its weights, the larger number of both ways.
pub(crate) fn registers(spec: &LayerSpec, target: &Target) -> usize {
    let of = |way| {
        let team = Team::of(spec, target, 1, way);
        team.chunk * registers_of_term(spec, &team.sums, team.quads)
    };
    of(Way::Forward).max(of(Way::Back))
}

/// And that it may need: where there are many, a fourth of the weights may be read in every step.
pub(crate) fn most_registers(target: &Target) -> usize {
    match target.invocations {
        1024.. => MOST_THREADS,
        _ => SMALL - 4,
    }
}

/// Floats of workgroup memory for one sequence, the larger number of both ways.
pub(crate) fn floats(spec: &LayerSpec, target: &Target) -> usize {
    let of = |way| Team::of(spec, target, 1, way).floats();
    of(Way::Forward).max(of(Way::Back))
}

#[cfg(test)]
mod tests {
    use super::super::strategy::{Strategy, choose};
    use super::*;
    use crate::cell::{GRU, LSTM, RNN_TANH};
    use crate::plan::sequence::Precision;

    const WAYS: [Way; 2] = [Way::Forward, Way::Back];

    fn large() -> Target {
        Target {
            invocations: 1024,
            workgroup_memory: 48 << 10,
            ..Target::default()
        }
    }

    fn shape(spec: &LayerSpec, target: &Target, batch: usize, way: Way) -> [usize; 6] {
        let team = Team::new(spec, target, batch, way);
        let Team {
            tile,
            quads,
            columns,
            parts,
            chunk,
            kept,
            ..
        } = team;
        [tile, quads, columns, parts, chunk, kept]
    }

    #[test]
    fn shapes() {
        for (cell, hidden, forward, back) in [
            // The first two take their own sums through the gates.
            (&LSTM, 16, [1, 1, 16, 1, 16, 16], [1, 1, 16, 1, 16, 16]),
            (&LSTM, 32, [1, 1, 32, 1, 32, 32], [1, 1, 32, 1, 32, 32]),
            (&LSTM, 64, [1, 1, 64, 2, 32, 32], [1, 1, 16, 8, 32, 32]),
            (&LSTM, 128, [1, 2, 64, 4, 32, 28], [1, 2, 16, 16, 32, 28]),
            (&GRU, 128, [1, 2, 64, 4, 32, 32], [1, 2, 16, 16, 24, 24]),
            (&RNN_TANH, 128, [1, 1, 32, 4, 32, 32], [1, 1, 32, 4, 32, 32]),
        ] {
            let spec = LayerSpec::new(cell, 8, hidden);
            assert_eq!(shape(&spec, &large(), 1, Way::Forward), forward);
            assert_eq!(shape(&spec, &large(), 1, Way::Back), back);
        }
    }

    /// Short texts have several steps.
    #[test]
    fn tiny_layers_have_a_ring() {
        let on = |target: &Target, cell, hidden, batch| {
            let spec = LayerSpec::new(cell, 8, hidden);
            WAYS.map(|way| Team::new(&spec, target, batch, way))
                .map(|team| (team.alone, team.ring))
        };
        let of = |cell, hidden| on(&large(), cell, hidden, 1);
        assert_eq!(of(&LSTM, 24), [(true, true); 2]);
        assert_eq!(of(&LSTM, 32), [(true, false), (true, true)]);
        assert_eq!(of(&LSTM, 33), [(false, false); 2]);
        assert_eq!(of(&GRU, 40), [(true, false), (true, true)]);
        assert_eq!(of(&RNN_TANH, 8), [(false, false); 2]);
        // Those of several sequences are as many times as long; other devices have few registers, or compile for seconds.
        let software = Target {
            kind: DeviceKind::Software,
            ..large()
        };
        for (target, batch) in [(large(), 1000), (Target::default(), 1), (software, 1)] {
            assert_eq!(on(&target, &LSTM, 16, batch), [(true, false); 2]);
        }
    }

    /// A software adapter whose subgroups have so many invocations.
    fn with_subgroups(size: u32) -> Target {
        Target {
            subgroup_size: size,
            subgroup_most: size,
            ..Target::portable(DeviceKind::Software)
        }
    }

    /// Whole subgroups, and all terms in one part as long as they are few.
    #[test]
    fn shapes_of_subgroups() {
        for (cell, hidden, forward, back) in [
            (&LSTM, 5, [1, 1, 8, 1, 8, 8], [1, 1, 8, 1, 24, 24]),
            (
                &LSTM,
                128,
                [1, 1, 128, 1, 128, 128],
                [1, 1, 32, 4, 128, 128],
            ),
            (&GRU, 100, [1, 1, 104, 1, 104, 104], [1, 1, 32, 3, 104, 104]),
            (
                &RNN_TANH,
                256,
                [1, 1, 64, 2, 128, 128],
                [1, 1, 64, 2, 128, 128],
            ),
            // Too large: what is not kept is read in every step.
            (
                &LSTM,
                512,
                [1, 2, 256, 1, 512, 64],
                [1, 1, 128, 2, 1024, 128],
            ),
        ] {
            let spec = LayerSpec::new(cell, 8, hidden);
            assert_eq!(shape(&spec, &with_subgroups(8), 1, Way::Forward), forward);
            assert_eq!(shape(&spec, &with_subgroups(8), 1, Way::Back), back);
        }
    }

    #[test]
    fn for_software_with_subgroups_of_one_size() {
        assert_eq!(
            [4, 8, 16].map(|size| subgroup(&with_subgroups(size))),
            [4, 8, 16]
        );
        assert_eq!(
            [0, 1, 32].map(|size| subgroup(&with_subgroups(size))),
            [0; 3]
        );
        let varies = Target {
            subgroup_most: 16,
            ..with_subgroups(8)
        };
        let gpu = Target {
            kind: DeviceKind::Gpu,
            ..with_subgroups(8)
        };
        let narrow = Target {
            invocations: 4,
            ..with_subgroups(8)
        };
        assert_eq!(
            [varies, gpu, narrow].map(|target| subgroup(&target)),
            [0; 3]
        );
    }

    #[test]
    fn as_many_sequences_as_there_is_room_for() {
        let spec = LayerSpec::new(&LSTM, 8, 64);
        for (batch, tile) in [(1, 1), (128, 1), (129, 2), (10_000, 4)] {
            for way in WAYS {
                assert_eq!(Team::new(&spec, &large(), batch, way).tile, tile);
            }
        }
        let three = Team::of(&spec, &Target::default(), 3, Way::Back).floats();
        let small = Target {
            workgroup_memory: 4 * three as u32,
            ..Target::default()
        };
        assert_eq!(Team::new(&spec, &small, 10_000, Way::Back).tile, 3);
    }

    #[test]
    fn any_target_has_one() {
        let nothing = Target {
            invocations: 0,
            groups: 0,
            workgroup_memory: 0,
            ..Target::default()
        };
        for way in WAYS {
            let team = Team::new(&LayerSpec::new(&LSTM, 8, 5), &nothing, 3, way);
            assert_eq!([team.columns, team.parts, team.tile], [1; 3]);
        }
    }

    /// Every term of every quad is summed, by no more invocations than there may be.
    #[test]
    fn every_term_has_its_invocation() {
        for cell in [&LSTM, &GRU, &RNN_TANH] {
            for hidden in (1..300).chain([511, 1024]) {
                for precision in Precision::ALL {
                    let spec = LayerSpec {
                        precision,
                        ..LayerSpec::new(cell, 8, hidden)
                    };
                    for (target, way) in [
                        large(),
                        Target::default(),
                        with_subgroups(4),
                        with_subgroups(8),
                        with_subgroups(16),
                    ]
                    .iter()
                    .flat_map(|t| WAYS.map(|w| (*t, w)))
                    {
                        let team = Team::new(&spec, &target, 1, way);
                        // Of a quad of four units, or of one with all its gates; a term has those of one, or alone of all.
                        let units = match (team.alone, way) {
                            (true, _) => 1,
                            (_, Way::Forward) if cell.gates > 1 => 1,
                            _ => 4,
                        };
                        let terms = match (team.alone, way) {
                            (false, Way::Back) => cell.gates * hidden,
                            _ => hidden,
                        };
                        assert!(team.quads * team.columns * units >= hidden);
                        assert!(team.parts * team.chunk >= terms);
                        assert!((team.parts - 1) * team.chunk < terms);
                        if team.alone {
                            let of = [team.parts, team.quads, team.columns, team.kept];
                            assert_eq!(of, [1, 1, hidden, team.chunk]);
                        }
                        assert!(team.columns * team.parts <= 256);
                        assert!(
                            [team.chunk, team.kept, team.near]
                                .iter()
                                .all(|n| n.is_multiple_of(4))
                        );
                        let fits = 4 * team.floats() <= target.workgroup_memory as usize;
                        assert!(fits || choose(&spec, &target).0 == Strategy::Steps);
                        if team.subgroup > 0 {
                            let of = [team.columns, team.chunk, team.kept];
                            assert!(of.iter().all(|n| n.is_multiple_of(team.subgroup)));
                        }
                    }
                }
            }
        }
    }
}
