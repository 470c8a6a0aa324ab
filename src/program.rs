//! A plan bound to memory: what can be recorded or run.

mod packing;
mod passes;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::cpu;
#[cfg(feature = "gpu")]
use crate::backend::gpu::{self, MAX_PASSES, Recording, Timestamps};
use crate::context::{Context, Device, Dtype};
use crate::error::{Error, Result};
use crate::kernel::{Access, Binding, Element, Kernel};
use crate::machine::free_memory;
use crate::memory::{Held, Uses};
#[cfg(feature = "gpu")]
use crate::plan::Portion;
use crate::plan::{
    Buffer, BufferId, Contents, DeviceKind, Follows, Layout, Plan, Role, Section, Step,
};
use crate::tensor::Tensor;

pub(crate) use packing::{PREPARE, Packing};
use passes::Seen;

/// A [`Plan`] over the memory of a [`Context`].
///
/// All memory, pipelines and bind groups exist once it is built. Recording it into an encoder
/// allocates nothing on the device, submits nothing and waits for nothing.
///
/// Threads may share it. A run waits for those calls that use the same memory where one of both writes it, and
/// others see all of a section that ran, or nothing; what was recorded runs where the host submits it.
#[derive(Debug)]
pub struct Program {
    context: Context,
    plan: Plan,
    tensors: Vec<Tensor>,
    /// In the order of the plan's.
    sections: Vec<Taken>,
    /// One for each of what the plan says of sections that follow others.
    seen: Vec<Seen>,
    packing: Option<Arc<Packing>>,
    #[cfg(feature = "gpu")]
    recording: Option<Recording>,
}

/// What a section takes.
#[derive(Debug)]
struct Taken {
    uses: Uses,
    packed: Packed,
}

/// What a section does with packed weights that belong to a [`Packing`].
#[derive(Debug)]
enum Packed {
    /// Nothing, or what a section before it has seen to.
    Unused,
    /// It reads them as it finds them.
    Read,
    /// It packs them first.
    Written(Rest),
}

/// What comes in a section after the packing.
#[derive(Debug)]
struct Rest {
    steps: Range<usize>,
    uses: Uses,
    /// What its first step alone uses: a counter that other calls need too.
    first: Uses,
}

/// Dispatches of the first of several submissions: on an NVIDIA H200 a call of 524 dispatches ended 0.9 ms of 3.4
/// earlier so, one of 123 0.1 ms of 0.86.
#[cfg(feature = "gpu")]
const EARLY: usize = 32;

impl Program {
    /// Binds a plan: `bound` gives memory to some buffers (weights, states shared with other
    /// programs); the others are allocated and zeroed.
    ///
    /// # Errors
    /// If a tensor does not fit its buffer or lives elsewhere, if two tensors that share memory meet in
    /// a step that writes one of them, if a limit of the device is too low,
    /// or if the device has no memory left.
    /// If a [`Weight`](Role::Weight) that a step reads is neither bound nor filled by a step, if steps change
    /// weights and a section that reads them packed does not pack them anew first
    /// ([`sequence::prepare`](crate::plan::sequence::prepare)), nor the one that it goes on from, or if a
    /// section reads [`Scratch`](Role::Scratch) that none of its earlier steps has written.
    pub fn new(context: &Context, plan: Plan, bound: &[(BufferId, Tensor)]) -> Result<Self> {
        plan.check_flow(&bound.iter().map(|(id, _)| *id).collect())?;
        for Contents { buffer, words, .. } in &plan.contents {
            if let Some(ids) = plan.needs.ids.get(buffer) {
                ids.check("Program::new", words)?;
            }
        }
        let mut program = Self::unchecked(context, plan, bound)?;
        for (id, ids) in &program.plan.needs.ids {
            let tensor = &mut program.tensors[id.0];
            *tensor = tensor.clone().of_ids(*ids);
        }
        Ok(program)
    }

