//! Lanes: levels that run side by side, each step of theirs in one dispatch.
//!
//! One after another, levels take a dispatch for every step of each, with a barrier between any two. The two
//! directions of a layer need nothing of each other: side by side they are half as many dispatches, each with
//! twice the work. In a stack of one direction a layer needs what the layer below puts out at the same step:
//! it runs some steps, the lag, behind it, so that what it reads is projected for so many steps at once, and L
//! layers of T steps are T + (L − 1)·lag dispatches instead of L·T.
//!
//! The values of such levels stand in the same buffers, one level's behind another's, so that a kernel binds
//! no more than for one; the workgroups' z says whose they are. So they are all there at once, where levels in
//! turn share scratch memory: in training the gradients of the gates and of the outputs of all layers.

use super::call::{Batch, Mode, Order};
use super::form::{Way, invocations_of_step, packing};
use super::run::Run;
use super::spec::{LayerSpec, Level};
use super::strategy::{Strategy, choose as strategy};
use super::team::Team;
use crate::plan::{DeviceKind, Target};

/// How the levels of a layer are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Levels {
    /// One after another.
    InTurn,
    /// The directions of each layer, or in a stack of one direction all layers, side by side.
    Together,
}

impl Levels {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::InTurn, Self::Together];

    /// Its name, as a tool writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::InTurn => "in-turn",
            Self::Together => "together",
        }
    }
}

/// How the levels of a layer may be run, and why.
///
/// It depends on the layer and the device, not on the call, since the weights are packed for it once. A call
/// that cannot run them together, or gains nothing by it, runs them in turn over the same weights; its plan
/// says so. The spec is one that [`LayerSpec::check`] accepts.
pub fn levels(spec: &LayerSpec, target: &Target) -> (Levels, String) {
    let (chosen, why) = by_rule(spec, target);
    match target.force.levels {
        None => (chosen, why),
        Some(forced) if forced == chosen => (chosen, "forced, and the rule's choice".to_owned()),
        Some(forced) => match possible(spec, target) {
            Err(needs) if forced == Levels::Together => {
                (chosen, format!("together was forced, but {needs}"))
            }
            _ => (forced, format!("forced; the rule: {why}")),
        },
    }
}

fn by_rule(spec: &LayerSpec, target: &Target) -> (Levels, String) {
    let why = match possible(spec, target) {
        Err(needs) => return (Levels::InTurn, needs),
        Ok(()) if target.kind == DeviceKind::Cpu => {
            let why = "on the CPU a level takes all threads";
            return (Levels::InTurn, why.to_owned());
        }
        Ok(()) if spec.bidirectional => "half of the dispatches, each with twice the work",
        Ok(()) if target.kind == DeviceKind::Software && !gains_on_software(spec, target) => {
            let why = "an adapter on the CPU, where layers side by side gain nothing";
            return (Levels::InTurn, why.to_owned());
        }
        Ok(()) if strategy(spec, target).0 == Strategy::Sequence => {
            "each layer behind the one below, in workgroups of its own"
        }
        Ok(()) => "each layer behind the one below: fewer dispatches, each with more work",
    };
    (Levels::Together, why.to_owned())
}

/// Whether a stack may gain on a software adapter. On one with two cores, in two runs each, side by side took of
/// the time in turn: steps of three GRU layers of 256 units 0.86 and 0.97 by least times, 0.84 and 1.17 by medians,
/// so that a gain is not certain; those of two LSTM layers of 1024 units 1.11 and 1.10. LSTM layers that run all steps in a
/// dispatch, by medians: of 64 units, one sequence, two layers 1.04 and four 1.08; of 128 units 0.81 and 1.24, with eight
/// sequences 1.30 and 1.05, with 32 1.13 and 1.34.
fn gains_on_software(spec: &LayerSpec, target: &Target) -> bool {
    strategy(spec, target).0 == Strategy::Steps && spec.width() * spec.output_size() <= 1 << 18
}

