//! A layer and a call of it that fit together, and where the rows of each step stand.
//!
//! Rows. A sequence's step has one row in x, y, the gates and their gradients. Padded calls have T·N
//! rows, [`Order`] says in which order; packed calls have as many as there are tokens, step after
//! step, as PyTorch's `PackedSequence`. Within a [`Segment`], a run of steps whose kept values share
//! memory with those of other segments, the rows are counted from its own first.

use std::ops::Range;

use super::call::{Batch, Call, Mode, Order, check, check_activations};
use super::lanes::{IN_TURN, Lanes, of_call};
use super::spec::{LayerSpec, Level, check_elements};
use super::step::Stored;
use super::strategy::{Strategy, choose};
use crate::error::{Error, Result};
use crate::kernels::step::Moment;
use crate::kernels::times;
use crate::plan::{MAX_STEPS, Target};

/// A run of steps whose kept values share the memory of the other segments'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its place among the segments in the order in which a direction runs them.
    pub(crate) number: usize,
    pub(crate) steps: Range<usize>,
    /// Whether it has gradients.
    pub(crate) trained: bool,
}

/// Neighbouring rows of a segment in the call's rows, and where they stand in the segment's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) whole: usize,
    pub(crate) local: usize,
    pub(crate) len: usize,
}

/// Sequences whose first step in a segment is the same; `None` for those that have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) sequences: Range<usize>,
    pub(crate) step: Option<usize>,
}

/// A row and the distance to that of the next sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) start: usize,
    pub(crate) row: usize,
}

/// A layer and a call of it that fit together.
#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) spec: LayerSpec,
    pub(crate) call: Call,
    /// Packed: the row of each step's first sequence; then the number of rows.
    offsets: Vec<usize>,
    /// In the order in which each direction runs them.
    segments: [Vec<Segment>; 2],
    most_rows: usize,
    runs_again: bool,
    target: Target,
    strategy: Strategy,
    pub(super) lanes: Lanes,
    pub(super) why_in_turn: Option<String>,
}

impl Run {
    /// Checks a call of a layer on a device.
    ///
    /// # Errors
    /// If a size is 0, options contradict each other, batch sizes are not sorted, or an array had more
    /// elements than 32 bits can index.
    pub fn new(spec: &LayerSpec, call: &Call, target: &Target) -> Result<Self> {
        spec.check()?;
        check(spec, call)?;
        check_activations(spec, call, target)?;
        let offsets = match &call.batch {
            Batch::Padded(_) => Vec::new(),
            Batch::Packed(sizes) => {
                let mut offsets = vec![0usize];
                for (i, &size) in sizes.iter().enumerate() {
                    offsets.push(offsets[i].saturating_add(size));
                }
                offsets
            }
        };
        let mut run = Self {
            spec: *spec,
            call: call.clone(),
            offsets,
            segments: [Vec::new(), Vec::new()],
            most_rows: 0,
            runs_again: false,
            target: *target,
            strategy: choose(spec, target).0,
            lanes: IN_TURN,
            why_in_turn: None,
        };
        let [a, b] = match &call.batch {
            Batch::Padded(size) => [size.steps, size.batch],
            Batch::Packed(_) => [run.offsets[run.steps()], 1],
        };
        let (batch, hidden, output) = (run.batch(), spec.hidden_size, spec.output_size());
        let (layers, directions) = (spec.num_layers, spec.directions());
        let of_rows: [(&str, &[usize]); 3] = [
            ("x", &[a, b, spec.input_size]),
            ("y", &[a, b, directions, output]),
            ("states", &[layers, directions, batch, hidden]),
        ];
        check_elements(spec.cell.name, &of_rows)?;
        run.cut();
        let (h_rows, c_rows) = run.state_rows();
        let gradients = usize::from(run.training()) * spec.cell.gradient_slots;
        let of_segments: [(&str, &[usize]); 5] = [
            ("gates", &[run.most_rows, run.slots(), hidden]),
            ("gradients of gates", &[run.most_rows, gradients, hidden]),
            ("h", &[h_rows, output]),
            ("c", &[c_rows, hidden]),
            ("kept states", &[run.segments[0].len(), batch, hidden]),
        ];
        check_elements(spec.cell.name, &of_segments)?;
        let (lanes, why) = of_call(&run);
        run.why_in_turn = why;
        let run = run.with_lanes(lanes);
        run.check_steps()?;
        Ok(run)
    }

