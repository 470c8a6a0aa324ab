//! Lanes: levels that run side by side, each step of theirs in one dispatch.
//!
//! The two directions of a layer need nothing of each other. In turn, they take twice as many dispatches
//! with a barrier between any two, each over half of the work; side by side, the values of both stand in the
//! same buffers, one direction's behind the other's, and the workgroups' z says whose they are.

use super::form::{Way, packing};
use super::run::Run;
use super::spec::LayerSpec;
use crate::plan::{DeviceKind, Target};

/// How the two directions of a layer are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Directions {
    /// One after the other.
    InTurn,
    /// Every step of both in one dispatch.
    Together,
}

impl Directions {
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

/// How the directions of a layer are run, and why.
///
/// It depends on the layer and the device, not on the call, since the weights are packed for it once; a call
/// of several segments, whose values share memory, still runs them in turn.
pub fn directions(spec: &LayerSpec, target: &Target) -> (Directions, String) {
    let (chosen, why) = by_rule(spec, target);
    match target.force.directions {
        None => (chosen, why),
        Some(forced) if forced == chosen => (chosen, "forced, and the rule's choice".to_owned()),
        Some(forced) => match possible(spec, target) {
            Err(needs) if forced == Directions::Together => {
                (chosen, format!("together was forced, but {needs}"))
            }
            _ => (forced, format!("forced; the rule: {why}")),
        },
    }
}

fn by_rule(spec: &LayerSpec, target: &Target) -> (Directions, String) {
    match possible(spec, target) {
        Err(needs) => (Directions::InTurn, needs),
        Ok(()) if target.kind == DeviceKind::Cpu => (
            Directions::InTurn,
            "on the CPU a direction takes all threads".to_owned(),
        ),
        Ok(()) => (
            Directions::Together,
            "half of the dispatches, each with twice the work".to_owned(),
        ),
    }
}

fn possible(spec: &LayerSpec, target: &Target) -> Result<(), String> {
    let cell = spec.cell;
    if !spec.bidirectional {
        return Err("there is one direction".to_owned());
    }
    if cell.forward.len() > 1 || cell.backward.len() > 1 {
        return Err(format!("a step of {} is several kernels", cell.name));
    }
    let packed = |way| packing(spec, target, way).is_some();
    if !packed(Way::Forward) || !packed(Way::Back) {
        return Err("plain steps read weights where they are".to_owned());
    }
    Ok(())
}

/// How many lanes share the buffers of a layer.
pub(crate) fn lanes(spec: &LayerSpec, target: &Target) -> usize {
    match directions(spec, target).0 {
        Directions::InTurn => 1,
        Directions::Together => 2,
    }
}

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
    /// What a lane has of the buffers of a call.
    pub(crate) fn lane_sizes(&self) -> Sizes {
        let spec = self.spec();
        let (rows, batch, hidden) = (self.most_rows(), self.batch(), spec.hidden_size);
        let (cell, output) = (spec.cell, spec.output_size());
        let (h_rows, c_rows) = self.state_rows();
        Sizes {
            gates: rows * self.slots() * hidden,
            h: h_rows * output,
            c: c_rows * hidden,
            dgates: rows * cell.gradient_slots * hidden,
            dstate: batch * (output + hidden * usize::from(cell.cell_state)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{GRU, GRU_BEFORE, LSTM, LSTM_PROJECTED, RNN_TANH};
    use crate::plan::Force;
    use crate::plan::sequence::StepForm;

    fn bidirectional(cell: &'static crate::cell::Cell) -> LayerSpec {
        LayerSpec {
            bidirectional: true,
            proj_size: if cell.projected { 5 } else { 0 },
            ..LayerSpec::new(cell, 8, 300)
        }
    }

    #[test]
    fn rules() {
        for kind in DeviceKind::ALL {
            let target = Target::portable(kind);
            let expected = match kind {
                DeviceKind::Cpu => Directions::InTurn,
                _ => Directions::Together,
            };
            for cell in [&LSTM, &GRU, &RNN_TANH] {
                let spec = bidirectional(cell);
                assert_eq!(directions(&spec, &target).0, expected, "{cell:?} {kind}");
                let one = LayerSpec::new(cell, 8, 300);
                assert_eq!(directions(&one, &target).0, Directions::InTurn);
            }
            for cell in [&GRU_BEFORE, &LSTM_PROJECTED] {
                let spec = bidirectional(cell);
                assert_eq!(directions(&spec, &target).0, Directions::InTurn);
            }
        }
    }

    #[test]
    fn what_is_forced_is_used_where_it_can_be() {
        let forced = |kind, to, step| Target {
            force: Force {
                directions: Some(to),
                step,
                ..Force::default()
            },
            ..Target::portable(kind)
        };
        for kind in DeviceKind::ALL {
            for to in Directions::ALL {
                let target = forced(kind, to, None);
                assert_eq!(directions(&bidirectional(&LSTM), &target).0, to, "{kind}");
            }
        }
        let target = forced(DeviceKind::Gpu, Directions::Together, Some(StepForm::Plain));
        let (chosen, why) = directions(&bidirectional(&LSTM), &target);
        assert_eq!(chosen, Directions::InTurn);
        assert_eq!(
            why,
            "together was forced, but plain steps read weights where they are"
        );
        let (chosen, why) = directions(&bidirectional(&GRU_BEFORE), &target);
        assert_eq!(chosen, Directions::InTurn);
        assert!(
            why.ends_with("a step of gru_before is several kernels"),
            "{why}"
        );
    }
}