    /// A program whose buffers are all filled by the caller, whatever their role, and with any numbers.
    pub(crate) fn unchecked(
        context: &Context,
        plan: Plan,
        bound: &[(BufferId, Tensor)],
    ) -> Result<Self> {
        let tensors = allocate(context, &plan, bound)?;
        check_aliases(&plan, &tensors)?;
        for own in &plan.contents {
            let part = own.start..own.start + own.words.len();
            tensors[own.buffer.0].rows(part)?.write_uint(&own.words)?;
        }
        #[cfg(feature = "gpu")]
        let recording = match context.device() {
            Device::Cpu(_) => None,
            Device::Gpu(gpu) => Some(Recording::new(gpu, &plan, &tensors)?),
        };
        let taken = |section: &Section| Taken {
            uses: uses(&plan.steps[section.steps.clone()], &tensors)
                .and(&kept(&plan, section, &tensors)),
            packed: Packed::Unused,
        };
        Ok(Self {
            context: context.clone(),
            sections: plan.sections.iter().map(taken).collect(),
            seen: plan.follows.iter().map(Seen::new).collect(),
            packing: None,
            plan,
            tensors,
            #[cfg(feature = "gpu")]
            recording,
        })
    }

    /// Has packed weights that sections read packed again before, if the weights have changed.
    ///
    /// # Errors
    /// If a section changes the weights and does not pack them itself before it reads them packed: then they would be
    /// stale whenever it runs again.
    pub(crate) fn with_packing(mut self, packing: Arc<Packing>) -> Result<Self> {
        for (at, section) in self.plan.sections.iter().enumerate() {
            if self.plan.follows.iter().any(|f| f.section == section.name) {
                continue;
            }
            let packed = self.packed(section, &packing);
            match (packing.is_changed_by(self.uses(at)), &packed) {
                (false, _) => self.sections[at].packed = packed,
                (true, Packed::Read) => {
                    let expected = "packed (as sequence::prepare does) before they are read so, as the section changes them";
                    return Err(Error::value(
                        section.name,
                        "weights",
                        expected,
                        "no such step",
                    ));
                }
                // It sees to it itself.
                (true, _) => {}
            }
        }
        self.packing = Some(packing);
        Ok(self)
    }

    /// What some steps do with what is packed.
    fn packed(&self, section: &Section, packing: &Packing) -> Packed {
        let packed = packing.packed();
        let steps = section.steps.clone();
        let order = |id: &BufferId| self.tensors[id.0].memory().order();
        let is_packed = |id: &BufferId| packed.has(self.tensors[id.0].memory());
        let (mut written, mut rest) = (HashSet::new(), steps.clone());
        for at in steps {
            let step = &self.plan.steps[at];
            let bound = || step.bindings.iter().zip(step.kernel.bindings);
            let reads = |b: &Binding| b.access == Access::Read;
            if bound().any(|(id, b)| reads(b) && is_packed(id) && !written.contains(&order(id))) {
                return Packed::Read;
            }
            let mut to = bound().filter(|(_, b)| !reads(b)).map(|(id, _)| id);
            if rest.start == at && to.clone().all(is_packed) {
                rest.start += 1;
            }
            written.extend(to.by_ref().filter(|id| is_packed(id)).map(order));
        }
        if packed.is_empty() || written.len() < packed.len() {
            return Packed::Unused;
        }
        let of = |steps: Range<usize>| uses(&self.plan.steps[steps], &self.tensors);
        let after = (rest.start + 1).min(rest.end);
        let kept = kept(&self.plan, section, &self.tensors);
        Packed::Written(Rest {
            uses: of(rest.clone()).and(&kept),
            first: of(rest.start..after).without(&of(after..rest.end).and(&kept)),
            steps: rest,
        })
    }

    /// The number of a section.
    pub(crate) fn place(&self, section: &str) -> Result<usize> {
        self.plan.section(section)?;
        let mut sections = self.plan.sections.iter();
        Ok(sections.position(|s| s.name == section).unwrap_or_default())
    }

    /// What a section takes.
    pub(crate) fn uses(&self, at: usize) -> &Uses {
        &self.sections[at].uses
    }

    /// Where it runs.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// What it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The memory of a buffer. Scratch may hold other buffers' values after a run. Into a buffer that a step
    /// reads token ids from, [`Tensor::write_uint`] takes no others.
    ///
    /// # Errors
    /// If the id is of another plan.
    pub fn tensor(&self, id: BufferId) -> Result<&Tensor> {
        self.plan.own("Program::tensor", "id", id)?;
        Ok(self.own(id))
    }

