//! How the steps of a level are run, and the rules that choose it.

use super::spec::LayerSpec;
use super::team;
use crate::plan::{DeviceKind, Target};

/// How the steps of a level are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// A dispatch for every kernel of every step.
    Steps,
    /// One dispatch for all steps: each workgroup runs some sequences from their first step to their
    /// last, with most of the recurrent weights in its registers and memory.
    Sequence,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 2] = [Self::Steps, Self::Sequence];

    /// Its name, as a tool writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Sequence => "sequence",
        }
    }
}

/// The recurrent weights of a layer whose steps take less on a software adapter than the 30 or 40 µs of a
/// dispatch, where each is loaded for a lane alone: half a billion multiplications per second and core.
const SMALL: usize = 1 << 12;
/// Those that the cache of a core holds. On llvmpipe with two cores, where a subgroup hands terms around, milliseconds
/// of inference in steps and in one dispatch: LSTM 64, one sequence of 512 steps, 20.7 and 5.1, 32 of 128 steps 28.8 and 26.3; LSTM
/// 128 43.3 and 12.4, 64.1 and 62.5; GRU 128 42.4 and 10.5, 58.5 and 50.3; RNN 256 55.3 and 12.0, 51.2 and 55.3. LSTM 256,
/// whose kernel takes seconds to compile, 88.2 and 35.6, 170 and 172; RNN 320 52.6 and 20.1, 73.1 and 94.2. In training LSTM
/// 128 96.8 and 34.5, 180 and 179; RNN 256 91.3 and 37.4, 218 and 158.
const CACHED: usize = 1 << 16;
/// Units of a block of packed weights: the widest vector register of a CPU, and a multiple of what a
/// GPU reads at once.
pub(crate) const UNITS: usize = 16;

/// The strategy for a layer, and why.
///
/// It depends on the layer and the device, not on the call, since the weights are packed for it once.
pub fn choose(spec: &LayerSpec, target: &Target) -> (Strategy, String) {
    let (chosen, why) = by_rule(spec, target);
    match target.force.strategy {
        None => (chosen, why),
        Some(forced) if forced == chosen => (chosen, "forced, and the rule's choice".to_owned()),
        Some(Strategy::Steps) => (Strategy::Steps, format!("forced; the rule: {why}")),
        Some(Strategy::Sequence) => match possible(spec, target) {
            Ok(()) => (Strategy::Sequence, format!("forced; the rule: {why}")),
            Err(needs) => (Strategy::Steps, format!("sequence was forced, but {needs}")),
        },
    }
}

fn by_rule(spec: &LayerSpec, target: &Target) -> (Strategy, String) {
    if let Err(needs) = possible(spec, target) {
        return (Strategy::Steps, needs);
    }
    let (registers, most) = (team::registers(spec, target), team::most_registers(target));
    let (hidden, weights) = (spec.hidden_size, spec.width() * spec.output_size());
    match target.kind {
        DeviceKind::Cpu => (
            Strategy::Sequence,
            "on the CPU one call runs all steps".to_owned(),
        ),
        DeviceKind::Software if weights <= SMALL => (
            Strategy::Sequence,
            format!("H {hidden}: a dispatch takes longer than a step"),
        ),
        DeviceKind::Software if weights <= CACHED && team::keeps_in_subgroups(spec, target) => (
            Strategy::Sequence,
            format!("H {hidden}: a core keeps all weights, and a dispatch takes long"),
        ),
        DeviceKind::Software if weights <= CACHED && team::subgroup(target) == 0 => (
            Strategy::Steps,
            "an adapter on the CPU without subgroups of always 4, 8 or 16 invocations".to_owned(),
        ),
        DeviceKind::Software => (
            Strategy::Steps,
            format!("H {hidden}: an adapter on the CPU, whose cores cannot keep the weights"),
        ),
        DeviceKind::Gpu if registers <= most => (
            Strategy::Sequence,
            format!("an invocation has {registers} registers of weights, at most {most}"),
        ),
        DeviceKind::Gpu => (
            Strategy::Steps,
            format!(
                "H {hidden}: an invocation would have {registers} registers of weights, more than {most}"
            ),
        ),
    }
}

