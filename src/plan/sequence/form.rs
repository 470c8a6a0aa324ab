//! The forms of a step: how it computes its sums, and the rules that choose one.
//!
//! All forms but the plain one work on quads of sums ([`Blocks::quads`]) and read the same packed
//! weights, so that which of them runs a step may depend on how many sequences have it.
//!
//! The numbers for GPUs follow from how many workgroups fill one, and from an NVIDIA H200, where each form was measured
//! beside the others. On software Vulkan steps with dispatches of their own are in blocks.

use super::buffers::{blocks_back, blocks_forward, sizes};
use super::spec::{LayerSpec, Precision};
use super::strategy::{Strategy, choose as strategy};
use super::tile::{self, Tile};
use crate::cell::{Forms, Pass, Units};
use crate::kernel::Constant;
use crate::kernels::pack::Blocks;
use crate::kernels::step::{LANES, ROWS, WORKGROUP};
use crate::plan::{DeviceKind, Grid, Target};

/// How a step computes its sums. The shaders in `shaders/shared/` say what each does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepForm {
    /// An invocation for a unit with all its gates, of four sequences.
    Plain,
    /// An invocation for a quad of some sequences, in registers alone.
    Blocks,
    /// A workgroup for a quad of up to eight sequences, whose terms its invocations share.
    Few,
    /// A workgroup for some quads of 16 or 32 sequences, in tiles of workgroup memory.
    Tile,
}

/// Which way a step goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Forward,
    Back,
}

/// What a step works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) way: Way,
    /// Whether its sequences are streams.
    pub(crate) stream: bool,
    /// How many there are.
    pub(crate) count: usize,
    /// How many levels have such a step side by side.
    pub(crate) lanes: usize,
    /// How many quads, how many sums of each are not empty, and terms of a sum.
    pub(super) quads: usize,
    pub(super) sums: usize,
    pub(super) terms: usize,
}

/// The most sequences of an invocation in blocks, whose sums are then as many as there are vector
/// registers, and of a workgroup for few.
const MOST_SEQUENCES: usize = 8;

impl StepForm {
    /// Every form.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Blocks, Self::Few, Self::Tile];

    /// Its name, as a tool writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Blocks => "blocks",
            Self::Few => "few",
            Self::Tile => "tile",
        }
    }

    /// Whether a device can run a step so; the error says what it lacks.
    fn fits(self, shape: &Shape, target: &Target) -> Result<(), String> {
        if self == Self::Tile && shape.stream {
            return Err("streams have no tiles".to_owned());
        }
        let of = self.constants(shape, target);
        for (what, name, size, most) in [
            ("invocations", "THREADS", 1, target.invocations),
            (
                "bytes of workgroup memory",
                "WORKGROUP_FLOATS",
                4,
                target.workgroup_memory,
            ),
        ] {
            let needed = size * of.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v);
            if target.kind != DeviceKind::Cpu && needed > most {
                return Err(format!("{needed} {what} are needed, and there are {most}"));
            }
        }
        Ok(())
    }

    /// Whether its kernel computes right on a device, as far as is known; the error says which does not.
    fn right(self, spec: &LayerSpec, target: &Target, way: Way) -> Result<(), String> {
        let kernel = spec.cell.forms[way as usize]
            .as_ref()
            .and_then(|f| match self {
                Self::Plain => None,
                Self::Blocks => Some(f.blocks),
                Self::Few => Some(f.few),
                Self::Tile => Some(f.tile),
            });
        match kernel {
            Some(kernel) if target.denied.has(kernel) => {
                Err(format!("{} computes wrongly here", kernel.name))
            }
            _ => Ok(()),
        }
    }

    /// What its kernel is specialised to.
    fn constants(self, shape: &Shape, target: &Target) -> Vec<Constant> {
        let own = match self {
            Self::Plain => return Vec::new(),
            Self::Blocks => vec![
                ("SEQUENCES", few(shape)),
                // The eight invocations of a workgroup have to be in one subgroup.
                (
                    "SUBGROUPS",
                    usize::from(target.subgroup_size >= LANES as u32),
                ),
            ],
            Self::Few => {
                let (sequences, threads) = (few(shape), few_threads(shape, target));
                vec![
                    ("SEQUENCES", sequences),
                    ("THREADS", threads),
                    ("WORKGROUP_FLOATS", 4 * threads * sequences),
                ]
            }
            Self::Tile => Tile::new(shape, target).constants(),
        };
        let own = own.into_iter().map(|(name, value)| (name, value as u32));
        [("BACK", shape.way as u32)]
            .into_iter()
            .chain(own)
            .collect()
    }

    /// Workgroups along the quads and along the sequences.
    fn groups(self, shape: &Shape, target: &Target) -> [usize; 2] {
        let [quads, sequences] = match self {
            Self::Plain => [1, ROWS],
            Self::Blocks => [LANES, few(shape)],
            Self::Few => [1, few(shape)],
            Self::Tile => Tile::new(shape, target).of_group(),
        };
        [shape.quads.div_ceil(quads), shape.count.div_ceil(sequences)]
    }
}