    /// The memory of a buffer of the plan.
    pub(crate) fn own(&self, id: BufferId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// The memory of the buffer with this name.
    ///
    /// # Errors
    /// If the plan has no such buffer.
    pub fn named(&self, name: &str) -> Result<&Tensor> {
        Ok(self.own(self.plan.find(name)?))
    }

    /// Records a section into the host's encoder, as one compute pass. It runs when the host
    /// submits; results are in the tensors then.
    ///
    /// What it writes counts as written, and a section as run, when it is recorded: when a host submits it, and whether at
    /// all, no call can see. So record what belongs together in the order in which it is to run. Only weights of a layer
    /// that are written by what was recorded are packed by each call anew, until
    /// [`Layer::prepare`](crate::Layer::prepare).
    ///
    /// An encoder does not say whose it is, nor wgpu before it is finished whether a buffer is destroyed or mapped: an
    /// encoder of another device, and what else wgpu has against the commands, is an error of the host's `finish` and
    /// `submit`. An encoder of another *instance* must not come here: wgpu takes its objects for others or panics.
    ///
    /// # Errors
    /// If there is no such section, this is a program of the CPU, or the device is known to be lost
    /// ([`Context::lost`] asks it).
    #[cfg(feature = "gpu")]
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder, section: &'static str) -> Result<()> {
        let steps = self.plan.section(section)?;
        let recording = self.recording("Program::record")?;
        let at = self.place(section)?;
        self.check(at, &Uses::default(), |_| false)?;
        self.record_refresh(encoder, at)?;
        self.uses(at).touch_recorded();
        self.begin(at);
        recording.record(encoder, section, steps, None);
        self.end(at);
        Ok(())
    }

    /// What is recorded, unless the device is known to be lost.
    #[cfg(feature = "gpu")]
    fn recording(&self, op: &'static str) -> Result<&Recording> {
        match (self.context.device(), &self.recording) {
            (Device::Gpu(gpu), Some(recording)) => {
                gpu.health.check_known(op)?;
                Ok(recording)
            }
            _ => Err(Error::Unsupported {
                op,
                needs: "recording: the program is on the CPU, where run() is the call".to_owned(),
            }),
        }
    }

    /// Records the packing that a section needs.
    #[cfg(feature = "gpu")]
    fn record_refresh(&self, encoder: &mut wgpu::CommandEncoder, at: usize) -> Result<()> {
        match (&self.packing, &self.sections[at].packed) {
            (Some(packing), Packed::Read) => packing.record_refresh(encoder),
            _ => Ok(()),
        }
    }

    /// Records some steps into the host's encoder, as one compute pass for each section: a part of a section that is too
    /// long for one submission. [`Plan::parts`] cuts it; the parts must be submitted in their order.
    ///
    /// ```no_run
    /// # use wgrnn::{Context, Lstm, Size, plan::Portion};
    /// # fn main() -> wgrnn::Result<()> {
    /// # let context = Context::open("gpu")?;
    /// let call = Lstm::new(8, 32).build(&context)?.inference(Size { steps: 100_000, batch: 2 })?;
    /// let (program, (device, queue)) = (call.program(), context.wgpu().unwrap());
    /// let plan = program.plan();
    /// for part in plan.parts(plan.section("forward")?, Portion::default())? {
    ///     let mut encoder = device.create_command_encoder(&Default::default());
    ///     program.record_steps(&mut encoder, part)?;
    ///     queue.submit([encoder.finish()]);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the plan has not so many steps, or this is a program of the CPU.
    #[cfg(feature = "gpu")]
    pub fn record_steps(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        steps: Range<usize>,
    ) -> Result<()> {
        const OP: &str = "Program::record_steps";
        let most = self.plan.steps.len();
        if steps.start > steps.end || steps.end > most {
            let expected = format!("within the plan's {most}");
            return Err(Error::value(OP, "steps", expected, format!("{steps:?}")));
        }
        let recording = self.recording(OP)?;
        let sections = self.plan.sections.iter().enumerate();
        let of = |at: usize| &self.plan.sections[at].steps;
        let own = |at: usize| of(at).start.max(steps.start)..of(at).end.min(steps.end);
        let begun = |at: usize| steps.contains(&of(at).start);
        let ended = |at: usize| of(at).end <= steps.end;
        let met = sections.map(|(at, _)| at).filter(|at| !own(*at).is_empty());
        let met: Vec<usize> = met.collect();
        // All of it may be refused, and then nothing has changed.
        for (nth, &at) in met.iter().enumerate().filter(|(_, at)| begun(**at)) {
            let before = |name: &str| {
                met[..nth]
                    .iter()
                    .any(|at| self.plan.sections[*at].name == name)
            };
            self.check(at, &Uses::default(), before)?;
        }
        for &at in &met {
            if begun(at) {
                self.record_refresh(encoder, at)?;
            }
            uses(&self.plan.steps[own(at)], &self.tensors).touch_recorded();
            if begun(at) {
                self.begin(at);
            }
            recording.record(encoder, &self.plan.name, own(at), None);
            if ended(at) {
                self.end(at);
            }
        }
        Ok(())
    }

