//! What the step kernels of all cells share: parameters, where rows stand, and the products in
//! their twins. `shaders/shared/step.wgsl` is the same for the shaders.
//!
//! A kernel of a cell's own needs, on both sides, what this module and [`super::gates`] make public:
//! a descriptor from [`kernel`], [`Rows`] to find the places of a sequence, and the two products,
//! [`Forward`] and [`gradient_product`]. `examples/mgu` is such a cell.

use bytemuck::{Pod, Zeroable};

use super::gemm::{Strided, StridedMut, product};
use super::pack::Blocks as PackedBlocks;
use super::simd::run::Steps;
use crate::cell::Blocks;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Kernel, Sample, Twin};
use crate::real::Real;
use crate::rng::Rng;

/// Sequences that one invocation serves.
pub const ROWS: usize = 4;
/// Hidden units, and invocations, of one workgroup.
pub const WORKGROUP: usize = 64;
/// Quads, and invocations, of a workgroup of the form that works in registers alone.
pub(crate) const LANES: usize = 8;

/// The first binding of every step kernel.
pub const MASK: Binding = Binding::read("mask").uint();

/// The descriptor of a step kernel: one whose shader imports `step`. The entry point is what stands
/// behind the dot in `name`; the first of the `bindings` is [`MASK`], the others are among those that
/// [`crate::cell`] lists; `sample` calls [`super::sample::forward`] or [`super::sample::backward`].
///
/// ```
/// use wgrnn::cell::RNN_TANH;
/// use wgrnn::kernel::{Args, Binding, Kernel};
/// use wgrnn::kernels::{sample, step};
/// use wgrnn::{Result, real::Real};
///
/// static FORWARD: Kernel = step::kernel(
///     "constant.forward",
///     "#import step\n…",
///     &[step::MASK, Binding::update("h"), Binding::update("y")],
///     wgrnn::twin!(forward),
///     |size, rng| sample::forward(&[&RNN_TANH], 0, size, rng),
/// );
/// assert_eq!(FORWARD.entry, "forward");
///
/// fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
///     let rows = step::Rows::new(args)?;
///     let (h, y) = (args.write(1)?, args.write(2)?);
///     (0..rows.count()).for_each(|n| rows.hold_state(h, y, n));
///     Ok(())
/// }
/// ```
pub const fn kernel(
    name: &'static str,
    wgsl: &'static str,
    bindings: &'static [Binding],
    twin: Twin,
    sample: fn([usize; 3], &mut Rng) -> Result<Sample>,
) -> Kernel {
    Kernel {
        name,
        wgsl,
        entry: behind_dot(name),
        bindings,
        params_size: size_of::<StepParams>(),
        workgroup_size: WORKGROUP as u32,
        workgroup_memory: 0,
        twin,
        sample,
    }
}

const fn behind_dot(name: &str) -> &str {
    let bytes = name.as_bytes();
    let mut start = bytes.len();
    while start > 0 && bytes[start - 1] != b'.' {
        start -= 1;
    }
    name.split_at(start).1
}

/// The descriptor of a kernel that runs all steps: its shader is that of the cell's step with `sequence`; the
/// bindings are those of [`packed`].
pub(crate) const fn sequence_kernel(
    name: &'static str,
    wgsl: &'static str,
    bindings: &'static [Binding],
    twin: Twin,
    sample: fn([usize; 3], &mut Rng) -> Result<Sample>,
) -> Kernel {
    Kernel {
        name,
        wgsl,
        entry: behind_dot(name),
        bindings,
        params_size: size_of::<StepParams>(),
        workgroup_size: 64,
        workgroup_memory: 0,
        twin,
        sample,
    }
}

/// What the descriptors of a step over quads have in common; name, text and sizes are those of a form.
pub(crate) const fn quads_kernel(bindings: &'static [Binding], twin: Twin) -> Kernel {
    Kernel {
        name: "",
        wgsl: "",
        entry: "",
        bindings,
        params_size: size_of::<StepParams>(),
        workgroup_size: 0,
        workgroup_memory: 0,
        twin,
        sample: |_, _| {
            Err(Error::value(
                "a step",
                "form",
                "one of those over quads",
                "none",
            ))
        },
    }
}