/// Sequences of an invocation in blocks, and of a workgroup for few.
fn few(shape: &Shape) -> usize {
    shape.count.next_power_of_two().min(MOST_SEQUENCES)
}

/// Invocations that share the terms of a quad: four terms for each, so that all of them are on their
/// way at once, as long as there is room for the partial sums.
fn few_threads(shape: &Shape, target: &Target) -> usize {
    let room = target.workgroup_memory as usize / 16 / few(shape);
    let most = room.min(target.invocations as usize).clamp(32, 256);
    let most = 1 << most.ilog2();
    (shape.terms / 4).next_power_of_two().clamp(32, most)
}

/// The form of a step, and why.
pub(super) fn choose(spec: &LayerSpec, target: &Target, shape: &Shape) -> (StepForm, String) {
    let (chosen, why) = by_rule(spec, target, shape);
    match target.force.step {
        None => (chosen, why),
        Some(forced) if forced == chosen => (chosen, "forced, and the rule's choice".to_owned()),
        Some(StepForm::Plain) if spec.precision == Precision::F16 => (
            chosen,
            "plain was forced, but it has no 16-bit weights".to_owned(),
        ),
        Some(StepForm::Plain) => (StepForm::Plain, format!("forced; the rule: {why}")),
        Some(forced) => match possible(spec, shape.way)
            .and_then(|()| forced.fits(shape, target))
            .and_then(|()| forced.right(spec, target, shape.way))
        {
            Ok(()) => (forced, format!("forced; the rule: {why}")),
            Err(needs) => (
                over_quads(chosen, spec, shape),
                format!("{} was forced, but {needs}", forced.name()),
            ),
        },
    }
}

/// What takes the place of a form that was forced and cannot be: one with the same weights.
fn over_quads(chosen: StepForm, spec: &LayerSpec, shape: &Shape) -> StepForm {
    match chosen {
        StepForm::Plain if possible(spec, shape.way).is_ok() => StepForm::Blocks,
        other => other,
    }
}

fn by_rule(spec: &LayerSpec, target: &Target, shape: &Shape) -> (StepForm, String) {
    if let Err(needs) = possible(spec, shape.way) {
        return (StepForm::Plain, needs);
    }
    let (form, why) = match target.kind {
        DeviceKind::Cpu if spec.precision == Precision::F16 => {
            (StepForm::Blocks, "16-bit weights are packed")
        }
        DeviceKind::Cpu => (StepForm::Plain, "on the CPU a step is a matrix product"),
        DeviceKind::Software => (
            StepForm::Blocks,
            "a CPU has no workgroup memory, and loads are dear",
        ),
        DeviceKind::Gpu if shape.count <= MOST_SEQUENCES => (
            StepForm::Few,
            "at most 8 sequences: the time is that of reading the weights",
        ),
        DeviceKind::Gpu if shape.stream => (
            StepForm::Few,
            "streams: the time is that of reading the weights",
        ),
        DeviceKind::Gpu if few_tiles_back(shape, target) => (
            StepForm::Few,
            "back, at most 16 sequences: tiles would leave a GPU idle",
        ),
        DeviceKind::Gpu => (StepForm::Tile, "more than 8 sequences share the weights"),
    };
    let (form, why) = match form.fits(shape, target) {
        Ok(()) => (form, why.to_owned()),
        Err(needs) => (StepForm::Blocks, needs),
    };
    instead(form, spec, target, shape).unwrap_or((form, why))
}