    /// Refuses a call with more dispatches than a plan may have, before they are planned.
    fn check_steps(&self) -> Result<()> {
        let (spec, steps) = (&self.spec, self.steps());
        let cell = spec.cell;
        let kernels = cell.forward.len() + usize::from(self.training()) * cell.backward.len();
        let levels = match self.together() {
            true => 1,
            false => spec.num_layers * spec.directions(),
        };
        let needed = steps.saturating_mul(kernels).saturating_mul(levels);
        if self.strategy == Strategy::Steps && needed > MAX_STEPS {
            return Err(Error::Limit {
                what: format!("{}: dispatches of {steps} steps", cell.name),
                needed: needed as u64,
                available: MAX_STEPS as u64,
            });
        }
        Ok(())
    }

    /// Bytes that the call's largest arrays take at least.
    pub(crate) fn least_bytes(&self) -> u64 {
        let spec = &self.spec;
        let of_row = spec.input_size + spec.features();
        let mut bytes = times(&[self.rows(), of_row, 4]);
        if self.training() {
            let gates = self
                .call
                .activations
                .element()
                .bytes(self.slots() * spec.hidden_size);
            let states = 4 * spec.output_size();
            let levels = spec.num_layers * spec.directions();
            let kept = times(&[self.most_rows, gates + states, levels]);
            bytes = bytes.saturating_add(kept);
        }
        bytes
    }

    /// The same with its levels run so.
    pub(super) fn with_lanes(mut self, lanes: Lanes) -> Self {
        self.lanes = lanes;
        self
    }

    /// Cuts the steps into segments.
    fn cut(&mut self) {
        self.segments = [false, true].map(|reverse| self.cut_for(reverse));
        let [segments, _] = &self.segments;
        self.most_rows = segments.iter().map(|s| self.rows_in(s)).max().unwrap_or(0);
        self.runs_again = segments.iter().filter(|s| s.trained).count() > 1;
    }

    /// The layer.
    pub fn spec(&self) -> &LayerSpec {
        &self.spec
    }

    /// The call.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// T
    pub fn steps(&self) -> usize {
        match &self.call.batch {
            Batch::Padded(size) => size.steps,
            Batch::Packed(sizes) => sizes.len(),
        }
    }

    /// N
    pub fn batch(&self) -> usize {
        match &self.call.batch {
            Batch::Padded(size) => size.batch,
            Batch::Packed(sizes) => sizes[0],
        }
    }

    /// How many rows x and y have: T·N, or the tokens of packed sequences.
    pub fn rows(&self) -> usize {
        match &self.call.batch {
            Batch::Padded(size) => size.steps * size.batch,
            Batch::Packed(_) => self.offsets[self.steps()],
        }
    }

    /// The shape of an array with `features` values for each row.
    pub fn shape(&self, order: Order, features: usize) -> Vec<usize> {
        match (&self.call.batch, order) {
            (Batch::Packed(_), _) => vec![self.rows(), features],
            (Batch::Padded(s), Order::TimeFirst) => vec![s.steps, s.batch, features],
            (Batch::Padded(s), Order::BatchFirst) => vec![s.batch, s.steps, features],
        }
    }

    /// The device.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// How the steps of a level are run.
    pub(crate) fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Words in front of the mask: the tables of the kernels that run all steps or several levels, for each
    /// level one, and where segments run again without an output of theirs another.
    pub(crate) fn table_words(&self) -> usize {
        match self.strategy {
            Strategy::Steps if !self.together() => 0,
            _ => {
                let levels = self.spec.num_layers * self.spec.directions();
                let kinds = 1 + usize::from(self.runs_again);
                levels * kinds * self.steps() * Moment::WORDS
            }
        }
    }

    /// Where the table of a level's segment stands; `again` for the second one.
    pub(crate) fn table(
        &self,
        level: usize,
        segment: &Segment,
        reverse: bool,
        again: bool,
    ) -> usize {
        let kinds = 1 + usize::from(self.runs_again);
        let before: usize = self.segments(reverse)[..segment.number]
            .iter()
            .map(|s| s.steps.len())
            .sum();
        let tables = level * kinds + usize::from(again);
        (tables * self.steps() + before) * Moment::WORDS
    }

    /// The rows of `h` and `c`; see [`LevelStates`](super::LevelStates).
    pub(crate) fn state_rows(&self) -> (usize, usize) {
        let batch = self.batch();
        match self.call.mode {
            Mode::Training => (batch + self.most_rows, batch + self.most_rows),
            Mode::Inference => (3 * batch, batch),
        }
    }

