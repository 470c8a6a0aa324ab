//! Single steps of many independent sequences: audio channels, sensors, users as they come.

use std::sync::{Arc, Mutex, MutexGuard};

use ndarray::{Array2, Array3, ArrayView2};

use super::{Layer, State};
use crate::error::{Error, Result};
use crate::memory::{Uses, lock};
use crate::plan::Builder;
use crate::plan::sequence::{self as driver, LayerSpec, STEPS, StreamStates};
use crate::program::{PREPARE, Packing, Program};
use crate::tensor::{Tensor, read_together, write_together, zero_together};

/// Streams that advance one step at a time, any of them in a call, each with its own state in one
/// buffer.
///
/// A step is one dispatch for each kernel of the cell and layer (one, but two for a projection and
/// for a GRU with the reset before the product), whichever streams advance. Results are those of the
/// whole sequence within rounding: the products with x and h are summed in another order.
///
/// [`Streams::step`] does all at once. A host that has its inputs on the GPU calls
/// [`advance`](Self::advance), fills [`x`](Self::x), records [`record_step`](Self::record_step), submits
/// and reads [`y`](Self::y). States are those after the steps that ran or were recorded: read or change
/// them before a step is announced, or after its submission.
///
/// Threads may share them: their calls wait for each other, and one that fails has changed nothing. Weights that have
/// changed are packed again before the next step, as those of a [`Layer`] are.
#[derive(Debug)]
pub struct Streams {
    program: Program,
    packing: Arc<Packing>,
    /// What a step takes that is given its list and its inputs, for each of the lists.
    uses: [Uses; 2],
    spec: LayerSpec,
    count: usize,
    states: StreamStates,
    shared: Mutex<Shared>,
}

/// What the host keeps of the device's state.
#[derive(Debug)]
struct Shared {
    /// Which half of h has each stream's state.
    halves: Vec<bool>,
    /// The streams of the step that was announced and has not run.
    announced: Option<Vec<usize>>,
    /// What stands in the lists on the device.
    lists: [Vec<u32>; 2],
    /// Which of them has the latest streams that were announced.
    latest: usize,
}

impl Streams {
    pub(super) fn new(layer: &Layer, count: usize) -> Result<Self> {
        let spec = *layer.spec();
        let mut b = Builder::on(
            format!(
                "{} I {} H {} streams {count}",
                spec.cell.name, spec.input_size, spec.hidden_size
            ),
            layer.context().target(),
        );
        let weights = driver::weights(&mut b, &spec);
        let states = driver::streams(&mut b, &spec, count, &weights)?;
        let program = Program::new(layer.context(), b.finish(), &layer.bind_all(&weights)?)?;
        let plan = program.plan();
        let all: Vec<_> = plan
            .ids()
            .map(|(id, _)| (id, program.own(id).clone()))
            .collect();
        let packing = Program::new(layer.context(), plan.only(PREPARE)?, &all)?;
        let packing = Arc::new(Packing::new(packing)?);
        let given = [states.list, states.x].map(|id| (program.own(id).memory(), true));
        let given = Uses::new(given);
        let [one, two] = STEPS.map(|step| program.place(step));
        let streams = Self {
            uses: [one?, two?].map(|at| program.uses(at).and(&given)),
            program: program.with_packing(packing.clone())?,
            packing,
            spec,
            count,
            states,
            shared: Mutex::new(Shared {
                halves: vec![false; count],
                announced: None,
                lists: [Vec::new(), Vec::new()],
                latest: 0,
            }),
        };
        streams.prepare()?;
        Ok(streams)
    }

    /// How many streams there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The plan and its memory; its sections are `prepare` and [`STEPS`].
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Packs the layer's weights. Needed only after a host has changed their buffers on a GPU by commands of its own.
    ///
    /// # Errors
    /// If the device fails.
    pub fn prepare(&self) -> Result<()> {
        self.packing.prepare()
    }

    /// The inputs of the next step, `[streams, I]`: the first rows belong to the streams given to
    /// [`Self::advance`], in their order.
    pub fn x(&self) -> &Tensor {
        self.program.own(self.states.x)
    }

    /// The outputs of the latest step, `[streams, P]`, in the order of the inputs.
    pub fn y(&self) -> &Tensor {
        self.program.own(self.states.y)
    }

