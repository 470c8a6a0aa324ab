//! Where the rows of a step's sequences stand, and what its mask makes of what goes there.

use super::{Moment, StepParams};
use crate::error::{Error, Result};
use crate::kernel::Args;
use crate::kernels::simd::run::Steps;
use crate::real::Real;

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