/// The bindings of a step with packed weights in the place of its own.
pub(crate) const fn packed<const N: usize>(
    mut bindings: [Binding; N],
    weights: usize,
    name: &'static str,
) -> [Binding; N] {
    bindings[weights] = Binding::read(name).or_half("HALF");
    bindings
}

/// `Step` in `shaders/shared/step.wgsl`; starts and distances count elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct StepParams {
    /// α and β of the activations, each with what double precision has beyond it.
    pub activations: [[f32; 4]; 3],
    /// The bound of pre-activations, likewise.
    pub clip: [f32; 2],
    /// The bound of c, likewise.
    pub cell_clip: [f32; 2],
    /// Sequences that have this step; they are the first ones of the batch.
    pub count: u32,
    /// H
    pub hidden: u32,
    /// P: units of h.
    pub output: u32,
    /// How many of the sequences go on to another step in the same buffers.
    pub next_count: u32,
    /// This step's row of the first sequence in `gates`.
    pub gates_start: u32,
    /// From one sequence to the next there.
    pub gates_row: u32,
    /// This step's row of the first sequence in `dgates`.
    pub dgates_start: u32,
    /// From one sequence to the next there.
    pub dgates_row: u32,
    /// The next step's row of the first sequence there.
    pub dgates_next: u32,
    /// h before the step.
    pub h_from: u32,
    /// h after it where the sequence goes on.
    pub h_next: u32,
    /// From one sequence to the next in both.
    pub h_row: u32,
    /// As `h_from`.
    pub c_from: u32,
    /// As `h_next`.
    pub c_next: u32,
    /// As `h_row`.
    pub c_row: u32,
    /// This step's row of the first sequence in `y` or `dy`.
    pub y_start: u32,
    /// From one sequence to the next there.
    pub y_row: u32,
    /// This step's row of the first sequence in `mask`.
    pub mask_start: u32,
    /// The next step's.
    pub mask_next: u32,
    /// From one sequence to the next there.
    pub mask_row: u32,
    /// Rows of H that pass from one kernel of a step to another.
    pub inner_start: u32,
    /// From one sequence to the next there.
    pub inner_row: u32,
    /// Rows of P that do.
    pub outer_start: u32,
    /// From one sequence to the next there.
    pub outer_row: u32,
    /// Where the gradients of c start in the lane's part of `dstate`.
    pub dc_start: u32,
    /// How many streams there are.
    pub streams: u32,
    /// I, for streams.
    pub input: u32,
    /// Where the steps of a kernel that runs them all, or several lanes, stand in `mask`: a [`Moment`]
    /// for each.
    pub table: u32,
    /// How many steps it runs.
    pub steps: u32,
    /// The lane; see [`Rows::lanes`].
    pub lane: u32,
    /// From one lane's table to the next.
    pub lane_table: u32,
    /// From one lane to the next in `h`, whose part begins with h after the last step.
    pub lane_h: u32,
    /// The same in `c`.
    pub lane_c: u32,
    /// From one lane to the next in `dstate`.
    pub lane_dstate: u32,
    /// And in the recurrent weights.
    pub lane_weights: u32,
    /// And in `bias_hh`.
    pub lane_bias: u32,
    /// And in `weight_p`.
    pub lane_diagonal: u32,
    /// How many lanes run, where levels are side by side.
    pub lanes: u32,
    /// The shader's struct has a size of whole `vec4`s.
    pub padding: [u32; 2],
}

/// What differs from step to step in [`StepParams`]: an entry of the table that the kernels of all
/// steps read.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Moment {
    /// As in [`StepParams`], like all that follow.
    pub count: u32,
    #[allow(missing_docs, reason = "see above")]
    pub next_count: u32,
    #[allow(missing_docs, reason = "see above")]
    pub gates_start: u32,
    #[allow(missing_docs, reason = "see above")]
    pub dgates_start: u32,
    #[allow(missing_docs, reason = "see above")]
    pub dgates_next: u32,
    #[allow(missing_docs, reason = "see above")]
    pub h_from: u32,
    #[allow(missing_docs, reason = "see above")]
    pub h_next: u32,
    #[allow(missing_docs, reason = "see above")]
    pub c_from: u32,
    #[allow(missing_docs, reason = "see above")]
    pub c_next: u32,
    #[allow(missing_docs, reason = "see above")]
    pub y_start: u32,
    #[allow(missing_docs, reason = "see above")]
    pub mask_start: u32,
    #[allow(missing_docs, reason = "see above")]
    pub mask_next: u32,
}