    /// Runs a section: on the CPU at once, on a GPU by submitting it (reading a tensor waits), in several
    /// submissions where one would take long.
    ///
    /// # Errors
    /// If there is no such section, or it is a backward pass without a forward pass before it or after which
    /// weights or x were written: then nothing has changed. If a kernel's twin refuses its arguments, or the device
    /// fails.
    pub fn run(&self, section: &str) -> Result<()> {
        self.run_at(self.place(section)?)
    }

    fn run_at(&self, at: usize) -> Result<()> {
        self.holding(&[at], self.uses(at), |held| self.run_held(at, held))
    }

    /// [`Self::run`] that leaves out the packing of weights with which the section begins if they are packed
    /// already. On a GPU it is part of the section in any case, since a host may have written the buffers.
    pub(crate) fn run_fresh(&self, section: &str) -> Result<()> {
        let at = self.place(section)?;
        match (
            self.context.device(),
            &self.packing,
            &self.sections[at].packed,
        ) {
            (Device::Cpu(_), Some(packing), Packed::Written(rest)) => {
                packing.fresh(&rest.uses, |held| self.run_rest(at, rest, held))
            }
            _ => self.run_at(at),
        }
    }

    /// Takes what some sections use and more, with weights packed as they are now, and does a call's work.
    pub(crate) fn holding<T>(
        &self,
        sections: &[usize],
        uses: &Uses,
        work: impl FnOnce(&Held<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut all = sections.iter().map(|at| &self.sections[*at].packed);
        match &self.packing {
            Some(packing) if all.any(|packed| matches!(packed, Packed::Read)) => {
                packing.fresh(uses, work)
            }
            _ => work(&uses.take()?),
        }
    }

    /// Runs a section in a call that has taken what it uses.
    pub(crate) fn run_held(&self, at: usize, held: &Held<'_>) -> Result<()> {
        self.check(at, self.uses(at), |_| false)?;
        self.begin(at);
        self.execute(self.plan.sections[at].steps.clone(), held)?;
        self.end(at);
        if let (Some(packing), Packed::Written(_)) = (&self.packing, &self.sections[at].packed) {
            packing.mark();
        }
        Ok(())
    }

    fn run_rest(&self, at: usize, rest: &Rest, held: &Held<'_>) -> Result<()> {
        let Range { start, end } = rest.steps;
        let after = (start + 1).min(end);
        self.check(at, &rest.uses, |_| false)?;
        self.begin(at);
        self.execute(start..after, held)?;
        held.give_back(&rest.first);
        self.execute(after..end, held)?;
        self.end(at);
        Ok(())
    }

    /// Refuses a section that follows another which has not run as it needs it.
    /// The call has taken some memory, and may run other sections before this one.
    fn check(&self, at: usize, taken: &Uses, before: impl Fn(&str) -> bool) -> Result<()> {
        let name = self.plan.sections[at].name;
        let all = self.plan.follows.iter().zip(&self.seen);
        let mut own = all.filter(|(follows, _)| follows.section == name && !before(follows.after));
        let checked = own
            .try_for_each(|(follows, seen)| seen.check(follows, &self.plan, &self.tensors, taken));
        // A pass may have failed because the device was lost: that is then the reason to tell.
        #[cfg(feature = "gpu")]
        if let (Device::Gpu(gpu), Err(_)) = (self.context.device(), &checked) {
            gpu.health.check_known("Program::run")?;
        }
        checked
    }

    /// Those that follow a section.
    fn followed(&self, at: usize) -> impl Iterator<Item = (&Follows, &Seen)> {
        let name = self.plan.sections[at].name;
        let all = self.plan.follows.iter().zip(&self.seen);
        all.filter(move |(follows, _)| follows.after == name)
    }

    /// Notes that a section begins.
    fn begin(&self, at: usize) {
        for (follows, seen) in self.followed(at) {
            seen.begin(follows, &self.tensors);
        }
    }

    /// Notes that it has run, or was recorded.
    fn end(&self, at: usize) {
        self.followed(at).for_each(|(_, seen)| seen.end());
    }

    /// Runs sections one after another and waits for them. The result is the time that they took on the
    /// device, from the beginning of the first to the end of the last: on a GPU by its own timestamps
    /// around one submission, without the time to submit it and to wait; on the CPU by the clock.
    ///
    /// ```
    /// # use wgrnn::{Context, Lstm, Size};
    /// # fn main() -> wgrnn::Result<()> {
    /// let lstm = Lstm::new(8, 32).build(&Context::cpu())?;
    /// let call = lstm.training(Size { steps: 10, batch: 2 })?;
    /// println!("{:?}", call.program().run_timed(&["forward", "backward"])?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If there is no such section; [`Error::Unsupported`] on a GPU that was opened without the feature
    /// `TIMESTAMP_QUERY`, and in a browser; [`Error::Device`] if the device fails.
    pub fn run_timed(&self, sections: &[&str]) -> Result<Duration> {
        let all = sections.iter().map(|name| self.place(name));
        let all: Vec<usize> = all.collect::<Result<_>>()?;
        can_time("Program::run_timed")?;
        #[cfg(feature = "gpu")]
        if let (Device::Gpu(gpu), Some(recording)) = (self.context.device(), &self.recording) {
            if all.is_empty() {
                return Ok(Duration::ZERO);
            }
            let timestamps = Timestamps::new(gpu, all.len())?;
            let uses = all.iter().map(|at| self.uses(*at));
            let uses = uses.fold(Uses::default(), |all, uses| all.and(uses));
            return self.holding(&all, &uses, |_| {
                for (nth, &at) in all.iter().enumerate() {
                    let before = |name: &str| sections[..nth].contains(&name);
                    self.check(at, &uses, before)?;
                }
                // In their order, so that each begins with what those before it have written.
                for &at in &all {
                    self.uses(at).touch();
                    self.begin(at);
                }
                let passes = timestamps.time(gpu, |encoder| {
                    for (pass, at) in all.iter().enumerate() {
                        let section = &self.plan.sections[*at];
                        let writes = Some(timestamps.writes(pass));
                        recording.record(encoder, section.name, section.steps.clone(), writes);
                    }
                })?;
                all.iter().for_each(|at| self.end(*at));
                Ok(gpu::total(&passes, gpu.queue.get_timestamp_period()))
            });
        }
        let start = Instant::now();
        all.into_iter().try_for_each(|at| self.run_at(at))?;
        Ok(start.elapsed())
    }

    /// Runs a section and waits for it. The result is the time that each of its steps took, in their
    /// order. On a GPU every step is a compute pass of its own here, which costs more than a dispatch
    /// between others: the sum may be well above the time of [`Self::run_timed`].
    ///
    /// # Errors
    /// As [`Self::run_timed`].
    pub fn profile(&self, section: &str) -> Result<Vec<Duration>> {
        let steps = self.plan.section(section)?;
        can_time("Program::profile")?;
        let at = self.place(section)?;
        self.holding(&[at], self.uses(at), |held| {
            self.check(at, self.uses(at), |_| false)?;
            self.begin(at);
            let times = self.profile_held(steps, held)?;
            self.end(at);
            Ok(times)
        })
    }

    fn profile_held(&self, steps: Range<usize>, held: &Held<'_>) -> Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(steps.len());
        #[cfg(feature = "gpu")]
        if let (Device::Gpu(gpu), Some(recording)) = (self.context.device(), &self.recording) {
            for start in steps.clone().step_by(MAX_PASSES) {
                let some = start..steps.end.min(start + MAX_PASSES);
                let timestamps = Timestamps::new(gpu, some.len())?;
                let passes = timestamps.time(gpu, |encoder| {
                    for (pass, step) in some.enumerate() {
                        let label = self.plan.steps[step].kernel.name;
                        let writes = Some(timestamps.writes(pass));
                        recording.record(encoder, label, step..step + 1, writes);
                    }
                })?;
                times.extend(gpu::each(&passes, gpu.queue.get_timestamp_period()));
            }
            return Ok(times);
        }
        for step in steps {
            let start = Instant::now();
            self.execute(step..step + 1, held)?;
            times.push(start.elapsed());
        }
        Ok(times)
    }

    /// Runs some steps, whichever came before them.
    pub(crate) fn run_steps(&self, steps: Range<usize>) -> Result<()> {
        let uses = uses(&self.plan.steps[steps.clone()], &self.tensors);
        self.execute(steps, &uses.take()?)
    }

    /// Runs or submits some steps of which the memory was taken.
    fn execute(&self, steps: Range<usize>, held: &Held<'_>) -> Result<()> {
        match self.context.device() {
            Device::Cpu(dtype) => cpu::run(&self.plan, steps, &self.tensors, held, *dtype),
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => {
                if let Some(recording) = &self.recording {
                    let portion = Portion::default();
                    // An adapter on the CPU has no time of its own to win.
                    let first = match self.context.kind() {
                        DeviceKind::Software => portion.dispatches,
                        _ => EARLY,
                    };
                    for part in self.plan.growing_parts(steps, first, portion)? {
                        gpu.submit("Program::run", |encoder| {
                            recording.record(encoder, &self.plan.name, part, None);
                        })?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// What a later section will read as it is now, and which stays so while the section before it runs.
fn kept(plan: &Plan, section: &Section, tensors: &[Tensor]) -> Uses {
    let followed = plan.follows.iter().filter(|f| f.after == section.name);
    let kept = followed.flat_map(|f| &f.unchanged);
    Uses::new(kept.map(|id| (tensors[id.0].memory(), false)))
}

/// What some steps take.
fn uses(steps: &[Step], tensors: &[Tensor]) -> Uses {
    let mut all: Vec<Option<bool>> = vec![None; tensors.len()];
    for step in steps {
        for (id, binding) in step.bindings.iter().zip(step.kernel.bindings) {
            let writes = binding.access != Access::Read;
            all[id.0] = Some(all[id.0].unwrap_or(false) || writes);
        }
    }
    let used = tensors.iter().zip(all);
    Uses::new(used.filter_map(|(tensor, writes)| Some((tensor.memory(), writes?))))
}

/// A browser's main thread may not wait, and the standard library has no clock there.
fn can_time(op: &'static str) -> Result<()> {
    if cfg!(target_arch = "wasm32") {
        let needs = "timing in a browser".to_owned();
        return Err(Error::Unsupported { op, needs });
    }
    Ok(())
}

fn allocate(context: &Context, plan: &Plan, bound: &[(BufferId, Tensor)]) -> Result<Vec<Tensor>> {
    const OP: &str = "Program::new";
    let mut tensors: Vec<Option<Tensor>> = vec![None; plan.buffers.len()];
    for (id, tensor) in bound {
        let buffer = plan.own(OP, "bound", *id)?;
        if tensors[id.0].is_some() {
            let expected = "each buffer once";
            return Err(Error::value(OP, "bound", expected, &buffer.name));
        }
        if tensor.shape() != buffer.shape || tensor.element() != buffer.element {
            let expected = (&buffer.shape, buffer.element);
            let got = (tensor.shape(), tensor.element());
            return Err(Error::shape(OP, &buffer.name, expected, got));
        }
        if !tensor.context().same(context) {
            let [expected, got] = context.beside(tensor.context());
            return Err(Error::value(OP, &buffer.name, expected, got));
        }
        tensors[id.0] = Some(tensor.clone());
    }
    let layout = plan.layout();
    check_memory(context, plan, &layout, &tensors)?;
    let slots = layout
        .slots
        .iter()
        .map(|s| Tensor::zeros(context, &[s.len], s.element))
        .collect::<Result<Vec<_>>>()?;
    for ((tensor, buffer), slot) in tensors.iter_mut().zip(&plan.buffers).zip(&layout.slot_of) {
        if tensor.is_some() {
            continue;
        }
        *tensor = Some(match slot {
            Some(slot) if buffer.role == Role::Scratch => {
                slots[*slot].first(buffer.len()).reshaped(&buffer.shape)?
            }
            _ => Tensor::zeros(context, &buffer.shape, buffer.element)?,
        });
    }
    Ok(tensors.into_iter().flatten().collect())
}

/// Refuses a plan that is too large before any of it is allocated. What a GPU has in all it does not say; there
/// a single buffer has a limit.
fn check_memory(
    context: &Context,
    plan: &Plan,
    layout: &Layout,
    bound: &[Option<Tensor>],
) -> Result<()> {
    plan.buffers.iter().try_for_each(Buffer::check_size)?;
    let mut needed = 0_u64;
    let mut add = |name: &str, len: usize, element: Element| -> Result<()> {
        let bytes = match context.dtype() {
            _ if context.is_gpu() => element.bytes(len) as u64,
            Dtype::F64 if element != Element::Uint => 8 * len as u64,
            _ => 4 * len as u64,
        };
        needed = needed.saturating_add(bytes);
        #[cfg(feature = "gpu")]
        if let Device::Gpu(gpu) = context.device()
            && bytes > gpu.most_bytes()
        {
            return Err(Error::Limit {
                what: format!("bytes of buffer '{name}'"),
                needed: bytes,
                available: gpu.most_bytes(),
            });
        }
        let _ = name;
        Ok(())
    };
    for slot in &layout.slots {
        add("scratch", slot.len, slot.element)?;
    }
    let rest = plan.buffers.iter().zip(&layout.slot_of).zip(bound);
    for ((buffer, slot), tensor) in rest {
        if tensor.is_none() && slot.is_none() {
            add(&buffer.name, buffer.len(), buffer.element)?;
        }
    }
    check_free(context, &format!("the plan '{}'", plan.name), needed)
}

/// Refuses what this machine has no memory for, if the device uses its memory.
pub(crate) fn check_free(context: &Context, whose: &str, needed: u64) -> Result<()> {
    let shares = context.kind() != DeviceKind::Gpu;
    match free_memory().filter(|_| shares) {
        Some(available) if needed > available => Err(Error::Limit {
            what: format!("bytes of memory for {whose}"),
            needed,
            available,
        }),
        _ => Ok(()),
    }
}

/// Refuses tensors of the same memory in one step that writes one of them: WebGPU tracks the use of
/// whole buffers, and the CPU backend locks them.
fn check_aliases(plan: &Plan, tensors: &[Tensor]) -> Result<()> {
    let mut seen: HashSet<(*const Kernel, &[BufferId])> = HashSet::new();
    for step in plan.steps() {
        if !seen.insert((std::ptr::from_ref(step.kernel), &step.bindings)) {
            continue;
        }
        let bound = || step.bindings.iter().zip(step.kernel.bindings);
        for (i, (id, binding)) in bound().enumerate() {
            let clash = bound().take(i).find(|(other, b)| {
                let read_only = binding.access == Access::Read && b.access == Access::Read;
                !read_only && tensors[id.0].shares_memory(&tensors[other.0])
            });
            if let Some((other, _)) = clash {
                let (one, two) = (&plan.buffer(*other)?.name, &plan.buffer(*id)?.name);
                return Err(Error::value(
                    step.kernel.name,
                    binding.name,
                    format!("in other memory than '{one}', as the step writes one of them"),
                    format!("'{two}' in the same"),
                ));
            }
        }
    }
    Ok(())
}