    /// The rows of `gates`, which of a stack whose layers run side by side without being kept has those of a
    /// chunk.
    pub(crate) fn gate_rows(&self) -> usize {
        // Later steps have no more sequences.
        let first = self.chunk_of(0);
        first.map_or(self.most_rows, |steps| self.rows_of(steps))
    }

    /// And those of the output of a layer below.
    pub(crate) fn output_rows_below(&self) -> usize {
        let first = self.chunk_of(0);
        first.map_or_else(|| self.rows(), |steps| self.rows_of(steps))
    }

    /// The rows of a step in the output of a level, in an order.
    pub(crate) fn output_place(&self, level: &Level, order: Order, t: usize) -> Place {
        let place = self.place(order, t);
        let below = level.layer + 1 < self.spec.num_layers;
        let before = self.chunk_of(t).filter(|_| below).map(|c| c.start);
        Place {
            start: place.start - before.map_or(0, |t| self.place(order, t).start),
            ..place
        }
    }

    /// The rows of a step in `gates`.
    pub(crate) fn gates_place(&self, segment: &Segment, t: usize) -> Place {
        let place = self.place_in(segment, t);
        let before = self.chunk_of(t).map(|chunk| chunk.start);
        Place {
            start: place.start - before.map_or(0, |t| self.place_in(segment, t).start),
            ..place
        }
    }

    /// The rows of a step in the mask.
    pub(crate) fn mask_place(&self, t: usize) -> Place {
        let place = self.place(self.call.input, t);
        Place {
            start: self.table_words() + place.start,
            row: place.row,
        }
    }

    /// Whether steps have a mask.
    pub(crate) fn masked(&self) -> bool {
        self.call.lengths || self.call.resets
    }

    pub(crate) fn training(&self) -> bool {
        self.call.mode == Mode::Training
    }

    /// S: blocks per row in `gates`.
    pub(crate) fn slots(&self) -> usize {
        match self.call.mode {
            Mode::Training => self.spec.cell.slots,
            Mode::Inference => self.spec.cell.gates,
        }
    }

    /// What a row of `gates` takes.
    pub(crate) fn stored(&self) -> Stored {
        Stored {
            slots: self.slots(),
            precision: self.call.activations,
        }
    }

    /// How many sequences have a step.
    pub(crate) fn count(&self, t: usize) -> usize {
        match &self.call.batch {
            Batch::Padded(size) => size.batch,
            Batch::Packed(sizes) => sizes[t],
        }
    }

    /// The rows of a step in a whole array of this order.
    pub(crate) fn place(&self, order: Order, t: usize) -> Place {
        match (&self.call.batch, order) {
            (Batch::Packed(_), _) => Place {
                start: self.offsets[t],
                row: 1,
            },
            (Batch::Padded(size), Order::TimeFirst) => Place {
                start: t * size.batch,
                row: 1,
            },
            (Batch::Padded(size), Order::BatchFirst) => Place {
                start: t,
                row: size.steps,
            },
        }
    }

    /// The rows of a step in a segment's arrays, which have the order of the input.
    pub(crate) fn place_in(&self, segment: &Segment, t: usize) -> Place {
        let first = segment.steps.start;
        match (&self.call.batch, self.call.input) {
            (Batch::Packed(_), _) => Place {
                start: self.offsets[t] - self.offsets[first],
                row: 1,
            },
            (Batch::Padded(size), Order::TimeFirst) => Place {
                start: (t - first) * size.batch,
                row: 1,
            },
            (Batch::Padded(_), Order::BatchFirst) => Place {
                start: t - first,
                row: segment.steps.len(),
            },
        }
    }

    /// How many rows a segment has.
    pub(crate) fn rows_in(&self, segment: &Segment) -> usize {
        self.rows_of(segment.steps.clone())
    }

    /// How many rows some steps have.
    fn rows_of(&self, steps: Range<usize>) -> usize {
        match &self.call.batch {
            Batch::Padded(size) => steps.len() * size.batch,
            Batch::Packed(_) => self.offsets[steps.end] - self.offsets[steps.start],
        }
    }

    /// The rows of some steps of a call whose rows are in the order of its steps.
    pub(crate) fn rows_at(&self, steps: Range<usize>) -> Block {
        let whole = self.place(self.call.input, steps.start).start;
        Block {
            whole,
            local: match self.chunk_of(steps.start) {
                Some(chunk) => whole - self.place(self.call.input, chunk.start).start,
                None => whole,
            },
            len: self.rows_of(steps),
        }
    }