impl Moment {
    /// Words of an entry.
    pub const WORDS: usize = size_of::<Self>() / 4;
}

impl StepParams {
    /// What differs from step to step.
    pub fn moment(&self) -> Moment {
        Moment {
            count: self.count,
            next_count: self.next_count,
            gates_start: self.gates_start,
            dgates_start: self.dgates_start,
            dgates_next: self.dgates_next,
            h_from: self.h_from,
            h_next: self.h_next,
            c_from: self.c_from,
            c_next: self.c_next,
            y_start: self.y_start,
            mask_start: self.mask_start,
            mask_next: self.mask_next,
        }
    }

    /// Where h of sequences that do not go on starts.
    pub fn h_state(&self) -> u32 {
        self.lane * self.lane_h
    }

    /// And c.
    pub fn c_state(&self) -> u32 {
        self.lane * self.lane_c
    }

    /// The parameters of another step of the same kernel.
    #[must_use]
    pub fn at(&self, m: &Moment) -> Self {
        Self {
            count: m.count,
            next_count: m.next_count,
            gates_start: m.gates_start,
            dgates_start: m.dgates_start,
            dgates_next: m.dgates_next,
            h_from: m.h_from,
            h_next: m.h_next,
            c_from: m.c_from,
            c_next: m.c_next,
            y_start: m.y_start,
            mask_start: m.mask_start,
            mask_next: m.mask_next,
            ..*self
        }
    }
}

/// Where the rows of a step's sequences stand, and what its mask says of them.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    /// The step's parameters.
    pub p: StepParams,
    mask: &'a [u32],
    masked: bool,
    stream: bool,
    beside: bool,
}

impl<'a> Rows<'a> {
    /// Takes the mask, the first binding of every step kernel.
    ///
    /// # Errors
    /// If parameters, constants or the binding are not those of a step kernel.
    pub fn new<R: Real>(args: &mut Args<'a, R>) -> Result<Self> {
        Ok(Self {
            p: args.params()?,
            mask: args.read_uint(0)?,
            masked: args.constant("MASKED")? != 0,
            stream: args.constant("STREAM")? != 0,
            beside: args.constant("BESIDE")? != 0,
        })
    }