/// What takes the place of a form whose kernel computes wrongly on a device, and why; none where it does not. Tiles are
/// never alone: where neither blocks nor few sequences can be, all steps of a layer are plain, since its weights are packed
/// for one of the two.
fn instead(
    form: StepForm,
    spec: &LayerSpec,
    target: &Target,
    shape: &Shape,
) -> Option<(StepForm, String)> {
    // 16-bit weights are packed in any case: without another form the plan is refused.
    if target.denied.is_empty() || spec.precision == Precision::F16 {
        return None;
    }
    let right = |form: &StepForm| form.right(spec, target, shape.way).is_ok();
    let others = [StepForm::Blocks, StepForm::Few];
    let of_quads = others
        .iter()
        .any(|f| right(f) && f.fits(shape, target).is_ok());
    let wrong = match form.right(spec, target, shape.way) {
        Err(wrong) => wrong,
        Ok(()) if form != StepForm::Tile || of_quads => return None,
        Ok(()) => StepForm::Blocks.right(spec, target, shape.way).err()?,
    };
    let fits = |form: &StepForm| right(form) && form.fits(shape, target).is_ok();
    let other = others.into_iter().find(fits);
    Some((other.unwrap_or(StepForm::Plain), wrong))
}

/// Whether a step back of a few sequences has so few tiles that workgroups which share the terms of a quad do better,
/// although they read the weights twice. On an NVIDIA H200, before tiles loaded without conditions, microseconds a step
/// of 16 sequences in tiles and so: LSTM 256 12.4 and 9.6, LSTM 512 16.2 and 14.9, LSTM 1024 26.0 and 27.7; forward LSTM
/// 256 9.6 and 8.9, LSTM 512 11.6 and 14.9.
fn few_tiles_back(shape: &Shape, target: &Target) -> bool {
    let few = shape.count <= 2 * MOST_SEQUENCES;
    shape.way == Way::Back && few && 2 * tile::count(shape, 2) <= target.groups
}

/// How many invocations a step forward of so many sequences has.
pub(super) fn invocations_of_step(spec: &LayerSpec, target: &Target, count: usize) -> usize {
    let shape = Shape::new(spec, Way::Forward, count);
    let form = choose(spec, target, &shape).0;
    let each = match form {
        StepForm::Plain => WORKGROUP,
        StepForm::Blocks => LANES,
        StepForm::Few => few_threads(&shape, target),
        StepForm::Tile => tile::THREADS,
    };
    form.groups(&shape, target).into_iter().product::<usize>() * each
}

/// Whether a layer's step has other forms than the plain one; the error says why not.
fn possible(spec: &LayerSpec, way: Way) -> Result<(), String> {
    match (spec.cell.forms[way as usize], way) {
        (Some(_), _) => Ok(()),
        (None, Way::Forward) => Err(format!("{} has the plain form alone", spec.cell.name)),
        (None, Way::Back) => Err(format!("{} has the plain form alone back", spec.cell.name)),
    }
}

/// How W_hh is packed for the steps of a layer in one direction, unless a kernel takes it as it is (back)
/// or transposed (forward).
///
/// It depends on the layer and the device, not on the call, since the weights are packed once.
pub(crate) fn packing(spec: &LayerSpec, target: &Target, way: Way) -> Option<Blocks> {
    match (strategy(spec, target).0, way) {
        (Strategy::Sequence, Way::Forward) => Some(blocks_forward(spec, target)),
        (Strategy::Sequence, Way::Back) => Some(blocks_back(spec, target)),
        (Strategy::Steps, _) if plain(spec, target, way) => None,
        (Strategy::Steps, way) => Some(in_quads(spec, way)),
    }
}

/// Whether the steps of a layer are plain, however many sequences have them.
pub(super) fn plain(spec: &LayerSpec, target: &Target, way: Way) -> bool {
    choose(spec, target, &Shape::new(spec, way, 1)).0 == StepForm::Plain
}

fn in_quads(spec: &LayerSpec, way: Way) -> Blocks {
    match way {
        Way::Forward => Blocks::quads(sizes(spec)),
        Way::Back => Blocks::quads_back(sizes(spec)),
    }
}