fn possible(spec: &LayerSpec, target: &Target) -> Result<(), String> {
    let cell = spec.cell;
    let lanes = side_by_side(spec);
    if lanes == 1 {
        return Err("there is one level".to_owned());
    }
    let alone = cell.forward.len() == 1 && cell.backward.len() == 1;
    let hands = cell.hands_on() || cell.hands_back();
    if !cell.side_by_side || !alone || hands {
        return Err(format!(
            "the kernels of {} run one level at a time",
            cell.name
        ));
    }
    for way in [Way::Forward, Way::Back] {
        let Some(packed) = packing(spec, target, way) else {
            return Err("plain steps read weights where they are".to_owned());
        };
        let of_lane = spec.precision.element().bytes(packed.len()) as u64;
        fits(
            "packed weights",
            of_lane.saturating_mul(lanes as u64),
            target,
        )?;
    }
    Ok(())
}

/// Whether what is in bytes fits a buffer.
fn fits(what: &str, bytes: u64, target: &Target) -> Result<(), String> {
    // Shaders count elements of four bytes in 32 bits.
    let most = target.buffer_bytes.min(u64::from(u32::MAX) * 4);
    match bytes <= most {
        true => Ok(()),
        false => Err(format!(
            "the {what} of all levels are {bytes} bytes, and a buffer has at most {most}"
        )),
    }
}

/// The bytes of so many arrays of floats or words.
fn bytes(arrays: usize, elements: usize) -> u64 {
    (elements as u64)
        .saturating_mul(arrays as u64)
        .saturating_mul(4)
}

/// How many levels there are that could run side by side.
fn side_by_side(spec: &LayerSpec) -> usize {
    match spec.bidirectional {
        true => 2,
        false => spec.num_layers,
    }
}

/// How many levels have their packed weights in the same buffers.
pub(crate) fn weight_lanes(spec: &LayerSpec, target: &Target) -> usize {
    match levels(spec, target).0 {
        Levels::InTurn => 1,
        Levels::Together => side_by_side(spec),
    }
}

/// A level's place among so many that share buffers.
pub(crate) fn lane_of(spec: &LayerSpec, level: &Level, lanes: usize) -> usize {
    match (lanes, spec.bidirectional) {
        (1, _) => 0,
        (_, true) => usize::from(level.reverse),
        (_, false) => level.layer,
    }
}

/// How a call runs its levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lanes {
    /// How many share the buffers of the call: 1 where they run in turn.
    pub(crate) count: usize,
    /// How many steps each runs behind the one before.
    pub(crate) lag: usize,
}

/// Levels in turn.
pub(crate) const IN_TURN: Lanes = Lanes { count: 1, lag: 0 };

/// How a call runs its levels, and if not as [`levels`] says then why; `run` has all but that.
pub(super) fn of_call(run: &Run) -> (Lanes, Option<String>) {
    let (spec, target) = (run.spec(), run.target());
    let lanes = weight_lanes(spec, target);
    if lanes == 1 {
        return (IN_TURN, None);
    }
    let lag = if run.call().burn_in > 0 {
        Err("some steps have no gradients".to_owned())
    } else if run.segments(false).len() > 1 {
        Err("segments share memory".to_owned())
    } else if spec.bidirectional {
        Ok(0)
    } else {
        lag(run, lanes)
    };
    let together = lag.and_then(|lag| {
        let together = Lanes { count: lanes, lag };
        let run = run.clone().with_lanes(together);
        let sizes = run.lane_sizes();
        let words = run.table_words().saturating_add(run.rows());
        fits("tables", bytes(1, words), target)?;
        let gradients = usize::from(run.training()) * sizes.dgates;
        for (what, elements) in [
            ("gates", sizes.gates),
            ("gradients of gates", gradients),
            ("states", sizes.h.max(sizes.c)),
        ] {
            fits(what, bytes(lanes, elements), target)?;
        }
        // Those of directions stand beside each other in any case.
        let of_stack = usize::from(lag > 0);
        let rows = run.output_rows_below().saturating_mul(lanes - 1);
        let elements = rows
            .saturating_add(run.rows())
            .saturating_mul(spec.output_size());
        fits("outputs", bytes(of_stack, elements), target)?;
        Ok(together)
    });
    match together {
        Ok(together) => (together, None),
        Err(why) if target.force.levels == Some(Levels::Together) => {
            (IN_TURN, Some(format!("together was forced, but {why}")))
        }
        Err(why) => (IN_TURN, Some(why)),
    }
}