    /// The rows of every lane: of each of the levels that a kernel runs side by side, whose values stand
    /// one behind another in the same buffers.
    pub fn lanes(&self) -> impl Iterator<Item = Self> + use<'a> {
        let first = self.clone();
        let lanes = if self.beside { self.p.lanes } else { 1 };
        (0..lanes).map(move |nth| {
            let mut rows = first.clone();
            rows.p.lane += nth;
            rows.p.table += nth * rows.p.lane_table;
            rows
        })
    }

    /// The same for a kernel that runs one step.
    ///
    /// # Errors
    /// If the table of a lane leaves the mask.
    pub fn lanes_of_step(&self) -> Result<Vec<Self>> {
        if !self.beside {
            return Ok(vec![self.clone()]);
        }
        let of_step = |mut rows: Self| {
            rows.p.steps = 1;
            Ok(rows.steps()?.swap_remove(0))
        };
        self.lanes().map(of_step).collect()
    }

    /// The lane's part of a buffer in which each lane has so many elements; with 0 all of it.
    ///
    /// # Errors
    /// If it leaves the buffer.
    pub fn own<'b, R>(&self, all: &'b [R], of_lane: u32) -> Result<&'b [R]> {
        let part = self.part(all.len(), of_lane)?;
        Ok(&all[part])
    }

    /// The same to be changed.
    ///
    /// # Errors
    /// As [`Self::own`].
    pub fn own_mut<'b, R>(&self, all: &'b mut [R], of_lane: u32) -> Result<&'b mut [R]> {
        let part = self.part(all.len(), of_lane)?;
        Ok(&mut all[part])
    }

    fn part(&self, len: usize, of_lane: u32) -> Result<std::ops::Range<usize>> {
        if of_lane == 0 {
            return Ok(0..len);
        }
        let (lane, size) = (self.p.lane as usize, of_lane as usize);
        let part = lane * size..(lane + 1) * size;
        if part.end > len {
            return Err(Error::shape("a lane", "end of its part", part.end, len));
        }
        Ok(part)
    }

    /// The rows of every step, for a kernel that runs them all.
    ///
    /// # Errors
    /// If the table of steps leaves the mask.
    pub fn steps(&self) -> Result<Vec<Self>> {
        let start = self.p.table as usize;
        let words = self.p.steps as usize * Moment::WORDS;
        let table = self.mask.get(start..start + words).ok_or_else(|| {
            let have = self.mask.len();
            Error::shape("all steps", "end of their table", start + words, have)
        })?;
        let entries = table.chunks_exact(Moment::WORDS);
        let at = |words: &[u32]| Self {
            p: self
                .p
                .at(&bytemuck::pod_read_unaligned(bytemuck::cast_slice(words))),
            ..self.clone()
        };
        Ok(entries.map(at).collect())
    }

    /// Those of another step of the same call.
    pub(crate) fn of_step(steps: &Steps<'a>, p: StepParams) -> Self {
        Self {
            p,
            mask: steps.mask,
            masked: steps.masked,
            stream: steps.stream,
            beside: false,
        }
    }

    /// The steps of a kernel that runs them all; streams have one, whose sums over x have no place in
    /// `gates` and go to rows of G·H.
    pub(crate) fn all_params(&self, gates: usize) -> Result<Vec<StepParams>> {
        if self.stream {
            let own = StepParams {
                gates_start: 0,
                gates_row: gates as u32 * self.p.hidden,
                ..self.p
            };
            return Ok(vec![own]);
        }
        Ok(self.steps()?.iter().map(|rows| rows.p).collect())
    }

    /// What a fast forward kernel has as `gates`, and x: for streams, which have x there, zeros, `[N, G·H]`.
    pub(crate) fn gates_and_input<'b>(
        &self,
        bound: &'b mut [f32],
        gates: usize,
        zeros: &'b mut Vec<f32>,
    ) -> (&'b mut [f32], Option<&'b [f32]>) {
        if !self.stream {
            return (bound, None);
        }
        zeros.resize(self.count() * gates * self.p.hidden as usize, 0.0);
        (zeros, Some(bound))
    }

    /// What the sums of a forward kernel that runs all steps run over: h, for streams behind x and the 1
    /// that meets b_ih.
    pub(crate) fn terms(&self) -> usize {
        let input = if self.stream { self.p.input + 1 } else { 0 };
        (input + self.p.output) as usize
    }

    /// True if these are streams and no two of them are the same.
    pub(crate) fn distinct_streams(&self) -> bool {
        let mut streams: Vec<_> = (0..self.count()).map(|n| self.stream_at(n).0).collect();
        streams.sort_unstable();
        let apart = streams.windows(2).all(|pair| pair[0] != pair[1]);
        let last = streams.last().is_none_or(|&s| s < self.p.streams as usize);
        self.stream && apart && last
    }

    /// These steps as the fast twins take them.
    pub(crate) fn all<'b>(&'b self, steps: &'b [StepParams]) -> Steps<'b> {
        Steps {
            steps,
            mask: self.mask,
            masked: self.masked,
            stream: self.stream,
        }
    }

    /// True if the rows are streams and `gates` holds their inputs.
    pub fn stream(&self) -> bool {
        self.stream
    }

    /// How many sequences have this step.
    pub fn count(&self) -> usize {
        match self.stream {
            true => (self.mask[self.p.mask_start as usize].min(self.p.count)) as usize,
            false => self.p.count as usize,
        }
    }

    fn mask_at(&self, start: u32, n: usize) -> u32 {
        self.mask[start as usize + n * self.p.mask_row as usize]
    }

    /// False where the step lies past the sequence's length.
    pub fn live(&self, n: usize) -> bool {
        !self.masked || self.mask_at(self.p.mask_start, n) & 1 == 0
    }

    /// True where the state is zeroed before this step.
    pub fn reset(&self, n: usize) -> bool {
        self.masked && self.mask_at(self.p.mask_start, n) & 2 != 0
    }

    /// True where the state is zeroed before the next step.
    pub fn reset_next(&self, n: usize) -> bool {
        let goes_on = n < self.p.next_count as usize;
        self.masked && goes_on && self.mask_at(self.p.mask_next, n) & 2 != 0
    }

    fn stream_at(&self, n: usize) -> (usize, usize) {
        let entry = self.mask[self.p.mask_start as usize + n + 1] as usize;
        (entry >> 1, entry & 1)
    }

    /// Where h before the step stands. Resets were done when it was written.
    pub fn h_before(&self, n: usize) -> usize {
        let p = &self.p;
        if self.stream {
            let (stream, half) = self.stream_at(n);
            return (half * p.streams as usize + stream) * p.output as usize;
        }
        p.h_from as usize + n * p.h_row as usize
    }

    /// Where h after the step goes.
    pub fn h_after(&self, n: usize) -> usize {
        let p = &self.p;
        if self.stream {
            let (stream, half) = self.stream_at(n);
            return ((1 - half) * p.streams as usize + stream) * p.output as usize;
        }
        self.after(n, [p.h_next, p.h_row, p.h_state(), p.output])
    }

    /// Where c before the step stands; a reset is still to be done.
    pub fn c_before(&self, n: usize) -> usize {
        let p = &self.p;
        if self.stream {
            return self.stream_at(n).0 * p.hidden as usize;
        }
        p.c_from as usize + n * p.c_row as usize
    }

    /// Where c after the step goes.
    pub fn c_after(&self, n: usize) -> usize {
        let p = &self.p;
        if self.stream {
            return self.stream_at(n).0 * p.hidden as usize;
        }
        self.after(n, [p.c_next, p.c_row, p.c_state(), p.hidden])
    }

    fn after(&self, n: usize, place: [u32; 4]) -> usize {
        let [next, row, state, width] = place.map(|v| v as usize);
        if n < self.p.next_count as usize {
            next + n * row
        } else {
            state + n * width
        }
    }

    /// The sequence's row in `gates`.
    pub fn gates(&self, n: usize) -> usize {
        self.p.gates_start as usize + n * self.p.gates_row as usize
    }

    /// The sequence's row in `dgates`.
    pub fn dgates(&self, n: usize) -> usize {
        self.p.dgates_start as usize + n * self.p.dgates_row as usize
    }

    /// The sequence's row in `y` or `dy`.
    pub fn y(&self, n: usize) -> usize {
        self.p.y_start as usize + n * self.p.y_row as usize
    }

    /// The sequence's row of H.
    pub fn inner(&self, n: usize) -> usize {
        self.p.inner_start as usize + n * self.p.inner_row as usize
    }

    /// The sequence's row of P.
    pub fn outer(&self, n: usize) -> usize {
        self.p.outer_start as usize + n * self.p.outer_row as usize
    }

    /// Where a sequence's h goes after the step.
    pub fn hand_on(&self, n: usize) -> HandOn {
        HandOn {
            h: self.h_after(n),
            y: self.y(n),
            zeroed: self.reset_next(n),
            live: self.live(n),
        }
    }

    /// Past its length a sequence keeps its state and puts out zeros.
    pub fn hold_state<R: Real>(&self, h: &mut [R], y: &mut [R], n: usize) {
        let (to, before) = (self.hand_on(n), self.h_before(n));
        for unit in 0..self.p.output as usize {
            to.store(h, y, unit, h[before + unit]);
        }
    }

    /// Where the gradient of a sequence's h after this step comes from.
    pub fn state_gradient(&self, n: usize) -> StateGradient {
        StateGradient {
            dstate: n * self.p.output as usize,
            dy: self.y(n),
            zeroed: self.reset_next(n),
            live: self.live(n),
        }
    }
}