impl Shape {
    /// A step of so many sequences.
    pub(crate) fn new(spec: &LayerSpec, way: Way, count: usize) -> Self {
        let packed = in_quads(spec, way);
        Self {
            way,
            stream: false,
            count,
            lanes: 1,
            quads: packed.units.div_ceil(packed.block),
            sums: match (way, spec.cell.gates) {
                (Way::Back, _) | (_, 1) => 4,
                (Way::Forward, gates) => gates,
            },
            terms: packed.size,
        }
    }

    /// The same of so many levels.
    pub(crate) fn side_by_side(self, lanes: usize) -> Self {
        Self { lanes, ..self }
    }

    /// A step of so many streams, whose input has a size.
    pub(crate) fn streams(spec: &LayerSpec, input: usize, count: usize) -> Self {
        let step = Self::new(spec, Way::Forward, count);
        Self {
            stream: true,
            // The fourth of a GRU's is what n has of x.
            sums: 4,
            terms: input + 1 + step.terms,
            ..step
        }
    }
}

/// A step's kernel, what it is specialised to, and how many workgroups it takes.
#[derive(Debug, Clone)]
pub(crate) struct Shaped {
    pub(crate) pass: Pass,
    pub(crate) constants: Vec<Constant>,
    pub(crate) grid: Grid,
    /// Its form with the reason.
    pub(crate) chosen: Option<(StepForm, String)>,
}

/// A kernel of a step in the form that the rules choose, if it has several; `pass` is the plain one.
pub(crate) fn shaped(spec: &LayerSpec, target: &Target, pass: &Pass, shape: &Shape) -> Shaped {
    let first = match shape.way {
        Way::Forward => spec.cell.forward.first(),
        Way::Back => spec.cell.backward.first(),
    };
    // Other kernels of a step multiply with other weights, or with what one before them left.
    let has_forms = first.is_some_and(|first| std::ptr::eq(first.kernel, pass.kernel));
    let chosen = has_forms.then(|| choose(spec, target, shape));
    let form = chosen.as_ref().map_or(StepForm::Plain, |(form, _)| *form);
    let kernel = |forms: &Forms| match form {
        StepForm::Plain => pass.kernel,
        StepForm::Blocks => forms.blocks,
        StepForm::Few => forms.few,
        StepForm::Tile => forms.tile,
    };
    let grid = match form {
        StepForm::Plain => grid(spec, pass, shape.count),
        form => {
            let [x, y] = form.groups(shape, target);
            Grid::Groups([x, y, shape.lanes])
        }
    };
    Shaped {
        pass: Pass {
            kernel: spec.cell.forms[shape.way as usize]
                .as_ref()
                .map_or(pass.kernel, kernel),
            ..*pass
        },
        constants: form.constants(shape, target),
        grid,
        chosen,
    }
}