    /// The most rows that a segment has.
    pub(crate) fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// A segment's rows as runs of neighbours.
    pub(crate) fn blocks(&self, segment: &Segment) -> Vec<Block> {
        let steps = &segment.steps;
        match (&self.call.batch, self.call.input) {
            (Batch::Padded(size), Order::BatchFirst) if steps.len() < size.steps => {
                let block = |n| Block {
                    whole: n * size.steps + steps.start,
                    local: n * steps.len(),
                    len: steps.len(),
                };
                (0..size.batch).map(block).collect()
            }
            (Batch::Padded(_), Order::BatchFirst) => vec![Block {
                whole: 0,
                local: 0,
                len: self.rows(),
            }],
            _ => vec![Block {
                whole: self.place(self.call.input, steps.start).start,
                local: 0,
                len: self.rows_in(segment),
            }],
        }
    }

    /// The segments in the order in which a direction runs them.
    pub(crate) fn segments(&self, reverse: bool) -> &[Segment] {
        &self.segments[usize::from(reverse)]
    }

    fn cut_for(&self, reverse: bool) -> Vec<Segment> {
        let (steps, burn_in) = (self.steps(), self.call.burn_in);
        let length = self.call.recompute.unwrap_or(steps).clamp(1, steps);
        let mut runs = Vec::new();
        if burn_in > 0 {
            runs.push((0..burn_in, false));
        }
        for start in (burn_in..steps).step_by(length) {
            runs.push((start..(start + length).min(steps), true));
        }
        if reverse {
            runs.reverse();
        }
        let numbered = runs.into_iter().enumerate();
        numbered
            .map(|(number, (steps, trained))| Segment {
                number,
                steps,
                trained: trained && self.training(),
            })
            .collect()
    }

    /// Whether the backward pass runs the segments forward again, as their kept values share memory.
    pub(crate) fn runs_again(&self) -> bool {
        self.runs_again
    }

    /// The `nth` step of a segment in the order in which a direction runs them, if it has so many.
    pub(crate) fn nth(&self, segment: &Segment, reverse: bool, nth: usize) -> Option<usize> {
        let mut steps = segment.steps.clone();
        if reverse {
            steps.nth_back(nth)
        } else {
            steps.nth(nth)
        }
    }

    /// The steps of a segment in the order in which a direction runs them.
    pub(crate) fn order(&self, segment: &Segment, reverse: bool) -> Vec<usize> {
        let steps = segment.steps.clone();
        if reverse {
            steps.rev().collect()
        } else {
            steps.collect()
        }
    }

    /// Where the sequences have their first step of a segment, in the order in which a direction runs.
    pub(crate) fn starts(&self, segment: &Segment, reverse: bool) -> Vec<Start> {
        let mut starts = Vec::new();
        let mut done = 0;
        // The last steps have the fewest sequences.
        for t in self.order(segment, reverse) {
            let count = self.count(t);
            if count > done {
                starts.push(Start {
                    sequences: done..count,
                    step: Some(t),
                });
                done = count;
            }
        }
        if done < self.batch() {
            starts.push(Start {
                sequences: done..self.batch(),
                step: None,
            });
        }
        starts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::LSTM;
    use crate::plan::DeviceKind;
    use crate::plan::sequence::Size;

    /// 2^32 - 1 elements of a buffer are what a shader can count.
    #[test]
    fn as_many_sequences_as_can_be_counted() {
        let target = Target::portable(DeviceKind::Cpu);
        let of = |steps, batch| {
            let call = Call::training(Size { steps, batch });
            Run::new(&LayerSpec::new(&LSTM, 1, 512), &call, &target).map(|_| ())
        };
        of(2, 1 << 17).unwrap();
        of(15, 1 << 17).unwrap();
        let refused = of(16, 1 << 17).unwrap_err().to_string();
        assert!(refused.contains("elements of gates"), "{refused}");
        let packed = |first: usize| {
            let call = Call::packed(&[first, 1], Mode::Inference);
            Run::new(&LayerSpec::new(&LSTM, 1, 512), &call, &target).map(|_| ())
        };
        packed(1 << 17).unwrap();
        // What is computed again needs room for a segment alone.
        let call = Call::training(Size {
            steps: 40_000,
            batch: 64,
        });
        let kept = |call: &Call| Run::new(&LayerSpec::new(&LSTM, 1, 512), call, &target);
        assert!(kept(&call).is_err());
        kept(&call.recompute(200)).unwrap();
    }
}