/// Where a sequence's h goes after a step, and what a mask makes of it.
#[derive(Debug, Clone, Copy)]
pub struct HandOn {
    /// Its row in `h`.
    pub(crate) h: usize,
    /// Its row in `y`.
    pub(crate) y: usize,
    /// True if the next step starts from zeros.
    pub(crate) zeroed: bool,
    /// False if the output is 0.
    pub(crate) live: bool,
}

impl HandOn {
    /// Hands on h of a unit to the next step and to the output.
    pub fn store<R: Real>(&self, h: &mut [R], y: &mut [R], unit: usize, value: R) {
        h[self.h + unit] = if self.zeroed { R::ZERO } else { value };
        y[self.y + unit] = if self.live { value } else { R::ZERO };
    }
}

/// Where the gradient of a sequence's h after a step comes from.
#[derive(Debug, Clone, Copy)]
pub struct StateGradient {
    /// Its row in `dstate`.
    pub(crate) dstate: usize,
    /// Its row in `dy`.
    pub(crate) dy: usize,
    /// True if the next step starts from zeros.
    pub(crate) zeroed: bool,
    /// False if the output is 0.
    pub(crate) live: bool,
}

impl StateGradient {
    /// That of a unit: what comes through the gates of the next step (`product`), past them, and
    /// from the output.
    pub fn of<R: Real>(&self, dstate: &[R], dy: &[R], unit: usize, product: R) -> R {
        let dy = if self.live {
            dy[self.dy + unit]
        } else {
            R::ZERO
        };
        self.sum(dstate[self.dstate + unit], dy, product)
    }