/// The plain form: a workgroup for every so many units of every four sequences.
fn grid(spec: &LayerSpec, pass: &Pass, count: usize) -> Grid {
    let units = match pass.units {
        Units::Hidden => spec.hidden_size,
        Units::Output => spec.output_size(),
    };
    Grid::Groups([units.div_ceil(WORKGROUP), count.div_ceil(ROWS), 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{GRU, GRU_BEFORE, LSTM, LSTM_PEEPHOLE, LSTM_PROJECTED, RNN_TANH};
    use crate::plan::Force;

    const WAYS: [Way; 2] = [Way::Forward, Way::Back];

    fn by_steps(target: Target, step: Option<StepForm>) -> Target {
        let force = Force {
            strategy: Some(Strategy::Steps),
            step,
            ..Force::default()
        };
        Target { force, ..target }
    }

    fn forced(kind: DeviceKind, form: StepForm) -> Target {
        by_steps(Target::portable(kind), Some(form))
    }

    /// The names and values of the constants behind the first, which is the way.
    fn constants(form: StepForm, shape: &Shape, target: &Target) -> Vec<u32> {
        let all = form.constants(shape, target);
        assert_eq!(all[0], ("BACK", shape.way as u32));
        all[1..].iter().map(|(_, value)| *value).collect()
    }

    #[test]
    fn rules() {
        for cell in [&LSTM, &LSTM_PEEPHOLE, &GRU, &RNN_TANH] {
            let spec = LayerSpec::new(cell, 3, 1024);
            for way in WAYS {
                let of = |kind, count| {
                    choose(
                        &spec,
                        &Target::portable(kind),
                        &Shape::new(&spec, way, count),
                    )
                    .0
                };
                for count in [1, 8, 9, 64] {
                    assert_eq!(of(DeviceKind::Cpu, count), StepForm::Plain);
                    assert_eq!(of(DeviceKind::Software, count), StepForm::Blocks);
                }
                assert_eq!(of(DeviceKind::Gpu, 1), StepForm::Few);
                assert_eq!(of(DeviceKind::Gpu, 8), StepForm::Few);
                assert_eq!(of(DeviceKind::Gpu, 9), StepForm::Tile);
            }
            let small = LayerSpec::new(&LSTM, 3, 512);
            let of = |count| {
                let shape = Shape::new(&small, Way::Back, count);
                choose(&small, &Target::default(), &shape).0
            };
            assert_eq!([of(16), of(17)], [StepForm::Few, StepForm::Tile]);
            let streams = Shape::streams(&spec, 3, 100);
            assert_eq!(choose(&spec, &Target::default(), &streams).0, StepForm::Few);
        }
        let spec = LayerSpec::new(&LSTM_PROJECTED, 3, 1024);
        let of = |way| choose(&spec, &Target::default(), &Shape::new(&spec, way, 1));
        assert_eq!(of(Way::Forward).0, StepForm::Few);
        let plain = (
            StepForm::Plain,
            "lstm_projected has the plain form alone back".to_owned(),
        );
        assert_eq!(of(Way::Back), plain);
    }

    #[test]
    fn a_low_limit_leaves_blocks() {
        let spec = LayerSpec::new(&LSTM, 3, 1024);
        let target = Target {
            invocations: 128,
            ..Target::default()
        };
        let of = |count| choose(&spec, &target, &Shape::new(&spec, Way::Forward, count));
        assert_eq!(of(8).0, StepForm::Few);
        let (form, why) = of(9);
        assert_eq!(form, StepForm::Blocks);
        assert_eq!(why, "256 invocations are needed, and there are 128");
    }

    #[test]
    fn what_is_forced_is_used_where_it_can_be() {
        for kind in DeviceKind::ALL {
            for form in StepForm::ALL {
                let target = forced(kind, form);
                let of = |cell, count| {
                    let spec = LayerSpec::new(cell, 3, 5);
                    choose(&spec, &target, &Shape::new(&spec, Way::Forward, count)).0
                };
                for count in [1, 2, 40] {
                    assert_eq!(of(&LSTM, count), form);
                    assert_eq!(of(&GRU_BEFORE, count), StepForm::Plain);
                }
            }
        }
        let spec = LayerSpec::new(&GRU_BEFORE, 3, 5);
        let step = Shape::new(&spec, Way::Forward, 2);
        let (_, why) = choose(&spec, &forced(DeviceKind::Gpu, StepForm::Blocks), &step);
        assert_eq!(
            why,
            "blocks was forced, but gru_before has the plain form alone"
        );
        let spec = LayerSpec::new(&GRU, 3, 5);
        let (form, why) = choose(
            &spec,
            &forced(DeviceKind::Cpu, StepForm::Tile),
            &Shape::streams(&spec, 3, 20),
        );
        assert_eq!(form, StepForm::Blocks);
        assert_eq!(why, "tile was forced, but streams have no tiles");
    }

    /// Weights are packed once for all calls, however many sequences they have.
    #[test]
    fn packed_exactly_where_no_step_is_plain() {
        for kind in DeviceKind::ALL {
            let low = Target {
                invocations: 64,
                workgroup_memory: 1 << 10,
                ..Target::portable(kind)
            };
            let forms = StepForm::ALL.map(Some);
            for device in [Target::portable(kind), low] {
                for form in forms.into_iter().chain([None]) {
                    let target = by_steps(device, form);
                    for (cell, way) in crate::cell::ALL.iter().flat_map(|&c| WAYS.map(|w| (c, w))) {
                        let spec = LayerSpec::new(cell, 3, 100);
                        let plain = packing(&spec, &target, way).is_none();
                        let mut steps: Vec<_> =
                            (1..70).map(|count| Shape::new(&spec, way, count)).collect();
                        if way == Way::Forward {
                            steps.push(Shape::streams(&spec, 3, 1));
                            steps.push(Shape::streams(&spec, 3, 30));
                        }
                        for step in steps {
                            let form = choose(&spec, &target, &step).0;
                            assert_eq!(form == StepForm::Plain, plain, "{cell:?} {step:?}");
                        }
                    }
                }
            }
        }
    }

    /// Whatever is asked for, since a plain step reads weights as they are.
    #[test]
    fn sixteen_bit_weights_have_no_plain_form() {
        let plain = |kind| forced(kind, StepForm::Plain);
        for target in DeviceKind::ALL
            .into_iter()
            .flat_map(|kind| [plain(kind), by_steps(Target::portable(kind), None)])
        {
            for (cell, way) in [&LSTM, &GRU, &RNN_TANH]
                .into_iter()
                .flat_map(|cell| WAYS.map(|way| (cell, way)))
            {
                let spec = LayerSpec {
                    precision: Precision::F16,
                    ..LayerSpec::new(cell, 3, 100)
                };
                assert!(packing(&spec, &target, way).is_some());
                for count in [1, 40] {
                    let (form, why) = choose(&spec, &target, &Shape::new(&spec, way, count));
                    assert_ne!(form, StepForm::Plain, "{why}");
                }
            }
        }
    }

    #[test]
    fn blocks() {
        let mut target = Target::portable(DeviceKind::Software);
        let of = |cell, target: &Target, way, count| {
            let shape = Shape::new(&LayerSpec::new(cell, 3, 70), way, count);
            let form = StepForm::Blocks;
            (form.groups(&shape, target), constants(form, &shape, target))
        };
        // 70 units of an LSTM are 70 quads; of one gate, and back, they are 18.
        assert_eq!(of(&LSTM, &target, Way::Forward, 1), ([9, 1], vec![1, 0]));
        assert_eq!(of(&LSTM, &target, Way::Back, 3), ([3, 1], vec![4, 0]));
        target.subgroup_size = 4;
        assert_eq!(of(&GRU, &target, Way::Forward, 8), ([9, 1], vec![8, 0]));
        target.subgroup_size = 8;
        assert_eq!(
            of(&RNN_TANH, &target, Way::Forward, 17),
            ([3, 3], vec![8, 1])
        );
    }

    #[test]
    fn few() {
        let of = |hidden, way, count| {
            let shape = Shape::new(&LayerSpec::new(&LSTM, 3, hidden), way, count);
            let form = StepForm::Few;
            (
                form.groups(&shape, &Target::default()),
                constants(form, &shape, &Target::default()),
            )
        };
        assert_eq!(of(8, Way::Forward, 1), ([8, 1], vec![1, 32, 128]));
        assert_eq!(of(512, Way::Forward, 3), ([512, 1], vec![4, 128, 2048]));
        assert_eq!(of(1024, Way::Forward, 1), ([1024, 1], vec![1, 256, 1024]));
        // 16 KiB hold the partial sums of 128 invocations.
        assert_eq!(of(1024, Way::Forward, 8), ([1024, 1], vec![8, 128, 4096]));
        assert_eq!(of(100, Way::Back, 20), ([25, 3], vec![8, 128, 4096]));
    }

    #[test]
    fn tiles() {
        let of = |hidden, way, count| {
            let shape = Shape::new(&LayerSpec::new(&LSTM, 3, hidden), way, count);
            let form = StepForm::Tile;
            (
                form.groups(&shape, &Target::default()),
                constants(form, &shape, &Target::default()),
            )
        };
        // Enough tiles of eight quads; fewer quads to a tile; more sequences than one has.
        let wide = vec![4, 1, 0, 8, 64, 2, 1, 8, 8, 256, 4 * 768];
        assert_eq!(of(1024, Way::Forward, 16), ([128, 1], wide));
        let narrow = vec![4, 1, 0, 2, 128, 1, 2, 32, 4, 256, 4 * 768];
        assert_eq!(of(256, Way::Forward, 9), ([128, 1], narrow));
        let many = vec![8, 2, 0, 8, 64, 2, 2, 8, 8, 256, 4096];
        assert_eq!(of(1024, Way::Back, 128), ([32, 4], many));
    }
}