/// Whether a layer can be run so at all; the error says what is missing.
fn possible(spec: &LayerSpec, target: &Target) -> Result<(), String> {
    let Some(passes) = &spec.cell.sequence else {
        return Err(format!("{} has no kernel for all steps", spec.cell.name));
    };
    if let Some(pass) = passes.iter().find(|p| target.denied.has(p.kernel)) {
        return Err(format!("{} computes wrongly here", pass.kernel.name));
    }
    let (needed, available) = (
        4 * team::floats(spec, target),
        target.workgroup_memory as usize,
    );
    if target.kind != DeviceKind::Cpu && needed > available {
        return Err(format!(
            "{needed} bytes of workgroup memory are needed, and there are {available}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{GRU, GRU_BEFORE, LSTM, LSTM_PROJECTED, RNN_TANH};
    use crate::plan::Force;
    use crate::plan::sequence::Precision;

    fn of(cell: &'static crate::cell::Cell, hidden: usize, target: &Target) -> Strategy {
        choose(&LayerSpec::new(cell, 8, hidden), target).0
    }

    #[test]
    fn on_a_gpu_the_weights_must_fit_registers() {
        let portable = Target::default();
        let large = Target {
            invocations: 1024,
            workgroup_memory: 48 << 10,
            ..portable
        };
        // The largest H of each cell that is run so: 256 weights for each of 256 invocations are 2^16.
        for (cell, on_portable, on_large) in
            [(&LSTM, 85, 128), (&GRU, 85, 128), (&RNN_TANH, 168, 256)]
        {
            for (target, most) in [(portable, on_portable), (large, on_large)] {
                for hidden in 1..=most {
                    let of = of(cell, hidden, &target);
                    assert_eq!(of, Strategy::Sequence, "{cell:?} {hidden}");
                }
                let next = of(cell, most + 1, &target);
                assert_eq!(next, Strategy::Steps, "{cell:?} {}", most + 1);
            }
        }
    }

    /// Twice as many weights of 16 bits fit: H is larger by the root of 2, but for whole rows.
    #[test]
    fn of_16_bits_twice_as_many() {
        let portable = Target::default();
        for (cell, most) in [(&LSTM, 128), (&GRU, 128), (&RNN_TANH, 256)] {
            let of = |hidden| {
                let spec = LayerSpec {
                    precision: Precision::F16,
                    ..LayerSpec::new(cell, 8, hidden)
                };
                choose(&spec, &portable).0
            };
            assert_eq!(of(most), Strategy::Sequence, "{cell:?} {most}");
            assert_eq!(of(most + 1), Strategy::Steps, "{cell:?} {}", most + 1);
        }
    }

    #[test]
    fn elsewhere() {
        let cpu = Target::portable(DeviceKind::Cpu);
        let software = Target::portable(DeviceKind::Software);
        assert_eq!(of(&LSTM, 2048, &cpu), Strategy::Sequence);
        for (cell, most) in [(&LSTM, 32), (&GRU, 36), (&RNN_TANH, 64)] {
            assert_eq!(of(cell, most, &software), Strategy::Sequence, "{cell:?}");
            assert_eq!(of(cell, most + 1, &software), Strategy::Steps, "{cell:?}");
        }
        let with_subgroups = Target {
            subgroup_size: 8,
            subgroup_most: 8,
            ..software
        };
        for (cell, most) in [(&LSTM, 128), (&GRU, 128), (&RNN_TANH, 256)] {
            let of = |hidden| of(cell, hidden, &with_subgroups);
            assert_eq!(of(most), Strategy::Sequence, "{cell:?}");
            assert_eq!(of(most + 1), Strategy::Steps, "{cell:?}");
        }
        for cell in [&LSTM_PROJECTED, &GRU_BEFORE] {
            for target in [cpu, software, with_subgroups, Target::default()] {
                assert_eq!(of(cell, 8, &target), Strategy::Steps, "{cell:?}");
            }
        }
    }

    #[test]
    fn what_is_forced_is_used_where_it_can_be() {
        let forced = |kind, strategy| Target {
            force: Force {
                strategy: Some(strategy),
                ..Force::default()
            },
            ..Target::portable(kind)
        };
        for kind in DeviceKind::ALL {
            for strategy in Strategy::ALL {
                assert_eq!(of(&LSTM, 32, &forced(kind, strategy)), strategy);
            }
        }
        let gpu = forced(DeviceKind::Gpu, Strategy::Sequence);
        let (chosen, why) = choose(&LayerSpec::new(&LSTM, 8, 1024), &gpu);
        assert_eq!(chosen, Strategy::Steps);
        assert_eq!(
            why,
            "sequence was forced, but 24576 bytes of workgroup memory are needed, and there are 16384"
        );
        let (chosen, why) = choose(&LayerSpec::new(&GRU_BEFORE, 8, 8), &gpu);
        assert_eq!(chosen, Strategy::Steps);
        assert!(
            why.ends_with("gru_before has no kernel for all steps"),
            "{why}"
        );
    }
}