    /// The same of numbers: what is in `dstate`, `dy` and the product.
    #[inline]
    pub(crate) fn sum<R: Real>(&self, dstate: R, dy: R, product: R) -> R {
        let through = if self.zeroed {
            R::ZERO
        } else {
            dstate + product
        };
        if self.live { through + dy } else { through }
    }
}

/// What a forward step multiplies: the operand of W_hh (h, or `inner`) and, for streams, x.
#[derive(Debug)]
pub struct Forward<'a, R> {
    /// What the step has bound as `gates`; for streams it holds x.
    pub gates: &'a [R],
    /// W_hh transposed.
    pub weight_hh_t: &'a [R],
    /// What W_hh multiplies.
    pub operand: &'a [R],
    /// The length of a row of it.
    pub size: usize,
    /// G
    pub of_gates: usize,
    /// The gates whose products are wanted.
    pub wanted: std::ops::Range<usize>,
}

/// The contributions to the pre-activations of the wanted gates, `[N, gates, H]` each.
#[derive(Debug)]
pub struct Products<R> {
    recurrent: Vec<R>,
    input: Option<Vec<R>>,
    width: usize,
    hidden: usize,
}

impl<R: Real> Products<R> {
    /// W_hh times the operand, of one unit of the wanted gate that comes `nth`.
    pub fn recurrent(&self, n: usize, nth: usize, unit: usize) -> R {
        self.recurrent[n * self.width + nth * self.hidden + unit]
    }

    /// W_ih x + b_ih likewise: `stored` is what `gates` holds, which streams compute here.
    pub fn input(&self, n: usize, nth: usize, unit: usize, stored: impl Fn() -> R) -> R {
        match &self.input {
            None => stored(),
            Some(input) => input[n * self.width + nth * self.hidden + unit],
        }
    }
}

impl<R: Real> Forward<'_, R> {
    /// The products of a step; `place` says where the operand's row of a sequence starts.
    ///
    /// # Errors
    /// If a matrix leaves its buffer.
    pub fn products(&self, rows: &Rows<'_>, place: impl Fn(usize) -> usize) -> Result<Products<R>> {
        let p = &rows.p;
        let (count, hidden, input) = (rows.count(), p.hidden as usize, p.input as usize);
        let (all, width) = (self.of_gates * hidden, self.wanted.len() * hidden);
        let column = self.wanted.start * hidden;
        let weights = |row: usize, count: usize| {
            let start = (row * all + column) as u32;
            Strided::new(self.weight_hh_t, [start, all as u32, 1], [count, width])
        };
        let mut recurrent = vec![R::ZERO; count * width];
        let sums = StridedMut::new(&mut recurrent, [0, width as u32, 1], [count, width]);
        let size = self.size;
        let done = |recurrent, input| Products {
            recurrent,
            input,
            width,
            hidden,
        };
        if !rows.stream {
            let stride = [place(0), place(1) - place(0), 1].map(|v| v as u32);
            let operand = Strided::new(self.operand, stride, [count, size]);
            product(operand, weights(0, size), sums, R::ONE, R::ZERO)?;
            return Ok(done(recurrent, None));
        }
        // The rows of streams are anywhere.
        let gathered: Vec<R> = (0..count)
            .flat_map(|n| self.operand[place(n)..place(n) + size].iter().copied())
            .collect();
        let operand = Strided::new(&gathered, [0, size as u32, 1], [count, size]);
        // Behind the weights of the inputs stand their biases.
        product(operand, weights(input + 1, size), sums, R::ONE, R::ZERO)?;
        let bias = input * all + column;
        let mut from_x = self.weight_hh_t[bias..bias + width].repeat(count);
        let sums = StridedMut::new(&mut from_x, [0, width as u32, 1], [count, width]);
        let x = Strided::new(self.gates, [0, input as u32, 1], [count, input]);
        product(x, weights(0, input), sums, R::ONE, R::ONE)?;
        Ok(done(recurrent, Some(from_x)))
    }
}