/// How many steps a layer of a stack runs behind the one below.
///
/// Each of the ⌈T / lag⌉ projections of each of L layers is a dispatch, as is each of the T + (L − 1)·lag
/// steps: together they are fewest at √(T·L / (L − 1)). Where a dispatch has many steps, each of them takes a
/// fourth of its time or so, and the lag is twice as long.
fn lag(run: &Run, layers: usize) -> Result<usize, String> {
    let (call, steps) = (run.call(), run.steps());
    let batch_first = [call.input, call.output].contains(&Order::BatchFirst);
    if matches!(call.batch, Batch::Padded(_)) && batch_first && run.batch() > 1 {
        return Err("batch first, the rows of some steps are not neighbours".to_owned());
    }
    let of_dispatch = match run.strategy() {
        Strategy::Steps => 1.0,
        Strategy::Sequence => 4.0,
    };
    let best = (of_dispatch * steps as f64 * layers as f64 / (layers - 1) as f64).sqrt();
    let lag = (best.ceil() as usize).max(LEAST_LAG);
    if run.target().force.levels == Some(Levels::Together) {
        return Ok(lag.min(steps));
    }
    if steps < 2 * lag {
        return Err(format!("{steps} steps are too few to overlap"));
    }
    enough_room(run, layers).map(|()| lag)
}

/// Whether one layer leaves the device idle.
fn enough_room(run: &Run, layers: usize) -> Result<(), String> {
    let (spec, target, batch) = (run.spec(), run.target(), run.batch());
    if run.strategy() == Strategy::Sequence {
        let groups = batch.div_ceil(Team::new(spec, target, batch, Way::Forward).tile);
        return match layers * groups <= target.groups {
            true => Ok(()),
            false => Err(format!(
                "the workgroups of {layers} layers, {groups} of each, do not run at once"
            )),
        };
    }
    let invocations = invocations_of_step(spec, target, batch);
    match invocations < target.groups * FULL {
        true => Ok(()),
        false => Err(format!(
            "a step of one layer has {invocations} invocations, enough for the device"
        )),
    }
}

/// Half of the invocations that a multiprocessor of a large GPU holds.
const FULL: usize = 1024;
/// Fewer rows make products whose time is that of their weights.
const LEAST_LAG: usize = 8;

/// Elements of one lane in each of the buffers that lanes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) gates: usize,
    pub(crate) h: usize,
    pub(crate) c: usize,
    pub(crate) dgates: usize,
    pub(crate) dstate: usize,
}

impl Run {
    /// How many levels share the buffers of the call.
    pub(crate) fn lanes(&self) -> usize {
        self.lanes.count
    }

    /// How many steps each of them runs behind the one before; 0 for directions.
    pub(crate) fn lag(&self) -> usize {
        self.lanes.lag
    }

    /// How the levels are run, and why, where there are several.
    pub(super) fn levels_chosen(&self) -> Option<(Levels, String)> {
        if self.spec().num_layers * self.spec().directions() == 1 {
            return None;
        }
        let (chosen, why) = levels(self.spec(), self.target());
        Some(match &self.why_in_turn {
            Some(why) => (Levels::InTurn, why.clone()),
            None if self.lag() > 0 => (chosen, format!("{why}; {} steps behind", self.lag())),
            None => (chosen, why),
        })
    }

    /// Whether levels run side by side.
    pub(crate) fn together(&self) -> bool {
        self.lanes.count > 1
    }

    /// Where a level's part starts of a buffer in which each lane has so many elements.
    pub(crate) fn lane(&self, level: &Level, of_lane: usize) -> usize {
        lane_of(self.spec(), level, self.lanes.count) * of_lane
    }