    fn lock(&self) -> Result<MutexGuard<'_, Shared>> {
        lock(&self.shared)
    }

    /// Says which streams the next step advances; another call before it takes this one's place. On a
    /// GPU the list is written through the queue, so it holds for everything in the next submission:
    /// one step for each submission.
    ///
    /// # Errors
    /// If a stream's number is out of range or given twice; nothing is changed then.
    pub fn advance(&self, streams: &[usize]) -> Result<()> {
        let shared = &mut *self.lock()?;
        let (which, list) = self.list(shared, streams)?;
        if let Some(list) = list {
            // What stands there if this fails is not known.
            shared.lists[which].clear();
            self.place_of(which)?.write_uint(&list)?;
            shared.lists[which] = list;
        }
        shared.latest = which;
        shared.announced = Some(streams.to_vec());
        Ok(())
    }

    /// Where a list stands.
    fn place_of(&self, which: usize) -> Result<Tensor> {
        self.program.own(self.states.list).rows(which..which + 1)
    }

    /// By which list a step advances these streams, and what that must be given first. It is not that of the step
    /// which is announced.
    fn list(&self, shared: &Shared, streams: &[usize]) -> Result<(usize, Option<Vec<u32>>)> {
        const OP: &str = "Streams::advance";
        let mut given = vec![false; self.count];
        for (i, &stream) in streams.iter().enumerate() {
            let arg = || format!("streams[{i}]");
            match given.get_mut(stream) {
                None => {
                    let expected = format!("below the {} streams", self.count);
                    return Err(Error::value(OP, arg(), expected, stream));
                }
                Some(true) => {
                    let expected = "another stream than those before it";
                    return Err(Error::value(OP, arg(), expected, stream));
                }
                Some(free) => *free = true,
            }
        }
        let mut list = vec![0u32; 1 + self.count];
        list[0] = streams.len() as u32;
        for (entry, &stream) in list[1..].iter_mut().zip(streams) {
            *entry = 2 * stream as u32 + u32::from(shared.halves[stream]);
        }
        // The other list first: by turns they say the same again.
        let known = [1 - shared.latest, shared.latest].into_iter();
        let known = known.clone().find(|&which| shared.lists[which] == list);
        Ok(match known {
            Some(which) => (which, None),
            None => (1 - shared.latest, Some(list)),
        })
    }

    /// Does the announced step by `run`; if that works, the states are in the other halves of h.
    fn announced(
        &self,
        shared: &mut Shared,
        run: impl FnOnce(&'static str) -> Result<()>,
    ) -> Result<()> {
        let Some(streams) = &shared.announced else {
            let expected = "announced by Streams::advance, each anew";
            return Err(Error::value("Streams", "step", expected, "none"));
        };
        run(STEPS[shared.latest])?;
        for &stream in streams {
            shared.halves[stream] = !shared.halves[stream];
        }
        shared.announced = None;
        Ok(())
    }

    /// Does a step that was not announced.
    fn at_once(&self, shared: &mut Shared, streams: &[usize], x: &[f32]) -> Result<()> {
        let (which, list) = self.list(shared, streams)?;
        let at = self.program.place(STEPS[which])?;
        let [lists, inputs] = [self.place_of(which)?, self.x().rows(0..streams.len())?];
        if list.is_some() {
            shared.lists[which].clear();
        }
        self.program.holding(&[at], &self.uses[which], |held| {
            if let Some(list) = &list {
                lists.write_uint_held(held, list)?;
            }
            inputs.write_held(held, x)?;
            self.program.run_held(at, held)
        })?;
        if let Some(list) = list {
            shared.lists[which] = list;
        }
        shared.latest = which;
        for &stream in streams {
            shared.halves[stream] = !shared.halves[stream];
        }
        shared.announced = None;
        Ok(())
    }

    /// Runs the step that [`Self::advance`] announced: on the CPU at once, on a GPU by a submission of
    /// its own.
    ///
    /// # Errors
    /// If no step is announced, or the device fails.
    pub fn run_step(&self) -> Result<()> {
        self.announced(&mut *self.lock()?, |step| self.program.run(step))
    }

    /// Records the step that [`Self::advance`] announced into the host's encoder.
    ///
    /// # Errors
    /// If no step is announced, or the layer is on the CPU.
    #[cfg(feature = "gpu")]
    pub fn record_step(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.announced(&mut *self.lock()?, |step| {
            self.program.record(encoder, step)
        })
    }

    /// Advances some streams by a step and waits for their outputs: `x` is `[n, I]`, the result
    /// `[n, P]`, both in the order of `streams`. Calls from several threads wait for each other.
    ///
    /// # Errors
    /// As [`Self::advance`], or if `x` has another shape; a step that was announced before is then still announced.
    pub fn step(&self, streams: &[usize], x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        const OP: &str = "Streams::step";
        let expected = [streams.len(), self.spec.input_size];
        if x.shape() != expected {
            return Err(Error::shape(OP, "x", expected, x.shape()));
        }
        let values: Vec<f32> = x.iter().copied().collect();
        // Held to the end: y is that of the latest step.
        let mut shared = self.lock()?;
        self.at_once(&mut shared, streams, &values)?;
        let shape = (streams.len(), self.spec.output_size());
        Array2::from_shape_vec(shape, self.y().rows(0..streams.len())?.read()?)
            .map_err(|e| Error::shape(OP, "y", expected, e.to_string()))
    }

    /// Where the state of a stream stands: for each layer h `[1, P]` and c `[1, H]`.
    fn parts(
        &self,
        op: &'static str,
        shared: &Shared,
        stream: usize,
    ) -> Result<Vec<(Tensor, Option<Tensor>)>> {
        if stream >= self.count {
            let expected = format!("below the {} streams", self.count);
            return Err(Error::value(op, "stream", expected, stream));
        }
        let row = usize::from(shared.halves[stream]) * self.count + stream;
        let layers = self.states.h.iter().zip(&self.states.c);
        layers
            .map(|(&h, c)| {
                let h = self.program.own(h);
                let h = h.reshaped(&[2 * self.count, self.spec.output_size()])?;
                let c = c.map(|c| self.program.own(c).rows(stream..stream + 1));
                Ok((h.rows(row..row + 1)?, c.transpose()?))
            })
            .collect()
    }

    /// Reads a stream's state, with N = 1.
    ///
    /// # Errors
    /// If there is no such stream, or the device fails.
    pub fn state(&self, stream: usize) -> Result<State> {
        const OP: &str = "Streams::state";
        let shared = self.lock()?;
        let parts = self.parts(OP, &shared, stream)?;
        let all = parts.iter().map(|(h, _)| h);
        let all: Vec<_> = all
            .chain(parts.iter().filter_map(|(_, c)| c.as_ref()))
            .collect();
        let mut values = read_together(&all)?;
        let c = values.split_off(parts.len()).concat();
        let h = values.concat();
        let layers = self.spec.num_layers;
        let array = |width: usize, values: Vec<f32>| {
            Array3::from_shape_vec((layers, 1, width), values)
                .map_err(|e| Error::shape(OP, "state", [layers, 1, width], e.to_string()))
        };
        Ok(State {
            h: array(self.spec.output_size(), h)?,
            c: match self.spec.cell.cell_state {
                true => Some(array(self.spec.hidden_size, c)?),
                false => None,
            },
        })
    }

    /// Gives a stream a state, such as one that [`Self::state`] or a whole sequence of one left.
    ///
    /// # Errors
    /// If there is no such stream, or the state is not one of this layer with N = 1.
    pub fn set_state(&self, stream: usize, state: &State) -> Result<()> {
        const OP: &str = "Streams::set_state";
        let shared = self.lock()?;
        let parts = self.parts(OP, &shared, stream)?;
        let layers = self.spec.num_layers;
        let shapes = [
            ("h", Some(&state.h), self.spec.output_size()),
            ("c", state.c.as_ref(), self.spec.hidden_size),
        ];
        super::state::check_c(OP, state, self.spec.cell.cell_state)?;
        for (arg, given, width) in shapes {
            let expected = [layers, 1, width];
            if let Some(given) = given
                && given.shape() != expected
            {
                return Err(Error::shape(OP, arg, expected, given.shape()));
            }
        }
        let of_layer = |a: &Array3<f32>, layer| -> Vec<f32> {
            let part = a.index_axis(ndarray::Axis(0), layer);
            part.iter().copied().collect()
        };
        let mut all = Vec::new();
        for (layer, (h, c)) in parts.iter().enumerate() {
            all.push((h, of_layer(&state.h, layer)));
            if let (Some(c), Some(given)) = (c, &state.c) {
                all.push((c, of_layer(given, layer)));
            }
        }
        let all: Vec<_> = all.iter().map(|(t, v)| (*t, v.as_slice())).collect();
        write_together(&all)
    }

    /// Zeroes a stream's state.
    ///
    /// # Errors
    /// If there is no such stream, or the device fails.
    pub fn reset(&self, stream: usize) -> Result<()> {
        let shared = self.lock()?;
        let parts = self.parts("Streams::reset", &shared, stream)?;
        let tensors = parts.iter().flat_map(|(h, c)| [Some(h), c.as_ref()]);
        zero_together(&tensors.flatten().collect::<Vec<_>>())
    }
}