/// W_hh as the kernels of single steps have it, `[K, G, units]`, from the blocks that
/// [`pack`](super::pack) made of it, every one of whose places is a gate's.
pub(crate) fn unpacked<R: Real>(packed: &[R], blocks: &PackedBlocks) -> Vec<R> {
    let PackedBlocks {
        gates,
        units,
        size,
        block,
        ..
    } = *blocks;
    let mut out = vec![R::ZERO; gates * size * units];
    for (at, lanes) in packed
        .chunks_exact(block)
        .take(blocks.len() / block)
        .enumerate()
    {
        let (g, k, first) = (at % gates, at / gates % size, at / (gates * size) * block);
        let count = block.min(units.saturating_sub(first));
        let to = (k * gates + g) * units + first;
        out[to..to + count].copy_from_slice(&lanes[..count]);
    }
    out
}

/// The weights of a step forward over quads as the plain kernel has them: W_hh transposed, for streams
/// behind those of the input.
pub(crate) fn from_quads<R: Real>(packed: &[R], gates: usize, rows: &Rows<'_>) -> Vec<R> {
    let [hidden, output, input] = [rows.p.hidden, rows.p.output, rows.p.input].map(|v| v as usize);
    let of_h = PackedBlocks::quads([gates, hidden, output]);
    let of_x = PackedBlocks::quads_of_input([gates, hidden, input]);
    let first = if rows.stream { input + 1 } else { 0 };
    let all = PackedBlocks {
        gates: of_h.slots,
        empty: of_h.slots,
        size: first + output,
        ..of_h
    };
    let mut out = Vec::with_capacity((first + output) * gates * hidden);
    let slots = unpacked(packed, &all);
    for (k, slots) in slots.chunks_exact(of_h.slots * hidden).enumerate() {
        for gate in 0..gates {
            let slot = if k < first { &of_x } else { &of_h }.slot(gate);
            out.extend_from_slice(&slots[slot * hidden..(slot + 1) * hidden]);
        }
    }
    out
}

/// The gradient that reaches h through the gates of the next step: dgates W_hh, `[N, P]`, 0 for
/// sequences that have no next step.
///
/// # Errors
/// If a matrix leaves its buffer.
pub fn gradient_product<'b, R: Real>(
    rows: &Rows<'_>,
    dgates: &[R],
    weight_hh: &[R],
    blocks: impl IntoIterator<Item = &'b Blocks>,
) -> Result<Vec<R>> {
    let p = &rows.p;
    let (hidden, output) = (p.hidden as usize, p.output as usize);
    let count = p.next_count.min(p.count) as usize;
    let mut out = vec![R::ZERO; p.count as usize * output];
    if count == 0 {
        return Ok(out);
    }
    for b in blocks {
        let start = p.dgates_next + b.slot as u32 * p.hidden;
        let width = b.count * hidden;
        let weight_start = b.gate as u32 * p.hidden * p.output;
        product(
            Strided::new(dgates, [start, p.dgates_row, 1], [count, width]),
            Strided::new(weight_hh, [weight_start, p.output, 1], [width, output]),
            StridedMut::new(&mut out, [0, p.output, 1], [count, output]),
            R::ONE,
            R::ONE,
        )?;
    }
    Ok(out)
}