    /// What a lane has of the buffers of a call.
    pub(crate) fn lane_sizes(&self) -> Sizes {
        let spec = self.spec();
        let (rows, batch, hidden) = (self.most_rows(), self.batch(), spec.hidden_size);
        let (cell, output) = (spec.cell, spec.output_size());
        let (h_rows, c_rows) = self.state_rows();
        Sizes {
            gates: self.gate_rows() * self.slots() * hidden,
            h: h_rows * output,
            c: c_rows * hidden,
            dgates: rows * cell.gradient_slots * hidden,
            dstate: batch * (output + hidden * usize::from(cell.cell_state)),
        }
    }

    /// The steps whose input a layer of a stack projects at once, the `nth` such; none past the last.
    pub(crate) fn chunk(&self, nth: usize) -> Option<std::ops::Range<usize>> {
        let start = nth * self.lag();
        (start < self.steps()).then(|| start..(start + self.lag()).min(self.steps()))
    }

    /// The chunk of a step, where what is projected is kept for one chunk alone.
    pub(crate) fn chunk_of(&self, t: usize) -> Option<std::ops::Range<usize>> {
        let alone = self.lag() > 0 && self.call().mode == Mode::Inference;
        alone.then(|| self.chunk(t / self.lag())).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{GRU, GRU_BEFORE, LSTM, LSTM_PROJECTED, RNN_TANH};
    use crate::plan::Force;
    use crate::plan::sequence::{Call, Size, StepForm};

    fn bidirectional(cell: &'static crate::cell::Cell) -> LayerSpec {
        LayerSpec {
            bidirectional: true,
            proj_size: if cell.projected { 5 } else { 0 },
            ..LayerSpec::new(cell, 8, 300)
        }
    }

    fn stack(cell: &'static crate::cell::Cell) -> LayerSpec {
        LayerSpec {
            bidirectional: false,
            num_layers: 3,
            ..bidirectional(cell)
        }
    }

    fn forcing(target: Target, to: Levels, step: Option<StepForm>) -> Target {
        let force = Force {
            levels: Some(to),
            step,
            ..Force::default()
        };
        Target { force, ..target }
    }

    #[test]
    fn rules() {
        for kind in DeviceKind::ALL {
            let target = Target::portable(kind);
            let expected = match kind {
                DeviceKind::Cpu => Levels::InTurn,
                _ => Levels::Together,
            };
            for cell in [&LSTM, &GRU, &RNN_TANH] {
                let small = LayerSpec {
                    hidden_size: 250,
                    ..stack(cell)
                };
                for spec in [bidirectional(cell), small] {
                    assert_eq!(levels(&spec, &target).0, expected, "{cell:?} {kind}");
                }
                let large = LayerSpec {
                    hidden_size: 513,
                    ..small
                };
                let expected = match kind {
                    DeviceKind::Gpu => Levels::Together,
                    _ => Levels::InTurn,
                };
                assert_eq!(levels(&large, &target).0, expected, "{cell:?} {kind}");
                let one = LayerSpec::new(cell, 8, 300);
                assert_eq!(levels(&one, &target).0, Levels::InTurn);
            }
            for cell in [&GRU_BEFORE, &LSTM_PROJECTED] {
                for spec in [bidirectional(cell), stack(cell)] {
                    assert_eq!(levels(&spec, &target).0, Levels::InTurn);
                }
            }
        }
    }

    #[test]
    fn what_is_forced_is_used_where_it_can_be() {
        for kind in DeviceKind::ALL {
            for to in Levels::ALL {
                let target = forcing(Target::portable(kind), to, None);
                for spec in [bidirectional(&LSTM), stack(&LSTM)] {
                    assert_eq!(levels(&spec, &target).0, to, "{kind}");
                }
            }
        }
        let target = forcing(Target::default(), Levels::Together, Some(StepForm::Plain));
        let (chosen, why) = levels(&bidirectional(&LSTM), &target);
        assert_eq!(chosen, Levels::InTurn);
        assert_eq!(
            why,
            "together was forced, but plain steps read weights where they are"
        );
        let (chosen, why) = levels(&bidirectional(&GRU_BEFORE), &target);
        assert_eq!(chosen, Levels::InTurn);
        assert!(
            why.ends_with("the kernels of gru_before run one level at a time"),
            "{why}"
        );
    }

    /// How a call of 100 steps runs the levels of a layer, and why not together.
    fn run(spec: &LayerSpec, call: &Call, target: &Target) -> (Lanes, Option<String>) {
        let run = Run::new(spec, call, target).unwrap();
        (run.lanes, run.why_in_turn.clone())
    }

    const SIZE: Size = Size {
        steps: 100,
        batch: 4,
    };

    #[test]
    fn lag_of_a_stack() {
        let target = Target::default();
        let of = |steps, layers| {
            let spec = LayerSpec {
                num_layers: layers,
                ..stack(&LSTM)
            };
            run(&spec, &Call::inference(Size { steps, batch: 4 }), &target)
        };
        // The square roots of 200, 150 and 2000.
        assert_eq!(of(100, 2).0, Lanes { count: 2, lag: 15 });
        assert_eq!(of(100, 3).0, Lanes { count: 3, lag: 13 });
        assert_eq!(of(1000, 2).0, Lanes { count: 2, lag: 45 });
        assert_eq!(of(16, 2).0, Lanes { count: 2, lag: 8 });
        let (lanes, why) = of(15, 2);
        assert_eq!(lanes, IN_TURN);
        assert_eq!(why.unwrap(), "15 steps are too few to overlap");
    }

    #[test]
    fn calls_in_turn() {
        let target = Target::default();
        let cut = Call::training(SIZE).recompute(20);
        for spec in [bidirectional(&LSTM), stack(&LSTM)] {
            let (lanes, why) = run(&spec, &cut, &target);
            assert_eq!(lanes, IN_TURN);
            assert_eq!(why.unwrap(), "segments share memory");
        }
        let (lanes, why) = run(&stack(&LSTM), &Call::inference(SIZE).batch_first(), &target);
        assert_eq!(lanes, IN_TURN);
        assert!(why.unwrap().starts_with("batch first"));
        let (lanes, _) = run(
            &bidirectional(&LSTM),
            &Call::inference(SIZE).batch_first(),
            &target,
        );
        assert_eq!(lanes.count, 2);
        let many = Size {
            steps: 100,
            batch: 512,
        };
        let large = LayerSpec {
            hidden_size: 1024,
            ..stack(&LSTM)
        };
        let (lanes, why) = run(&large, &Call::inference(many), &target);
        assert_eq!(lanes, IN_TURN);
        let expected = "a step of one layer has 524288 invocations, enough for the device";
        assert_eq!(why.unwrap(), expected);
    }

    #[test]
    fn buffers_of_several_levels_have_to_fit() {
        let spec = bidirectional(&LSTM);
        let with = |buffer_bytes| Target {
            buffer_bytes,
            ..Target::default()
        };
        // 75 quads of 4 units x 300 terms of 4 gates.
        let weights = 2 * 4 * 4 * 300 * 300;
        assert_eq!(levels(&spec, &with(weights)).0, Levels::Together);
        let (chosen, why) = levels(&spec, &with(weights - 1));
        assert_eq!(chosen, Levels::InTurn);
        let expected = format!(
            "the packed weights of all levels are {weights} bytes, and a buffer has at most {}",
            weights - 1
        );
        assert_eq!(why, expected);
        // Of the call the gates are the largest.
        let gates = 2 * 4 * 100 * 4 * 4 * 300;
        let call = Call::training(SIZE);
        assert_eq!(run(&spec, &call, &with(gates)).0.count, 2);
        let (lanes, why) = run(&spec, &call, &with(gates - 1));
        assert_eq!(lanes, IN_TURN);
        assert!(why.unwrap().starts_with("the gates of all levels"));
    }
}
